"""Hugging Face's model types as data: config.json -> DecoderConfig, and which tensor each leaf is.

A family is a table: the keys of its config.json, what all of its models share, the names of its
modules. What a table cannot say is one small function of its own. Sources: the configuration_*.py
and modeling_*.py of each type in `transformers`, with its defaults for keys that are missing.

Shape glossary, the letters of a plan's patterns (sizes: `axis_sizes`):
  D model width    F MLP width           H query heads          G key/value heads
  K head width     V vocabulary          P rows of the position table
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from icljax import forms
from icljax.attention import Kind
from icljax.attention.mixing import LEARNABLE, check_kind
from icljax.errors import UserError
from icljax.forms import COUNT, FLAG, LAYERS, SIZE, TABLE, TEXT
from icljax.models.decoder import DecoderConfig, Rope, init_params, sinusoids

# Where config.json says which kinds of attention a model has, and what their numbers are called.
ATTENTION_KEY = "icljax_attention"
LEARNED_NAME = "self_attn.icljax_{}"


class Leaf(NamedTuple):
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
    def outside(self) -> bool:
        """Whether it is the output projection's."""
        return self.tensor.startswith(_UNEMBEDS)


class Rows(NamedTuple):
    """Some rows of a buffer: `values` float64 [n, C] from row `first` of `total` on."""

    values: np.ndarray
    first: int
    total: int


class Buffer(NamedTuple):
    """A tensor that older checkpoints carry and the decoder computes: dropped where both agree.

    Attributes:
        ending: of its name.
        what: it holds, for messages.
        agrees: whether rows of it, in some layer of a decoder, are what that decoder computes.
    """

    ending: str
    what: str
    agrees: Callable[[Rows, DecoderConfig, int], bool]


class Plan(NamedTuple):
    """How a checkpoint's tensors become the decoder's parameters.

    Attributes:
        leaves: of every path in the parameter tree, e.g. ("layers", "mlp", "up", "kernel").
        prefixes: alternatives for `Leaf.name`; the first with which a leaf's exists holds.
        tied: the output projection's tensor where it is the embedding: either may be missing.
        buffers: what the file may hold beside the leaves.
        config: the decoder as config.json has it, which computes what is in the buffers.
    """

    leaves: dict[tuple[str, ...], Leaf]
    prefixes: tuple[str, ...] = ("",)
    tied: str = ""
    buffers: tuple[Buffer, ...] = ()
    config: DecoderConfig | None = None


class Family(NamedTuple):
    """One model_type.

    Attributes:
        keys: DecoderConfig's field -> key of config.json, with a default where it may be missing.
        fixed: fields that all its models share.
        only: key of config.json -> the values that the decoder has, the default first.
        mlps: activation in config.json -> DecoderConfig.mlp.
        more: what is more than a look-up.
        modules: the decoder's modules -> the file's, without prefix.
        prefixes: as in `Plan`.
        joint: axes of one tensor that holds query, key and value; "": there are three.
        inputs_first: layers' matrices are [in, out] (GPT-2's Conv1D), not a Linear's [out, in].
        norm_add: added to the scales of norms.
    """

    keys: dict[str, str | tuple[str, Any]]
    fixed: dict[str, Any]
    only: dict[str, Sequence[Any]]
    mlps: dict[str, str]
    more: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]
    modules: dict[str, str]
    prefixes: tuple[str, ...]
    joint: str = ""
    inputs_first: bool = False
    norm_add: float = 0.0


# ---- From config.json --------------------------------------------------------------------------


def decoder_config(
    hf: dict[str, Any], where: Path | str, source: str = "config.json"
) -> DecoderConfig:
    """A Hugging Face config.json as a DecoderConfig.

    Args:
        hf: the file's content.
        where: names its folder in errors.
        source: names it there.

    Raises:
        UserError: for an architecture or option that the decoder does not have, and for a value
            that is none of its key's.
    """
    kind = hf.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        what = f"model_type {forms.shown(kind)} is unknown"
        what = f"{source} has no 'model_type'" if kind is None else what
        raise UserError(f"{where}: {what}; supported: {', '.join(FAMILIES)}")
    named = f"{where}: {source}"
    forms.check(named, hf, _FORMS)
    for key in _ROPE_TABLES:
        forms.check(f"{named}: {key}", hf.get(key) or {}, _ROPE_FORMS)
    _refuse_quantised(named, hf)
    own = _own_kinds(named, hf)
    try:
        fields = _fields(hf, FAMILIES[kind])
    except KeyError as e:
        raise UserError(f"{where}: {source} has no {e.args[0]!r}, which {kind} needs") from e
    except ValueError as e:
        raise UserError(f"{named}: {e}") from e
    return DecoderConfig(**fields | ({"attention": own} if own else {}))


def _refuse_quantised(named: str, hf: dict[str, Any]) -> None:
    """Quantised weights are numbers only together with scales that the decoder does not read."""
    for key in ("quantization_config", "compression_config"):
        if about := hf.get(key):
            method = about.get("quant_method") if isinstance(about, dict) else None
            by = f" by {forms.shown(method)}" if method else ""
            raise UserError(
                f"{named}: {key}: the weights are quantised{by}, which is not supported; "
                f"{DEQUANTISE}"
            )


def _own_kinds(named: str, hf: dict[str, Any]) -> tuple[Kind, ...]:
    """The kinds of attention of a model that was trained here."""
    kinds = []
    for given in hf.get(ATTENTION_KEY) or ():
        forms.check(f"{named}: {ATTENTION_KEY}", given, _KIND_FORMS)
        given = {name: value for name, value in given.items() if value is not None}
        try:
            kind = Kind(**{**given, "learn": tuple(given.get("learn", ()))})
            check_kind(kind)
        except (TypeError, AttributeError, UserError) as e:
            raise UserError(f"{named}: {ATTENTION_KEY}: {forms.one_line(e)}") from e
        kinds.append(kind)
    return tuple(kinds)


def _fields(hf: dict[str, Any], family: Family) -> dict[str, Any]:
    """DecoderConfig's fields."""
    for key, supported in (_NEUTRAL | family.only).items():
        _expect(hf, key, supported)
    fields = {field: _value(hf, key) for field, key in family.keys.items()}
    heads, groups = fields["num_heads"], hf.get("num_key_value_heads") or fields["num_heads"]
    if heads % groups:
        raise ValueError(f"{groups} key/value heads cannot be shared evenly by {heads} heads")
    key = "activation_function" if "activation_function" in hf else "hidden_act"
    _expect(hf, key, tuple(family.mlps))
    fields |= {
        "num_kv_heads": groups,
        "head_width": hf.get("head_dim") or fields["width"] // heads,
        "mlp_width": fields["mlp_width"] or 4 * fields["width"],
        "mlp": family.mlps[hf.get(key) or next(iter(family.mlps))],
        **family.fixed,
    }
    more = family.more(hf, fields)
    if not hf.get("head_dim") and "head_width" not in more and fields["width"] % heads:
        raise ValueError(f"a width of {fields['width']} cannot be cut evenly into {heads} heads")
    fields |= more
    _check_positions(fields)
    return fields


def _value(hf: dict[str, Any], key: str | tuple[str, Any]) -> Any:
    value = hf.get(key if isinstance(key, str) else key[0])
    if value is not None:
        return value
    if isinstance(key, str):
        raise KeyError(key)
    return key[1]


def _expect(hf: dict[str, Any], key: str, supported: Sequence[Any]) -> None:
    """Refuses a value that is not supported; in a list, one item that is not."""
    value = hf.get(key)
    for item in value if isinstance(value, list) else [value]:
        if item is not None and item not in supported:
            only = f", only {' or '.join(map(repr, supported))}" if supported else ""
            raise ValueError(f"{key}={forms.shown(item)} is not supported{only}; use another model")


def _check_positions(fields: dict[str, Any]) -> None:
    """Rotations turn pairs of a head's numbers; sinusoids are sines and as many cosines."""
    positions = fields.get("positions")
    if isinstance(positions, Rope):
        width = positions.width or fields["head_width"]
        if width % 2 or width > fields["head_width"]:
            raise ValueError(
                f"{width} of a head's {fields['head_width']} numbers cannot be rotated: they are "
                "turned in pairs"
            )
    if positions == "sinusoidal" and (fields["width"] % 2 or fields["width"] < 4):
        raise ValueError(
            f"a width of {fields['width']} has no sinusoidal positions, only even ones"
        )


def _rope(hf: dict[str, Any], fields: dict[str, Any], partial: float | None = None) -> Rope:
    """Rotary positions; `partial`: how much of a head they turn by default, None: always all."""
    tables = [hf[key] for key in _ROPE_TABLES if hf.get(key)]
    given = tables[0] if tables else {}
    for table in tables:
        if table.get("rope_type", table.get("type")) != table.get("type", table.get("rope_type")):
            raise ValueError("type and rope_type of the rotary positions differ; remove one")
        if unknown := sorted(table.keys() - _ROPE_FORMS.keys()):
            raise ValueError(f"{forms.shown(unknown[0])} of the rotary positions is not supported")
        if table != given:
            raise ValueError(f"{' and '.join(_ROPE_TABLES)} differ; remove one")
    kind = "rope_type" if "rope_type" in given else "type"  # the key's older name
    _expect(given, kind, ("default", "linear", "llama3"))
    theta = given.get("rope_theta") or hf.get("rope_theta") or hf.get("rotary_emb_base")
    shares = (given.get("partial_rotary_factor"), hf.get("partial_rotary_factor"))
    share = next((x for x in (*shares, hf.get("rotary_pct")) if x), partial or 1)
    if partial is None and share != 1:
        raise ValueError(f"rotating only {share:g} of each head is not supported")
    width = 0 if share == 1 else int(share * fields["head_width"])
    if share != 1 and not width:
        raise ValueError(f"{share:g} of a head's {fields['head_width']} numbers is none to rotate")
    rope = Rope(float(theta or 10_000.0), width)
    scales = [key for key in _ROPE_SCALES if given.get(key) is not None]
    if scales and given.get(kind) is None:
        raise ValueError(
            f"the rotary positions have {scales[0]}={given[scales[0]]:g} and no rope_type; add it, "
            "or remove the scaling"
        )
    if given.get(kind) == "linear":
        return dataclasses.replace(rope, factor=float(_value(given, "factor")))
    if given.get(kind) == "llama3":
        factor, low, high = (
            float(_value(given, key)) for key in ("factor", "low_freq_factor", "high_freq_factor")
        )
        if low >= high:
            raise ValueError(f"low_freq_factor={low:g} is not below high_freq_factor={high:g}")
        context = given.get("original_max_position_embeddings") or fields["context_length"]
        return dataclasses.replace(rope, factor=factor, low=low, high=high, original_length=context)
    return rope


def _pattern(windows: Sequence[int]) -> tuple[Kind, ...]:
    """Softmax attention with each layer's window (0: none), as the shortest repeated pattern."""
    periods = range(1, len(windows) + 1)
    period = next(p for p in periods if all(w == windows[i % p] for i, w in enumerate(windows)))
    return tuple(Kind(window=w) for w in windows[:period])


def _llama(hf: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    bias = hf.get("attention_bias") or False
    return {"positions": _rope(hf, fields), "qkv_bias": bias, "output_bias": bias}


def _mistral(hf: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    window = hf.get("sliding_window", 4096) or 0
    return {"positions": _rope(hf, fields), "attention": _pattern([window])}


def _qwen(hf: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """Qwen2 and Qwen3: the layers from `max_window_layers` on have a window, where one is used."""
    count, kinds = fields["num_layers"], hf.get("layer_types")
    if kinds and len(kinds) != count:
        raise ValueError(f"layer_types are of {len(kinds)} layers, not {count}")
    out = {"positions": _rope(hf, fields)}
    if not hf.get("use_sliding_window"):
        return out
    first, window = _value(hf, ("max_window_layers", 28)), _value(hf, "sliding_window")
    kinds = kinds or ["full_attention" if i < first else "sliding_attention" for i in range(count)]
    return out | {"attention": _pattern([window * (k == "sliding_attention") for k in kinds])}


def _qwen3(hf: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    head_width = hf.get("head_dim") or 128
    return _llama(hf, fields) | _qwen(hf, fields) | {"head_width": head_width}


def _gemma(hf: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    scale, head_width = math.sqrt(fields["width"]), hf.get("head_dim") or 256
    return _llama(hf, fields) | {"embed_scale": scale, "head_width": head_width}


def _gpt_neo(hf: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    count, repeated = fields["num_layers"], _value(hf, "attention_types")
    given = sum(len(kinds) * times for kinds, times in repeated)
    if given != count:
        raise ValueError(f"attention_types are of {given} layers, not {count}")
    kinds = [kind for kinds, times in repeated for _ in range(times) for kind in kinds]
    if not set(kinds) <= {"global", "local"}:
        raise ValueError(f"attention_types={sorted(set(kinds))} are not all 'global' or 'local'")
    window = _value(hf, ("window_size", 256))
    return {"attention": _pattern([window if kind == "local" else 0 for kind in kinds])}


def _gptj(hf: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    if not hf.get("rotary_dim"):
        raise ValueError("rotary_dim is not given, which the published models have; use another")
    return {"positions": Rope(width=hf["rotary_dim"], interleaved=True)}


def _gpt_neox(hf: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    parallel = _value(hf, ("use_parallel_residual", True))
    return {
        "positions": _rope(hf, fields, 0.25),
        "block": "parallel" if parallel else "sequential",
        "output_bias": fields["qkv_bias"],
    }


def _opt(hf: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    _expect(hf, "word_embed_proj_dim", (fields["width"],))  # OPT-350m's embeddings are narrower
    return dict.fromkeys(("output_bias", "mlp_bias"), fields["qkv_bias"])


def _xglm(hf: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    scaled = _value(hf, ("scale_embedding", True))
    return {"embed_scale": math.sqrt(fields["width"]) if scaled else 1.0}


# ---- To the decoder's parameters ---------------------------------------------------------------


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
    leaves = {path: _leaf(family, path) for path in paths}
    # `config` may have been given another kind of attention since.
    return Plan(leaves, family.prefixes, tied, _BUFFERS, decoder_config(hf, "the model"))


def _leaf(family: Family, path: tuple[str, ...]) -> Leaf:
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
    return Leaf(tensor, f"{axes} -> {axes}", add=family.norm_add if kind == "scale" else 0.0)


def _matrix(family: Family, module: str, bias: bool) -> tuple[str, int]:
    """Pattern and part of a matrix, or of its bias."""
    outputs, inputs = _MATRICES[module]
    part = 0
    if family.joint and module in _JOINED:
        outputs, part = f"({family.joint})", _JOINED.index(module)
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
    if config.rope is None or rows.total != 1:
        return False
    half = (config.rope.width or config.head_width) // 2
    plain = config.rope.theta ** (-np.arange(half) / half)
    scaled = plain if config.rope.original_length else plain / config.rope.factor
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


# ---- The tables --------------------------------------------------------------------------------

DEQUANTISE = "give a dequantised copy (float32, float16 or bfloat16), or a GGUF file of the model"
_UNEMBEDS = ("lm_head", "embed_out")
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
# What each key of config.json that is read may be, whatever the family.
_ROPE_TABLES = ("rope_scaling", "rope_parameters")  # older, newer
_FORMS = {
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer"), LAYERS),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "vocab_size", "head_dim"), SIZE),
    **dict.fromkeys(("num_attention_heads", "num_heads", "n_head", "attention_heads"), SIZE),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "num_key_value_heads"), SIZE),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "word_embed_proj_dim"), SIZE),
    **dict.fromkeys(("rotary_dim", "window_size"), SIZE),
    **dict.fromkeys(("sliding_window", "max_window_layers"), COUNT),
    **dict.fromkeys(("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps"), forms.number(0, 1)),
    **dict.fromkeys(("rope_theta", "rotary_emb_base"), forms.number()),
    **dict.fromkeys(("rotary_pct", "partial_rotary_factor"), forms.number(0, 1)),
    **dict.fromkeys(("attention_bias", "mlp_bias", "tie_word_embeddings", "enable_bias"), FLAG),
    **dict.fromkeys(("use_sliding_window", "use_parallel_residual", "scale_embedding"), FLAG),
    **dict.fromkeys(("scale_attn_weights", "scale_attn_by_inverse_layer_idx"), FLAG),
    **dict.fromkeys(("add_cross_attention", "do_layer_norm_before"), FLAG),
    **dict.fromkeys(("_remove_final_layer_norm", "layer_norm_elementwise_affine"), FLAG),
    **dict.fromkeys(("hidden_act", "activation_function", "hidden_activation"), TEXT),
    **dict.fromkeys(_ROPE_TABLES, TABLE),
    "layer_types": forms.listed(TEXT),
    "attention_types": forms.listed(
        forms.Form(
            "[list of kinds, how often]",
            lambda x: (
                isinstance(x, list)
                and len(x) == 2
                and forms.listed(TEXT).holds(x[0])
                and LAYERS.holds(x[1])
            ),
        )
    ),
    ATTENTION_KEY: forms.listed(TABLE),
}
_ROPE_SCALES = ("factor", "low_freq_factor", "high_freq_factor")
_ROPE_FORMS = {
    **dict.fromkeys(("rope_type", "type"), TEXT),
    **dict.fromkeys(("rope_theta", *_ROPE_SCALES), forms.number()),
    "partial_rotary_factor": forms.number(0, 1),
    "original_max_position_embeddings": SIZE,
}
_NUMBER = forms.Form("a number", lambda x: type(x) in (int, float))  # `check_kind` has its bounds
_KIND_FORMS = {
    field.name: {"str": TEXT, "bool": FLAG, "int": COUNT, "float": _NUMBER}.get(
        type(field.default).__name__, forms.listed(TEXT)
    )
    for field in dataclasses.fields(Kind)
}
# Keys of relatives of these families that change what is computed, and the values with which they
# do not. A family's `only` comes before it.
_NEUTRAL: dict[str, Sequence[Any]] = {
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", "logit_softcap"), ()),
    **dict.fromkeys(("query_pre_attn_scalar", "attention_multiplier", "clip_qkv"), ()),
    **dict.fromkeys(("attention_chunk_size", "dim_model_base", "scale_depth"), ()),
    **dict.fromkeys(("logit_scale", "logits_scaling", "embedding_multiplier"), (1,)),
    **dict.fromkeys(("residual_multiplier", "lm_head_multiplier", "scale_emb"), (1,)),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), (0, 1)),
    **dict.fromkeys(("n_shared_experts", "n_shared_head", "num_kv_shared_layers"), (0,)),
    **dict.fromkeys(("alibi", "use_alibi", "multi_query", "new_decoder_architecture"), (False,)),
    **dict.fromkeys(("use_qk_norm", "qk_norm", "qk_layernorm", "parallel_attn"), (False,)),
    **dict.fromkeys(("is_encoder_decoder", "add_cross_attention"), (False,)),
    **dict.fromkeys(("attn_temperature_tuning", "use_sliding_window"), (False,)),
    **dict.fromkeys(("no_rope_layers", "no_rope_layer_interval"), ()),
    "sliding_window": (0,),
    "layer_types": ("full_attention",),
}
_WINDOWS: dict[str, Any] = {
    "sliding_window": range(2**31),
    "use_sliding_window": (False, True),
    "layer_types": ("full_attention", "sliding_attention"),
}
_JOINED = ("query", "key", "value")
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
_OTHER_AXES = {"embed": "V D", "embed_positions": "P D", "query_norm": "K", "key_norm": "K"}


def _modules(layer: str, outside: dict[str, str], inside: dict[str, str]) -> dict[str, str]:
    """The decoder's modules -> the file's; those `inside` a layer are named within it."""
    inside = {ours: layer + theirs for ours, theirs in inside.items()}
    return {"layer": layer, "unembed": _UNEMBEDS[0]} | outside | inside


def _projections(parent: str, output: str) -> dict[str, str]:
    names = {name: f"{parent}.{name[0]}_proj" for name in _JOINED}
    return names | {"output": f"{parent}.{output}"}


_KEYS: dict[str, str | tuple[str, Any]] = {
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "width": "hidden_size",
    "num_heads": "num_attention_heads",
    "context_length": "max_position_embeddings",
    "mlp_width": "intermediate_size",
}
_GPT_KEYS = _KEYS | {
    "num_layers": "n_layer",
    "width": "n_embd",
    "num_heads": "n_head",
    "context_length": "n_positions",
    "mlp_width": ("n_inner", None),
    "norm_eps": ("layer_norm_epsilon", 1e-5),
    "tied": ("tie_word_embeddings", True),
}
_BIASES = dict.fromkeys(("qkv_bias", "output_bias", "mlp_bias"), True)
_MLPS = {
    "gelu_new": "gelu_new",
    "gelu": "gelu",
    "relu": "relu",
    "gelu_pytorch_tanh": "gelu_new",
    "gelu_fast": "gelu_new",
}
_GPT_PREFIXES = ("", "transformer.")
_GPT_OUTSIDE = {"embed": "wte", "embed_positions": "wpe", "final_norm": "ln_f"}
_GPT_NORMS = {"attention_norm": "ln_1", "mlp_norm": "ln_2"}

_LLAMA = Family(
    keys=_KEYS
    | {
        "norm_eps": "rms_norm_eps",
        "mlp_bias": ("mlp_bias", False),
        "tied": ("tie_word_embeddings", False),
    },
    fixed={},
    only={},
    mlps={"silu": "swiglu"},
    more=_llama,
    modules=_modules(
        "layers.{}.",
        {"embed": "embed_tokens", "final_norm": "norm"},
        {
            "attention_norm": "input_layernorm",
            "mlp_norm": "post_attention_layernorm",
            **_projections("self_attn", "o_proj"),
            "query_norm": "self_attn.q_norm",
            "key_norm": "self_attn.k_norm",
            **{name: f"mlp.{name}_proj" for name in ("gate", "up", "down")},
        },
    ),
    prefixes=("model.", ""),
)
_FAIRSEQ = Family(
    keys=_KEYS | {"mlp_width": "ffn_dim", "tied": ("tie_word_embeddings", True)},
    fixed={"norm": "layer", "position_offset": 2},
    only={},
    mlps=_MLPS,
    more=_opt,
    modules=_modules(
        "layers.{}.",
        {"embed": "embed_tokens", "embed_positions": "embed_positions"},
        {
            "attention_norm": "self_attn_layer_norm",
            "mlp_norm": "final_layer_norm",
            **_projections("self_attn", "out_proj"),
            "up": "fc1",
            "down": "fc2",
        },
    ),
    prefixes=("model.", ""),
)

FAMILIES = {
    "gpt2": Family(
        keys=_GPT_KEYS,
        fixed={"norm": "layer", "positions": "learned", **_BIASES},
        only={
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
        },
        mlps=_MLPS,
        more=lambda hf, fields: {},
        modules=_modules(
            "h.{}.",
            _GPT_OUTSIDE,
            {
                **_GPT_NORMS,
                **dict.fromkeys(_JOINED, "attn.c_attn"),
                "output": "attn.c_proj",
                "up": "mlp.c_fc",
                "down": "mlp.c_proj",
            },
        ),
        prefixes=_GPT_PREFIXES,
        joint="3 H K",
        inputs_first=True,
    ),
    "gpt_neo": Family(
        keys=_GPT_KEYS
        | {
            "num_layers": "num_layers",
            "width": "hidden_size",
            "num_heads": "num_heads",
            "context_length": "max_position_embeddings",
            "mlp_width": ("intermediate_size", None),
        },
        fixed={"norm": "layer", "positions": "learned", **_BIASES}
        | {"qkv_bias": False, "attention_scale": 1.0},
        only={},
        mlps=_MLPS,
        more=_gpt_neo,
        modules=_modules(
            "h.{}.",
            _GPT_OUTSIDE,
            {
                **_GPT_NORMS,
                **_projections("attn.attention", "out_proj"),
                "up": "mlp.c_fc",
                "down": "mlp.c_proj",
            },
        ),
        prefixes=_GPT_PREFIXES,
    ),
    "gptj": Family(
        keys=_GPT_KEYS | {"tied": ("tie_word_embeddings", False)},
        fixed={"norm": "layer", "block": "shared_norm", "mlp_bias": True, "unembed_bias": True},
        only={"tie_word_embeddings": (False,), "rope_theta": (10_000,)}
        | dict.fromkeys(_ROPE_TABLES, ()),
        mlps=_MLPS,
        more=_gptj,
        modules=_modules(
            "h.{}.",
            _GPT_OUTSIDE,
            {
                **_GPT_NORMS,
                **_projections("attn", "out_proj"),
                "up": "mlp.fc_in",
                "down": "mlp.fc_out",
            },
        ),
        prefixes=_GPT_PREFIXES,
    ),
    "gpt_neox": Family(
        keys=_KEYS
        | {
            "norm_eps": ("layer_norm_eps", 1e-5),
            "qkv_bias": ("attention_bias", True),
            "tied": ("tie_word_embeddings", False),
        },
        fixed={"norm": "layer", "mlp_bias": True},
        only={},
        mlps={"gelu": "gelu"} | _MLPS,
        more=_gpt_neox,
        modules=_modules(
            "layers.{}.",
            {"embed": "embed_in", "final_norm": "final_layer_norm", "unembed": _UNEMBEDS[1]},
            {
                "attention_norm": "input_layernorm",
                "mlp_norm": "post_attention_layernorm",
                **dict.fromkeys(_JOINED, "attention.query_key_value"),
                "output": "attention.dense",
                "up": "mlp.dense_h_to_4h",
                "down": "mlp.dense_4h_to_h",
            },
        ),
        prefixes=("gpt_neox.", ""),
        joint="H 3 K",
    ),
    "opt": _FAIRSEQ._replace(
        keys=_FAIRSEQ.keys | {"qkv_bias": ("enable_bias", True)},
        fixed={**_FAIRSEQ.fixed, "positions": "learned"},
        only={
            "do_layer_norm_before": (True,),
            "_remove_final_layer_norm": (False,),
            "layer_norm_elementwise_affine": (True,),
        },
        mlps={"relu": "relu"} | _MLPS,
        modules=_FAIRSEQ.modules | {"final_norm": "final_layer_norm"},
        prefixes=("model.decoder.", "decoder."),
    ),
    # Also the fairseq dense language models of Artetxe et al. 2021.
    "xglm": _FAIRSEQ._replace(
        keys=_FAIRSEQ.keys
        | {"num_layers": "num_layers", "width": "d_model", "num_heads": "attention_heads"},
        fixed={**_FAIRSEQ.fixed, "positions": "sinusoidal", **_BIASES},
        only={},
        mlps={"gelu": "gelu"} | _MLPS,
        more=_xglm,
        modules=_FAIRSEQ.modules | {"final_norm": "layer_norm"},
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA._replace(only=_WINDOWS, more=_mistral),
    "qwen2": _LLAMA._replace(fixed={"qkv_bias": True}, only=_WINDOWS, more=_qwen),
    "qwen3": _LLAMA._replace(fixed={"qk_norm": True}, only=_WINDOWS, more=_qwen3),
    "gemma": _LLAMA._replace(
        keys=_LLAMA.keys | {"tied": ("tie_word_embeddings", True)},
        only={
            "hidden_activation": ("gelu_pytorch_tanh",),
            "use_bidirectional_attention": (False,),
        },
        mlps={"gelu_pytorch_tanh": "geglu", "gelu": "geglu"},
        more=_gemma,
        norm_add=1.0,
    ),
}
