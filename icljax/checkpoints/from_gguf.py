"""GGUF files (Llama, Qwen2, Qwen3, Gemma) turned into Hugging Face folders."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from icljax import forms
from icljax.checkpoints import gguf_tokenizer, tensor_files
from icljax.checkpoints.gguf_file import FORMS, Gguf, dequantized, read
from icljax.errors import UserError
from icljax.models import plans
from icljax.models.families import decoder_config

_TOP = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",  # absent where the embedding is tied
}
_BLOCK = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
_HEAD_NORMS = {f"attn_{x}_norm.weight": f"self_attn.{x}_norm.weight" for x in "qk"}
_NORMS_AFTER = {
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "ffn_norm.weight": "pre_feedforward_layernorm.weight",
    "post_ffw_norm.weight": "post_feedforward_layernorm.weight",
}


@dataclasses.dataclass(frozen=True)
class _Architecture:
    """What a general.architecture has beside Llama's tensors and fields.

    Attributes:
        block: tensors of a layer.
        model_type: in config.json; "": the architecture's name.
        config: keys of config.json, from the file.
        reads: fields that `config` reads.
        norm_add: what llama.cpp's converter adds to the scales of norms.
        neighbours: heads are rotated by neighbours, so that rows of projections are in that order.
    """

    block: dict[str, str] = dataclasses.field(default_factory=dict)
    model_type: str = ""
    config: Callable[[Gguf], dict[str, Any]] = lambda gguf: {}
    reads: tuple[str, ...] = ()
    norm_add: float = 0.0
    neighbours: bool = False


def _gemma(gguf: Gguf) -> dict[str, Any]:
    return dict.fromkeys(("hidden_act", "hidden_activation"), "gelu_pytorch_tanh")


def _gemma2(gguf: Gguf) -> dict[str, Any]:
    """Missing caps, windows and scales are as in llama.cpp."""
    width, heads = gguf.size("embedding_length"), gguf.size("attention.head_count")
    key_length = gguf.option("attention.key_length", width // heads)
    wide = (gguf.architecture, gguf.size("block_count")) in _SCALED_BY_WIDTH
    caps = {
        f"{name}_softcapping": gguf.option(f"{name}_softcapping", cap) or None
        for name, cap in (("attn_logit", 50.0), ("final_logit", 30.0))
    }
    return (
        _gemma(gguf)
        | caps
        | {
            "query_pre_attn_scalar": width // heads if wide else key_length,
            "sliding_window": gguf.option("attention.sliding_window", 4096),
        }
    )


def _gemma3(gguf: Gguf) -> dict[str, Any]:
    theta = _decimal(gguf.option("rope.freq_base", 1e6))
    local = _decimal(gguf.option("rope.freq_base_swa", 1e4))
    kind, factor = gguf.option("rope.scaling.type", "none"), gguf.option("rope.scaling.factor", 1.0)
    scaling: dict[str, Any] = {"rope_type": "default"}
    if kind == "linear":
        scaling = {"rope_type": "linear", "factor": factor}
    elif kind != "none":
        raise UserError(
            f"{gguf.path} has rotary scaling {forms.shown(kind)}, supported: 'none' and 'linear'. "
            "Give another model."
        )
    return _gemma2(gguf) | {
        "attn_logit_softcapping": None,
        "final_logit_softcapping": gguf.option("final_logit_softcapping", 0.0) or None,
        "sliding_window": gguf.size("attention.sliding_window"),
        "sliding_window_pattern": gguf.option("attention.sliding_window_pattern", 6),
        "rope_local_base_freq": local,
        "rope_parameters": {
            "full_attention": scaling | {"rope_theta": theta},
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        },
    }


# The 27B models divide scores by the root of another width than their heads', which llama.cpp, too,
# knows by the number of layers.
_SCALED_BY_WIDTH = (("gemma2", 46), ("gemma3", 62))
_CAPPED = ("attention.sliding_window", "final_logit_softcapping")
_ARCHITECTURES = {
    "llama": _Architecture(neighbours=True),
    "qwen2": _Architecture({f"attn_{x}.bias": f"self_attn.{x}_proj.bias" for x in "qkv"}),
    "qwen3": _Architecture(_HEAD_NORMS),
    "gemma": _Architecture(config=_gemma, norm_add=1.0),
    "gemma2": _Architecture(
        _NORMS_AFTER, config=_gemma2, reads=(*_CAPPED, "attn_logit_softcapping"), norm_add=1.0
    ),
    "gemma3": _Architecture(
        _NORMS_AFTER | _HEAD_NORMS,
        "gemma3_text",
        _gemma3,
        (
            *_CAPPED,
            "attention.sliding_window_pattern",
            "rope.freq_base_swa",
            "rope.scaling.factor",
        ),
        norm_add=1.0,
    ),
}
# Llama 3.1's and 3.2's frequencies are scaled by these; their factors are in the file.
_LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_FREQUENCIES = "rope_freqs.weight"
# Fields of the architecture that are not read, and with which values nothing changes: 0 stands for
# a factor that is not used. Any other field of it may change what the model computes.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.sliding_window": (0,),
    "attention.sliding_window_pattern": (),
    "rope.freq_base_swa": (),
    "attention.max_alibi_bias": (0,),
    "attention.clamp_kqv": (0,),
    "attention.scale": (0,),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "embedding_scale": (0, 1),
    "rope.scale_linear": (0, 1),
    "rope.scaling.factor": (0, 1),
    "rope.scaling.attn_factor": (0, 1),
    "use_parallel_residual": (False,),
    "pooling_type": (0,),
    "nextn_predict_layers": (0,),
}
# Of no effect, whatever their value.
_DESCRIBING = (
    "tensor_data_layout",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
)


def convert(path: Path, folder: Path, progress: Callable[[int, int], None] | None = None) -> None:
    """Writes `folder` as `transformers` and `tokenizers` read it, from the GGUF file `path`.

    The folder holds config.json, model.safetensors (float32; several files and their index where
    it is large), tokenizer.json (adds no BOS by itself) and tokenizer_config.json. It appears whole
    or not at all; where a complete one is there already (a second converter was faster), that one
    is kept. One tensor is in memory at a time.

    Args:
        path: the GGUF file, of one of `_ARCHITECTURES`, with a byte-level BPE vocabulary or pieces
            with scores (SentencePiece's).
        folder: the folder to make; its parents are made too.
        progress: called after each tensor with (tensors done, tensors in all).

    Raises:
        UserError: `path` is no GGUF file, is truncated, or holds something that is not supported.
    """
    gguf = read(path)
    config = _config(gguf)
    tokenizer = gguf_tokenizer.tokenizer(gguf, config)
    names = _hf_names(gguf, config)
    _check_shapes(gguf, config, names)
    architecture = _ARCHITECTURES[gguf.architecture]
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    done = 0

    def get(theirs: str) -> np.ndarray:
        nonlocal done
        array = dequantized(gguf, names[theirs])
        part = theirs.split(".")[-2]
        if architecture.neighbours and part in heads:
            array = _half_split_rows(array, heads[part])
        if part.endswith("norm"):
            array = array - np.float32(architecture.norm_add)
        done += 1
        if progress is not None:
            progress(done, len(names))
        return array

    with tensor_files.new_folder(folder) as made:
        _write_json(made / "config.json", config)
        _write_json(made / "tokenizer_config.json", gguf_tokenizer.options(gguf, config))
        tokenizer.save(str(made / "tokenizer.json"))
        shapes = {theirs: ("F32", gguf.tensors[ours].shape) for theirs, ours in names.items()}
        tensor_files.write(made, shapes, get)


# ---- The model ---------------------------------------------------------------------------------


def _config(gguf: Gguf) -> dict[str, Any]:
    """config.json of a LlamaForCausalLM, or a relative's."""
    name = gguf.architecture
    if name not in _ARCHITECTURES:
        raise UserError(
            f"{gguf.path} holds a model of architecture {forms.shown(name)}, supported: "
            f"{', '.join(map(repr, _ARCHITECTURES))}. Give a Llama-type model."
        )
    architecture = _ARCHITECTURES[name]
    _check_whole(gguf)
    if "token_embd.weight" not in gguf.tensors:
        raise _missing(gguf, "token_embd.weight")
    heads = gguf.size("attention.head_count")
    width = gguf.size("embedding_length")
    theta = _decimal(gguf.option("rope.freq_base", 10000.0))
    head_dim = gguf.option("attention.key_length", width // heads)
    return {
        "architectures": [f"{name.title()}ForCausalLM"],
        "model_type": architecture.model_type or name,
        "vocab_size": gguf.tensors["token_embd.weight"].shape[0],
        "hidden_size": width,
        "intermediate_size": gguf.size("feed_forward_length"),
        "num_hidden_layers": gguf.size("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": gguf.option("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": gguf.size("context_length"),
        "rms_norm_eps": _decimal(gguf.size("attention.layer_norm_rms_epsilon")),
        "rope_theta": theta,  # transformers 4; version 5 reads the next line
        "rope_parameters": {**_rope(gguf, theta, head_dim), "rope_theta": theta},
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "bos_token_id": gguf.fields.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": gguf.fields.get("tokenizer.ggml.eos_token_id"),
        "dtype": "float32",
        **architecture.config(gguf),
    }


def _check_whole(gguf: Gguf) -> None:
    """Refuses a part of a model, and a model that computes more than the decoder does."""
    kind, parts = (gguf.fields.get(n) for n in ("general.type", "split.count"))
    if (kind or "model") != "model" or (parts or 0) > 1:
        raise UserError(
            f"{gguf.path} holds a part of a model (general.type, split.count). Give the whole one: "
            "llama-gguf-split --merge, llama-export-lora."
        )
    start = f"{gguf.architecture}."
    width = gguf.size("embedding_length") // gguf.size("attention.head_count")
    head_dim = gguf.option("attention.key_length", width)
    neutral = {
        **_NEUTRAL,
        "vocab_size": (len(gguf.field("tokenizer.ggml.tokens")),),
        "attention.value_length": (head_dim,),
    }
    for name, value in gguf.fields.items():
        key = name.removeprefix(start)
        read = key == name or key in (*_DESCRIBING, *_ARCHITECTURES[gguf.architecture].reads)
        read = read or ("{}." + key in FORMS and key not in _NEUTRAL)
        if not read and value not in neutral.get(key, ()):
            raise UserError(
                f"{gguf.path} has {forms.shown(name)} = {forms.shown(value)}, which may change "
                "what the model computes and is not supported. Give another model."
            )


def _decimal(value: float) -> float:
    """The shortest decimal of a stored float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _rope(gguf: Gguf, theta: float, head_dim: int) -> dict[str, Any]:
    """The kind of rotary embedding; others would load and then be silently wrong."""
    scaling = gguf.option("rope.scaling.type", "none")
    own = "rope.scaling.factor" in _ARCHITECTURES[gguf.architecture].reads
    scaling = "none" if own else scaling
    rotated = gguf.option("rope.dimension_count", head_dim)
    if scaling != "none" or rotated != head_dim:
        raise UserError(
            f"{gguf.path} has rotary scaling {forms.shown(scaling)} over {rotated} of {head_dim} "
            f"head dimensions, supported: 'none' over all {head_dim}. Give another model."
        )
    if _FREQUENCIES not in gguf.tensors:
        return {"rope_type": "default"}
    stored = dequantized(gguf, _FREQUENCIES)
    factor = float(stored.max(initial=0))
    right = stored.shape == (head_dim // 2,) and 1 <= factor < math.inf
    if not right or not np.allclose(stored, _llama3_scales(theta, head_dim, factor), rtol=1e-3):
        raise UserError(
            f"{gguf.path} scales its rotary frequencies by {_FREQUENCIES}, but not as Llama 3.1 "
            "does. Give another model."
        )
    return {"rope_type": "llama3", "factor": factor, **_LLAMA3}


def _llama3_scales(theta: float, head_dim: int, factor: float) -> np.ndarray:
    """What Llama 3.1 divides its frequencies by [head_dim / 2]: long waves by all of `factor`."""
    waves = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    turns = _LLAMA3["original_max_position_embeddings"] / waves
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return 1 / ((1 - kept) / factor + kept)


def _hf_names(gguf: Gguf, config: dict[str, Any]) -> dict[str, str]:
    """Hugging Face name -> GGUF name, of exactly the tensors that the file must hold."""
    names = {f"{theirs}.weight": f"{ours}.weight" for ours, theirs in _TOP.items()}
    if config["tie_word_embeddings"]:
        del names["lm_head.weight"]
    for layer in range(config["num_hidden_layers"]):
        for ours, theirs in (_BLOCK | _ARCHITECTURES[gguf.architecture].block).items():
            names[f"model.layers.{layer}.{theirs}"] = f"blk.{layer}.{ours}"
    for name in names.values():
        if name not in gguf.tensors:
            raise _missing(gguf, name)
    if unknown := sorted(set(gguf.tensors) - set(names.values()) - {_FREQUENCIES}):
        raise UserError(
            f"{gguf.path} holds {len(unknown)} tensor(s) that a plain model of its architecture "
            f"({gguf.architecture}) with {config['num_hidden_layers']} layers does not have, such "
            f"as {forms.shown(unknown[0])}. Give a model without experts and added "
            "biases."
        )
    return names


def _check_shapes(gguf: Gguf, config: dict[str, Any], names: dict[str, str]) -> None:
    """Whether the fields are those of a model that the decoder has, and its tensors fit them."""
    decoder = decoder_config(config, gguf.path, "its header")
    shapes = plans.shapes(plans.plan(config, decoder), decoder, "model.")
    for theirs, expected in shapes.items():
        shape = gguf.tensors[names[theirs]].shape
        if shape != expected:
            raise UserError(
                f"{gguf.path}: tensor {names[theirs]} has shape {shape}, but its fields ask for "
                f"{expected}. Download it again, or give another file."
            )


def _missing(gguf: Gguf, name: str) -> UserError:
    return UserError(
        f"{gguf.path} has no tensor {name} among its {len(gguf.tensors)}, which the model "
        "needs. Download it again, or give another file."
    )


def _half_split_rows(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Puts the rows [num_heads * dh, D] of a query or key projection back in Hugging Face's order.

    llama.cpp rotates neighbours, rows (2i, 2i + 1) of a head; Hugging Face rotates rows
    (i, i + dh/2). This is the inverse of `permute` in llama.cpp's conversion script.
    """
    rows, width = weight.shape
    pairs = weight.reshape(num_heads, rows // num_heads // 2, 2, width)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows, width)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
