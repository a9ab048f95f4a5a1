"""One decoder for every model family, described by a frozen config.

Shape glossary (the einsum letters below are these):
  B rows of a batch      S tokens of a row        T tokens of the state (the encoded prompt)
  L layers               D model width            F MLP width          V vocabulary
  H query heads          G key/value heads        J query heads of a group (H = G * J)
  K head width           A positions of a row that are studied (the answer positions)

The model knows no settings: zero-shot, in-context and finetuned are different (params, state)
through one function. What is studied leaves as a typed pytree, cut to the A positions inside the
block, since cutting after the layer scan more than doubles temporary memory.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

Params = dict[str, Any]
Array = np.ndarray | jax.Array


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """What a decoder looks like; nothing about how it is run on devices.

    Attributes:
        norm: "rms" (Llama) or "layer" (GPT-2); always before the sublayer.
        positions: "rotary" or "learned".
        mlp: "swiglu", or "gelu" (the tanh form, GPT-2's `gelu_new`).
        attention: how tokens are mixed; "softmax" is the only kind so far.
        tied: the embedding is the output projection too.
        dtype: compute type of matrix products; softmax, norms and log-probabilities are float32.
        remat: recompute a layer in the backward pass instead of keeping its intermediates.
    """

    vocab_size: int
    num_layers: int
    width: int
    mlp_width: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    context_length: int
    norm: str = "rms"
    norm_eps: float = 1e-5
    positions: str = "rotary"
    rope_theta: float = 10_000.0
    mlp: str = "swiglu"
    attention: str = "softmax"
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    tied: bool = True
    dtype: str = "float32"
    remat: bool = False


class State(NamedTuple):
    """What a prompt leaves behind; one state serves every query (no batch axis).

    Attributes:
        keys: [L, T, G, K], rotated to their positions.
        values: [L, T, G, K].
        valid: bool [T], False on padding.
        length: int32 [], number of valid tokens; the next token's position.
    """

    keys: jax.Array
    values: jax.Array
    valid: jax.Array
    length: jax.Array


class AttentionRecord(NamedTuple):
    """One layer's attention at the A studied positions, float32.

    Attributes:
        attn_out: [B, A, D], after the output projection, before the residual sum.
        scores_query: [B, A, H, S], scaled logits before softmax to the row's own tokens.
        scores_state: [B, A, T], the same to the state's tokens, summed over heads (T = 0: none).
        query: [B, A, H * K], scaled query vector before rotation (so that tokens of different
            prompts compare by content, as in models with additive positions).
    """

    attn_out: jax.Array
    scores_query: jax.Array
    scores_state: jax.Array
    query: jax.Array


class Hidden(NamedTuple):
    """A forward pass.

    Attributes:
        hidden: [B, S, D], after the final norm.
        keys, values: [L, B, S, G, K].
        record: AttentionRecord with a leading L axis; None where nothing is studied.
    """

    hidden: jax.Array
    keys: jax.Array
    values: jax.Array
    record: AttentionRecord | None


def rotate(x: jax.Array, positions: jax.Array, theta: float) -> jax.Array:
    """Rotary position embedding, half-split form (Su et al. 2021; Llama's convention).

    Args:
        x: [B, S, ..., K].
        positions: int [B, S].
        theta: base of the wavelengths.
    """
    half = x.shape[-1] // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions[..., None].astype(jnp.float32) * frequency[None, None]
    angle = angle.reshape(positions.shape + (1,) * (x.ndim - 3) + (half,))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


def softmax_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
    prefix: tuple[jax.Array, jax.Array, jax.Array] | None,
) -> jax.Array:
    """Softmax attention over a shared prefix and each row's own tokens.

    The prefix is never copied per row nor joined to the row's tokens: the two parts share the
    maximum and the denominator of one softmax. Scores keep the order their matrix product gives.

    Args:
        q: [B, S, G, J, K], scaled.
        k, v: [B, S, G, K].
        mask: bool [B, S, S], True where a query (second axis) sees a key (last axis).
        prefix: keys [T, G, K], values [T, G, K], valid bool [T]; or None.

    Returns:
        [B, S, G, J, K] in q's dtype.
    """
    lowest = jnp.finfo(jnp.float32).min
    own = jnp.einsum("BSGJK,BTGK->BGSJT", q, k, preferred_element_type=jnp.float32)
    own = jnp.where(mask[:, None, :, None, :], own, lowest)
    top = jnp.max(own, -1)
    if prefix is not None:
        prefix_k, prefix_v, valid = prefix
        past = jnp.einsum("BSGJK,TGK->GBSJT", q, prefix_k, preferred_element_type=jnp.float32)
        past = jnp.where(valid[None, None, None, None, :], past, lowest)
        top = jnp.maximum(top, jnp.max(past, -1).swapaxes(0, 1))
    top = jax.lax.stop_gradient(top)
    own = jnp.exp(own - top[..., None])
    total = jnp.sum(own, -1)
    out = jnp.einsum("BGSJT,BTGK->BGSJK", own.astype(v.dtype), v)
    if prefix is not None:
        past = jnp.exp(past - top.swapaxes(0, 1)[..., None])
        total = total + jnp.sum(past, -1).swapaxes(0, 1)
        out = out + jnp.einsum("GBSJT,TGK->GBSJK", past.astype(v.dtype), prefix_v).swapaxes(0, 1)
    return (out / total[..., None]).astype(q.dtype).transpose(0, 2, 1, 3, 4)


def take_positions(x: jax.Array, at: Array) -> jax.Array:
    """`x` [B, S, ...] at columns `at` int [B, A] -> [B, A, ...]."""
    return jax.vmap(lambda row, columns: row[columns])(x, at)


class Attention(nn.Module):
    """Multi-head (grouped-query) attention; returns its record at the studied positions too."""

    config: DecoderConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        prefix: tuple[jax.Array, jax.Array, jax.Array] | None,
        at: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, jax.Array, AttentionRecord | None]:
        """[B, S, D] -> output [B, S, D], keys, values [B, S, G, K], record at `at`."""
        c = self.config
        batch, length, _ = x.shape
        groups = c.num_kv_heads

        def project(name: str, heads: int) -> jax.Array:
            return nn.DenseGeneral(
                (heads, c.head_width), use_bias=c.qkv_bias, dtype=c.dtype, name=name
            )(x)

        query = project("query", c.num_heads) * c.head_width**-0.5
        k, v = project("key", groups), project("value", groups)
        q = query
        if c.positions == "rotary":
            q, k = rotate(q, positions, c.rope_theta), rotate(k, positions, c.rope_theta)
        q = q.reshape(batch, length, groups, c.num_heads // groups, c.head_width)
        mixed = softmax_attention(q, k, v, mask, prefix)
        out = nn.DenseGeneral(
            c.width, axis=(-2, -1), use_bias=c.output_bias, dtype=c.dtype, name="output"
        )(mixed.reshape(batch, length, c.num_heads, c.head_width))
        record = None if at is None else self._record(q, query, k, out, prefix, at)
        return out, k, v, record

    def _record(
        self,
        q: jax.Array,
        query: jax.Array,
        k: jax.Array,
        out: jax.Array,
        prefix: tuple[jax.Array, jax.Array, jax.Array] | None,
        at: jax.Array,
    ) -> AttentionRecord:
        batch, studied = at.shape
        q_at = take_positions(q, at).astype(jnp.float32)
        scores = jnp.einsum("BAGJK,BTGK->BAGJT", q_at, k.astype(jnp.float32))
        scores_state = jnp.zeros((batch, studied, 0), jnp.float32)
        if prefix is not None:
            prefix_k = prefix[0].astype(jnp.float32)
            scores_state = jnp.einsum("BAGK,TGK->BAT", jnp.sum(q_at, 3), prefix_k)
        return AttentionRecord(
            attn_out=take_positions(out, at).astype(jnp.float32),
            scores_query=scores.reshape(batch, studied, self.config.num_heads, -1),
            scores_state=scores_state,
            query=take_positions(query, at).astype(jnp.float32).reshape(batch, studied, -1),
        )


class Mlp(nn.Module):
    """The feed-forward sublayer."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, S, D] -> [B, S, D]."""
        c = self.config

        def dense(features: int, name: str) -> nn.Dense:
            return nn.Dense(features, use_bias=c.mlp_bias, dtype=c.dtype, name=name)

        hidden = dense(c.mlp_width, "up")(x)
        if c.mlp == "swiglu":
            hidden = nn.silu(dense(c.mlp_width, "gate")(x)) * hidden
        else:
            hidden = nn.gelu(hidden, approximate=True)
        return dense(c.width, "down")(hidden)


def _norm(config: DecoderConfig, name: str) -> nn.Module:
    """Statistics in float32, result in the compute dtype."""
    kind = nn.RMSNorm if config.norm == "rms" else nn.LayerNorm
    return kind(epsilon=config.norm_eps, dtype=config.dtype, name=name)


class Block(nn.Module):
    """One pre-norm layer, in the form that `nn.scan` wants: carry, then scanned-over inputs."""

    config: DecoderConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        layer_state: tuple[jax.Array, jax.Array] | None,
        valid: jax.Array | None,
        positions: jax.Array,
        mask: jax.Array,
        at: jax.Array | None,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array, AttentionRecord | None]]:
        """[B, S, D] -> [B, S, D], (keys, values, record)."""
        prefix = None
        if layer_state is not None and valid is not None:
            prefix = (*layer_state, valid)
        attention = Attention(self.config, name="attention")
        out, k, v, record = attention(
            _norm(self.config, "attention_norm")(x), positions, mask, prefix, at
        )
        x = x + out
        x = x + Mlp(self.config, name="mlp")(_norm(self.config, "mlp_norm")(x))
        return x, (k, v, record)


class Decoder(nn.Module):
    """A causal language model; `hidden` and `logits` are its two halves."""

    config: DecoderConfig

    def setup(self) -> None:
        """Makes the submodules."""
        c = self.config
        self.embed = nn.Embed(c.vocab_size, c.width, dtype=c.dtype)
        if c.positions == "learned":
            self.embed_positions = nn.Embed(c.context_length, c.width, dtype=c.dtype)
        block = nn.remat(Block, prevent_cse=False) if c.remat else Block
        everywhere = nn.broadcast
        self.layers = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, everywhere, everywhere, everywhere, everywhere),
            length=c.num_layers,
        )(c)
        self.final_norm = _norm(c, "final_norm")
        if not c.tied:
            self.unembed = nn.Dense(c.vocab_size, use_bias=False, dtype=c.dtype)

    def hidden(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        state: State | None = None,
        at: jax.Array | None = None,
    ) -> Hidden:
        """Runs the layers.

        Args:
            tokens: int32 [B, S].
            positions: int32 [B, S], counted from the state's first token.
            mask: bool [B, S, S], which of the row's tokens each token sees; every token must see
                at least one (itself); all tokens see all valid tokens of the state.
            state: what an earlier prompt left behind, shared by all rows.
            at: int32 [B, A], columns to study.
        """
        x = self.embed(tokens)
        if self.config.positions == "learned":
            x = x + self.embed_positions(positions)
        layer_state = None if state is None else (state.keys, state.values)
        valid = None if state is None else state.valid
        x, (keys, values, record) = self.layers(x, layer_state, valid, positions, mask, at)
        return Hidden(self.final_norm(x), keys, values, record)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[..., D] after the final norm -> float32 [..., V]."""
        if self.config.tied:
            return self.embed.attend(hidden).astype(jnp.float32)
        return self.unembed(hidden).astype(jnp.float32)

    def __call__(
        self, tokens: jax.Array, positions: jax.Array, mask: jax.Array, state: State | None = None
    ) -> jax.Array:
        """Logits float32 [B, S, V] of `hidden`'s arguments."""
        return self.logits(self.hidden(tokens, positions, mask, state).hidden)


def causal_mask(valid: jax.Array) -> jax.Array:
    """`valid` bool [B, S] -> bool [B, S, S]: earlier valid tokens, and always oneself."""
    length = valid.shape[-1]
    index = jnp.arange(length)
    causal = index[:, None] >= index[None, :]
    itself = index[:, None] == index[None, :]
    return (causal[None] & valid[:, None, :]) | itself[None]


def init_params(config: DecoderConfig, key: jax.Array) -> Params:
    """Randomly initialised parameters: normal(0.02) for matrices and embeddings, as in GPT-2."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    shapes = jax.eval_shape(Decoder(config).init, key, tokens, tokens, jnp.ones((1, 2, 2), bool))[
        "params"
    ]
    leaves, tree = jax.tree_util.tree_flatten_with_path(shapes)
    keys = jax.random.split(key, len(leaves))
    return jax.tree_util.tree_unflatten(
        tree, [_init_leaf(path, leaf, k) for (path, leaf), k in zip(leaves, keys, strict=True)]
    )


def _init_leaf(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct, key: jax.Array) -> jax.Array:
    name = path[-1].key
    if name == "scale":
        return jnp.ones(leaf.shape, leaf.dtype)
    if name == "bias":
        return jnp.zeros(leaf.shape, leaf.dtype)
    return 0.02 * jax.random.normal(key, leaf.shape, leaf.dtype)
