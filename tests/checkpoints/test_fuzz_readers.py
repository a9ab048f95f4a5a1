"""Whatever a model's files hold, they are read, or refused in one line that names the file."""

import functools
import json
import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from icljax.checkpoints import from_gguf, gguf_file, stream, tensor_files
from icljax.checkpoints import load as checkpoints
from icljax.errors import UserError
from icljax.models import families, family_tables, options, plans
from icljax.models.config import DecoderConfig, Rope
from tests.checkpoints.test_from_gguf import _hf_weights, _write
from tests.conftest import bounded, llama_tensors, tiny_llama_config, write_folder
from tests.models.test_families import tiny

pytestmark = pytest.mark.fuzz

NUMBERS = [0, -1, 1, 2, 3, 5, 4097, 2**31, 2**63, -(2**70), 10**400, 1e308, 1e-308, 0.5, -0.0]
ODD = [*NUMBERS, math.nan, math.inf, -math.inf, None, True, False, "", "32", "a\nb", "\ud800"]
ODD += ["silu", "gelu", "linear", "llama3", [], [[]], [1], ["full_attention"], {}, {"a": 1}, [{}]]
LEAVES = st.sampled_from(ODD) | st.integers() | st.floats() | st.text(max_size=4)
VALUES = st.recursive(
    LEAVES, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=3), x, max_size=3)
)


def allowed(call, where):
    """What it gives, or None where it refuses in the one way that is allowed."""
    try:
        return call()
    except UserError as e:
        message = str(e)
    assert str(where) in message
    assert len(message.splitlines()) == 1, message
    assert len(message) < 1000
    return None


def outcomes(seen):
    """Both came about: a test whose inputs are all refused early says nothing."""
    assert None in seen
    assert any(x is not None for x in seen)


# ---- config.json -------------------------------------------------------------------------------

ROPE_KEYS = [*sorted(options.ROPE_FORMS), "mrope_section"]
KEYS = sorted({*family_tables.FORMS, *family_tables.NEUTRAL, "model_type", "quantization_config"})
NESTED = {
    key: st.dictionaries(st.sampled_from(ROPE_KEYS), VALUES, max_size=4)
    for key in options.ROPE_TABLES
} | {
    family_tables.ATTENTION_KEY: st.lists(
        st.dictionaries(st.sampled_from([*family_tables.KIND_FORMS, "x"]), VALUES, max_size=2),
        max_size=3,
    ),
    "attention_types": st.lists(st.tuples(VALUES, VALUES).map(list), max_size=2),
}


@st.composite
def configs(draw, kind):
    """A small model's config.json with one or two keys of other values, or without them."""
    hf = tiny(kind)
    for _ in range(draw(st.integers(1, 2))):
        key = draw(st.sampled_from(sorted({*hf, *KEYS, "bos_token_id", "eos_token_id"})))
        value = draw(NESTED.get(key, VALUES) | VALUES | st.just(...))
        hf[key] = value
    return {key: value for key, value in hf.items() if value is not ...}


@pytest.mark.parametrize("kind", family_tables.FAMILIES)
def test_config(kind):
    seen = []

    @bounded(100)
    @given(configs(kind))
    def check(hf):
        config = allowed(lambda: families.decoder_config(hf, "here"), "here: ")
        seen.append(config)
        if config is not None:
            for field in DecoderConfig.__dataclass_fields__.values():
                value = getattr(config, field.name)
                assert field.type not in (int, bool, str) or type(value) is field.type
                assert not isinstance(value, float) or math.isfinite(value)
            if isinstance(config.positions, Rope):
                assert np.isfinite([config.positions.theta, config.positions.factor]).all()
            allowed(lambda: checkpoints._special_tokens(hf, config.vocab_size, "here"), "here: ")

    check()
    outcomes(seen)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    hf = tiny_llama_config()
    return write_folder(tmp_path_factory.mktemp("fuzz") / "llama", hf, llama_tensors(hf))


def test_folder_of_another_config(folder):
    """Through the public path: a config that is accepted fits the weights, or is refused."""
    hf = tiny_llama_config()

    @bounded(15)
    @given(st.sampled_from(sorted(hf)), st.sampled_from([*NUMBERS, 4, 16, 33, 64, 400]))
    def check(key, value):
        (folder / "config.json").write_text(json.dumps(hf | {key: value}))

        def load():
            checkpoint = checkpoints.open_checkpoint(str(folder))
            return checkpoints.load_params(checkpoint.folder, checkpoint.config)

        allowed(load, folder)

    check()
    (folder / "config.json").write_text(json.dumps(hf))


@bounded(100)
@given(st.binary(max_size=30) | VALUES.map(lambda x: json.dumps(x).encode()))
def test_config_of_any_bytes(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("c") / "config.json"
    path.write_bytes(content)
    allowed(lambda: checkpoints._read_json(path), path)


# ---- safetensors -------------------------------------------------------------------------------


@functools.cache
def llama_plan():
    hf = tiny_llama_config()
    config = families.decoder_config(hf, "llama")
    return plans.plan(hf, config), config


@pytest.fixture(scope="module")
def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def load_weights(folder):
    return allowed(lambda: stream.load(folder, *llama_plan()), folder)


def test_safetensors_header(tmp_path, weights):
    """One tensor's entry, or the whole table, of other values."""
    length = int.from_bytes(weights[:8], "little")
    header = json.loads(weights[8 : 8 + length])
    seen = [load_weights_of(tmp_path, header, weights[8 + length :])]
    names = ["model.norm.weight", "model.layers.0.mlp.up_proj.weight", "__metadata__", "x\ny"]
    parts = st.sampled_from(["dtype", "shape", "data_offsets", "more", None])
    lists = st.lists(st.sampled_from(NUMBERS) | st.integers(0, 200_000), max_size=3)
    dtypes = st.sampled_from(["F64", "F16", "F8_E4M3", "I8", "BOOL", "F9", "f32", "C64", "F4"])

    @bounded(150)
    @given(st.sampled_from(names), parts, VALUES | lists | dtypes)
    def check(name, part, value):
        entry = dict(header.get(name) or header["model.norm.weight"])
        if part is None:
            entry = value
        else:
            entry[part] = value
        seen.append(load_weights_of(tmp_path, header | {name: entry}, weights[8 + length :]))

    check()
    outcomes(seen)


def load_weights_of(folder, header, data):
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    return load_weights(folder)


def damage(limit):
    """How bytes are changed: some of the first `limit` set, then all cut off at a place."""
    flips = st.lists(st.tuples(st.integers(0, limit - 1), st.integers(0, 255)), max_size=4)
    return st.tuples(flips, st.none() | st.integers(0, limit))


def damaged(content, how):
    flips, length = how
    out = bytearray(content)
    for at, byte in flips:
        out[at % len(out)] = byte
    return bytes(out[:length])


def test_safetensors_bytes(tmp_path, weights):
    @bounded(100)
    @given(damage(3000))
    def check(how):
        (tmp_path / "model.safetensors").write_bytes(damaged(weights, how))
        load_weights(tmp_path)

    check()


def test_index(tmp_path, folder):
    files = ["model-00001-of-00001.safetensors", "../secret.safetensors", "a\nb", "x" * 300, "\0"]
    save_file(load_file(folder / "model.safetensors"), tmp_path / files[0])
    (tmp_path.parent / "secret.safetensors").write_bytes((tmp_path / files[0]).read_bytes())
    maps = st.dictionaries(st.text(max_size=3), st.sampled_from(files) | VALUES, max_size=3)
    seen = []

    @bounded(100)
    @given(VALUES | st.fixed_dictionaries({"weight_map": maps | VALUES}))
    def check(index):
        (tmp_path / tensor_files.INDEX).write_text(json.dumps(index))
        found = allowed(lambda: tensor_files.weight_files(tmp_path), tmp_path)
        seen.append(found)
        assert not found or {file.parent for file in found} == {tmp_path}

    check()
    outcomes(seen)


# ---- GGUF --------------------------------------------------------------------------------------

LETTERS = gguf_file.SCALARS


def encoded(kind, value):
    """A field's value in one of GGUF's types; bytes are taken as they are."""
    if isinstance(value, bytes):
        return value
    if kind == 8:
        text = value.encode()
        return struct.pack("<Q", len(text)) + text
    if kind == 9:
        item, items = value
        return struct.pack("<IQ", item, len(items)) + b"".join(encoded(item, x) for x in items)
    return struct.pack(f"<{LETTERS[kind]}", value)


def natural(value):
    """(type, value) as a converter would write it."""
    if isinstance(value, list):
        return 9, (natural(value[0])[0], value)
    return {bool: 7, int: 4, float: 6, str: 8}[type(value)], value


@st.composite
def any_field(draw):
    """(type, value) of any type that there is, and of some that are not."""
    kind = draw(st.integers(0, 13))
    if kind in LETTERS:
        size = struct.calcsize(LETTERS[kind])
        odd = [0, 1, 2, 3, 2 ** (8 * size - 1), 2 ** (8 * size) - 1]
        return kind, draw(st.sampled_from([x.to_bytes(size, "little") for x in odd]))
    if kind == 8:
        texts = ["", "linear", "\n", "llama", "qwen2", "gpt2"]
        long = [struct.pack("<Q", n) for n in (2**63, 2**40, 5)]
        return kind, draw(st.sampled_from([*texts, *long, struct.pack("<Q", 1) + b"\xff"]))
    if kind == 9:
        item = draw(st.integers(0, 13))
        count = draw(st.sampled_from([0, 1, 3, 2**24, 2**32, 2**62]))
        return kind, struct.pack("<IQ", item, count) + draw(st.binary(max_size=20))
    return kind, b""


@pytest.fixture(scope="module")
def gguf_parts(tmp_path_factory):
    """(fields {name: (type, value)}, tensors {name: (shape, kind, offset)}, data)."""
    path = _write(tmp_path_factory.mktemp("gguf") / "tiny.gguf", _hf_weights())
    whole = gguf_file.read(path)
    start = min(t.offset for t in whole.tensors.values())
    table = {n: (t.shape[::-1], int(t.kind), t.offset - start) for n, t in whole.tensors.items()}
    fields = {name: natural(value) for name, value in whole.fields.items()}
    return fields, table, path.read_bytes()[start:]


def gguf_bytes(fields, table, data):
    out = b"GGUF" + struct.pack("<IQQ", 3, len(table), len(fields))
    for name, (kind, value) in fields:
        out += encoded(8, name) + struct.pack("<I", kind) + encoded(kind, value)
    for name, (shape, kind, offset) in table:
        out += encoded(8, name)
        out += struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
    return out + b"\0" * (-len(out) % 32) + data


def convert(folder, content):
    path = folder / "tiny.gguf"
    path.write_bytes(content)

    def once():
        from_gguf.convert(path, folder / "hf")
        (folder / "hf").rename(folder / "done")
        made = load_file(folder / "done/model.safetensors")
        for file in (folder / "done").iterdir():
            file.unlink()
        (folder / "done").rmdir()
        return made

    return allowed(once, path)


def test_gguf_fields(tmp_path, gguf_parts):
    fields, table, data = gguf_parts
    assert convert(tmp_path, gguf_bytes(fields.items(), table.items(), data)) is not None
    seen = []
    more = [f"llama.{key}" for key in from_gguf._NEUTRAL]
    more += ["llama.x", "split.count", "general.type", "general.alignment", "llama.vocab_size"]
    more += ["llama.attention.key_length", "llama.attention.value_length"]

    @bounded(60)
    @given(st.sampled_from([*sorted(fields), *more]), any_field(), st.sampled_from("=+-"))
    def check(name, field, how):
        changed = (
            [*fields.items(), (name, field)] if how == "+" else [*(fields | {name: field}).items()]
        )
        if how == "-":
            changed = [(n, f) for n, f in fields.items() if n != name]
        seen.append(convert(tmp_path, gguf_bytes(changed, table.items(), data)))

    check()
    outcomes(seen)


def test_gguf_tensors(tmp_path, gguf_parts):
    fields, table, data = gguf_parts
    axes = st.sampled_from([0, 1, 2, 16, 32, 64, 2**32, 2**63])
    kinds = st.integers(0, 45)
    offsets = st.sampled_from([0, 1, 32, 2**32, 2**63, 2**64 - 1])
    names = st.sampled_from([*list(table)[:6], "rope_freqs.weight", "blk.7.attn_q.weight", "\n"])

    @bounded(80)
    @given(
        names,
        st.lists(axes, max_size=5),
        kinds,
        offsets,
        st.sampled_from(["shape", "kind", "offset", "all"]),
    )
    def check(name, shape, kind, offset, what):
        old = table.get(name, ((4,), 0, 0))
        new = (shape, old[1], old[2]) if what == "shape" else (old[0], kind, old[2])
        new = (*old[:2], offset) if what == "offset" else new
        new = (shape, kind, offset) if what == "all" else new
        convert(tmp_path, gguf_bytes(fields.items(), (table | {name: new}).items(), data))

    check()


def test_gguf_bytes(tmp_path, gguf_parts):
    fields, table, data = gguf_parts
    whole = gguf_bytes(fields.items(), table.items(), data)

    @bounded(100)
    @given(damage(len(whole) - len(data)))
    def check(how):
        convert(tmp_path, damaged(whole, how))

    check()


# ---- Torch -------------------------------------------------------------------------------------


@pytest.mark.parity
def test_torch_bytes(tmp_path, folder):
    torch = pytest.importorskip("torch")
    from icljax.checkpoints import from_torch

    path = tmp_path / "pytorch_model.bin"
    arrays = load_file(folder / "model.safetensors")
    torch.save({name: torch.tensor(x) for name, x in list(arrays.items())[:3]}, path)
    whole = path.read_bytes()
    seen = []

    @bounded(150)
    @given(damage(800) | damage(len(whole)), st.booleans())
    def check(how, from_the_end):
        how = ([(-1 - at if from_the_end else at, byte) for at, byte in how[0]], how[1])
        path.write_bytes(damaged(whole, how))
        seen.append(allowed(lambda: from_torch._checked(path, from_torch._load(path), {}), path))

    check()
    outcomes(seen)
