"""Models on disk: tiny random Hugging Face folders and GGUF files, and what is wrong with them."""

import dataclasses
import json
import shutil
import sys
import types

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from icljax.checkpoints import from_gguf, tensor_files
from icljax.checkpoints import load as checkpoints
from icljax.comparison import finetune
from icljax.errors import UserError
from icljax.models.config import Rope
from icljax.models.decoder import Decoder, init_params
from icljax.models.named import NAMED
from icljax.runtime import downloads
from tests.checkpoints.test_from_gguf import (
    FFN,
    HEADS,
    KV_HEADS,
    LAYERS,
    TOKENS,
    WIDTH,
    _hf_weights,
    _write,
)
from tests.conftest import make_tokenizer, tiny_llama_config, write_folder

GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 400,
    "n_positions": 128,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
# The opening of "Alice's Adventures in Wonderland" (Lewis Carroll, 1865), in the public domain.
ALICE = (
    "Alice was beginning to get very tired of sitting by her sister on the bank, and of having "
    "nothing to do: once or twice she had peeped into the book her sister was reading, but it had "
    'no pictures or conversations in it, "and what is the use of a book," thought Alice "without '
    'pictures or conversations?"\n\n'
    "So she was considering in her own mind (as well as she could, for the hot day made her feel "
    "very sleepy and stupid), whether the pleasure of making a daisy-chain would be worth the "
    "trouble of getting up and picking the daisies, when suddenly a White Rabbit with pink eyes "
    "ran close by her.\n\n"
    "There was nothing so very remarkable in that; nor did Alice think it so very much out of the "
    'way to hear the Rabbit say to itself, "Oh dear! Oh dear! I shall be late!" (when she thought '
    "it over afterwards, it occurred to her that she ought to have wondered at this, but at the "
    "time it all seemed quite natural)."
)
LLAMA_OPTIONS = pytest.mark.parametrize(
    "options",
    [
        {},
        {"tie_word_embeddings": False},
        {"attention_bias": True, "mlp_bias": True},
        {"head_dim": 16},
    ],
    ids=["tied", "untied", "biases", "wide-heads"],
)


def llama_shapes(c):
    """Of a LlamaForCausalLM's tensors; a torch Linear is [out, in]."""
    width, mlp = c["hidden_size"], c["intermediate_size"]
    head = c.get("head_dim", width // c["num_attention_heads"])
    q, kv = c["num_attention_heads"] * head, c["num_key_value_heads"] * head
    linear = {f"self_attn.{n}_proj": s for n, s in zip("qkvo", [q, kv, kv, width], strict=True)}
    linear |= {"mlp.gate_proj": mlp, "mlp.up_proj": mlp, "mlp.down_proj": width}
    inputs = {"self_attn.o_proj": q, "mlp.down_proj": mlp}
    out = {"model.embed_tokens.weight": (c["vocab_size"], width), "model.norm.weight": (width,)}
    if not c["tie_word_embeddings"]:
        out["lm_head.weight"] = (c["vocab_size"], width)
    for layer in range(c["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name, size in linear.items():
            out[f"{prefix}{name}.weight"] = (size, inputs.get(name, width))
            if c.get("attention_bias" if "self_attn" in name else "mlp_bias"):
                out[f"{prefix}{name}.bias"] = (size,)
        for name in ("input_layernorm", "post_attention_layernorm"):
            out[f"{prefix}{name}.weight"] = (width,)
    return out


def gpt2_shapes(c, prefix=""):
    """Of a GPT2LMHeadModel's tensors; its Conv1D is [in, out]."""
    width = c["n_embd"]
    out = {f"{prefix}wte.weight": (c["vocab_size"], width)}
    out[f"{prefix}wpe.weight"] = (c["n_positions"], width)
    sizes = {
        "attn.c_attn": (width, 3 * width),
        "attn.c_proj": (width, width),
        "mlp.c_fc": (width, 4 * width),
        "mlp.c_proj": (4 * width, width),
    }
    for layer in range(c["n_layer"]):
        for name, shape in sizes.items():
            out[f"{prefix}h.{layer}.{name}.weight"] = shape
            out[f"{prefix}h.{layer}.{name}.bias"] = shape[1:]
    for norm in ["ln_f", *(f"h.{n}.ln_{i}" for n in range(c["n_layer"]) for i in (1, 2))]:
        out |= {f"{prefix}{norm}.{part}": (width,) for part in ("weight", "bias")}
    return out


def random_tensors(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def llama_folder(folder, **options):
    config = tiny_llama_config(**options)
    return write_folder(folder, config, random_tensors(llama_shapes(config)))


def gpt2_folder(folder, prefix="", tensors=None, **options):
    config = GPT2 | options
    return write_folder(folder, config, tensors or random_tensors(gpt2_shapes(config, prefix)))


def load(folder, dtype="float32"):
    """(checkpoint, parameters) through the public path."""
    checkpoint = checkpoints.open_checkpoint(str(folder))
    config = dataclasses.replace(checkpoint.config, dtype=dtype)
    return checkpoint, checkpoints.load_params(checkpoint.folder, config)


def assert_same(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def change_config(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    kept = {key: value for key, value in config.items() if value is not ...}
    path.write_text(json.dumps(kept))


# ---- Every value in its place ------------------------------------------------------------------


@LLAMA_OPTIONS
def test_llama_values(tmp_path, options):
    checkpoint, params = load(llama_folder(tmp_path, **options))
    torch = load_file(tmp_path / "model.safetensors")
    width = options.get("head_dim", 8)
    assert (checkpoint.config.head_width, checkpoint.bos, checkpoint.eos) == (width, 0, 1)
    attention, mlp = params["layers"]["attention"], params["layers"]["mlp"]
    same = np.testing.assert_array_equal
    for layer in range(3):
        prefix = f"model.layers.{layer}."
        for name, heads in (("query", 4), ("key", 2), ("value", 2)):
            for h in range(heads):
                rows = slice(h * width, (h + 1) * width)
                ours, theirs = attention[name], f"{prefix}self_attn.{name[0]}_proj."
                same(ours["kernel"][layer, :, h, :], torch[theirs + "weight"][rows].T)
                if "attention_bias" in options:
                    same(ours["bias"][layer, h], torch[theirs + "bias"][rows])
        for h in range(4):
            columns = torch[prefix + "self_attn.o_proj.weight"][:, h * width : (h + 1) * width]
            same(attention["output"]["kernel"][layer, h], columns.T)
        for name in ("gate", "up", "down"):
            same(mlp[name]["kernel"][layer], torch[f"{prefix}mlp.{name}_proj.weight"].T)
            if "mlp_bias" in options:
                same(mlp[name]["bias"][layer], torch[f"{prefix}mlp.{name}_proj.bias"])
        if "attention_bias" in options:
            bias = torch[prefix + "self_attn.o_proj.bias"]
            same(attention["output"]["bias"][layer], bias)
        for ours, theirs in (("attention", "input"), ("mlp", "post_attention")):
            scale = params["layers"][f"{ours}_norm"]["scale"][layer]
            same(scale, torch[f"{prefix}{theirs}_layernorm.weight"])
    same(params["embed"]["embedding"], torch["model.embed_tokens.weight"])
    same(params["final_norm"]["scale"], torch["model.norm.weight"])
    assert ("unembed" in params) == ("tie_word_embeddings" in options)
    if "unembed" in params:
        same(params["unembed"]["kernel"], torch["lm_head.weight"].T)


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_gpt2_values(tmp_path, prefix):
    checkpoint, params = load(gpt2_folder(tmp_path, prefix))
    torch = load_file(tmp_path / "model.safetensors")
    assert (checkpoint.config.mlp_width, checkpoint.config.tied) == (128, True)
    same = np.testing.assert_array_equal
    layers = params["layers"]
    for layer in range(3):
        block = f"{prefix}h.{layer}."
        for part, name in enumerate(("query", "key", "value")):
            for h in range(4):
                columns = slice(32 * part + 8 * h, 32 * part + 8 * h + 8)
                ours = layers["attention"][name]
                kernel = torch[block + "attn.c_attn.weight"][:, columns]
                same(ours["kernel"][layer, :, h], kernel)
                same(ours["bias"][layer, h], torch[block + "attn.c_attn.bias"][columns])
        for h in range(4):
            rows = torch[block + "attn.c_proj.weight"][8 * h : 8 * h + 8]
            same(layers["attention"]["output"]["kernel"][layer, h], rows)
        same(layers["attention"]["output"]["bias"][layer], torch[block + "attn.c_proj.bias"])
        for ours, theirs in (("up", "c_fc"), ("down", "c_proj")):
            same(layers["mlp"][ours]["kernel"][layer], torch[f"{block}mlp.{theirs}.weight"])
            same(layers["mlp"][ours]["bias"][layer], torch[f"{block}mlp.{theirs}.bias"])
        for ours, theirs in (("attention_norm", "ln_1"), ("mlp_norm", "ln_2")):
            same(layers[ours]["scale"][layer], torch[f"{block}{theirs}.weight"])
            same(layers[ours]["bias"][layer], torch[f"{block}{theirs}.bias"])
    same(params["embed"]["embedding"], torch[f"{prefix}wte.weight"])
    same(params["embed_positions"]["embedding"], torch[f"{prefix}wpe.weight"])
    same(params["final_norm"]["scale"], torch[f"{prefix}ln_f.weight"])
    same(params["final_norm"]["bias"], torch[f"{prefix}ln_f.bias"])


def test_the_output_projection_says_nothing_of_the_prefix(tmp_path):
    shapes = gpt2_shapes(GPT2, "transformer.") | {"lm_head.weight": (400, 32)}
    gpt2_folder(tmp_path, tensors=random_tensors(shapes), tie_word_embeddings=False)
    assert load(tmp_path)[1]["unembed"]["kernel"].shape == (32, 400)


@LLAMA_OPTIONS
def test_tree_is_the_one_of_init(tmp_path, options):
    checkpoint, params = load(llama_folder(tmp_path, **options))
    expected = jax.eval_shape(lambda: init_params(checkpoint.config, jax.random.key(0)))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected)
    tokens = jnp.arange(6, dtype=jnp.int32)[None]
    logits = Decoder(checkpoint.config).apply({"params": params}, tokens, tokens)
    assert logits.shape == (1, 6, 400)
    assert np.isfinite(logits).all()


def shard(folder):
    """Splits model.safetensors in two, with an index; returns the second shard's path."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    place = {name: files[i % 2] for i, name in enumerate(tensors)}
    for file in files:
        save_file({n: x for n, x in tensors.items() if place[n] == file}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": place}))
    return folder / files[1]


@pytest.mark.parametrize("make", [llama_folder, gpt2_folder])
def test_shards_equal_one_file(tmp_path, make):
    _, expected = load(make(tmp_path))
    shard(tmp_path)
    _, got = load(tmp_path)
    assert_same(got, expected)


def test_fingerprint_is_of_every_file(tmp_path):
    llama_folder(tmp_path)
    seen = {checkpoints.fingerprint(tmp_path)}
    last = shard(tmp_path)
    seen.add(checkpoints.fingerprint(tmp_path))
    last.write_bytes(last.read_bytes()[:-1] + b"x")
    seen.add(checkpoints.fingerprint(tmp_path))
    change_config(tmp_path, rope_theta=1.0)
    seen.add(checkpoints.fingerprint(tmp_path))
    assert len(seen) == 4


# ---- Types -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [ml_dtypes.bfloat16, np.float16])
def test_half_precision_files(tmp_path, stored):
    llama_folder(tmp_path)
    path = tmp_path / "model.safetensors"
    rounded = {name: x.astype(stored) for name, x in load_file(path).items()}
    save_file(rounded, path)
    _, got = load(tmp_path)
    save_file({name: x.astype(np.float32) for name, x in rounded.items()}, path)
    _, expected = load(tmp_path)
    assert {x.dtype for x in jax.tree.leaves(got)} == {jnp.dtype("float32")}
    assert_same(got, expected)


@pytest.mark.parametrize("make", [llama_folder, gpt2_folder])
def test_only_trained_leaves_stay_float32(tmp_path, make):
    _, exact = load(make(tmp_path))
    _, params = load(tmp_path, dtype="bfloat16")
    assert_same(finetune.kv_params_of(params), finetune.kv_params_of(exact))
    assert {x.dtype for x in jax.tree.leaves(finetune.kv_params_of(params))} == {
        jnp.dtype("float32")
    }
    none = {"key": {}, "value": {}}
    others = jax.tree.leaves(finetune.with_kv_params(params, none))
    assert {x.dtype for x in others} == {jnp.dtype("bfloat16")}


# ---- Full-size models, without their memory ----------------------------------------------------

SMOLLM2_135M = tiny_llama_config(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    rope_theta=100000.0,
)
GPT2_SMALL = GPT2 | {
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
}
LLAMA_3_2_1B = tiny_llama_config(
    vocab_size=128256,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=64,
    rope_theta=500000.0,
    rope_scaling={
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
)


@pytest.mark.parametrize(
    ("hf", "expected"),
    [
        (SMOLLM2_135M, 134_515_008),
        (GPT2_SMALL, 124_439_808),
        (LLAMA_3_2_1B, 1_235_814_400),
    ],
    ids=["SmolLM2-135M", "GPT-2 small", "Llama-3.2-1B"],
)
def test_parameter_counts(hf, expected):
    config = checkpoints.decoder_config(hf, "here")
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == expected


# ---- Names and GGUF files ----------------------------------------------------------------------


@pytest.fixture
def gguf_file(tmp_path, monkeypatch):
    monkeypatch.setenv("ICLJAX_CACHE", str(tmp_path / "cache"))
    return _write(tmp_path / "tiny.gguf", _hf_weights())


def test_gguf_equals_the_folder_it_came_from(tmp_path, gguf_file):
    config = tiny_llama_config(
        vocab_size=len(TOKENS),
        hidden_size=WIDTH,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=128,
        rope_theta=5000.0,
        bos_token_id=1,
        eos_token_id=0,
    )
    folder = write_folder(tmp_path / "hf", config, _hf_weights())
    got, params = load(gguf_file)
    assert got.config == checkpoints.decoder_config(config, folder)
    assert (got.bos, got.eos) == (1, 0)
    assert got.tokenizer.get_vocab_size() == len(TOKENS)
    assert_same(params, checkpoints.load_params(folder, got.config))


def test_gguf_is_converted_once(tmp_path, gguf_file, monkeypatch):
    calls = []
    first, params = load(gguf_file)
    assert first.folder.parent == tmp_path / "cache/models"

    convert = from_gguf.convert
    monkeypatch.setattr(from_gguf, "convert", lambda *a: (calls.append(a), convert(*a)))
    again, same_params = load(gguf_file)
    assert (again.folder, calls) == (first.folder, [])
    assert_same(same_params, params)

    # A file of the same name with other weights is another model.
    doubled = {name: 2 * x for name, x in _hf_weights().items()}
    other, other_params = load(_write(gguf_file, doubled))
    assert other.folder != first.folder
    assert len(calls) == 1
    assert_same(other_params, jax.tree.map(lambda x: 2 * x, params))


def test_known_name_is_fetched_and_converted(gguf_file, monkeypatch):
    monkeypatch.setattr(checkpoints.downloads, "fetch", lambda *_: gguf_file)
    got = checkpoints.open_checkpoint("smollm2-135m")
    assert got.name == "smollm2-135m"
    assert NAMED["smollm2-135m"].file.sha256[:12] in got.folder.name


def test_a_converted_known_name_is_not_fetched_again(gguf_file, monkeypatch):
    monkeypatch.setattr(checkpoints.downloads, "fetch", lambda *_: gguf_file)
    converted = NAMED["gemma-3-270m"].converted
    checkpoints.locate("gemma-3-270m").rename(converted)  # as that of the real file is called
    monkeypatch.setattr(checkpoints.downloads, "fetch", lambda *_: pytest.fail("fetched"))
    assert checkpoints.locate("gemma-3-270m") == converted


# ---- The hub, and folders without tokenizer.json -----------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that has what lies in `hub.folder`; what it is asked for is in `hub.asked`."""
    hub = types.ModuleType("huggingface_hub")
    hub.folder, hub.asked = tmp_path / "snapshot", []

    def snapshot_download(name, revision, allow_patterns):
        hub.asked.append((name, revision))
        copy = tmp_path / f"copy{len(hub.asked)}"
        copy.mkdir()
        for path in hub.folder.iterdir():
            if any(path.match(pattern) for pattern in allow_patterns):
                shutil.copy(path, copy)
        return str(copy)

    hub.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.chdir(tmp_path)
    return hub


@pytest.mark.parametrize(("name", "revision"), [("org/tiny", None), ("org/tiny@v1.0", "v1.0")])
def test_name_on_the_hub(hub, name, revision):
    llama_folder(hub.folder)
    (hub.folder / "pytorch_model.bin").write_text("not wanted")
    checkpoint, params = load(name)
    assert hub.asked == [("org/tiny", revision)]
    assert_same(params, load(hub.folder)[1])
    assert not (checkpoint.folder / "pytorch_model.bin").exists()


def test_shards_on_the_hub(hub):
    shard(llama_folder(hub.folder))
    assert_same(load("org/tiny")[1], load(hub.folder)[1])


def test_no_weights_on_the_hub(hub):
    (llama_folder(hub.folder) / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no model.safetensors and no pytorch_model.bin"):
        checkpoints.locate("org/tiny")
    assert len(hub.asked) == 2


def test_no_network(hub, monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("Name or service not known\nsecond line")

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(downloads.Unavailable) as caught:
        checkpoints.locate("org/tiny")
    assert "(ConnectionError: Name or service not known); check the name" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_hub_package(hub, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(downloads.Unavailable, match=r"pip install 'icljax\[hub\]'"):
        checkpoints.locate("org/tiny")


def test_an_architecture_is_no_model():
    with pytest.raises(UserError, match="architecture without weights"):
        checkpoints.locate("fairseq-1.3b")


def test_vocabulary_and_merges_make_the_tokenizer(tmp_path):
    tokenizer = checkpoints.open_checkpoint(str(gpt2_folder(tmp_path))).tokenizer
    made = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    whole = checkpoints.fingerprint(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps(made["vocab"]))
    lines = ["#version: 0.2", *map(" ".join, made["merges"]), ""]
    (tmp_path / "merges.txt").write_text("\n".join(lines))
    again = checkpoints.open_checkpoint(str(tmp_path)).tokenizer
    text = "a very # bright film.</s>\n"
    assert again.encode(text).ids == tokenizer.encode(text).ids
    assert again.decode(again.encode(ALICE).ids) == ALICE
    assert checkpoints.fingerprint(tmp_path) != whole
    (tmp_path / "merges.txt").write_text("a b c")
    assert "merges.txt: 'a b c' is not two tokens" in fails(tmp_path)
    (tmp_path / "merges.txt").write_text("Ā unheard-of")
    assert "do not make a tokenizer" in fails(tmp_path)
    (tmp_path / "vocab.json").write_text("[]")
    assert "vocab.json: not a table" in fails(tmp_path)


def test_a_tokenizer_that_cuts_and_fills(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=500)
    tokenizer.save(str(llama_folder(tmp_path) / "tokenizer.json"))
    got = checkpoints.open_checkpoint(str(tmp_path)).tokenizer
    assert got.encode(ALICE).ids == make_tokenizer().encode(ALICE).ids


def test_xglm_starts_with_the_end(tmp_path):
    hf = {"model_type": "xglm", "bos_token_id": 0, "eos_token_id": 2}
    assert checkpoints._special_tokens(hf, 400, tmp_path) == (2, 2)


# ---- Errors ------------------------------------------------------------------------------------


def fails(folder):
    """The one line that the user gets."""
    with pytest.raises(UserError) as caught:
        load(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert "None" not in message
    assert str(folder) in message  # which of the user's files it is about
    return message


@pytest.mark.parametrize(
    "name", ["smollm2", "some/where/else", "./some", "some/model.gguf", "~nobody/x"]
)
def test_unknown_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert f"neither a known name ({', '.join(NAMED)}) nor" in fails(name)


@pytest.mark.parametrize("name", ["a\0b", "a\nb"])
def test_a_name_that_no_file_can_have(name):
    with pytest.raises(UserError, match="is neither a known name") as caught:
        checkpoints.locate(name)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_file_missing(tmp_path, name):
    (llama_folder(tmp_path) / name).unlink()
    assert f"has no {name}" in fails(tmp_path)


@pytest.mark.parametrize("text", ["{", "", "[1]", "\x00"])
def test_config_is_not_json(tmp_path, text):
    (llama_folder(tmp_path) / "config.json").write_text(text)
    assert "config.json: not" in fails(tmp_path)


def test_tokenizer_is_not_one(tmp_path):
    (llama_folder(tmp_path) / "tokenizer.json").write_text("{}")
    assert "not a tokenizer" in fails(tmp_path)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba' is unknown; supported: gpt2, "),
        ({"model_type": ...}, "config.json has no 'model_type'; supported: gpt2, "),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported, only 'silu'"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "rope_type='longrope' is not supported"),
        ({"rope_scaling": {"type": "dynamic"}}, "type='dynamic' is not supported"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "rope_type='dynamic' is not supported"),
        ({"hidden_size": ...}, "config.json has no 'hidden_size', which llama needs"),
        ({"hidden_size": "32"}, "hidden_size is '32', expected a whole number from 1 to"),
        ({"num_key_value_heads": 3}, "3 key/value heads cannot be shared evenly by 4 heads"),
        ({"bos_token_id": ..., "eos_token_id": ...}, "no bos_token_id and no eos_token_id"),
        ({"eos_token_id": 400}, "eos_token_id 400, outside the vocabulary of 400"),
        ({"vocab_size": 100}, "has shape (400, 32), but config.json asks for (100, 32)"),
    ],
)
def test_llama_config_is_refused(tmp_path, changes, expected):
    change_config(llama_folder(tmp_path), **changes)
    assert expected in fails(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"activation_function": "silu"},
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
    ],
)
def test_gpt2_config_is_refused(tmp_path, changes):
    change_config(gpt2_folder(tmp_path), **changes)
    ((key, value),) = changes.items()
    assert f"{key}={value!r} is not supported, only" in fails(tmp_path)


def test_scaled_llama_is_refused_in_one_line():
    with pytest.raises(UserError) as caught:
        checkpoints.decoder_config(LLAMA_3_2_1B | {"rope_scaling": {"type": "dynamic"}}, "Llama")
    assert str(caught.value) == (
        "Llama: config.json: type='dynamic' is not supported, only 'default' or 'linear' or "
        "'llama3' or 'yarn'; use another model"
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"bos_token_id": ...}, (1, 1)),
        ({"eos_token_id": ...}, (0, 0)),
        ({"eos_token_id": [7, 8]}, (0, 7)),
    ],
)
def test_one_special_token_serves_as_both(tmp_path, changes, expected):
    change_config(llama_folder(tmp_path), **changes)
    checkpoint = checkpoints.open_checkpoint(str(tmp_path))
    assert (checkpoint.bos, checkpoint.eos) == expected


@pytest.mark.parametrize("keep", [0, 7, 400, -1])
def test_truncated_weights(tmp_path, keep):
    path = llama_folder(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert "model.safetensors: not a whole safetensors file" in fails(tmp_path)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (llama_folder, "model.norm.weight"),
        (llama_folder, "model.layers.2.mlp.up_proj.weight"),
        (gpt2_folder, "wpe.weight"),
        (gpt2_folder, "h.1.attn.c_attn.bias"),
    ],
)
def test_missing_tensor(tmp_path, make, name):
    path = make(tmp_path) / "model.safetensors"
    tensors = load_file(path)
    del tensors[name]
    save_file(tensors, path)
    assert f"no tensor {name!r}" in fails(tmp_path)


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (llama_folder, {"hidden_size": 48}),
        (llama_folder, {"hidden_size": 64}),
        (llama_folder, {"intermediate_size": 50}),
        (llama_folder, {"num_key_value_heads": 4}),
        (llama_folder, {"num_attention_heads": 8}),
        (llama_folder, {"head_dim": 16}),
        (llama_folder, {"vocab_size": 401}),
        (gpt2_folder, {"n_embd": 48}),
        (gpt2_folder, {"n_embd": 16}),
        (gpt2_folder, {"n_embd": 64}),
        (gpt2_folder, {"n_inner": 64}),
        (gpt2_folder, {"n_positions": 256}),
    ],
)
def test_config_asks_for_another_shape(tmp_path, make, changes):
    change_config(make(tmp_path), **changes)
    assert "weights and config.json do not belong together" in fails(tmp_path)


@pytest.mark.parametrize("shape", [(32, 16), (1, 32)])
def test_one_layer_of_another_shape(tmp_path, shape):
    path = llama_folder(tmp_path) / "model.safetensors"
    name = "model.layers.1.self_attn.q_proj.weight"
    save_file(load_file(path) | {name: np.zeros(shape, np.float32)}, path)
    assert f"tensor {name!r} has shape {shape}" in fails(tmp_path)


@pytest.mark.parametrize(
    ("options", "changes", "named"),
    [
        ({}, {"num_hidden_layers": 2}, "model.layers.2."),
        ({"attention_bias": True}, {"attention_bias": False}, "self_attn.k_proj.bias"),
        ({"mlp_bias": True}, {"mlp_bias": False}, "mlp.down_proj.bias"),
    ],
)
def test_nothing_is_left_out_silently(tmp_path, options, changes, named):
    change_config(llama_folder(tmp_path, **options), **changes)
    assert named in fails(tmp_path)


def add_tensors(folder, **more):
    """Adds tensors to model.safetensors, or takes out those that are `...`."""
    path = folder / "model.safetensors"
    kept = {name: x for name, x in (load_file(path) | more).items() if x is not ...}
    save_file({name: np.ascontiguousarray(x) for name, x in kept.items()}, path)


MASK = np.tri(1500, dtype=np.uint8)[None, None]  # compared in several blocks
WRONG_MASK = MASK.copy()
WRONG_MASK[0, 0, -1, 0] = 0
FREQUENCIES = 1e4 ** -np.float32([0, 0.25, 0.5, 0.75])
BUFFERS = {
    "mask": (gpt2_folder, "h.0.attn.bias", MASK, WRONG_MASK),
    "bools": (gpt2_folder, "h.1.attn.bias", MASK[0, 0] > 0, np.ones((4, 4), np.bool_)),
    "a real bias": (gpt2_folder, "h.0.attn.bias", np.tri(8, dtype=np.float32), np.ones(4)),
    "no tokens": (gpt2_folder, "h.0.attn.bias", np.tri(1), np.zeros((0, 0))),
    "not square": (gpt2_folder, "h.0.attn.bias", np.tri(4), np.tri(3, 4)),
    "masked": (gpt2_folder, "h.0.attn.masked_bias", np.float32(-1e4), np.float32(0)),
    "masked, 1-D": (
        gpt2_folder,
        "h.0.attn.masked_bias",
        np.float32([-1e9]),
        np.float32([-1e9] * 2),
    ),
    "rotary": (
        llama_folder,
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        FREQUENCIES,
        FREQUENCIES / 4,
    ),
    "rotary, bfloat16": (
        llama_folder,
        "model.layers.2.self_attn.rotary_emb.inv_freq",
        FREQUENCIES.astype(ml_dtypes.bfloat16),
        FREQUENCIES[:2],
    ),
    "of another family": (llama_folder, "decoder.version", np.ones(1), np.ones(2)),
}


@pytest.mark.parametrize(("make", "name", "right", "wrong"), BUFFERS.values(), ids=BUFFERS)
def test_buffers_of_older_checkpoints_are_what_is_computed(tmp_path, make, name, right, wrong):
    _, expected = load(make(tmp_path))
    add_tensors(tmp_path, **{name: right})
    assert_same(load(tmp_path)[1], expected)
    add_tensors(tmp_path, **{name: wrong})
    assert f"tensor {name!r} is not " in fails(tmp_path)


def test_rotary_frequencies_of_a_model_without(tmp_path):
    add_tensors(gpt2_folder(tmp_path), **{"h.0.attn.rotary_emb.inv_freq": FREQUENCIES})
    assert "is not rotary frequencies as the model of config.json has it" in fails(tmp_path)


def test_rotary_frequencies_before_linear_scaling(tmp_path):
    """Older versions scaled the positions, and kept the frequencies as they were."""
    folder = llama_folder(tmp_path, rope_scaling={"type": "linear", "factor": 4.0})
    for right in (FREQUENCIES, FREQUENCIES / 4):
        add_tensors(folder, **{"model.layers.0.self_attn.rotary_emb.inv_freq": right})
        load(folder)
    add_tensors(folder, **{"model.layers.0.self_attn.rotary_emb.inv_freq": FREQUENCIES / 2})
    assert "is not rotary frequencies" in fails(folder)


# ---- Tied --------------------------------------------------------------------------------------

EMBEDDINGS = {"model.embed_tokens.weight": llama_folder, "wte.weight": gpt2_folder}
EITHER_FAMILY = pytest.mark.parametrize(("embedding", "make"), EMBEDDINGS.items(), ids=EMBEDDINGS)


@EITHER_FAMILY
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("kept", [True, False])
def test_a_tied_model_is_stored_either_way(tmp_path, embedding, make, sharded, kept):
    _, expected = load(make(tmp_path))
    matrix = load_file(tmp_path / "model.safetensors")[embedding]
    add_tensors(tmp_path, **{"lm_head.weight": matrix, embedding: matrix if kept else ...})
    if sharded:
        shard(tmp_path)
    checkpoint, got = load(tmp_path)
    assert checkpoint.config.tied
    assert_same(got, expected)


@EITHER_FAMILY
def test_tied_by_config_but_not_in_the_file(tmp_path, embedding, make, monkeypatch):
    monkeypatch.setattr(tensor_files, "COMPARED", 1000)
    make(tmp_path)
    matrix = load_file(tmp_path / "model.safetensors")[embedding]
    other = matrix.copy()
    other[-1, -1] += 1e-3
    for head in (other, matrix[:-1], matrix.astype(np.int8)):
        add_tensors(tmp_path, **{"lm_head.weight": head})
        message = fails(tmp_path)
        assert f"tensors {embedding!r} and 'lm_head.weight' differ" in message
        assert "tie_word_embeddings to false" in message
    add_tensors(tmp_path, **{"lm_head.weight": other})
    change_config(tmp_path, tie_word_embeddings=False)
    np.testing.assert_array_equal(load(tmp_path)[1]["unembed"]["kernel"], other.T)


@pytest.mark.parametrize("tied", [True, False])
def test_neither_end_is_made_up(tmp_path, tied):
    llama_folder(tmp_path, tie_word_embeddings=tied)
    add_tensors(tmp_path, **{"model.embed_tokens.weight" if tied else "lm_head.weight": ...})
    expected = "no 'lm_head.weight'; give" if tied else "set its tie_word_embeddings to true if"
    assert expected in fails(tmp_path)


def test_an_embedding_that_is_not_tied_is_not_taken_from_the_head(tmp_path):
    add_tensors(
        llama_folder(tmp_path, tie_word_embeddings=False), **{"model.embed_tokens.weight": ...}
    )
    assert "no tensor 'model.embed_tokens.weight', and config.json does not say" in fails(tmp_path)


# ---- Quantised, and what else is not a plain model ---------------------------------------------

LAYER = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("weight_scale", "by FP8 or INT8 with scales"),
        ("weight_scale_inv", "by FP8"),
        ("input_scale", "by FP8"),
        ("weight.absmax", "by bitsandbytes (4 bits)"),
        ("weight.quant_map", "by bitsandbytes (4 bits)"),
        ("weight.quant_state.bitsandbytes__nf4", "by bitsandbytes (4 bits)"),
        ("SCB", "by bitsandbytes (8 bits)"),
        ("weight_format", "by bitsandbytes (8 bits)"),
        ("g_idx", "by GPTQ,"),
        ("qweight", "by GPTQ or AWQ"),
        ("qzeros", "by GPTQ or AWQ"),
        ("weight_packed", "by compressed-tensors"),
        ("scales", "by a method with scales"),
        ("W_q", "by HQQ"),
        ("lora_A.weight", "they are an adapter's"),
        ("base_layer.weight", "they are an adapter's"),
        ("weight_g", "of pruned or normalised weights"),
        ("weight_mask", "of pruned or normalised weights"),
        ("parametrizations.weight.original0", "of pruned or normalised weights"),
        ("bias", "they are biases, which config.json (attention_bias, mlp_bias) says it has not"),
        ("something", "weights and config.json do not belong together"),
    ],
)
@pytest.mark.parametrize("replaced", [True, False])
def test_tensors_that_only_other_models_have(tmp_path, name, expected, replaced):
    """Beside the weight or, as most methods do, in its place."""
    name = f"{LAYER}.{name}"
    gone = {f"{LAYER}.weight": ...} if replaced else {}
    add_tensors(llama_folder(tmp_path), **{name: np.ones((2, 2), np.float32)}, **gone)
    message = fails(tmp_path)
    if "quantised" in message:
        assert "give a dequantised copy (float32, float16 or bfloat16), or a GGUF file" in message
    if "no tensor" in message:
        assert f"no tensor '{LAYER}.weight'" in message
        expected = expected.replace("they are", "it is")
    if not replaced or not name.endswith(("bias", "something")):
        assert repr(name) in message
        assert expected in message


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("score.weight", "of a head for another task"),
        ("model.layers.0.mlp.experts.0.up_proj.weight", "of a mixture of experts"),
        ("model.layers.3.mlp.up_proj.weight", "layers from 3 on are more than config.json's"),
        ("model.layers.x\n.weight", "'model.layers.x\\n.weight'"),
    ],
)
def test_what_is_left_over_is_named(tmp_path, name, expected):
    add_tensors(llama_folder(tmp_path), **{name: np.ones(2, np.float32)})
    message = fails(tmp_path)
    assert "have 1 tensors that the model of config.json does not use" in message
    assert expected in message


@pytest.mark.parametrize("stored", [np.int8, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
def test_weights_that_are_numbers_only_with_scales(tmp_path, stored):
    folder = llama_folder(tmp_path)
    arrays = load_file(folder / "model.safetensors")
    names = {np.int8: "I8", ml_dtypes.float8_e4m3fn: "F8_E4M3", ml_dtypes.float8_e5m2: "F8_E5M2"}
    arrays[f"{LAYER}.weight"] = arrays[f"{LAYER}.weight"].astype(stored)
    save_file(arrays, folder / "model.safetensors")
    assert f"is stored as {names[stored]}, supported: F64, F32, F16, BF16; give a" in fails(folder)


@pytest.mark.parametrize(
    "about",
    [{"quant_method": "gptq", "bits": 4}, {"load_in_8bit": True}, {"quant_method": ["x"]}, [1]],
)
def test_a_quantised_config(tmp_path, about):
    change_config(llama_folder(tmp_path), quantization_config=about)
    message = fails(tmp_path)
    assert "config.json: quantization_config: the weights are quantised" in message
    assert "dequantised copy" in message


def test_an_adapter_is_no_model(tmp_path):
    (llama_folder(tmp_path) / "adapter_config.json").write_text("{}")
    assert "holds an adapter (its adapter_config.json)" in fails(tmp_path)


def test_an_adapter_on_the_hub(hub):
    hub.folder.mkdir()
    (hub.folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="holds an adapter"):
        checkpoints.locate("org/tiny")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers(tmp_path, value):
    path = llama_folder(tmp_path) / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = value
    save_file(tensors, path)
    assert "1 of the weights have NaN or infinity in float32, such as layers/mlp/up/kernel" in (
        fails(tmp_path)
    )


def test_index_names_a_missing_file(tmp_path):
    llama_folder(tmp_path)
    last = shard(tmp_path)
    last.unlink()
    assert f"has no {last.name}" in fails(tmp_path)


@pytest.mark.parametrize(
    "index",
    [
        {},
        [],
        {"weight_map": None},
        {"weight_map": ["a"]},
        *({"weight_map": {"a": x}} for x in (1, None, [], "", "..", "../x", "/etc/passwd", "a/b")),
    ],
)
def test_index_without_its_map(tmp_path, index):
    path = llama_folder(tmp_path) / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    assert "no weight_map" in fails(tmp_path)


def test_one_file_beside_an_index_of_others(tmp_path):
    llama_folder(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    shard(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(whole)
    assert "with other files; remove what is not the model's" in fails(tmp_path)


def test_a_tensor_in_two_files(tmp_path):
    _, expected = load(llama_folder(tmp_path))
    matrix = load_file(tmp_path / "model.safetensors")["model.norm.weight"]
    last = shard(tmp_path)
    kept = load_file(last)
    for file in tmp_path.glob("model-*"):
        save_file(load_file(file) | {"model.norm.weight": matrix}, file)
    assert_same(load(tmp_path)[1], expected)
    save_file(kept | {"model.norm.weight": matrix + 1}, last)
    assert "tensor 'model.norm.weight' is in model-00001-of-00002.safetensors and" in fails(
        tmp_path
    )


@pytest.mark.parametrize("text", ["[" * 10_000, '{"a": 1, "a": 2}', "1" * 5000])
def test_config_of_odd_json(tmp_path, text):
    (llama_folder(tmp_path) / "config.json").write_text(text)
    assert "config.json: not valid JSON" in fails(tmp_path)


def test_config_that_is_a_folder(tmp_path):
    (llama_folder(tmp_path) / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    assert "config.json: not valid JSON" in fails(tmp_path)


@pytest.mark.parametrize("ids", [True, -1, 1.0, "1", [], [True], [[1]], {"a": 1}])
def test_special_tokens_that_are_no_ids(tmp_path, ids):
    change_config(llama_folder(tmp_path), eos_token_id=ids)
    assert f"eos_token_id is {ids!r}, expected a whole number" in fails(tmp_path)


# ---- The real model ----------------------------------------------------------------------------


def perplexity(config, params, tokens):
    """Of all tokens but the first."""
    tokens = jnp.asarray(tokens, jnp.int32)[None]
    positions = jnp.arange(tokens.shape[1])[None]
    logits = Decoder(config).apply({"params": params}, tokens, positions)
    logprob = jax.nn.log_softmax(logits[0, :-1])
    return float(jnp.exp(-jnp.mean(jnp.take_along_axis(logprob, tokens[0, 1:, None], -1))))


@pytest.mark.real
def test_smollm2_reads_english():
    checkpoint, params = load("smollm2-135m")
    tokens = [checkpoint.bos, *checkpoint.tokenizer.encode(ALICE).ids]

    def with_theta(theta):
        config = dataclasses.replace(checkpoint.config, positions=Rope(theta))
        return perplexity(config, params, tokens)

    # Measured on CPU in float32: 29.13; with wrong wavelengths 33.12 (1e4) and 63.70 (1e3).
    assert checkpoint.config.positions == Rope(1e5)
    right = with_theta(1e5)
    assert right == pytest.approx(29.13, rel=0.01)
    assert with_theta(1e4) > 1.1 * right
    assert with_theta(1e3) > 2 * right
