"""Per-example numbers -> results: means, intervals, paired differences, baselines.

Every interval is a 95 % percentile bootstrap over seeds and examples
(`metrics.bootstrap_ratio_interval` says how, and what few seeds mean); of zero-shot numbers and of
a single seed, over examples alone. All that is compared shares its resamples, and a difference is
taken example by example and seed by seed before it is averaged.

Shape glossary: R seeds, N examples, L layers, G key/value heads, Y answers, B bootstrap resamples.
"""

import dataclasses
import itertools
import platform
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

import icljax
from icljax import checkpoints, metrics, results
from icljax.catalog import SIMILARITIES, STEPS, array_of
from icljax.comparison import answers
from icljax.comparison.grid import Chosen
from icljax.comparison.inputs import Inputs
from icljax.comparison.reading import Comparison
from icljax.metrics.seeds import mean_of_finite
from icljax.results import (
    WITHOUT_SEEDS,
    Accuracy,
    Agreement,
    DoseResponse,
    Estimate,
    Measures,
    Number,
    Recall,
    Results,
    Selection,
    Series,
    Similarity,
)
from icljax.runtime import workdir

_BALANCED = (
    "demonstrations, selection and validation examples are drawn with equally many of each class"
)


def example_arrays(job: Inputs, comparison: Comparison) -> dict[str, np.ndarray]:
    """What examples.npz holds: one row an example (second axis where seeds lead)."""
    c = comparison
    return {
        "index": job.rows[c.example],
        "label": job.labels[c.example],
        "pred_zsl": answers.chosen(c.logprob_zsl),
        "pred_icl": answers.chosen(c.logprob_icl),
        "pred_ft": answers.chosen(c.logprob_ft),
        "logprob_zsl": c.logprob_zsl,
        "logprob_icl": c.logprob_icl,
        "logprob_ft": c.logprob_ft,
        **c.similarity,
    }


def summarize(
    config: ConfigDict,
    checkpoint: checkpoints.Checkpoint,
    job: Inputs,
    chosen: Chosen,
    arrays: dict[str, np.ndarray],
    best_seed: tuple[int, list[float]] | None,
) -> Results:
    """Everything that results.json says, but the seconds.

    Args:
        arrays: of `example_arrays`.
        best_seed: the one seed that is reported (its number among the seeds), and what it was
            selected by; None: all are.
    """
    seeds = list(range(len(config.seeds))) if best_seed is None else [best_seed[0]]
    task = job.encoder.task
    reported = pick_seeds(arrays, seeds)
    return Results(
        task=task.name,
        stand_in=job.dataset.stand_in,
        template=task.template,
        answers=tuple(task.answers),
        multiple_choice=not task.answers,  # its candidates are the examples' own
        record_position=config.record_position,
        finetune=results.Finetune(method=config.finetune.method),
        **vars(measure(reported, config, not task.answers)),
        selection=_selection(config, job, chosen, best_seed),
        dose_response=dose_response(config, job, chosen),
        demonstrations=results.Demonstrations(
            asked=config.num_demonstrations, used=tuple(job.used)
        ),
        data=data_record(config, job, len(arrays["label"])),
        model=model_record(config, checkpoint),
        **vars(provenance(config)),
    )


def data_record(config: ConfigDict, job: Inputs, evaluated: int) -> results.Data:
    """Where the examples came from, and how many were evaluated."""
    dataset = job.dataset
    balanced = [_BALANCED] if config.data.balanced else []
    return results.Data(
        source=dataset.source,
        fingerprint=dataset.fingerprint,
        notes=(*dataset.notes, *balanced, *job.notes),
        evaluated=evaluated,
        validation_examples=len(dataset.validation.labels),
        duplicates=job.duplicates,
    )


def model_record(config: ConfigDict, checkpoint: checkpoints.Checkpoint) -> results.Model:
    """What the model is, and what its weights are."""
    return results.Model(
        name=config.model,
        weights=config.weights,
        attention=config.attention.kind,  # empty: the checkpoint's own
        fingerprint=checkpoints.fingerprint(checkpoint.folder),
        dtype=checkpoint.config.dtype,
        **vars(checkpoint.origin),
    )


def provenance(config: ConfigDict) -> results.Provenance:
    """What a result was made with: config, versions, device."""
    return results.Provenance(
        config=workdir.as_plain(config),
        versions={
            "icljax": icljax.__version__,
            "jax": jax.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        device=results.Device(
            platform=jax.default_backend(),
            kind=jax.devices()[0].device_kind,
            count=jax.device_count(),
        ),
    )


def pick_seeds(arrays: dict[str, np.ndarray], seeds: list[int]) -> dict[str, np.ndarray]:
    """The arrays with only these seeds; those without a seed axis as they are."""
    return {k: v if k in WITHOUT_SEEDS else v[seeds] for k, v in arrays.items()}


class Resamples(NamedTuple):
    """How often each resample draws an example, and a seed.

    Attributes:
        examples: float32 [B, N].
        seeds: float32 [B, R].
    """

    examples: jax.Array
    seeds: jax.Array


def draw_resamples(config: ConfigDict, num_seeds: int, num_examples: int) -> Resamples:
    """The same for the same numbers of seeds and examples."""
    of_examples, of_seeds = jax.random.split(jax.random.key(config.metrics.seed))
    count = config.metrics.bootstrap_samples
    return Resamples(
        metrics.bootstrap_weights(of_examples, num_examples, count),
        metrics.bootstrap_weights(of_seeds, num_seeds, count),
    )


def measure(
    arrays: dict[str, np.ndarray], config: ConfigDict, multiple_choice: bool = False
) -> Measures:
    """Accuracies, Rec2FTP, similarities and paired differences of arrays of `example_arrays`.

    Args:
        multiple_choice: whether candidates differ by example, so that there is no mean over
            examples to calibrate with.
    """
    label, logprob = arrays["label"], {s: arrays[f"logprob_{s}"] for s in ("zsl", "icl", "ft")}
    resamples = draw_resamples(config, *arrays["pred_ft"].shape)
    correct = {s: arrays[f"pred_{s}"] == label for s in logprob}
    kinds = {"accuracy": correct}
    if not multiple_choice:
        centred = {s: np.asarray(metrics.calibrate(x)) for s, x in logprob.items()}
        kinds["accuracy_calibrated"] = {s: answers.chosen(x) == label for s, x in centred.items()}
    majority = float(np.bincount(label).max() / len(label))
    shares = {
        kind: Accuracy(**{s: share(c, resamples) for s, c in right.items()}, majority=majority)
        for kind, right in kinds.items()
    }
    subset = ~correct["zsl"] & correct["ft"] & correct["icl"]

    def of(metric: str, baseline: str = "") -> Series:
        return series(arrays[array_of(metric, baseline)], resamples, subset)

    measured = {n: m for n, m in SIMILARITIES.items() if np.isfinite(arrays[n]).any()}
    return Measures(
        **shares,
        rec2ftp=recall(correct, resamples),
        agreement=agreement(correct, arrays, resamples),
        f2t=results.Count(count=int(subset.sum()), of=int(subset.size)),
        similarities={
            n: Similarity(**vars(of(n)), baselines={b: of(n, b) for b in m.baselines})
            for n, m in measured.items()
        },
        steps={n: of(n) for n in STEPS if n in arrays},
        update_share={
            s: series(arrays[f"update_share_{s}"], resamples, subset) for s in ("icl", "ft")
        },
        differences={kind: _accuracy_differences(c, resamples) for kind, c in kinds.items()}
        | {
            n: {b: difference(arrays[n], arrays[array_of(n, b)], resamples) for b in m.baselines}
            for n, m in measured.items()
        },
    )


def average(values: np.ndarray, resamples: Resamples) -> Estimate:
    """Mean over the finite entries of [R, N] or [R, N, ...], with its interval."""
    finite = np.isfinite(values)
    rest = tuple(range(2, values.ndim))
    total = np.where(finite, values, 0).sum(rest, dtype=np.float32)
    count = finite.sum(rest, dtype=np.float32)
    with np.errstate(invalid="ignore"):
        mean = total.sum(dtype=np.float64) / count.sum(dtype=np.float64)
    return Estimate(mean=number(mean), interval=_pair(_ratio_interval(resamples, total, count)))


def difference(one: np.ndarray, other: np.ndarray, resamples: Resamples) -> Estimate:
    """Paired: mean of one - other [R, N, ...], its interval, and each seed's."""
    values = one - other
    each = mean_of_finite(values.reshape(len(values), -1), 1)
    return dataclasses.replace(average(values, resamples), per_seed=_numbers(each))


@jax.jit
def _ratio_interval(
    resamples: Resamples, numerator: jax.Array, denominator: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return metrics.bootstrap_ratio_interval(
        resamples.examples, numerator, denominator, seed_weights=resamples.seeds
    )


@jax.jit
def _interval(resamples: Resamples, values: jax.Array) -> tuple[jax.Array, jax.Array]:
    return metrics.bootstrap_interval(resamples.examples, values, seed_weights=resamples.seeds)


def _accuracy_differences(
    correct: dict[str, np.ndarray], resamples: Resamples
) -> dict[str, Estimate]:
    pairs = (("icl", "zsl"), ("ft", "zsl"), ("icl", "ft"))
    shape = correct["ft"].shape
    as_float = {s: np.broadcast_to(c, shape).astype(np.float32) for s, c in correct.items()}
    return {f"{a}_{b}": difference(as_float[a], as_float[b], resamples) for a, b in pairs}


def share(correct: np.ndarray, resamples: Resamples) -> Estimate:
    """Mean of [N] or [R, N], of bool or of 0, 1 and NaN (left out), with its interval."""
    shape = len(resamples.seeds[0]), correct.shape[-1]
    values = np.broadcast_to(correct, shape).astype(np.float32)
    out = average(values, resamples)
    return _with_spread(out, values.mean(1)) if correct.ndim == 2 else out


def recall(correct: dict[str, np.ndarray], resamples: Resamples) -> Recall:
    """Rec2FTP over all seeds together, and of each."""
    zsl = np.broadcast_to(correct["zsl"], correct["ft"].shape)
    ft_only = (~zsl & correct["ft"]).astype(np.float32)
    both = ft_only * correct["icl"]
    low, high = _ratio_interval(resamples, both, ft_only)
    with np.errstate(invalid="ignore"):  # undefined where FT corrects nothing
        each, percent = 100 * both.sum(1) / ft_only.sum(1), 100 * both.sum() / ft_only.sum()
    return Recall(
        percent=number(percent),
        interval=_pair(100 * np.stack((low, high))),
        icl_and_ft_right_zsl_wrong=int(both.sum()),
        ft_right_zsl_wrong=int(ft_only.sum()),
        per_seed=_numbers(each),
    )


def agreement(
    correct: dict[str, np.ndarray], arrays: dict[str, np.ndarray], resamples: Resamples
) -> Agreement:
    """Which settings are right together, and how often two predict the same; means over seeds.

    A pattern has a letter for ZSL, ICL and FT, upper case where that setting is right. Their
    intervals stand beside them under the same names.
    """
    shape = correct["ft"].shape
    right = [np.broadcast_to(correct[s], shape) for s in ("zsl", "icl", "ft")]
    patterns = {}
    for bits in itertools.product((False, True), repeat=3):
        name = "".join(c.upper() if bit else c for c, bit in zip("zif", bits, strict=True))
        patterns[name] = np.all([r == bit for r, bit in zip(right, bits, strict=True)], 0)
    pairwise = {
        f"{a}_{b}": np.broadcast_to(arrays[f"pred_{a}"] == arrays[f"pred_{b}"], shape)
        for a, b in itertools.combinations(("zsl", "icl", "ft"), 2)
    }
    right_together = {k: average(same, resamples) for k, same in patterns.items()}
    alike = {k: average(same, resamples) for k, same in pairwise.items()}
    return Agreement(
        patterns={k: a.mean for k, a in right_together.items()},
        patterns_interval={k: a.interval for k, a in right_together.items()},
        pairwise={k: a.mean for k, a in alike.items()},
        pairwise_interval={k: a.interval for k, a in alike.items()},
    )


def series(values: np.ndarray, resamples: Resamples, subset: np.ndarray) -> Series:
    """Means, intervals and spread of a similarity [R, N, L]; `f2t`: its mean on `subset` [R, N].

    One that is of every head, [R, N, L, G], is averaged over heads, its heads listed beside it.
    """
    heads: tuple[tuple[Number, ...], ...] = ()
    if values.ndim == 4:
        per_head = mean_of_finite(values.reshape(-1, *values.shape[2:]), 0)
        heads = tuple(_numbers(row) for row in per_head)
        values = mean_of_finite(values, -1)
    low, high = _interval(resamples, values)
    f2t = average(np.where(subset[..., None], values, np.nan), resamples)
    seeds = mean_of_finite(values.reshape(len(values), -1), 1)
    return Series(
        **vars(_with_spread(average(values, resamples), seeds)),
        per_layer=_numbers(mean_of_finite(values.reshape(-1, values.shape[-1]), 0)),
        per_layer_interval=tuple(_pair(pair) for pair in np.stack((low, high), -1)),
        per_layer_head=heads,
        f2t=f2t.mean,
        f2t_interval=f2t.interval,
    )


def dose_response(config: ConfigDict, job: Inputs, chosen: Chosen) -> DoseResponse:
    """What each learning rate gives on the selection examples: accuracy, loss, similarities.

    All seeds, whichever are reported. Where a seed's run diverged, the mean over seeds is
    undefined (one over those that are left would mislead); the others' values are listed.
    """
    dose, converged = chosen.dose, np.isfinite(chosen.accuracy)
    resamples = draw_resamples(config, len(converged), dose.correct.shape[-1])
    every_rate = range(converged.shape[1])

    def of(values: np.ndarray, rate: int) -> Estimate:
        mean = average(values[:, rate], resamples) if converged[:, rate].all() else results.UNKNOWN
        return _with_spread(mean, mean_of_finite(values[:, rate], 1))

    def of_metric(metric: str, rate: int, baseline: str = "") -> Series:
        field = array_of(metric, baseline)
        layers = _numbers(dose.by_layer[field][:, rate].mean(0))
        return Series(**vars(of(dose.by_example[field], rate)), per_layer=layers)

    def similarity(name: str, rate: int) -> Similarity:
        baselines = {b: of_metric(name, rate, b) for b in SIMILARITIES[name].baselines}
        return Similarity(**vars(of_metric(name, rate)), baselines=baselines)

    correct = np.where(converged[..., None], dose.correct, np.nan)
    return DoseResponse(
        examples=dose.correct.shape[-1],
        measured_on=f"the selection examples, all seeds: {job.selected_on}",
        learning_rates=tuple(config.finetune.learning_rates),
        diverged=tuple((~converged).sum(0).tolist()),
        accuracy=tuple(of(correct, rate) for rate in every_rate),
        training_loss=tuple(
            Estimate(mean=number(loss.mean()), per_seed=_numbers(loss)) for loss in chosen.loss.T
        ),
        similarity={n: tuple(similarity(n, rate) for rate in every_rate) for n in SIMILARITIES},
        steps={n: tuple(of_metric(n, rate) for rate in every_rate) for n in STEPS},
    )


def _selection(
    config: ConfigDict, job: Inputs, chosen: Chosen, best_seed: tuple[int, list[float]] | None
) -> Selection:
    rates = config.finetune.learning_rates
    seed = None
    if best_seed is not None:
        number, accuracy = best_seed
        seed = results.BestSeed(seed=config.seeds[number], icl_accuracy=_numbers(accuracy))
    return Selection(
        selected_on=job.selected_on,
        num_examples=len(job.selection_labels),
        learning_rates=tuple(rates),
        learning_rate=tuple(rates[i] for i in chosen.rate_index),
        accuracy=tuple(_numbers(row) for row in chosen.accuracy),
        nll=tuple(_numbers(row) for row in chosen.nll),
        training_loss=tuple(_numbers(row) for row in chosen.loss),
        best_seed=seed,
    )


def _with_spread(estimate: Estimate, per_seed: np.ndarray) -> Estimate:
    """The estimate with each seed's value and their standard deviation (None for one seed)."""
    std = number(np.std(per_seed, ddof=1)) if len(per_seed) > 1 else None
    return dataclasses.replace(estimate, per_seed=_numbers(per_seed), seed_std=std)


def number(value: Any) -> Number:
    """JSON has no NaN: undefined is None."""
    return None if value is None or not np.isfinite(value) else round(float(value), 6)


def _numbers(values: Sequence[float] | np.ndarray) -> tuple[Number, ...]:
    return tuple(number(v) for v in np.asarray(values))


def _pair(values: Any) -> tuple[Number, Number]:
    low, high = _numbers(values)
    return low, high
