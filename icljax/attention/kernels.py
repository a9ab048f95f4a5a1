"""The chunked form of `icljax.attention` by the implementation that suits the platform.

`chunked` is the one place where a platform gets its implementation: `attention.chunked` in XLA, the
Pallas kernels of icljax/attention/pallas.py, or the package jax-linear-attention.

Shape glossary: as in `icljax.attention` (B, S, G, J, K, V).
"""

import importlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from icljax import attention
from icljax.attention import CHUNK, Kind, Memory, Rates, Tokens, pallas
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


def chunked(
    kind: Kind,
    tokens: Tokens,
    rates: Rates,
    valid: Bool[Array, "B S"] | None,
    memory: Memory,
    chunk: int = CHUNK,
    implementation: str = "auto",
) -> tuple[Float[Array, "B S G J V"], Memory]:
    """`attention.chunked` by the implementation that suits the platform.

    A `valid` mask always takes the XLA form, because then each row and chunk has its own weights.
    So do the tokens past the last whole chunk, continuing from the kernel's state: a padded step
    would not be free where alpha < 1 or eta > 0.

    Args:
        kind, tokens, rates, valid, memory, chunk: as in `attention.chunked`; the GPU kernel has its
            own chunk, which changes the rounding only.
        implementation: "auto": Pallas on TPU, XLA elsewhere (the GPU kernel has never been timed
            on a GPU). "xla": `attention.chunked`. "pallas": the platform's kernel; "pallas_tpu"
            and "pallas_gpu" name it, for ahead-of-time compilation; "pallas_interpret" emulates
            it anywhere. "jla": the package jax-linear-attention, for kinds without momentum;
            alpha = 1 that `kind` does not learn gets no gradient there.

    Returns:
        (outputs, Memory with a leading B axis), as `attention.chunked`.

    Raises:
        UserError: for an unknown implementation, "pallas" on another platform than TPU or GPU or
            with `jax_enable_x64`, and "jla" where it is not installed or does not compute `kind`.
    """
    chosen = _choose(implementation)
    if chosen == "jla":
        return _jla(kind, tokens, rates, valid, memory, chunk)
    length = tokens.k.shape[1]
    size = pallas.gpu_chunk(tokens) if chosen == "gpu" else chunk
    whole = length // size * size
    if chosen == "xla" or valid is not None or not whole:
        return attention.chunked(kind, *tokens, rates, valid, memory, chunk)

    def cut(part: slice) -> tuple[Tokens, Rates]:
        some = Tokens(*(x[:, part] for x in tokens))
        return some, rates._replace(beta=rates.beta[:, part])

    plan = pallas.Plan(kind.loss, attention.has_momentum(kind), chosen)
    out, after = pallas.whole_chunks(plan, *cut(slice(whole)), memory, size)
    if whole == length:
        return out, after
    rest, after = _rest(kind, *cut(slice(whole, None)), after, chunk)
    return jnp.concatenate([out, rest], 1), after


def _choose(implementation: str) -> str:
    """The implementation's target: "xla", "jla" or a `pallas.Plan.target`."""
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


def _rest(
    kind: Kind, tokens: Tokens, rates: Rates, memory: Memory, chunk: int
) -> tuple[jax.Array, Memory]:
    """The XLA form on the last tokens, each row from its own S and M."""

    def row(tokens: Tokens, beta: jax.Array, s: jax.Array, m: jax.Array) -> Any:
        q, k, v = (x[None] for x in tokens)
        own = rates._replace(beta=beta[None])
        start = memory._replace(s=s, m=m)
        out, end = attention.chunked(kind, q, k, v, own, None, start, chunk)
        return out[0], end.s[0], end.m[0]

    out, s, m = jax.vmap(row)(tokens, rates.beta, memory.s, memory.m)
    return out, Memory(s, m, memory.ema)


def _jla(
    kind: Kind,
    tokens: Tokens,
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
    q, k, v = tokens
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
