"""The chunked form of `icljax.attention` as Pallas kernels.

The kernels hold no formula of their own: a chunk is `attention.write` and `attention.read`, with
the weights that `attention.decay` computes once outside, and its gradient is `jax.vjp` of the same
function, taken inside the backward kernel. One kernel body serves TPU and GPU. On TPU a program is
one chunk and the grid's last axis runs over chunks in order, S and M staying in VMEM; on GPU
(Pallas Triton) a program is one head and loops over its chunks.

The TPU kernel is compiled ahead of time for v5e and the GPU kernel for sm_90, but neither has run
on its device. JAX 0.11 deprecates Triton in favour of Mosaic GPU, which has no float32 products
and so cannot hold `write` and `read`; jax-linear-attention has such kernels, and is a choice in
icljax/attention/kernels.py.

Shape glossary: as in `icljax.attention` (B, S, C, N, G, J, K, V); H = B * G heads of all rows, P
chunks of one program. Kernels take head-major arrays whose last two axes are never cut: one a
chunk [H, N, C, K or V] (beta [H, N, 1, C]), one a head [H, V, K], one a key/value head [G, ., .].
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from icljax import attention
from icljax.attention import Decay, Memory, Rates, State, Tokens

# The fields of `Decay` that hold one weight a token.
ROWS = ("now_s", "now_m", "before_s", "before_m", "end", "end_momentum")


class Inputs(NamedTuple):
    """What the tokens bring; `q` holds one array for each of the group's J query heads."""

    q: tuple[Any, ...]
    k: Any
    v: Any
    beta: Any


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a kernel is specialised on.

    Attributes:
        loss: the in-context loss, "dot" or "square".
        momentum: whether M takes part.
        target: "tpu", "gpu" or "interpret".
    """

    loss: str
    momentum: bool
    target: str


def gpu_chunk(tokens: Tokens) -> int:
    """C of the GPU kernel: the most whose backward pass fits the shared memory of a program.

    Triton counts, for float32 with momentum and the square loss on sm_90, 144 KiB for C = 32 and
    464 KiB for C = 64 at K = V = 64, and 195 KiB for C = 16 at K = V = 128; an H100 has 227 KiB.
    """
    return 32 if max(tokens.k.shape[-1], tokens.v.shape[-1]) <= 64 else 16


def whole_chunks(
    plan: Plan, tokens: Tokens, rates: Rates, memory: Memory, chunk: int
) -> tuple[jax.Array, Memory]:
    """`kernels.chunked` by a kernel, for a length that is a multiple of `chunk`."""
    q, k, v = tokens
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

    rows = jnp.moveaxis(rates.beta, 2, 1).reshape(batch * groups, length // chunk, 1, chunk)
    group = tuple(heads(q[:, :, :, j]) for j in range(q.shape[3]))
    s, m = start(memory.s), start(memory.m)
    first = State(s, m if plan.momentum else None)
    weights = _weights(rates, chunk)
    out, last = _scan(plan, weights, Inputs(group, heads(k), heads(v), rows), first)
    # M of a kind without momentum leaves as it came.
    s, m = end(last.s), end(m if last.m is None else last.m)
    out = jnp.stack(out, 3).reshape(batch, groups, length, q.shape[3], -1)[..., :values]
    return jnp.moveaxis(out, 1, 2), Memory(s, m, memory.ema)


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
    weights = weights._replace(**{name: getattr(weights, name).reshape(-1) for name in ROWS})
    beta = x.beta.reshape(-1)
    u, end = attention.write(state, x.k, x.v, beta, weights, plan.loss)
    return end, tuple(attention.read(q, state, x.k, u, weights) for q in x.q)


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
    cotangents: tuple[Any, State],
    d_inputs: Inputs,
    carried: tuple[State, Decay],
    *,
    plan: Plan,
) -> None:
    """P chunks of a head in reverse.

    Args:
        cotangents: of out and end.
        carried: those of the start and of the weights, which go on as `end` does above.
    """
    loaded, (d_out, d_end) = _get(weights), cotangents
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
    _set(carried, jax.lax.fori_loop(0, count, body, _carry(first, carried)))


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
        (
            _like(cotangents[1], lambda shape: shape),
            _like(weights, lambda shape: (heads, *shape[1:])),
        ),
    )
    args = (weights, inputs, starts, cotangents)
    d_inputs, (d_start, d_weights) = _call(_backward_kernel, plan, args, outputs, reverse=True)

    def rows(x: jax.Array) -> jax.Array:  # the rows of a batch share a head's weights
        return x.reshape(-1, groups, *x.shape[1:]).sum(0)

    return jax.tree.map(rows, d_weights), d_inputs, d_start


_scan.defvjp(_scan_forward, _scan_backward)
