"""In-context regression: models and tuned optimizers, trained side by side and evaluated.

Everything that is trained, models and tuned optimizers alike, is a `Family`: M of a kind side by
side. One program trains all families and seeds on the same fresh tasks.

Shape glossary: R seeds, M models of a family, E evaluated tasks, C numbers of examples; other
letters as in icljax/experiments/regression_models.py.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from icljax import attention
from icljax.experiments import regression_models as models
from icljax.experiments.regression_models import Params, Tasks

# The optimizers' numbers are put back into these after each step.
BOUNDS = {"eta": (0.0, 0.99), "alpha": (0.01, 1.0), "ema": (0.0, 0.99)}


@dataclasses.dataclass(frozen=True)
class Family:
    """Models of one kind, or tuned optimizers of one kind, that are trained side by side.

    Attributes:
        names: of the M models.
        init: (key, switch) -> parameters of one model.
        predict: (parameters, switch, tasks) -> [B].
        switches: arrays [M, ...], what tells the models of the family apart.
        learning_rate: peak of the schedule.
    """

    names: tuple[str, ...]
    init: Callable[[jax.Array, Any], Params]
    predict: Callable[[Params, Any, Tasks], jax.Array]
    switches: Any
    learning_rate: float


def make_families(config: ConfigDict) -> dict[str, Family]:
    """All that the config trains, by name: deep kinds, their optimizers, online kinds, theirs."""
    gates = jnp.tril(jnp.ones((config.layers, config.layers)))
    depths = tuple(str(i + 1) for i in range(config.layers))
    families = {}
    for kind in config.families:
        scale = config.init_scale if kind == "linear" else config.softmax_init_scale
        init = functools.partial(models.init_deep, kind, config.dims, scale)
        predict = functools.partial(models.predict_deep, kind)
        families[kind] = Family(depths, init, predict, gates, config.learning_rate)
    for name, corrected in (("gd", False), ("gd++", True)):
        init = functools.partial(models.init_descent, corrected)
        predict = functools.partial(models.predict_descent, corrected)
        families[name] = Family(depths, init, predict, gates, config.tuning_rate)
    for loss in ("dot", "square"):
        names = tuple(n for n in config.online if attention.KINDS[n].loss == loss)
        if not names:
            continue
        start = models.starts(names)
        init = functools.partial(models.init_online, config.dims)
        predict = functools.partial(models.predict_online, loss)
        families[f"online_{loss}"] = Family(names, init, predict, start, config.learning_rate)
        predict = functools.partial(models.optax_predict, loss)
        families[f"optax_{loss}"] = Family(
            names, models.init_optax, predict, start, config.tuning_rate
        )
    return families


def make_optimizer(config: ConfigDict, peak: float) -> optax.GradientTransformation:
    """Adam with clipping, warm-up over a twentieth of the steps and cosine decay to 0."""
    warmup = max(1, config.steps // 20)
    schedule = optax.warmup_cosine_decay_schedule(0.0, peak, warmup, max(config.steps, warmup + 1))
    adam = optax.chain(optax.clip_by_global_norm(config.clip), optax.adam(schedule))
    # A task on which a deep model overflows is skipped, as often as there are.
    return optax.apply_if_finite(adam, config.steps)


def init_family(
    family: Family, optimizer: optax.GradientTransformation, key: jax.Array
) -> tuple[Params, Any]:
    """Parameters and optimizer states [M, ...] of one seed."""
    params = jax.vmap(family.init)(jax.random.split(key, len(family.names)), family.switches)
    return params, jax.vmap(optimizer.init)(params)


def train_family(
    family: Family, optimizer: optax.GradientTransformation, state: tuple[Params, Any], tasks: Tasks
) -> tuple[tuple[Params, Any], jax.Array]:
    """One step of all models of a family on the same tasks; each has its own clipping and Adam.

    Returns:
        (new parameters and optimizer states, losses [M]).
    """

    def loss(params: Params, switch: Any) -> jax.Array:
        return jnp.mean((family.predict(params, switch, tasks) - tasks.target) ** 2)

    def model(params: Params, moments: Any, switch: Any) -> Any:
        value, gradient = jax.value_and_grad(loss)(params, switch)
        updates, moments = optimizer.update(gradient, moments, params)
        params = optax.apply_updates(params, updates)
        return ({k: jnp.clip(v, *BOUNDS.get(k, ())) for k, v in params.items()}, moments), value

    return jax.vmap(model)(*state, family.switches)


def train(
    families: dict[str, Family], config: ConfigDict, advance: Callable[[int], None]
) -> tuple[dict[str, Params], dict[str, np.ndarray]]:
    """Trains every family for every seed, all in one program.

    Returns:
        (parameters [R, M, ...], loss curves [calls, R, M]: medians of a call's steps), by family.
    """
    optimizers = {n: make_optimizer(config, f.learning_rate) for n, f in families.items()}
    calls = math.gcd(config.steps, 20)  # for the progress bar, and points of the curves
    steps = config.steps // calls

    def start(key: jax.Array) -> Any:
        keys = zip(families, jax.random.split(key, len(families)), strict=True)
        return {name: init_family(families[name], optimizers[name], k) for name, k in keys}

    def seed(state: Any, key: jax.Array, first: jax.Array) -> Any:
        def body(state: Any, index: jax.Array) -> Any:
            tasks_key = jax.random.fold_in(key, index)
            tasks = models.draw_tasks(tasks_key, config.batch, config.num_examples, config.dims)
            # Else XLA draws them again in every place that reads them.
            tasks = jax.lax.optimization_barrier(tasks)
            both = {n: train_family(f, optimizers[n], state[n], tasks) for n, f in families.items()}
            return {n: b[0] for n, b in both.items()}, {n: b[1] for n, b in both.items()}

        state, losses = jax.lax.scan(body, state, first + jnp.arange(steps))
        # Rare tasks on which deep models explode would hide the rest from a mean.
        return state, jax.tree.map(lambda v: jnp.median(v, 0), losses)

    keys = jax.vmap(jax.random.key)(jnp.array(config.seeds))
    init_keys, task_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    state = jax.jit(jax.vmap(start))(init_keys)
    run_steps = jax.jit(jax.vmap(seed, (0, 0, None)), donate_argnums=0)
    curves = []
    for call in range(calls):
        state, losses = run_steps(state, task_keys, jnp.int32(call * steps))
        curves.append(jax.device_get(losses))
        advance(steps)
    return {n: s[0] for n, s in state.items()}, jax.tree.map(lambda *v: np.stack(v), *curves)


@dataclasses.dataclass(frozen=True)
class Measured:
    """One family on the evaluation tasks.

    Attributes:
        by_examples: [R, M, C], mean squared error with each number of examples.
        predictions: [R, M, E]; sensitivities: [R, M, E, X], d prediction / d query; both with the
            number of examples of training.
    """

    by_examples: np.ndarray
    predictions: np.ndarray
    sensitivities: np.ndarray


def evaluation_tasks(config: ConfigDict) -> Tasks:
    """The same E tasks for all models and seeds, with as many examples as any count needs."""
    most = max(*config.eval.examples, config.num_examples)
    return models.draw_tasks(jax.random.key(config.eval.seed), config.eval.tasks, most, config.dims)


def evaluate(family: Family, params: Params, tasks: Tasks, config: ConfigDict) -> Measured:
    """Measures a family's models of all seeds, a seed at a time, which bounds the memory."""
    counts = jnp.array(config.eval.examples)

    def model(params: Params, switch: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        def loss(count: jax.Array) -> jax.Array:
            predicted = family.predict(params, switch, models.keep_last(tasks, count))
            return jnp.mean((predicted - tasks.target) ** 2)

        def total(query: jax.Array) -> tuple[jax.Array, jax.Array]:
            shown = models.keep_last(tasks, config.num_examples)._replace(query=query)
            predicted = family.predict(params, switch, shown)
            return jnp.sum(predicted), predicted

        sensitivity, predicted = jax.grad(total, has_aux=True)(tasks.query)
        return jax.lax.map(loss, counts), predicted, sensitivity

    side_by_side = jax.vmap(model)
    measured = jax.jit(lambda p: jax.lax.map(lambda q: side_by_side(q, family.switches), p))(params)
    return Measured(*(np.asarray(x, np.float64) for x in measured))
