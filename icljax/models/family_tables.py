"""Hugging Face's model types as data: keys of config.json, what a type shares, its tensors.

A family is a table; what it cannot say is one small function in icljax/models/options.py.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from icljax import forms
from icljax.attention import Kind
from icljax.forms import COUNT, FLAG, LAYERS, SIZE, TABLE, TEXT
from icljax.models import options
from icljax.models.options import ROPE_TABLES, Fields

# Where config.json says which kinds of attention a model has.
ATTENTION_KEY = "icljax_attention"
UNEMBEDS = ("lm_head", "embed_out")
JOINED = ("query", "key", "value")


@dataclasses.dataclass(frozen=True)
class Family:
    """One model_type.

    Attributes:
        keys: DecoderConfig's field -> key of config.json, with a default where it may be missing.
        mlps: activation in config.json -> DecoderConfig.mlp.
        modules: the decoder's modules -> the file's, without prefix.
        prefixes: as in `Plan`.
        fixed: fields that all its models share.
        only: key of config.json -> the values that the decoder has, the default first.
        reads: keys of `NEUTRAL` whose values `more` understands.
        more: what is more than a look-up.
        joint: axes of one tensor that holds query, key and value; "": there are three.
        inputs_first: layers' matrices are [in, out] (GPT-2's Conv1D), not a Linear's [out, in].
        norm_add: added to the scales of norms.
    """

    keys: dict[str, str | tuple[str, Any]]
    mlps: dict[str, str]
    modules: dict[str, str]
    prefixes: tuple[str, ...]
    fixed: dict[str, Any] = dataclasses.field(default_factory=dict)
    only: dict[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    reads: tuple[str, ...] = ()
    more: Callable[[dict[str, Any], Fields], Fields] = lambda hf, fields: {}
    joint: str = ""
    inputs_first: bool = False
    norm_add: float = 0.0


# What each key of config.json that is read may be, whatever the family.
FORMS = {
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer"), LAYERS),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "vocab_size", "head_dim"), SIZE),
    **dict.fromkeys(("num_attention_heads", "num_heads", "n_head", "attention_heads"), SIZE),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "num_key_value_heads"), SIZE),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "word_embed_proj_dim"), SIZE),
    **dict.fromkeys(("rotary_dim", "window_size"), SIZE),
    **dict.fromkeys(("sliding_window_pattern", "_sliding_window_pattern"), SIZE),
    **dict.fromkeys(("sliding_window", "max_window_layers"), COUNT),
    **dict.fromkeys(("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps"), forms.number(0, 1)),
    **dict.fromkeys(("rope_theta", "rotary_emb_base", "rope_local_base_freq"), forms.number()),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping"), forms.number()),
    **dict.fromkeys(("query_pre_attn_scalar", "logits_scaling"), forms.number()),
    **dict.fromkeys(("embedding_multiplier", "residual_multiplier"), forms.number()),
    **dict.fromkeys(("attention_multiplier",), forms.number()),
    **dict.fromkeys(("use_qkv_bias",), FLAG),
    "no_rope_layer_interval": SIZE,
    "no_rope_layers": forms.listed(forms.whole(0, 1)),
    **dict.fromkeys(("rotary_pct", "partial_rotary_factor"), forms.number(0, 1)),
    **dict.fromkeys(("attention_bias", "mlp_bias", "tie_word_embeddings", "enable_bias"), FLAG),
    **dict.fromkeys(("use_sliding_window", "use_parallel_residual", "scale_embedding"), FLAG),
    **dict.fromkeys(("scale_attn_weights", "scale_attn_by_inverse_layer_idx"), FLAG),
    **dict.fromkeys(("add_cross_attention", "do_layer_norm_before"), FLAG),
    **dict.fromkeys(("_remove_final_layer_norm", "layer_norm_elementwise_affine"), FLAG),
    **dict.fromkeys(("hidden_act", "activation_function", "hidden_activation"), TEXT),
    **dict.fromkeys(ROPE_TABLES, TABLE),
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
_NUMBER = forms.Form("a number", lambda x: type(x) in (int, float))  # `check_kind` has its bounds
KIND_FORMS = {
    field.name: {"str": TEXT, "bool": FLAG, "int": COUNT, "float": _NUMBER}.get(
        type(field.default).__name__, forms.listed(TEXT)
    )
    for field in dataclasses.fields(Kind)
}
# Keys of relatives of these families that change what is computed, and the values with which they
# do not. A family's `only` comes before it.
NEUTRAL: dict[str, Sequence[Any]] = {
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
    "layer_types": options.LAYER_TYPES,
}


def _modules(layer: str, outside: dict[str, str], inside: dict[str, str]) -> dict[str, str]:
    """The decoder's modules -> the file's; those `inside` a layer are named within it."""
    inside = {ours: layer + theirs for ours, theirs in inside.items()}
    return {"layer": layer, "unembed": UNEMBEDS[0]} | outside | inside


def _projections(parent: str, output: str) -> dict[str, str]:
    names = {name: f"{parent}.{name[0]}_proj" for name in JOINED}
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
    mlps={"silu": "swiglu"},
    more=options.llama,
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
_OUT_NORMS = {
    "attention_out_norm": "layers.{}.post_attention_layernorm",
    "mlp_out_norm": "layers.{}.post_feedforward_layernorm",
}
_GEMMA = dataclasses.replace(
    _LLAMA,
    keys=_LLAMA.keys | {"tied": ("tie_word_embeddings", True)},
    only={
        "hidden_activation": ("gelu_pytorch_tanh",),
        "use_bidirectional_attention": (False,),
    },
    mlps={"gelu_pytorch_tanh": "geglu", "gelu": "geglu"},
    more=options.gemma,
    norm_add=1.0,
)
_GEMMA_2 = dataclasses.replace(
    _GEMMA,
    fixed={"norms": "both"},
    only=_GEMMA.only | _WINDOWS,
    reads=("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"),
    more=options.gemma2,
    modules=_LLAMA.modules | _OUT_NORMS | {"mlp_norm": "layers.{}.pre_feedforward_layernorm"},
)
_FAIRSEQ = Family(
    keys=_KEYS | {"mlp_width": "ffn_dim", "tied": ("tie_word_embeddings", True)},
    fixed={"norm": "layer", "position_offset": 2},
    mlps=_MLPS,
    more=options.opt,
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
        modules=_modules(
            "h.{}.",
            _GPT_OUTSIDE,
            {
                **_GPT_NORMS,
                **dict.fromkeys(JOINED, "attn.c_attn"),
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
        mlps=_MLPS,
        more=options.gpt_neo,
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
        | dict.fromkeys(ROPE_TABLES, ()),
        mlps=_MLPS,
        more=options.gptj,
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
        mlps={"gelu": "gelu"} | _MLPS,
        more=options.gpt_neox,
        modules=_modules(
            "layers.{}.",
            {"embed": "embed_in", "final_norm": "final_layer_norm", "unembed": UNEMBEDS[1]},
            {
                "attention_norm": "input_layernorm",
                "mlp_norm": "post_attention_layernorm",
                **dict.fromkeys(JOINED, "attention.query_key_value"),
                "output": "attention.dense",
                "up": "mlp.dense_h_to_4h",
                "down": "mlp.dense_4h_to_h",
            },
        ),
        prefixes=("gpt_neox.", ""),
        joint="H 3 K",
    ),
    "opt": dataclasses.replace(
        _FAIRSEQ,
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
    "xglm": dataclasses.replace(
        _FAIRSEQ,
        keys=_FAIRSEQ.keys
        | {"num_layers": "num_layers", "width": "d_model", "num_heads": "attention_heads"},
        fixed={**_FAIRSEQ.fixed, "positions": "sinusoidal", **_BIASES},
        mlps={"gelu": "gelu"} | _MLPS,
        more=options.xglm,
        modules=_FAIRSEQ.modules | {"final_norm": "layer_norm"},
    ),
    "llama": _LLAMA,
    "mistral": dataclasses.replace(_LLAMA, only=_WINDOWS, more=options.mistral),
    "qwen2": dataclasses.replace(
        _LLAMA, fixed={"qkv_bias": True}, only=_WINDOWS, more=options.qwen
    ),
    "qwen3": dataclasses.replace(
        _LLAMA, fixed={"qk_norm": "head"}, only=_WINDOWS, more=options.qwen3
    ),
    "olmo2": dataclasses.replace(
        _LLAMA,
        fixed={"norms": "after", "qk_norm": "row"},
        modules=_LLAMA.modules | _OUT_NORMS,
    ),
    "granite": dataclasses.replace(
        _LLAMA,
        reads=(
            *("embedding_multiplier", "residual_multiplier"),
            *("attention_multiplier", "logits_scaling"),
        ),
        more=options.granite,
    ),
    "smollm3": dataclasses.replace(
        _LLAMA,
        keys=_LLAMA.keys | {"tied": ("tie_word_embeddings", True)},
        reads=("no_rope_layers", "no_rope_layer_interval"),
        more=options.smollm3,
    ),
    "stablelm": dataclasses.replace(
        _LLAMA,
        keys=_LLAMA.keys
        | {"norm_eps": ("layer_norm_eps", 1e-5), "qkv_bias": ("use_qkv_bias", False)},
        fixed={"norm": "layer"},
        more=options.stablelm,
    ),
    "gemma": _GEMMA,
    "gemma2": _GEMMA_2,
    "gemma3_text": dataclasses.replace(
        _GEMMA_2,
        fixed={"norms": "both", "qk_norm": "head"},
        reads=("query_pre_attn_scalar", "final_logit_softcapping"),
        more=options.gemma3,
    ),
}
# Model types that are no family here, and what to do.
REFUSED = {
    "gemma3": "reads images too (Gemma3ForConditionalGeneration); give its text model alone, of "
    "model_type 'gemma3_text'",
}
