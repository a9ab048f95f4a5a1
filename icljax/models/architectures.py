"""Published models by name, as the config.json that Hugging Face hosts for each.

For what needs shapes and no weights: `icljax.preflight`, and parameter counts without memory. Only
the keys that the decoder's shape and positions need are here (icljax/models/families.py has the
rest).
"""

from typing import Any

Config = dict[str, Any]


def _gpt2(layers: int, width: int, heads: int) -> Config:
    sizes = {"n_layer": layers, "n_embd": width, "n_head": heads}
    return {"model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024, **sizes}


def _gpt_neo(layers: int, width: int, heads: int) -> Config:
    return {
        "model_type": "gpt_neo",
        "vocab_size": 50257,
        "num_layers": layers,
        "hidden_size": width,
        "num_heads": heads,
        "max_position_embeddings": 2048,
        "attention_types": [[["global", "local"], layers // 2]],
        "window_size": 256,
    }


def _sizes(layers: int, width: int, heads: int) -> Config:
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "max_position_embeddings": 2048,
    }


def _pythia(layers: int, width: int, heads: int, vocab: int = 50304) -> Config:
    sizes = _sizes(layers, width, heads) | {"intermediate_size": 4 * width}
    return {"model_type": "gpt_neox", "vocab_size": vocab, "rotary_pct": 0.25, **sizes}


def _opt(layers: int, width: int, heads: int) -> Config:
    sizes = _sizes(layers, width, heads) | {"ffn_dim": 4 * width}
    return {"model_type": "opt", "vocab_size": 50272, **sizes}


def _fairseq(layers: int, width: int, heads: int) -> Config:
    """The dense language models of Artetxe et al. 2021 (table 1), which the paper studies.

    Their dictionary is GPT-2's with four special tokens more, padded to a multiple of 8.
    """
    return {
        "model_type": "xglm",
        "vocab_size": 50264,
        "num_layers": layers,
        "d_model": width,
        "attention_heads": heads,
        "ffn_dim": 4 * width,
        "max_position_embeddings": 2048,
    }


def _llama(
    layers: int,
    width: int,
    mlp_width: int,
    heads: int,
    groups: int,
    vocab: int,
    context: int,
    **more: Any,
) -> Config:
    return _sizes(layers, width, heads) | {
        "model_type": "llama",
        "vocab_size": vocab,
        "intermediate_size": mlp_width,
        "num_key_value_heads": groups,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        **more,
    }


def _llama3(factor: float) -> Config:
    scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0}
    scaling |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    return {"rope_theta": 500_000.0, "rope_scaling": scaling}


_TIED = {"tie_word_embeddings": True}
_QWEN = {"rms_norm_eps": 1e-6, "rope_theta": 1e6}
_QWEN2, _QWEN3 = ({"model_type": kind, **_QWEN} for kind in ("qwen2", "qwen3"))
_GEMMA = {"model_type": "gemma", "rms_norm_eps": 1e-6, "head_dim": 256}
_GPTJ = {"n_layer": 28, "n_embd": 4096, "n_head": 16, "n_positions": 2048, "rotary_dim": 64}

ARCHITECTURES: dict[str, Config] = {
    "fairseq-125m": _fairseq(12, 768, 12),
    "fairseq-355m": _fairseq(24, 1024, 16),
    "fairseq-1.3b": _fairseq(24, 2048, 32),
    "fairseq-2.7b": _fairseq(32, 2560, 32),
    "fairseq-6.7b": _fairseq(32, 4096, 32),
    "fairseq-13b": _fairseq(40, 5120, 40),
    "gpt2": _gpt2(12, 768, 12),
    "gpt2-medium": _gpt2(24, 1024, 16),
    "gpt2-large": _gpt2(36, 1280, 20),
    "gpt2-xl": _gpt2(48, 1600, 25),
    "gpt-neo-125m": _gpt_neo(12, 768, 12),
    "gpt-neo-1.3b": _gpt_neo(24, 2048, 16),
    "gpt-neo-2.7b": _gpt_neo(32, 2560, 20),
    "gpt-j-6b": {"model_type": "gptj", "vocab_size": 50400, **_GPTJ},
    "opt-125m": _opt(12, 768, 12),
    "opt-1.3b": _opt(24, 2048, 32),
    "opt-2.7b": _opt(32, 2560, 32),
    "opt-6.7b": _opt(32, 4096, 32),
    "opt-13b": _opt(40, 5120, 40),
    "opt-30b": _opt(48, 7168, 56),
    "opt-66b": _opt(64, 9216, 72),
    "pythia-70m": _pythia(6, 512, 8),
    "pythia-160m": _pythia(12, 768, 12),
    "pythia-410m": _pythia(24, 1024, 16),
    "pythia-1b": _pythia(16, 2048, 8),
    "pythia-1.4b": _pythia(24, 2048, 16),
    "pythia-2.8b": _pythia(32, 2560, 32),
    "pythia-6.9b": _pythia(32, 4096, 32, 50432),
    "pythia-12b": _pythia(36, 5120, 40, 50688),
    "llama-2-7b": _llama(32, 4096, 11008, 32, 32, 32000, 4096),
    "llama-2-13b": _llama(40, 5120, 13824, 40, 40, 32000, 4096),
    "llama-3.1-8b": _llama(32, 4096, 14336, 32, 8, 128256, 131072, **_llama3(8.0)),
    "llama-3.2-1b": _llama(16, 2048, 8192, 32, 8, 128256, 131072, **_llama3(32.0), **_TIED),
    "llama-3.2-3b": _llama(28, 3072, 8192, 24, 8, 128256, 131072, **_llama3(32.0), **_TIED),
    "mistral-7b": _llama(
        32, 4096, 14336, 32, 8, 32000, 32768, model_type="mistral", sliding_window=4096
    ),
    "qwen2.5-0.5b": _llama(24, 896, 4864, 14, 2, 151936, 32768, **_QWEN2, **_TIED),
    "qwen2.5-1.5b": _llama(28, 1536, 8960, 12, 2, 151936, 131072, **_QWEN2, **_TIED),
    "qwen2.5-7b": _llama(28, 3584, 18944, 28, 4, 152064, 131072, **_QWEN2),
    "qwen3-0.6b": _llama(28, 1024, 3072, 16, 8, 151936, 40960, **_QWEN3, **_TIED),
    "qwen3-1.7b": _llama(28, 2048, 6144, 16, 8, 151936, 40960, **_QWEN3, **_TIED),
    "qwen3-8b": _llama(36, 4096, 12288, 32, 8, 151936, 40960, **_QWEN3),
    "gemma-2b": _llama(18, 2048, 16384, 8, 1, 256000, 8192, **_GEMMA),
    "gemma-7b": _llama(28, 3072, 24576, 16, 16, 256000, 8192, **_GEMMA),
    "smollm2-135m": _llama(30, 576, 1536, 9, 3, 49152, 8192, rope_theta=1e5, **_TIED),
    "smollm2-360m": _llama(32, 960, 2560, 15, 5, 49152, 8192, rope_theta=1e5, **_TIED),
    "smollm2-1.7b": _llama(24, 2048, 8192, 32, 32, 49152, 8192, rope_theta=1.3e5, **_TIED),
}

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
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
}
