"""Loops that feed batches of queries to the programs, and what they collect.

Shape glossary: R seeds, N examples, Y candidates, L layers.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import numpy as np

from icljax.comparison.finetune import Learned
from icljax.comparison.memory import committed_seeds_at_once
from icljax.comparison.pairs import Similarity
from icljax.comparison.programs import DATA, Devices, SeedTokens, Subject, encode_demonstrations
from icljax.data.prompts import Queries
from icljax.runtime import sharding
from icljax.runtime.chunks import Arrays, Chunks

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What is kept of evaluated examples, NumPy.

    Attributes:
        example: int [N], the examples' place in `Inputs.labels`.
        logprob_zsl: [N, Y].
        logprob_icl, logprob_ft: [R, N, Y].
        similarity: Similarity of [R, N, L].
    """

    example: np.ndarray
    logprob_zsl: np.ndarray
    logprob_icl: np.ndarray
    logprob_ft: np.ndarray
    similarity: Similarity


def slots_in_order(queries: Queries) -> tuple[np.ndarray, np.ndarray]:
    """The packed examples in ascending order, and where each stands among all batches' slots."""
    example = np.asarray(queries.example).reshape(-1)
    where = np.flatnonzero(example >= 0)
    where = where[np.argsort(example[where])]
    return example[where], where


def batches(queries: Queries, together: int = 1) -> list[Queries]:
    """The batches of packed queries, `together` of them as one; the last is filled up with none."""
    missing = -len(queries.example) % together

    def join(name: str, x: np.ndarray) -> np.ndarray:
        empty = -1 if name in ("segment", "example") else 0
        x = np.pad(x, ((0, missing), *((0, 0),) * (x.ndim - 1)), constant_values=empty)
        return x.reshape(-1, together * x.shape[1], *x.shape[2:])

    joined = Queries(**{name: join(name, x) for name, x in queries._asdict().items()})
    return [jax.tree.map(lambda x, b=b: x[b], joined) for b in range(len(joined.example))]


def first_batches(queries: Queries, num_examples: int) -> Queries:
    """The fewest batches that hold `num_examples`; shapes stay, so nothing compiles anew."""
    counts = np.cumsum(np.sum(queries.example >= 0, axis=(1, 2)))
    batches = min(int(np.searchsorted(counts, num_examples)) + 1, len(counts))
    return jax.tree.map(lambda x: x[:batches], queries)


def read_all(
    program: Callable[[Queries], T], queries: Queries, devices: Devices, by_row: bool = False
) -> T:
    """What a program gives of every batch, NumPy [runs, N, ...], in the order of the examples.

    Args:
        by_row: whether the program splits the rows of a batch over the data axis.
    """
    spec, together = (DATA, devices.mesh.shape["data"]) if by_row else (sharding.REPLICATED, 1)
    collected = [
        jax.tree.map(np.asarray, program(devices.put(batch, spec)))
        for batch in batches(queries, together)
    ]
    _, where = slots_in_order(queries)
    return jax.tree.map(lambda *x: np.concatenate(x, 1)[:, where], *collected)


def compare_settings(
    subject: Subject,
    learned: Callable[[Sequence[int]], Learned],
    queries: Queries,
    chunks: Chunks,
    name: str,
    advance: Callable[[int], None],
) -> Comparison:
    """ZSL, ICL and FT over batches of queries for every seed, reduced on the device.

    Args:
        learned: gives what seeds' runs learned, with a leading axis over these seeds.
        name: starts the names of the chunks, one for each group of seeds and batch.
    """
    num_seeds = len(subject.demonstrations.context)
    at_once = committed_seeds_at_once(subject, chunks, f"{name}-size")
    collected: list[Arrays] = []
    for group in equal_groups(num_seeds, at_once):
        # Nothing is encoded or read from disk for a group whose batches are all committed.
        prepared = functools.cache(functools.partial(_prepare, subject, learned, group))
        parts = []
        for number, batch in enumerate(
            batches(queries, subject.programs.devices.mesh.shape["data"])
        ):
            read = functools.partial(_compare_batch, subject, prepared, group, batch)
            parts.append(chunks.once(f"{name}-{group[0]:03d}-{number:04d}", read))
            advance(int(np.sum(batch.example >= 0)) * len(np.unique(group)))
        collected.append({k: np.concatenate([p[k] for p in parts], 1) for k in parts[0]})
    example, where = slots_in_order(queries)
    whole = {k: np.concatenate([c[k] for c in collected])[:num_seeds, where] for k in collected[0]}
    zsl, icl, ft = whole.pop("zsl")[0], whole.pop("icl"), whole.pop("ft")
    return Comparison(example, zsl, icl, ft, whole)


def _prepare(
    subject: Subject, learned: Callable[[Sequence[int]], Learned], group: np.ndarray
) -> tuple[SeedTokens, Learned]:
    """What is on the devices for a group of seeds."""
    seeds = encode_demonstrations(subject.programs, subject.params, subject.demonstrations, group)
    return seeds, learned(group.tolist())


def _compare_batch(
    subject: Subject,
    prepared: Callable[[], tuple[SeedTokens, Learned]],
    group: np.ndarray,
    batch: Queries,
) -> Arrays:
    devices = subject.programs.devices
    there, seeds = devices.put(batch, DATA), devices.put(group)
    zsl, (icl, ft, similarity) = subject.programs.compare(subject.params, *prepared(), there, seeds)
    out = {"zsl": np.asarray(zsl)[None], "icl": icl, "ft": ft, **similarity}
    return {name: np.asarray(x) for name, x in out.items()}


def equal_groups(places: int, at_once: int) -> list[np.ndarray]:
    """Places in groups of one size, the last filled up with its last: int [groups][size]."""
    count = math.ceil(places / at_once)
    size = math.ceil(places / count)
    every = np.minimum(np.arange(count * size), places - 1)
    return list(every.reshape(count, size))
