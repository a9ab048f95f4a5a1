"""In-context regression: is a trained attention layer a step of an optimizer?

The setting of von Oswald et al. 2023, "Transformers learn in-context by gradient descent" (arXiv
2212.07677): tasks y = w . x with w ~ N(0, 1) and x ~ U(-1, 1); tokens e_i = (x_i, y_i) of the
examples and (x, 0) of the query; attention without MLP, norm or positions, which reads the examples
only: e <- e + P V K^T q / N. The prediction is minus the query token's y after the last layer.
There, one constructed layer of linear attention is one step of gradient descent (`construct`), and
L layers are L steps.

The kinds with momentum, decay and the delta rule are read causally, one example a step
(`predict_online`): what the optimizer `optax_predict` does with the examples in their order.

Everything that is trained, models and tuned optimizers alike, is a `Family`: M of a kind side by
side. One program trains all families and seeds on the same fresh tasks.

Shape glossary: R seeds, M models of a family, L layers (the deepest model's; shallower ones switch
the rest off), B tasks, N examples, T = N + 1 tokens, X inputs, D = X + 1 token width (K, V: keys',
values'), E evaluated tasks, C numbers of examples.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict
from rich.console import Console
from scipy import stats

from icljax import attention
from icljax.experiments.config import (
    check_types,
    distinct_integers,
    is_count,
    is_rate,
    is_seed,
    require,
)
from icljax.reports import regression_report
from icljax.reports.regression_report import show as show
from icljax.runtime import workdir
from icljax.runtime.progress import Stages

Params = dict[str, jax.Array]
DEEP = ("linear", "softmax", "moattn")
ONLINE = tuple(n for n, k in attention.KINDS.items() if k.base == "linear")
# The optimizers' numbers are put back into these after each step.
BOUNDS = {"eta": (0.0, 0.99), "alpha": (0.01, 1.0), "ema": (0.0, 0.99)}


class Tasks(NamedTuple):
    """Regression prompts.

    Attributes:
        x: [B, N, X]; y: [B, N]; both 0 where not seen.
        query: [B, X]; target: [B].
        seen: bool [N], which examples there are; the first are left out first.
    """

    x: jax.Array
    y: jax.Array
    query: jax.Array
    target: jax.Array
    seen: jax.Array


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


# ------------------------------------------------------------------------------------------- tasks


def draw_tasks(key: jax.Array, batch: int, examples: int, dims: int) -> Tasks:
    """Fresh tasks: w ~ N(0, I), x ~ U(-1, 1), y = w . x (von Oswald et al. 2023, section 3)."""
    x_key, w_key = jax.random.split(key)
    x = jax.random.uniform(x_key, (batch, examples + 1, dims), minval=-1.0, maxval=1.0)
    w = jax.random.normal(w_key, (batch, dims))
    y = jnp.einsum("BTX,BX->BT", x, w, precision="highest")
    return Tasks(x[:, :-1], y[:, :-1], x[:, -1], y[:, -1], jnp.ones((examples,), bool))


def keep_last(tasks: Tasks, count: jax.Array | int) -> Tasks:
    """The same tasks with `count` of their examples. Zeros in front are no step of any kind."""
    size = tasks.x.shape[1]
    seen = jnp.arange(size) >= size - count
    x = jnp.where(seen[None, :, None], tasks.x, 0)
    return tasks._replace(x=x, y=jnp.where(seen[None], tasks.y, 0), seen=seen)


def as_tokens(tasks: Tasks) -> jax.Array:
    """[B, T, D]: (x_i, y_i) of the examples, then (query, 0)."""
    x = jnp.concatenate([tasks.x, tasks.query[:, None]], 1)
    return jnp.concatenate([x, jnp.pad(tasks.y, ((0, 0), (0, 1)))[..., None]], -1)


# ---------------------------------------------------------------------------------- deep attention


def context_state(
    loss: str, k: jax.Array, v: jax.Array, eta: jax.Array, alpha: jax.Array, beta: jax.Array
) -> jax.Array:
    """The linear family's map from keys to values after the examples: [B, V, K].

    Args:
        loss: "dot" or "square".
        k: [B, N, K]; v: [B, N, V].
        eta, alpha, beta: [].
    """
    size = 1 << (k.shape[1] - 1).bit_length() if loss == "square" else k.shape[1]
    # Zeros in front: steps that leave the zero state as it is.
    k, v = (jnp.pad(a, ((0, 0), (size - a.shape[1], 0), (0, 0))) for a in (k, v))
    causal = jnp.tril(jnp.ones((size, size), bool))
    weights = attention.decay(eta, alpha, jnp.arange(1, size + 1), causal)
    zero = jnp.zeros((v.shape[-1], k.shape[-1]), k.dtype)
    start = attention.State(zero, zero)
    betas = jnp.broadcast_to(beta, (size,))

    def row(k: jax.Array, v: jax.Array) -> jax.Array:
        return attention.write(start, k, v, betas, weights, loss)[1].s

    return jax.vmap(row)(k, v)


def attend(kind: str, layer: Params, tokens: jax.Array, seen: jax.Array) -> jax.Array:
    """What every token reads of the examples, before the output projection: [B, T, D].

    Keys and values are the tokens: with one head as wide as a token, W_K^T W_Q and P W_V act as
    one matrix each, so that "query" and "out" are the whole family of von Oswald et al. 2023.

    Args:
        kind: one of DEEP; "moattn" is softmax plus EMA(V) (Dai et al. 2023, section 5).
        layer: "query" [D, D] and, for "moattn", "ema" [].
        tokens: [B, T, D], the query's last.
        seen: bool [N].
    """
    q = tokens @ layer["query"]
    context = tokens[:, :-1]
    if kind == "linear":
        one = jnp.ones(())
        state = context_state("dot", context, context, 0 * one, one, one)
        return attention.dot("BVK,BTK->BTV", state, q, q.dtype) / jnp.sum(seen)
    scores = jnp.einsum("BTK,BNK->BTN", q, context) / math.sqrt(q.shape[-1])
    weights = jax.nn.softmax(jnp.where(seen[None, None], scores, -jnp.inf))
    if kind == "moattn":
        # EMA(V) is linear in V, so its weights are the EMA of the identity, for all tasks at once.
        tokens = jnp.eye(q.shape[1])[None, :, None]
        ema, _ = attention.ema_chunked(tokens, layer["ema"][None], jnp.zeros_like(tokens[0, 0]))
        weights = weights + jnp.where(seen[None], ema[0, :, 0, :-1], 0)[None]
    return jnp.einsum("BTN,BNV->BTV", weights, context)


def predict_deep(kind: str, params: Params, gates: jax.Array, tasks: Tasks) -> jax.Array:
    """Predictions [B] of attention layers with residuals (von Oswald et al. 2023, equation 1).

    Args:
        kind: one of DEEP.
        params: "query", "out" [L, D, D] and, for "moattn", "ema" [L].
        gates: [L], 1 for a layer, 0 for none.
        tasks: B of them.
    """

    def step(tokens: jax.Array, inputs: tuple[Params, jax.Array]) -> tuple[jax.Array, None]:
        layer, gate = inputs
        return tokens + gate * (attend(kind, layer, tokens, tasks.seen) @ layer["out"]), None

    tokens, _ = jax.lax.scan(step, as_tokens(tasks), (params, gates))
    return -tokens[:, -1, -1]


def init_deep(kind: str, dims: int, scale: float, key: jax.Array, gates: jax.Array) -> Params:
    """Random weights of standard deviation `scale` / sqrt(D), so that products keep it."""
    width, layers = dims + 1, gates.shape[0]
    keys = jax.random.split(key)
    params = {
        "query": jax.random.normal(keys[0], (layers, width, width)) * scale / math.sqrt(width),
        "out": jax.random.normal(keys[1], (layers, width, width)) * scale / math.sqrt(width),
    }
    return params | ({"ema": jnp.full((layers,), 0.5, jnp.float32)} if kind == "moattn" else {})


def construct(rates: jax.Array, corrections: jax.Array, dims: int) -> Params:
    """Weights with which linear attention is gradient descent, or GD++.

    The query is x; of what it reads, "out" scales y by minus the step size (and x by minus gamma),
    so a layer changes y_j to y_j - dW x_j (von Oswald et al. 2023, proposition 1 and section 4).

    Args:
        rates: [L], step sizes on the squared loss sum_i (W x_i - y_i)^2 / 2 N.
        corrections: [L], gamma of GD++; 0 for gradient descent.
        dims: X.
    """
    only_x = jnp.diag(jnp.append(jnp.ones(dims), 0.0))
    scales = jnp.concatenate([jnp.tile(corrections[:, None], (1, dims)), rates[:, None]], 1)
    return {"query": jnp.tile(only_x[None], (len(rates), 1, 1)), "out": -jax.vmap(jnp.diag)(scales)}


# ------------------------------------------------------------------------------ gradient descent


def predict_descent(corrected: bool, params: Params, gates: jax.Array, tasks: Tasks) -> jax.Array:
    """Predictions [B] after L steps of gradient descent from 0, or of GD++.

    A step is W <- W - rate dl/dW with l(W) = sum_i (W x_i - y_i)^2 / 2 N, kept as what is left of
    each y. GD++ improves the inputs' curvature between steps: x <- x - gamma X^T X x / N (von
    Oswald et al. 2023, section 4); like theirs, both at once, so that one step is plain descent.

    Args:
        corrected: GD++.
        params: "rate" [L] and, for GD++, "correction" [L].
        gates: [L], 1 for a step, 0 for none.
        tasks: B of them.
    """
    count = jnp.sum(tasks.seen)
    tokens = as_tokens(tasks)

    def step(carry: Any, inputs: tuple[Params, jax.Array]) -> Any:
        x, y = carry
        at, gate = inputs
        gradient = jnp.einsum("BN,BNX->BX", y[:, :-1], x[:, :-1]) / count
        y = y - gate * at["rate"] * jnp.einsum("BX,BTX->BT", gradient, x)
        if corrected:
            second = jnp.einsum("BNX,BNK->BXK", x[:, :-1], x[:, :-1]) / count
            x = x - gate * at["correction"] * jnp.einsum("BXK,BTK->BTX", second, x)
        return (x, y), None

    (_, y), _ = jax.lax.scan(step, (tokens[..., :-1], tokens[..., -1]), (params, gates))
    return -y[:, -1]


def init_descent(corrected: bool, key: jax.Array, gates: jax.Array) -> Params:
    """Where tuning starts: different step sizes, for descent does not care for their order."""
    rate = 0.5 + 2.5 * (jnp.arange(gates.shape[0]) + 0.5) / jnp.sum(gates)
    return {"rate": rate} | ({"correction": jnp.zeros_like(gates)} if corrected else {})


# ----------------------------------------------------------------------------- one step an example


class Start(NamedTuple):
    """Where the numbers of an online optimizer start; eta 0 and alpha 1 stay.

    Attributes:
        eta, alpha: [].
    """

    eta: jax.Array
    alpha: jax.Array


def predict_online(loss: str, params: Params, start: Start, tasks: Tasks) -> jax.Array:
    """Predictions [B] of one causal layer of the linear family, read at the query.

    Keys keep their length, as the optimizers' inputs do. Only one number is read, so only that row
    of S is kept: the output projection is part of the values (the rows of S do not see each other
    under either loss).

    Args:
        loss: "dot" or "square".
        params: "key", "query" [D, D], "value" [D], "eta", "alpha", "beta" [].
        start: which of them the kind has.
        tasks: B of them.
    """
    tokens = as_tokens(tasks)
    k = tokens[:, :-1] @ params["key"]
    v = tokens[:, :-1] @ params["value"]
    q = tokens[:, -1] @ params["query"]
    eta, alpha = _numbers(params, start)
    state = context_state(loss, k, v[..., None], eta, alpha, params["beta"])
    return attention.dot("BVK,BK->BV", state, q, q.dtype)[:, 0]


def optax_predict(loss: str, params: Params, start: Start, tasks: Tasks) -> jax.Array:
    """Predictions [B] of a linear map that optax trains on the examples, one a step, from 0.

    Args:
        loss: "dot", -(w . x) y, or "square", (w . x - y)^2 / 2.
        params: "eta", "alpha", "beta" [].
        start: which of them the optimizer has.
        tasks: B of them.
    """
    eta, alpha = _numbers(params, start)
    # decayed weights after the step's size: S keeps alpha of itself, as in attention.py
    optimizer = optax.chain(
        optax.sgd(params["beta"], momentum=eta), optax.add_decayed_weights(alpha - 1)
    )

    def example_loss(w: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        predicted = w @ x
        return -predicted * y if loss == "dot" else (predicted - y) ** 2 / 2

    def step(carry: Any, example: tuple[jax.Array, jax.Array]) -> Any:
        w, state = carry
        updates, state = optimizer.update(jax.grad(example_loss)(w, *example), state, w)
        return (optax.apply_updates(w, updates), state), None

    def row(x: jax.Array, y: jax.Array, query: jax.Array) -> jax.Array:
        w = jnp.zeros_like(query)
        (w, _), _ = jax.lax.scan(step, (w, optimizer.init(w)), (x, y))
        return w @ query

    return jax.vmap(row)(tasks.x, tasks.y, tasks.query)


def _numbers(params: Params, start: Start) -> tuple[jax.Array, jax.Array]:
    eta = jnp.where(start.eta > 0, params["eta"], 0.0)
    return eta, jnp.where(start.alpha < 1, params["alpha"], 1.0)


def init_optax(key: jax.Array, start: Start) -> Params:
    """Where tuning of an online optimizer starts."""
    return {"eta": start.eta, "alpha": start.alpha, "beta": jnp.float32(0.1)}


def init_online(dims: int, key: jax.Array, start: Start) -> Params:
    """One random projection for keys and query, values of 0, and the numbers of `init_optax`.

    With projections of their own, some seeds never leave the plateau around 0.
    """
    width = dims + 1
    projection = jax.random.normal(key, (width, width)) / math.sqrt(width)
    projections = {"key": projection, "query": projection, "value": jnp.zeros(width)}
    return projections | init_optax(key, start)


def construct_online(dims: int, eta: jax.Array, alpha: jax.Array, beta: jax.Array) -> Params:
    """Weights with which a kind is its optimizer: keys and query x, values y."""
    only_x = jnp.diag(jnp.append(jnp.ones(dims), 0.0))
    value = jnp.append(jnp.zeros(dims), 1.0)
    numbers = {"eta": eta, "alpha": alpha, "beta": beta}
    return {"key": only_x, "query": only_x, "value": value} | numbers


# ---------------------------------------------------------------------------------------- families


def make_families(config: ConfigDict) -> dict[str, Family]:
    """All that the config trains, by name: deep kinds, their optimizers, online kinds, theirs."""
    gates = jnp.tril(jnp.ones((config.layers, config.layers)))
    depths = tuple(str(i + 1) for i in range(config.layers))
    families = {}
    for kind in config.families:
        scale = config.init_scale if kind == "linear" else config.softmax_init_scale
        init = functools.partial(init_deep, kind, config.dims, scale)
        predict = functools.partial(predict_deep, kind)
        families[kind] = Family(depths, init, predict, gates, config.learning_rate)
    for name, corrected in (("gd", False), ("gd++", True)):
        init = functools.partial(init_descent, corrected)
        predict = functools.partial(predict_descent, corrected)
        families[name] = Family(depths, init, predict, gates, config.tuning_rate)
    for loss in ("dot", "square"):
        names = tuple(n for n in config.online if attention.KINDS[n].loss == loss)
        if not names:
            continue
        start = _starts(names)
        init = functools.partial(init_online, config.dims)
        predict = functools.partial(predict_online, loss)
        families[f"online_{loss}"] = Family(names, init, predict, start, config.learning_rate)
        predict = functools.partial(optax_predict, loss)
        families[f"optax_{loss}"] = Family(names, init_optax, predict, start, config.tuning_rate)
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
            tasks = draw_tasks(tasks_key, config.batch, config.num_examples, config.dims)
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


# -------------------------------------------------------------------------------------- evaluation


class Measured(NamedTuple):
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
    return draw_tasks(jax.random.key(config.eval.seed), config.eval.tasks, most, config.dims)


def evaluate(family: Family, params: Params, tasks: Tasks, config: ConfigDict) -> Measured:
    """Measures a family's models of all seeds, a seed at a time, which bounds the memory."""
    counts = jnp.array(config.eval.examples)

    def model(params: Params, switch: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        def loss(count: jax.Array) -> jax.Array:
            predicted = family.predict(params, switch, keep_last(tasks, count))
            return jnp.mean((predicted - tasks.target) ** 2)

        def total(query: jax.Array) -> tuple[jax.Array, jax.Array]:
            shown = keep_last(tasks, config.num_examples)._replace(query=query)
            predicted = family.predict(params, switch, shown)
            return jnp.sum(predicted), predicted

        sensitivity, predicted = jax.grad(total, has_aux=True)(tasks.query)
        return jax.lax.map(loss, counts), predicted, sensitivity

    models = jax.vmap(model)
    measured = jax.jit(lambda p: jax.lax.map(lambda q: models(q, family.switches), p))(params)
    return Measured(*(np.asarray(x, np.float64) for x in measured))


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
    tasks = draw_tasks(jax.random.key(0), 512, config.num_examples, config.dims)
    gates = jnp.tril(jnp.ones((config.layers, config.layers)))
    rates = jnp.linspace(0.9, 0.3, config.layers)
    corrections = jnp.linspace(0.1, 0.3, config.layers)

    def layers(rates: jax.Array, corrections: jax.Array) -> jax.Array:
        params = construct(rates, corrections, config.dims)
        return jax.vmap(lambda g: predict_deep("linear", params, g, tasks))(gates)

    @jax.jit
    def deep() -> tuple[jax.Array, jax.Array]:
        steps = jax.vmap(lambda g: autodiff_descent(g * rates, tasks))(gates)
        both = {"rate": rates, "correction": corrections}
        corrected = jax.vmap(lambda g: predict_descent(True, both, g, tasks))(gates)
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
            start = _starts(names)
            errors = jax.jit(jax.vmap(functools.partial(_online_error, loss, tasks)))(start)
            for name, error in zip(names, errors.tolist(), strict=True):
                found.append({"model": name, "optimizer": optimizer_name(name), "error": error})
    return found


def _starts(names: Sequence[str]) -> Start:
    """The numbers of some kinds, stacked."""
    kinds = [attention.KINDS[n] for n in names]
    eta, alpha = (jnp.array([getattr(k, x) for k in kinds], jnp.float32) for x in Start._fields)
    return Start(eta, alpha)


def _online_error(loss: str, tasks: Tasks, start: Start) -> jax.Array:
    params = construct_online(tasks.x.shape[-1], start.eta, start.alpha, jnp.float32(0.1))
    ours = predict_online(loss, params, start, tasks)
    return jnp.abs(ours - optax_predict(loss, params, start, tasks)).max()


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


# ---------------------------------------------------------------------------------------- the job


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
            regression_report.write(path, results)
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
    models: dict[str, list[dict[str, Any]]] = {}
    for name, family in families.items():
        losses = np.mean((measured[name].predictions - target) ** 2, -1)
        models[name] = []
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
            models[name].append(model)
    return {
        "config": workdir.as_plain(config),
        "versions": {"jax": jax.__version__, "optax": optax.__version__},
        "zero_loss": float(np.mean(target**2)),
        "models": models,
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
