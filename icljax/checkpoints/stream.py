"""Safetensors files streamed into the decoder's parameters.

A plan (icljax/models/plans.py) names the tensor of each leaf and says how the file's axes become
the leaf's. Each byte of a file that this process needs is read once, in blocks, and copied, cast
and transposed straight into the memory of the shards that want it; on CPU that memory is the array.
So a process holds its own shards and a block for each thread, whatever the size of the model.

Shape glossary: the letters of the plan's patterns, as in icljax/models/decoder.py; L layers lead a
stacked leaf. A *row* is one index of a tensor's first axis once grouped axes are split: `(H K) D`
has H rows of K * D numbers.
"""

import dataclasses
import math
import mmap
import weakref
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Sharding

from icljax.attention.mixing import LEARNABLE
from icljax.checkpoints import checks
from icljax.checkpoints.tensor_files import ALIGNMENT, DTYPES, Stored, read_headers, shorter
from icljax.models.decoder import DecoderConfig
from icljax.models.plans import Leaf, LeafPath, Plan, axis_sizes
from icljax.types import Params

BLOCK = 32 << 20  # bytes of a file that each thread has in memory at once
THREADS = 8  # numpy copies, casts and transposes outside the interpreter's lock
_ROWS = 16  # copied at once where rows become columns: both sides then stay in the cache (2x)
_EMBEDDING: LeafPath = ("embed", "embedding")
_maps: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()
Index = tuple[slice, ...]  # of a shard in its leaf


@dataclasses.dataclass(frozen=True, eq=False)
class Shard:
    """A part of a leaf that this process keeps; `data` [L, ...] or [...] is filled while reading.

    Attributes:
        leaf: what it is a part of.
        part: which part, by the leaf's axes, without L.
        layers: which of the layers; None where the leaf is not stacked.
        data: its memory, of the final dtype.
    """

    leaf: Leaf
    part: dict[str, slice]
    layers: range | None
    data: np.ndarray


def load(
    folder: Path, plan: Plan, config: DecoderConfig, shardings: dict[str, Any] | None = None
) -> Params:
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
    names = checks.matched(folder, stored, plan, config)
    where = dict.fromkeys(plan.leaves) if shardings is None else flatten_dict(shardings)
    together: dict[Hashable, list[LeafPath]] = {}  # parts of one tensor
    for path, leaf in plan.leaves.items():
        together.setdefault((leaf.tensor, leaf.layout.groups), []).append(path)
    leaves: dict[LeafPath, jax.Array] = {}
    for paths in together.values():
        tensors = [stored[name] for name in names[paths[0]]]
        group = {path: plan.leaves[path] for path in paths}
        if paths == [_EMBEDDING] and _mappable(tensors[0], config, where[_EMBEDDING]):
            leaves[_EMBEDDING] = _mapped(tensors[0], where[_EMBEDDING])
        else:
            leaves |= _read_group(group, tensors, config, where)
    return unflatten_dict({path: leaves[path] for path in plan.leaves})


def _mappable(table: Stored, config: DecoderConfig, where: Sharding | None) -> bool:
    """Whether the embedding can stay in its file: only rows of it are read, as they are there."""
    return (
        jax.default_backend() == "cpu"
        and (where is None or len(where.device_set) == 1)
        and not config.tied  # else every logit reads all of it
        and DTYPES[table.dtype] == np.dtype(config.dtype)
        and table.offset % ALIGNMENT == 0
    )


def _mapped(table: Stored, where: Sharding | None) -> jax.Array:
    """A tensor that stays in its file; the pages that are read count as this process' memory."""
    with table.file.open("rb") as f:  # a private copy: who is given the array may write to it
        pages = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY)
    _maps.add(pages)
    size = math.prod(table.shape)
    numbers = np.frombuffer(pages, DTYPES[table.dtype], size, table.offset)
    return jax.device_put(numbers.reshape(table.shape), where)


def forget_pages() -> None:
    """Gives back what was read so far of the files that are mapped; call it before one changes."""
    for pages in _maps:
        if hasattr(mmap, "MADV_DONTNEED"):
            pages.madvise(mmap.MADV_DONTNEED)


def _read_group(
    leaves: dict[LeafPath, Leaf],
    tensors: Sequence[Stored],
    config: DecoderConfig,
    where: Mapping[LeafPath, Sharding | None],
) -> dict[LeafPath, jax.Array]:
    """The leaves that come from one tensor (of every layer)."""
    sizes = axis_sizes(config)
    shapes = {
        path: ((config.num_layers,) if leaf.stacked else ())
        + tuple(sizes[axis] for axis in leaf.layout.leaf)
        for path, leaf in leaves.items()
    }
    shards: dict[LeafPath, dict[Hashable, Shard]] = {}
    for path, leaf in leaves.items():
        shape = shapes[path]
        indices = _indices(shape, where[path]).values()
        shards[path] = {_key(i, shape): _empty_shard(leaf, i, shape, path, config) for i in indices}
    wanted = [shard for parts in shards.values() for shard in parts.values()]
    with ThreadPoolExecutor(THREADS) as pool:  # layers land in different places
        read = pool.map(lambda i: _read_tensor(tensors[i], i, wanted, sizes), range(len(tensors)))
        list(read)  # raises what a thread raised
    arrays = {p: _array(parts, shapes[p], where[p]) for p, parts in shards.items()}
    jax.block_until_ready(arrays)  # the memory of what goes to an accelerator is free again
    return arrays


def _indices(
    shape: tuple[int, ...], sharding: Sharding | None
) -> Mapping[jax.Device | None, Index]:
    """What each device of this process keeps; None stands for the default device."""
    if sharding is None:
        return {None: (slice(None),) * len(shape)}
    indices = sharding.addressable_devices_indices_map(shape)
    return {device: index for device, index in indices.items() if index is not None}


def _key(index: Index, shape: tuple[int, ...]) -> tuple[tuple[int, int, int], ...]:
    """Equal for devices that keep the same part."""
    return tuple(part.indices(size) for part, size in zip(index, shape, strict=True))


def _empty_shard(
    leaf: Leaf, index: Index, shape: tuple[int, ...], path: LeafPath, config: DecoderConfig
) -> Shard:
    parts = [slice(*part) for part in _key(index, shape)]
    size = tuple(part.stop - part.start for part in parts)
    layers = None
    if leaf.stacked:
        layers = range(parts[0].start, parts[0].stop)
        parts = parts[1:]
    trained = any(part in ("key", "value", *LEARNABLE) for part in path)
    data = aligned(size, np.dtype("float32" if trained else config.dtype))
    return Shard(leaf, dict(zip(leaf.layout.leaf, parts, strict=True)), layers, data)


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Uninitialised memory that JAX's CPU backend uses without a copy."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def _read_tensor(
    tensor: Stored, layer: int, wanted: Iterable[Shard], sizes: dict[str, int]
) -> None:
    """Copies what the shards want out of one tensor, block by block."""
    wanted = [s for s in wanted if s.layers is None or layer in s.layers]
    if not wanted:
        return
    needs = [_rows(shard) for shard in wanted]
    shape = wanted[0].leaf.layout.split_shape(sizes)
    for start, block in _blocks(tensor, shape, needs):
        for shard, need in zip(wanted, needs, strict=True):
            rows = range(max(start, need.start), min(start + len(block), need.stop))
            if rows:
                _fill(shard, layer, rows, block[rows.start - start : rows.stop - start])


def _rows(shard: Shard) -> range:
    """The rows of the tensor that a shard wants."""
    first = shard.leaf.layout.axes[0]
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
                    raise shorter(tensor.file)
                yield start, block.view(dtype).reshape(stop - start, *shape[1:])


def _fill(shard: Shard, layer: int, rows: range, block: np.ndarray) -> None:
    """Copies the shard's part of some of a tensor's rows, cast and in the leaf's axis order."""
    axes, leaf = shard.leaf.layout.axes, shard.leaf.layout.leaf
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
    with np.errstate(over="ignore"):  # infinities are told of once all is read
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


def _array(
    shards: dict[Hashable, Shard], shape: tuple[int, ...], sharding: Sharding | None
) -> jax.Array:
    """The shards as one array; on CPU in the memory they are in."""
    arrays = [
        jax.device_put(shards[_key(index, shape)].data, device)
        for device, index in _indices(shape, sharding).items()
    ]
    if sharding is None:
        return arrays[0]
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)
