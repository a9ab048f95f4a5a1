"""Hugging Face's model types: what config.json means, which tensor is which, published sizes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icljax.attention import Kind
from icljax.attention.mixing import Past, capped, parse_kinds
from icljax.comparison import forward
from icljax.errors import UserError
from icljax.models import families, family_tables, plans
from icljax.models.architectures import ARCHITECTURES
from icljax.models.config import Rope
from icljax.models.decoder import Block, Decoder, DecoderConfig, init_params, sinusoids
from icljax.models.rotary import rotate

LLAMA = DecoderConfig(400, 3, 32, 48, 4, 2, 8, 64)


def tiny(kind, **changes):
    """A small config.json of any type, from a published one."""
    published = next(hf for hf in ARCHITECTURES.values() if hf["model_type"] == kind)
    small = {
        **dict.fromkeys(("n_layer", "num_layers", "num_hidden_layers"), 4),
        **dict.fromkeys(("n_head", "num_heads", "attention_heads", "num_attention_heads"), 4),
        **dict.fromkeys(("n_embd", "d_model", "hidden_size"), 32),
        **dict.fromkeys(("intermediate_size", "ffn_dim"), 48),
        **{"vocab_size": 400, "num_key_value_heads": 2, "head_dim": 8, "rotary_dim": 4},
        "attention_types": [[["global", "local"], 2]],
    }
    hf = {key: small.get(key, value) for key, value in published.items()} | changes
    return {key: value for key, value in hf.items() if value is not ...}


def shapes_of(config):
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def count(config):
    return sum(x.size for x in jax.tree.leaves(shapes_of(config)))


# ---- Published models, without their memory ----------------------------------------------------


# Parameters as published, a tied output projection counted once.
PUBLISHED = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "gpt-neo-125m": 125_198_592,
    "gpt-neo-1.3b": 1_315_575_808,
    "gpt-neo-2.7b": 2_651_307_520,
    "gpt-j-6b": 6_050_882_784,
    "opt-125m": 125_239_296,
    "opt-1.3b": 1_315_758_080,
    "opt-2.7b": 2_651_596_800,
    "opt-6.7b": 6_658_473_984,
    "opt-13b": 12_853_473_280,
    "opt-30b": 29_974_540_288,
    "pythia-70m": 70_426_624,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
    "pythia-1.4b": 1_414_647_808,
    "pythia-2.8b": 2_775_208_960,
    "pythia-6.9b": 6_857_302_016,
    "pythia-12b": 11_846_072_320,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "mistral-7b": 7_241_732_096,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-8b": 8_190_735_360,
    "gemma-2b": 2_506_172_416,
    "gemma-7b": 8_537_680_896,
    "olmo-2-1b": 1_484_916_736,
    "granite-3.1-2b": 2_533_531_648,
    "smollm3-3b": 3_075_098_624,
    "stablelm-2-1.6b": 1_644_515_328,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts(name):
    assert count(families.decoder_config(ARCHITECTURES[name], name)) == PUBLISHED[name]


def test_every_family_has_a_published_size():
    types = {ARCHITECTURES[name]["model_type"] for name in PUBLISHED}
    assert types == family_tables.FAMILIES.keys() - {"xglm"}


def test_fairseq_sizes_are_those_of_the_paper():
    """Artetxe et al. 2021, table 1: 125M to 13B, in words rounded to two digits."""
    for name in (name for name in ARCHITECTURES if name.startswith("fairseq")):
        number, unit = float(name[8:-1]), {"m": 1e6, "b": 1e9}[name[-1]]
        assert count(families.decoder_config(ARCHITECTURES[name], name)) == pytest.approx(
            number * unit, rel=0.03
        )


# ---- Plans -------------------------------------------------------------------------------------


def shape_by_pattern(side, sizes):
    groups = side.replace("(", " ( ").replace(")", " ) ").split()
    out, joined = [], None
    for token in groups:
        if token in "()":
            out, joined = (out, 1) if token == "(" else ([*out, joined], None)
            continue
        size = int(token) if token.isdigit() else sizes[token]
        if joined is None:
            out.append(size)
        else:
            joined *= size
    return tuple(out)


@pytest.mark.parametrize("kind", family_tables.FAMILIES)
def test_plan_covers_the_tree_with_its_shapes(kind):
    hf = tiny(kind)
    config = families.decoder_config(hf, kind)
    plan, sizes = plans.plan(hf, config), plans.axis_sizes(config)
    paths = jax.tree_util.tree_leaves_with_path(shapes_of(config))
    expected = {tuple(part.key for part in path): leaf.shape for path, leaf in paths}
    assert plan.leaves.keys() == expected.keys()
    for path, leaf in plan.leaves.items():
        stacked = (config.num_layers,) if "{}" in leaf.tensor else ()
        assert (path[0] == "layers") == bool(stacked)
        assert stacked + shape_by_pattern(leaf.pattern.split("->")[1], sizes) == expected[path]
    # No two leaves are the same part of a tensor.
    parts = [(leaf.tensor, leaf.part) for leaf in plan.leaves.values()]
    assert len(set(parts)) == len(parts)


@pytest.mark.parametrize(
    ("kind", "path", "expected"),
    [
        ("llama", "query.kernel", ("layers.{}.self_attn.q_proj.weight", "(H K) D -> D H K")),
        ("gpt2", "key.kernel", ("h.{}.attn.c_attn.weight", "D (3 H K) -> D H K", 1)),
        ("gpt2", "value.bias", ("h.{}.attn.c_attn.bias", "(3 H K) -> H K", 2)),
        (
            "gpt_neox",
            "value.kernel",
            ("layers.{}.attention.query_key_value.weight", "(H 3 K) D -> D H K", 2),
        ),
        ("gptj", "output.kernel", ("h.{}.attn.out_proj.weight", "D (H K) -> H K D")),
        ("gptj", "unembed.bias", ("lm_head.bias", "V -> V")),
        ("gemma", "mlp_norm.scale", ("layers.{}.post_attention_layernorm.weight", "D -> D", 0, 1)),
        ("opt", "embed_positions.embedding", ("embed_positions.weight", "P D -> P D")),
        ("qwen3", "key_norm.scale", ("layers.{}.self_attn.k_norm.weight", "K -> K")),
        (
            "gemma2",
            "attention_out_norm.scale",
            ("layers.{}.post_attention_layernorm.weight", "D -> D", 0, 1),
        ),
        (
            "gemma3_text",
            "mlp_norm.scale",
            ("layers.{}.pre_feedforward_layernorm.weight", "D -> D", 0, 1),
        ),
    ],
)
def test_leaves(kind, path, expected):
    hf = tiny(kind)
    leaves = plans.plan(hf, families.decoder_config(hf, kind)).leaves
    (found,) = (leaf for at, leaf in leaves.items() if ".".join(at[-2:]) == path)
    assert found == plans.Leaf(*expected)


def test_the_output_projection_has_no_prefix():
    hf = tiny("gpt2", tie_word_embeddings=False)
    leaves = plans.plan(hf, families.decoder_config(hf, "gpt2")).leaves
    assert leaves["embed", "embedding"].name("transformer.") == "transformer.wte.weight"
    assert leaves["unembed", "kernel"].name("transformer.") == "lm_head.weight"
    assert leaves["unembed", "kernel"].pattern == "V D -> D V"
    scale = leaves["layers", "mlp_norm", "scale"]
    assert scale.name("transformer.", 2) == "transformer.h.2.ln_2.weight"


# ---- What config.json says ---------------------------------------------------------------------


QWEN_WINDOWS = {"use_sliding_window": True, "sliding_window": 8}


@pytest.mark.parametrize(
    ("kind", "changes", "expected"),
    [
        ("gpt_neo", {}, [0, 256]),
        ("gpt_neo", {"attention_types": [[["global"], 1], [["local"], 3]]}, [0, 256, 256, 256]),
        ("mistral", {}, [4096]),
        ("mistral", {"sliding_window": None}, [0]),
        ("qwen2", {}, [0]),
        ("qwen2", {"sliding_window": 8}, [0]),
        ("qwen3", {**QWEN_WINDOWS, "max_window_layers": 3}, [0, 0, 0, 8]),
        ("qwen3", {**QWEN_WINDOWS, "max_window_layers": 0}, [8]),
        (
            "qwen2",
            {**QWEN_WINDOWS, "layer_types": ["full_attention", "sliding_attention"] * 2},
            [0, 8],
        ),
    ],
)
def test_windows(kind, changes, expected):
    config = families.decoder_config(tiny(kind, **changes), kind)
    assert config.attention == tuple(Kind(window=size) for size in expected)


LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    ("kind", "changes", "expected"),
    [
        ("llama", {"rope_theta": 500.0}, Rope(500.0)),
        ("llama", {"rope_parameters": {"rope_theta": 500.0}}, Rope(500.0)),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}}, Rope(factor=4.0)),
        (
            "llama",
            {"rope_scaling": {"rope_type": "llama3", **LLAMA3}},
            Rope(1e4, 0, False, 8.0, 1.0, 4.0, 8192),
        ),
        ("gpt_neox", {}, Rope(width=2)),
        ("gpt_neox", {"rotary_pct": 1.0, "rotary_emb_base": 500}, Rope(500.0)),
        ("gpt_neox", {"rope_parameters": {"partial_rotary_factor": 0.5}}, Rope(width=4)),
        ("gptj", {}, Rope(width=4, interleaved=True)),
        ("opt", {}, "learned"),
    ],
)
def test_rotary_positions(kind, changes, expected):
    assert families.decoder_config(tiny(kind, **changes), kind).positions == expected


def test_kinds_of_attention_of_a_model_trained_here_come_first():
    kind = dataclasses.replace(Kind(ema=0.5), learn=("ema",))
    changes = {family_tables.ATTENTION_KEY: [dataclasses.asdict(kind)]}
    hf = tiny("mistral", **changes)
    config = families.decoder_config(hf, "here")
    assert config.attention == (kind,)
    leaf = plans.plan(hf, config).leaves["layers", "attention", "ema"]
    assert leaf == plans.Leaf("layers.{}.self_attn.icljax_ema", "G -> G")


@pytest.mark.parametrize(
    ("kind", "changes", "expected"),
    [
        ("gemma3n", None, "model_type 'gemma3n' is unknown; supported: gpt2, gpt_neo, "),
        ("gemma3", None, "(Gemma3ForConditionalGeneration); give its text model alone"),
        ("gemma3_text", {"attn_logit_softcapping": 5.0}, "attn_logit_softcapping=5.0 is not"),
        ("gemma2", {"use_bidirectional_attention": True}, "only False"),
        ("gemma2", {"layer_types": ["full_attention"]}, "layer_types are of 1 layers, not 4"),
        ("mixtral", None, "model_type 'mixtral' is unknown"),
        ("llama", {"rope_scaling": {"rope_type": "longrope"}}, "rope_type='longrope' is not"),
        ("llama", {"rope_scaling": {"rope_type": "yarn"}}, "has no 'factor', which llama needs"),
        ("smollm3", {"no_rope_layers": [1]}, "no_rope_layers are of 1 layers, not 4"),
        ("stablelm", {"qk_layernorm": True}, "qk_layernorm=True is not supported"),
        ("llama", {"rope_scaling": {"rope_type": "llama3"}}, "has no 'factor', which llama needs"),
        ("qwen2", {"hidden_act": "gelu"}, "hidden_act='gelu' is not supported, only 'silu'"),
        ("gemma", {"hidden_activation": "relu"}, "only 'gelu_pytorch_tanh'"),
        ("opt", {"word_embed_proj_dim": 16}, "word_embed_proj_dim=16 is not supported, only 32"),
        ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before=False is not supported"),
        ("gptj", {"rotary_dim": None}, "rotary_dim is not given"),
        ("gptj", {"tie_word_embeddings": True}, "tie_word_embeddings=True is not supported"),
        ("gpt_neo", {"attention_types": [[["global"], 3]]}, "are of 3 layers, not 4"),
        ("gpt_neo", {"attention_types": [[["sparse"], 4]]}, "['sparse'] are not all"),
        ("xglm", {"add_cross_attention": True}, "add_cross_attention=True is not supported"),
        ("gpt_neox", {"hidden_size": ...}, "has no 'hidden_size', which gpt_neox needs"),
        ("gpt_neox", {"hidden_size": None}, "has no 'hidden_size', which gpt_neox needs"),
        # Of no meaning.
        ("llama", {"hidden_size": True}, "config.json: hidden_size is True, expected a whole"),
        ("llama", {"num_hidden_layers": 2**31}, "num_hidden_layers is 2147483648, expected a"),
        ("gpt2", {"n_head": 0}, "n_head is 0, expected a whole number from 1 to"),
        ("gpt2", {"n_head": 3}, "a width of 32 cannot be cut evenly into 3 heads"),
        ("llama", {"rms_norm_eps": float("nan")}, "rms_norm_eps is nan, expected a number above 0"),
        ("llama", {"rope_theta": 10**400}, "expected a number above 0; correct it"),
        ("llama", {"rope_theta": 0}, "rope_theta is 0, expected a number above 0"),
        ("llama", {"rope_scaling": [1]}, "rope_scaling is [1], expected a table"),
        ("llama", {"rope_scaling": {"type": 1}}, "rope_scaling: type is 1, expected a text"),
        ("llama", {"tie_word_embeddings": "false"}, "is 'false', expected true or false"),
        ("llama", {"head_dim": 7}, "7 of a head's 7 numbers cannot be rotated"),
        ("gptj", {"rotary_dim": 10}, "10 of a head's 8 numbers cannot be rotated"),
        ("gpt_neox", {"rotary_pct": 0.1}, "0.1 of a head's 8 numbers is none to rotate"),
        (
            "xglm",
            {"d_model": 36, "attention_heads": 4, "activation_function": 5},
            "expected a text",
        ),
        (
            "gpt_neo",
            {"attention_types": [[["global"], 2**31]]},
            "attention_types is [[['global'], ",
        ),
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types are of 1 layers, not 4"),
        (
            "llama",
            {family_tables.ATTENTION_KEY: [{"eta": 2.0}]},
            "icljax_attention: attention.eta is 2.0",
        ),
        (
            "llama",
            {family_tables.ATTENTION_KEY: [{"base": 1}]},
            "icljax_attention: base is 1, expected",
        ),
        # It would change what is computed.
        (
            "llama",
            {"attn_logit_softcapping": 50.0},
            "attn_logit_softcapping=50.0 is not supported;",
        ),
        ("llama", {"num_local_experts": 8}, "num_local_experts=8 is not supported, only 0 or 1"),
        ("llama", {"residual_multiplier": 0.2}, "residual_multiplier=0.2 is not supported, only 1"),
        ("llama", {"sliding_window": 8}, "sliding_window=8 is not supported, only 0"),
        (
            "llama",
            {"layer_types": ["sliding_attention"] * 4},
            "'sliding_attention' is not supported",
        ),
        (
            "qwen3",
            {"layer_types": ["chunked_attention"] * 4},
            "'chunked_attention' is not supported",
        ),
        (
            "llama",
            {"partial_rotary_factor": 0.5},
            "rotating only 0.5 of each head is not supported",
        ),
        (
            "qwen2",
            {"rope_scaling": {"type": "default", "mrope_section": [1]}},
            "'mrope_section' of",
        ),
        ("llama", {"rope_scaling": {"factor": 4.0}}, "have factor=4 and no rope_type; add it"),
        ("llama", {"rope_parameters": {"type": None, "factor": 4}}, "factor=4 and no rope_type"),
        ("llama", {"rope_parameters": {"high_freq_factor": 4.0}}, "and no rope_type"),
        ("llama", {"rope_scaling": {"rope_type": "linear"}}, "has no 'factor', which llama needs"),
        (
            "llama",
            {"rope_scaling": {"type": "linear", "factor": 2.0, "attention_factor": 0.5}},
            "'attention_factor' of the rotary positions is not supported",
        ),
        ("llama", {"rope_parameters": {"full_attention": {}}}, "'full_attention' of the rotary"),
        (
            "gptj",
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            "rope_scaling={'type': 'linear'",
        ),
        (
            "llama",
            {"rope_scaling": {"type": "linear", "rope_type": "default", "factor": 2.0}},
            "type and rope_type of the rotary positions differ",
        ),
        (
            "llama",
            {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"factor": 3}},
            "rope_scaling and rope_parameters differ",
        ),
        (
            "llama",
            {"rope_scaling": LLAMA3 | {"type": "llama3", "low_freq_factor": 4.0}},
            "low_freq_factor=4 is not below high_freq_factor=4",
        ),
    ],
)
def test_refused_in_one_line(kind, changes, expected):
    hf = {"model_type": kind} if changes is None else tiny(kind, **changes)
    with pytest.raises(UserError) as caught:
        families.decoder_config(hf, "somewhere")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("somewhere: ")


@pytest.mark.parametrize("kind", family_tables.FAMILIES)
def test_keys_that_change_nothing(kind):
    """As transformers writes them out for a plain model of most families."""
    plain = {"pretraining_tp": 2, "attention_dropout": 0.1, "use_cache": True, "rope_scaling": None}
    plain |= {"sliding_window": None, "layer_types": None, "num_experts": 0, "alibi": False}
    hf = tiny(kind)
    assert families.decoder_config(plain | hf, "here") == families.decoder_config(hf, "here")


# ---- Positions ---------------------------------------------------------------------------------

ROPES = {
    "llama": Rope(100.0),
    "partial": Rope(100.0, width=4),
    "gptj": Rope(100.0, width=6, interleaved=True),
    "llama3": Rope(100.0, factor=8.0, low=1.0, high=4.0, original_length=64),
    "linear": Rope(100.0, factor=4.0),
}


@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES)
def test_scores_after_rotation_depend_on_the_distance_only(rope):
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 8))
    turn = jax.jit(rotate, static_argnums=2)

    def at(x, position):
        return turn(x, np.full((1, 1), position), (rope,), np.zeros(1, int))

    scores = [jnp.vdot(at(q, i), at(k, j)) for i, j in ((7, 2), (30, 25), (5, 0), (0, -5))]
    np.testing.assert_allclose(scores, scores[0], rtol=1e-4)
    assert abs(float(jnp.vdot(at(q, 7), at(k, 3)) - scores[0])) > 1e-3
    np.testing.assert_allclose(at(at(k, 9), -9), k, atol=1e-5)


def test_yarn_by_hand():
    """Width 8, base 100, context 64: a pair turns 32 times at -2, once at 2.02, ends outward."""
    given = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    config = families.decoder_config(tiny("llama", rope_theta=100.0, rope_scaling=given), "here")
    (rope,) = config.ropes
    assert (rope.factor, rope.ramp) == (4.0, (0.0, 3.0))
    assert rope.amplitude == pytest.approx(1 + 0.1 * np.log(4))
    x = np.float32([[[1, 1, 1, 1, 0, 0, 0, 0]]])
    got = rotate(jnp.asarray(x), jnp.full((1, 1), 5), (rope,), np.zeros(1, int))[0, 0]
    angle = 5 * 100 ** (-np.arange(4) / 4) * (1 - 0.75 * np.arange(4) / 3)
    turned = rope.amplitude * np.concatenate([np.cos(angle), np.sin(angle)])
    np.testing.assert_allclose(got, turned, atol=1e-6)


def test_layers_are_turned_by_their_own_rope():
    ropes = (Rope(20.0), Rope(500.0), Rope(factor=float("inf")))
    x = jax.random.normal(jax.random.key(0), (5, 3, 2, 8))
    at = jnp.broadcast_to(jnp.arange(3)[None] + 4, (5, 3))
    got = rotate(x, at, ropes, np.arange(5))
    for layer in range(5):
        own = slice(layer, layer + 1)
        alone = rotate(x[own], at[own], (ropes[layer % 3],), np.zeros(1, int))
        np.testing.assert_array_equal(got[own], alone)
    np.testing.assert_array_equal(got[2], x[2])  # a layer without positions
    assert np.abs(got[0] - x[0]).max() > 0.1


@pytest.mark.parametrize(
    "changes",
    [{"positions": (Rope(), Rope(width=4))}, {"attention": (Kind(cap=5.0), Kind())}],
    ids=["width", "cap"],
)
def test_what_differs_between_layers_is_what_a_scan_can_have(changes):
    with pytest.raises(UserError, match=r"expected (the same|one)"):
        dataclasses.replace(LLAMA, **changes)


def test_sinusoids_of_fairseq():
    """By hand: width 4 has frequencies 1 and 1 / 10,000."""
    got = sinusoids(jnp.array([[2, 3]]), 4)
    angle = np.array([[2, 2e-4], [3, 3e-4]])
    np.testing.assert_allclose(got[0], np.concatenate([np.sin(angle), np.cos(angle)], 1), atol=1e-6)


def buffer_agrees(ending, values, config, layer=0, first=0):
    (buffer,) = (b for b in plans._BUFFERS if b.ending == ending)
    rows = plans.Rows(np.asarray(values, np.float64)[first:], first, len(values))
    return buffer.agrees(rows, config, layer)


def test_masks_of_local_layers_have_a_window():
    config = families.decoder_config(tiny("gpt_neo", window_size=3), "here")
    mask, band = np.tri(6), np.tri(6) - np.tri(6, k=-3)
    for first in (0, 2):
        assert buffer_agrees(".attention.bias", mask, config, 0, first)
        assert buffer_agrees(".attention.bias", band, config, 1, first)
        assert not buffer_agrees(".attention.bias", mask, config, 1, first)
        assert not buffer_agrees(".attention.bias", band, config, 2, first)


def test_sinusoids_of_a_file():
    """As transformers makes XGLM's table: rows from 0 on, that of padding (1) zero."""
    config = families.decoder_config(tiny("xglm"), "here")
    table = np.array(sinusoids(jnp.arange(40)[None], 32)[0])
    table[1] = 0
    for first in (0, 7):
        assert buffer_agrees("embed_positions.weights", table, config, 0, first)
        assert not buffer_agrees("embed_positions.weights", table[1:], config, 0, first)
    table[5] = 0
    assert not buffer_agrees("embed_positions.weights", table, config)
    llama = families.decoder_config(tiny("llama"), "here")
    assert not buffer_agrees("embed_positions.weights", table, llama)


# ---- Blocks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", ["sequential", "parallel", "shared_norm"])
def test_sublayers_of_a_parallel_block_add_up(block):
    config = dataclasses.replace(LLAMA, block=block)
    params = jax.tree.map(lambda x: x[0], params_of(config)["layers"])
    assert ("mlp_norm" in params) == (block != "shared_norm")
    x = jnp.asarray(np.random.default_rng(1).standard_normal((1, 6, 32), np.float32))
    positions = jnp.arange(6)[None]
    past = Past(positions + 1, None, None)

    @jax.jit
    def change(attention, mlp):
        sublayers = {"attention": (attention, params["attention"]), "mlp": (mlp, params["mlp"])}
        scaled = {k: jax.tree.map(lambda w, s=s: s * w, p) for k, (s, p) in sublayers.items()}
        layer = (jnp.int32(0), None)
        args = (x, layer, None, positions, past, None)
        return Block(config).apply({"params": params | scaled}, *args)[0] - x

    apart = change(1.0, 0.0) + change(0.0, 1.0)
    close = np.allclose(change(1.0, 1.0), apart, atol=1e-4)
    assert close == (block != "sequential")
    assert np.abs(change(0.0, 1.0)).max() > 0.1


# ---- Windows -----------------------------------------------------------------------------------

WINDOWED = dataclasses.replace(LLAMA, attention=(Kind(window=5), Kind()))
TOKENS = np.arange(2, 16, dtype=np.int32)[None]
AT = np.arange(14, dtype=np.int32)[None]


@functools.cache
def params_of(config):
    """Random; in NumPy, since XLA takes seconds to compile as many shapes of random numbers."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: 0.3 * rng.standard_normal(x.shape, np.float32), shapes_of(config))


@functools.cache
def reader(config):
    return jax.jit(functools.partial(forward.hidden, Decoder(config)))


def test_a_token_sees_its_window():
    """One layer of window 5: the last token's output depends on the last 5 tokens alone."""
    config = dataclasses.replace(WINDOWED, num_layers=1)

    def last(embedding):
        params = params_of(config) | {"embed": {"embedding": embedding}}
        tokens, at = jnp.asarray(TOKENS), jnp.asarray(AT)
        hidden = forward.hidden(Decoder(config), params, tokens, at).hidden
        return jnp.sum(jnp.sin(hidden[0, -1]))

    gradient = jax.jit(jax.grad(last))(params_of(config)["embed"]["embedding"])
    seen = np.flatnonzero(np.abs(gradient).max(1))
    np.testing.assert_array_equal(seen, TOKENS[0, -5:])


@pytest.mark.parametrize(
    "changes",
    [
        {"qk_norm": "head", "block": "shared_norm", "positions": Rope(100.0, 4, interleaved=True)},
        {"norm": "layer", "block": "parallel", "positions": "sinusoidal", "mlp": "gelu"},
        {
            "norms": "both",
            "attention": (Kind(window=5, cap=1.0), Kind(cap=1.0)),
            "logit_cap": 2.0,
        },
        {
            "norms": "both",
            "qk_norm": "head",
            "positions": (Rope(20.0), Rope(500.0, factor=4.0)),
        },
    ],
    ids=["rotary", "sinusoidal", "gemma2", "gemma3"],
)
def test_windows_reach_into_the_state(changes):
    """Reading after a padded state equals reading the whole text."""
    config = dataclasses.replace(WINDOWED, **changes)
    params = params_of(config)
    whole = reader(config)(params, TOKENS, AT).hidden[:, 9:]
    padded = jnp.pad(TOKENS[0, :9], (0, 3), constant_values=7)
    encode = jax.jit(functools.partial(forward.encode, Decoder(config)))
    rest = (params, TOKENS[:, 9:], AT[:, 9:], None, encode(params, padded, jnp.arange(12) < 9))
    np.testing.assert_allclose(reader(config)(*rest).hidden, whole, atol=1e-4)
    unbounded = dataclasses.replace(config, attention=(Kind(),))
    assert np.abs(reader(unbounded)(*rest).hidden - whole).max() > 1e-2


GEMMA_KINDS = {
    # By the published rules: all but every second layer, all but every sixth.
    ("gemma2", ()): (4, [9, 0], [Rope()]),
    ("gemma3_text", ()): (12, [9] * 5 + [0], [Rope()] * 5 + [Rope(1e6)]),
    ("gemma3_text", (("sliding_window_pattern", 2),)): (4, [9, 0], [Rope(), Rope(1e6)]),
    ("gemma3_text", (("rope_local_base_freq", 50.0), ("_sliding_window_pattern", 2))): (
        4,
        [9, 0],
        [Rope(50.0), Rope(1e6)],
    ),
    ("gemma3_text", (("rope_scaling", (("rope_type", "linear"), ("factor", 8.0))),)): (
        6,
        [9] * 5 + [0],
        [Rope()] * 5 + [Rope(1e6, factor=8.0)],
    ),
    (
        "gemma3_text",
        (
            ("layer_types", ("full_attention", "sliding_attention") * 2),
            (
                "rope_parameters",
                (
                    ("full_attention", (("rope_theta", 70.0),)),
                    ("sliding_attention", (("rope_theta", 30.0),)),
                ),
            ),
        ),
    ): (4, [0, 9], [Rope(70.0), Rope(30.0)]),
}


def as_table(value):
    """Pairs of pairs as nested tables; other tuples as lists."""
    if not isinstance(value, tuple):
        return value
    if all(isinstance(x, tuple) and len(x) == 2 and isinstance(x[0], str) for x in value):
        return {key: as_table(x) for key, x in value}
    return list(value)


@pytest.mark.parametrize(("case", "expected"), GEMMA_KINDS.items())
def test_windows_and_positions_of_gemma(case, expected):
    (kind, changes), (layers, windows, ropes) = case, expected
    changes = as_table(changes) | {"num_hidden_layers": layers, "sliding_window": 9}
    config = families.decoder_config(tiny(kind, **changes), kind)
    assert [k.window for k in config.attention] == windows
    assert list(config.ropes) == ropes
    cap = 50.0 if kind == "gemma2" else 0.0
    assert {k.cap for k in config.attention} == {cap}
    assert config.logit_cap == (30.0 if cap else 0.0)
    assert config.attention_scale == 256**-0.5


def test_caps_bend_logits_and_scores():
    """At 1 / 100 of the cap they are what they were; beyond it they end there."""
    np.testing.assert_allclose(capped(jnp.array([0.5, -1e4]), 50.0), [0.5, -50], rtol=1e-4)
    np.testing.assert_allclose(capped(jnp.array([1.0]), 2.0), [2 * np.tanh(0.5)], rtol=1e-6)
    wide, narrow = (
        dataclasses.replace(WINDOWED, attention=(Kind(cap=cap),), logit_cap=cap)
        for cap in (1e6, 0.1)
    )
    plain = dataclasses.replace(WINDOWED, attention=(Kind(),))
    params = params_of(plain)

    def logits(config):
        return jax.jit(Decoder(config).apply)({"params": params}, TOKENS, AT)

    np.testing.assert_allclose(logits(wide), logits(plain), rtol=1e-3, atol=1e-4)
    assert np.abs(logits(plain)).max() > 1 > 0.11 > np.abs(logits(narrow)).max()
    record = jax.jit(functools.partial(forward.hidden, Decoder(narrow)))
    scores = record(params, TOKENS, AT, None, None, AT).record.scores_query
    assert 0.05 < np.abs(scores).max() < 0.11


def test_a_cap_in_jax_nn_is_computed_plainly():
    capped_kind = dataclasses.replace(WINDOWED, attention=(Kind(window=5, cap=0.5),))
    other = dataclasses.replace(capped_kind, implementation="jax_nn")
    ours, theirs = (reader(c)(params_of(WINDOWED), TOKENS, AT).hidden for c in (capped_kind, other))
    np.testing.assert_array_equal(ours, theirs)


def test_a_window_in_jax_nn():
    other = dataclasses.replace(WINDOWED, implementation="jax_nn")
    ours, theirs = (reader(c)(params_of(WINDOWED), TOKENS, AT).hidden for c in (WINDOWED, other))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_named_kind_replaces_the_models_own():
    assert parse_kinds({"kind": ""}) is None
    assert parse_kinds({"kind": "softmax"}) == (Kind(),)
    assert parse_kinds({"kind": "softmax,delta", "window": 5})[0] == Kind(window=5)
    assert parse_kinds({"kind": "softmax,delta", "window": 5})[1].window == 0
    with pytest.raises(UserError, match="window is -1"):
        parse_kinds({"kind": "softmax", "window": -1})
