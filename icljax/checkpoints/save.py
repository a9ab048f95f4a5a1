"""A trained decoder -> the Hugging Face folder that icljax/checkpoints/load.py reads."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from icljax.attention import Kind
from icljax.errors import UserError
from icljax.models.decoder import DecoderConfig
from icljax.models.families import ATTENTION_KEY, LEARNED_NAME, decoder_config
from icljax.runtime import workdir
from icljax.types import Params

Tensors = dict[str, np.ndarray]


def save(
    folder: Path, config: DecoderConfig, params: Params, tokenizer: Tokenizer, bos: int, eos: int
) -> None:
    """Writes a Llama-type or GPT-2 model, float32; config.json comes last.

    Raises:
        UserError: for a decoder that is neither.
    """
    llama = config.norm == "rms"
    hf = {"bos_token_id": bos, "eos_token_id": eos} | (_llama(config) if llama else _gpt2(config))
    if config.attention != (Kind(),):
        hf[ATTENTION_KEY] = [dataclasses.asdict(kind) for kind in config.attention]
    same = {name: getattr(config, name) for name in ("dtype", "remat", "implementation")}
    if dataclasses.replace(decoder_config(hf, folder), **same) != config:
        raise UserError(f"{folder}: only Llama-type and GPT-2 decoders can be written: {config}")
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
    tensors = (_llama_tensors if llama else _gpt2_tensors)(params)
    for name in config.learned():
        tensors |= _layers(
            "model.layers." if llama else "h.", LEARNED_NAME.format(name), params, name
        )
    folder.mkdir(parents=True, exist_ok=True)
    contiguous = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
    save_file(contiguous, folder / "model.safetensors")
    tokenizer.save(str(folder / "tokenizer.json"))
    workdir.write_atomically(folder / "config.json", json.dumps(hf, indent=1).encode())


def _llama(config: DecoderConfig) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_width,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope.theta if config.rope else None,
        "hidden_act": "silu",
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        "tie_word_embeddings": config.tied,
    }


def _gpt2(config: DecoderConfig) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_layer": config.num_layers,
        "n_embd": config.width,
        "n_inner": config.mlp_width,
        "n_head": config.num_heads,
        "n_positions": config.context_length,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": "gelu_new",
        "tie_word_embeddings": config.tied,
    }


def _llama_tensors(params: Params) -> Tensors:
    """The inverse of the plan that checkpoints.py reads Llama-type models by."""
    layers = params["layers"]
    tensors = {
        "model.embed_tokens.weight": params["embed"]["embedding"],
        "model.norm.weight": params["final_norm"]["scale"],
    }
    if "unembed" in params:
        tensors["lm_head.weight"] = params["unembed"]["kernel"].T
    names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
    parts = {f"self_attn.{theirs}": layers["attention"][ours] for ours, theirs in names.items()}
    parts |= {f"mlp.{name}_proj": layers["mlp"][name] for name in ("up", "gate", "down")}
    parts |= {"input_layernorm": layers["attention_norm"]}
    parts |= {"post_attention_layernorm": layers["mlp_norm"]}
    for name, part in parts.items():
        joined = name.endswith("o_proj")
        tensors |= _layered("model.layers.", name, _flat(part, joined), transposed=True)
    return tensors


def _gpt2_tensors(params: Params) -> Tensors:
    """The inverse of the plan that checkpoints.py reads GPT-2 by."""
    layers = params["layers"]
    tensors = {
        "wte.weight": params["embed"]["embedding"],
        "wpe.weight": params["embed_positions"]["embedding"],
        "ln_f.weight": params["final_norm"]["scale"],
        "ln_f.bias": params["final_norm"]["bias"],
    }
    if "unembed" in params:
        tensors["lm_head.weight"] = params["unembed"]["kernel"].T
    thirds = [_flat(layers["attention"][name], False) for name in ("query", "key", "value")]
    parts = {
        "ln_1": layers["attention_norm"],
        "ln_2": layers["mlp_norm"],
        "attn.c_attn": {p: np.concatenate([t[p] for t in thirds], -1) for p in thirds[0]},
        "attn.c_proj": _flat(layers["attention"]["output"], True),
        "mlp.c_fc": layers["mlp"]["up"],
        "mlp.c_proj": layers["mlp"]["down"],
    }
    for name, part in parts.items():
        tensors |= _layered("h.", name, part, transposed=False)
    return tensors


def _flat(part: Params, joined: bool) -> Params:
    """A projection with its head axes made one: kernels [L, in, out], biases [L, out].

    Args:
        joined: whether the heads are on the input side.
    """
    out = {}
    for name, x in part.items():
        if name == "kernel":
            out[name] = (
                x.reshape(len(x), -1, x.shape[-1]) if joined else x.reshape(*x.shape[:2], -1)
            )
        else:
            out[name] = x.reshape(len(x), -1)
    return out


def _layered(prefix: str, name: str, part: Params, transposed: bool) -> Tensors:
    """One module of every layer, under its Hugging Face names."""
    tensors: Tensors = {}
    for field, stacked in part.items():
        if field == "kernel" and transposed:
            stacked = stacked.swapaxes(1, 2)
        suffix = "bias" if field == "bias" else "weight"
        tensors |= {f"{prefix}{i}.{name}.{suffix}": x for i, x in enumerate(stacked)}
    return tensors


def _layers(prefix: str, theirs: str, params: Params, name: str) -> Tensors:
    """A learned number of the attention: one tensor a layer, or a module for beta."""
    leaf = params["layers"]["attention"][name]
    if isinstance(leaf, dict):
        return _layered(prefix, theirs, leaf, transposed=prefix.startswith("model"))
    return {f"{prefix}{i}.{theirs}": x for i, x in enumerate(leaf)}
