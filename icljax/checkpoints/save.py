"""A trained decoder -> the Hugging Face folder that icljax/checkpoints/load.py reads."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from icljax.attention import Kind
from icljax.errors import UserError
from icljax.models.decoder import DecoderConfig
from icljax.models.families import decoder_config
from icljax.models.family_tables import ATTENTION_KEY, FAMILIES
from icljax.models.plans import Plan, axis_sizes, plan
from icljax.runtime import workdir
from icljax.types import Params


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
    prefix = FAMILIES[hf["model_type"]].prefixes[0]
    tensors = _tensors(plan(hf, config), prefix, config, params)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    tokenizer.save(str(folder / "tokenizer.json"))
    workdir.write_atomically(folder / "config.json", json.dumps(hf, indent=1).encode())


def _described(kind: str, config: DecoderConfig) -> dict[str, Any]:
    """What the keys of a family say, as `decoder_config` reads them."""
    keys = FAMILIES[kind].keys.items()
    named = {key if isinstance(key, str) else key[0]: field for field, key in keys}
    return {"model_type": kind} | {key: getattr(config, field) for key, field in named.items()}


def _llama(config: DecoderConfig) -> dict[str, Any]:
    return _described("llama", config) | {
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_width,
        "rope_theta": config.ropes[0].theta if config.ropes else None,
        "hidden_act": "silu",
        "attention_bias": config.qkv_bias,
    }


def _gpt2(config: DecoderConfig) -> dict[str, Any]:
    return _described("gpt2", config) | {"activation_function": "gelu_new"}


def _tensors(
    reading: Plan, prefix: str, config: DecoderConfig, params: Params
) -> dict[str, np.ndarray]:
    """The inverse of how icljax/checkpoints/stream.py reads a plan's tensors, in float32."""
    sizes = axis_sizes(config)
    leaves = flatten_dict(params)
    split: dict[str, np.ndarray] = {}  # axes that the file joins are still two
    shapes: dict[str, tuple[int, ...]] = {}
    for path, leaf in reading.leaves.items():
        axes, stacked = leaf.layout.axes, np.asarray(leaves[path], np.float32)
        stacked = stacked - np.float32(leaf.add)
        order = [leaf.layout.leaf.index(axis) for axis in axes if not axis.isdigit()]
        part = tuple(leaf.part if axis.isdigit() else slice(None) for axis in axes)
        for layer, x in enumerate(stacked if leaf.stacked else [stacked]):
            name = leaf.name(prefix, layer)
            if name not in split:
                split[name] = np.empty(leaf.layout.split_shape(sizes), np.float32)
                shapes[name] = leaf.layout.file_shape(sizes)
            split[name][part] = x.transpose(order)
    return {name: x.reshape(shapes[name]) for name, x in split.items()}
