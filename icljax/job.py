"""What a comparison needs beside the weights: examples drawn, prompts laid out as tokens."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from icljax import checkpoints, data, prompts, tasks
from icljax.prompts import Demonstrations, Encoder, Queries


@dataclasses.dataclass(frozen=True)
class Job:
    """Everything a comparison needs beside the weights.

    Attributes:
        dataset: where the examples come from.
        encoder: how they become tokens.
        demonstrations: of the R seeds.
        used: demonstrations that fitted, for each seed.
        selection, evaluation: batches of packed queries.
        selection_labels, labels: int32 [N], the place of each one's right candidate.
        rows: the evaluated examples' positions in their source split.
    """

    dataset: data.Dataset
    encoder: Encoder
    demonstrations: Demonstrations
    used: list[int]
    selection: Queries
    selection_labels: np.ndarray
    evaluation: Queries
    labels: np.ndarray
    rows: np.ndarray


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
    demonstrations = [
        prompts.fit(demonstration_tokens(encoder, dataset.train, seed), encoder, reserved, limit)
        for seed in drawn
    ]
    used = [len(d) for d in demonstrations]
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
        demonstrations=prompts.build_demonstrations(demonstrations, encoder),
        used=used,
        selection=pack(selection),
        selection_labels=select_from.labels[selection_rows],
        evaluation=pack(queries),
        labels=dataset.validation.labels[rows],
        rows=dataset.validation.indices[rows],
    )


def fingerprint(job: Job) -> str:
    """SHA-256 over all tokens and labels of the job, in hexadecimal."""
    digest = hashlib.sha256()
    arrays = (job.demonstrations, job.selection, job.evaluation, job.selection_labels, job.labels)
    for x in jax.tree.leaves(arrays):
        digest.update(f"{x.dtype}{x.shape}".encode() + np.ascontiguousarray(x).tobytes())
    return digest.hexdigest()


def draw_selection(
    config: ConfigDict, dataset: data.Dataset, drawn: Sequence[np.ndarray], rows: np.ndarray
) -> tuple[data.Split, np.ndarray]:
    """The examples on which learning rates (and the seed) are selected.

    Held out of train: no seed's demonstrations are among them. "validation", as in the paper:
    the very examples that are then reported.
    """
    if config.selection.split == "validation":
        return dataset.validation, rows
    exclude = np.unique(np.concatenate(drawn))
    return dataset.train, data.draw(
        dataset.train,
        config.selection.num_examples,
        config.selection.seed,
        config.data.balanced,
        exclude=exclude,
    )


def demonstration_tokens(encoder: Encoder, split: data.Split, rows: np.ndarray) -> list[list[int]]:
    """Input and label tokens of each demonstration."""
    queries = encoder.queries(split, rows)
    return [q.demonstration(split.labels[row]) for q, row in zip(queries, rows, strict=True)]


def batch_tokens(config: ConfigDict) -> int:
    """Query tokens of one batch; on a CPU, attention scores that stay in its caches win."""
    on_cpu = jax.default_backend() == "cpu"
    return config.eval.tokens_per_batch or (512 if on_cpu else 4096)
