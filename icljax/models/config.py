"""What a decoder looks like, as frozen records: what `icljax.models.decoder` builds."""

import dataclasses
import functools
from collections.abc import Callable
from typing import cast

import jax
from jax import nn

from icljax.attention import Kind
from icljax.attention.mixing import LEARNABLE
from icljax.errors import UserError, check_known

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
    "norms": ("before", "after", "both"),
    "qk_norm": ("", "head", "row"),
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
            (Llama 3.1). Without an original length, all are: linear scaling; infinity: nothing
            is turned, the layer has no positions.
        ramp: where it is given, pairs up to its first number are not lengthened, those from its
            second on wholly, in between a mixture (YaRN).
        amplitude: what turned queries and keys are multiplied with, each (YaRN).
    """

    theta: float = 10_000.0
    width: int = 0
    interleaved: bool = False
    factor: float = 1.0
    low: float = 0.0
    high: float = 1.0
    original_length: int = 0
    ramp: tuple[float, float] | None = None
    amplitude: float = 1.0


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """What a decoder looks like; nothing about how it is run on devices.

    Attributes:
        norm: "rms" (Llama) or "layer" (GPT-2).
        norms: of each sublayer: "before" it, "after" it (OLMo 2), or "both" (Gemma 2).
        positions: Rope, or some, layer by layer, repeated over the layers; or what is added to the
            embeddings: "learned" or "sinusoidal" (XGLM's).
        position_offset: row of the position table at which the first token stands.
        embed_scale: what embeddings are multiplied with; the output projection is not.
        residual_scale: what a sublayer's output is multiplied with before the sum (Granite).
        logit_scale: what logits are multiplied with (Granite).
        logit_cap: logits are cap * tanh(logits / cap) (Gemma 2); 0: as they are.
        block: "sequential"; "parallel": attention and MLP read the same input (GPT-NeoX), or
            "shared_norm": even through one norm (GPT-J).
        mlp: one of `MLPS`.
        qk_norm: norms of queries and keys before the rotation, over the width of each "head" or
            over the "row" of all heads (OLMo 2); "": none.
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
    norms: str = "before"
    positions: Rope | tuple[Rope, ...] | str = Rope()
    position_offset: int = 0
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    logit_cap: float = 0.0
    block: str = "sequential"
    mlp: str = "swiglu"
    qk_norm: str = ""
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
        """Raises a UserError for what the decoder does not have."""
        for field, known in _NAMES.items():
            check_known(field, getattr(self, field), known)
        if not self.ropes:
            check_known("positions", cast(str, self.positions), ("learned", "sinusoidal"))
        if len({(rope.width, rope.interleaved) for rope in self.ropes}) > 1:
            raise UserError(
                "positions turn other parts of a head in some layers than in others; expected the "
                "same width and pairs in all: give another model"
            )
        if len({kind.cap for kind in self.attention if kind.base == "softmax"}) > 1:
            raise UserError(
                "attention has soft caps that differ from layer to layer; expected one: give "
                "another model"
            )

    @property
    def ropes(self) -> tuple[Rope, ...]:
        """By what queries and keys are turned, layer by layer; none: embeddings have positions."""
        if isinstance(self.positions, str):
            return ()
        return (self.positions,) if isinstance(self.positions, Rope) else self.positions

    @property
    def score_cap(self) -> float:
        """The soft cap on attention logits; 0: none."""
        return max(kind.cap for kind in self.attention)

    @property
    def windows(self) -> tuple[int, ...]:
        """How many tokens each layer sees, repeated over the layers; none where all see all."""
        windows = tuple(kind.window for kind in self.attention)
        return windows if any(windows) else ()

    def learned(self) -> tuple[str, ...]:
        """The numbers of its kinds of attention that are parameters."""
        return tuple(n for n in LEARNABLE if any(n in kind.learn for kind in self.attention))

    def start(self, name: str) -> float:
        """Where a learned number starts."""
        return next(getattr(k, name) for k in self.attention if name in k.learn)
