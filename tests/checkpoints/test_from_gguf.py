"""A GGUF file becomes a Hugging Face folder: tiny random models, written by the gguf package."""

import json
import re
import struct
import warnings
import weakref
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer, pre_tokenizers

from icljax import checkpoints
from icljax.checkpoints import from_gguf, gguf_file
from icljax.data import bpe
from icljax.errors import UserError

LAYERS, WIDTH, FFN, HEADS, KV_HEADS = 2, 32, 64, 4, 2
HEAD_DIM = WIDTH // HEADS
SPECIAL = ["<|end|>", "<|start|>"]
MERGES = [("1", "2"), ("Ġ", "a"), ("Ġa", "b")]
TOKENS = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, MERGES), "<tool>"]
# Control tokens are of type 3, user-defined ones of type 4, all others of type 1.
TOKEN_TYPES = [3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL) - 1) + [4]


def _llama_cpp_permute(weights: np.ndarray, n_head: int) -> np.ndarray:
    # `permute` of llama.cpp's convert_hf_to_gguf.py.
    return (
        weights.reshape(n_head, 2, weights.shape[0] // n_head // 2, *weights.shape[1:])
        .swapaxes(1, 2)
        .reshape(weights.shape)
    )


# What Qwen's layers have beside Llama's.
QWEN_PARTS = {
    "qwen2": {f"self_attn.{x}_proj.bias": WIDTH // (1 if x == "q" else 2) for x in "qkv"},
    "qwen3": {f"self_attn.{x}_norm.weight": HEAD_DIM for x in "qk"},
}


def _qwen_weights(arch: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return _hf_weights() | {
        f"model.layers.{layer}.{name}": rng.standard_normal(size, np.float32)
        for layer in range(LAYERS)
        for name, size in QWEN_PARTS[arch].items()
    }


def _hf_weights(tied: bool = True) -> dict[str, np.ndarray]:
    shapes = {
        "model.embed_tokens": (len(TOKENS), WIDTH),
        "model.norm": (WIDTH,),
    }
    if not tied:
        shapes["lm_head"] = (len(TOKENS), WIDTH)
    for layer in range(LAYERS):
        parts = {
            "input_layernorm": (WIDTH,),
            "self_attn.q_proj": (WIDTH, WIDTH),
            "self_attn.k_proj": (KV_HEADS * HEAD_DIM, WIDTH),
            "self_attn.v_proj": (KV_HEADS * HEAD_DIM, WIDTH),
            "self_attn.o_proj": (WIDTH, WIDTH),
            "post_attention_layernorm": (WIDTH,),
            "mlp.gate_proj": (FFN, WIDTH),
            "mlp.up_proj": (FFN, WIDTH),
            "mlp.down_proj": (WIDTH, FFN),
        }
        shapes |= {f"model.layers.{layer}.{part}": shape for part, shape in parts.items()}
    rng = np.random.default_rng(0)
    return {
        f"{name}.weight": rng.standard_normal(shape, np.float32) for name, shape in shapes.items()
    }


# The names of the GGUF convention, spelled out independently of the module under test.
GGUF_PARTS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
    "input_layernorm": "attn_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def _gguf_name(name: str) -> str:
    for theirs, ours in GGUF_PARTS.items():
        name = name.replace(theirs, ours)
    return name


def _write(
    path: Path,
    weights: dict[str, np.ndarray],
    *,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    arch: str = "llama",
    model: str = "gpt2",
    pre: str = "smollm",
    without: tuple[str, ...] = (),
    extra: dict[str, np.ndarray] | None = None,
    scaling: bool = False,
    fields: dict[str, int | float | bool | str] | None = None,
    theta: float = 5000.0,
    alignment: int | None = None,
) -> Path:
    """A GGUF file as llama.cpp's converter would write it; matrices are stored as `kind`."""
    writer = gguf.GGUFWriter(path, arch)
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    writer.add_block_count(LAYERS)
    if "context_length" not in without:
        writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(theta)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HEAD_DIM)
    if scaling:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    for name, value in (fields or {}).items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
        add.get(type(value), writer.add_string)(name, value)
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types(TOKEN_TYPES)
    writer.add_token_merges([" ".join(merge) for merge in MERGES])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    for name, weight in weights.items():
        if "q_proj" in name and arch == "llama":
            weight = _llama_cpp_permute(weight, HEADS)
        if "k_proj" in name and arch == "llama":
            weight = _llama_cpp_permute(weight, KV_HEADS)
        its_kind = kind if weight.ndim == 2 else gguf.GGMLQuantizationType.F32
        if _gguf_name(name) not in without:
            stored = gguf.quants.quantize(weight, its_kind)
            writer.add_tensor(_gguf_name(name), stored, raw_dtype=its_kind)
    for name, weight in (extra or {}).items():
        writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def source(tmp_path):
    return _write(tmp_path / "tiny.gguf", _hf_weights())


@pytest.fixture
def folder(source, tmp_path):
    from_gguf.convert(source, tmp_path / "hf")
    return tmp_path / "hf"


# ---- Weights and config ------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_float32_tensors_come_back_exactly(tmp_path, tied):
    weights = _hf_weights(tied)
    from_gguf.convert(_write(tmp_path / "tiny.gguf", weights), tmp_path / "hf")

    loaded = load_file(tmp_path / "hf/model.safetensors")

    assert loaded.keys() == weights.keys()
    for name, weight in weights.items():
        assert loaded[name].dtype == np.float32
        np.testing.assert_array_equal(loaded[name], weight, err_msg=name)
    config = json.loads((tmp_path / "hf/config.json").read_text())
    assert config["tie_word_embeddings"] is tied


@pytest.mark.parametrize(
    ("kind", "tolerance"), [("Q8_0", 0.02), ("Q4_1", 0.3), ("F16", 0.002), ("BF16", 0.02)]
)
def test_quantised_tensors_come_back_within_half_a_step(tmp_path, kind, tolerance):
    # Largest |weight| is below 4.5: steps of about 9 / 255 (Q8_0), at most 8 / 15 (Q4_1).
    weights = _hf_weights()
    path = _write(tmp_path / "tiny.gguf", weights, kind=gguf.GGMLQuantizationType[kind])
    from_gguf.convert(path, tmp_path / "hf")

    loaded = load_file(tmp_path / "hf/model.safetensors")

    for name, weight in weights.items():
        np.testing.assert_allclose(loaded[name], weight, rtol=0.004, atol=tolerance, err_msg=name)


DEQUANTISED = [gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16]
DEQUANTISED += list(gguf.quants._type_traits)


@pytest.mark.parametrize("kind", DEQUANTISED, ids=lambda kind: kind.name)
def test_every_quantisation_that_gguf_undoes(tmp_path, kind):
    """Quantised numbers where the package can, else any bytes: each pattern of them is a number."""
    shape, rng = (6, 512), np.random.default_rng(0)
    try:
        stored = gguf.quants.quantize(rng.standard_normal(shape, np.float32), kind)
    except NotImplementedError:
        size = gguf.quants.quant_shape_to_byte_shape(shape, kind)
        stored = rng.integers(0, 256, size, np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "one.gguf", "llama")
    writer.add_tensor("before", np.ones(5, np.float32))
    writer.add_tensor("x", stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(stored, kind)
        got = gguf_file.dequantized(gguf_file.read(tmp_path / "one.gguf"), "x")
    assert got.shape == shape
    np.testing.assert_array_equal(got, expected, strict=True)


@pytest.mark.parametrize("arch", ["qwen2", "qwen3"])
def test_qwen(tmp_path, arch):
    """Its rotary pairs are (i, i + dh/2) in the file already, and it has tensors of its own."""
    weights = _qwen_weights(arch)
    path = _write(tmp_path / "tiny.gguf", weights, arch=arch, pre="qwen2")
    from_gguf.convert(path, tmp_path / "hf")
    loaded = load_file(tmp_path / "hf/model.safetensors")
    assert loaded.keys() == weights.keys()
    for name, weight in weights.items():
        np.testing.assert_array_equal(loaded[name], weight, err_msg=name)
    config = json.loads((tmp_path / "hf/config.json").read_text())
    assert config["model_type"] == arch
    assert config["architectures"] == [f"{arch.title()}ForCausalLM"]
    checkpoint = checkpoints.open_checkpoint(str(tmp_path / "hf"))
    assert (checkpoint.config.qkv_bias, checkpoint.config.qk_norm) == (
        arch == "qwen2",
        "head" if arch == "qwen3" else "",
    )
    params = checkpoints.load_params(tmp_path / "hf", checkpoint.config)
    assert params["layers"]["attention"]["key"]["kernel"].shape == (2, WIDTH, KV_HEADS, HEAD_DIM)


def _llama_cpp_factors(theta: float, width: int, factor: float) -> np.ndarray:
    # `generate_extra_tensors` of llama.cpp's convert_hf_to_gguf.py, for Llama 3.1.
    factors = []
    for i in range(0, width, 2):
        wavelength = 2 * np.pi * theta ** (i / width)
        if wavelength < 8192 / 4:
            factors.append(1.0)
        elif wavelength > 8192 / 1:
            factors.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.float32(factors)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_3_frequencies(tmp_path, factor):
    # With this theta, the four waves of a head are short, short, middling, long.
    extra = {"rope_freqs.weight": _llama_cpp_factors(4e5, HEAD_DIM, factor)}
    path = _write(tmp_path / "tiny.gguf", _hf_weights(), extra=extra, theta=4e5)
    from_gguf.convert(path, tmp_path / "hf")
    assert json.loads((tmp_path / "hf/config.json").read_text())["rope_parameters"] == {
        "rope_type": "llama3",
        "rope_theta": 4e5,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    rope = checkpoints.open_checkpoint(str(tmp_path / "hf")).config.positions
    assert (rope.factor, rope.theta) == (factor, 4e5)


def test_rows_of_one_head_by_hand():
    # llama.cpp keeps the rotary pair (i, i + 2) of a head of 4 rows side by side: 0 2 1 3.
    stored = np.float32([0, 2, 1, 3, 10, 12, 11, 13])[:, None]
    rows = from_gguf._half_split_rows(stored, 2)
    np.testing.assert_array_equal(rows[:, 0], [0, 1, 2, 3, 10, 11, 12, 13])


def test_config(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(TOKENS),
        "hidden_size": WIDTH,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 5000.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 0,
        "dtype": "float32",
    }
    tokenizer_config = json.loads((folder / "tokenizer_config.json").read_text())
    assert (tokenizer_config["bos_token"], tokenizer_config["eos_token"]) == (
        "<|start|>",
        "<|end|>",
    )


@pytest.mark.parametrize("alignment", [None, 256])
def test_header_agrees_with_the_gguf_package(tmp_path, alignment):
    path = _write(tmp_path / "tiny.gguf", _hf_weights(), alignment=alignment)
    theirs = gguf.GGUFReader(path)

    ours = gguf_file.read(path)

    expected = {name: field.contents() for name, field in theirs.fields.items()}
    assert ours.fields == {k: v for k, v in expected.items() if not k.startswith("GGUF.")}
    assert {name: (t.kind, t.offset, t.end) for name, t in ours.tensors.items()} == {
        t.name: (t.tensor_type, t.data_offset, t.data_offset + t.n_bytes) for t in theirs.tensors
    }


# ---- Tokenizer ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("smollm", ["Ġab", "Ġ", "1", "2"]),
        ("gpt-2", ["Ġab", "Ġ", "12"]),
        ("llama-bpe", ["Ġab", "Ġ", "12"]),
        ("qwen2", ["Ġab", "Ġ", "1", "2"]),
    ],
)
def test_tokenizer_splits_digits_where_the_model_does(tmp_path, pre, expected):
    from_gguf.convert(_write(tmp_path / "tiny.gguf", _hf_weights(), pre=pre), tmp_path / "hf")
    tokenizer = Tokenizer.from_file(str(tmp_path / "hf/tokenizer.json"))
    assert tokenizer.encode(" ab 12").tokens == expected


def test_tokenizer_round_trip_and_added_tokens(folder):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    encoding = tokenizer.encode("<|start|>naïve 日本<tool> 7<|end|>")

    assert encoding.ids[0] == 1
    assert encoding.ids[-1] == 0
    assert encoding.ids.count(len(TOKENS) - 1) == 1  # <tool>
    assert tokenizer.decode(encoding.ids) == "naïve 日本<tool> 7"  # control tokens are special
    assert tokenizer.get_vocab_size() == len(TOKENS)
    assert all(tokenizer.token_to_id(token) == i for i, token in enumerate(TOKENS))


# Where the splits differ: digits, a contraction in capitals, a tab before a word, blank lines.
SPLIT_TEXT = "I'M 12345\tnew  lines!?\n\nend"


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("gpt-2", "I|'|M|Ġ12345|ĉ|new|Ġ|Ġlines|!?|Ċ|Ċ|end"),
        ("smollm", "I|'|M|Ġ|1|2|3|4|5|ĉ|new|Ġ|Ġlines|!?|Ċ|Ċ|end"),
        ("llama-bpe", "I|'M|Ġ|123|45|ĉnew|Ġ|Ġlines|!?ĊĊ|end"),
        ("qwen2", "I|'M|Ġ|1|2|3|4|5|ĉnew|Ġ|Ġlines|!?ĊĊ|end"),
    ],
)
def test_words_are_cut_as_in_the_model(pre, expected):
    vocabulary = {token: i for i, token in enumerate(TOKENS)}
    pre_tokenizer = bpe.tokenizer(vocabulary, MERGES, pre).pre_tokenizer
    assert "|".join(word for word, _ in pre_tokenizer.pre_tokenize_str(SPLIT_TEXT)) == expected


@pytest.mark.parity
def test_qwens_split_is_transformers():
    with warnings.catch_warnings():  # what importing it warns of is none of our business
        warnings.simplefilter("ignore")
        qwen2 = pytest.importorskip("transformers.models.qwen2.tokenization_qwen2")
    assert bpe.SPLITS["qwen2"] == qwen2.PRETOKENIZE_REGEX


def test_a_word_of_llama_3_that_is_a_token_is_taken_whole():
    vocabulary = {token: i for i, token in enumerate([*TOKENS, "abc"])}
    assert bpe.tokenizer(vocabulary, MERGES, "llama-bpe").encode("abc").tokens == ["abc"]
    assert bpe.tokenizer(vocabulary, MERGES, "qwen2").encode("abc").tokens == ["a", "b", "c"]


def test_qwen_composes_accents():
    vocabulary = {token: i for i, token in enumerate(TOKENS)}
    split, whole = "e\u0301", "\u00e9"
    qwen2 = bpe.tokenizer(vocabulary, MERGES, "qwen2")
    assert qwen2.encode(split).ids == qwen2.encode(whole).ids
    llama = bpe.tokenizer(vocabulary, MERGES, "llama-bpe")
    assert llama.encode(split).ids != llama.encode(whole).ids


# ---- The folder --------------------------------------------------------------------------------


def test_folder_is_complete_and_nothing_else_stays(folder, source):
    assert {path.name for path in folder.parent.iterdir()} == {source.name, folder.name}
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    modes = {path.stat().st_mode for path in folder.iterdir()}
    assert len(modes) == 1  # the weights are as readable as the rest


def test_progress_counts_every_tensor(source, tmp_path):
    calls = []
    from_gguf.convert(source, tmp_path / "a/b/hf", lambda *call: calls.append(call))
    assert calls == [(i, len(_hf_weights())) for i in range(1, len(_hf_weights()) + 1)]


def test_one_tensor_is_in_memory_at_a_time(source, tmp_path, monkeypatch):
    made = []
    dequantize = gguf_file.dequantized

    def spy(*args):
        assert all(array() is None for array in made)
        array = dequantize(*args)
        made.append(weakref.ref(array))
        return array

    monkeypatch.setattr(from_gguf, "dequantized", spy)
    from_gguf.convert(source, tmp_path / "hf")
    assert len(made) == len(_hf_weights())


def test_a_faster_second_converter_is_kept(source, tmp_path):
    def overtake(done, _):
        if done == 1:
            from_gguf.convert(source, tmp_path / "hf")
            (tmp_path / "hf/first").touch()

    from_gguf.convert(source, tmp_path / "hf", overtake)

    assert (tmp_path / "hf/first").exists()
    assert {path.name for path in tmp_path.iterdir()} == {source.name, "hf"}


def test_a_failure_leaves_nothing(source, tmp_path):
    def fail(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        from_gguf.convert(source, tmp_path / "hf", fail)
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_another_folder_in_the_way(source, tmp_path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="exists and is not a converted model"):
        from_gguf.convert(source, tmp_path / "hf")
    assert (tmp_path / "hf/thesis.tex").read_text() == "mine"


# ---- Errors ------------------------------------------------------------------------------------


def _one_line_error(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        from_gguf.convert(path, path.parent / "hf")
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert not (path.parent / "hf").exists()
    return str(caught.value)


# Fields with which another model is computed than the decoder's.
CHANGING = [
    ("expert_count", 8),
    ("attn_logit_softcapping", 50.0),
    ("logit_scale", 0.5),
    ("attention.sliding_window", 64),
    ("attention.value_length", 16),
    ("rope.scaling.factor", 4.0),
    ("rope.scale_linear", 4.0),
    ("vocab_size", 7),
    ("attention.causal", False),
    ("something_new", 1),
]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"arch": "gemma3n"}, "architecture 'gemma3n', supported: 'llama', 'qwen2', 'qwen3'"),
        ({"arch": "qwen2"}, "no tensor blk.0.attn_q.bias"),
        ({"arch": "qwen3"}, "no tensor blk.0.attn_q_norm.weight"),
        ({"model": "t5"}, "tokenizer of model 't5', supported: 'gpt2'"),
        ({"model": "llama"}, "no field tokenizer.ggml.scores"),
        ({"pre": "tekken"}, "pre-tokenizer 'tekken', supported: 'gpt-2', 'smollm'"),
        ({"without": ("blk.1.ffn_up.weight",)}, "no tensor blk.1.ffn_up.weight"),
        ({"without": ("token_embd.weight",)}, "no tensor token_embd.weight"),
        ({"without": ("context_length",)}, "no field llama.context_length"),
        ({"extra": {"blk.0.attn_q.bias": np.zeros(4, np.float32)}}, "such as 'blk.0.attn_q.bias'"),
        ({"scaling": True}, "rotary scaling 'linear'"),
        *(({"fields": {f"llama.{key}": x}}, f"has 'llama.{key}' = {x}") for key, x in CHANGING),
        ({"fields": {"general.type": "adapter"}}, "holds a part of a model"),
        ({"fields": {"split.count": 2}}, "holds a part of a model"),
        (
            {"extra": {"blk.2.attn_q.weight": np.zeros((4, 32), np.float32)}},
            "with 2 layers does not",
        ),
        ({"extra": {"x\ny": np.zeros(4, np.float32)}}, "such as 'x\\ny'"),
        ({"extra": {"rope_freqs.weight": np.ones(2, np.float32)}}, "not as Llama 3.1 does"),
        ({"fields": {"llama.attention.key_length": 16}}, "8 of 16 head dimensions"),
        ({"extra": {"rope_freqs.weight": np.float32([1, 2, 3, 4])}}, "not as Llama 3.1 does"),
    ],
)
def test_unsupported(tmp_path, options, expected):
    path = _write(tmp_path / "tiny.gguf", _hf_weights(), **options)
    assert expected in _one_line_error(path)


def test_fields_that_change_nothing(tmp_path):
    fields = {"llama.vocab_size": len(TOKENS), "llama.attention.value_length": HEAD_DIM}
    fields |= {"llama.rope.scaling.factor": 1.0, "general.type": "model", "split.count": 0}
    path = _write(tmp_path / "tiny.gguf", _hf_weights(), fields=fields)
    from_gguf.convert(path, tmp_path / "hf")


def test_a_tensor_of_another_shape(tmp_path):
    weights = _hf_weights()
    weights["model.layers.1.self_attn.k_proj.weight"] = np.ones((WIDTH, WIDTH), np.float32)
    path = _write(tmp_path / "tiny.gguf", weights)
    assert "blk.1.attn_k.weight has shape (32, 32), but its fields ask for (16, 32)" in (
        _one_line_error(path)
    )


def test_rows_of_the_embedding_without_tokens(tmp_path):
    weights = _hf_weights()
    weights["model.embed_tokens.weight"] = np.ones((len(TOKENS) + 3, WIDTH), np.float32)
    assert "do not belong together" in _one_line_error(_write(tmp_path / "tiny.gguf", weights))


def test_a_quantisation_that_gguf_cannot_undo(tmp_path):
    weights = _hf_weights()
    path = tmp_path / "tiny.gguf"
    without = ("output_norm.weight",)
    extra = {"output_norm.weight": np.zeros(WIDTH, np.float64)}
    _write(path, weights, without=without, extra=extra)
    assert "stores output_norm.weight as F64" in _one_line_error(path)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"\x93NUMPY\x01\x00 something else"])
def test_not_a_gguf_file(tmp_path, content):
    path = tmp_path / "other.gguf"
    path.write_bytes(content)
    assert "is not a GGUF file" in _one_line_error(path)


def test_no_file(tmp_path):
    assert "is not a file" in _one_line_error(tmp_path / "none.gguf")


@pytest.mark.parametrize("version", [1, 4, 0x03000000])  # the last: version 3, big-endian
def test_unknown_version(source, version):
    content = bytearray(source.read_bytes())
    content[4:8] = struct.pack("<I", version)
    source.write_bytes(content)
    assert f"GGUF version {version}, supported: 2, 3" in _one_line_error(source)


def test_truncated_data_says_expected_and_actual_bytes(source):
    last = max(t.data_offset + t.n_bytes for t in gguf.GGUFReader(source).tensors)
    content = source.read_bytes()
    source.write_bytes(content[: last - 1])
    message = _one_line_error(source)
    assert f"it has {last - 1:,} bytes, its tensors need {last:,}" in message


def test_truncated_anywhere_is_a_user_error(source):
    content = source.read_bytes()
    last = max(t.data_offset + t.n_bytes for t in gguf.GGUFReader(source).tensors)
    for length in [*range(8, last, 211), last - 1]:
        source.write_bytes(content[:length])
        assert re.search("truncated", _one_line_error(source)), length
