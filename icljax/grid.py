"""The finetuning grid: every learning rate x seed, and each seed's best run."""

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from icljax import settings
from icljax.errors import UserError
from icljax.model import Params
from icljax.programs import Programs, read_all
from icljax.progress import Stages
from icljax.prompts import Demonstrations, Queries

Run = tuple[int, int]  # (seed index, learning rate index)


class Chosen(NamedTuple):
    """Each seed's finetuned key and value leaves at its chosen learning rate.

    Attributes:
        key_value: leaves with a leading axis over the R seeds.
        queries: [R, L, C, H * K], query vectors of the compared training tokens.
        rate_index: int [R], position in the learning rates.
        accuracy, nll: float [R, rates] on the selection examples (NaN: loss not finite).
        loss: float [R, rates], mean training loss over the steps.
    """

    key_value: Params
    queries: jax.Array
    rate_index: np.ndarray
    accuracy: np.ndarray
    nll: np.ndarray
    loss: np.ndarray


def finetune_grid(
    programs: Programs,
    params: Params,
    demonstrations: Demonstrations,
    selection: Queries,
    labels: np.ndarray,
    config: ConfigDict,
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
    best: dict[int, tuple[tuple[float, float], int, Params, jax.Array]] = {}
    num_steps, num_batches = demonstrations.train.shape[1], selection.example.shape[0]
    total = len(runs) * (num_steps + num_batches)
    with stages.stage("finetune", f"finetune {len(runs)} runs, select rates", total) as advance:
        for piece, tuned in finetune_pieces(programs, params, demonstrations, runs, config):
            advance(len(piece) * num_steps)
            score = functools.partial(programs.score, params, tuned.key_value)
            logprob = read_all(score, selection, functools.partial(advance, len(piece)))
            scores = _selection_scores(logprob, labels, tuned.loss)
            for i, (s, r) in enumerate(piece):
                table[:, s, r] = scores[:, i]
                rank = (scores[0, i], -scores[1, i])
                if np.isfinite(rank).all() and (s not in best or rank > best[s][0]):
                    leaves = jax.tree.map(lambda x, i=i: x[i], tuned.key_value)
                    best[s] = (rank, r, leaves, tuned.queries[i])
    for s, number in enumerate(config.seeds):
        if s not in best:
            raise UserError(
                f"seed {number}: finetuning gives no finite loss at any learning rate "
                f"({', '.join(map(str, config.finetune.learning_rates))}); give smaller ones with "
                "--config.finetune.learning_rates"
            )
    chosen = [best[s] for s in range(num_seeds)]
    return Chosen(
        key_value=jax.tree.map(lambda *x: jnp.stack(x), *(c[2] for c in chosen)),
        queries=jnp.stack([c[3] for c in chosen]),
        rate_index=np.asarray([c[1] for c in chosen]),
        accuracy=table[0],
        nll=table[1],
        loss=table[2],
    )


def finetune_pieces(
    programs: Programs,
    params: Params,
    demonstrations: Demonstrations,
    runs: list[Run],
    config: ConfigDict,
) -> Iterator[tuple[list[Run], settings.Finetuned]]:
    """Finetunes runs (seed index, rate index), as many at once as memory allows.

    The last piece is filled up with its last run, so that one compiled program serves all.
    """
    rates = np.asarray(config.finetune.learning_rates, np.float32)
    at_once = runs_at_once(config, params, demonstrations)
    for start in range(0, len(runs), at_once):
        piece = runs[start : start + at_once]
        seed, rate = np.asarray(piece + piece[-1:] * (at_once - len(piece))).T
        drawn = jax.tree.map(lambda x, s=seed: x[s], demonstrations)
        yield piece, jax.block_until_ready(programs.finetune(params, rates[rate], drawn))


def _selection_scores(logprob: np.ndarray, labels: np.ndarray, loss: jax.Array) -> np.ndarray:
    """(accuracy, nll, training loss) [3, runs] from log-probabilities [runs, N, Y]."""
    accuracy = np.mean(logprob.argmax(-1) == labels, -1)
    with np.errstate(invalid="ignore"):  # a run that diverged becomes NaN below
        among = logprob - np.logaddexp.reduce(logprob, -1, keepdims=True)
    nll = -np.mean(np.take_along_axis(among, labels[None, :, None], -1)[..., 0], -1)
    scores = np.stack([accuracy, nll, np.mean(np.asarray(loss, np.float64), -1)])
    return np.where(np.isfinite(scores).all(0), scores, np.nan)


def runs_at_once(config: ConfigDict, params: Params, demonstrations: Demonstrations) -> int:
    """How many runs are finetuned together: what fits in memory, in pieces of one size.

    A deliberate over-estimate. Of each run: its leaves, their gradient and their update (float32),
    the training queries, and the logits and layer inputs of a step with their gradients.
    """
    num_runs = len(config.seeds) * len(config.finetune.learning_rates)
    if config.finetune.runs_at_once:
        return min(config.finetune.runs_at_once, num_runs)
    leaves = jax.tree.leaves(settings.key_value(params))
    layers, width, heads, head_width = params["layers"]["attention"]["query"]["kernel"].shape
    vocab = params["embed"]["embedding"].shape[0]
    mlp = params["layers"]["mlp"]["up"]["kernel"].shape[-1]
    _, steps, tokens = demonstrations.train.shape
    queries = steps * tokens * layers * heads * head_width
    kept = tokens * (layers * (width if config.finetune.remat else 8 * width + 4 * mlp) + 3 * vocab)
    each = 4 * (3 * sum(x.size for x in leaves) + 2 * queries + kept)
    fit = max(1, min(num_runs, free_memory() // each))
    return math.ceil(num_runs / math.ceil(num_runs / fit))


def free_memory() -> int:
    """Bytes that finetuning may take: half of what is free on the device, 1 GiB on a CPU."""
    stats = jax.local_devices()[0].memory_stats() if jax.default_backend() != "cpu" else None
    if not stats or "bytes_limit" not in stats:
        return 1 << 30
    return (stats["bytes_limit"] - stats.get("bytes_in_use", 0)) // 2
