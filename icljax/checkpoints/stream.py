"""Safetensors files streamed into the decoder's parameters, and written one tensor at a time.

A plan (icljax/models/families.py) names the tensor of each leaf and says how the file's axes become
the leaf's. Each byte of a file that this process needs is read once, in blocks, and copied, cast
and transposed straight into the memory of the shards that want it; on CPU that memory is the array.
So a process holds its own shards and a block for each thread, whatever the size of the model.

Shape glossary: the letters of the plan's patterns, as in icljax/models/decoder.py; L layers lead a
stacked leaf. A *row* is one index of a tensor's first axis once grouped axes are split: `(H K) D`
has H rows of K * D numbers.

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

from icljax import forms
from icljax.attention.mixing import LEARNABLE
from icljax.errors import UserError
from icljax.models.decoder import DecoderConfig
from icljax.models.families import DEQUANTISE, Buffer, Leaf, Plan, Rows, axis_sizes
from icljax.types import Params

BLOCK = 32 << 20  # bytes of a file that each thread has in memory at once
THREADS = 8  # numpy copies, casts and transposes outside the interpreter's lock
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
# Names of tensors that no plain model has, and what they mean.
_QUANTISED = (
    (r"\.(SCB|weight_format)$", "bitsandbytes (8 bits)"),
    (r"\.(nested_)?(absmax|quant_map)$|\.quant_state\.", "bitsandbytes (4 bits)"),
    (r"\.g_idx$", "GPTQ"),
    (r"\.(qweight|qzeros)$", "GPTQ or AWQ"),
    (r"\.weight_(packed|shape|zero_point|global_scale)$", "compressed-tensors"),
    (r"\.(weight|input|activation|output|k|v)_scale(_inv|_2)?$", "FP8 or INT8 with scales"),
    (r"_blocks$", "MXFP4"),
    (r"\.W_q$", "HQQ"),
    (r"\.(codes|codebooks)$", "AQLM"),
    (r"\.(scales?|zeros|zero_point|_scale|_data)$", "a method with scales"),
)
_INSTEAD = (  # of a weight
    (r"lora_|\.base_layer\.|\.modules_to_save\.", "an adapter's; merge it into its base model"),
    (
        r"weight_(orig|mask|g|v)$|\.parametrizations\.",
        "of pruned or normalised weights; make that permanent and save the model again",
    ),
)
_FOREIGN = (
    *_INSTEAD,
    (
        r"(score|classifier|v_head|value_head|summary|qa_outputs)\.",
        "of a head for another task; give the language model",
    ),
    (r"experts?\.|\.router\.", "of a mixture of experts, which is not supported"),
    (r"\.bias$", "biases, which config.json (attention_bias, mlp_bias) says it has not"),
)
_ALIGNMENT = 64  # bytes: the CPU backend takes memory so aligned as it is
_COMPARED = 1 << 20  # bytes of a block of what is compared and not kept
_EMBEDDING = ("embed", "embedding")
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
    _refuse_quantised(folder, stored)
    names = _names(folder, plan, stored, config.num_layers)
    sizes = axis_sizes(config)
    for path, leaf in plan.leaves.items():
        for name in names[path]:
            _check(folder, name, stored[name], parse(leaf.pattern), sizes)
    _check_all_used(folder, plan, stored, names, config.num_layers)

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
            with file.open("rb") as f:
                start = 8 + int.from_bytes(f.read(8), "little")
                header = forms.parse_json(f.read(start - 8))
        except (SafetensorError, OSError, ValueError) as e:
            raise UserError(
                f"{file}: not a whole safetensors file ({forms.one_line(e)}); fetch it again"
            ) from e
        header.pop("__metadata__", None)
        for name, about in header.items():
            offset = start + about["data_offsets"][0]
            tensor = Stored(file, about["dtype"], tuple(about["shape"]), offset)
            if name in stored and not _equal(stored[name], tensor):
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


@functools.cache
def parse(pattern: str) -> Layout:
    """A plan's pattern."""
    file, leaf = pattern.split("->")
    groups = tuple(tuple((a or b).split()) for a, b in re.findall(r"\(([^)]*)\)|(\S)", file))
    return Layout(groups, tuple(leaf.split()))


def _refuse_quantised(folder: Path, stored: dict[str, Stored]) -> None:
    """Quantised weights have other names and shapes, and are numbers only with their scales."""
    for pattern, method in _QUANTISED:
        if name := next((name for name in stored if re.search(pattern, name)), None):
            raise UserError(
                f"{folder}: the weights are quantised by {method}, as tensor {forms.shown(name)} "
                f"says, which is not supported; {DEQUANTISE}"
            )


def _names(
    folder: Path, plan: Plan, stored: dict[str, Stored], num_layers: int
) -> dict[LeafPath, list[str]]:
    """The tensors of each leaf: one, or one a layer."""
    leaves = [leaf for leaf in plan.leaves.values() if not leaf.outside]
    prefixes = (p for p in plan.prefixes if any(leaf.name(p) in stored for leaf in leaves))
    prefix = next(prefixes, plan.prefixes[0])
    names: dict[LeafPath, list[str]] = {}
    for path, leaf in plan.leaves.items():
        names[path] = []
        for layer in range(num_layers if "{}" in leaf.tensor else 1):
            name = leaf.name(prefix, layer)
            if name not in stored and path == _EMBEDDING and plan.tied in stored:
                name = plan.tied
            if name not in stored:
                raise UserError(
                    f"{folder}: the weights have no tensor {name!r}{_why(path, plan, stored)}"
                )
            names[path].append(name)
    return names


def _why(path: LeafPath, plan: Plan, stored: dict[str, Stored]) -> str:
    """What may be wrong where a leaf's tensor is missing."""
    for pattern, meaning in _INSTEAD:
        if other := next((name for name in stored if re.search(pattern, name)), None):
            return f", but {forms.shown(other)}: it is {meaning}"
    if path[-1] == "bias":
        return "; config.json says that the model has biases: correct it, or give the whole model"
    if path not in (_EMBEDDING, ("unembed", "kernel")):
        return "; wrong model_type, or a file of another model?"
    if plan.tied:
        return f" and no {plan.tied!r}; give the whole model"
    return (
        ", and config.json does not say that embedding and output projection are one matrix; set "
        "its tie_word_embeddings to true if they are, or give the whole model"
    )


def shapes(plan: Plan, config: DecoderConfig, prefix: str) -> dict[str, tuple[int, ...]]:
    """The shape that each tensor of a plan has in a file."""
    sizes = axis_sizes(config)
    return {
        leaf.name(prefix, layer): _file_shape(parse(leaf.pattern), sizes)
        for leaf in plan.leaves.values()
        for layer in range(config.num_layers if "{}" in leaf.tensor else 1)
    }


def _file_shape(layout: Layout, sizes: dict[str, int]) -> tuple[int, ...]:
    return tuple(math.prod(_size(a, sizes) for a in group) for group in layout.groups)


def _check(folder: Path, name: str, tensor: Stored, layout: Layout, sizes: dict[str, int]) -> None:
    expected = _file_shape(layout, sizes)
    if tensor.shape != expected:
        raise UserError(
            f"{folder}: tensor {name!r} has shape {tensor.shape}, but config.json asks for "
            f"{expected}; weights and config.json do not belong together"
        )
    if tensor.dtype not in DTYPES:
        raise UserError(
            f"{folder}: tensor {name!r} is stored as {tensor.dtype}, supported: "
            f"{', '.join(DTYPES)}; {DEQUANTISE}"
        )


def _check_all_used(
    folder: Path,
    plan: Plan,
    stored: dict[str, Stored],
    names: dict[LeafPath, list[str]],
    num_layers: int,
) -> None:
    """What would be left out silently changes nothing, or is refused."""
    unused = sorted(stored.keys() - set(itertools.chain(*names.values())))
    if plan.tied in unused:
        (embedding,) = names[_EMBEDDING]
        unused.remove(plan.tied)
        if not _equal(stored[embedding], stored[plan.tied]):
            raise UserError(
                f"{folder}: tensors {embedding!r} and {plan.tied!r} differ, but config.json ties "
                "them; set its tie_word_embeddings to false to use both"
            )
    for name in list(unused):
        if buffer := next((b for b in plan.buffers if name.endswith(b.ending)), None):
            unused.remove(name)
            _check_buffer(folder, name, stored[name], buffer, plan.config)
    if unused:
        few = ", ".join(map(forms.shown, unused[:3])) + (", ..." if len(unused) > 3 else "")
        raise UserError(
            f"{folder}: the weights have {len(unused)} tensors that the model of config.json does "
            f"not use: {few}; {_meaning(unused, num_layers)}"
        )


def _meaning(unused: Sequence[str], num_layers: int) -> str:
    """What tensors that are not used say about the model."""
    layers = {int(n) for name in unused for n in re.findall(r"(?:layers|h)\.(\d{1,9})\.", name)}
    if layers and min(layers) >= num_layers:
        return (
            f"layers from {min(layers)} on are more than config.json's number of layers, "
            f"{num_layers}; correct it, or give the weights that belong to it"
        )
    for pattern, meaning in _FOREIGN:
        if re.search(pattern, unused[0]):
            return f"they are {meaning}"
    return "weights and config.json do not belong together"


def _check_buffer(
    folder: Path, name: str, tensor: Stored, buffer: Buffer, config: DecoderConfig | None
) -> None:
    """Refuses a buffer that holds something else than what the decoder computes in its place."""
    layer = next((int(n) for n in re.findall(r"\.(\d{1,9})\.", name)), 0)
    columns = tensor.shape[-1] if tensor.shape else 1
    known = tensor.dtype in DTYPES | INTEGERS and 0 not in tensor.shape and 8 * columns <= _COMPARED
    if (
        config is None
        or not known
        or not all(buffer.agrees(rows, config, layer) for rows in _rows_of(tensor, columns))
    ):
        raise UserError(
            f"{folder}: tensor {forms.shown(name)} is not {buffer.what} as the model of "
            "config.json has it, and would be left out; weights and config.json do not belong "
            "together"
        )


def _rows_of(tensor: Stored, columns: int) -> Iterator[Rows]:
    """All of a tensor as rows of so many numbers, in float64, about a megabyte at once."""
    total = math.prod(tensor.shape) // columns
    dtype = (DTYPES | INTEGERS)[tensor.dtype]
    step = max(1, _COMPARED // (8 * columns))
    with tensor.file.open("rb") as f:
        f.seek(tensor.offset)
        for first in range(0, total, step):
            size = min(step, total - first) * columns * dtype.itemsize
            block = f.read(size)
            if len(block) != size:
                raise _shorter(tensor.file)
            yield Rows(
                np.frombuffer(block, dtype).astype(np.float64).reshape(-1, columns), first, total
            )


def _equal(a: Stored, b: Stored) -> bool:
    """Whether two tensors hold the same numbers; read block by block."""
    if a.shape != b.shape or not {a.dtype, b.dtype} <= (DTYPES | INTEGERS).keys():
        return False
    return all(
        np.array_equal(x.values, y.values, equal_nan=True)
        for x, y in zip(_rows_of(a, 1), _rows_of(b, 1), strict=True)
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
                    raise _shorter(tensor.file)
                yield start, block.view(dtype).reshape(stop - start, *shape[1:])


def _shorter(file: Path) -> UserError:
    return UserError(
        f"{file}: shorter than a moment ago; wait until it is whole, or fetch it again"
    )


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
    return (DTYPES | INTEGERS)[dtype].itemsize * math.prod(shape)


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
