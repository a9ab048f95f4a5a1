"""What a comparison needs beside the weights: examples drawn, prompts laid out as tokens."""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from icljax import checkpoints
from icljax.catalog import VARIANTS
from icljax.comparison.changes import changed_demonstrations, other_words
from icljax.data import datasets, joins, prompts, splits, tasks
from icljax.data.prompts import Demonstrations, Encoder, Queries, Query
from icljax.errors import UserError
from icljax.models.decoder import DecoderConfig
from icljax.results import Duplicates


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Everything a comparison needs beside the weights.

    Attributes:
        dataset: where the examples come from.
        encoder: how they become tokens.
        demonstrations: of the R seeds.
        changed: the same in each variant, by its name.
        used: demonstrations that fitted, for each seed.
        selection, evaluation: batches of packed queries.
        selection_labels, labels: int32 [N], the place of each one's right candidate.
        selection_names, names: what each example is called in errors.
        rows: the evaluated examples' positions in their source split.
        notes: where the tokens are not those of the whole text, a line each.
        selected_on: what the selection examples are, in words.
        duplicates: how many examples have the text of another, and what was done with them.
    """

    dataset: datasets.Dataset
    encoder: Encoder
    demonstrations: Demonstrations
    changed: dict[str, Demonstrations]
    used: list[int]
    selection: Queries
    selection_labels: np.ndarray
    selection_names: list[str]
    evaluation: Queries
    labels: np.ndarray
    names: list[str]
    rows: np.ndarray
    notes: tuple[str, ...]
    selected_on: str
    duplicates: Duplicates


def prepare(
    config: ConfigDict, checkpoint: checkpoints.Checkpoint, note: Callable[[str], None]
) -> Inputs:
    """Loads the data, draws the examples and lays out their tokens; `note` gets what is unusual.

    Raises:
        UserError: for whatever is wrong with task, data or lengths.
    """
    task = tasks.get_task(config.task, config.template, config.answers, config.data.choices)
    dataset = datasets.load(config.data, task)
    encoder = make_encoder(config, checkpoint, task)
    balanced = config.data.balanced
    drawn, duplicates = draw_demonstrations(config, dataset)
    rows = splits.draw(dataset.validation, config.eval.num_examples, config.eval.seed, balanced)
    select_from, selection_rows = draw_selection(config, dataset, drawn, rows)
    vocab_size = checkpoint.config.vocab_size
    queries = readable_queries(encoder, dataset.validation, rows, vocab_size)
    selection = readable_queries(encoder, select_from, selection_rows, vocab_size)

    fit = fitter(config, checkpoint.config, encoder, queries + selection)
    tokens = [demonstration_tokens(encoder, dataset.train, rows, vocab_size) for rows in drawn]
    demonstrations = [fit(of_seed) for of_seed in tokens]
    used = [len(d) for d in demonstrations]
    shown = [rows[:count] for rows, count in zip(drawn, used, strict=True)]
    changed = _changed(config, encoder, dataset.train, shown, fit)
    by_name = _laid_out({"": demonstrations} | changed, encoder)
    if min(used) < config.num_demonstrations:
        note(
            f"Demonstrations used: {used} of {config.num_demonstrations} (what the data holds and "
            f"what fits in {context_limit(config, checkpoint.config)} tokens), the same for ICL "
            "and FT."
        )
    notes = joins.notes(
        encoder,
        [joins.pieces(encoder.task, dataset.train, rows) for rows in shown],
        joins.pieces(encoder.task, dataset.validation, rows)
        + joins.pieces(encoder.task, select_from, selection_rows),
    )
    for line in notes:
        note(line)
    packed = pack(config, selection, queries)
    return Inputs(
        dataset=dataset,
        encoder=encoder,
        demonstrations=by_name.pop(""),
        changed=by_name,
        used=used,
        selection=packed[0],
        selection_labels=select_from.labels[selection_rows],
        selection_names=list(map(select_from.where, selection_rows)),
        evaluation=packed[1],
        labels=dataset.validation.labels[rows],
        names=list(map(dataset.validation.where, rows)),
        rows=dataset.validation.indices[rows],
        notes=tuple(notes),
        selected_on=selected_on(config, dataset, drawn, rows, selection_rows),
        duplicates=duplicates,
    )


def fitter(
    config: ConfigDict, decoder: DecoderConfig, encoder: Encoder, queries: list[Query]
) -> Callable[[list[list[int]]], list[list[int]]]:
    """A function from a seed's demonstrations to those that fit before any of these queries."""
    reserved = prompts.longest_query(queries, config.record_position)
    limit = context_limit(config, decoder)
    return functools.partial(prompts.fit, encoder=encoder, reserved=reserved, max_length=limit)


def pack(config: ConfigDict, *parts: list[Query]) -> list[Queries]:
    """Each part's queries in batches of the size and layout that the config asks for."""
    size, score = batch_tokens(config), config.prompt.score
    return prompts.pack_alike(parts, size, score=score, position=config.record_position)


def _changed(
    config: ConfigDict,
    encoder: Encoder,
    split: splits.Split,
    shown: list[np.ndarray],
    fit: Callable[[list[list[int]]], list[list[int]]],
) -> dict[str, list[list[list[int]]]]:
    """Every seed's demonstrations in each variant that is asked for."""
    words = other_words(encoder.task, config.study.answers_of)

    def change(name: str, rows: np.ndarray, seed: int) -> list[list[int]]:
        rng = np.random.default_rng([seed, 1])
        return fit(changed_demonstrations(name, encoder, split, rows, rng, words))

    return {
        name: [change(name, *one) for one in zip(shown, config.seeds, strict=True)]
        for name in variant_names(config)
    }


def _laid_out(
    every: dict[str, list[list[list[int]]]], encoder: Encoder
) -> dict[str, Demonstrations]:
    """Each name's seeds, laid out together: all have one shape and share the compiled programs."""
    laid_out = prompts.build_demonstrations([d for seeds in every.values() for d in seeds], encoder)
    count = len(next(iter(every.values())))
    return {
        name: jax.tree.map(lambda x, i=i: x[i * count : (i + 1) * count], laid_out)
        for i, name in enumerate(every)
    }


def make_encoder(
    config: ConfigDict, checkpoint: checkpoints.Checkpoint, task: tasks.Task
) -> Encoder:
    """How the task's texts become tokens, with the fixed ones checked.

    Raises:
        UserError: for an answer, separator or BOS that the model cannot read.
    """
    ids = {"<bos>": checkpoint.bos, "<eos>": checkpoint.eos}
    encoder = prompts.make_encoder(
        checkpoint.tokenizer, task, config.prompt.bos, config.prompt.separator, ids
    )
    fixed = {"prompt.bos": encoder.bos, "prompt.separator": encoder.separator}
    fixed |= {
        f"answer {a!r}": tokens for a, tokens in zip(task.answers, encoder.answers, strict=True)
    }
    for what, tokens in fixed.items():
        check_ids(what, tokens, encoder, checkpoint.config.vocab_size)
    return encoder


def check_ids(what: str, ids: Iterable[int], encoder: Encoder, vocab_size: int) -> None:
    """Raises a UserError for a token that the model's embedding does not have.

    Its embedding would be NaN, or another token's.
    """
    largest = max(ids, default=0)
    if largest >= vocab_size:
        raise UserError(
            f"{what} has the token {encoder.tokenizer.id_to_token(largest)!r} of id {largest}, but "
            f"the model's embedding ends with id {vocab_size - 1}; give the tokenizer that belongs "
            "to the model, or another text"
        )


def readable_queries(
    encoder: Encoder, split: splits.Split, rows: np.ndarray, vocab_size: int, start: bool = False
) -> list[Query]:
    """The queries of some rows, each of which the model can read; `start` as in the encoder.

    Raises:
        UserError: for one without tokens, or with tokens that the model does not have.
    """
    queries = encoder.queries(split, rows, start)
    for query, row in zip(queries, rows, strict=True):
        ids = itertools.chain(query.prompt, *query.candidates)
        check_ids(split.where(row), ids, encoder, vocab_size)
    return queries


def context_limit(config: ConfigDict, decoder: DecoderConfig) -> int:
    """Tokens that a prompt and its query may have.

    Raises:
        UserError: for more than the model's context, unless the config allows it and the model's
            positions are computed.
    """
    wanted, context = config.prompt.max_length, decoder.context_length
    if wanted <= context:
        return wanted or context
    if decoder.positions == "learned":
        raise UserError(
            f"config.prompt.max_length is {wanted}, but the model has {context} learned positions; "
            f"expected at most {context}, or 0 for all of them: --config.prompt.max_length=0"
        )
    if not config.prompt.beyond_context:
        raise UserError(
            f"config.prompt.max_length is {wanted}, but the model was made for {context} tokens; "
            "expected at most that, or 0 for it; to go beyond it all the same, give "
            "--config.prompt.beyond_context=True"
        )
    return wanted


def fingerprint(inputs: Inputs) -> str:
    """SHA-256 over all tokens and labels of a comparison's inputs, in hexadecimal."""
    digest = hashlib.sha256()
    labels = (inputs.selection_labels, inputs.labels)
    arrays = (inputs.demonstrations, inputs.changed, inputs.selection, inputs.evaluation, labels)
    for x in jax.tree.leaves(arrays):
        digest.update(f"{x.dtype}{x.shape}".encode() + np.ascontiguousarray(x).tobytes())
    return digest.hexdigest()


def draw_demonstrations(
    config: ConfigDict, dataset: datasets.Dataset
) -> tuple[list[np.ndarray], Duplicates]:
    """Row numbers of the train part for each seed, and what was done with duplicates.

    No demonstration has the text of an example of the validation split (`datasets.load` leaves
    those out of the train part), of another demonstration of its seed (left out here), or of a
    selection example (`draw_selection` leaves those out); with config.data.duplicates "keep", any
    may have.
    """
    drawn, repeated = [], 0
    keep, asked = config.data.duplicates == "keep", config.num_demonstrations
    for seed in config.seeds:
        if keep:
            rows = splits.draw(dataset.train, asked, seed, config.data.balanced)
            count = len(splits.repeated(dataset.train, rows))
        else:
            rows, count = splits.draw_distinct(dataset.train, asked, seed, config.data.balanced)
        drawn.append(rows)
        repeated += count
    return drawn, Duplicates(kept=keep, evaluated=dataset.shared, repeated=repeated)


def draw_selection(
    config: ConfigDict, dataset: datasets.Dataset, drawn: Sequence[np.ndarray], rows: np.ndarray
) -> tuple[splits.Split, np.ndarray]:
    """The examples on which learning rates (and the seed) are selected.

    Held out of train: none has the text of a demonstration of any seed or, where duplicates are
    kept, none is one. "validation", as in the paper: the very examples that are then reported.

    Raises:
        UserError: the demonstrations leave no example.
    """
    if config.selection.split == "validation":
        return dataset.validation, rows
    exclude = np.unique(np.concatenate(drawn))
    if config.data.duplicates != "keep":
        exclude = splits.sharing(dataset.train, dataset.train, exclude)
    try:
        return dataset.train, splits.draw(
            dataset.train,
            config.selection.num_examples,
            config.selection.seed,
            config.data.balanced,
            exclude=exclude,
        )
    except UserError as error:
        raise UserError(
            f"no example is left for selecting learning rates: {len(exclude)} of the "
            f"{len(dataset.train.labels)} of split {dataset.train.name!r} have the text of a "
            f"demonstration; lower --config.num_demonstrations, give more data, or select on "
            f"what is evaluated: --config.selection.split=validation"
        ) from error


def selected_on(
    config: ConfigDict,
    dataset: datasets.Dataset,
    drawn: Sequence[np.ndarray],
    rows: np.ndarray,
    selection_rows: np.ndarray,
) -> str:
    """What `draw_selection` gave, in words, with what it has in common with the other examples."""
    train, validation = dataset.train, dataset.validation
    demonstrations = np.unique(np.concatenate(drawn))
    if config.selection.split == "validation":
        shared = splits.sharing(validation, train, demonstrations)
        count = int(np.isin(selection_rows, shared).sum())
        return (
            f"the validation examples that are reported (as in the paper: optimistic), "
            f"{count or 'none'} with the text of a demonstration"
        )
    shared = splits.sharing(train, train, demonstrations)
    keep = config.data.duplicates == "keep"
    repeated = 0 if keep else len(shared) - len(demonstrations)
    evaluated = np.isin(selection_rows, splits.sharing(train, validation, rows)).sum()
    count = int(np.isin(selection_rows, shared).sum() + evaluated)
    if count:
        return (
            f"examples of the train part, {count} of them with the text of a demonstration or of "
            f"an evaluated example"
        )
    left_out = f"; {repeated} more with such a text were left out" if repeated else ""
    return (
        f"examples of the train part whose texts are in no seed's demonstrations and not evaluated"
        f"{left_out}"
    )


def demonstration_tokens(
    encoder: Encoder, split: splits.Split, rows: np.ndarray, vocab_size: int
) -> list[list[int]]:
    """Input and label tokens of each demonstration."""
    queries = readable_queries(encoder, split, rows, vocab_size, start=True)
    return [q.demonstration(split.labels[row]) for q, row in zip(queries, rows, strict=True)]


def variant_names(config: ConfigDict) -> tuple[str, ...]:
    """The variants of the demonstrations that the config asks for, in the order of the catalog."""
    if config.mode != "crossed":
        return ()
    return tuple(name for name in VARIANTS if name in config.study.variants)


def batch_tokens(config: ConfigDict) -> int:
    """Query tokens of one batch; on a CPU, attention scores that stay in its caches win."""
    on_cpu = jax.default_backend() == "cpu"
    return config.eval.tokens_per_batch or (512 if on_cpu else 4096)
