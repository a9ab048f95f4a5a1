"""The dual form, exact: attention of the linear family against the optax optimizer that it is.

Dai et al. 2023 (section 3) read attention to demonstrations as a linear layer that gradient
descent trains on them, and call it approximate. For the linear family it is an equality, which
this experiment measures: a layer S, zero at first, is trained by optax on the keys and values of
the demonstrations, one token a step, and read with a query after each step. The result must be
the attention's output, and the last S what the attention leaves behind (dW_ICL).

The second part measures that the forms of attention agree, forward and backward.

Shape glossary: L layers, T tokens of the demonstrations, G key/value heads, K key width, V value
width. For `icljax.attention` layers are rows (its B), each head has one query (its J is 1).
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict, config_dict
from rich.console import Console
from rich.table import Table
from rich.text import Text

from icljax import attention, checkpoints
from icljax.attention import Kind, Memory, Rates, Tokens, kernels, mixing
from icljax.comparison import settings
from icljax.comparison.job import prepare
from icljax.errors import UserError
from icljax.experiments import config as config_lib
from icljax.experiments.config import check_types, is_count, is_seed, require
from icljax.models.decoder import Decoder
from icljax.runtime import workdir
from icljax.runtime.progress import Stages
from icljax.types import Array

Results = dict[str, Any]

BARS = {"float64": 1e-10, "float32": 1e-5}
# How the examples of a row differ from the kind's own: each is applied to every kind.
VARIANTS = ("as named", "beta varies", "elu+1")
LITERATURE = {
    "linear": "linear attention (Katharopoulos et al. 2020, Schlag et al. 2021)",
    "linear_momentum": "heavy ball (Polyak 1964); compare EMA(V) of Dai et al. 2023",
    "retention": "RetNet (Sun et al. 2023)",
    "delta": "delta rule (Widrow and Hoff 1960); DeltaNet (Schlag et al. 2021, Yang et al. 2024)",
    "delta_momentum": "Titans' memory, linear (Behrouz et al. 2024)",
    "delta_decay": "near Gated DeltaNet (Yang et al. 2025), which takes the decayed S's error",
}
_SHARED = ("task", "template", "answers", "model", "num_demonstrations", "data", "prompt")
_OPTIMIZERS = ("optax.chain", "optax.sgd")


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


def default() -> ConfigDict:
    """Every field of the experiment, with its default."""
    config = ConfigDict()
    config.experiment = "dual"
    # "demonstrations": keys and values of the pretrained model's demonstrations; "random".
    config.source = "demonstrations"
    job = config_lib.default()
    for field in _SHARED:
        config[field] = job[field]
    config.seed = 1  # draws the demonstrations, and whatever else is random
    config.random = ConfigDict({"layers": 2, "tokens": 75, "heads": 2, "width": 16})

    # Kinds of the linear family, and numbers that replace those of every kind.
    config.attention = ConfigDict({"kind": ",".join(LITERATURE)})
    for field in ("eta", "alpha", "beta"):
        config.attention[field] = config_dict.placeholder(float)
    config.variants = VARIANTS
    config.chunk = attention.CHUNK
    config.parallel_tokens = 128  # the quadratic form gets the first so many tokens

    # Where the forms are compared with each other: the first tokens and the first layers.
    config.forms = ConfigDict({"tokens": 45, "layers": 4, "chunk": 8})
    # Kinds whose Pallas kernel is emulated too, which takes long to compile.
    config.forms.kernels = ("linear", "delta_momentum")
    return config


def validate(config: ConfigDict) -> None:
    """Checks what flags cannot.

    Raises:
        UserError: naming the field, what it is and what it may be.
    """
    check_types(config, default())
    require(config, "source", ("demonstrations", "random").__contains__, "demonstrations or random")
    require(config, "seed", is_seed, "a whole number, 0 or more, below 2^32")
    for key in ("layers", "tokens", "heads", "width"):
        require(config, f"random.{key}", is_count, "a whole number above 0")
    for key in ("parallel_tokens", "forms.tokens", "forms.layers"):
        require(config, key, is_count, "a whole number above 0")
    for key in ("chunk", "forms.chunk"):
        require(config, key, lambda v: v > 0 and v & (v - 1) == 0, "a power of 2")
    allowed = f"some of {', '.join(VARIANTS)}"
    require(config, "variants", lambda v: v and set(v) <= set(VARIANTS), allowed)
    allowed = f"some of {', '.join(LITERATURE)}"
    require(config, "forms.kernels", lambda v: set(v) <= LITERATURE.keys(), allowed)
    kinds(config)
    config_lib.validate(_job_config(config))


def kinds(config: ConfigDict) -> dict[str, Kind]:
    """The kinds that are asked for, by name.

    Raises:
        UserError: for an unknown one, one outside the linear family, a number out of range.
    """
    names = [name.strip() for name in config.attention.kind.split(",")]
    found = dict(zip(names, mixing.parse_kinds(config.attention) or (), strict=False))
    outside = [n for n, kind in found.items() if kind.base != "linear" or kind.ema]
    if outside or not found:
        raise UserError(
            f"config.attention.kind is {config.attention.kind!r}; the dual form is exact for some "
            f"of {', '.join(LITERATURE)} alone: --config.attention.kind=..."
        )
    return found


def _job_config(config: ConfigDict) -> ConfigDict:
    """The comparison whose demonstrations are used."""
    job = config_lib.default()
    for field in _SHARED:
        job[field] = config[field]
    job.seeds = (config.seed,)
    return job


# ---------------------------------------------------------------------------------------- examples


def random_examples(config: ConfigDict) -> Examples:
    """Independent normal vectors in the shapes of `config.random`."""
    rng = np.random.default_rng(config.seed)
    r = config.random
    q, k, v = rng.standard_normal((3, r.layers, r.tokens, r.heads, r.width))
    return Examples(q, k, v, rng.uniform(0.5, 1, k.shape[:3]))


def demonstration_examples(config: ConfigDict, stages: Stages) -> Examples:
    """Keys and values of the demonstrations' tokens (no BOS, no separators) in every layer.

    A token's query is the next token's key, a real vector whose answer no step has just set.
    """
    with stages.stage("model", "model (fetched and converted once)", 1) as bar:
        checkpoint = checkpoints.open_checkpoint(config.model, bar.at)
    with stages.stage("prompts", "demonstrations", 1):
        demonstrations = prepare(_job_config(config), checkpoint, stages.note).demonstrations
    with stages.stage("encode", "weights, keys and values", 1):
        decoder = dataclasses.replace(checkpoint.config, dtype="float32")
        params = checkpoints.load_params(checkpoint.folder, decoder)
        encode = jax.jit(functools.partial(settings.encode, Decoder(decoder)))
        state = encode(params, demonstrations.context[0], demonstrations.context_valid[0])
        columns = demonstrations.columns[0][np.asarray(demonstrations.example[0]) >= 0]
        k, v = (np.asarray(x, np.float64)[:, columns] for x in (state.keys, state.values))
    vary = np.random.default_rng(config.seed).uniform(0.5, 1, k.shape[:3])
    return Examples(np.roll(k, -1, 1), k, v, vary)


def prepared(kind: Kind, variant: str, examples: Examples, dtype: Any) -> tuple[Any, ...]:
    """(q, k, v, beta) as a layer of this kind and variant sees them, in `dtype`."""
    q, k, v, vary = (jnp.asarray(x, dtype) for x in examples)
    features = mixing.FEATURE_MAPS["elu+1" if variant == "elu+1" else kind.feature_map]
    q, k = features(q), features(k)
    if kind.unit_keys:
        k = k / jnp.linalg.norm(k, axis=-1, keepdims=True)
    beta = kind.beta * (vary if variant == "beta varies" else jnp.ones_like(vary))
    return q, k, v, beta


# ------------------------------------------------------------------------------------ the two sides


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


# ------------------------------------------------------------------------------------- measurements


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


# --------------------------------------------------------------------------------------- experiment


@workdir.one_job
def run(config: ConfigDict, path: Path, console: Console) -> Results:
    """Measures every equality, or returns what the folder already holds.

    Raises:
        UserError: for whatever is wrong with what the user gave.
    """
    found = kinds(config)
    rows = [(name, variant) for name in found for variant in config.variants]
    # Elsewhere than on a CPU, float32 products are rounded to less unless it is asked for.
    with Stages(console) as stages, jax.default_matmul_precision("highest"):
        if config.source == "random":
            examples = random_examples(config)
        else:
            examples = demonstration_examples(config, stages)
        dual = []
        with stages.stage("dual", "attention against optax", len(rows)) as advance:
            for name, variant in rows:
                measured = measure_dual(found[name], variant, examples, config)
                dual.append({"kind": name, "variant": variant, **measured})
                advance(1)
        forms = []
        with stages.stage("forms", "forms of attention", len(found) + 1) as advance:
            for name in found:
                compared = FORMS[1:] if name in config.forms.kernels else FORMS[1:-1]
                measured = measure_forms(found[name], compared, examples, config)
                forms += summarize_forms(name, measured)
                advance(1)
            forms += summarize_forms("EMA(V)", measure_ema(examples, config))
    results = {
        "experiment": "dual",
        "config": workdir.as_plain(config),
        "versions": {"jax": jax.__version__, "optax": optax.__version__},
        "examples": dict(zip("LTGK", np.shape(examples.k), strict=True)),
        "bars": BARS,
        "kinds": {name: describe(kind) for name, kind in found.items()},
        "dual": dual,
        "forms": forms,
        "holds": all(r[d]["holds"] for r in dual for d in BARS) and all(r["holds"] for r in forms),
        "seconds": stages.seconds,
    }
    workdir.write_atomically(path / "report.md", markdown(results).encode())
    workdir.save_results(path, results)
    return results


# -------------------------------------------------------------------------------------------- words


def describe(kind: Kind) -> dict[str, str]:
    """The optimizer that a kind is: loss, update, optax code, and in words."""
    written = "v k'" if kind.loss == "dot" else "(v - S k) k'"
    m = f"{kind.eta:g} M + " if kind.eta else ""
    beta = "" if kind.beta == 1 else f"{kind.beta:g} "
    s = "S" if kind.alpha == 1 else f"{kind.alpha:g} S"
    update = f"M = {m}{beta}{written}, S = {s} + M" if kind.eta else f"S = {s} + {beta}{written}"
    words = "gradient descent" if kind.loss == "dot" else "online least squares"
    extra = [f"momentum {kind.eta:g}"] * bool(kind.eta)
    extra += [f"weight decay {1 - kind.alpha:.3g}"] * (kind.alpha < 1)
    return {
        "loss": "-<S k, v>" if kind.loss == "dot" else "|S k - v|^2 / 2",
        "update": update,
        "optax": _optax_code(kind),
        "words": words + (f", {' and '.join(extra)}" if extra else ""),
    }


def _optax_code(kind: Kind) -> str:
    """What a user would write for a constant beta."""
    momentum = f", momentum={kind.eta:g}" if kind.eta else ""
    if kind.alpha == 1:
        return f"sgd({kind.beta:g}{momentum})"
    trace = f", trace({kind.eta:g})" if kind.eta else ""
    return f"chain(scale(-{kind.beta:g}){trace}, add_decayed_weights(-{1 - kind.alpha:.3g}))"


def _small(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.1e}"


def _holds(row: Results) -> bool:
    return all(row[dtype]["holds"] for dtype in BARS)


def _verdict(holds: bool) -> Text:
    return Text("yes", "green") if holds else Text("FAILS", "bold red")


def _headline(results: Results) -> str:
    dual, forms = results["dual"], results["forms"]
    text = (
        f"Attention is the optimizer in {sum(map(_holds, dual))} of {len(dual)} rows; "
        f"the forms agree in {sum(r['holds'] for r in forms)} of {len(forms)}."
    )
    return text if results["holds"] else f"FAILS: {text}"


def _source_text(results: Results) -> str:
    config, n = results["config"], results["examples"]
    where = "random vectors"
    if config["source"] != "random":
        where = f"keys and values of {config['task'].upper()} demonstrations in {config['model']}"
    return f"{where}: {n['T']} tokens, {n['L']} layers, {n['G']} heads, width {n['K']}"


def _cells(results: Results) -> tuple[list[list[Any]], list[list[Any]]]:
    """The rows of both tables: attention against optax, and the forms."""
    dual = [
        [
            row["kind"],
            row["variant"],
            results["kinds"][row["kind"]]["words"],
            *(_small(row[dtype]["largest"]) for dtype in BARS),
            _verdict(_holds(row)),
        ]
        for row in results["dual"]
    ]
    forms = [
        [
            row["kind"],
            row["form"],
            *(
                _small(row["largest"][part]) if part in row["largest"] else "-"
                for part in ("output", "state", "gradient")
            ),
            _verdict(row["holds"]),
        ]
        for row in results["forms"]
    ]
    return dual, forms


_DUAL_COLUMNS = ("kind", "examples", "optimizer", "float64", "float32", "holds")
_FORM_COLUMNS = ("kind", "form", "output", "state", "gradient", "holds")


def show(results: Results, path: Path, console: Console) -> None:
    """Prints both tables of differences, failures in red, and where the report is."""
    dual, forms = _cells(results)
    bars = " and ".join(f"{bar:g} in {dtype}" for dtype, bar in BARS.items())
    title = f"Attention = optimizer, largest relative difference (bars {bars})"
    console.print(_console_table(title, _DUAL_COLUMNS, dual))
    title = f"Forms, largest relative difference from recurrent (bar {BARS['float32']:g})"
    console.print(_console_table(title, _FORM_COLUMNS, forms))
    console.print(Text(f"On {_source_text(results)}.", "dim"))
    console.print(Text(_headline(results), "bold" if results["holds"] else "bold red"))
    console.print(Text(f"Report: {path / 'report.md'}", "bold"), soft_wrap=True)


def _console_table(title: str, columns: tuple[str, ...], rows: list[list[Any]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < 2 or column == "optimizer" else "right")
    previous = None
    for row in rows:
        table.add_row("" if row[0] == previous else row[0], *row[1:])
        previous = row[0]
    return table


def markdown(results: Results) -> str:
    """The report."""
    dual, forms = _cells(results)
    optimizers = [
        [
            name,
            *(f"`{d[key]}`" for key in ("loss", "update", "optax")),
            d["words"],
            LITERATURE[name],
        ]
        for name, d in results["kinds"].items()
    ]
    header = ("kind", "in-context loss", "update", "optax", "optimizer", "known as")
    sections = (
        "# Attention is an optimizer: the dual form, exact",
        f"**{_headline(results)}** On {_source_text(results)}.",
        "## Attention kind = optimizer",
        _markdown_table(header, optimizers),
        "## Attention against optax",
        "Largest relative difference, max |a - b| / max |b| of a layer and head, of the recurrent, "
        "chunked and parallel forms' outputs S_t q_t and of the last S from a linear layer that "
        "optax trained, one token a step. Bars: "
        + ", ".join(f"{bar:g} in {dtype}" for dtype, bar in BARS.items())
        + ". *beta varies*: another step size at every token. *elu+1*: that feature map.",
        _markdown_table(_DUAL_COLUMNS, dual),
        "## Forms of attention",
        "Largest relative difference from the recurrent form in float32, of outputs, of the last S "
        "and of gradients by each input, over three prompts: from nothing, continued from a state, "
        f"and with holes. Bar: {BARS['float32']:g}.",
        _markdown_table(_FORM_COLUMNS, forms),
    )
    return "\n\n".join(sections) + "\n"


def _markdown_table(header: tuple[str, ...], rows: list[list[Any]]) -> str:
    lines = [list(header), ["---"] * len(header), *rows]
    cells = ([str(c).replace("|", "\\|") for c in line] for line in lines)  # a bar ends a cell
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
