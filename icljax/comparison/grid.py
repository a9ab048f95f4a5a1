"""The finetuning grid: every learning rate x seed, and each seed's best run."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from icljax.comparison.finetune import Finetuned, Learned
from icljax.comparison.memory import committed_runs_at_once, seed_shares
from icljax.comparison.pairs import Similarity
from icljax.comparison.programs import DATA, Subject, encode_demonstrations
from icljax.comparison.reading import read_all
from icljax.comparison.store import Run, Store
from icljax.data.prompts import Queries
from icljax.errors import UserError
from icljax.metrics.seeds import mean_of_finite
from icljax.runtime.chunks import Arrays, Chunks


@dataclasses.dataclass(frozen=True)
class Dose:
    """What every learning rate gives, on the selection examples; NaN where a run diverged.

    Attributes:
        correct: bool [R, rates, N].
        by_example: name in `pairs.Similarity` -> float32 [R, rates, N], mean over layers.
        by_layer: the same -> float32 [R, rates, L], mean over examples (and heads, in both).
    """

    correct: np.ndarray
    by_example: Arrays
    by_layer: Arrays


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Each seed's chosen learning rate, and what it was chosen from.

    Attributes:
        learned: gives what seeds' chosen runs learned, with a leading axis over these seeds.
        rate_index: int [R], position in the learning rates.
        accuracy, nll: float [R, rates] on the selection examples (NaN: loss not finite).
        loss: float [R, rates], mean training loss over the steps.
        dose: of the whole grid.
    """

    learned: Callable[[Sequence[int]], Learned]
    rate_index: np.ndarray
    accuracy: np.ndarray
    nll: np.ndarray
    loss: np.ndarray
    dose: Dose


def finetune_grid(
    subject: Subject,
    selection: Queries,
    labels: np.ndarray,
    config: ConfigDict,
    chunks: Chunks,
    advance: Callable[[int], None],
) -> Chosen:
    """Finetunes every learning rate x seed, piece by piece, and keeps each seed's best run.

    Raises:
        UserError: when no learning rate gives a seed a finite loss.
    """
    num_rates, num_seeds = len(config.finetune.learning_rates), len(config.seeds)
    runs = [(seed, rate) for seed in range(num_seeds) for rate in range(num_rates)]
    table = np.full((3, num_seeds, num_rates), np.nan)
    best: dict[int, Run] = {}
    store = Store(subject, chunks, "finetune")
    pieces: list[Arrays] = []

    def judge(piece: list[Run], finetuned: Finetuned) -> tuple[Arrays, list[Run]]:
        arrays = _read_piece(subject, piece, finetuned, selection, labels, num_rates)
        return arrays, list(_best_runs(piece, arrays["scores"], table, best).values())

    at_once = committed_runs_at_once(config, subject, chunks, [len(runs)], num_rates)
    rates = config.finetune.learning_rates
    for piece, arrays in finetune_pieces(store, subject, runs, rates, at_once, judge):
        now = _best_runs(piece, arrays["scores"], table, best)
        pieces.append({name: x[: len(piece)] for name, x in arrays.items() if name != "scores"})
        seed, rate = np.asarray(piece).T
        table[:, seed, rate] = arrays["scores"]
        for s in now.keys() & best.keys():
            store.forget(best[s])
        best |= now
        advance(len(piece))
    _check_found(best, config)
    chosen = [best[s] for s in range(num_seeds)]
    learned = functools.partial(store.stacked, chosen)
    accuracy, nll, loss = table
    dose = _dose(pieces, num_seeds, np.isfinite(accuracy))
    return Chosen(learned, np.asarray([r for _, r in chosen]), accuracy, nll, loss, dose)


def _check_found(best: dict[int, Run], config: ConfigDict) -> None:
    """Raises a UserError that names a seed without a run of finite loss."""
    for s, number in enumerate(config.seeds):
        if s not in best:
            raise UserError(
                f"seed {number}: finetuning gives no finite loss at any learning rate "
                f"({', '.join(map(str, config.finetune.learning_rates))}); give smaller ones with "
                "--config.finetune.learning_rates"
            )


def _read_piece(
    subject: Subject,
    piece: list[Run],
    finetuned: Finetuned,
    selection: Queries,
    labels: np.ndarray,
    num_rates: int,
) -> Arrays:
    """What is committed of a piece: scores [3, runs], right answers, similarities to ICL."""
    read = reader(subject, piece, finetuned, num_rates)
    answers, similarity = read_all(read, selection, subject.programs.devices)
    logprob = np.asarray(answers)
    loss = np.asarray(finetuned.loss)[: len(piece)]
    scores = _selection_scores(logprob[: len(piece)], labels, loss)
    correct = logprob.argmax(-1) == labels
    return {"scores": scores, "correct": correct, **_reduced(similarity)}


def reader(
    subject: Subject, piece: list[Run], finetuned: Finetuned, num_rates: int
) -> Callable[[Queries], tuple[jax.Array, Similarity]]:
    """Reads a batch with every run of a piece: answer log-probabilities, similarities to ICL."""
    programs, at_once = subject.programs, finetuned.loss.shape[0]
    groups = seed_shares(at_once, programs.devices.mesh.shape["data"], num_rates)
    seeds = sorted({seed for seed, _ in piece})
    numbers = [piece[min(i, len(piece) - 1)][0] for i in range(0, at_once, at_once // groups)]
    # The last piece has the others' shape. One that straddles seeds may hold a seed more than
    # `at_once` runs need, and is then compiled of its own.
    filled = seeds + seeds[-1:] * (math.ceil(at_once / num_rates) - len(seeds))
    there = encode_demonstrations(programs, subject.params, subject.demonstrations, filled)
    places = np.asarray([seeds.index(number) for number in numbers], np.int32)
    which, number = programs.devices.put((places, np.asarray(numbers, np.int32)), DATA)
    return functools.partial(
        programs.score, subject.params, there, which, number, finetuned.learned
    )


def _reduced(similarity: Similarity) -> Arrays:
    """Means over layers and over examples of [runs, N, L] (and heads): a whole grid is large."""
    out = {}
    for name, values in similarity.items():
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


def _best_runs(
    piece: list[Run], scores: np.ndarray, table: np.ndarray, best: dict[int, Run]
) -> dict[int, Run]:
    """Of each seed in the piece, its run that beats the seed's best so far, if one does.

    Best: highest accuracy on the selection examples, then lowest mean negative log-probability
    of the right answer among the answers.

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


Judge = Callable[[list[Run], Finetuned], tuple[Arrays, list[Run]]]


def finetune_pieces(
    store: Store,
    subject: Subject,
    runs: list[Run],
    learning_rates: Sequence[float],
    at_once: int,
    judge: Judge,
) -> Iterator[tuple[list[Run], Arrays]]:
    """Finetunes runs, some at once; a piece is a chunk.

    The last piece is filled up with its last run, so that one compiled program serves all.

    Args:
        judge: says what to commit of a piece, and which of its runs to keep.
    """
    demonstrations, devices = subject.demonstrations, subject.programs.devices
    rates = np.asarray(learning_rates, np.float32)

    def finetune(piece: list[Run]) -> Arrays:
        seed, rate = np.asarray(piece + piece[-1:] * (at_once - len(piece))).T
        drawn = jax.tree.map(lambda x: np.asarray(x)[seed], demonstrations)
        arguments = devices.put((rates[rate], drawn), DATA)
        finetuned = subject.programs.finetune(subject.params, *arguments)
        arrays, keep = judge(piece, finetuned)
        for run in keep:
            index = np.asarray(piece.index(run), np.int32)
            store.keep(run, subject.programs.pick(finetuned, index))
        return arrays

    for number, start in enumerate(range(0, len(runs), at_once)):
        piece = runs[start : start + at_once]
        name = f"{store.name}-{number:04d}"
        yield piece, store.chunks.once(name, functools.partial(finetune, piece))


def _selection_scores(logprob: np.ndarray, labels: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """(accuracy, nll, training loss) [3, runs] from log-probabilities [runs, N, Y]."""
    accuracy = np.mean(logprob.argmax(-1) == labels, -1)
    with np.errstate(invalid="ignore"):  # a run that diverged becomes NaN below
        among = logprob - np.logaddexp.reduce(logprob, -1, keepdims=True)
    nll = -np.mean(np.take_along_axis(among, labels[None, :, None], -1)[..., 0], -1)
    scores = np.stack([accuracy, nll, np.mean(np.asarray(loss, np.float64), -1)])
    return np.where(np.isfinite(scores).all(0), scores, np.nan)
