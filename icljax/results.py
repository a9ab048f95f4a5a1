"""Per-example numbers -> results.json: means, intervals, spreads over seeds, baselines.

Shape glossary: R seeds, N examples, L layers, G key/value heads, Y answers, X bootstrap resamples.
"""

import itertools
import platform
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import icljax
from icljax import checkpoints, metrics, workdir
from icljax.grid import Chosen
from icljax.job import Job
from icljax.programs import Comparison

# Which baseline belongs beside which similarity, and where each stands in results.json.
LAYOUT: dict[str, dict[str, Any]] = {
    "sim_aou": {"random_update": "sim_aou_random"},
    "sim_aou_unnormalized": {"random_update": "sim_aou_unnormalized_random"},
    "sim_am": {"before_finetuning": "sim_am_before"},
    "sim_am_delta": {"random_update": "sim_am_delta_random"},
    "kendall": {"random_weights": "kendall_random"},
    "kendall_example": {"random_weights": "kendall_example_random"},
    "recall_tokens": {"random_weights": "recall_tokens_random"},
    "recall_examples": {"random_weights": "recall_examples_random"},
    "sim_update": {"random_icl": "sim_update_random"},
}

_BALANCED = (
    "demonstrations, selection and validation examples are drawn with equally many of each class"
)


def example_arrays(job: Job, comparison: Comparison) -> dict[str, np.ndarray]:
    """What examples.npz holds: one row an example (second axis where seeds lead)."""
    c = comparison
    return {
        "index": job.rows[c.example],
        "label": job.labels[c.example],
        "pred_zsl": c.logprob_zsl.argmax(-1),
        "pred_icl": c.logprob_icl.argmax(-1),
        "pred_ft": c.logprob_ft.argmax(-1),
        "logprob_zsl": c.logprob_zsl,
        "logprob_icl": c.logprob_icl,
        "logprob_ft": c.logprob_ft,
        **c.similarity._asdict(),
    }


def summarize(
    config: ConfigDict,
    checkpoint: checkpoints.Checkpoint,
    job: Job,
    chosen: Chosen,
    arrays: dict[str, np.ndarray],
    best_seed: tuple[int, list[float]] | None,
) -> dict[str, Any]:
    """Everything that results.json says, but the controls and the seconds."""
    seeds = list(range(len(config.seeds))) if best_seed is None else [best_seed[0]]
    task = job.encoder.task
    return {
        "task": task.name,
        "stand_in": job.dataset.stand_in,
        "template": task.template,
        "answers": list(task.answers),
        **measure(pick_seeds(arrays, seeds), config),
        "selection": _selection(config, job, chosen, best_seed),
        "demonstrations": {"asked": config.num_demonstrations, "used": job.used},
        "data": {
            "source": job.dataset.source,
            "fingerprint": job.dataset.fingerprint,
            "notes": [*job.dataset.notes, *([_BALANCED] if config.data.balanced else [])],
            "evaluated": len(arrays["label"]),
            "validation_examples": len(job.dataset.validation.labels),
        },
        "model": {
            "name": config.model,
            "weights": config.weights,
            "attention": config.attention.kind,  # empty: the checkpoint's own
            "fingerprint": checkpoints.fingerprint(checkpoint.folder),
        },
        **provenance(config),
    }


def provenance(config: ConfigDict) -> dict[str, Any]:
    """What a result was made with: config, versions, device."""
    return {
        "config": workdir.as_plain(config),
        "versions": {
            "icljax": icljax.__version__,
            "jax": jax.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "device": {
            "platform": jax.default_backend(),
            "kind": jax.devices()[0].device_kind,
            "count": jax.device_count(),
        },
    }


def pick_seeds(arrays: dict[str, np.ndarray], seeds: list[int]) -> dict[str, np.ndarray]:
    """The arrays with only these seeds; those without a seed axis as they are."""
    plain = ("index", "label", "pred_zsl", "logprob_zsl")
    return {k: v if k in plain else v[seeds] for k, v in arrays.items()}


def measure(arrays: dict[str, np.ndarray], config: ConfigDict) -> dict[str, Any]:
    """Accuracies, Rec2FTP and similarities of the arrays of `example_arrays`."""
    key = jax.random.key(config.metrics.seed)
    count = len(arrays["label"])
    weights = metrics.bootstrap_weights(key, count, config.metrics.bootstrap_samples)
    label = arrays["label"]
    correct = {s: arrays[f"pred_{s}"] == label for s in ("zsl", "icl", "ft")}
    calibrated = {
        s: np.asarray(metrics.calibrate(arrays[f"logprob_{s}"])).argmax(-1) == label
        for s in correct
    }
    majority = float(np.bincount(label).max() / count)
    subset = ~correct["zsl"] & correct["ft"] & correct["icl"]
    similarities = {}
    for name, baselines in LAYOUT.items():
        field = "sim_am_after" if name == "sim_am" else name
        similarities[name] = {
            **series(arrays[field], weights, subset),
            "baselines": {
                label: series(arrays[other], weights, subset) for label, other in baselines.items()
            },
        }
    return {
        "accuracy": {s: share(c, weights) for s, c in correct.items()} | {"majority": majority},
        "accuracy_calibrated": {s: share(c, weights) for s, c in calibrated.items()}
        | {"majority": majority},
        "rec2ftp": recall(correct, weights),
        "agreement": agreement(correct, arrays),
        "f2t": {"count": int(subset.sum()), "of": int(subset.size)},
        **similarities,
        "update_share": {
            s: series(arrays[f"update_share_{s}"], weights, subset) for s in ("icl", "ft")
        },
    }


def share(correct: np.ndarray, weights: jax.Array) -> dict[str, Any]:
    """Mean of bool [N] or [R, N], with a 95 % bootstrap interval over examples."""
    values = np.atleast_2d(correct).astype(np.float32)
    interval = metrics.bootstrap_interval(weights, values.mean(0))
    out = {"mean": _number(values.mean()), "interval": _numbers(interval)}
    if correct.ndim == 2:
        out |= _spread(values.mean(1))
    return out


def recall(correct: dict[str, np.ndarray], weights: jax.Array) -> dict[str, Any]:
    """Rec2FTP over all seeds together, and of each."""
    zsl = np.broadcast_to(correct["zsl"], correct["ft"].shape)
    both = metrics.rec2ftp_counts(zsl, correct["ft"], correct["icl"])
    recovered, corrected = (np.asarray(x) for x in both)
    ft_only = ~zsl & correct["ft"]
    numerator = (ft_only & correct["icl"]).sum(0).astype(np.float32)
    denominator = ft_only.sum(0).astype(np.float32)
    low, high = metrics.bootstrap_ratio_interval(weights, numerator, denominator)
    percent = 100 * recovered.sum() / corrected.sum() if corrected.sum() else None
    return {
        "percent": _number(percent),
        "interval": _numbers((100 * low, 100 * high)),
        "icl_and_ft_right_zsl_wrong": int(recovered.sum()),
        "ft_right_zsl_wrong": int(corrected.sum()),
        "per_seed": _numbers(metrics.rec2ftp(zsl, correct["ft"], correct["icl"])),
    }


def agreement(correct: dict[str, np.ndarray], arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Which settings are right together, and how often two predict the same; means over seeds.

    A pattern has a letter for ZSL, ICL and FT, upper case where that setting is right.
    """
    right = [np.broadcast_to(correct[s], correct["ft"].shape) for s in ("zsl", "icl", "ft")]
    patterns = {}
    for bits in itertools.product((False, True), repeat=3):
        name = "".join(c.upper() if bit else c for c, bit in zip("zif", bits, strict=True))
        same = np.all([r == bit for r, bit in zip(right, bits, strict=True)], 0)
        patterns[name] = _number(same.mean())
    pairs = itertools.combinations(("zsl", "icl", "ft"), 2)
    pairwise = {
        f"{a}_{b}": _number(np.mean(arrays[f"pred_{a}"] == arrays[f"pred_{b}"])) for a, b in pairs
    }
    return {"patterns": patterns, "pairwise": pairwise}


def series(values: np.ndarray, weights: jax.Array, subset: np.ndarray) -> dict[str, Any]:
    """Means, intervals and spread of a similarity [R, N, L]; `f2t`: its mean on `subset` [R, N].

    One that is of every head, [R, N, L, G], is averaged over heads, its heads listed beside it.
    """
    heads: dict[str, Any] = {}
    if values.ndim == 4:
        per_head = _nanmean(values.reshape(-1, *values.shape[2:]), 0)
        heads = {"per_layer_head": [_numbers(row) for row in per_head]}
        values = _nanmean(values, -1)
    with np.errstate(all="ignore"):
        per_example = _nanmean(values, 0)
    interval = metrics.bootstrap_interval(weights, _nanmean(per_example, -1))
    low, high = metrics.bootstrap_interval(weights, per_example)
    return {
        "mean": _number(np.nanmean(values)),
        "interval": _numbers(interval),
        **_spread(np.array([np.nanmean(v) for v in values])),
        "per_layer": _numbers(_nanmean(per_example, 0)),
        "per_layer_interval": [_numbers(pair) for pair in zip(low, high, strict=True)],
        "f2t": _number(np.nanmean(values[subset])) if subset.any() else None,
        **heads,
    }


def _nanmean(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean over finite entries; NaN where there is none (without NumPy's warning)."""
    finite = np.isfinite(values)
    count = finite.sum(axis)
    total = np.where(finite, values, 0).sum(axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def summarize_controls(
    config: ConfigDict, job: Job, controls: dict[str, Comparison]
) -> dict[str, Any]:
    """The same measures of each control model, on the examples that it read."""
    out = {}
    for name, comparison in controls.items():
        arrays = example_arrays(job, comparison)
        out[name] = measure(arrays, config) | {"evaluated": len(arrays["label"])}
    return out


def _selection(
    config: ConfigDict, job: Job, chosen: Chosen, best_seed: tuple[int, list[float]] | None
) -> dict[str, Any]:
    rates = config.finetune.learning_rates
    on_validation = config.selection.split == "validation"
    where = (
        "the validation examples that are reported (as in the paper: optimistic)"
        if on_validation
        else "examples of the train part that are in no seed's demonstrations"
    )
    seed = None
    if best_seed is not None:
        seed = {"seed": config.seeds[best_seed[0]], "icl_accuracy": _numbers(best_seed[1])}
    return {
        "selected_on": where,
        "num_examples": len(job.selection_labels),
        "learning_rates": list(rates),
        "learning_rate": [rates[i] for i in chosen.rate_index],
        "accuracy": [_numbers(row) for row in chosen.accuracy],
        "nll": [_numbers(row) for row in chosen.nll],
        "training_loss": [_numbers(row) for row in chosen.loss],
        "best_seed": seed,
    }


def _spread(per_seed: np.ndarray) -> dict[str, Any]:
    """Each seed's value and their standard deviation (None for one seed)."""
    std = _number(np.std(per_seed, ddof=1)) if len(per_seed) > 1 else None
    return {"per_seed": _numbers(per_seed), "seed_std": std}


def _number(value: Any) -> float | None:
    """JSON has no NaN: undefined is null."""
    return None if value is None or not np.isfinite(value) else round(float(value), 6)


def _numbers(values: Any) -> list[float | None]:
    return [
        _number(v) for v in np.asarray(jnp.stack(values) if isinstance(values, tuple) else values)
    ]
