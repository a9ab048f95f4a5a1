"""Which tensor of a Hugging Face checkpoint each leaf of the parameter tree is, and how it lies.

Shape glossary, the letters of a plan's patterns (sizes: `axis_sizes`):
  D model width    F MLP width           H query heads          G key/value heads
  K head width     V vocabulary          P rows of the position table
"""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from icljax.attention.mixing import LEARNABLE
from icljax.models.decoder import DecoderConfig, init_params, sinusoids
from icljax.models.families import decoder_config
from icljax.models.family_tables import FAMILIES, JOINED, UNEMBEDS, Family

LEARNED_NAME = "self_attn.icljax_{}"  # a learned number of the attention, in a layer
# Each matrix's outputs and inputs.
_MATRICES = {
    "query": ("(H K)", "D"),
    "key": ("(G K)", "D"),
    "value": ("(G K)", "D"),
    "output": ("D", "(H K)"),
    "up": ("F", "D"),
    "gate": ("F", "D"),
    "down": ("D", "F"),
    "beta": ("G", "D"),
    "unembed": ("V", "D"),
}
_OTHER_AXES = {"embed": "V D", "embed_positions": "P D"}
_NORM_AXES = {  # of norms of queries and keys, by DecoderConfig.qk_norm
    "head": {"query_norm": ("K", "K"), "key_norm": ("K", "K")},
    "row": {"query_norm": ("(H K)", "H K"), "key_norm": ("(G K)", "G K")},
}

LeafPath = tuple[str, ...]  # of a leaf in the parameter tree


@dataclasses.dataclass(frozen=True)
class Layout:
    """A pattern such as "(H 3 K) D -> D H K", parsed.

    Attributes:
        groups: the file's axes, each a group of letters or digits.
        leaf: the leaf's axes.
    """

    groups: tuple[tuple[str, ...], ...]
    leaf: tuple[str, ...]

    @functools.cached_property
    def axes(self) -> tuple[str, ...]:
        """The file's axes with the groups split."""
        return tuple(itertools.chain(*self.groups))

    def split_shape(self, sizes: dict[str, int]) -> tuple[int, ...]:
        """The tensor's shape with the groups split."""
        return tuple(int(a) if a.isdigit() else sizes[a] for a in self.axes)

    def file_shape(self, sizes: dict[str, int]) -> tuple[int, ...]:
        """The tensor's shape in the file."""
        return tuple(math.prod(Layout((g,), ()).split_shape(sizes)) for g in self.groups)


@functools.cache
def parse(pattern: str) -> Layout:
    """A plan's pattern."""
    file, leaf = pattern.split("->")
    groups = tuple(tuple((a or b).split()) for a, b in re.findall(r"\(([^)]*)\)|(\S)", file))
    return Layout(groups, tuple(leaf.split()))


@dataclasses.dataclass(frozen=True)
class Leaf:
    """Where a leaf of the parameter tree comes from.

    Attributes:
        tensor: the file's name for it; "{}" stands for the layer's number, and then the leaf is
            stacked, with a leading L axis that the pattern does not mention.
        pattern: the file's axes -> the leaf's. A digit is an axis of that size of which only
            index `part` is taken; parentheses join axes that the file holds as one.
        add: added after reading, in float32.
    """

    tensor: str
    pattern: str
    part: int = 0
    add: float = 0.0

    def name(self, prefix: str, layer: int = 0) -> str:
        """The whole name; the output projection stands outside the module that `prefix` names."""
        return ("" if self.outside else prefix) + self.tensor.format(layer)

    @property
    def stacked(self) -> bool:
        """Whether each layer has such a tensor."""
        return "{}" in self.tensor

    @property
    def layout(self) -> Layout:
        """The pattern, parsed."""
        return parse(self.pattern)

    @property
    def outside(self) -> bool:
        """Whether it is the output projection's."""
        return self.tensor.startswith(UNEMBEDS)


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of a buffer: `values` float64 [n, C] from row `first` of `total` on."""

    values: np.ndarray
    first: int
    total: int


@dataclasses.dataclass(frozen=True)
class Buffer:
    """A tensor that older checkpoints carry and the decoder computes: dropped where both agree.

    Attributes:
        ending: of its name.
        what: it holds, for messages.
        agrees: whether rows of it, in some layer of a decoder, are what that decoder computes.
    """

    ending: str
    what: str
    agrees: Callable[[Rows, DecoderConfig, int], bool]


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a checkpoint's tensors become the decoder's parameters.

    Attributes:
        leaves: of every path in the parameter tree, e.g. ("layers", "mlp", "up", "kernel").
        prefixes: alternatives for `Leaf.name`; the first with which a leaf's exists holds.
        tied: the output projection's tensor where it is the embedding: either may be missing.
        buffers: what the file may hold beside the leaves.
        config: the decoder as config.json has it, which computes what is in the buffers.
    """

    leaves: dict[LeafPath, Leaf]
    prefixes: tuple[str, ...] = ("",)
    tied: str = ""
    buffers: tuple[Buffer, ...] = ()
    config: DecoderConfig | None = None


def axis_sizes(config: DecoderConfig) -> dict[str, int]:
    """The size of each letter in a plan's patterns."""
    return {
        "D": config.width,
        "F": config.mlp_width,
        "H": config.num_heads,
        "G": config.num_kv_heads,
        "K": config.head_width,
        "V": config.vocab_size,
        "P": config.context_length + config.position_offset,
    }


def plan(hf: dict[str, Any], config: DecoderConfig) -> Plan:
    """Which tensor of a Hugging Face checkpoint each leaf of the parameter tree is.

    Args:
        hf: config.json, whose model_type `decoder_config` has accepted.
        config: what it made of it.
    """
    family = FAMILIES[hf["model_type"]]
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    paths = [
        tuple(part.key for part in path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)
    ]
    tied = f"{family.modules['unembed']}.weight" if config.tied else ""
    leaves = {path: _leaf(family, config.qk_norm, path) for path in paths}
    # `config` may have been given another kind of attention since.
    return Plan(leaves, family.prefixes, tied, _BUFFERS, decoder_config(hf, "the model"))


def shapes(plan: Plan, config: DecoderConfig, prefix: str) -> dict[str, tuple[int, ...]]:
    """The shape that each tensor of a plan has in a file."""
    sizes = axis_sizes(config)
    return {
        leaf.name(prefix, layer): leaf.layout.file_shape(sizes)
        for leaf in plan.leaves.values()
        for layer in range(config.num_layers if leaf.stacked else 1)
    }


def _leaf(family: Family, qk_norm: str, path: LeafPath) -> Leaf:
    """Where the leaf at `path` comes from: its module's tensor, and the axes."""
    module, kind = path[-2:]
    if kind in LEARNABLE:
        return Leaf(family.modules["layer"] + LEARNED_NAME.format(kind), "G -> G")
    if module in LEARNABLE:
        name = family.modules["layer"] + LEARNED_NAME.format(module)
    else:
        name = family.modules[module]
    tensor = f"{name}.{'bias' if kind == 'bias' else 'weight'}"
    if module in _MATRICES:
        return Leaf(tensor, *_matrix(family, module, kind == "bias"))
    axes = _OTHER_AXES.get(module, "D")
    file, ours = _NORM_AXES.get(qk_norm, {}).get(module, (axes, axes))
    return Leaf(tensor, f"{file} -> {ours}", add=family.norm_add if kind == "scale" else 0.0)


def _matrix(family: Family, module: str, bias: bool) -> tuple[str, int]:
    """Pattern and part of a matrix, or of its bias."""
    outputs, inputs = _MATRICES[module]
    part = 0
    if family.joint and module in JOINED:
        outputs, part = f"({family.joint})", JOINED.index(module)
    ours = " ".join(axis for axis in outputs.strip("()").split() if not axis.isdigit())
    if bias:
        return f"{outputs} -> {ours}", part
    inputs_first = family.inputs_first and module != "unembed"
    file = f"{inputs} {outputs}" if inputs_first else f"{outputs} {inputs}"
    return f"{file} -> {inputs.strip('()')} {ours}", part


# ---- Buffers -----------------------------------------------------------------------------------


def _causal_mask(rows: Rows, config: DecoderConfig, layer: int) -> bool:
    """1 where a token sees another, [T, T]; GPT-Neo's local layers have a window."""
    count, size = rows.values.shape
    if rows.total != size:
        return False
    window = config.attention[layer % len(config.attention)].window or size
    back = (rows.first + np.arange(count))[:, None] - np.arange(size)[None]
    return np.array_equal(rows.values, (back >= 0) & (back < window))


def _masked_value(rows: Rows, config: DecoderConfig, layer: int) -> bool:
    """What hides a token: as good as minus infinity."""
    return rows.values.size == rows.total == 1 and bool(rows.values.max() <= -1e4)


def _rotary_frequencies(rows: Rows, config: DecoderConfig, layer: int) -> bool:
    """Before linear scaling or after it; saved in half precision, perhaps."""
    if not config.ropes or rows.total != 1:
        return False
    rope = config.ropes[layer % len(config.ropes)]
    half = (rope.width or config.head_width) // 2
    plain = rope.theta ** (-np.arange(half) / half)
    scaled = plain if rope.original_length else plain / rope.factor
    found = rows.values[0]
    return found.shape == plain.shape and any(
        np.allclose(found, x, rtol=0.004, atol=1e-7) for x in (plain, scaled)
    )


def _sinusoids(rows: Rows, config: DecoderConfig, layer: int) -> bool:
    """XGLM's table, in which the row of padding is zero; float32 loses digits in far rows."""
    if config.positions != "sinusoidal" or rows.values.shape[1] != config.width:
        return False
    at = rows.first + np.arange(len(rows.values))
    right = np.asarray(sinusoids(jnp.asarray(at)[None], config.width))[0]
    padding = (at < config.position_offset) & ~rows.values.any(1)
    return bool((padding | (np.abs(rows.values - right) < 0.01).all(1)).all())


def _version(rows: Rows, config: DecoderConfig, layer: int) -> bool:
    """The number of fairseq's own format."""
    return rows.values.size == rows.total == 1


_BUFFERS = (
    *(Buffer(f".{x}.bias", "a causal mask", _causal_mask) for x in ("attn", "attention")),
    *(
        Buffer(f".{x}.masked_bias", "what hides tokens", _masked_value)
        for x in ("attn", "attention")
    ),
    Buffer("rotary_emb.inv_freq", "rotary frequencies", _rotary_frequencies),
    Buffer("embed_positions.weights", "sinusoidal positions", _sinusoids),
    Buffer("decoder.version", "fairseq's version", _version),
)
