"""Safetensors files streamed into the decoder's parameters, and written one tensor at a time.

A plan (icljax/families.py) names the tensor of each leaf and says how the file's axes become the
leaf's. Each byte of a file that this process needs is read once, in blocks, and copied, cast and
transposed straight into the memory of the shards that want it; on CPU that memory is the array. So
a process holds its own shards and a block for each thread, whatever the size of the model.

Shape glossary: the letters of the plan's patterns, as in icljax/model.py; L layers lead a stacked
leaf. A *row* is one index of a tensor's first axis once grouped axes are split: `(H K) D` has H
rows of K * D numbers.

Format: https://github.com/huggingface/safetensors#format
"""

import contextlib
import functools
import itertools
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from icljax.errors import UserError
from icljax.families import Leaf, Plan, axis_sizes
from icljax.mixing import LEARNABLE
from icljax.model import DecoderConfig, Params

BLOCK = 32 << 20  # bytes of a file that each thread has in memory at once
THREADS = 8  # numpy copies, casts and transposes outside the interpreter's lock
SHARD = 2_000_000_000  # bytes of a file that is written here
INDEX = "model.safetensors.index.json"
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
_ALIGNMENT = 64  # bytes: the CPU backend takes memory so aligned as it is
_ROWS = 16  # copied at once where rows become columns: both sides then stay in the cache (2x)

LeafPath = tuple[str, ...]  # of a leaf in the parameter tree
Index = tuple[slice, ...]  # of a shard in its leaf


class Stored(NamedTuple):
    """Where a tensor lies: `dtype` is safetensors' name of it, `offset` counts from the start."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int


class Layout(NamedTuple):
    """A pattern such as "(H 3 K) D -> D H K", parsed.

    Attributes:
        groups: the file's axes, each a group of letters or digits.
        leaf: the leaf's axes.
    """

    groups: tuple[tuple[str, ...], ...]
    leaf: tuple[str, ...]

    @property
    def axes(self) -> tuple[str, ...]:
        """The file's axes with the groups split."""
        return tuple(itertools.chain(*self.groups))


class Shard(NamedTuple):
    """A part of a leaf that this process keeps; `data` [L, ...] or [...] is filled while reading.

    Attributes:
        leaf: what it is a part of.
        layout: of that leaf.
        part: which part, by the leaf's axes, without L.
        layers: which of the layers; None where the leaf is not stacked.
        data: its memory, of the final dtype.
    """

    leaf: Leaf
    layout: Layout
    part: dict[str, slice]
    layers: range | None
    data: np.ndarray


# ---- Reading -----------------------------------------------------------------------------------


def load(folder: Path, plan: Plan, config: DecoderConfig, shardings: Any = None) -> Params:
    """Reads a folder's tensors into the decoder's parameter tree.

    Matrices are kept in `config.dtype`; the key and value projections, which finetuning changes
    by steps too small for bfloat16, and learned numbers of the attention in float32.

    Args:
        folder: holds model.safetensors or its shards with their index.
        plan: which tensor each leaf is.
        config: gives the sizes of the axes.
        shardings: a tree like the result, of jax.sharding.Sharding; None: the default device.

    Raises:
        UserError: for a truncated file, a missing tensor, one of an unexpected shape or type, or
            one that the decoder has no use for.
    """
    stored = read_headers(folder)
    names = _names(folder, plan, stored, config.num_layers)
    sizes = axis_sizes(config)
    for path, leaf in plan.leaves.items():
        for name in names[path]:
            _check(folder, name, stored[name], parse(leaf.pattern), sizes)
    _check_all_used(folder, plan, stored, names)

    leaves: dict[LeafPath, jax.Array] = {}
    for group in _groups(plan).values():
        first = group[0]
        tensors = [stored[name] for name in names[first]]
        leaves |= _read_group({p: plan.leaves[p] for p in group}, tensors, config, shardings)
    return _tree({path: leaves[path] for path in plan.leaves})


def read_headers(folder: Path) -> dict[str, Stored]:
    """Every tensor of a folder by name.

    Raises:
        UserError: for a file that is missing or not whole.
    """
    stored: dict[str, Stored] = {}
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="numpy"):  # checks the header, and the file's length
                pass
        except (SafetensorError, OSError) as e:
            raise UserError(f"{file}: not a whole safetensors file ({e}); fetch it again") from e
        with file.open("rb") as f:
            start = 8 + int.from_bytes(f.read(8), "little")
            header = json.loads(f.read(start - 8))
        header.pop("__metadata__", None)
        for name, about in header.items():
            offset = start + about["data_offsets"][0]
            stored[name] = Stored(file, about["dtype"], tuple(about["shape"]), offset)
    return stored


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, in name order.

    Raises:
        UserError: when there are none, or a file of the index is missing.
    """
    index = folder / INDEX
    names = ["model.safetensors"]
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        except (AttributeError, KeyError, TypeError, ValueError) as e:
            raise UserError(f"{index} has no weight_map of tensors to files; fetch it again") from e
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder} has no {', '.join(missing)}; a model folder holds config.json, "
            "tokenizer.json and model.safetensors (or its shards with their index)"
        )
    return [folder / name for name in names]


@functools.cache
def parse(pattern: str) -> Layout:
    """A plan's pattern."""
    file, leaf = pattern.split("->")
    groups = tuple(tuple((a or b).split()) for a, b in re.findall(r"\(([^)]*)\)|(\S)", file))
    return Layout(groups, tuple(leaf.split()))


def _names(
    folder: Path, plan: Plan, stored: dict[str, Stored], num_layers: int
) -> dict[LeafPath, list[str]]:
    """The tensors of each leaf: one, or one a layer."""
    first = next(iter(plan.leaves.values()))
    prefix = next((p for p in plan.prefixes if first.name(p) in stored), plan.prefixes[0])
    names = {}
    for path, leaf in plan.leaves.items():
        layers = range(num_layers if "{}" in leaf.tensor else 1)
        names[path] = [leaf.name(prefix, layer) for layer in layers]
        for name in names[path]:
            if name not in stored:
                raise UserError(f"{folder}: the weights have no tensor {name!r}; wrong model_type?")
    return names


def _check(folder: Path, name: str, tensor: Stored, layout: Layout, sizes: dict[str, int]) -> None:
    expected = tuple(math.prod(_size(a, sizes) for a in group) for group in layout.groups)
    if tensor.shape != expected:
        raise UserError(
            f"{folder}: tensor {name!r} has shape {tensor.shape}, but config.json asks for "
            f"{expected}; weights and config.json do not belong together"
        )
    if tensor.dtype not in DTYPES:
        raise UserError(
            f"{folder}: tensor {name!r} is stored as {tensor.dtype}, supported: "
            f"{', '.join(DTYPES)}; give the model in a form that is not quantised"
        )


def _check_all_used(
    folder: Path, plan: Plan, stored: dict[str, Stored], names: dict[LeafPath, list[str]]
) -> None:
    """A bias or a layer that config.json does not announce would be left out silently."""
    unused = sorted(stored.keys() - set(itertools.chain(*names.values())))
    unused = [name for name in unused if not name.endswith(plan.ignored)]
    if unused:
        raise UserError(
            f"{folder}: config.json asks for all tensors but {len(unused)}, such as "
            f"{unused[0]!r}; weights and config.json do not belong together"
        )


def _size(axis: str, sizes: dict[str, int]) -> int:
    return int(axis) if axis.isdigit() else sizes[axis]


def _groups(plan: Plan) -> dict[tuple[str, Any], list[LeafPath]]:
    """Leaves that are parts of one tensor are read together."""
    groups: dict[tuple[str, Any], list[LeafPath]] = {}
    for path, leaf in plan.leaves.items():
        groups.setdefault((leaf.tensor, parse(leaf.pattern).groups), []).append(path)
    return groups


def _read_group(
    leaves: dict[LeafPath, Leaf], tensors: Sequence[Stored], config: DecoderConfig, shardings: Any
) -> dict[LeafPath, jax.Array]:
    """The leaves that come from one tensor (of every layer)."""
    sizes = axis_sizes(config)
    shards: dict[LeafPath, dict[Any, Shard]] = {}
    for path, leaf in leaves.items():
        shape = _shape(leaf, sizes, config)
        indices = _indices(shape, _at(shardings, path)).values()
        shards[path] = {_key(i, shape): _empty_shard(leaf, i, shape, path, config) for i in indices}
    wanted = [shard for parts in shards.values() for shard in parts.values()]
    with ThreadPoolExecutor(THREADS) as pool:  # layers land in different places
        read = pool.map(lambda i: _read_tensor(tensors[i], i, wanted, sizes), range(len(tensors)))
        list(read)  # raises what a thread raised
    arrays = {
        path: _array(parts, _shape(leaves[path], sizes, config), _at(shardings, path))
        for path, parts in shards.items()
    }
    jax.block_until_ready(arrays)  # the memory of what goes to an accelerator is free again
    return arrays


def _shape(leaf: Leaf, sizes: dict[str, int], config: DecoderConfig) -> tuple[int, ...]:
    layers = (config.num_layers,) if "{}" in leaf.tensor else ()
    return (*layers, *(sizes[a] for a in parse(leaf.pattern).leaf))


def _at(shardings: Any, path: LeafPath) -> Any:
    for part in path if shardings is not None else ():
        shardings = shardings[part]
    return shardings


def _indices(shape: tuple[int, ...], sharding: Any) -> dict[Any, Index]:
    """What each device of this process keeps; None stands for the default device."""
    if sharding is None:
        return {None: (slice(None),) * len(shape)}
    return sharding.addressable_devices_indices_map(shape)


def _key(index: Index, shape: tuple[int, ...]) -> tuple[tuple[int, int, int], ...]:
    """Equal for devices that keep the same part."""
    return tuple(part.indices(size) for part, size in zip(index, shape, strict=True))


def _empty_shard(
    leaf: Leaf, index: Index, shape: tuple[int, ...], path: LeafPath, config: DecoderConfig
) -> Shard:
    layout = parse(leaf.pattern)
    parts = [slice(*part) for part in _key(index, shape)]
    size = tuple(part.stop - part.start for part in parts)
    layers = None
    if "{}" in leaf.tensor:
        layers = range(parts[0].start, parts[0].stop)
        parts = parts[1:]
    trained = any(part in ("key", "value", *LEARNABLE) for part in path)
    data = aligned(size, np.dtype("float32" if trained else config.dtype))
    return Shard(leaf, layout, dict(zip(layout.leaf, parts, strict=True)), layers, data)


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Uninitialised memory that JAX's CPU backend uses without a copy."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def _read_tensor(
    tensor: Stored, layer: int, wanted: Iterable[Shard], sizes: dict[str, int]
) -> None:
    """Copies what the shards want out of one tensor, block by block."""
    wanted = [s for s in wanted if s.layers is None or layer in s.layers]
    if not wanted:
        return
    needs = [_rows(shard) for shard in wanted]
    shape = tuple(_size(a, sizes) for a in wanted[0].layout.axes)
    for start, block in _blocks(tensor, shape, needs):
        for shard, need in zip(wanted, needs, strict=True):
            rows = range(max(start, need.start), min(start + len(block), need.stop))
            if rows:
                _fill(shard, layer, rows, block[rows.start - start : rows.stop - start])


def _rows(shard: Shard) -> range:
    """The rows of the tensor that a shard wants."""
    first = shard.layout.axes[0]
    if first.isdigit():
        return range(shard.leaf.part, shard.leaf.part + 1)
    return range(shard.part[first].start, shard.part[first].stop)


def _blocks(
    tensor: Stored, shape: tuple[int, ...], needs: Sequence[range]
) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, rows) of all blocks that anyone needs, one at a time in the same memory."""
    dtype = DTYPES[tensor.dtype]
    row = math.prod(shape[1:]) * dtype.itemsize
    first, last = min(n.start for n in needs), max(n.stop for n in needs)
    step = max(1, BLOCK // row)
    memory = np.empty(min(step, last - first) * row, np.uint8)
    with tensor.file.open("rb") as f:
        for start in range(first, last, step):
            stop = min(start + step, last)
            if any(n.start < stop and start < n.stop for n in needs):
                block = memory[: (stop - start) * row]
                f.seek(tensor.offset + start * row)
                if f.readinto(block.data) != len(block):
                    raise UserError(
                        f"{tensor.file}: shorter than a moment ago; wait until it is whole, or "
                        "fetch it again"
                    )
                yield start, block.view(dtype).reshape(stop - start, *shape[1:])


def _fill(shard: Shard, layer: int, rows: range, block: np.ndarray) -> None:
    """Copies the shard's part of some of a tensor's rows, cast and in the leaf's axis order."""
    axes, leaf = shard.layout.axes, shard.layout.leaf
    out = shard.data if shard.layers is None else shard.data[layer - shard.layers.start]
    out = out.transpose([leaf.index(a) for a in axes if not a.isdigit()])
    take: list[int | slice] = [shard.leaf.part if a.isdigit() else shard.part[a] for a in axes]
    if axes[0].isdigit():
        take[0] = 0
    else:
        start = shard.part[axes[0]].start
        out, take[0] = out[rows.start - start : rows.stop - start], slice(None)
    block = block[tuple(take)]
    if shard.leaf.add:
        block = block.astype(np.float32) + np.float32(shard.leaf.add)
    if out.dtype == block.dtype:  # moved as numbers that numpy knows: 2x for bfloat16
        out, block = (x.view(f"u{x.itemsize}") for x in (out, block))
    _copy(out, block)


def _copy(out: np.ndarray, block: np.ndarray) -> None:
    """`out[...] = block`, a few rows at a time where their axes are in another order."""
    inner = int(np.argmin(out.strides))
    if inner == out.ndim - 1:
        np.copyto(out, block, casting="unsafe")
        return
    out, block = (np.moveaxis(x, inner, -2) for x in (out, block))
    for at in np.ndindex(out.shape[:-2]):
        for i in range(0, out.shape[-2], _ROWS):
            few = (*at, slice(i, i + _ROWS))
            np.copyto(out[few], block[few], casting="unsafe")


def _array(shards: dict[Any, Shard], shape: tuple[int, ...], sharding: Any) -> jax.Array:
    """The shards as one array; on CPU in the memory they are in."""
    arrays = [
        jax.device_put(shards[_key(index, shape)].data, device)
        for device, index in _indices(shape, sharding).items()
    ]
    if sharding is None:
        return arrays[0]
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


def _tree(leaves: dict[LeafPath, jax.Array]) -> Params:
    tree: Params = {}
    for path, leaf in leaves.items():
        node = tree
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = leaf
    return tree


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
    shapes: dict[str, tuple[str, tuple[int, ...]]],
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
    return DTYPES[dtype].itemsize * math.prod(shape)


def _split(shapes: dict[str, tuple[str, tuple[int, ...]]], limit: int) -> list[list[str]]:
    files: list[list[str]] = [[]]
    size = 0
    for name, about in shapes.items():
        if files[-1] and size + _bytes(*about) > limit:
            files.append([])
            size = 0
        files[-1].append(name)
        size += _bytes(*about)
    return files


def _write_header(f: BinaryIO, shapes: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in shapes.items():
        start, end = end, end + _bytes(dtype, shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    f.write(len(text).to_bytes(8, "little") + text)
