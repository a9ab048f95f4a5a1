"""What a comparison needs beside the weights: examples drawn, prompts laid out as tokens."""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from icljax import checkpoints
from icljax.catalog import CONTROLS
from icljax.data import datasets, joins, prompts, tasks
from icljax.data.prompts import Demonstrations, Encoder, Queries, Query
from icljax.errors import UserError, named
from icljax.models.decoder import DecoderConfig


@dataclasses.dataclass(frozen=True)
class Job:
    """Everything a comparison needs beside the weights.

    Attributes:
        dataset: where the examples come from.
        encoder: how they become tokens.
        demonstrations: of the R seeds.
        changed: the same as each data control changes them, by its name.
        used: demonstrations that fitted, for each seed.
        selection, evaluation: batches of packed queries.
        selection_labels, labels: int32 [N], the place of each one's right candidate.
        selection_names, names: what each example is called in errors.
        rows: the evaluated examples' positions in their source split.
        notes: where the tokens are not those of the whole text, a line each.
        selected_on: what the selection examples are, in words.
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


def prepare(
    config: ConfigDict, checkpoint: checkpoints.Checkpoint, note: Callable[[str], None]
) -> Job:
    """Loads the data, draws the examples and lays out their tokens; `note` gets what is unusual.

    Raises:
        UserError: for whatever is wrong with task, data or lengths.
    """
    task = tasks.get_task(config.task, config.template, config.answers, config.data.choices)
    dataset = datasets.load(config.data, task)
    encoder = make_encoder(config, checkpoint, task)
    balanced = config.data.balanced
    drawn = [
        datasets.draw(dataset.train, config.num_demonstrations, seed, balanced)
        for seed in config.seeds
    ]
    rows = datasets.draw(dataset.validation, config.eval.num_examples, config.eval.seed, balanced)
    select_from, selection_rows = draw_selection(config, dataset, drawn, rows)
    vocab_size = checkpoint.config.vocab_size
    queries = readable_queries(encoder, dataset.validation, rows, vocab_size)
    selection = readable_queries(encoder, select_from, selection_rows, vocab_size)

    limit = context_limit(config, checkpoint.config)
    reserved = prompts.longest_query(queries + selection, config.record_position)
    fit = functools.partial(prompts.fit, encoder=encoder, reserved=reserved, max_length=limit)
    demonstrations = [
        fit(demonstration_tokens(encoder, dataset.train, rows, vocab_size)) for rows in drawn
    ]
    used = [len(d) for d in demonstrations]
    kept = [rows[:count] for rows, count in zip(drawn, used, strict=True)]
    words = other_words(task, config.controls.answers_of)

    def change(name: str, rows: np.ndarray, seed: int) -> list[list[int]]:
        rng = np.random.default_rng([seed, 1])
        return fit(changed_demonstrations(name, encoder, dataset.train, rows, rng, words))

    every = {"": demonstrations} | {
        name: [change(name, *one) for one in zip(kept, config.seeds, strict=True)]
        for name in control_names(config)
        if CONTROLS[name].kind == "data"
    }
    by_name = _laid_out(every, encoder)
    if min(used) < config.num_demonstrations:
        note(
            f"Demonstrations used: {used} of {config.num_demonstrations} (what the data holds and "
            f"what fits in {limit} tokens), the same for ICL and FT."
        )
    notes = joins.notes(
        encoder,
        [joins.pieces(encoder.task, dataset.train, rows) for rows in kept],
        joins.pieces(encoder.task, dataset.validation, rows)
        + joins.pieces(encoder.task, select_from, selection_rows),
    )
    for line in notes:
        note(line)
    pack = functools.partial(
        prompts.pack,
        tokens_per_batch=batch_tokens(config),
        score=config.prompt.score,
        position=config.record_position,
    )
    return Job(
        dataset=dataset,
        encoder=encoder,
        demonstrations=by_name.pop(""),
        changed=by_name,
        used=used,
        selection=pack(selection),
        selection_labels=select_from.labels[selection_rows],
        selection_names=list(map(select_from.where, selection_rows)),
        evaluation=pack(queries),
        labels=dataset.validation.labels[rows],
        names=list(map(dataset.validation.where, rows)),
        rows=dataset.validation.indices[rows],
        notes=tuple(notes),
        selected_on=selected_on(config, dataset, drawn, rows, selection_rows),
    )


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
    encoder: Encoder, split: datasets.Split, rows: np.ndarray, vocab_size: int, start: bool = False
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


def fingerprint(job: Job) -> str:
    """SHA-256 over all tokens and labels of the job, in hexadecimal."""
    digest = hashlib.sha256()
    labels = (job.selection_labels, job.labels)
    arrays = (job.demonstrations, job.changed, job.selection, job.evaluation, labels)
    for x in jax.tree.leaves(arrays):
        digest.update(f"{x.dtype}{x.shape}".encode() + np.ascontiguousarray(x).tobytes())
    return digest.hexdigest()


def draw_selection(
    config: ConfigDict, dataset: datasets.Dataset, drawn: Sequence[np.ndarray], rows: np.ndarray
) -> tuple[datasets.Split, np.ndarray]:
    """The examples on which learning rates (and the seed) are selected.

    Held out of train: none has the text of a demonstration of any seed. "validation", as in the
    paper: the very examples that are then reported.

    Raises:
        UserError: the demonstrations leave no example.
    """
    if config.selection.split == "validation":
        return dataset.validation, rows
    exclude = datasets.sharing(dataset.train, dataset.train, np.concatenate(drawn))
    try:
        return dataset.train, datasets.draw(
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
        shared = datasets.sharing(validation, train, demonstrations)
        count = int(np.isin(selection_rows, shared).sum())
        return (
            f"the validation examples that are reported (as in the paper: optimistic), "
            f"{count or 'none'} with the text of a demonstration"
        )
    shared = datasets.sharing(train, train, demonstrations)
    repeated = len(shared) - len(demonstrations)
    evaluated = np.isin(selection_rows, datasets.sharing(train, validation, rows)).sum()
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
    encoder: Encoder, split: datasets.Split, rows: np.ndarray, vocab_size: int
) -> list[list[int]]:
    """Input and label tokens of each demonstration."""
    queries = readable_queries(encoder, split, rows, vocab_size, start=True)
    return [q.demonstration(split.labels[row]) for q, row in zip(queries, rows, strict=True)]


def changed_demonstrations(
    name: str,
    encoder: Encoder,
    split: datasets.Split,
    rows: np.ndarray,
    rng: np.random.Generator,
    words: Sequence[str],
) -> list[list[int]]:
    """Demonstrations as a data control changes them.

    Args:
        name: one of `_CHANGES`.
        words: the answers that "other_answers" puts in.

    Raises:
        UserError: for another name.
    """
    change = named("data control", name, _CHANGES)
    queries = encoder.queries(split, rows, start=True)
    return change(encoder, queries, split.labels[rows], rng, words)


def _permuted_labels(
    encoder: Encoder, queries: list[Query], labels: np.ndarray, rng: np.random.Generator, _: Any
) -> list[list[int]]:
    """They exchange their labels at random."""
    # In multiple choice an example may have fewer candidates than another's label counts.
    pairs = zip(queries, rng.permutation(labels), strict=True)
    return [q.demonstration(label % len(q.candidates)) for q, label in pairs]


def _shuffled_tokens(
    encoder: Encoder, queries: list[Query], labels: np.ndarray, rng: np.random.Generator, _: Any
) -> list[list[int]]:
    """The tokens of each input in random order, its label still last."""
    queries = [dataclasses.replace(q, prompt=rng.permutation(q.prompt).tolist()) for q in queries]
    return [q.demonstration(label) for q, label in zip(queries, labels, strict=True)]


def _other_answers(
    encoder: Encoder, queries: list[Query], labels: np.ndarray, _: Any, words: Sequence[str]
) -> list[list[int]]:
    """Each label is one of `words` throughout."""
    answers = prompts.answer_tokens(encoder.tokenizer, encoder.task.template, words)
    named_so = labels % len(words)
    return [[*q.prompt, *answers[label]] for q, label in zip(queries, named_so, strict=True)]


_CHANGES = {
    "permuted_labels": _permuted_labels,
    "shuffled_tokens": _shuffled_tokens,
    "other_answers": _other_answers,
}


def other_words(task: tasks.Task, name: str) -> tuple[str, ...]:
    """The answers of the task called `name`, or of one that has enough, and none in common.

    Raises:
        UserError: for an unknown name, a task of multiple choice, or one whose answers are among
            the task's own.
    """
    if name:
        words = tasks.get_task(name).answers
        if not words:
            raise UserError(
                f"config.controls.answers_of={name!r} is multiple choice and has no answers of its "
                "own; give a classification task, say agnews"
            )
        if shared := _shared(words, task.answers):
            raise UserError(
                f"config.controls.answers_of={name!r} has answers of task {task.name} itself "
                f"({', '.join(shared)}), which change nothing; give a task with other answers, or "
                "leave it empty and one is chosen"
            )
        return words
    for other in ("agnews", "trec"):
        words = tasks.TASKS[other].answers
        if len(words) >= len(task.answers) and not _shared(words, task.answers):
            break
    return words


def _shared(words: Sequence[str], answers: Sequence[str]) -> list[str]:
    own = set(map(tasks.folded, answers))
    return [word for word in words if tasks.folded(word) in own]


def control_names(config: ConfigDict) -> tuple[str, ...]:
    """The controls that the config asks for, each once, in the order of `config.CONTROLS`."""
    asked = config.controls.names
    names = tuple(name for name in CONTROLS if name in asked or "all" in asked)
    # With one seed there is no other.
    return names if len(config.seeds) > 1 else tuple(n for n in names if n != "other_seed")


def batch_tokens(config: ConfigDict) -> int:
    """Query tokens of one batch; on a CPU, attention scores that stay in its caches win."""
    on_cpu = jax.default_backend() == "cpu"
    return config.eval.tokens_per_batch or (512 if on_cpu else 4096)
