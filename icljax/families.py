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

from icljax.attention import Kind
from icljax.errors import UserError
from icljax.mixing import LEARNABLE
from icljax.model import DecoderConfig, Rope, init_params

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
        outside = self.tensor.startswith(_UNEMBEDS)
        return ("" if outside else prefix) + self.tensor.format(layer)


class Plan(NamedTuple):
    """How a checkpoint's tensors become the decoder's parameters.

    Attributes:
        leaves: of every path in the parameter tree, e.g. ("layers", "mlp", "up", "kernel").
        prefixes: alternatives for `Leaf.name`; the one with which the first leaf's exists holds.
        ignored: endings of the names of tensors that nothing needs.
    """

    leaves: dict[tuple[str, ...], Leaf]
    prefixes: tuple[str, ...] = ("",)
    ignored: tuple[str, ...] = ()


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
    only: dict[str, tuple[Any, ...]]
    mlps: dict[str, str]
    more: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]
    modules: dict[str, str]
    prefixes: tuple[str, ...]
    joint: str = ""
    inputs_first: bool = False
    norm_add: float = 0.0


# ---- From config.json --------------------------------------------------------------------------


def decoder_config(hf: dict[str, Any], where: Path | str) -> DecoderConfig:
    """A Hugging Face config.json as a DecoderConfig.

    Args:
        hf: the file's content.
        where: names it in errors.

    Raises:
        UserError: for an architecture or option that the decoder does not have.
    """
    kind = hf.get("model_type")
    if kind not in FAMILIES:
        what = (
            "config.json has no 'model_type'" if kind is None else f"model_type {kind!r} is unknown"
        )
        raise UserError(f"{where}: {what}; supported: {', '.join(FAMILIES)}")
    try:
        fields = _fields(hf, FAMILIES[kind])
        own = tuple(Kind(**{**k, "learn": tuple(k["learn"])}) for k in hf.get(ATTENTION_KEY, ()))
        return DecoderConfig(**fields | ({"attention": own} if own else {}))
    except KeyError as e:
        raise UserError(f"{where}: config.json has no {e.args[0]!r}, which {kind} needs") from e
    except (TypeError, ValueError, ZeroDivisionError) as e:
        raise UserError(f"{where}: config.json: {e}") from e


def _fields(hf: dict[str, Any], family: Family) -> dict[str, Any]:
    """DecoderConfig's fields."""
    for key, supported in family.only.items():
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
    return fields | family.more(hf, fields)


def _value(hf: dict[str, Any], key: str | tuple[str, Any]) -> Any:
    if isinstance(key, str):
        return hf[key]
    value = hf.get(key[0])
    return key[1] if value is None else value


def _expect(hf: dict[str, Any], key: str, supported: Sequence[Any]) -> None:
    value = hf.get(key)
    if value is not None and value not in supported:
        raise ValueError(
            f"{key}={value!r} is not supported, only {' or '.join(map(repr, supported))}; use "
            "another model"
        )


def _rope(hf: dict[str, Any], partial: float = 1.0, head_width: int = 0) -> Rope:
    """Rotary positions; `partial` is how much of a head they turn by default."""
    given = {**(hf.get("rope_scaling") or {}), **(hf.get("rope_parameters") or {})}
    kind = "rope_type" if "rope_type" in given else "type"  # the key's older name
    _expect(given, kind, ("default", "linear", "llama3"))
    theta = given.get("rope_theta") or hf.get("rope_theta") or hf.get("rotary_emb_base")
    share = given.get("partial_rotary_factor") or hf.get("rotary_pct") or partial
    rope = Rope(float(theta or 10_000.0), 0 if share == 1 else int(share * head_width))
    if given.get(kind) == "linear":
        return dataclasses.replace(rope, factor=float(given["factor"]))
    if given.get(kind) == "llama3":
        factor, low, high = (
            float(given[key]) for key in ("factor", "low_freq_factor", "high_freq_factor")
        )
        context = given.get("original_max_position_embeddings", hf["max_position_embeddings"])
        return dataclasses.replace(rope, factor=factor, low=low, high=high, original_length=context)
    return rope


def _pattern(windows: Sequence[int]) -> tuple[Kind, ...]:
    """Softmax attention with each layer's window (0: none), as the shortest repeated pattern."""
    periods = range(1, len(windows) + 1)
    period = next(p for p in periods if all(w == windows[i % p] for i, w in enumerate(windows)))
    return tuple(Kind(window=w) for w in windows[:period])


def _llama(hf: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    bias = hf.get("attention_bias") or False
    return {"positions": _rope(hf), "qkv_bias": bias, "output_bias": bias}


def _mistral(hf: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    return {"positions": _rope(hf), "attention": _pattern([hf.get("sliding_window", 4096) or 0])}


def _qwen(hf: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """Qwen2 and Qwen3: the layers from `max_window_layers` on have a window, where one is used."""
    out = {"positions": _rope(hf)}
    if not hf.get("use_sliding_window"):
        return out
    count, first = fields["num_layers"], hf.get("max_window_layers", 28)
    kinds = hf.get("layer_types") or ["full_attention"] * first + ["sliding_attention"] * count
    windows = [hf["sliding_window"] if k == "sliding_attention" else 0 for k in kinds[:count]]
    return out | {"attention": _pattern(windows)}


def _qwen3(hf: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    head_width = hf.get("head_dim") or 128
    return _llama(hf, fields) | _qwen(hf, fields) | {"head_width": head_width}


def _gemma(hf: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    scale, head_width = math.sqrt(fields["width"]), hf.get("head_dim") or 256
    return _llama(hf, fields) | {"embed_scale": scale, "head_width": head_width}


def _gpt_neo(hf: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    kinds = [k for kinds, times in hf["attention_types"] for _ in range(times) for k in kinds]
    if len(kinds) != fields["num_layers"]:
        raise ValueError(f"attention_types are of {len(kinds)} layers, not {fields['num_layers']}")
    if not set(kinds) <= {"global", "local"}:
        raise ValueError(f"attention_types={sorted(set(kinds))} are not all 'global' or 'local'")
    windows = [hf.get("window_size", 256) if kind == "local" else 0 for kind in kinds]
    return {"attention": _pattern(windows)}


def _gptj(hf: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    if not hf["rotary_dim"]:
        raise ValueError("rotary_dim is not given, which the published models have; use another")
    return {"positions": Rope(width=hf["rotary_dim"], interleaved=True)}


def _gpt_neox(hf: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    parallel = hf.get("use_parallel_residual", True)
    return {
        "positions": _rope(hf, 0.25, fields["head_width"]),
        "block": "parallel" if parallel else "sequential",
        "output_bias": fields["qkv_bias"],
    }


def _opt(hf: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    _expect(hf, "word_embed_proj_dim", (fields["width"],))  # OPT-350m's embeddings are narrower
    return dict.fromkeys(("output_bias", "mlp_bias"), fields["qkv_bias"])


def _xglm(hf: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    return {"embed_scale": math.sqrt(fields["width"]) if hf.get("scale_embedding", True) else 1.0}


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
    unused = (f"{family.modules['unembed']}.weight",) if config.tied else ()
    return Plan({path: _leaf(family, path) for path in paths}, family.prefixes, _BUFFERS + unused)


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


# ---- The tables --------------------------------------------------------------------------------

_UNEMBEDS = ("lm_head", "embed_out")
# Causal masks and such, which older checkpoints carry.
_BUFFERS = (
    ".attn.bias",
    ".attn.masked_bias",
    ".attention.bias",
    ".attention.masked_bias",
    ".rotary_emb.inv_freq",
    "embed_positions.weights",
)
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
            "add_cross_attention": (False,),
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
        only={"tie_word_embeddings": (False,)},
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
        only={"add_cross_attention": (False,)},
        mlps={"gelu": "gelu"} | _MLPS,
        more=_xglm,
        modules=_FAIRSEQ.modules | {"final_norm": "layer_norm"},
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA._replace(more=_mistral),
    "qwen2": _LLAMA._replace(fixed={"qkv_bias": True}, more=_qwen),
    "qwen3": _LLAMA._replace(fixed={"qk_norm": True}, more=_qwen3),
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
