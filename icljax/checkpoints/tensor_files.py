"""Safetensors files: those of a folder, what is in them, and writing them tensor by tensor.

Format: https://github.com/huggingface/safetensors#format
"""

import contextlib
import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from icljax import forms
from icljax.errors import UserError
from icljax.models.plans import Rows

SHARD = 2_000_000_000  # bytes of a file that is written here
INDEX = "model.safetensors.index.json"
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
# Of buffers; weights in these are quantised. FP8 is none: it is the weight only times a scale.
INTEGERS = {"BOOL": np.dtype(np.bool_), "U8": np.dtype(np.uint8)} | {
    f"I{8 * size}": np.dtype(f"i{size}") for size in (1, 2, 4, 8)
}
ALIGNMENT = 64  # bytes: memory so aligned, also of a mapped file, JAX's CPU backend takes as it is
COMPARED = 1 << 20  # bytes of a block of what is compared and not kept

Shapes = dict[str, tuple[str, tuple[int, ...]]]  # {name: (safetensors' name of the dtype, shape)}


@dataclasses.dataclass(frozen=True)
class Stored:
    """Where a tensor lies: `dtype` is safetensors' name of it, `offset` counts from the start."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int


# ---- Reading -----------------------------------------------------------------------------------


def read_headers(folder: Path) -> dict[str, Stored]:
    """Every tensor of a folder by name.

    Raises:
        UserError: for a file that is missing or not whole.
    """
    stored: dict[str, Stored] = {}
    for file in weight_files(folder):
        faults = (SafetensorError, OSError, ValueError)
        with forms.refused(f"{file}: not a whole safetensors file", faults, "; fetch it again"):
            with safe_open(file, framework="numpy"):  # checks the header, and the file's length
                pass
            with file.open("rb") as f:
                start = 8 + int.from_bytes(f.read(8), "little")
                header = forms.parse_json(f.read(start - 8))
        header.pop("__metadata__", None)
        for name, about in header.items():
            offset = start + about["data_offsets"][0]
            tensor = Stored(file, about["dtype"], tuple(about["shape"]), offset)
            if name in stored and not equal(stored[name], tensor):
                raise UserError(
                    f"{folder}: tensor {forms.shown(name)} is in {stored[name].file.name} and, "
                    f"with other values, in {file.name}; remove the file that is not the model's"
                )
            stored[name] = tensor
    return stored


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, in name order.

    Raises:
        UserError: when there are none, or a file of the index is missing.
    """
    files = indexed_files(folder, INDEX, "model.safetensors")
    single = folder / "model.safetensors"
    if single.is_file() and single not in files:
        raise UserError(
            f"{folder} has {single.name} and {INDEX} with other files; remove what is not the "
            "model's"
        )
    return files


def indexed_files(folder: Path, index: str, single: str) -> list[Path]:
    """The files that an index names, in name order; without an index, the single file.

    Raises:
        UserError: for a damaged index, one that names files elsewhere, and a missing file.
    """
    names, path = [single], folder / index
    if path.is_file():
        try:
            places = forms.read_json(path)["weight_map"].values()
            names = sorted(set(places))
            inside = (name.strip(".") and Path(name).name == name for name in names)
            if not all(inside) or not "".join(names).isprintable():
                raise ValueError(names)
        except (AttributeError, KeyError, OSError, TypeError, ValueError) as e:
            raise UserError(
                f"{path} has no weight_map of tensors to files of its folder; fetch it again"
            ) from e
    # Not Path.is_file, which fails for a name that no file can have.
    missing = [name for name in names if not os.path.isfile(folder / name)]
    if missing or not names:
        raise UserError(
            f"{folder} has no {', '.join(missing[:3]) or single}; a model "
            f"folder holds config.json, tokenizer.json and {single} (or its shards with their "
            "index)"
        )
    return [folder / name for name in names]


def rows_of(tensor: Stored, columns: int) -> Iterator[Rows]:
    """All of a tensor as rows of so many numbers, in float64, about a megabyte at once."""
    total = math.prod(tensor.shape) // columns
    dtype = (DTYPES | INTEGERS)[tensor.dtype]
    step = max(1, COMPARED // (8 * columns))
    with tensor.file.open("rb") as f:
        f.seek(tensor.offset)
        for first in range(0, total, step):
            size = min(step, total - first) * columns * dtype.itemsize
            block = f.read(size)
            if len(block) != size:
                raise shorter(tensor.file)
            yield Rows(
                np.frombuffer(block, dtype).astype(np.float64).reshape(-1, columns), first, total
            )


def equal(a: Stored, b: Stored) -> bool:
    """Whether two tensors hold the same numbers; read block by block."""
    if a.shape != b.shape or not {a.dtype, b.dtype} <= (DTYPES | INTEGERS).keys():
        return False
    return all(
        np.array_equal(x.values, y.values, equal_nan=True)
        for x, y in zip(rows_of(a, 1), rows_of(b, 1), strict=True)
    )


def shorter(file: Path) -> UserError:
    """The mistake of reading a file that is still being written."""
    return UserError(
        f"{file}: shorter than a moment ago; wait until it is whole, or fetch it again"
    )


# ---- Writing -----------------------------------------------------------------------------------


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Gives an empty folder that becomes `folder`, whole or not at all.

    Where a complete model is there by then (a second converter was faster), that one is kept.

    Raises:
        UserError: something else is in its place.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        # One level down, so that the folder has ordinary permissions (scratch: the owner's only).
        made = Path(scratch) / folder.name
        made.mkdir()
        yield made
        try:
            os.replace(made, folder)
        except OSError as error:
            if not (folder / "config.json").is_file():
                raise UserError(
                    f"cannot write {folder}: it exists and is not a converted model "
                    f"({error.strerror}). Remove it, or choose another folder."
                ) from error


def write(
    folder: Path,
    shapes: Shapes,
    get: Callable[[str], np.ndarray],
    limit: int = SHARD,
) -> None:
    """Writes tensors as model.safetensors, or as shards with an index, one after another.

    Args:
        folder: exists.
        shapes: {name: (safetensors' name of the dtype, shape)}.
        get: gives a tensor; called once for each name, in order.
        limit: bytes of a file's tensors, unless one tensor alone has more.
    """
    files = _split(shapes, limit)
    count = len(files)
    place: dict[str, str] = {}
    for i, names in enumerate(files, start=1):
        file = "model.safetensors" if count == 1 else f"model-{i:05}-of-{count:05}.safetensors"
        place |= dict.fromkeys(names, file)
        with (folder / file).open("wb") as f:
            _write_header(f, {name: shapes[name] for name in names})
            for name in names:
                f.write(np.ascontiguousarray(get(name)).reshape(-1).view(np.uint8).data)
    if count > 1:
        total = sum(_bytes(*about) for about in shapes.values())
        index = {"metadata": {"total_size": total}, "weight_map": place}
        (folder / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")


def _bytes(dtype: str, shape: tuple[int, ...]) -> int:
    return (DTYPES | INTEGERS)[dtype].itemsize * math.prod(shape)


def _split(shapes: Shapes, limit: int) -> list[list[str]]:
    files: list[list[str]] = [[]]
    size = 0
    for name, about in shapes.items():
        if files[-1] and size + _bytes(*about) > limit:
            files.append([])
            size = 0
        files[-1].append(name)
        size += _bytes(*about)
    return files


def _write_header(f: BinaryIO, shapes: Shapes) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in shapes.items():
        start, end = end, end + _bytes(dtype, shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    f.write(len(text).to_bytes(8, "little") + text)
