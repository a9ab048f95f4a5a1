"""Torch checkpoints become folders of safetensors; nothing that they hold is ever executed."""

import argparse
import json
import os
import sys
import types
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from icljax import checkpoints
from icljax.checkpoints import from_torch
from icljax.data import bpe
from icljax.errors import UserError
from icljax.models.decoder import Decoder
from icljax.runtime.downloads import Unavailable
from tests.checkpoints.test_load import ALICE, assert_same, gpt2_folder, load
from tests.conftest import make_tokenizer

with warnings.catch_warnings():  # what importing them warns of is none of our business
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

ARGS = {
    "decoder_attention_heads": 4,
    "activation_fn": "gelu",
    "max_target_positions": 64,
    "decoder_learned_pos": False,
    "no_token_positional_embeddings": False,
    "no_scale_embedding": False,
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ICLJAX_CACHE", str(tmp_path / "cache"))


def gpt2_files(folder):
    """A tiny encoder.json and vocab.bpe; returns {token: GPT-2's id} and the merges."""
    made = json.loads(make_tokenizer().to_str())["model"]
    tokens = [t for t in made["vocab"] if t not in ("<s>", "</s>")]
    ids = {token: number for number, token in enumerate([*tokens, "<|endoftext|>"])}
    merges = [tuple(pair) for pair in made["merges"]]
    (folder / "encoder.json").write_text(json.dumps(ids))
    lines = ["#version: 0.2", *map(" ".join, merges), ""]
    (folder / "vocab.bpe").write_text("\n".join(lines), encoding="utf-8")
    return ids, merges


def fairseq_folder(folder, **also):
    """model.pt as fairseq would write it, and its files; returns XGLM with the same weights."""
    folder.mkdir(exist_ok=True)
    ids, _ = gpt2_files(folder)
    order = np.random.default_rng(0).permutation(len(ids))  # by how often they occur
    lines = [f"{number} {1000 - i}" for i, number in enumerate(order)]
    lines += [f"madeupword{i:04} 0" for i in range(-(len(ids) + 4) % 8)]
    (folder / "dict.txt").write_text("\n".join(lines) + "\n")
    config = transformers.XGLMConfig(
        vocab_size=len(lines) + 4,
        d_model=32,
        ffn_dim=48,
        num_layers=2,
        attention_heads=4,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = transformers.XGLMForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    weights = {
        name.replace("model.", "decoder."): x
        for name, x in theirs.state_dict().items()
        if name != "lm_head.weight"
    }
    weights["decoder.version"] = torch.tensor([3.0])
    weights["decoder.embed_positions._float_tensor"] = torch.zeros(1)
    weights["decoder.output_projection.weight"] = weights["decoder.embed_tokens.weight"]
    state = {"args": argparse.Namespace(**ARGS), "cfg": None, "model": weights} | also
    torch.save(state, folder / "model.pt")
    return theirs


def assert_same_logits(folder, theirs):
    checkpoint, params = load(folder)
    vocab = checkpoint.config.vocab_size
    tokens = np.random.default_rng(1).integers(0, vocab, (2, 24)).astype(np.int32)
    positions = np.broadcast_to(np.arange(24, dtype=np.int32), tokens.shape)
    ours = Decoder(checkpoint.config).apply(
        {"params": params}, jnp.asarray(tokens), jnp.asarray(positions)
    )
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens, dtype=torch.int64)).logits.numpy()
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    return checkpoint


# ---- fairseq -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "model.pt"])
def test_fairseq_model_is_xglm(tmp_path, name):
    theirs = fairseq_folder(tmp_path / "dense")
    checkpoint = assert_same_logits(tmp_path / "dense" / name, theirs)
    assert (checkpoint.bos, checkpoint.eos) == (2, 2)
    assert checkpoint.config.tied
    assert checkpoint.folder.parent == tmp_path / "cache/models"


def test_fairseq_tokens_are_gpt2s_with_the_numbers_of_dict_txt(tmp_path):
    fairseq_folder(tmp_path)
    ids, merges = gpt2_files(tmp_path)
    gpt2 = bpe.tokenizer(ids, merges)
    tokenizer = checkpoints.open_checkpoint(str(tmp_path)).tokenizer
    symbols = ["<s>", "<pad>", "</s>", "<unk>"]
    symbols += [line.split()[0] for line in (tmp_path / "dict.txt").read_text().splitlines()]
    encoding = tokenizer.encode(ALICE)
    assert [symbols[i] for i in encoding.ids] == [str(i) for i in gpt2.encode(ALICE).ids]
    assert tokenizer.decode(encoding.ids) == ALICE
    assert [tokenizer.token_to_id(s) for s in symbols[:4]] == [0, 1, 2, 3]
    assert tokenizer.encode("very good</s>").ids[-1] == 2


def test_an_output_projection_of_its_own(tmp_path):
    theirs = fairseq_folder(tmp_path)
    state = torch.load(tmp_path / "model.pt", weights_only=False)
    own = torch.randn_like(theirs.lm_head.weight)
    state["model"]["decoder.output_projection.weight"] = own
    torch.save(state, tmp_path / "model.pt")
    theirs.lm_head.weight = torch.nn.Parameter(own)
    assert not assert_same_logits(tmp_path, theirs).config.tied


def module_of(monkeypatch, name):
    """A module that is there while the test runs, and its parent."""
    module = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name.partition(".")[0], types.ModuleType("parent"))
    monkeypatch.setitem(sys.modules, name, module)
    return module


class Node:
    def __init__(self, **state):
        self.__dict__ = state


def test_settings_of_omegaconf(tmp_path, monkeypatch):
    """fairseq's newer files: omegaconf's objects, which are not installed where they are read."""
    module = module_of(monkeypatch, "omegaconf.dictconfig")
    for name in ("DictConfig", "AnyNode"):
        setattr(module, name, type(name, (Node,), {"__module__": module.__name__}))
    leaves = {key: module.AnyNode(_val=value, _metadata={}) for key, value in ARGS.items()}
    model = module.DictConfig(_content=leaves, _metadata={})
    cfg = module.DictConfig(_content={"model": model}, _metadata={})
    for leaf in leaves.values():
        leaf._parent = model  # a cycle, as there
    theirs = fairseq_folder(tmp_path, args=None, cfg=cfg)
    monkeypatch.delitem(sys.modules, module.__name__)
    assert_same_logits(tmp_path, theirs)


# ---- pytorch_model.bin -------------------------------------------------------------------------


def as_pickle(folder, count):
    """model.safetensors as `count` torch files, in bfloat16."""
    path = folder / "model.safetensors"
    tensors = {n: torch.tensor(x).to(torch.bfloat16) for n, x in load_file(path).items()}
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
    path.unlink()
    files = [f"pytorch_model-{i}.bin" for i in range(count)]
    place = {name: files[i % count] for i, name in enumerate(tensors)}
    for file in files:
        part = {n: x for n, x in tensors.items() if place[n] == file}
        torch.save(part, folder / (file if count > 1 else "pytorch_model.bin"))
    if count > 1:
        index = {"metadata": {}, "weight_map": place}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("count", [1, 3])
def test_torch_files_are_converted_once(tmp_path, count, monkeypatch):
    folder = gpt2_folder(tmp_path / "gpt2")
    rounded = {n: torch.tensor(x) for n, x in load_file(folder / "model.safetensors").items()}
    rounded = {n: x.to(torch.bfloat16).float().numpy() for n, x in rounded.items()}
    _, expected = load(gpt2_folder(tmp_path / "gpt2", tensors=rounded))
    as_pickle(folder, count)
    checkpoint, params = load(folder)
    assert_same(params, expected)
    assert checkpoint.folder != folder
    monkeypatch.setattr(from_torch, "_load", lambda *_: pytest.fail("converted again"))
    assert load(folder)[0].folder == checkpoint.folder


def test_several_files_of_safetensors(tmp_path, monkeypatch):
    monkeypatch.setattr(from_torch.tensor_files.write, "__defaults__", (30_000,))
    folder = gpt2_folder(tmp_path / "gpt2")
    as_pickle(folder, 1)
    checkpoint, _ = load(folder)
    files = list(checkpoint.folder.glob("model-*.safetensors"))
    assert len(files) > 3
    names = [name for file in files for name in load_file(file)]
    assert len(names) == len(set(names)) == 3 * 12 + 4 + 1  # the mask


# ---- Errors ------------------------------------------------------------------------------------


def refused(name):
    with pytest.raises(UserError) as caught:
        checkpoints.locate(str(name))
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Evil:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("function", [os.system, eval, exec, getattr, os.popen])
@pytest.mark.parametrize("place", ["args", "model"])
def test_nothing_is_executed(tmp_path, function, place):
    ran = tmp_path / "ran"
    arguments = {
        os.system: (f"touch {ran}",),
        os.popen: (f"touch {ran}",),
        eval: (f"open({str(ran)!r}, 'w')",),
        exec: (f"open({str(ran)!r}, 'w')",),
        getattr: ("a", "upper"),
    }
    fairseq_folder(tmp_path, **{place: Evil(function, *arguments[function])})
    message = refused(tmp_path)
    assert "Nothing in it was run" in message
    assert f".{function.__name__}" in message
    assert not ran.exists()
    assert not (tmp_path / "cache/models").exists()


def test_a_call_of_a_class_that_is_expected_does_nothing(tmp_path, monkeypatch):
    """A name under fairseq stands for no code: there may well be code of that name here."""
    module = module_of(monkeypatch, "fairseq.data")
    module.ran = False

    def run():
        module.ran = True

    run.__module__, run.__qualname__ = module.__name__, "run"
    module.run = run
    theirs = fairseq_folder(tmp_path, extra_state=Evil(run))
    assert_same_logits(tmp_path, theirs)
    assert not module.ran


def pickled(folder, **changes):
    """A GPT-2 whose pytorch_model.bin has other values under some names."""
    folder = gpt2_folder(folder / "gpt2")
    state = {n: torch.tensor(x) for n, x in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    torch.save(state | changes, folder / "pytorch_model.bin")
    return folder


def test_a_head_that_shares_the_embeddings_memory(tmp_path):
    _, expected = load(gpt2_folder(tmp_path / "as_safetensors"))
    folder = pickled(tmp_path)
    path = folder / "pytorch_model.bin"
    state = torch.load(path)
    torch.save(state | {"lm_head.weight": state["wte.weight"]}, path)
    assert_same(load(folder)[1], expected)
    torch.save({**state, "lm_head.weight": 2 * state["wte.weight"]}, path)
    with pytest.raises(UserError, match=r"'wte.weight' and 'lm_head.weight' differ"):
        load(folder)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (
            torch.zeros(1).expand(2**40),
            r"'x' \(float32, \(1099511627776,\)\) is not stored as plain",
        ),
        (torch.zeros(3, dtype=torch.complex64), "'x' .complex64"),
        (torch.eye(3).to_sparse(), "'x' .float32, .3, 3.. is not stored as plain"),
        (
            {"wte.weight": torch.zeros(1)},
            "'x' is no tensor but a dict; give a file of weights alone",
        ),
        (3, "'x' is no tensor but a int"),
    ],
    ids=["expanded", "complex", "sparse", "checkpoint", "number"],
)
def test_more_than_tensors(tmp_path, value, expected):
    folder = pickled(tmp_path, x=value)
    with pytest.raises(UserError, match=expected):
        load(folder)
    assert not (tmp_path / "cache/models").exists()


def test_a_quantised_pickle(tmp_path):
    """Integers are kept, so that the loader names them."""
    folder = pickled(tmp_path, **{"h.0.mlp.c_fc.qweight": torch.zeros(4, dtype=torch.int32)})
    with pytest.raises(UserError, match="quantised by GPTQ or AWQ"):
        load(folder)


@pytest.mark.parametrize("name", ["dict.txt", "encoder.json", "vocab.bpe"])
@pytest.mark.parametrize("content", [b"\xff\xfe", b"a b c\n", b"x y\n"])
def test_fairseq_file_damaged(tmp_path, name, content):
    fairseq_folder(tmp_path)
    (tmp_path / name).write_bytes(content)
    assert str(tmp_path) in refused(tmp_path)


@pytest.mark.parametrize("keep", [0, 100, -1000])
def test_damaged(tmp_path, keep):
    fairseq_folder(tmp_path)
    path = tmp_path / "model.pt"
    path.write_bytes(path.read_bytes()[:keep])
    assert f"{path}: not a checkpoint that torch reads" in refused(tmp_path)


def test_torchs_older_form(tmp_path):
    gpt2_folder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    state = {"wte.weight": torch.zeros(2)}
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert "not a checkpoint that torch reads" in refused(tmp_path)


@pytest.mark.parametrize("name", ["dict.txt", "encoder.json", "vocab.bpe"])
def test_fairseq_file_missing(tmp_path, name):
    fairseq_folder(tmp_path)
    (tmp_path / name).unlink()
    assert f"has no {name}" in refused(tmp_path)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"decoder_attention_heads": ...}, "has no decoder_attention_heads"),
        ({"max_target_positions": ...}, "has no max_target_positions"),
        (
            {"decoder_attention_heads": "4"},
            "decoder_attention_heads is '4', expected a whole number",
        ),
        (
            {"decoder_attention_heads": 5},
            "its arguments: a width of 32 cannot be cut evenly into 5",
        ),
        ({"activation_fn": "swish"}, "activation_function='swish' is not supported"),
        ({"decoder_learned_pos": True}, "decoder_learned_pos, supported: sinusoidal"),
    ],
)
def test_fairseq_arguments(tmp_path, changes, expected):
    kept = {key: value for key, value in (ARGS | changes).items() if value is not ...}
    fairseq_folder(tmp_path, args=argparse.Namespace(**kept))
    assert expected in refused(tmp_path)


def test_not_a_language_model(tmp_path):
    fairseq_folder(tmp_path, model={"encoder.x": torch.zeros(1)})
    assert "no decoder.embed_tokens.weight" in refused(tmp_path)


def test_dictionary_of_another_model(tmp_path):
    fairseq_folder(tmp_path)
    path = tmp_path / "dict.txt"
    path.write_text("\n".join(path.read_text().splitlines()[5:]))
    assert "has no number for" in refused(tmp_path)


def test_torch_file_of_the_index_missing(tmp_path):
    as_pickle(gpt2_folder(tmp_path), 2)
    (tmp_path / "pytorch_model-1.bin").unlink()
    assert "has no pytorch_model-1.bin" in refused(tmp_path)


def test_without_torch(tmp_path, monkeypatch):
    fairseq_folder(tmp_path)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(Unavailable, match=r"pip install 'icljax\[torch\]'"):
        checkpoints.locate(str(tmp_path))
