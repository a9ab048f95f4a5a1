"""The loops of a crossed comparison: updates are made and kept, queries read with all of them.

Shape glossary: as in icljax/comparison/crossed.py.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from icljax.comparison.crossed import AXES, Change, Plan, Programs, Prompt
from icljax.comparison.finetune import Finetuned, Learned, kv_params_of
from icljax.comparison.grid import finetune_pieces
from icljax.comparison.memory import updates_at_once
from icljax.comparison.programs import DATA, TRAINING_QUERIES, Subject
from icljax.comparison.reading import batches, slots_in_order
from icljax.comparison.store import Run, Store
from icljax.data.prompts import Demonstrations, Queries
from icljax.runtime import processes
from icljax.runtime.chunks import Arrays, Chunks
from icljax.types import Params

_CLOSE, _ROUNDS = 0.02, 8  # a matched step is as close as this, or tried so often


@dataclasses.dataclass(frozen=True)
class Crossing:
    """What is read: prompts of some demonstrations, and updates that are kept.

    Attributes:
        subject: its weights, and the demonstrations of all prompts (leading axis P).
        programs: of crossed comparisons.
        plan: which prompts and updates there are.
        updates: where each of the U updates is kept.
    """

    subject: Subject
    programs: Programs
    plan: Plan
    updates: tuple[tuple[Store, Run], ...]

    def learned(self, place: int) -> Learned:
        """An update, from disk."""
        store, run = self.updates[place]
        return store.load(run)


def without_tokens(demonstrations: Demonstrations) -> Demonstrations:
    """Demonstrations of which finetuning keeps no training tokens' queries, but one."""
    few = {name: getattr(demonstrations, name)[:, :1] for name in ("columns", "example")}
    return demonstrations._replace(**few, train_index=demonstrations.train_index[:, :1])


def aligned(demonstrations: Demonstrations, num_seeds: int) -> Demonstrations:
    """The same, but of each seed only tokens are compared that all its variants have.

    Variants differ from a demonstration's label on, which may have more tokens in one of them:
    of each demonstration as many first tokens are left as its shortest variant has.

    Args:
        demonstrations: of P prompts, R of each variant.
    """
    prompts, compared = demonstrations.example.shape
    kept = np.full((3, prompts, compared), -1, np.int32)
    tokens = np.stack([demonstrations.columns, demonstrations.example, demonstrations.train_index])
    kept[[0, 2]] = 0  # as `prompts.build_demonstrations` pads them
    for seed in range(num_seeds):
        variants = range(seed, prompts, num_seeds)
        examples = [np.asarray(demonstrations.example[p]) for p in variants]
        count = 1 + max(int(x.max()) for x in examples)
        lengths = np.stack([np.bincount(x[x >= 0], minlength=count) for x in examples])
        for prompt, example in zip(variants, examples, strict=True):
            starts = np.concatenate([[0], np.cumsum(np.bincount(example[example >= 0]))])
            place = np.arange(compared) - starts[np.maximum(example, 0)]
            stays = (example >= 0) & (place < lengths.min(0)[np.maximum(example, 0)])
            kept[:, prompt, : stays.sum()] = tokens[:, prompt, stays]
    names = ("columns", "example", "train_index")
    return demonstrations._replace(**dict(zip(names, kept, strict=True)))


def finetune_all(
    store: Store,
    subject: Subject,
    runs: list[Run],
    learning_rates: Sequence[float],
    at_once: int,
    advance: Callable[[int], None],
) -> np.ndarray:
    """Finetunes runs and keeps them all; their losses, float32 [runs, steps]."""

    def keep_all(piece: list[Run], finetuned: Finetuned) -> tuple[Arrays, list[Run]]:
        return {"loss": np.asarray(finetuned.loss)[: len(piece)]}, piece

    losses = []
    for piece, arrays in finetune_pieces(store, subject, runs, learning_rates, at_once, keep_all):
        losses.append(arrays["loss"])
        advance(len(piece))
    return np.concatenate(losses)


def read_pairs(
    crossing: Crossing, queries: Queries, chunks: Chunks, name: str, advance: Callable[[int], None]
) -> tuple[np.ndarray, Arrays]:
    """Reads all queries with all prompts and updates, batch by batch, each batch a chunk.

    Args:
        name: starts the names of the chunks.

    Returns:
        (place of each query in `Inputs.labels`, arrays of `crossed.AXES` in that order).
    """
    devices = crossing.subject.programs.devices
    reader = _Reader(crossing)
    collected = []
    for number, batch in enumerate(batches(queries, devices.mesh.shape["data"])):
        collected.append(chunks.once(f"{name}-{number:04d}", functools.partial(reader, batch)))
        advance(int(np.sum(np.asarray(batch.example) >= 0)))
    example, where = slots_in_order(queries)
    joined = {
        key: np.take(np.concatenate([c[key] for c in collected], AXES[key]), where, AXES[key])
        for key in collected[0]
    }
    return example, joined


class _Reader:
    """Reads batches; encodes and loads nothing before the first."""

    def __init__(self, crossing: Crossing):
        self.crossing = crossing
        self.loaded: dict[int, Learned] = {}  # as many updates as fit; the others for each batch

    def __call__(self, batch: Queries) -> Arrays:
        """The arrays of `crossed.pairs`."""
        crossing, programs = self.crossing, self.crossing.programs
        params = crossing.subject.params
        there: Any = crossing.subject.programs.devices.put(batch, DATA)
        zsl = programs.zero_shot(params, there)
        prompts = tuple(programs.read_prompt(params, one, zsl, there) for one in self.prompts)
        updates = tuple(
            programs.read_update(params, self.learned(place), zsl, there)
            for place in range(len(crossing.updates))
        )
        out = programs.pairs(crossing.plan, zsl, prompts, updates, there)
        return {name: np.asarray(x) for name, x in out.items()}

    def learned(self, place: int) -> Learned:
        """An update, which stays in memory where there is room."""
        if place in self.loaded:
            return self.loaded[place]
        learned = self.crossing.learned(place)
        if len(self.loaded) < self.most:
            self.loaded[place] = learned
        return learned

    @functools.cached_property
    def prompts(self) -> list[Prompt]:
        """What every prompt leaves behind."""
        subject, encode = self.crossing.subject, self.crossing.programs.encode_prompt
        shown, put = subject.demonstrations, subject.programs.devices.put
        return [
            Prompt(encode(subject.params, *put((context, valid))), *put((columns, example)))
            for context, valid, columns, example in zip(
                shown.context, shown.context_valid, shown.columns, shown.example, strict=True
            )
        ]

    @functools.cached_property
    def most(self) -> int:
        """How many updates there is room for."""
        devices, subject = self.crossing.subject.programs.devices, self.crossing.subject

        def choose() -> int:
            free, model = devices.free_memory(), devices.mesh.shape["model"]
            return updates_at_once(subject.params, subject.demonstrations, free, model)

        return processes.from_first(choose)


def make_random(
    crossing: Crossing,
    kind: str,
    numbers: Sequence[int],
    selection: Queries,
    chunks: Chunks,
    advance: Callable[[int], None],
) -> tuple[Store, np.ndarray]:
    """Random updates in the place of the first R, of the same size in attention's outputs.

    Args:
        kind: of `catalog.SYNTHETIC`.
        numbers: [R], which seeds they are.
        selection: batches, of which the first shows the size.

    Returns:
        (where they are kept, as runs (seed, 0); their norm, times finetuning's: float64 [R]).
    """
    subject, devices = crossing.subject, crossing.subject.programs.devices
    store = Store(subject, chunks, kind)

    @functools.cache  # nothing is read where all are committed
    def read() -> tuple[Any, Change]:
        there: Any = devices.put(batches(selection, devices.mesh.shape["data"])[0], DATA)
        return there, crossing.programs.zero_shot(subject.params, there)

    def make(seed: int, scale: float) -> Arrays:
        direction = _direction(crossing, kind, seed, numbers[seed])
        learned, scale = _matched(crossing, seed, direction, scale, *read())
        store.keep((seed, 0), learned)
        return {"scale": np.asarray(scale)}

    scales: list[float] = []
    for seed in range(crossing.plan.seeds):
        # Seeds need about the same scale: the last one's is near.
        start = scales[-1] if scales else 1.0
        made = chunks.once(f"{kind}-{seed:03d}", functools.partial(make, seed, start))
        scales.append(float(made["scale"]))
        advance(1)
    return store, np.asarray(scales)


def _direction(crossing: Crossing, kind: str, seed: int, number: int) -> Params:
    """Of any size, drawn for a seed; arguments as in `make_random`."""
    subject, programs = crossing.subject, crossing.programs
    put, drawn = subject.programs.devices.put, np.asarray(number, np.int32)
    if kind != "random_step":
        return programs.noise(kv_params_of(subject.params), put(drawn))
    shown = subject.demonstrations
    return programs.random_step(
        subject.params, *put((shown.train[seed], shown.train_length[seed], drawn))
    )


def _matched(
    crossing: Crossing, seed: int, direction: Params, scale: float, there: Queries, zsl: Change
) -> tuple[Learned, float]:
    """The update along a direction that takes the step of a seed's finetuning, and its scale.

    Args:
        scale: tried first.
        there: the batch on which steps are taken; `zsl` is of it.
    """
    subject, programs = crossing.subject, crossing.programs
    base, finetuned = kv_params_of(subject.params), crossing.learned(seed)
    ranked = np.zeros(finetuned.queries.shape, np.float32)  # by no training token
    queries: Any = subject.programs.devices.put(ranked, TRAINING_QUERIES)

    def step(kv_params: Params) -> float:
        learned = Learned(kv_params, queries)
        change = programs.read_update(subject.params, learned, zsl, there)
        return float(programs.mean_step(zsl, change, there))

    wanted = step(finetuned.kv_params)
    for _ in range(_ROUNDS):
        kv_params = programs.sized(base, finetuned.kv_params, direction, scale)
        got = step(kv_params)
        if not 0 < got * wanted < np.inf or abs(got / wanted - 1) < _CLOSE:
            break
        scale *= wanted / got
    return Learned(kv_params, queries), scale
