"""A GGUF file's header and tensors; what its fields may be.

The header is parsed here and not by `gguf.GGUFReader`: that one makes an array of every string of
the vocabulary (49k tokens: 2.6 s on CPU, here 0.1 s) and fails obscurely on a truncated file.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import dataclasses
import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quant_shape_to_byte_shape

from icljax import forms
from icljax.errors import UserError
from icljax.forms import COUNT, SIZE, TEXT

SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}  # value type -> struct letter
_STRING, _ARRAY = 8, 9
_LONGEST = 1 << 24  # items of an array, bytes of a text; large vocabularies have 2^18 tokens
_AXES = 4  # of a tensor, as in ggml
ARCHITECTURE = "general.architecture"
_FROM_ZERO = forms.Form("a number from 0 on", lambda x: type(x) in (int, float) and 0 <= x < 1e30)
# What fields may be that are read; {} stands for the architecture.
FORMS = {
    ARCHITECTURE: TEXT,
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
    "{}.rope.freq_base_swa": forms.number(),
    "{}.rope.scaling.type": TEXT,
    "{}.rope.scaling.factor": _FROM_ZERO,
    "{}.attention.sliding_window": COUNT,
    "{}.attention.sliding_window_pattern": SIZE,
    "{}.attn_logit_softcapping": _FROM_ZERO,
    "{}.final_logit_softcapping": _FROM_ZERO,
    "tokenizer.ggml.model": TEXT,
    "tokenizer.ggml.pre": TEXT,
    "tokenizer.ggml.tokens": forms.listed(TEXT),
    "tokenizer.ggml.merges": forms.listed(
        forms.Form("two tokens with a blank between", lambda x: isinstance(x, str) and " " in x)
    ),
    "tokenizer.ggml.scores": forms.listed(
        forms.Form("a number", lambda x: isinstance(x, float) and math.isfinite(x))
    ),
    "tokenizer.ggml.add_space_prefix": forms.FLAG,
    "tokenizer.ggml.token_type": forms.listed(COUNT),
    "tokenizer.ggml.bos_token_id": COUNT,
    "tokenizer.ggml.eos_token_id": COUNT,
}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where a tensor lies: its type, its shape (outermost axis first), its bytes in the file."""

    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int

    @property
    def byte_shape(self) -> tuple[int, ...]:
        """The shape of its bytes, [..., bytes of a row]."""
        return quant_shape_to_byte_shape(self.shape, self.kind)

    @property
    def end(self) -> int:
        """Where its bytes end."""
        return self.offset + math.prod(self.byte_shape)


@dataclasses.dataclass(frozen=True)
class Gguf:
    """A parsed GGUF file; fields of the model itself are named after its architecture."""

    path: Path
    fields: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def architecture(self) -> str:
        """What the model's own fields are named after."""
        return self.field(ARCHITECTURE)

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
            return self.scalars(SCALARS[kind])[0]
        item, length = self.scalars("IQ")
        if length > _LONGEST or item == _ARRAY:
            raise ValueError(f"an array of {length:,} items of type {item}")
        if item in SCALARS:
            return list(self.scalars(f"{length}{SCALARS[item]}"))
        return [self.value(item) for _ in range(length)]


def read(path: Path) -> Gguf:
    """Maps the file and parses its header; a file shorter than its tensors is an error."""
    data = _map(path)
    what = (
        f"{path} is truncated or damaged: its header cannot be read within its {len(data):,} bytes"
    )
    faults = (struct.error, KeyError, OverflowError, ValueError)
    with forms.refused(what, faults, ". Download it again."):
        fields, tensors = _parse(data)
        expected = max((tensor.end for tensor in tensors.values()), default=0)
    if len(data) < expected:
        raise UserError(
            f"{path} is truncated: it has {len(data):,} bytes, its tensors need {expected:,}. "
            "Download it again."
        )
    forms.check(path, fields, {n.format(fields.get(ARCHITECTURE)): f for n, f in FORMS.items()})
    return Gguf(path, fields, tensors)


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


def _parse(data: memoryview) -> tuple[dict[str, Any], dict[str, Tensor]]:
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
        name: Tensor(GGMLQuantizationType(kind), shape, start + offset)
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


def dequantized(gguf: Gguf, name: str) -> np.ndarray:
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
