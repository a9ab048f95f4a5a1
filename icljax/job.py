"""What a comparison needs beside the weights: examples drawn, prompts laid out as tokens."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from icljax import checkpoints, data, prompts, tasks
from icljax.config import CONTROLS
from icljax.errors import UserError
from icljax.prompts import Demonstrations, Encoder, Queries


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
        rows: the evaluated examples' positions in their source split.
        selected_on: what the selection examples are, in words.
    """

    dataset: data.Dataset
    encoder: Encoder
    demonstrations: Demonstrations
    changed: dict[str, Demonstrations]
    used: list[int]
    selection: Queries
    selection_labels: np.ndarray
    evaluation: Queries
    labels: np.ndarray
    rows: np.ndarray
    selected_on: str


def prepare(
    config: ConfigDict, checkpoint: checkpoints.Checkpoint, note: Callable[[str], None]
) -> Job:
    """Loads the data, draws the examples and lays out their tokens; `note` gets what is unusual.

    Raises:
        UserError: for whatever is wrong with task, data or lengths.
    """
    task = tasks.get_task(config.task, config.template, config.answers, config.data.choices)
    dataset = data.load(config.data, task)
    ids = {"<bos>": checkpoint.bos, "<eos>": checkpoint.eos}
    encoder = prompts.make_encoder(
        checkpoint.tokenizer, task, config.prompt.bos, config.prompt.separator, ids
    )
    balanced = config.data.balanced
    drawn = [
        data.draw(dataset.train, config.num_demonstrations, seed, balanced) for seed in config.seeds
    ]
    rows = data.draw(dataset.validation, config.eval.num_examples, config.eval.seed, balanced)
    select_from, selection_rows = draw_selection(config, dataset, drawn, rows)
    queries = encoder.queries(dataset.validation, rows)
    selection = encoder.queries(select_from, selection_rows)

    limit = config.prompt.max_length or checkpoint.config.context_length
    reserved = prompts.longest_query(queries + selection, config.record_position)
    fit = functools.partial(prompts.fit, encoder=encoder, reserved=reserved, max_length=limit)
    demonstrations = [fit(demonstration_tokens(encoder, dataset.train, rows)) for rows in drawn]
    used = [len(d) for d in demonstrations]
    kept = [rows[:count] for rows, count in zip(drawn, used, strict=True)]
    words = other_words(task, config.controls.answers_of)

    def change(name: str, rows: np.ndarray, seed: int) -> list[list[int]]:
        rng = np.random.default_rng([seed, 1])
        return fit(changed_demonstrations(name, encoder, dataset.train, rows, rng, words))

    every = {"": demonstrations} | {
        name: [change(name, *one) for one in zip(kept, config.seeds, strict=True)]
        for name in control_names(config)
        if CONTROLS[name] == "data"
    }
    # Laid out together, so that all have one shape and share the compiled programs.
    laid_out = prompts.build_demonstrations([d for seeds in every.values() for d in seeds], encoder)
    count = len(config.seeds)
    by_name = {
        name: jax.tree.map(lambda x, i=i: x[i * count : (i + 1) * count], laid_out)
        for i, name in enumerate(every)
    }
    if min(used) < config.num_demonstrations:
        note(
            f"Demonstrations used: {used} of {config.num_demonstrations} (what the data holds and "
            f"what fits in {limit} tokens), the same for ICL and FT."
        )
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
        evaluation=pack(queries),
        labels=dataset.validation.labels[rows],
        rows=dataset.validation.indices[rows],
        selected_on=selected_on(config, dataset, drawn, rows, selection_rows),
    )


def fingerprint(job: Job) -> str:
    """SHA-256 over all tokens and labels of the job, in hexadecimal."""
    digest = hashlib.sha256()
    labels = (job.selection_labels, job.labels)
    arrays = (job.demonstrations, job.changed, job.selection, job.evaluation, labels)
    for x in jax.tree.leaves(arrays):
        digest.update(f"{x.dtype}{x.shape}".encode() + np.ascontiguousarray(x).tobytes())
    return digest.hexdigest()


def draw_selection(
    config: ConfigDict, dataset: data.Dataset, drawn: Sequence[np.ndarray], rows: np.ndarray
) -> tuple[data.Split, np.ndarray]:
    """The examples on which learning rates (and the seed) are selected.

    Held out of train: none has the text of a demonstration of any seed. "validation", as in the
    paper: the very examples that are then reported.
    """
    if config.selection.split == "validation":
        return dataset.validation, rows
    exclude = data.sharing(dataset.train, dataset.train, np.concatenate(drawn))
    return dataset.train, data.draw(
        dataset.train,
        config.selection.num_examples,
        config.selection.seed,
        config.data.balanced,
        exclude=exclude,
    )


def selected_on(
    config: ConfigDict,
    dataset: data.Dataset,
    drawn: Sequence[np.ndarray],
    rows: np.ndarray,
    selection_rows: np.ndarray,
) -> str:
    """What `draw_selection` gave, in words, with what it has in common with the other examples."""
    train, validation = dataset.train, dataset.validation
    demonstrations = np.unique(np.concatenate(drawn))
    if config.selection.split == "validation":
        shared = data.sharing(validation, train, demonstrations)
        count = int(np.isin(selection_rows, shared).sum())
        return (
            f"the validation examples that are reported (as in the paper: optimistic), "
            f"{count or 'none'} with the text of a demonstration"
        )
    shared = data.sharing(train, train, demonstrations)
    repeated = len(shared) - len(demonstrations)
    evaluated = np.isin(selection_rows, data.sharing(train, validation, rows)).sum()
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


def demonstration_tokens(encoder: Encoder, split: data.Split, rows: np.ndarray) -> list[list[int]]:
    """Input and label tokens of each demonstration."""
    queries = encoder.queries(split, rows)
    return [q.demonstration(split.labels[row]) for q, row in zip(queries, rows, strict=True)]


def changed_demonstrations(
    name: str,
    encoder: Encoder,
    split: data.Split,
    rows: np.ndarray,
    rng: np.random.Generator,
    words: Sequence[str],
) -> list[list[int]]:
    """Demonstrations as a data control changes them.

    Args:
        name: "permuted_labels": they exchange their labels at random; "other_answers": each label
            is one of `words` throughout; "shuffled_tokens": the tokens of each input in random
            order, its label still last.
    """
    queries, labels = encoder.queries(split, rows), split.labels[rows]
    if name == "permuted_labels":
        # In multiple choice an example may have fewer candidates than another's label counts.
        labels = rng.permutation(labels)
        pairs = zip(queries, labels, strict=True)
        return [q.demonstration(label % len(q.candidates)) for q, label in pairs]
    if name == "shuffled_tokens":
        queries = [q._replace(prompt=rng.permutation(q.prompt).tolist()) for q in queries]
        return [q.demonstration(label) for q, label in zip(queries, labels, strict=True)]
    answers = prompts.answer_tokens(encoder.tokenizer, encoder.task.template, words)
    named = labels % len(words)
    return [[*q.prompt, *answers[label]] for q, label in zip(queries, named, strict=True)]


def other_words(task: tasks.Task, name: str) -> tuple[str, ...]:
    """The answers of the task called `name`, or of one that has enough, and none in common.

    Raises:
        UserError: for an unknown name, or a task of multiple choice.
    """
    if name:
        if words := tasks.get_task(name).answers:
            return words
        raise UserError(
            f"config.controls.answers_of={name!r} is multiple choice and has no answers of its "
            "own; give a classification task, say agnews"
        )
    own = {answer.casefold() for answer in task.answers}
    for other in ("agnews", "trec"):
        words = tasks.TASKS[other].answers
        if len(words) >= len(own) and not own & {word.casefold() for word in words}:
            break
    return words


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
