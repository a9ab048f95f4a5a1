"""The finetuning grid: every learning rate x seed, and each seed's best run."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from icljax.comparison import settings
from icljax.comparison.pairs import Similarity
from icljax.comparison.programs import (
    DATA,
    TRAINING_QUERIES,
    Programs,
    encode_demonstrations,
    read_all,
)
from icljax.data.prompts import Demonstrations, Queries
from icljax.errors import UserError
from icljax.runtime import processes, sharding
from icljax.runtime.chunks import Arrays, Chunks
from icljax.runtime.progress import Stages
from icljax.types import Params

Run = tuple[int, int]  # (seed index, learning rate index)
Tuned = tuple[Params, jax.Array]  # a run's key and value leaves, and its training queries


class Dose(NamedTuple):
    """What every learning rate gives, on the selection examples; NaN where a run diverged.

    Attributes:
        correct: bool [R, rates, N].
        by_example: field of `compare.Similarity` -> float32 [R, rates, N], mean over layers.
        by_layer: the same -> float32 [R, rates, L], mean over examples (and heads, in both).
    """

    correct: np.ndarray
    by_example: Arrays
    by_layer: Arrays


class Chosen(NamedTuple):
    """Each seed's chosen learning rate, and what it was chosen from.

    Attributes:
        finetuned: gives seeds' key and value leaves and training queries [seeds, L, C, H * K].
        rate_index: int [R], position in the learning rates.
        accuracy, nll: float [R, rates] on the selection examples (NaN: loss not finite).
        loss: float [R, rates], mean training loss over the steps.
        dose: of the whole grid.
    """

    finetuned: Callable[[Sequence[int]], Tuned]
    rate_index: np.ndarray
    accuracy: np.ndarray
    nll: np.ndarray
    loss: np.ndarray
    dose: Dose


def finetune_grid(
    programs: Programs,
    params: Params,
    demonstrations: Demonstrations,
    selection: Queries,
    labels: np.ndarray,
    config: ConfigDict,
    chunks: Chunks,
    stages: Stages,
) -> Chosen:
    """Finetunes every learning rate x seed, piece by piece, and keeps each seed's best run.

    Best: highest accuracy on the selection examples, then lowest mean negative log-probability
    of the right answer among the answers.

    Raises:
        UserError: when no learning rate gives a seed a finite loss.
    """
    rates, num_seeds = config.finetune.learning_rates, len(config.seeds)
    runs = [(seed, rate) for seed in range(num_seeds) for rate in range(len(rates))]
    table = np.full((3, num_seeds, len(rates)), np.nan)
    best: dict[int, Run] = {}
    num_steps, num_batches = demonstrations.train.shape[1], selection.example.shape[0]
    total = len(runs) * (num_steps + num_batches)
    kept = Kept(programs, params, demonstrations, chunks)
    pieces: list[Arrays] = []
    with stages.stage("finetune", f"finetune {len(runs)} runs, select rates", total) as advance:

        def judge(piece: list[Run], tuned: settings.Finetuned) -> tuple[Arrays, list[Run]]:
            read = reader(programs, params, demonstrations, piece, tuned, len(rates))
            logprob, similarity = read_all(read, selection, programs.mesh, lambda: None)
            scores = _selection_scores(logprob[: len(piece)], labels, tuned.loss[: len(piece)])
            keep = list(_best_runs(piece, scores, table, best).values())
            correct = logprob.argmax(-1) == labels
            return {"scores": scores, "correct": correct, **_reduced(similarity)}, keep

        for piece, arrays in finetune_pieces(kept, params, runs, config, "finetune", judge):
            now = _best_runs(piece, arrays["scores"], table, best)
            pieces.append({name: x[: len(piece)] for name, x in arrays.items() if name != "scores"})
            for (s, r), scores in zip(piece, arrays["scores"].T, strict=True):
                table[:, s, r] = scores
            for s, run in now.items():
                if s in best:
                    kept.forget("finetune", best[s])
                best[s] = run
            advance(len(piece) * (num_steps + num_batches))
    for s, number in enumerate(config.seeds):
        if s not in best:
            raise UserError(
                f"seed {number}: finetuning gives no finite loss at any learning rate "
                f"({', '.join(map(str, config.finetune.learning_rates))}); give smaller ones with "
                "--config.finetune.learning_rates"
            )
    chosen = [best[s] for s in range(num_seeds)]
    finetuned = functools.partial(kept.stacked, "finetune", chosen)
    accuracy, nll, loss = table
    dose = _dose(pieces, num_seeds, np.isfinite(accuracy))
    return Chosen(finetuned, np.asarray([r for _, r in chosen]), accuracy, nll, loss, dose)


def reader(
    programs: Programs,
    params: Params,
    demonstrations: Demonstrations,
    piece: list[Run],
    tuned: settings.Finetuned,
    num_rates: int,
) -> Callable[[Queries], Any]:
    """Reads a batch with every run of a piece: answer log-probabilities, similarities to ICL."""
    at_once = tuned.loss.shape[0]
    groups = seed_shares(at_once, programs.mesh.shape["data"], num_rates)
    seeds = sorted({seed for seed, _ in piece})
    numbers = [piece[min(i, len(piece) - 1)][0] for i in range(0, at_once, at_once // groups)]
    # One shape, however many seeds the last piece is of.
    filled = seeds + seeds[-1:] * (math.ceil(at_once / num_rates) - len(seeds))
    there = encode_demonstrations(programs, params, demonstrations, filled)
    places = np.asarray([seeds.index(number) for number in numbers], np.int32)
    which, number = sharding.put((places, np.asarray(numbers, np.int32)), programs.mesh, DATA)
    leaves = (tuned.key_value, tuned.queries)
    return functools.partial(programs.score, params, there, which, number, leaves)


def seed_shares(at_once: int, parts: int, num_rates: int) -> int:
    """In how many equal shares of one seed each the runs of a piece fall, on `parts` devices."""
    return parts * max(1, at_once // parts // num_rates)


def _reduced(similarity: Similarity) -> Arrays:
    """Means over layers and over examples of [runs, N, L] (and heads): a whole grid is large."""
    out = {}
    for name, values in similarity._asdict().items():
        values = values if values.ndim == 3 else mean_of_finite(values, -1)
        out[f"example/{name}"] = mean_of_finite(values, 2).astype(np.float32)
        out[f"layer/{name}"] = mean_of_finite(values, 1).astype(np.float32)
    return out


def _dose(pieces: list[Arrays], num_seeds: int, finite: np.ndarray) -> Dose:
    """Joins the pieces; a run without a finite loss (`finite` [R, rates]) is NaN throughout."""
    whole = {k: np.concatenate([p[k] for p in pieces]) for k in pieces[0]}
    whole = {k: x.reshape(num_seeds, -1, *x.shape[1:]) for k, x in whole.items()}

    def part(prefix: str) -> Arrays:
        found = {k.removeprefix(prefix): x for k, x in whole.items() if k.startswith(prefix)}
        return {k: np.where(finite[..., None], x, np.nan) for k, x in found.items()}

    return Dose(whole["correct"] & finite[..., None], part("example/"), part("layer/"))


def mean_of_finite(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean over finite entries; NaN where there is none (without NumPy's warning)."""
    finite = np.isfinite(values)
    count = finite.sum(axis)
    total = np.where(finite, values, 0).sum(axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _best_runs(
    piece: list[Run], scores: np.ndarray, table: np.ndarray, best: dict[int, Run]
) -> dict[int, Run]:
    """Of each seed in the piece, its run that beats the seed's best so far, if one does.

    Args:
        scores: [3, runs], (accuracy, nll, loss) of the piece; NaN where a run diverged.
        table: [3, seeds, rates], the same of the runs before.
    """
    top = {s: (table[0, s, r], -table[1, s, r]) for s, (_, r) in best.items()}
    out = {}
    for (s, r), (accuracy, nll, _) in zip(piece, scores.T, strict=True):
        if np.isfinite(accuracy) and (s not in top or (accuracy, -nll) > top[s]):
            top[s], out[s] = (accuracy, -nll), (s, r)
    return out


class Kept:
    """Finetuned runs that something later needs, on disk: all of them would fill a device."""

    def __init__(
        self,
        programs: Programs,
        params: Params,
        demonstrations: Demonstrations,
        chunks: Chunks,
    ):
        self.programs, self.chunks = programs, chunks
        self.demonstrations = demonstrations
        # Shapes: this lives on when the parameters themselves are let go.
        self.shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params
        )

    def keep(self, prefix: str, run: Run, tuned: settings.Finetuned, index: int) -> None:
        """Takes run number `index` out of a finetuned piece."""
        self.chunks.keep(_tree_name(prefix, run), self.programs.pick(tuned, np.int32(index)))

    def forget(self, prefix: str, run: Run) -> None:
        """Drops a run that a better one has replaced."""
        self.chunks.forget(_tree_name(prefix, run))

    def stacked(self, prefix: str, runs: Sequence[Run], seeds: Sequence[int]) -> Tuned:
        """These seeds' runs as one tree with a leading axis."""
        abstract = self._abstract()
        trees = [self.chunks.kept(_tree_name(prefix, runs[s]), abstract) for s in seeds]
        return jax.jit(lambda *x: jax.tree.map(lambda *y: jnp.stack(y), *x))(*trees)

    def _abstract(self) -> Any:
        """Shapes and places of one run."""
        layers, _, heads, width = self.shapes["layers"]["attention"]["query"]["kernel"].shape
        shape = (layers, self.demonstrations.columns.shape[1], heads * width)
        where = NamedSharding(self.programs.mesh, TRAINING_QUERIES)
        queries = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where)
        return settings.key_value(self.shapes), queries


def _tree_name(prefix: str, run: Run) -> str:
    return f"{prefix}-seed{run[0]}-rate{run[1]}"


Judge = Callable[[list[Run], settings.Finetuned], tuple[Arrays, list[Run]]]


def finetune_pieces(
    kept: Kept, params: Params, runs: list[Run], config: ConfigDict, prefix: str, judge: Judge
) -> Iterator[tuple[list[Run], Arrays]]:
    """Finetunes runs, as many at once as memory allows; a piece is a chunk.

    The last piece is filled up with its last run, so that one compiled program serves all.

    Args:
        judge: says what to commit of a piece, and which of its runs to keep.
    """
    programs, chunks, mesh = kept.programs, kept.chunks, kept.programs.mesh
    rates = np.asarray(config.finetune.learning_rates, np.float32)
    parts, split = mesh.shape["data"], mesh.shape["model"]
    choose = functools.partial(
        runs_at_once, config, kept.shapes, kept.demonstrations, len(runs), parts, split
    )
    at_once = _committed_number(chunks, f"{prefix}-size", choose)

    def finetune(piece: list[Run]) -> Arrays:
        seed, rate = np.asarray(piece + piece[-1:] * (at_once - len(piece))).T
        drawn = jax.tree.map(lambda x: np.asarray(x)[seed], kept.demonstrations)
        arguments = sharding.put((rates[rate], drawn), mesh, DATA)
        tuned = programs.finetune(params, *arguments)
        arrays, keep = judge(piece, tuned)
        for run in keep:
            kept.keep(prefix, run, tuned, piece.index(run))
        return arrays

    for number, start in enumerate(range(0, len(runs), at_once)):
        piece = runs[start : start + at_once]
        name = f"{prefix}-{number:04d}"
        yield piece, chunks.once(name, functools.partial(finetune, piece))


def _selection_scores(logprob: np.ndarray, labels: np.ndarray, loss: jax.Array) -> np.ndarray:
    """(accuracy, nll, training loss) [3, runs] from log-probabilities [runs, N, Y]."""
    accuracy = np.mean(logprob.argmax(-1) == labels, -1)
    with np.errstate(invalid="ignore"):  # a run that diverged becomes NaN below
        among = logprob - np.logaddexp.reduce(logprob, -1, keepdims=True)
    nll = -np.mean(np.take_along_axis(among, labels[None, :, None], -1)[..., 0], -1)
    scores = np.stack([accuracy, nll, np.mean(np.asarray(loss, np.float64), -1)])
    return np.where(np.isfinite(scores).all(0), scores, np.nan)


def runs_at_once(
    config: ConfigDict,
    params: Params,
    demonstrations: Demonstrations,
    num_runs: int,
    data: int = 1,
    model: int = 1,
    free: int | None = None,
) -> int:
    """How many runs are finetuned together: what fits in memory, in pieces of one size.

    A device's runs are those of whole seeds, or an equal share of one seed's (`seed_shares`). A
    deliberate over-estimate. Of each run: its leaves, their gradient and their update (float32),
    the training queries, and the logits and layer inputs of a step with their gradients.

    Args:
        params: arrays or shapes.
        data, model: the mesh; runs are split over data, each run's arrays over model.
        free: bytes that they may take on a device; None: `free_memory()`.

    Returns:
        A multiple of `data`.
    """
    leaves = jax.tree.leaves(settings.key_value(params))
    layers, width, heads, head_width = params["layers"]["attention"]["query"]["kernel"].shape
    vocab = params["embed"]["embedding"].shape[0]
    mlp = params["layers"]["mlp"]["up"]["kernel"].shape[-1]
    _, steps, tokens = demonstrations.train.shape
    queries = steps * tokens * layers * heads * head_width
    deep = layers if config.finetune.method == "gd" else 1  # the others keep nothing of a layer
    kept = tokens * (deep * (width if config.finetune.remat else 8 * width + 4 * mlp) + 3 * vocab)
    each = 4 * (3 * sum(x.size for x in leaves) // model + 2 * queries // model + kept)
    wanted = config.finetune.runs_at_once or data * max(1, (free or free_memory()) // each)
    rates = max(1, num_runs // demonstrations.context.shape[0])  # of a seed
    most = math.ceil(min(wanted, num_runs) / data)
    fitting = [n for n in range(1, most + 1) if rates % n == 0 or n % rates == 0]

    def cost(n: int) -> float:
        """Runs, those that fill up the last piece too, and half of one for each piece."""
        return math.ceil(num_runs / (n * data)) * (n + 0.5)

    return min(fitting, key=cost) * data


def seeds_at_once(
    params: Params, demonstrations: Demonstrations, model: int = 1, free: int | None = None
) -> int:
    """Of how many seeds states and finetuned leaves are on a device together: what fits.

    Twice that of each seed: its leaves and training queries are read, then stacked.

    Args:
        params: arrays or shapes.
        model: the mesh's model axis, over which all of it is split.
        free: as in `runs_at_once`.
    """
    attention = params["layers"]["attention"]
    layers, _, heads, width = attention["query"]["kernel"].shape
    groups = attention["key"]["kernel"].shape[2]
    compared, context = demonstrations.columns.shape[1], demonstrations.context.shape[1]
    leaves = sum(x.size for x in jax.tree.leaves(settings.key_value(params)))
    queries, states = compared * heads * width, 2 * context * groups * width
    each = 2 * 4 * (leaves + layers * (queries + states + groups * width**2)) // model
    return max(1, (free or free_memory()) // each)


def committed_seeds_at_once(kept: Kept, name: str) -> int:
    """`seeds_at_once` of the job's first start."""

    def choose() -> int:
        split = kept.programs.mesh.shape["model"]
        return min(
            len(kept.demonstrations.context), seeds_at_once(kept.shapes, kept.demonstrations, split)
        )

    return _committed_number(kept.chunks, name, choose)


def _committed_number(chunks: Chunks, name: str, choose: Callable[[], int]) -> int:
    """As at the job's first start: what memory is free may have changed since."""
    compute = functools.partial(processes.from_first, choose)
    return int(chunks.once(name, lambda: {"number": np.asarray(compute())})["number"])


def free_memory() -> int:
    """Bytes a device may give to finetuning: half of what is free, on CPUs 3 GiB for all."""
    stats = jax.local_devices()[0].memory_stats() if jax.default_backend() != "cpu" else None
    if not stats or "bytes_limit" not in stats:
        return (3 << 30) // jax.local_device_count()
    return (stats["bytes_limit"] - stats.get("bytes_in_use", 0)) // 2
