"""GGUF files (Llama, Qwen2, Qwen3) turned into Hugging Face folders.

The header is parsed here and not by `gguf.GGUFReader`: that one makes an array of every string of
the vocabulary (49k tokens: 2.6 s on CPU, here 0.1 s) and fails obscurely on a truncated file.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import dataclasses
import json
import math
import mmap
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, TokenType
from gguf.quants import dequantize, quant_shape_to_byte_shape
from tokenizers import AddedToken, Tokenizer

from icljax import forms
from icljax.checkpoints import stream
from icljax.data import bpe
from icljax.errors import UserError
from icljax.forms import COUNT, SIZE, TEXT
from icljax.models import families

_SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}  # value type -> struct letter
_STRING, _ARRAY = 8, 9
_LONGEST = 1 << 24  # items of an array, bytes of a text; large vocabularies have 2^18 tokens
_AXES = 4  # of a tensor, as in ggml

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
# What a layer of each architecture has beside these.
_MORE = {
    "llama": {},
    "qwen2": {f"attn_{x}.bias": f"self_attn.{x}_proj.bias" for x in "qkv"},
    "qwen3": {f"attn_{x}_norm.weight": f"self_attn.{x}_norm.weight" for x in "qk"},
}
# Llama 3.1's and 3.2's frequencies are scaled by these; their factors are in the file.
_LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_FREQUENCIES = "rope_freqs.weight"
_SPECIAL_IDS = ("bos_token_id", "eos_token_id")
_ARCHITECTURE = "general.architecture"
# What fields may be that are read; {} stands for the architecture.
_FORMS = {
    _ARCHITECTURE: TEXT,
    "general.type": TEXT,
    "split.count": COUNT,
    "{}.block_count": forms.LAYERS,
    "{}.context_length": SIZE,
    "{}.embedding_length": SIZE,
    "{}.feed_forward_length": SIZE,
    "{}.attention.head_count": SIZE,
    "{}.attention.head_count_kv": SIZE,
    "{}.attention.key_length": SIZE,
    "{}.attention.layer_norm_rms_epsilon": forms.number(0, 1),
    "{}.rope.freq_base": forms.number(),
    "{}.rope.dimension_count": SIZE,
    "{}.rope.scaling.type": TEXT,
    "tokenizer.ggml.model": TEXT,
    "tokenizer.ggml.pre": TEXT,
    "tokenizer.ggml.tokens": forms.listed(TEXT),
    "tokenizer.ggml.merges": forms.listed(
        forms.Form("two tokens with a blank between", lambda x: isinstance(x, str) and " " in x)
    ),
    "tokenizer.ggml.token_type": forms.listed(COUNT),
    "tokenizer.ggml.bos_token_id": COUNT,
    "tokenizer.ggml.eos_token_id": COUNT,
}
# Fields of the architecture that are not read, and with which values nothing changes: 0 stands for
# a factor that is not used. Any other field of it may change what the model computes.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.sliding_window": (0,),
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
        path: the GGUF file, of one of the architectures "llama", "qwen2" and "qwen3", with a
            byte-level BPE vocabulary.
        folder: the folder to make; its parents are made too.
        progress: called after each tensor with (tensors done, tensors in all).

    Raises:
        UserError: `path` is no GGUF file, is truncated, or holds something that is not supported.
    """
    gguf = _read(path)
    config = _config(gguf)
    tokenizer = _tokenizer(gguf, config)
    names = _hf_names(gguf, config)
    _check_shapes(gguf, config, names)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    done = 0

    def get(theirs: str) -> np.ndarray:
        nonlocal done
        array = _dequantize(gguf, names[theirs])
        part = theirs.split(".")[-2]
        if gguf.architecture == "llama" and part in heads:
            array = _half_split_rows(array, heads[part])
        done += 1
        if progress is not None:
            progress(done, len(names))
        return array

    with stream.new_folder(folder) as made:
        _write_json(made / "config.json", config)
        _write_json(made / "tokenizer_config.json", _tokenizer_config(gguf, config))
        tokenizer.save(str(made / "tokenizer.json"))
        shapes = {theirs: ("F32", gguf.tensors[ours].shape) for theirs, ours in names.items()}
        stream.write(made, shapes, get)


# ---- The file ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """Where a tensor lies: its type, its shape (outermost axis first), its bytes in the file."""

    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int

    @property
    def byte_shape(self) -> tuple[int, ...]:
        return quant_shape_to_byte_shape(self.shape, self.kind)

    @property
    def end(self) -> int:
        return self.offset + math.prod(self.byte_shape)


@dataclasses.dataclass(frozen=True)
class _Gguf:
    """A parsed GGUF file; fields of the model itself are named after its architecture."""

    path: Path
    fields: dict[str, Any]
    tensors: dict[str, _Tensor]

    @property
    def architecture(self) -> str:
        return self.field(_ARCHITECTURE)

    def field(self, name: str) -> Any:
        """The value of a field that must be there."""
        if name not in self.fields:
            raise UserError(
                f"{self.path} has no field {name}, which the model needs. "
                "Convert it again with llama.cpp, or give another file."
            )
        return self.fields[name]

    def size(self, name: str) -> Any:
        """The value of a field of this architecture that must be there."""
        return self.field(f"{self.architecture}.{name}")

    def option(self, name: str, default: Any) -> Any:
        """The value of a field of this architecture that may be missing."""
        return self.fields.get(f"{self.architecture}.{name}", default)


class _Cursor:
    """Takes the header's little-endian values one after another; `struct.error` past its end."""

    def __init__(self, data: memoryview, position: int):
        self.data = data
        self.position = position

    def scalars(self, letters: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{letters}", self.data, self.position)
        self.position += struct.calcsize(f"<{letters}")
        return values

    def string(self) -> str:
        (length,) = self.scalars("Q")
        if length > _LONGEST:
            raise ValueError(f"a text of {length:,} bytes")
        (text,) = self.scalars(f"{length}s")
        return text.decode()

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.scalars(_SCALARS[kind])[0]
        item, length = self.scalars("IQ")
        if length > _LONGEST or item == _ARRAY:
            raise ValueError(f"an array of {length:,} items of type {item}")
        if item in _SCALARS:
            return list(self.scalars(f"{length}{_SCALARS[item]}"))
        return [self.value(item) for _ in range(length)]


def _read(path: Path) -> _Gguf:
    """Maps the file and parses its header; a file shorter than its tensors is an error."""
    data = _map(path)
    try:
        fields, tensors = _parse(data)
        expected = max((tensor.end for tensor in tensors.values()), default=0)
    except (struct.error, KeyError, OverflowError, ValueError) as error:
        raise UserError(
            f"{path} is truncated or damaged: its header cannot be read within its {len(data):,} "
            f"bytes ({forms.one_line(error)}). Download it again."
        ) from error
    if len(data) < expected:
        raise UserError(
            f"{path} is truncated: it has {len(data):,} bytes, its tensors need {expected:,}. "
            "Download it again."
        )
    forms.check(path, fields, {n.format(fields.get(_ARCHITECTURE)): f for n, f in _FORMS.items()})
    return _Gguf(path, fields, tensors)


def _map(path: Path) -> memoryview:
    """The bytes of a GGUF file of a version that is known."""
    if not path.is_file():
        raise UserError(f"{path} is not a file. Give the path of a .gguf file.")
    with path.open("rb") as file:
        start = file.read(8)
    if start[:4] != b"GGUF" or len(start) < 8:
        raise UserError(
            f"{path} is not a GGUF file: it starts with {start!r}, expected b'GGUF' and a version. "
            "Give a .gguf file."
        )
    version = int.from_bytes(start[4:], "little")
    if version not in (2, 3):
        raise UserError(
            f"{path} is GGUF version {version}, supported: 2, 3 (little-endian). Convert it again "
            "with llama.cpp."
        )
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _parse(data: memoryview) -> tuple[dict[str, Any], dict[str, _Tensor]]:
    """The header's fields and its table of tensors; damage is a ValueError, or struct's."""
    cursor = _Cursor(data, position=8)
    num_tensors, num_fields = cursor.scalars("QQ")
    fields: dict[str, Any] = {}
    for _ in range(num_fields):
        name = _once(cursor.string(), fields)
        fields[name] = cursor.value(cursor.scalars("I")[0])
    table: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(num_tensors):
        name = _once(cursor.string(), table)
        (num_axes,) = cursor.scalars("I")
        if not 1 <= num_axes <= _AXES:
            raise ValueError(f"{forms.shown(name)} has {num_axes} axes, expected 1 to {_AXES}")
        *axes, kind, offset = cursor.scalars(f"{num_axes}QIQ")
        table[name] = (tuple(reversed(axes)), kind, offset)
    alignment = fields.get("general.alignment", 32)
    if type(alignment) is not int or alignment not in (8 << i for i in range(20)):
        raise ValueError(f"general.alignment is {forms.shown(alignment)}, expected a power of two")
    start = -(-cursor.position // alignment) * alignment  # offsets count from here
    tensors = {
        name: _Tensor(GGMLQuantizationType(kind), shape, start + offset)
        for name, (shape, kind, offset) in table.items()
    }
    end, before = start, "the header"
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].offset):
        if tensor.offset < end and tensor.end > tensor.offset:
            raise ValueError(f"{forms.shown(name)} overlaps {before}")
        end, before = tensor.end, forms.shown(name)
    return fields, tensors


def _once(name: str, seen: Mapping[str, Any]) -> str:
    if name in seen:
        raise ValueError(f"{forms.shown(name)} is there twice")
    return name


# ---- The model ---------------------------------------------------------------------------------


def _config(gguf: _Gguf) -> dict[str, Any]:
    """config.json of a LlamaForCausalLM, or Qwen's."""
    architecture = gguf.architecture
    if architecture not in _MORE:
        raise UserError(
            f"{gguf.path} holds a model of architecture {forms.shown(architecture)}, supported: "
            f"{', '.join(map(repr, _MORE))}. Give a Llama-type model."
        )
    _check_whole(gguf)
    if "token_embd.weight" not in gguf.tensors:
        raise _missing(gguf, "token_embd.weight")
    heads = gguf.size("attention.head_count")
    width = gguf.size("embedding_length")
    theta = _decimal(gguf.option("rope.freq_base", 10000.0))
    head_dim = gguf.option("attention.key_length", width // heads)
    return {
        "architectures": [f"{architecture.title()}ForCausalLM"],
        "model_type": architecture,
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
    }


def _check_whole(gguf: _Gguf) -> None:
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
        read = key == name or "{}." + key in _FORMS or key in _DESCRIBING
        if not read and value not in neutral.get(key, ()):
            raise UserError(
                f"{gguf.path} has {forms.shown(name)} = {forms.shown(value)}, which may change "
                "what the model computes and is not supported. Give another model."
            )


def _decimal(value: float) -> float:
    """The shortest decimal of a stored float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _rope(gguf: _Gguf, theta: float, head_dim: int) -> dict[str, Any]:
    """The kind of rotary embedding; others would load and then be silently wrong."""
    scaling = gguf.option("rope.scaling.type", "none")
    rotated = gguf.option("rope.dimension_count", head_dim)
    if scaling != "none" or rotated != head_dim:
        raise UserError(
            f"{gguf.path} has rotary scaling {forms.shown(scaling)} over {rotated} of {head_dim} "
            f"head dimensions, supported: 'none' over all {head_dim}. Give another model."
        )
    if _FREQUENCIES not in gguf.tensors:
        return {"rope_type": "default"}
    stored = _dequantize(gguf, _FREQUENCIES)
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


def _hf_names(gguf: _Gguf, config: dict[str, Any]) -> dict[str, str]:
    """Hugging Face name -> GGUF name, of exactly the tensors that the file must hold."""
    names = {f"{theirs}.weight": f"{ours}.weight" for ours, theirs in _TOP.items()}
    if config["tie_word_embeddings"]:
        del names["lm_head.weight"]
    for layer in range(config["num_hidden_layers"]):
        for ours, theirs in (_BLOCK | _MORE[gguf.architecture]).items():
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


def _check_shapes(gguf: _Gguf, config: dict[str, Any], names: dict[str, str]) -> None:
    """Whether the fields are those of a model that the decoder has, and its tensors fit them."""
    decoder = families.decoder_config(config, gguf.path, "its header")
    shapes = stream.shapes(families.plan(config, decoder), decoder, "model.")
    for theirs, expected in shapes.items():
        shape = gguf.tensors[names[theirs]].shape
        if shape != expected:
            raise UserError(
                f"{gguf.path}: tensor {names[theirs]} has shape {shape}, but its fields ask for "
                f"{expected}. Download it again, or give another file."
            )


def _missing(gguf: _Gguf, name: str) -> UserError:
    return UserError(
        f"{gguf.path} has no tensor {name} among its {len(gguf.tensors)}, which the model "
        "needs. Download it again, or give another file."
    )


def _dequantize(gguf: _Gguf, name: str) -> np.ndarray:
    """The tensor in float32, contiguous."""
    tensor = gguf.tensors[name]
    # Read and not mapped: mapped pages would stay, and count as this process's memory.
    raw = np.fromfile(gguf.path, np.uint8, tensor.end - tensor.offset, offset=tensor.offset)
    try:
        with np.errstate(invalid="ignore", over="ignore"):  # the loader refuses what is not finite
            return dequantize(raw.reshape(tensor.byte_shape), tensor.kind)
    except ValueError as error:
        raise UserError(
            f"{gguf.path}: tensor {name} of shape {tensor.shape} cannot be read as "
            f"{tensor.kind.name} ({error}). Download it again."
        ) from error
    except NotImplementedError as error:
        raise UserError(
            f"{gguf.path} stores {name} as {tensor.kind.name}, which the gguf package cannot "
            "dequantise. Give a file of another quantisation, such as Q8_0 or Q4_1."
        ) from error


def _half_split_rows(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Puts the rows [num_heads * dh, D] of a query or key projection back in Hugging Face's order.

    llama.cpp rotates neighbours, rows (2i, 2i + 1) of a head; Hugging Face rotates rows
    (i, i + dh/2). This is the inverse of `permute` in llama.cpp's conversion script.
    """
    rows, width = weight.shape
    pairs = weight.reshape(num_heads, rows // num_heads // 2, 2, width)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows, width)


# ---- The tokenizer -----------------------------------------------------------------------------


def _tokenizer(gguf: _Gguf, config: dict[str, Any]) -> Tokenizer:
    """The file's byte-level BPE; control tokens are special, user-defined ones are added."""
    model = gguf.field("tokenizer.ggml.model")
    if model != "gpt2":
        raise UserError(
            f"{gguf.path} has a tokenizer of model {forms.shown(model)}, supported: 'gpt2' "
            "(byte-level BPE). Give another model."
        )
    split = gguf.field("tokenizer.ggml.pre")
    if split not in bpe.NAMES:
        raise UserError(
            f"{gguf.path} has the pre-tokenizer {forms.shown(split)}, supported: "
            f"{', '.join(map(repr, bpe.NAMES))}. Give another model."
        )
    tokens, kinds = (gguf.field(f"tokenizer.ggml.{name}") for name in ("tokens", "token_type"))
    counts = {len(tokens), len(kinds), config["vocab_size"], len(set(tokens))}
    ids = [config[name] for name in _SPECIAL_IDS if config[name] is not None]
    if len(counts) > 1 or max(ids, default=0) >= len(tokens):
        raise UserError(
            f"{gguf.path}: {len(tokens)} tokens ({len(set(tokens))} different), {len(kinds)} types "
            f"of tokens, {config['vocab_size']} rows of the embedding and the special tokens {ids} "
            "do not belong together. Download it again, or give another file."
        )
    merges = [tuple(merge.split(" ", 1)) for merge in gguf.field("tokenizer.ggml.merges")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    try:
        tokenizer = bpe.tokenizer(vocabulary, merges, split)
    except Exception as error:  # the tokenizers package raises plain Exception
        raise UserError(
            f"{gguf.path}: tokenizer.ggml.tokens and merges do not make a tokenizer "
            f"({forms.one_line(error)}). Download it again."
        ) from error
    tokenizer.add_special_tokens(_added(tokens, kinds, TokenType.CONTROL))
    tokenizer.add_tokens(_added(tokens, kinds, TokenType.USER_DEFINED))
    return tokenizer


def _added(tokens: list[str], kinds: list[int], kind: TokenType) -> list[AddedToken]:
    """The tokens of one kind, in their order; they are found in the text as they stand."""
    special = kind == TokenType.CONTROL
    return [
        AddedToken(token, special=special, normalized=False)
        for token, its_kind in zip(tokens, kinds, strict=True)
        if its_kind == kind
    ]


def _tokenizer_config(gguf: _Gguf, config: dict[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json: what tokenizer.json cannot say."""
    tokens = gguf.field("tokenizer.ggml.tokens")
    ids = {name.removesuffix("_id"): config[name] for name in _SPECIAL_IDS}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
    } | {name: tokens[index] for name, index in ids.items() if index is not None}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
