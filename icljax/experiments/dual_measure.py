"""The dual form: attention and optax side by side, and the forms of attention among themselves.

A linear layer S, zero at first, is trained by optax on keys and values, one token a step, and read
with a query after each step; attention of the linear family must give the same.

Shape glossary: as in icljax/experiments/dual.py.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from icljax import attention
from icljax.attention import Kind, Memory, Rates, Tokens, kernels, mixing
from icljax.types import Array

Results = dict[str, Any]

BARS = {"float64": 1e-10, "float32": 1e-5}
# How the examples of a row differ from the kind's own: each is applied to every kind.
VARIANTS = ("as named", "beta varies", "elu+1")


class Examples(NamedTuple):
    """What the layer is trained on and read with, before any feature map; NumPy, float64.

    Attributes:
        q, k: [L, T, G, K].
        v: [L, T, G, V].
        vary: [L, T, G], in [1/2, 1): factors of a beta that differs from token to token.
    """

    q: Array
    k: Array
    v: Array
    vary: Array


class Trained(NamedTuple):
    """A layer after training, by an optimizer or by attention.

    Attributes:
        out: [L, T, G, V], what it gives for each token's query, after that token's step.
        s: [L, G, V, K], its weights in the end; None where a form does not leave them.
    """

    out: jax.Array
    s: jax.Array | None


def prepared(kind: Kind, variant: str, examples: Examples, dtype: Any) -> tuple[Any, ...]:
    """(q, k, v, beta) as a layer of this kind and variant sees them, in `dtype`."""
    q, k, v, vary = (jnp.asarray(x, dtype) for x in examples)
    features = mixing.FEATURE_MAPS["elu+1" if variant == "elu+1" else kind.feature_map]
    q, k = features(q), features(k)
    if kind.unit_keys:
        k = k / jnp.linalg.norm(k, axis=-1, keepdims=True)
    beta = kind.beta * (vary if variant == "beta varies" else jnp.ones_like(vary))
    return q, k, v, beta


def in_context_loss(loss: str, s: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Of one example k [K], v [V] on the layer s [V, K]: -<S k, v>, or |S k - v|^2 / 2."""
    return -jnp.vdot(s @ k, v) if loss == "dot" else jnp.sum((s @ k - v) ** 2) / 2


def matching_optimizer(kind: Kind, beta: jax.Array) -> optax.GradientTransformation:
    """M = eta M - beta_t g and S = alpha S + M, of optax's own parts; the order is theirs.

    Decay comes after momentum, so that M never holds any of it (decoupled, as in AdamW).

    Args:
        beta: [T], the step sizes.
    """
    parts = [optax.scale_by_schedule(lambda step: -beta[step])]
    if kind.eta:
        parts.append(optax.trace(decay=kind.eta))
    if kind.alpha < 1:
        parts.append(optax.add_decayed_weights(-(1 - kind.alpha)))
    return optax.chain(*parts)


def plain_sgd(kind: Kind, beta: jax.Array) -> optax.GradientTransformation:
    """`optax.sgd` itself, for a constant beta and no decay."""
    return optax.sgd(beta[0], momentum=kind.eta or None)


@functools.partial(jax.jit, static_argnums=(0, 1))
def train(
    optimizer: Callable[[Kind, jax.Array], optax.GradientTransformation],
    kind: Kind,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    beta: jax.Array,
) -> Trained:
    """Trains a linear layer for every layer and head of the model, one example a step.

    Args:
        optimizer: `matching_optimizer` or `plain_sgd`.
        q, k: [L, T, G, K].
        v: [L, T, G, V].
        beta: [L, T, G].
    """

    def head(q: jax.Array, k: jax.Array, v: jax.Array, beta: jax.Array) -> Any:
        rule = optimizer(kind, beta)

        def step(carry: Any, example: Any) -> Any:
            s, state = carry
            q, k, v = example
            gradient = jax.grad(in_context_loss, argnums=1)(kind.loss, s, k, v)
            updates, state = rule.update(gradient, state, s)
            s = optax.apply_updates(s, updates)
            return (s, state), s @ q

        s = jnp.zeros((v.shape[-1], k.shape[-1]), v.dtype)
        (s, _), out = jax.lax.scan(step, (s, rule.init(s)), (q, k, v))
        return out, s

    return Trained(*jax.vmap(jax.vmap(head, 1, (1, 0)))(q, k, v, beta))


class Inputs(NamedTuple):
    """All that a form of attention may be differentiated by; shapes as in `icljax.attention`."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    eta: jax.Array
    alpha: jax.Array
    beta: jax.Array
    s: jax.Array
    m: jax.Array


def inputs(kind: Kind, q: jax.Array, k: jax.Array, v: jax.Array, beta: jax.Array) -> Inputs:
    """`prepared` arrays with the kind's numbers and nothing before the first token."""
    groups = k.shape[2]
    zero = jnp.zeros((groups, v.shape[-1], k.shape[-1]), k.dtype)
    eta, alpha = (jnp.full((groups,), x, k.dtype) for x in (kind.eta, kind.alpha))
    return Inputs(q[:, :, :, None], k, v, eta, alpha, beta, zero, zero)


def structure(kind: Kind) -> Kind:
    """What of a kind a form looks at, the rest being in its inputs: saves compilations."""
    return Kind("linear", kind.loss, eta=0.5 if attention.has_momentum(kind) else 0.0)


FORMS = ("recurrent", "chunked", "parallel", "pallas_interpret")


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def attend(
    form: str, kind: Kind, chunk: int, given: Inputs, valid: jax.Array | None = None
) -> Trained:
    """The attention in one of `FORMS`; outputs of tokens that are not `valid` are 0.

    Args:
        kind: of `structure`.
        valid: bool [L, T], False for tokens that take no step.
    """
    ema = jnp.zeros(given.s.shape[:2], given.s.dtype)
    memory = Memory(given.s, given.m, ema)
    rates = Rates(given.eta, given.alpha, given.beta, jnp.zeros_like(given.eta))
    tokens, s = Tokens(given.q, given.k, given.v), None
    if form == "parallel":
        steps, visible, keep = causal(given.k.shape[:2], valid)
        rates = rates._replace(beta=jnp.where(keep[:, :, None], rates.beta, 0))
        out = attention.parallel(kind, *tokens, rates, steps, visible, memory)
    elif form == "recurrent":
        out, (s, _, _) = attention.recurrent(kind, *tokens, rates, valid, memory)
    else:
        implementation = form if form.startswith("pallas") else "xla"
        out, (s, _, _) = kernels.chunked(kind, tokens, rates, valid, memory, chunk, implementation)
    out = out[:, :, :, 0]
    return Trained(out if valid is None else jnp.where(valid[:, :, None, None], out, 0), s)


def causal(
    shape: tuple[int, ...], valid: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(steps [L, T], visible [L, T, T], valid [L, T]) of a causal prompt."""
    valid = jnp.ones(shape, bool) if valid is None else valid
    lower = jnp.tril(jnp.ones((shape[1], shape[1]), bool))
    return jnp.cumsum(valid, 1), lower[None] & valid[:, None, :], valid


def difference(a: Any, b: Any, axes: tuple[int, ...] | None = None) -> float:
    """The largest of max |a - b| / max |b|, both over `axes` (all, if None).

    0 / 0 is 0: where both are nothing, they agree.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    apart, size = np.max(np.abs(a - b), axes), np.max(np.abs(b), axes)
    return float(np.max(np.where(apart == 0, 0.0, apart / np.maximum(size, 1e-300))))


def measure_dual(kind: Kind, variant: str, examples: Examples, config: ConfigDict) -> Results:
    """Largest relative differences of attention from optax, over layers and heads, by dtype."""
    measured: Results = {}
    for dtype, bar in BARS.items():
        with jax.enable_x64(dtype == "float64"):
            arrays = prepared(kind, variant, examples, dtype)
            trained = {"optax.chain": train(matching_optimizer, _numbers(kind), *arrays)}
            if kind.alpha == 1 and variant != "beta varies":
                trained["optax.sgd"] = train(plain_sgd, _numbers(kind), *arrays)
            given = inputs(kind, *arrays)
            few = min(config.parallel_tokens, arrays[1].shape[1])
            short = inputs(kind, *(x[:, :few] for x in arrays))
            found = {
                f"{form} to {name}": _apart(
                    attend(form, structure(kind), config.chunk, x), reference
                )
                for form, x in (("recurrent", given), ("chunked", given), ("parallel", short))
                for name, reference in trained.items()
            }
        largest = max((x for pair in found.values() for x in pair.values()), key=_badness)
        measured[dtype] = {"largest": _finite(largest), "differences": _finite(found)}
        measured[dtype]["holds"] = bool(largest < bar)
    return measured


def _numbers(kind: Kind) -> Kind:
    """What of a kind training looks at: variants share its compilation."""
    return Kind("linear", kind.loss, eta=kind.eta, alpha=kind.alpha)


def _apart(form: Trained, reference: Trained) -> dict[str, float]:
    """Differences of each head's outputs over tokens, and of its weights in the end."""
    found = {"output": difference(form.out, reference.out[:, : form.out.shape[1]], (1, 3))}
    if form.s is not None:
        found["state"] = difference(form.s, reference.s, (2, 3))
    return found


@functools.partial(jax.jit, static_argnames=("form", "kind", "chunk"))
def _pulled_back(
    form: str, kind: Kind, chunk: int, given: Inputs, valid: jax.Array | None, weights: jax.Array
) -> tuple[Trained, Inputs]:
    """A form's result, and the gradient of <its outputs, weights> by all of its inputs."""

    def objective(given: Inputs) -> tuple[jax.Array, Trained]:
        result = attend(form, kind, chunk, given, valid)
        return jnp.sum(result.out * weights), result

    (_, result), gradient = jax.value_and_grad(objective, has_aux=True)(given)
    return result, gradient


def measure_forms(
    kind: Kind, forms: tuple[str, ...], examples: Examples, config: ConfigDict
) -> Results:
    """Largest relative differences of the other forms from the recurrent one, in float32.

    Three prompts: from nothing, continued from a state, and continued with holes in the prompt.
    Of gradients, each input's counts by itself.

    Args:
        forms: which of `FORMS`.
    """
    layers, tokens = (slice(config.forms.layers), slice(config.forms.tokens))
    few = Examples(*(x[layers, tokens] for x in examples))
    given = inputs(kind, *prepared(kind, "beta varies", few, "float32"))
    rng = np.random.default_rng(config.seed)
    past = (jnp.asarray(rng.standard_normal(given.s.shape), jnp.float32) for _ in "sm")
    continued = given._replace(**dict(zip("sm", past, strict=True)))
    holes = jnp.asarray(rng.uniform(size=given.k.shape[:2]) < 0.7)
    weights = jnp.asarray(rng.standard_normal(given.v.shape), jnp.float32)
    everything = jnp.ones(given.k.shape[:2], bool)
    prompts = {
        "whole": (given, everything),
        "continued": (continued, everything),
        "holes": (continued, holes),
    }
    found: Results = {form: {} for form in forms}
    for name, (x, valid) in prompts.items():
        run = functools.partial(_pulled_back, kind=structure(kind), chunk=config.forms.chunk)
        expected = run("recurrent", given=x, valid=valid, weights=weights)
        for form in forms:
            mask: jax.Array | None = valid
            if form == "pallas_interpret":
                if name == "holes":
                    continue  # the kernels take no mask; `kernels.chunked` then is the chunked form
                mask = None
            result = run(form, given=x, valid=mask, weights=weights)
            found[form][name] = _compared(kind, result, expected)
    return found


def _compared(
    kind: Kind, result: tuple[Trained, Inputs], expected: tuple[Trained, Inputs]
) -> Results:
    """Differences of outputs, of the state and of the gradients."""
    out = {"output": difference(result[0].out, expected[0].out)}
    if result[0].s is not None:
        out["state"] = difference(result[0].s, expected[0].s)
    fields = [f for f in Inputs._fields if f not in ("eta", "m") or attention.has_momentum(kind)]
    gradients = {f: difference(getattr(result[1], f), getattr(expected[1], f)) for f in fields}
    return out | {f"gradient of {f}": x for f, x in gradients.items()}


def measure_ema(examples: Examples, config: ConfigDict) -> Results:
    """The same for EMA(V): chunked and parallel from recurrent, continued from a state."""
    v = jnp.asarray(examples.v[: config.forms.layers, : config.forms.tokens], jnp.float32)
    rng, chunk = np.random.default_rng(config.seed), config.forms.chunk
    eta = jnp.linspace(0.3, 0.95, v.shape[2])
    before, weights = (
        jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in (v.shape[2:], v.shape)
    )
    steps, visible, valid = causal(v.shape[:2], None)
    programs: dict[str, Callable[..., Any]] = {
        "recurrent": lambda v, eta, before: attention.ema_recurrent(v, eta, valid, before)[0],
        "chunked": lambda v, eta, before: attention.ema_chunked(v, eta, before, chunk)[0],
        "parallel": lambda v, eta, before: attention.ema_parallel(v, eta, steps, visible, before),
    }

    def pull_back(program: Callable[..., Any]) -> Any:
        out, back = jax.vjp(program, v, eta, before)
        return dict(zip(("output", *_EMA_GRADIENTS), (out, *back(weights)), strict=True))

    expected = jax.jit(functools.partial(pull_back, programs["recurrent"]))()
    found = {}
    for form in ("chunked", "parallel"):
        result = jax.jit(functools.partial(pull_back, programs[form]))()
        found[form] = {"continued": {n: difference(result[n], expected[n]) for n in expected}}
    return found


_EMA_GRADIENTS = ("gradient of v", "gradient of eta", "gradient of before")


def _finite(value: Any) -> Any:
    """A number, or numbers of a tree, as JSON holds them: None where one is not finite."""
    return jax.tree.map(lambda x: float(x) if np.isfinite(x) else None, value)


def _badness(value: float) -> float:
    """NaN is worse than any number."""
    return value if np.isfinite(value) else np.inf


def summarize_forms(name: str, found: Results) -> list[Results]:
    """One row a form: its largest differences, and whether all are below the bar."""
    rows = []
    for form, prompts in found.items():
        parts: dict[str, float] = {}
        for numbers in prompts.values():
            for key, value in numbers.items():
                part = key.split(" ")[0]
                parts[part] = max(parts.get(part, 0.0), value, key=_badness)
        holds = all(x < BARS["float32"] for x in parts.values())
        row = {"kind": name, "form": form, "largest": _finite(parts), "holds": holds}
        rows.append(row | {"differences": _finite(prompts)})
    return rows
