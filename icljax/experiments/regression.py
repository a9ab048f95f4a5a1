"""In-context regression: is a trained attention layer a step of an optimizer?

Attention layers of von Oswald et al. 2023 (icljax/experiments/regression_models.py) are trained,
and compared with optimizers whose step sizes are tuned on the same tasks.

Shape glossary: as in icljax/experiments/regression_training.py.
"""

import functools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import optax
from ml_collections import ConfigDict
from rich.console import Console
from scipy import stats

from icljax import attention
from icljax.experiments import regression_models as models
from icljax.experiments.config import (
    check_types,
    distinct_integers,
    is_count,
    is_rate,
    is_seed,
    require,
)
from icljax.experiments.regression_models import DEEP, ONLINE, Params, Start, Tasks
from icljax.experiments.regression_training import (
    Family,
    Measured,
    evaluate,
    evaluation_tasks,
    make_families,
    train,
)
from icljax.records import Regression
from icljax.reports import regression as regression_report
from icljax.reports import report
from icljax.reports.regression import show as show
from icljax.runtime import workdir
from icljax.runtime.progress import Stages


def default() -> ConfigDict:
    """Every field, at its default."""
    config = ConfigDict()
    config.experiment = "regression"
    config.seeds = (1, 2, 3, 4, 5)  # of initial weights and training tasks

    config.dims = 10  # of x
    config.num_examples = 10  # in a prompt in training
    config.layers = 4  # models of 1 to this many layers
    config.families = DEEP  # some of linear, softmax, moattn
    # One causal layer each, against the optimizer that the kind is; () for none.
    config.online = ("linear", "linear_momentum", "retention", "delta", "delta_momentum")

    config.steps = 1500
    config.batch = 64  # fresh tasks a step
    config.learning_rate = 0.02  # of the models: peak, after warm-up and before cosine decay
    config.tuning_rate = 0.03  # of the optimizers' step sizes, momentum, ...
    config.clip = 1.0  # largest norm of a model's gradient
    config.init_scale = 0.1  # of random weights, times 1 / sqrt(width)
    config.softmax_init_scale = 1.0  # the same for softmax and moattn, which need more contrast

    config.eval = ConfigDict()
    config.eval.tasks = 1024
    config.eval.seed = 0
    config.eval.examples = (2, 4, 6, 8, 10, 12, 14, 16, 18, 20)
    return config


def validate(config: ConfigDict) -> None:
    """Checks ranges and choices.

    Raises:
        UserError: naming the field, what it is and what it may be.
    """
    check_types(config, default())
    whole = ("dims", "num_examples", "layers", "steps", "batch", "eval.tasks")
    for key in whole:
        require(config, key, is_count, "a whole number above 0")
    require(config, "eval.seed", is_seed, "a whole number, 0 or more, below 2^32")
    for key in ("learning_rate", "tuning_rate", "clip", "init_scale", "softmax_init_scale"):
        require(config, key, is_rate, "a number above 0")
    expected = "two or more different whole numbers, e.g. 1,2,3"
    require(config, "seeds", lambda v: len(v) > 1 and distinct_integers(v), expected)
    expected = "different whole numbers above 0, e.g. 5,10,20"
    require(config, "eval.examples", lambda v: distinct_integers(v) and min(v) > 0, expected)
    for key, choices in (("families", DEEP), ("online", ONLINE)):
        expected = f"different ones of {', '.join(choices)}"
        require(config, key, functools.partial(_distinct_of, choices), expected)


def _distinct_of(choices: tuple[str, ...], values: tuple[str, ...]) -> bool:
    return set(values) <= set(choices) and len(set(values)) == len(values)


@workdir.one_job
def run(config: ConfigDict, path: Path, console: Console) -> dict[str, Any]:
    """Runs the experiment into a folder, or returns the results that it already left there.

    Raises:
        UserError: where the folder cannot be used.
    """
    with Stages(console) as stages:
        with stages.stage("constructions", "constructed weights", 1):
            constructions = construction_errors(config)
        families = make_families(config)
        with stages.stage("train", "models and optimizers", config.steps) as advance:
            params, curves = train(families, config, advance)
        tasks = evaluation_tasks(config)
        measured = {}
        with stages.stage("evaluate", "evaluation", len(families)) as advance:
            for name, family in families.items():
                measured[name] = evaluate(family, params[name], tasks, config)
                advance(1)
        with stages.stage("report", "report and figures", 1):
            target = np.asarray(tasks.target)
            results = summarize(config, families, params, curves, measured, target)
            results |= {"constructions": constructions, "seconds": stages.seconds}
            report.write(path, regression_report.report(msgspec.convert(results, Regression)))
    workdir.save_results(path, results)
    return results


def summarize(
    config: ConfigDict,
    families: dict[str, Family],
    params: dict[str, Params],
    curves: dict[str, np.ndarray],
    measured: dict[str, Measured],
    target: np.ndarray,
) -> dict[str, Any]:
    """Everything that the report tells, as JSON holds it.

    Args:
        config: of the job.
        families: what was trained.
        params: of each family [R, M, ...].
        curves: of the training loss of each family [calls, R, M].
        measured: of each family.
        target: [E].
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for name, family in families.items():
        losses = np.mean((measured[name].predictions - target) ** 2, -1)
        found[name] = []
        for m, label in enumerate(family.names):
            by_examples = np.moveaxis(measured[name].by_examples[:, m], -1, 0)
            model: dict[str, Any] = {
                "name": label,
                "loss": series(losses[:, m]),
                "by_examples": [series(v) for v in by_examples],
                "curve": numbers(np.median(curves[name][:, :, m], -1)),
                "learned": learned(params[name], m),
            }
            for other in rivals(name):
                pair = compare(measured[name], measured[other], m, target)
                model.setdefault("against", {})[other] = pair
            found[name].append(model)
    return {
        "config": workdir.as_plain(config),
        "versions": {"jax": jax.__version__, "optax": optax.__version__},
        "zero_loss": float(np.mean(target**2)),
        "models": found,
    }


def rivals(name: str) -> tuple[str, ...]:
    """The families of tuned optimizers that a family of models is compared with."""
    if name in DEEP:
        return ("gd", "gd++")
    return (name.replace("online", "optax"),) if name.startswith("online") else ()


def learned(params: Params, model: int) -> dict[str, Any]:
    """The optimizer's numbers that a model ended with, over seeds; by layer where it has layers."""
    named = ("eta", "alpha", "beta", "ema", "rate", "correction")
    values = {k: np.asarray(params[k])[:, model] for k in named if k in params}
    used = model + 1  # the layers beyond are switched off
    return {
        k: [series(x) for x in v.T[:used]] if v.ndim > 1 else series(v) for k, v in values.items()
    }


@np.errstate(invalid="ignore")  # of a model that diverged
def compare(ours: Measured, other: Measured, model: int, target: np.ndarray) -> dict[str, Any]:
    """Model against optimizer, seed by seed on the same tasks.

    Returns:
        series of "ratio" (of mean squared errors), "difference" (mean distance of predictions) and
        "cosine" (mean cosine of sensitivities).
    """
    predicted, wanted = ours.predictions[:, model], other.predictions[:, model]
    errors = [np.mean((p - target) ** 2, -1) for p in (predicted, wanted)]
    a, b = ours.sensitivities[:, model], other.sensitivities[:, model]
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    cosine = np.sum(a * b, -1) / np.maximum(lengths, np.finfo(np.float32).tiny)
    return {
        "ratio": series(errors[0] / errors[1]),
        "difference": series(np.mean(np.abs(predicted - wanted), -1)),
        "cosine": series(np.mean(cosine, -1)),
    }


@np.errstate(invalid="ignore")
def series(values: np.ndarray) -> dict[str, Any]:
    """Mean of values of seeds [R] with its 95 % interval (Student's t), and the values."""
    mean, count = values.mean(), len(values)
    half = stats.t.ppf(0.975, count - 1) * values.std(ddof=1) / math.sqrt(count)
    found = numbers([mean, mean - half, mean + half])
    return {"mean": found[0], "interval": found[1:], "per_seed": numbers(values)}


def numbers(values: Any) -> list[float | None]:
    """Floats for JSON; None where not finite."""
    return [float(v) if np.isfinite(v) else None for v in values]


# ----------------------------------------------------------------------------- constructed weights


def autodiff_descent(rates: jax.Array, tasks: Tasks) -> jax.Array:
    """Predictions [B] of gradient descent from 0 whose gradients jax.grad takes; `rates` [L]."""

    def row(x: jax.Array, y: jax.Array, query: jax.Array) -> jax.Array:
        def loss(w: jax.Array) -> jax.Array:
            return jnp.mean((x @ w - y) ** 2) / 2

        def step(w: jax.Array, rate: jax.Array) -> tuple[jax.Array, None]:
            return w - rate * jax.grad(loss)(w), None

        return jax.lax.scan(step, jnp.zeros_like(query), rates)[0] @ query

    return jax.vmap(row)(tasks.x, tasks.y, tasks.query)


def construction_errors(config: ConfigDict) -> list[dict[str, Any]]:
    """Largest difference of each constructed model's predictions from its optimizer's, float32."""
    tasks = models.draw_tasks(jax.random.key(0), 512, config.num_examples, config.dims)
    gates = jnp.tril(jnp.ones((config.layers, config.layers)))
    rates = jnp.linspace(0.9, 0.3, config.layers)
    corrections = jnp.linspace(0.1, 0.3, config.layers)

    def layers(rates: jax.Array, corrections: jax.Array) -> jax.Array:
        params = models.construct(rates, corrections, config.dims)
        return jax.vmap(lambda g: models.predict_deep("linear", params, g, tasks))(gates)

    @jax.jit
    def deep() -> tuple[jax.Array, jax.Array]:
        steps = jax.vmap(lambda g: autodiff_descent(g * rates, tasks))(gates)
        both = {"rate": rates, "correction": corrections}
        corrected = jax.vmap(lambda g: models.predict_descent(True, both, g, tasks))(gates)
        differences = layers(rates, 0 * rates) - steps, layers(rates, corrections) - corrected
        return jnp.abs(differences[0]).max(-1), jnp.abs(differences[1]).max(-1)

    gd, gd_plus = (x.tolist() for x in deep())
    found = [
        {"model": f"linear attention, {_layers(i)}", "optimizer": _steps(i, name), "error": e}
        for name, errors in (("gradient descent (jax.grad)", gd), ("GD++", gd_plus))
        for i, e in enumerate(errors, 1)
    ]
    for loss in ("dot", "square"):
        names = [n for n in config.online if attention.KINDS[n].loss == loss]
        if names:
            start = models.starts(names)
            errors = jax.jit(jax.vmap(functools.partial(_online_error, loss, tasks)))(start)
            for name, error in zip(names, errors.tolist(), strict=True):
                found.append({"model": name, "optimizer": optimizer_name(name), "error": error})
    return found


def _online_error(loss: str, tasks: Tasks, start: Start) -> jax.Array:
    params = models.construct_online(tasks.x.shape[-1], start.eta, start.alpha, jnp.float32(0.1))
    ours = models.predict_online(loss, params, start, tasks)
    return jnp.abs(ours - models.optax_predict(loss, params, start, tasks)).max()


def _layers(count: int) -> str:
    return f"{count} layer{'s' if count > 1 else ''}"


def _steps(count: int, name: str) -> str:
    return f"{count} step{'s' if count > 1 else ''} of {name}"


def optimizer_name(kind: str) -> str:
    """The optimizer, in words, that a kind of the linear family is."""
    k = attention.KINDS[kind]
    base = "gradient descent" if k.loss == "dot" else "least squares (LMS)"
    extras = [*(["momentum"] if k.eta > 0 else []), *(["weight decay"] if k.alpha < 1 else [])]
    return f"online {base}" + (f" with {' and '.join(extras)}" if extras else "")
