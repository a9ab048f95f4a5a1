"""One layer's mixing of tokens, whatever its kind of attention: what the decoder calls.

Shape glossary: as in icljax/models/decoder.py and icljax/attention/recurrence.py; K is the width of
a head.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from icljax import attention
from icljax.attention import KINDS, Kind, Memory, Rates, Tokens, kernels
from icljax.errors import UserError

FEATURE_MAPS = {"identity": lambda x: x, "elu+1": lambda x: jax.nn.elu(x) + 1}
LEARNABLE = ("eta", "alpha", "beta", "ema")
# "jax_nn": softmax without a prefix and a soft cap by jax.nn.dot_product_attention (a GPU's cuDNN);
# else "auto".
IMPLEMENTATIONS = (*kernels.IMPLEMENTATIONS, "jax_nn")
_SMALLEST_NORMALIZER = 1e-6


class Prefix(NamedTuple):
    """One layer of what earlier tokens left behind, shared by all rows.

    Attributes:
        keys, values: [T, G, K].
        valid: bool [T].
        memory: Memory of [G, V, K], or None where every layer is plain softmax.
    """

    keys: jax.Array
    values: jax.Array
    valid: jax.Array
    memory: Memory | None


class Past(NamedTuple):
    """Which tokens each token sees of its own row.

    Without `visible`: all earlier ones, and `valid` ones alone leave something in the memory.

    Attributes:
        steps: int [B, S], tokens on its path since the prefix, itself included.
        visible: bool [B, S, S], True where a token (second axis) sees another, or itself; or None.
        valid: bool [B, S] or None.
    """

    steps: jax.Array
    visible: jax.Array | None
    valid: jax.Array | None


def parse_kinds(config: Mapping[str, Any] | ConfigDict) -> tuple[Kind, ...] | None:
    """The kinds that `config.attention` asks for, repeated over the layers; None: the model's own.

    `kind` is a comma-separated pattern of names in `KINDS`; "+momentum" adds EMA(V) to one. Other
    fields that are given override a name's numbers: `ema` those of kinds with EMA(V), `window`
    those of softmax, the rest those of the linear family.

    Raises:
        UserError: for an unknown kind, a number out of range, options that exclude each other.
    """
    if not config["kind"]:
        return None
    fields = {f.name for f in dataclasses.fields(Kind)}
    given = {k: v for k, v in config.items() if k in fields and v not in (None, "", ())}
    return tuple(_override(_named(name.strip()), given) for name in config["kind"].split(","))


def _named(name: str) -> Kind:
    base, plus, extra = name.partition("+")
    if base not in KINDS or (plus and extra != "momentum"):
        raise UserError(
            f"attention kind {name!r} is unknown; expected {', '.join(KINDS)}, a linear one with "
            "'+momentum', or several with commas: --config.attention.kind=..."
        )
    return dataclasses.replace(KINDS[base], ema=KINDS["momentum"].ema) if plus else KINDS[base]


def _override(kind: Kind, given: Mapping[str, Any]) -> Kind:
    ema = [f for f in given if f.startswith("ema")]
    linear = [f for f in given if f not in (*ema, "learn", "window")]
    fields = linear if kind.base == "linear" else [f for f in given if f == "window"]
    fields = fields + (ema if kind.ema else [])
    kind = dataclasses.replace(kind, **{f: given[f] for f in fields})
    able = {"ema"} if kind.ema else set()
    able |= {"eta", "alpha", "beta"} if kind.base == "linear" else set()
    kind = dataclasses.replace(kind, learn=tuple(f for f in given.get("learn", ()) if f in able))
    check_kind(kind)
    for name in given.get("learn", ()):
        if name not in LEARNABLE:
            raise UserError(
                f"attention.learn has {name!r}; expected some of {', '.join(LEARNABLE)}: "
                "--config.attention.learn=..."
            )
    return kind


def check_kind(kind: Kind) -> None:
    """Raises a UserError for a kind that has no meaning."""
    ranges = {
        "eta": (0 <= kind.eta < 1, "at least 0 and below 1"),
        "alpha": (0 < kind.alpha <= 1, "above 0 and at most 1"),
        "beta": (0 < kind.beta < math.inf, "above 0"),
        "ema": (0 <= kind.ema < 1, "above 0 and below 1"),
        "loss": (kind.loss in ("dot", "square"), "dot or square"),
        "window": (kind.window >= 0, "0 or more"),
        "cap": (0 <= kind.cap < math.inf, "0 or more"),
        "feature_map": (kind.feature_map in FEATURE_MAPS, " or ".join(FEATURE_MAPS)),
    }
    for field in kind.learn:
        value = getattr(kind, field)
        ranges[field] = (0 < value < 1, "above 0 and below 1, where it is learned")
    for field, (holds, expected) in ranges.items():
        if not holds:
            raise UserError(
                f"attention.{field} is {getattr(kind, field)!r}; expected {expected}: "
                f"--config.attention.{field}=..."
            )
    if kind.normalize and kind.loss == "square":
        raise UserError(
            "attention.normalize divides by the weights' sum, which the delta rule (loss square) "
            "does not have; use it with a dot kind: --config.attention.kind=linear"
        )


def leaves_memory(kinds: tuple[Kind, ...]) -> bool:
    """Whether any layer needs more of its past than keys and values."""
    return any(kind.base == "linear" or kind.ema for kind in kinds)


def value_width(kinds: tuple[Kind, ...], head_width: int) -> int:
    """Rows of S: one more than the head where a kind normalises."""
    return head_width + any(kind.normalize for kind in kinds)


def empty_memory(kinds: tuple[Kind, ...], groups: int, head_width: int, dtype: Any) -> Memory:
    """The memory of no tokens, of one layer."""
    matrix = jnp.zeros((groups, value_width(kinds, head_width), head_width), dtype)
    return Memory(matrix, matrix, jnp.zeros((groups, head_width), dtype))


def capped(logits: Float[Array, "*shape"], cap: float) -> Float[Array, "*shape"]:
    """The logits bent to stay within a cap, cap * tanh(logits / cap); 0: as they are."""
    return cap * jnp.tanh(logits / cap) if cap else logits


def softmax_attention(
    q: Float[Array, "B S G J K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G K"],
    past: Past,
    prefix: Prefix | None,
    window: int = 0,
    cap: float = 0.0,
) -> Float[Array, "B S G J K"]:
    """Softmax attention over a shared prefix and each row's own tokens.

    The prefix is never copied per row nor joined to the row's tokens: the two parts share the
    maximum and the denominator of one softmax. Scores keep the order their matrix product gives.

    Args:
        q: scaled.
        k, v: of the row's own tokens.
        past: as in `Past`.
        window: how many tokens each sees, itself included; 0: all.
        cap: on the logits, as in `Kind`.

    Returns:
        The outputs, in q's dtype.
    """
    lowest = jnp.finfo(jnp.float32).min
    visible, prefix_visible = _visibility(k.shape[1], past, prefix, window)
    own = jnp.einsum("BSGJK,BTGK->BGSJT", q, k, preferred_element_type=jnp.float32)
    own = jnp.where(visible[:, None, :, None, :], capped(own, cap), lowest)
    top = jnp.max(own, -1)
    if prefix is not None:
        earlier = jnp.einsum("BSGJK,TGK->GBSJT", q, prefix.keys, preferred_element_type=jnp.float32)
        earlier = jnp.where(prefix_visible[None, :, :, None, :], capped(earlier, cap), lowest)
        top = jnp.maximum(top, jnp.max(earlier, -1).swapaxes(0, 1))
    top = jax.lax.stop_gradient(top)
    own = jnp.exp(own - top[..., None])
    total = jnp.sum(own, -1)
    out = jnp.einsum("BGSJT,BTGK->BGSJK", own.astype(v.dtype), v)
    if prefix is not None:
        earlier = jnp.exp(earlier - top.swapaxes(0, 1)[..., None])
        total = total + jnp.sum(earlier, -1).swapaxes(0, 1)
        earlier = jnp.einsum("GBSJT,TGK->GBSJK", earlier.astype(v.dtype), prefix.values)
        out = out + earlier.swapaxes(0, 1)
    return (out / total[..., None]).astype(q.dtype).transpose(0, 2, 1, 3, 4)


def _visibility(
    length: int, past: Past, prefix: Prefix | None, window: int
) -> tuple[jax.Array, jax.Array]:
    """Whom each token sees: of its row bool [B or 1, S, S], of the prefix [B or 1, S or 1, T]."""
    own = past.visible
    if own is None:
        own = jnp.tril(jnp.ones((1, length, length), bool))
    if window:
        own = own & (past.steps[:, :, None] - past.steps[:, None, :] < window)
    if prefix is None:
        return own, jnp.zeros((1, 1, 0), bool)
    earlier = prefix.valid[None, None]
    if window:  # a prefix of n tokens ends n - cumsum(valid) tokens after each
        after = jnp.sum(prefix.valid) - jnp.cumsum(prefix.valid)
        earlier = earlier & (past.steps[:, :, None] + after[None, None] < window)
    return own, earlier


def mix(
    kinds: tuple[Kind, ...],
    which: Int[Array, ""],
    tokens: Tokens,
    learned: Mapping[str, Float[Array, "..."]],
    past: Past,
    prefix: Prefix | None,
    implementation: str = "auto",
) -> tuple[Float[Array, "B S G J K"], Memory | None]:
    """One layer's attention; the layer's kind is `kinds[which]`.

    Args:
        which: layers of one scan may differ in it.
        tokens: queries scaled, queries and keys rotated where the model rotates.
        learned: of `LEARNABLE`, those that are parameters: [G], beta [B, S, G].
        implementation: one of `IMPLEMENTATIONS`.

    Returns:
        (outputs in q's dtype, Memory with a leading B axis; None where no kind leaves any, or where
        tokens are branches of a tree, which nothing continues).
    """
    memory = None
    if leaves_memory(kinds):
        memory = prefix.memory if prefix is not None else None
        if memory is None:
            dtype = attention.accumulator(tokens.q.dtype)
            groups, width = tokens.k.shape[2:]
            memory = empty_memory(kinds, groups, width, dtype)

    def branch(kind: Kind) -> Any:
        return lambda: _mix_one(kind, tokens, learned, past, prefix, memory, implementation)

    distinct = list(dict.fromkeys(kinds))
    if len(distinct) == 1:
        return branch(kinds[0])()
    position = jnp.asarray([distinct.index(kind) for kind in kinds])[which]
    return jax.lax.switch(position, [branch(kind) for kind in distinct])


def _mix_one(
    kind: Kind,
    tokens: Tokens,
    learned: Mapping[str, jax.Array],
    past: Past,
    prefix: Prefix | None,
    memory: Memory | None,
    implementation: str,
) -> tuple[jax.Array, Memory | None]:
    q, k, v = tokens
    rates = _rates(kind, learned, *k.shape[:3])
    after = memory
    if memory is not None and past.visible is None:
        after = jax.tree.map(lambda x: jnp.broadcast_to(x, (k.shape[0], *x.shape)), memory)
    if kind.base == "softmax" or memory is None:
        plain = past.visible is None and prefix is None and not kind.cap
        if implementation == "jax_nn" and plain:
            heads = q.reshape(*q.shape[:2], -1, q.shape[-1])
            out = jax.nn.dot_product_attention(
                heads,
                k,
                v,
                is_causal=True,
                scale=1.0,
                local_window_size=(kind.window - 1, 0) if kind.window else None,
            )
            out = out.reshape(q.shape)
        else:
            out = softmax_attention(q, k, v, past, prefix, kind.window, kind.cap)
    else:
        out, written = _linear(kind, tokens, rates, past, memory, implementation)
        if after is not None and written is not None:
            after = after._replace(s=written.s, m=written.m)
    if kind.ema and memory is not None:
        average, total = _value_ema(kind, v, rates, past, memory)
        out = (out + average[:, :, :, None]).astype(q.dtype)
        after = after if total is None or after is None else after._replace(ema=total)
    return out, None if past.visible is not None else after


def _rates(
    kind: Kind, learned: Mapping[str, jax.Array], batch: int, length: int, groups: int
) -> Rates:
    """The kind's numbers, or the layer's parameters where it learns them."""

    def per_head(name: str) -> jax.Array:
        return learned[name] if name in kind.learn else jnp.full((groups,), getattr(kind, name))

    beta = learned["beta"] if "beta" in kind.learn else None
    if beta is None:
        beta = jnp.full((batch, length, groups), kind.beta)
    return Rates(per_head("eta"), per_head("alpha"), beta, per_head("ema"))


def _linear(
    kind: Kind,
    tokens: Tokens,
    rates: Rates,
    past: Past,
    memory: Memory,
    implementation: str,
) -> tuple[jax.Array, Memory | None]:
    """The linear family: features, normaliser, and the form that the visibility allows."""
    features, dtype = FEATURE_MAPS[kind.feature_map], tokens.q.dtype
    q, k, v = features(tokens.q), features(tokens.k), tokens.v
    width = v.shape[-1]
    if kind.unit_keys:
        k32 = k.astype(jnp.float32)
        k = (k32 / jnp.maximum(jnp.linalg.norm(k32, axis=-1, keepdims=True), 1e-6)).astype(k.dtype)
    if memory.s.shape[-2] > width:  # the normaliser's row; unused by kinds that do not normalise
        v = jnp.pad(v, ((0, 0),) * 3 + ((0, 1),), constant_values=float(kind.normalize))
    after = None
    if past.visible is None:
        chosen = "auto" if implementation == "jax_nn" else implementation
        tokens = Tokens(q, k, v)
        out, after = kernels.chunked(kind, tokens, rates, past.valid, memory, implementation=chosen)
    else:
        out = attention.parallel(kind, q, k, v, rates, past.steps, past.visible, memory)
    if kind.normalize:
        total = out[..., width:]
        small = jnp.abs(total) < _SMALLEST_NORMALIZER
        out = out / jnp.where(small, _SMALLEST_NORMALIZER, total)
    return out[..., :width].astype(dtype), after


def _value_ema(
    kind: Kind, v: jax.Array, rates: Rates, past: Past, memory: Memory
) -> tuple[jax.Array, jax.Array | None]:
    """EMA(V) [B, S, G, K] and its state (None in a tree)."""
    total = None
    if past.visible is not None:
        average = attention.ema_parallel(v, rates.ema, past.steps, past.visible, memory.ema)
    elif past.valid is not None:
        average, total = attention.ema_recurrent(v, rates.ema, past.valid, memory.ema)
    else:
        average, total = attention.ema_chunked(v, rates.ema, memory.ema)
    if kind.ema_normalized:
        average = average * ((1 - rates.ema) / rates.ema)[None, None, :, None]
    return average, total
