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
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, PRNGKeyArray, Shaped

from icljax.attention import Kind, Memory, Tokens
from icljax.attention.mixing import LEARNABLE, Past, Prefix, mix
from icljax.errors import check_known
from icljax.types import Array, Params

# DecoderConfig.mlp -> (activation, whether it is of a gate that multiplies the MLP's inner values).
MLPS: dict[str, tuple[Callable[[jax.Array], jax.Array], bool]] = {
    "swiglu": (nn.silu, True),
    "geglu": (functools.partial(nn.gelu, approximate=True), True),
    "gelu_new": (functools.partial(nn.gelu, approximate=True), False),
    "gelu": (functools.partial(nn.gelu, approximate=False), False),
    "relu": (nn.relu, False),
}

# What DecoderConfig's fields of these names may be.
_NAMES = {
    "norm": ("rms", "layer"),
    "block": ("sequential", "parallel", "shared_norm"),
    "mlp": tuple(MLPS),
}


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary positions (Su et al. 2021).

    Attributes:
        theta: base of the wavelengths.
        width: how many of a head's first numbers are turned; 0: all.
        interleaved: pairs are neighbours (GPT-J), not the two halves of what is turned (Llama).
        factor: longer wavelengths are lengthened by it: those above `original_length / low`
            wholly, those below `original_length / high` not at all, in between a mixture
            (Llama 3.1). Without an original length, all are: linear scaling.
    """

    theta: float = 10_000.0
    width: int = 0
    interleaved: bool = False
    factor: float = 1.0
    low: float = 0.0
    high: float = 1.0
    original_length: int = 0


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """What a decoder looks like; nothing about how it is run on devices.

    Attributes:
        norm: "rms" (Llama) or "layer" (GPT-2); always before the sublayer.
        positions: Rope, or what is added to the embeddings: "learned" or "sinusoidal" (XGLM's).
        position_offset: row of the position table at which the first token stands.
        embed_scale: what embeddings are multiplied with; the output projection is not.
        block: "sequential"; "parallel": attention and MLP read the same input (GPT-NeoX), or
            "shared_norm": even through one norm (GPT-J).
        mlp: one of `MLPS`.
        qk_norm: norms over the width of each head of queries and keys, before the rotation.
        attention_scale: of scores; None: 1 / sqrt(head_width).
        attention: how tokens are mixed, layer by layer; repeated over the layers.
        implementation: of attention, one of `mixing.IMPLEMENTATIONS`.
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
    positions: Rope | str = Rope()
    position_offset: int = 0
    embed_scale: float = 1.0
    block: str = "sequential"
    mlp: str = "swiglu"
    qk_norm: bool = False
    attention_scale: float | None = None
    attention: tuple[Kind, ...] = (Kind(),)
    implementation: str = "auto"
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    unembed_bias: bool = False
    tied: bool = True
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self) -> None:
        """Raises a UserError for a name that the decoder does not have."""
        for field, known in _NAMES.items():
            check_known(field, getattr(self, field), known)
        if self.rope is None:
            check_known("positions", cast(str, self.positions), ("learned", "sinusoidal"))

    @property
    def rope(self) -> Rope | None:
        """By what queries and keys are turned; None where positions are added to embeddings."""
        return self.positions if isinstance(self.positions, Rope) else None

    def learned(self) -> tuple[str, ...]:
        """The numbers of its kinds of attention that are parameters."""
        return tuple(n for n in LEARNABLE if any(n in kind.learn for kind in self.attention))

    def start(self, name: str) -> float:
        """Where a learned number starts."""
        return next(getattr(k, name) for k in self.attention if name in k.learn)


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


def sinusoids(positions: Int[jax.Array, "B S"], width: int) -> Float[jax.Array, "B S {width}"]:
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
        at: Int[jax.Array, "B A"] | None,
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
        at: jax.Array,
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
        at: Int[jax.Array, "B A"] | None,
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
        self, tokens: Int[jax.Array, "B S"], positions: Int[jax.Array, "B S"]
    ) -> Float[jax.Array, "B S D"]:
        """What enters the first layer."""
        c = self.config
        x = self.embed(tokens) * c.embed_scale
        if c.positions == "learned":
            # Padding may stand beyond the table; what is read never does (`job.context_limit`).
            last = c.context_length + c.position_offset - 1
            x = x + self.embed_positions(jnp.minimum(positions + c.position_offset, last))
        elif c.positions == "sinusoidal":
            x = x + sinusoids(positions + c.position_offset, c.width).astype(x.dtype)
        return x

    def hidden(
        self,
        tokens: Int[jax.Array, "B S"],
        positions: Int[jax.Array, "B S"],
        mask: Bool[jax.Array, "B S S"] | None = None,
        state: State | None = None,
        at: Int[jax.Array, "B A"] | None = None,
        valid: Bool[jax.Array, "B S"] | None = None,
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
        past = Past(positions - start + 1, mask, valid)
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
        tokens: Int[jax.Array, "B S"],
        positions: Int[jax.Array, "B S"],
        mask: Bool[jax.Array, "B S S"] | None = None,
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
