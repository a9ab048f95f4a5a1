"""Weights go from files into shards: every number in its place, and no more memory than promised.

Run as a script it loads one folder in a process of its own and prints what that took.
"""

import dataclasses
import json
import os
import socket
import subprocess
import sys
import weakref
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from icljax.checkpoints import stream, tensor_files
from icljax.errors import UserError
from icljax.models import families, plans
from icljax.models.decoder import DecoderConfig, init_params
from icljax.models.plans import Leaf, Plan
from icljax.runtime import sharding
from tests.conftest import tiny_llama_config

HERE = Path(__file__)
MIB, GIB = 2**20, 2**30
SIZES = {"D": 6, "F": 10, "H": 4, "G": 2, "K": 3, "V": 11}
CONFIG = DecoderConfig(
    num_layers=3,
    width=6,
    mlp_width=10,
    num_heads=4,
    num_kv_heads=2,
    head_width=3,
    vocab_size=11,
    context_length=7,
)
# Each with the file's shape, and the same in numpy.
PATTERNS = {
    "V D -> V D": ((11, 6), lambda x: x),
    "V D -> D V": ((11, 6), lambda x: x.T),
    "D -> D": ((6,), lambda x: x),
    "(H K) D -> D H K": ((12, 6), lambda x: x.T.reshape(6, 4, 3)),
    "D (H K) -> H K D": ((6, 12), lambda x: x.T.reshape(4, 3, 6)),
    "(H K) -> H K": ((12,), lambda x: x.reshape(4, 3)),
    "D (3 H K) -> D H K": ((6, 36), lambda x: x[:, 12:24].reshape(6, 4, 3)),
    "(3 H K) D -> D H K": ((36, 6), lambda x: x[12:24].T.reshape(6, 4, 3)),
    "(H 3 K) D -> D H K": ((36, 6), lambda x: x.reshape(4, 3, 3, 6)[:, 1].transpose(2, 0, 1)),
    "(H 3 K) -> H K": ((36,), lambda x: x.reshape(4, 3, 3)[:, 1]),
}


def read(folder, plan, **changes):
    return stream.load(folder, plan, dataclasses.replace(CONFIG, **changes))


def write(folder, arrays):
    save_file({n: np.ascontiguousarray(x) for n, x in arrays.items()}, folder / "model.safetensors")


# ---- Every number in its place -----------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 100, 1 << 20])  # bytes: a row, a few, all
@pytest.mark.parametrize("stacked", [False, True])
def test_patterns(tmp_path, monkeypatch, stacked, block):
    monkeypatch.setattr(stream, "BLOCK", block)
    rng = np.random.default_rng(0)
    arrays, leaves, expected = {}, {}, {}
    for i, (pattern, (shape, in_numpy)) in enumerate(PATTERNS.items()):
        layers = rng.standard_normal((3 if stacked else 1, *shape), np.float32)
        arrays |= {f"t{i}.{layer}": x for layer, x in enumerate(layers)}
        leaves[(f"p{i}",)] = Leaf(f"t{i}.{'{}' if stacked else 0}", pattern, part=1)
        theirs = np.stack([in_numpy(x) for x in layers])
        expected[f"p{i}"] = theirs if stacked else theirs[0]
    write(tmp_path, arrays)
    got = read(tmp_path, Plan(leaves))
    jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.mark.parametrize("block", [1, 100, 1 << 20])
@pytest.mark.parametrize("pattern", list(PATTERNS))
def test_any_part_of_a_leaf(tmp_path, monkeypatch, pattern, block):
    """Each axis cut in two, the layers too: what two devices keep."""
    monkeypatch.setattr(stream, "BLOCK", block)
    shape, in_numpy = PATTERNS[pattern]
    layers = np.random.default_rng(0).standard_normal((3, *shape), np.float32)
    write(tmp_path, {f"t.{layer}": x for layer, x in enumerate(layers)})
    stored = tensor_files.read_headers(tmp_path)
    whole = np.stack([in_numpy(x) for x in layers])
    leaf = Leaf("t.{}", pattern, part=1)
    for axis, size in enumerate(whole.shape):
        cut = (slice(None, size // 2), slice(size // 2, None))
        indices = [
            (*(slice(None),) * axis, part, *(slice(None),) * 9)[: whole.ndim] for part in cut
        ]
        shards = [stream._empty_shard(leaf, i, whole.shape, ("x",), CONFIG) for i in indices]
        for layer in range(3):
            stream._read_tensor(stored[f"t.{layer}"], layer, shards, SIZES)
        for index, shard in zip(indices, shards, strict=True):
            np.testing.assert_array_equal(shard.data, whole[index], strict=True)


@pytest.mark.parametrize("dtype", list(tensor_files.DTYPES))
@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_stored_types(tmp_path, dtype, compute):
    values = np.random.default_rng(0).standard_normal((11, 6)).astype(tensor_files.DTYPES[dtype])
    about = {"x": (dtype, (11, 6))}
    tensor_files.write(tmp_path, about, {"x": values}.__getitem__)
    plan = Plan({("a", "key"): Leaf("x", "V D -> D V"), ("b",): Leaf("x", "V D -> V D", add=1.0)})
    got = read(tmp_path, plan, dtype=compute)
    np.testing.assert_array_equal(got["a"]["key"], values.astype(np.float32).T, strict=True)
    added = (values.astype(np.float32) + 1).astype(compute)  # not: rounded, then added
    np.testing.assert_array_equal(np.asarray(got["b"]), added, strict=True)


def test_each_byte_is_read_once(tmp_path, monkeypatch):
    """The parts of a joint tensor are read together."""
    seen = []
    blocks = stream._blocks

    def spy(*args):
        for start, block in blocks(*args):
            seen.append(block.nbytes)
            yield start, block

    monkeypatch.setattr(stream, "_blocks", spy)
    write(tmp_path, {f"x{i}": np.zeros((36, 6), np.float32) for i in range(3)})
    leaf = Leaf("x{}", "(H 3 K) D -> D H K")
    read(tmp_path, Plan({("p", str(i)): dataclasses.replace(leaf, part=i) for i in range(3)}))
    assert sum(seen) == 3 * 36 * 6 * 4


def test_only_what_a_process_keeps_is_read(monkeypatch, tmp_path):
    """Rows that none of the shards wants are skipped."""
    monkeypatch.setattr(stream, "BLOCK", 24)  # one row
    rows = np.arange(66, dtype=np.float32).reshape(11, 6)
    write(tmp_path, {"x": rows})
    stored = tensor_files.read_headers(tmp_path)["x"]
    needs = [range(1, 3), range(2, 4), range(8, 9)]
    got = {start: block.copy() for start, block in stream._blocks(stored, (11, 6), needs)}
    assert list(got) == [1, 2, 3, 8]
    for start, block in got.items():
        np.testing.assert_array_equal(block, rows[start : start + 1])


def test_the_memory_that_was_filled_is_the_array():
    """On CPU, JAX takes the memory as it is; were it copied, the peak would be twice the model."""
    for shape in ((3, 5), (1000, 7), (2, 3, 4)):
        memory = stream.aligned(shape, np.dtype(ml_dtypes.bfloat16))
        memory[:] = 1
        array = jax.device_put(memory, jax.devices("cpu")[0])
        assert array.unsafe_buffer_pointer() == memory.ctypes.data


def test_loaded_arrays_can_be_donated(tmp_path):
    write(tmp_path, {"x": np.ones((11, 6), np.float32)})
    x = read(tmp_path, Plan({("x",): Leaf("x", "V D -> V D")}))["x"]
    doubled = jax.jit(lambda x: 2 * x, donate_argnums=0)(x)
    np.testing.assert_array_equal(doubled, np.full((11, 6), 2.0))


def embedding(tmp_path, dtype="float32", **changes):
    """[V, D] of an aligned file, as read; V and D as CONFIG has them."""
    shape = (CONFIG.vocab_size, CONFIG.width)
    table = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    tensor_files.write(tmp_path, {"x": ("F32", shape)}, lambda name: table)
    plan = Plan({("embed", "embedding"): Leaf("x", "V D -> V D")})
    params = read(tmp_path, plan, dtype=dtype, **changes)
    got = params["embed"]["embedding"]
    np.testing.assert_array_equal(got, table.astype(got.dtype))
    return got, table


@pytest.mark.parametrize(
    ("tied", "dtype", "maps"),
    [(False, "float32", 1), (True, "float32", 0), (False, "bfloat16", 0)],
)
def test_an_embedding_that_is_no_output_matrix_stays_in_its_file(
    tmp_path, monkeypatch, tied, dtype, maps
):
    """Its pages can be given back at any time; the numbers are there when they are read again."""
    monkeypatch.setattr(stream, "_maps", weakref.WeakSet())
    got, table = embedding(tmp_path, dtype, tied=tied)
    assert len(stream._maps) == maps
    stream.forget_pages()
    np.testing.assert_array_equal(got, table.astype(got.dtype))


def test_who_writes_to_a_mapped_embedding_does_not_write_to_the_file(tmp_path):
    got, table = embedding(tmp_path, tied=False)
    doubled = jax.jit(lambda x: 2 * x, donate_argnums=0)(got)
    np.testing.assert_array_equal(doubled, 2 * table)
    again, _ = embedding(tmp_path, tied=False)
    np.testing.assert_array_equal(again, table)


# ---- Written -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "count"), [(10**9, 1), (80, 2), (1, 4)])
def test_write_as_the_package_reads(tmp_path, limit, count):
    arrays = {f"x{i}": np.full((5, i + 1), i, ml_dtypes.bfloat16) for i in range(4)}
    arrays["x1"] = arrays["x1"].astype(np.float32)
    names = {np.dtype("float32"): "F32", np.dtype(ml_dtypes.bfloat16): "BF16"}
    about = {n: (names[x.dtype], x.shape) for n, x in arrays.items()}
    tensor_files.write(tmp_path, about, arrays.__getitem__, limit=limit)
    files = tensor_files.weight_files(tmp_path)
    assert len(files) == len(list(tmp_path.glob("*.safetensors"))) == count
    got = {name: x for file in files for name, x in load_file(file).items()}
    assert got.keys() == arrays.keys()
    for name, x in arrays.items():
        np.testing.assert_array_equal(got[name], x, strict=True)


# ---- Errors ------------------------------------------------------------------------------------


def test_a_quantised_form(tmp_path):
    write(tmp_path, {"x": np.zeros((11, 6), np.int8)})
    with pytest.raises(UserError, match="'x' is stored as I8, supported: F64, F32"):
        read(tmp_path, Plan({("x",): Leaf("x", "V D -> V D")}))


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    write(tmp_path, {"x": np.zeros((11, 6), np.float32)})
    stored = tensor_files.read_headers(tmp_path)["x"]
    os.truncate(stored.file, stored.offset + 40)
    with pytest.raises(UserError, match="shorter than a moment ago"):
        list(stream._blocks(stored, (11, 6), [range(11)]))


# ---- Memory ------------------------------------------------------------------------------------

# 116 MiB as loaded in bfloat16 (key and value in float32), of which each MLP matrix is 32.
SMALL = tiny_llama_config(
    vocab_size=4096,
    hidden_size=512,
    intermediate_size=8192,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=8,
    tie_word_embeddings=False,
)
LARGE = SMALL | {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
}


def synthetic(folder, hf, fill, limit):
    """A sharded bfloat16 checkpoint, of random numbers or (cheap: the files are sparse) zeros."""
    config = families.decoder_config(hf, folder)
    plan, sizes = plans.plan(hf, config), plans.axis_sizes(config)
    about = {}
    for leaf in plan.leaves.values():
        shape = leaf.layout.file_shape(sizes)
        for layer in range(config.num_layers if "{}" in leaf.tensor else 1):
            about[leaf.name("model.", layer)] = ("BF16", shape)
    (folder / "config.json").write_text(json.dumps(hf))
    if fill:
        rng = np.random.default_rng(0)

        def get(name):
            return rng.standard_normal(about[name][1], np.float32).astype(ml_dtypes.bfloat16)

        tensor_files.write(folder, about, get, limit)
        return folder
    weights = {}
    for i, names in enumerate(tensor_files._split(about, limit)):
        with (folder / f"{i}.safetensors").open("wb") as f:
            tensor_files._write_header(f, {name: about[name] for name in names})
            f.truncate(f.tell() + sum(tensor_files._bytes(*about[name]) for name in names))
        weights |= dict.fromkeys(names, f"{i}.safetensors")
    (folder / tensor_files.INDEX).write_text(json.dumps({"weight_map": weights}))
    return folder


def main(folder, model, block, coordinator, process):
    """Loads a folder, on a mesh of all devices where `model` is not 0; prints bytes."""
    if coordinator:
        jax.distributed.initialize(coordinator, 2, int(process))
    stream.BLOCK = int(block)
    hf = json.loads((Path(folder) / "config.json").read_text())
    config = dataclasses.replace(families.decoder_config(hf, folder), dtype="bfloat16")
    where = None
    if int(model):
        shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
        where = sharding.shardings(shapes, sharding.make_mesh(-1, int(model)))
    plan = plans.plan(hf, config)
    jax.block_until_ready(jnp.zeros(8) + 1)
    before = _memory("VmRSS")
    params = stream.load(Path(folder), plan, config, where)
    peak = _memory("VmHWM")
    leaves = jax.tree.leaves(params)
    kept = [{str(s.index): s.data.nbytes for s in x.addressable_shards} for x in leaves]
    same = not os.environ.get("VALUES") or _equal(params, stream.load(Path(folder), plan, config))
    own = sum(sum(shards.values()) for shards in kept)
    total = sum(x.nbytes for x in leaves)
    print(json.dumps({"own": own, "total": total, "before": before, "peak": peak, "same": same}))


def _memory(name):
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) * 1024


def _equal(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in pairs)


def start(folder, devices, model, block, coordinator="", process=0, values=""):
    env = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(HERE.parents[2]),
        "VALUES": values,
    }
    arguments = [sys.executable, HERE, folder, model, block, coordinator, process]
    return subprocess.Popen(
        [str(a) for a in arguments], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def result(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err.decode()
    return json.loads(out.splitlines()[-1])


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return synthetic(tmp_path_factory.mktemp("small"), SMALL, fill=True, limit=20 * MIB)


def show(got):
    print({k: f"{v / MIB:.1f} MiB" for k, v in got.items() if k != "same"})


@linux
@pytest.mark.parametrize(("devices", "model"), [(1, 0), (8, 8), (8, 2)])
def test_memory_of_a_small_model(small, devices, model):
    """Eight threads with a block of 1 MiB each; a copy of one MLP matrix would be 32 MiB more."""
    assert len(tensor_files.weight_files(small)) > 5
    got = result(start(small, devices, model, MIB, values="compare"))
    show(got)
    assert got["same"]
    assert got["own"] == got["total"] > 100 * MIB
    assert got["peak"] < got["before"] + got["own"] + 24 * MIB


@linux
@pytest.mark.slow
@pytest.mark.parametrize(("devices", "model"), [(1, 0), (8, 8), (8, 2), (8, 1)])
def test_memory_of_a_large_model(tmp_path, devices, model):
    folder = synthetic(tmp_path, LARGE, fill=False, limit=tensor_files.SHARD)
    got = result(start(folder, devices, model, stream.BLOCK))
    show(got)
    assert got["own"] == got["total"] > 3 * GIB
    assert got["peak"] < got["own"] + GIB


@linux
@pytest.mark.slow
@pytest.mark.parametrize("model", [8, 4])
def test_memory_of_two_processes(tmp_path, model):
    """Each reads and keeps its part: half the model, or (two copies of it on the mesh) all."""
    folder = synthetic(tmp_path, LARGE, fill=False, limit=tensor_files.SHARD)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    both = [start(folder, 4, model, stream.BLOCK, coordinator, i) for i in range(2)]
    for got in map(result, both):
        show(got)
        assert got["own"] < (0.51 if model == 8 else 1.01) * got["total"]
        assert got["peak"] < got["own"] + GIB


if __name__ == "__main__":
    main(*sys.argv[1:])
