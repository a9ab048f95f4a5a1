"""The chunked form of `icljax.attention` as Pallas kernels, and the choice between its forms.

`chunked` is the one place where a platform gets its implementation. The kernels hold no formula
of their own: a chunk is `attention.write` and `attention.read`, with the weights that
`attention.decay` computes once outside, and its gradient is `jax.vjp` of the same function, taken
inside the backward kernel. One kernel body serves TPU and GPU. On TPU a program is one chunk and
the grid's last axis runs over chunks in order, S and M staying in VMEM; on GPU (Pallas Triton) a
program is one head and loops over its chunks.

The TPU kernel is compiled ahead of time for v5e and the GPU kernel for sm_90, but neither has run
on its device. JAX 0.11 deprecates Triton in favour of Mosaic GPU, which has no float32 products
and so cannot hold `write` and `read`; jax-linear-attention has such kernels, and is a choice here.

Shape glossary: as in `icljax.attention` (B, S, C, N, G, J, K, V); H = B * G heads of all rows, P
chunks of one program. Kernels take head-major arrays whose last two axes are never cut: one a
chunk [H, N, C, K or V] (beta [H, N, 1, C]), one a head [H, V, K], one a key/value head [G, ., .].
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from icljax import attention
from icljax.attention import CHUNK, Decay, Kind, Memory, Rates
from icljax.errors import UserError

IMPLEMENTATIONS = (
    "auto",
    "xla",
    "pallas",
    "pallas_tpu",
    "pallas_gpu",
    "pallas_interpret",
    "jla",
)


# The fields of `Decay` that hold one weight a token.
ROWS = ("now_s", "now_m", "before_s", "before_m", "end", "end_momentum")


class Inputs(NamedTuple):
    """What the tokens bring; `q` holds one array for each of the group's J query heads."""

    q: tuple[Any, ...]
    k: Any
    v: Any
    beta: Any


class State(NamedTuple):
    """S and M; `m` is None where the kind has no momentum."""

    s: Any
    m: Any


class Plan(NamedTuple):
    """What a kernel is specialised on.

    Attributes:
        loss: the in-context loss, "dot" or "square".
        momentum: whether M takes part.
        target: "tpu", "gpu" or "interpret".
    """

    loss: str
    momentum: bool
    target: str


def chunked(
    kind: Kind,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    rates: Rates,
    valid: jax.Array | None,
    memory: Memory,
    chunk: int = CHUNK,
    implementation: str = "auto",
) -> tuple[jax.Array, Memory]:
    """`attention.chunked` by the implementation that suits the platform.

    A `valid` mask always takes the XLA form, because then each row and chunk has its own weights.
    So do the tokens past the last whole chunk, continuing from the kernel's state: a padded step
    would not be free where alpha < 1 or eta > 0.

    Args:
        kind, q, k, v, rates, valid, memory, chunk: as in `attention.chunked`; the GPU kernel has
            its own chunk, which changes the rounding only.
        implementation: "auto": Pallas on TPU, XLA elsewhere (the GPU kernel has never been timed
            on a GPU). "xla": `attention.chunked`. "pallas": the platform's kernel; "pallas_tpu"
            and "pallas_gpu" name it, for ahead-of-time compilation; "pallas_interpret" emulates
            it anywhere. "jla": the package jax-linear-attention, for kinds without momentum;
            alpha = 1 that `kind` does not learn gets no gradient there.

    Returns:
        (out [B, S, G, J, V], Memory with a leading B axis), as `attention.chunked`.

    Raises:
        UserError: for an unknown implementation, "pallas" on another platform than TPU or GPU or
            with `jax_enable_x64`, and "jla" where it is not installed or does not compute `kind`.
    """
    chosen = _choose(implementation)
    if chosen == "jla":
        return _jla(kind, q, k, v, rates, valid, memory, chunk)
    size = _gpu_chunk(k, v) if chosen == "gpu" else chunk
    whole = k.shape[1] // size * size
    if chosen == "xla" or valid is not None or not whole:
        return attention.chunked(kind, q, k, v, rates, valid, memory, chunk)
    tokens = (q, k, v, rates.beta)
    plan = Plan(kind.loss, attention.has_momentum(kind), chosen)
    out, state = _whole_chunks(plan, tuple(x[:, :whole] for x in tokens), rates, memory, size)
    if whole == k.shape[1]:
        return out, state
    rest, state = _rest(kind, tuple(x[:, whole:] for x in tokens), rates, state, chunk)
    return jnp.concatenate([out, rest], 1), state


def _choose(implementation: str) -> str:
    """The implementation's target: "xla", "jla" or a `Plan.target`."""
    if implementation not in IMPLEMENTATIONS:
        known = ", ".join(IMPLEMENTATIONS)
        raise UserError(f"implementation is {implementation!r}; choose one of {known}")
    platform = jax.default_backend()
    double = jax.config.read("jax_enable_x64")  # Mosaic does not take its 64-bit indices
    if implementation == "auto":
        return "tpu" if platform == "tpu" and not double else "xla"
    if implementation == "pallas" and platform not in ("tpu", "gpu"):
        raise UserError(
            f"implementation 'pallas' has no kernel for {platform!r}; use 'auto' or 'xla', or "
            "'pallas_interpret' to emulate the kernel"
        )
    target = platform if implementation == "pallas" else implementation.removeprefix("pallas_")
    if double and target in ("tpu", "gpu"):
        raise UserError(
            f"implementation {implementation!r} has no kernel while jax_enable_x64 is on; "
            "use 'auto' or 'xla', or switch it off"
        )
    return target


def _gpu_chunk(k: jax.Array, v: jax.Array) -> int:
    """C of the GPU kernel: the most whose backward pass fits the shared memory of a program.

    Triton counts, for float32 with momentum and the square loss on sm_90, 144 KiB for C = 32 and
    464 KiB for C = 64 at K = V = 64, and 195 KiB for C = 16 at K = V = 128; an H100 has 227 KiB.
    """
    return 32 if max(k.shape[-1], v.shape[-1]) <= 64 else 16


def _whole_chunks(
    plan: Plan, tokens: tuple[jax.Array, ...], rates: Rates, memory: Memory, chunk: int
) -> tuple[jax.Array, Memory]:
    """`chunked` by a kernel, for a length that is a multiple of `chunk`."""
    q, k, v, beta = tokens
    (batch, length, groups, width), values = k.shape, v.shape[-1]
    dtype = attention.accumulator(q.dtype)

    def heads(x: jax.Array) -> jax.Array:  # [B, S, G, K] -> [H, N, C, K]
        x = jnp.moveaxis(x, 2, 1).reshape(batch * groups, length // chunk, chunk, -1)
        return _widen(x, plan.target, 1)

    def start(x: jax.Array) -> jax.Array:  # [G, V, K] -> [H, V, K]
        x = jnp.broadcast_to(x.astype(dtype), (batch, *x.shape))
        return _widen(x.reshape(batch * groups, values, width), plan.target, 2)

    def end(x: jax.Array) -> jax.Array:  # [H, V, K] -> [B, G, V, K]
        return x.reshape(batch, groups, *x.shape[1:])[..., :values, :width]

    rows = jnp.moveaxis(beta, 2, 1).reshape(batch * groups, length // chunk, 1, chunk)
    group = tuple(heads(q[:, :, :, j]) for j in range(q.shape[3]))
    first = State(start(memory.s), start(memory.m))
    state = first if plan.momentum else State(first.s, None)
    weights = _weights(rates, chunk)
    out, last = _scan(plan, weights, Inputs(group, heads(k), heads(v), rows), state)
    # M of a kind without momentum leaves as it came.
    s, m = end(last.s), end(last.m if plan.momentum else first.m)
    out = jnp.stack(out, 3).reshape(batch, groups, length, q.shape[3], -1)[..., :values]
    return jnp.moveaxis(out, 1, 2), Memory(s, m, memory.ema)


def _rest(
    kind: Kind, tokens: Any, rates: Rates, state: Memory, chunk: int
) -> tuple[jax.Array, Memory]:
    """The XLA form on the last tokens, each row from its own S and M."""

    def row(*arrays: Any) -> Any:
        q, k, v, beta = (x[None] for x in arrays[:4])
        memory = state._replace(s=arrays[4], m=arrays[5])
        own = rates._replace(beta=beta)
        out, end = attention.chunked(kind, q, k, v, own, None, memory, chunk)
        return out[0], end.s[0], end.m[0]

    out, s, m = jax.vmap(row)(*tokens, state.s, state.m)
    return out, Memory(s, m, state.ema)


def _jla(
    kind: Kind,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    rates: Rates,
    valid: jax.Array | None,
    memory: Memory,
    chunk: int,
) -> tuple[jax.Array, Memory]:
    """`chunked` by jax-linear-attention: its kernels on Hopper GPUs, its XLA form elsewhere.

    Its "simple_gla" is our dot loss on values beta v. Its gated delta rule takes the error of the
    decayed state, a S + b (v' - a S k) k^T; with a = alpha, b = beta / alpha and v' = alpha v that
    is our alpha S + beta (v - S k) k^T.
    """
    op, gates, values = _jla_inputs(kind, v, rates, valid)
    group, dtype = q.shape[3], attention.accumulator(q.dtype)

    def repeat(x: jax.Array) -> jax.Array:  # its query heads have a key and a value each
        return jnp.repeat(x, group, 2)

    start = jnp.repeat(memory.s.astype(dtype).swapaxes(-1, -2), group, 0)
    out, end = _import_jla().linear_attention(
        op,
        q.reshape(*q.shape[:2], -1, q.shape[-1]),
        repeat(k),
        repeat(values),
        **{name: repeat(gate) for name, gate in gates.items()},
        scale=1.0,
        initial_state=jnp.broadcast_to(start, (k.shape[0], *start.shape)),
        output_final_state=True,
        chunk_size=chunk,
    )
    m = jnp.broadcast_to(memory.m.astype(dtype), (k.shape[0], *memory.m.shape))
    state = Memory(end[:, ::group].swapaxes(-1, -2), m, memory.ema)
    return out.reshape(*q.shape[:4], -1).astype(dtype), state


def _jla_inputs(
    kind: Kind, v: jax.Array, rates: Rates, valid: jax.Array | None
) -> tuple[str, dict[str, jax.Array], jax.Array]:
    """(jla's name of `kind`, its gates [B, S, G], its values), or a UserError if it has none."""
    if attention.has_momentum(kind) or v.dtype == jnp.float64:
        raise UserError(
            "implementation 'jla' computes kinds without momentum in float32 or bfloat16; "
            "use 'auto' for others"
        )
    dtype = attention.accumulator(v.dtype)
    beta, alpha = rates.beta.astype(dtype), rates.alpha.astype(dtype)[None, None]
    gate = jnp.broadcast_to(jnp.log(alpha), beta.shape)
    if valid is not None:  # such a token neither decays nor writes
        gate, beta = (jnp.where(valid[:, :, None], x, 0) for x in (gate, beta))
    if kind.loss == "dot":
        return "simple_gla", {"g": gate}, (beta[..., None] * v).astype(v.dtype)
    if kind.alpha == 1 and "alpha" not in kind.learn:
        return "deltanet", {"beta": beta}, v
    values = (alpha[..., None] * v).astype(v.dtype)
    return "gated_deltanet", {"g": gate, "beta": beta / alpha}, values


def _import_jla() -> Any:
    try:
        return importlib.import_module("jla.ops")
    except ImportError as error:
        raise UserError(
            "implementation 'jla' needs the package jax-linear-attention, which is not installed; "
            "install it (Python 3.12 or later), or use 'auto'"
        ) from error


def _widen(x: jax.Array, target: str, axes: int) -> jax.Array:
    """Zeros up to Triton's sizes (powers of 2, from 16) on the last axes: they change nothing."""
    if target != "gpu":
        return x
    sizes = [max(16, 1 << (size - 1).bit_length()) - size for size in x.shape[-axes:]]
    return jnp.pad(x, ((0, 0),) * (x.ndim - axes) + tuple((0, size) for size in sizes))


def _weights(rates: Rates, chunk: int) -> Decay:
    """`attention.decay` of a whole chunk for G heads, its leaves [G, ., .]; `last` is three."""
    causal, steps = jnp.tril(jnp.ones((chunk, chunk), bool)), jnp.arange(1, chunk + 1)
    weights = jax.vmap(lambda e, a: attention.decay(e, a, steps, causal))(rates.eta, rates.alpha)
    last: Any = tuple(weights.last[:, i, None, None] for i in range(3))
    rows = {name: getattr(weights, name)[:, None] for name in ROWS}
    return weights._replace(last=last, **rows)


def _chunk(plan: Plan, state: State, x: Inputs, weights: Decay) -> tuple[State, Any]:
    """One chunk of one head: (the S and M after it, out [C, V] of each query head)."""
    s, m = state
    weights = weights._replace(**{name: getattr(weights, name).reshape(-1) for name in ROWS})
    beta = x.beta.reshape(-1)
    u, *end = attention.write(s, m, x.k, x.v, beta, weights, plan.loss, plan.momentum)
    out = tuple(attention.read(q, s, m, x.k, u, weights, plan.momentum) for q in x.q)
    return State(*end), out


def _get(refs: Any, index: Any = ...) -> Any:
    return jax.tree.map(lambda ref: ref[index], refs)


def _set(refs: Any, values: Any, index: Any = ...) -> None:
    jax.tree.map(lambda ref, x: ref.__setitem__(index, x.astype(ref.dtype)), refs, values)


def _carry(first: Any, kept: Any) -> Any:
    """What a program starts from: `first` if it is its head's first one, else what was `kept`."""
    fresh = pl.program_id(1) == 0
    return jax.tree.map(lambda a, b: jnp.where(fresh, a, b), first, _get(kept))


def _forward_kernel(
    weights: Decay, inputs: Inputs, start: State, out: Any, end: State, *starts: State, plan: Plan
) -> None:
    """P chunks of a head in order. The next program goes on from `end`, which stays in place."""
    loaded = _get(weights)

    def body(i: Any, state: State) -> State:
        for refs in starts:  # asked for when a backward pass will follow
            _set(refs, state, i)
        state, values = _chunk(plan, state, _get(inputs, i), loaded)
        _set(out, values, i)
        return state

    _set(end, jax.lax.fori_loop(0, inputs.k.shape[0], body, _carry(_get(start), end)))


def _backward_kernel(
    weights: Decay,
    inputs: Inputs,
    starts: State,
    d_out: Any,
    d_end: State,
    d_inputs: Inputs,
    d_start: State,
    d_weights: Decay,
    *,
    plan: Plan,
) -> None:
    """P chunks of a head in reverse. `d_start` and `d_weights` are carried as `end` is above."""
    loaded = _get(weights)
    count = inputs.k.shape[0]

    def body(step: Any, carry: Any) -> Any:
        i = count - 1 - step
        x = _get(inputs, i)
        if plan.target == "gpu":  # Triton multiplies like types only; a bfloat16 vjp mixes them
            x = jax.tree.map(lambda a: a.astype(jnp.float32), x)
        _, pull = jax.vjp(functools.partial(_chunk, plan), _get(starts, i), x, loaded)
        d_state, d_x, d_w = pull((carry[0], _get(d_out, i)))
        _set(d_inputs, d_x, i)
        return d_state, jax.tree.map(jnp.add, carry[1], d_w)

    first = _get(d_end), jax.tree.map(jnp.zeros_like, loaded)
    kept = d_start, d_weights
    _set(kept, jax.lax.fori_loop(0, count, body, _carry(first, kept)))


def _call(kernel: Any, plan: Plan, args: tuple, outputs: tuple, reverse: bool = False) -> Any:
    """`kernel` over heads and, in order or in `reverse`, over programs of P chunks.

    Args:
        args: trees of arrays: the weights [G, ., .], the `Inputs`, then others whose leaves are
            [H, N, ., .], one a chunk, or [H, ., .], one a head.
        outputs: trees of shapes like those; a head's are kept from program to program.
    """
    heads, count = args[1].k.shape[:2]
    groups = args[0].now.shape[0]
    per = count if plan.target == "gpu" else 1
    programs = count // per

    def chunks(x: Any) -> pl.BlockSpec:
        if x.ndim == 3:
            return pl.BlockSpec((None, *x.shape[1:]), lambda h, n: (h, 0, 0))
        order = (lambda n: programs - 1 - n) if reverse else (lambda n: n)
        return pl.BlockSpec((None, per, *x.shape[2:]), lambda h, n: (h, order(n), 0, 0))

    def shared(x: Any) -> pl.BlockSpec:
        return pl.BlockSpec((None, *x.shape[1:]), lambda h, n: (h % groups, 0, 0))

    return pl.pallas_call(
        functools.partial(kernel, plan=plan),
        grid=(heads, programs),
        in_specs=[jax.tree.map(shared, args[0]), *jax.tree.map(chunks, args[1:])],
        out_specs=jax.tree.map(chunks, outputs),
        out_shape=outputs,
        interpret=plan.target == "interpret",
        compiler_params=_compiler_params(plan.target),
    )(*args)


def _compiler_params(target: str) -> Any:
    if target == "tpu":
        return pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"))
    if target == "gpu":  # imported here, because a later JAX will be without it
        triton = importlib.import_module("jax.experimental.pallas.triton")
        return triton.CompilerParams(num_warps=8, num_stages=1)
    return None


def _like(tree: Any, shape: Callable[[tuple[int, ...]], tuple[int, ...]], dtype: Any = None) -> Any:
    """Shapes of outputs: those of `tree`'s arrays, changed by `shape`."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(shape(x.shape), dtype or x.dtype), tree)


def _forward(plan: Plan, weights: Decay, inputs: Inputs, start: State, keep: bool) -> Any:
    """(out, end), and the state at each chunk's start where `keep` asks for it."""
    width, count = inputs.v.shape[-1], inputs.k.shape[1]
    out = _like(inputs.q, lambda shape: (*shape[:-1], width), start.s.dtype)
    outputs: tuple = (out, _like(start, lambda shape: shape))
    if keep:
        outputs += (_like(start, lambda shape: (shape[0], count, *shape[1:])),)
    return _call(_forward_kernel, plan, (weights, inputs, start), outputs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(plan: Plan, weights: Decay, inputs: Inputs, start: State) -> tuple[Any, State]:
    """The chunks of all heads: (out [H, N, C, V] of each query head, the last S and M)."""
    return _forward(plan, weights, inputs, start, keep=False)


def _scan_forward(plan: Plan, weights: Decay, inputs: Inputs, start: State) -> Any:
    out, end, starts = _forward(plan, weights, inputs, start, keep=True)
    return (out, end), (weights, inputs, starts)


def _scan_backward(plan: Plan, residuals: Any, cotangents: Any) -> Any:
    weights, inputs, starts = residuals
    heads, groups = inputs.k.shape[0], weights.now.shape[0]
    outputs = (
        _like(inputs, lambda shape: shape),
        _like(cotangents[1], lambda shape: shape),
        _like(weights, lambda shape: (heads, *shape[1:])),
    )
    args = (weights, inputs, starts, *cotangents)
    d_inputs, d_start, d_weights = _call(_backward_kernel, plan, args, outputs, reverse=True)

    def rows(x: jax.Array) -> jax.Array:  # the rows of a batch share a head's weights
        return x.reshape(-1, groups, *x.shape[1:]).sum(0)

    return jax.tree.map(rows, d_weights), d_inputs, d_start


_scan.defvjp(_scan_forward, _scan_backward)
