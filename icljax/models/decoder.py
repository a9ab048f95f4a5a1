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

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, PRNGKeyArray, Shaped

from icljax.attention import Memory, Tokens
from icljax.attention.mixing import Past, Prefix, mix
from icljax.models.config import MLPS, Rope
from icljax.models.config import DecoderConfig as DecoderConfig
from icljax.types import Array, Params


class State(NamedTuple):
    """What a prompt leaves behind; one state serves every query (no batch axis).

    Attributes:
        keys: [L, T, G, K], rotated to their positions.
        values: [L, T, G, K].
        valid: bool [T], False on padding.
        length: int32 [], number of valid tokens; the next token's position.
        memory: Memory with a leading L axis, all that layers of the linear family read (they keep
            keys and values for the metrics only) and EMA(V)'s state; None for plain softmax.
    """

    keys: jax.Array
    values: jax.Array
    valid: jax.Array
    length: jax.Array
    memory: Memory | None = None


class AttentionRecord(NamedTuple):
    """One layer's attention at the A studied positions, float32.

    Attributes:
        attn_out: [B, A, D], after the output projection, before the residual sum.
        scores_query: [B, A, H, S], scaled logits before softmax to the row's own tokens, those
            beyond a window included.
        rotated: [B, A, G, K], scaled query vector as it meets the keys, summed over the query heads
            of a group: times a state's keys, its logits to the state summed over heads.
        query: [B, A, H, K], scaled query vector before rotation (so that tokens of different
            prompts compare by content, as in models with additive positions).
    """

    attn_out: jax.Array
    scores_query: jax.Array
    rotated: jax.Array
    query: jax.Array


class Hidden(NamedTuple):
    """A forward pass.

    Attributes:
        hidden: [B, S, D], after the final norm.
        keys, values: [L, B, S, G, K].
        record: AttentionRecord with a leading L axis; None where nothing is studied.
        memory: Memory with leading axes [L, B], after each row's valid tokens; None for plain
            softmax and where a mask was given.
    """

    hidden: jax.Array
    keys: jax.Array
    values: jax.Array
    record: AttentionRecord | None
    memory: Memory | None


def rotate(
    x: Float[jax.Array, "B S *heads K"], positions: Int[jax.Array, "B S"], rope: Rope
) -> Float[jax.Array, "B S *heads K"]:
    """Rotary position embedding; a pure rotation, so that a negative position turns back."""
    width = rope.width or x.shape[-1]
    angle = positions[..., None].astype(jnp.float32) * _frequencies(rope, width)[None, None]
    angle = angle.reshape(positions.shape + (1,) * (x.ndim - 3) + (width // 2,))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    turned = x[..., :width].astype(jnp.float32)
    pairs = turned.reshape(*turned.shape[:-1], *((-1, 2) if rope.interleaved else (2, -1)))
    axis = -1 if rope.interleaved else -2
    a, b = jnp.moveaxis(pairs, axis, 0)
    turned = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis).reshape(turned.shape)
    return jnp.concatenate([turned.astype(x.dtype), x[..., width:]], -1)


def _frequencies(rope: Rope, width: int) -> jax.Array:
    """Radians a token, float32 [width / 2]; scaled as in Llama 3.1 where `rope` says so."""
    half = width // 2
    frequency = rope.theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    turns = rope.original_length * frequency / (2 * jnp.pi)
    kept = jnp.clip((turns - rope.low) / (rope.high - rope.low), 0, 1)
    return frequency * (kept + (1 - kept) / rope.factor)


def sinusoids(positions: Int[Array, "B S"], width: int) -> Float[jax.Array, "B S {width}"]:
    """Fixed positions, float32: sines, then cosines (fairseq's form).

    Vaswani et al. 2017 interleave them and divide by width / 2, not by width / 2 - 1.
    """
    half = width // 2
    frequency = jnp.exp(-math.log(10_000) / (half - 1) * jnp.arange(half, dtype=jnp.float32))
    angle = positions[..., None].astype(jnp.float32) * frequency[None, None]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)


def take_positions(
    x: Shaped[jax.Array, "B S *rest"], at: Int[Array, "B A"]
) -> Shaped[jax.Array, "B A *rest"]:
    """`x` at the columns `at`."""
    return jax.vmap(lambda row, columns: row[columns])(x, at)


class LayerOutput(NamedTuple):
    """What one layer leaves beside its output: the fields of `Hidden`, without the L axis."""

    keys: jax.Array
    values: jax.Array
    record: AttentionRecord | None
    memory: Memory | None


class Attention(nn.Module):
    """Multi-head (grouped-query) attention; returns its record at the studied positions too."""

    config: DecoderConfig

    @nn.compact
    def __call__(
        self,
        x: Float[jax.Array, "B S D"],
        positions: Int[jax.Array, "B S"],
        past: Past,
        prefix: Prefix | None,
        which: Int[jax.Array, ""],
        at: Int[Array, "B A"] | None,
    ) -> tuple[Float[jax.Array, "B S D"], LayerOutput]:
        """The layer's output, and what it leaves."""
        c = self.config
        batch, length, _ = x.shape
        groups = c.num_kv_heads

        def project(name: str, heads: int) -> jax.Array:
            return nn.DenseGeneral(
                (heads, c.head_width), use_bias=c.qkv_bias, dtype=c.dtype, name=name
            )(x)

        query, k, v = (
            project("query", c.num_heads),
            project("key", groups),
            project("value", groups),
        )
        if c.qk_norm:
            query, k = _norm(c, "query_norm")(query), _norm(c, "key_norm")(k)
        scale = c.head_width**-0.5 if c.attention_scale is None else c.attention_scale
        q = query = query * scale
        if c.rope is not None:
            q, k = rotate(q, positions, c.rope), rotate(k, positions, c.rope)
        q = q.reshape(batch, length, groups, c.num_heads // groups, c.head_width)
        learned = self._learned(x)
        tokens = Tokens(q, k, v)
        mixed, memory = mix(c.attention, which, tokens, learned, past, prefix, c.implementation)
        out = nn.DenseGeneral(
            c.width, axis=(-2, -1), use_bias=c.output_bias, dtype=c.dtype, name="output"
        )(mixed.reshape(batch, length, c.num_heads, c.head_width))
        record = None if at is None else self._record(q, query, k, out, at)
        return out, LayerOutput(k, v, record, memory)

    def _learned(self, x: jax.Array) -> dict[str, jax.Array]:
        """Learned numbers of the kinds: [G] each, beta [B, S, G]; all between 0 and 1."""
        c, out = self.config, {}
        for name in c.learned():
            if name == "beta":
                logit = nn.Dense(c.num_kv_heads, dtype=c.dtype, name="beta")(x)
            else:
                logit = self.param(name, nn.initializers.zeros, (c.num_kv_heads,))
            out[name] = nn.sigmoid(logit.astype(jnp.float32))
        return out

    def _record(
        self,
        q: jax.Array,
        query: jax.Array,
        k: jax.Array,
        out: jax.Array,
        at: Array,
    ) -> AttentionRecord:
        batch, studied = at.shape
        q_at = take_positions(q, at).astype(jnp.float32)
        scores = jnp.einsum("BAGJK,BTGK->BAGJT", q_at, k.astype(jnp.float32))
        return AttentionRecord(
            attn_out=take_positions(out, at).astype(jnp.float32),
            scores_query=scores.reshape(batch, studied, self.config.num_heads, -1),
            rotated=jnp.sum(q_at, 3),
            query=take_positions(query, at).astype(jnp.float32),
        )


class Mlp(nn.Module):
    """The feed-forward sublayer."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: Float[jax.Array, "B S D"]) -> Float[jax.Array, "B S D"]:
        """The output of the sublayer, before the residual sum."""
        c = self.config

        def dense(features: int, name: str) -> nn.Dense:
            return nn.Dense(features, use_bias=c.mlp_bias, dtype=c.dtype, name=name)

        shape = x.shape
        x = x.reshape(-1, shape[-1])  # XLA:CPU's weight gradients are faster with one token axis
        activation, gated = MLPS[c.mlp]
        hidden = dense(c.mlp_width, "up")(x)
        hidden = activation(dense(c.mlp_width, "gate")(x)) * hidden if gated else activation(hidden)
        return dense(c.width, "down")(hidden).reshape(shape)


def _norm(config: DecoderConfig, name: str) -> nn.Module:
    """Statistics in float32, result in the compute dtype."""
    kind = nn.RMSNorm if config.norm == "rms" else nn.LayerNorm
    return kind(epsilon=config.norm_eps, dtype=config.dtype, name=name)


class Block(nn.Module):
    """One pre-norm layer, in the form that `nn.scan` wants: carry, then scanned-over inputs."""

    config: DecoderConfig

    def __call__(self, *args: Any) -> tuple[jax.Array, LayerOutput]:
        """[B, S, D] -> [B, S, D], what the layer leaves; arguments of `streams`."""
        _, x, left = self.streams(*args)
        return x, left

    @nn.compact
    def streams(
        self,
        x: Float[jax.Array, "B S D"],
        layer: tuple[jax.Array, tuple[jax.Array, jax.Array, Memory | None] | None],
        valid: Bool[jax.Array, "T"] | None,
        positions: Int[jax.Array, "B S"],
        past: Past,
        at: Int[Array, "B A"] | None,
    ) -> tuple[Float[jax.Array, "B S D"], Float[jax.Array, "B S D"], LayerOutput]:
        """The sum with attention's output, the layer's output, what it leaves."""
        which, layer_state = layer
        prefix = None
        if layer_state is not None and valid is not None:
            keys, values, memory = layer_state
            prefix = Prefix(keys, values, valid, memory)
        c = self.config
        normed = _norm(c, "attention_norm")(x)
        attention = Attention(c, name="attention")
        out, left = attention(normed, positions, past, prefix, which, at)
        after = x + out
        if c.block != "shared_norm":
            normed = _norm(c, "mlp_norm")(after if c.block == "sequential" else x)
        return after, after + Mlp(c, name="mlp")(normed), left


class Decoder(nn.Module):
    """A causal language model; `hidden` and `logits` are its two halves."""

    config: DecoderConfig

    def setup(self) -> None:
        """Makes the submodules."""
        c = self.config
        self.embed = nn.Embed(c.vocab_size, c.width, dtype=c.dtype)
        if c.positions == "learned":
            rows = c.context_length + c.position_offset
            self.embed_positions = nn.Embed(rows, c.width, dtype=c.dtype)
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
            self.unembed = nn.Dense(c.vocab_size, use_bias=c.unembed_bias, dtype=c.dtype)

    def embedded(
        self, tokens: Int[Array, "B S"], positions: Int[Array, "B S"]
    ) -> Float[jax.Array, "B S D"]:
        """What enters the first layer."""
        c = self.config
        x = self.embed(tokens) * c.embed_scale
        if c.positions == "learned":
            # Padding may stand beyond the table; what is read never does (`inputs.context_limit`).
            last = c.context_length + c.position_offset - 1
            x = x + self.embed_positions(jnp.minimum(positions + c.position_offset, last))
        elif c.positions == "sinusoidal":
            x = x + sinusoids(positions + c.position_offset, c.width).astype(x.dtype)
        return x

    def hidden(
        self,
        tokens: Int[Array, "B S"],
        positions: Int[Array, "B S"],
        mask: Bool[Array, "B S S"] | None = None,
        state: State | None = None,
        at: Int[Array, "B A"] | None = None,
        valid: Bool[Array, "B S"] | None = None,
    ) -> Hidden:
        """Runs the layers.

        Args:
            tokens: int32.
            positions: int32, counted from the state's first token.
            mask: which of the row's earlier tokens, and itself, each token sees; None: all. A
                token's past must be one path. All tokens see all of the state.
            state: what an earlier prompt left behind, shared by all rows.
            at: columns to study.
            valid: without a mask: tokens that leave something in the memory.
        """
        c = self.config
        x = self.embedded(tokens, positions)
        start = 0 if state is None else state.length
        past = Past(*jax.tree.map(jnp.asarray, (positions - start + 1, mask, valid)))
        which = jnp.arange(c.num_layers) % len(c.attention)
        layer_state = None if state is None else (state.keys, state.values, state.memory)
        state_valid = None if state is None else state.valid
        x, left = self.layers(x, (which, layer_state), state_valid, positions, past, at)
        return Hidden(self.final_norm(x), *left)

    def logits(self, hidden: Float[jax.Array, "*batch D"]) -> Float[jax.Array, "*batch V"]:
        """Logits, float32, of what the final norm gives."""
        if self.config.tied:
            return self.embed.attend(hidden).astype(jnp.float32)
        return self.unembed(hidden).astype(jnp.float32)

    def read_out(self, x: Float[jax.Array, "*batch D"]) -> Float[jax.Array, "*batch V"]:
        """Logits of what some layer puts out, as if it were the last one."""
        return self.logits(self.final_norm(x))

    def __call__(
        self,
        tokens: Int[Array, "B S"],
        positions: Int[Array, "B S"],
        mask: Bool[Array, "B S S"] | None = None,
        state: State | None = None,
    ) -> Float[jax.Array, "B S V"]:
        """Logits, float32, of `hidden`'s arguments."""
        return self.logits(self.hidden(tokens, positions, mask, state).hidden)


def init_params(config: DecoderConfig, key: PRNGKeyArray) -> Params:
    """Randomly initialised parameters: normal(0.02) for matrices and embeddings, as in GPT-2."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    shapes = jax.eval_shape(Decoder(config).init, key, tokens, tokens)["params"]
    leaves, tree = jax.tree_util.tree_flatten_with_path(shapes)
    keys = jax.random.split(key, len(leaves))
    return jax.tree_util.tree_unflatten(
        tree,
        [_init_leaf(config, path, leaf, k) for (path, leaf), k in zip(leaves, keys, strict=True)],
    )


def _init_leaf(
    config: DecoderConfig, path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct, key: jax.Array
) -> jax.Array:
    names = [part.key for part in path]
    if names[-1] == "scale":
        return jnp.ones(leaf.shape, leaf.dtype)
    learned = set(names) & set(config.learned())
    if learned and names[-1] != "kernel":
        start = config.start(learned.pop())
        return jnp.full(leaf.shape, math.log(start / (1 - start)), leaf.dtype)
    if names[-1] == "bias":
        return jnp.zeros(leaf.shape, leaf.dtype)
    return 0.02 * jax.random.normal(key, leaf.shape, leaf.dtype)
