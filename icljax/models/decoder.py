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
from icljax.attention.mixing import Past, Prefix, capped, mix
from icljax.models.config import MLPS
from icljax.models.config import DecoderConfig as DecoderConfig
from icljax.models.rotary import rotate
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
        attn_out: [B, A, D], after the output projection, before a norm that follows it and the
            residual sum.
        scores_query: [B, A, H, S], what softmax is given (scaled logits, capped where the model
            caps them) of the row's own tokens; those beyond a window, which softmax does not see,
            are told apart by `forward.own_tokens`.
        rotated: [B, A, G, 1, K], scaled query vector as it meets the keys, summed over the query
            heads of a group: times a state's keys, its logits to the state summed over heads. With
            a soft cap [B, A, G, J, K], each head's own.
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
        number: Int[jax.Array, ""],
        at: Int[Array, "B A"] | None,
    ) -> tuple[Float[jax.Array, "B S D"], LayerOutput]:
        """The output of layer `number`, and what it leaves."""
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
            axes = -1 if c.qk_norm == "head" else (-2, -1)
            query, k = _norm(c, "query_norm", axes)(query), _norm(c, "key_norm", axes)(k)
        scale = c.head_width**-0.5 if c.attention_scale is None else c.attention_scale
        q = query = query * scale
        if c.ropes:
            q, k = (rotate(x, positions, c.ropes, number[None]) for x in (q, k))
        q = q.reshape(batch, length, groups, c.num_heads // groups, c.head_width)
        learned = self._learned(x)
        tokens = Tokens(q, k, v)
        which = number % len(c.attention)
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
        cap = self.config.score_cap
        return AttentionRecord(
            attn_out=take_positions(out, at).astype(jnp.float32),
            scores_query=capped(scores, cap).reshape(batch, studied, self.config.num_heads, -1),
            rotated=q_at if cap else jnp.sum(q_at, 3, keepdims=True),
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


def _norm(config: DecoderConfig, name: str, axes: int | tuple[int, ...] = -1) -> nn.Module:
    """Over some last axes; statistics in float32, result in the compute dtype."""
    kind = nn.RMSNorm if config.norm == "rms" else nn.LayerNorm
    return kind(
        epsilon=config.norm_eps,
        dtype=config.dtype,
        reduction_axes=axes,
        feature_axes=axes,
        name=name,
    )


class Block(nn.Module):
    """One layer, in the form that `nn.scan` wants: carry, then scanned-over inputs."""

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
        """The sum with attention's output, the layer's output, what it leaves.

        Args:
            layer: its number, and its part of the state: keys, values, memory.
        """
        number, layer_state = layer
        prefix = None
        if layer_state is not None and valid is not None:
            keys, values, memory = layer_state
            prefix = Prefix(keys, values, valid, memory)
        c = self.config

        def before(name: str, x: jax.Array) -> jax.Array:
            return x if c.norms == "after" else _norm(c, name)(x)

        def summed(x: jax.Array, out: jax.Array, name: str) -> jax.Array:
            out = out if c.norms == "before" else _norm(c, name)(out)
            return x + c.residual_scale * out

        normed = before("attention_norm", x)
        attention = Attention(c, name="attention")
        out, left = attention(normed, positions, past, prefix, number, at)
        after = summed(x, out, "attention_out_norm")
        if c.block != "shared_norm":
            normed = before("mlp_norm", after if c.block == "sequential" else x)
        return after, summed(after, Mlp(c, name="mlp")(normed), "mlp_out_norm"), left


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
        number = jnp.arange(c.num_layers)
        layer_state = None if state is None else (state.keys, state.values, state.memory)
        state_valid = None if state is None else state.valid
        x, left = self.layers(x, (number, layer_state), state_valid, positions, past, at)
        return Hidden(self.final_norm(x), *left)

    def logits(self, hidden: Float[jax.Array, "*batch D"]) -> Float[jax.Array, "*batch V"]:
        """Logits, float32, of what the final norm gives."""
        c = self.config
        logits = (self.embed.attend if c.tied else self.unembed)(hidden).astype(jnp.float32)
        return capped(logits * c.logit_scale, c.logit_cap)

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
