"""Tokenizers read from a folder against those of `transformers`, on 1,000 odd lines."""

import json
import warnings

import pytest

from icljax.data import bpe
from tests.data.test_tokens import IDS, LINES, SPECIAL, STYLES, read, save_folder

with warnings.catch_warnings():  # what importing it warns of is none of our business
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity
CLASSES = {
    "gpt-2": "GPT2Tokenizer",
    "qwen-2.5": "Qwen2Tokenizer",
    "mistral": "LlamaTokenizer",
    "gemma": "GemmaTokenizer",
}


def assert_same(ours, theirs):
    expected = theirs(LINES, add_special_tokens=False)["input_ids"]
    for line, ids in zip(LINES, expected, strict=True):
        assert ours.encode(line, add_special_tokens=False).ids == ids, repr(line)


@pytest.mark.parametrize("style", CLASSES)
def test_tokenizer_json(tmp_path, style):
    """The class's own pipeline over the style's vocabulary, as it saves itself."""
    model = json.loads(STYLES[style]().to_str())["model"]
    names = dict(zip(("unk_token", "bos_token", "eos_token"), SPECIAL, strict=True))
    merges = [tuple(merge) for merge in model["merges"]]
    theirs = getattr(transformers, CLASSES[style])(vocab=model["vocab"], merges=merges, **names)
    theirs.save_pretrained(tmp_path)
    ours = bpe.from_json(tmp_path / "tokenizer.json")
    assert_same(ours, theirs)
    assert_same(STYLES[style](), theirs)
    assert ours.token_to_id("<s>") == theirs.bos_token_id == IDS["<bos>"]


@pytest.mark.parametrize("added", ["none", "added_tokens.json", "added_tokens_decoder"])
@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
def test_vocabulary_and_merges(tmp_path, kind, added):
    split, name = {"gpt2": ("gpt-2", "GPT2Tokenizer"), "qwen2": ("qwen2", "Qwen2Tokenizer")}[kind]
    _, size = save_folder(tmp_path / "sized", split=split)
    tokens = {"<|endoftext|>": size, "<|im_start|>": size + 1, "good,": size + 2}
    config = {"tokenizer_class": name, "add_prefix_space": False}
    config |= dict.fromkeys(("unk_token", "bos_token", "eos_token", "pad_token"), "<|endoftext|>")
    if added == "added_tokens_decoder":
        flags = {"lstrip": False, "rstrip": True, "normalized": False, "single_word": False}
        config["added_tokens_decoder"] = {
            str(number): {"content": token, "special": token != "good,", **flags}
            for token, number in tokens.items()
        }
    folder, _ = save_folder(
        tmp_path / "model",
        kind,
        tokens if added == "added_tokens.json" else None,
        config if added != "none" else {"tokenizer_class": name},
        split=split,
    )
    theirs = getattr(transformers, name).from_pretrained(folder)
    assert_same(read(folder), theirs)
