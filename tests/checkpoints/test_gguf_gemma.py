"""GGUF files of Gemma's architectures: names, norms, windows and pieces, written by `gguf`."""

import json

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file

from icljax import checkpoints
from icljax.attention import Kind
from icljax.checkpoints import from_gguf
from icljax.data import pieces
from icljax.errors import UserError
from icljax.models.config import Rope

WIDTH, FFN, HEADS, KV_HEADS, HEAD_DIM, LAYERS = 32, 48, 2, 1, 24, 2
TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>", *pieces.BYTES, "▁", "a", "b", "ab", "  ", "\n\n"]
SCORES = [-1000.0] * 4 + [0.0] * 256 + [-3.0, -2.0, -1.0, 0.0] + [-1000.0] * 2
KINDS = [3, 3, 3, 2] + [6] * 256 + [1] * 4 + [4] * 2
# Hugging Face's name -> (llama.cpp's, shape), of a layer; spelled out independently.
LAYER = {
    "input_layernorm": ("attn_norm", (WIDTH,)),
    "self_attn.q_proj": ("attn_q", (HEADS * HEAD_DIM, WIDTH)),
    "self_attn.k_proj": ("attn_k", (KV_HEADS * HEAD_DIM, WIDTH)),
    "self_attn.v_proj": ("attn_v", (KV_HEADS * HEAD_DIM, WIDTH)),
    "self_attn.o_proj": ("attn_output", (WIDTH, HEADS * HEAD_DIM)),
    "mlp.gate_proj": ("ffn_gate", (FFN, WIDTH)),
    "mlp.up_proj": ("ffn_up", (FFN, WIDTH)),
    "mlp.down_proj": ("ffn_down", (WIDTH, FFN)),
}
GEMMA_1 = {"post_attention_layernorm": ("ffn_norm", (WIDTH,))}
GEMMA_2 = {
    "post_attention_layernorm": ("post_attention_norm", (WIDTH,)),
    "pre_feedforward_layernorm": ("ffn_norm", (WIDTH,)),
    "post_feedforward_layernorm": ("post_ffw_norm", (WIDTH,)),
}
GEMMA_3 = GEMMA_2 | {f"self_attn.{x}_norm": (f"attn_{x}_norm", (HEAD_DIM,)) for x in "qk"}
NORMS = {"gemma": GEMMA_1, "gemma2": GEMMA_2, "gemma3": GEMMA_3}
WINDOW = {"attention.sliding_window": 7}


def write(path, architecture, fields=None, tokenizer=None):
    """The file, and what its folder must hold."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(TOKENS)
    writer.add_token_scores(SCORES)
    writer.add_token_types(KINDS)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_add_space_prefix(False)
    named = {f"{architecture}.{key}": value for key, value in (fields or {}).items()}
    for name, value in (named | (tokenizer or {})).items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
        add.get(type(value), writer.add_string)(name, value)
    names = {"model.embed_tokens": ("token_embd", (len(TOKENS), WIDTH))}
    names |= {"model.norm": ("output_norm", (WIDTH,))}
    for layer in range(LAYERS):
        for theirs, (ours, shape) in (LAYER | NORMS[architecture]).items():
            names[f"model.layers.{layer}.{theirs}"] = (f"blk.{layer}.{ours}", shape)
    rng = np.random.default_rng(0)
    expected = {}
    for theirs, (ours, shape) in names.items():
        # A few bits each, so that adding 1 loses none.
        weight = np.float32(rng.integers(-64, 64, shape) / 64)
        expected[f"{theirs}.weight"] = weight
        writer.add_tensor(f"{ours}.weight", weight + 1 if "norm" in ours else weight)
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()
    return expected


def converted(tmp_path, *args, **options):
    expected = write(tmp_path / "tiny.gguf", *args, **options)
    from_gguf.convert(tmp_path / "tiny.gguf", tmp_path / "hf")
    return expected, checkpoints.open_checkpoint(str(tmp_path / "hf"))


@pytest.mark.parametrize("architecture", NORMS)
def test_tensors(tmp_path, architecture):
    """Norms lose the 1 that llama.cpp's converter adds; queries and keys keep their rows."""
    fields = WINDOW if architecture == "gemma3" else {}
    expected, checkpoint = converted(tmp_path, architecture, fields)
    loaded = load_file(tmp_path / "hf/model.safetensors")
    assert loaded.keys() == expected.keys()
    for name, weight in expected.items():
        np.testing.assert_array_equal(loaded[name], weight, err_msg=name)
    params = checkpoints.load_params(checkpoint.folder, checkpoint.config)
    np.testing.assert_array_equal(params["final_norm"]["scale"], expected["model.norm.weight"] + 1)
    assert (checkpoint.bos, checkpoint.eos) == (2, 1)
    assert checkpoint.config.embed_scale == WIDTH**0.5


@pytest.mark.parametrize(
    ("architecture", "fields", "kinds", "ropes", "logit_cap"),
    [
        ("gemma", {}, [Kind()], [Rope()], 0),
        ("gemma2", {}, [Kind(window=4096, cap=50.0), Kind(cap=50.0)], [Rope()], 30),
        (
            "gemma2",
            WINDOW | {"attn_logit_softcapping": 0.0, "final_logit_softcapping": 4.0},
            [Kind(window=7), Kind()],
            [Rope()],
            4,
        ),
        ("gemma3", WINDOW, [Kind(window=7)], [Rope()], 0),
        (
            "gemma3",
            WINDOW | {"attention.sliding_window_pattern": 2, "rope.freq_base": 5e5},
            [Kind(window=7), Kind()],
            [Rope(), Rope(5e5)],
            0,
        ),
        (
            "gemma3",
            WINDOW
            | {"attention.sliding_window_pattern": 2, "rope.freq_base_swa": 50.0}
            | {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
            [Kind(window=7), Kind()],
            [Rope(50.0), Rope(1e6, factor=8.0)],
            0,
        ),
    ],
)
def test_what_the_fields_say(tmp_path, architecture, fields, kinds, ropes, logit_cap):
    _, checkpoint = converted(tmp_path, architecture, fields)
    config = checkpoint.config
    assert list(config.attention) == kinds
    assert list(config.ropes) == ropes
    assert config.logit_cap == logit_cap
    assert config.mlp == "geglu"
    scale = None if architecture == "gemma" else HEAD_DIM**-0.5
    assert config.attention_scale == scale


def test_pieces(tmp_path):
    _, checkpoint = converted(tmp_path, "gemma2")
    ids = checkpoint.tokenizer.encode("ab  a<bos>\n\n\u00e9", add_special_tokens=False).ids
    assert [TOKENS[i] for i in ids] == ["ab", "  ", "a", "<bos>", "\n\n", "<0xC3>", "<0xA9>"]
    about = json.loads((tmp_path / "hf/tokenizer_config.json").read_text())
    assert (about["bos_token"], about["eos_token"]) == ("<bos>", "<eos>")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"fields": {"rope.scaling.type": "yarn"} | WINDOW}, "'yarn', supported: 'none' and"),
        ({"fields": {}}, "no field gemma3.attention.sliding_window"),
        ({"fields": {"attn_logit_softcapping": 5.0} | WINDOW}, "attn_logit_softcapping' = 5.0"),
        ({"fields": {"attention.sliding_window": -1.0}}, "expected a whole number from 0"),
        (
            {"fields": WINDOW, "tokenizer": {"tokenizer.ggml.remove_extra_whitespaces": True}},
            "has tokenizer.ggml.remove_extra_whitespaces",
        ),
    ],
)
def test_refused_in_one_line(tmp_path, options, expected):
    with pytest.raises(UserError) as caught:
        converted(tmp_path, "gemma3", **options)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_largest_models_scale_scores_by_another_width(tmp_path, monkeypatch):
    monkeypatch.setattr(from_gguf, "_SCALED_BY_WIDTH", (("gemma2", LAYERS),))
    _, checkpoint = converted(tmp_path, "gemma2")
    assert checkpoint.config.attention_scale == (WIDTH // HEADS) ** -0.5
