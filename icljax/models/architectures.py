"""Published models by name, as the config.json that Hugging Face hosts for each.

For what needs shapes and no weights: `icljax.preflight`, and parameter counts without memory. Only
the keys that the decoder's shape and positions need are here (icljax/models/options.py has the
rest).
"""

import functools
from typing import Any

from icljax.models.family_tables import FAMILIES

Config = dict[str, Any]


def _model(
    kind: str, vocab: int, context: int, layers: int, width: int, heads: int, **more: Any
) -> Config:
    """The sizes under their names in the family; an MLP four times as wide as the rest."""
    keys = FAMILIES[kind].keys
    sizes = {"vocab_size": vocab, "context_length": context, "num_layers": layers}
    sizes |= {"width": width, "num_heads": heads, "mlp_width": 4 * width}
    named = {
        key: sizes[field] for field, key in keys.items() if isinstance(key, str) and field in sizes
    }
    return {"model_type": kind} | named | more


_gpt2 = functools.partial(_model, "gpt2", 50257, 1024)
_opt = functools.partial(_model, "opt", 50272, 2048)
# The dense language models of Artetxe et al. 2021 (table 1), which the paper studies. Their
# dictionary is GPT-2's with four special tokens more, padded to a multiple of 8.
_fairseq = functools.partial(_model, "xglm", 50264, 2048)


def _gpt_neo(layers: int, width: int, heads: int) -> Config:
    kinds = [[["global", "local"], layers // 2]]
    more = {"attention_types": kinds, "window_size": 256}
    return _model("gpt_neo", 50257, 2048, layers, width, heads, **more)


def _pythia(layers: int, width: int, heads: int, vocab: int = 50304) -> Config:
    return _model("gpt_neox", vocab, 2048, layers, width, heads, rotary_pct=0.25)


def _llama(
    layers: int,
    widths: tuple[int, int],
    heads: tuple[int, int],
    vocab: int,
    context: int,
    **more: Any,
) -> Config:
    """`widths` of the model and the MLP; `heads` of queries and of keys and values."""
    own = {"intermediate_size": widths[1], "num_key_value_heads": heads[1], "rms_norm_eps": 1e-5}
    return _model("llama", vocab, context, layers, widths[0], heads[0], **own) | more


def _llama3(factor: float) -> Config:
    scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0}
    scaling |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    return {"rope_theta": 500_000.0, "rope_scaling": scaling}


_TIED = {"tie_word_embeddings": True}
_QWEN = {"rms_norm_eps": 1e-6, "rope_theta": 1e6}
_QWEN2, _QWEN3 = ({"model_type": kind, **_QWEN} for kind in ("qwen2", "qwen3"))
_GEMMA = {"model_type": "gemma", "rms_norm_eps": 1e-6, "head_dim": 256}
_THETA = {"rope_theta": 5e5}
_GRANITE = {"model_type": "granite", "embedding_multiplier": 12.0, "logits_scaling": 8.0}
_GRANITE |= {"residual_multiplier": 0.22, "attention_multiplier": 0.015625}
_SMOLLM3 = {"model_type": "smollm3", "no_rope_layer_interval": 4, "rms_norm_eps": 1e-6}
_GEMMA2 = _GEMMA | {"model_type": "gemma2", "sliding_window": 4096}
_GEMMA3 = _GEMMA | {"model_type": "gemma3_text", "sliding_window": 512}

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
    "gpt-j-6b": _model("gptj", 50400, 2048, 28, 4096, 16, rotary_dim=64),
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
    "llama-2-7b": _llama(32, (4096, 11008), (32, 32), 32000, 4096),
    "llama-2-13b": _llama(40, (5120, 13824), (40, 40), 32000, 4096),
    "llama-3.1-8b": _llama(32, (4096, 14336), (32, 8), 128256, 131072, **_llama3(8.0)),
    "llama-3.2-1b": _llama(16, (2048, 8192), (32, 8), 128256, 131072, **_llama3(32.0), **_TIED),
    "llama-3.2-3b": _llama(28, (3072, 8192), (24, 8), 128256, 131072, **_llama3(32.0), **_TIED),
    "mistral-7b": _llama(
        32, (4096, 14336), (32, 8), 32000, 32768, model_type="mistral", sliding_window=4096
    ),
    "qwen2.5-0.5b": _llama(24, (896, 4864), (14, 2), 151936, 32768, **_QWEN2, **_TIED),
    "qwen2.5-1.5b": _llama(28, (1536, 8960), (12, 2), 151936, 131072, **_QWEN2, **_TIED),
    "qwen2.5-7b": _llama(28, (3584, 18944), (28, 4), 152064, 131072, **_QWEN2),
    # The named models (models/named.py); their files have an output matrix of their own.
    "qwen2.5-coder-0.5b": _llama(24, (896, 4864), (14, 2), 151936, 32768, **_QWEN2),
    "qwen2.5-coder-1.5b": _llama(28, (1536, 8960), (12, 2), 151936, 32768, **_QWEN2),
    "qwen3-0.6b": _llama(28, (1024, 3072), (16, 8), 151936, 40960, **_QWEN3, **_TIED),
    "qwen3-1.7b": _llama(28, (2048, 6144), (16, 8), 151936, 40960, **_QWEN3, **_TIED),
    "qwen3-8b": _llama(36, (4096, 12288), (32, 8), 151936, 40960, **_QWEN3),
    "gemma-2b": _llama(18, (2048, 16384), (8, 1), 256000, 8192, **_GEMMA),
    "gemma-7b": _llama(28, (3072, 24576), (16, 16), 256000, 8192, **_GEMMA),
    "olmo-2-1b": _llama(
        16, (2048, 8192), (16, 16), 100352, 4096, model_type="olmo2", rms_norm_eps=1e-6, **_THETA
    ),
    "granite-3.1-2b": _llama(
        40, (2048, 8192), (32, 8), 49155, 131072, rope_theta=5e6, **_GRANITE, **_TIED
    ),
    "smollm3-3b": _llama(
        36, (2048, 11008), (16, 4), 128256, 65536, rope_theta=5e6, **_SMOLLM3, **_TIED
    ),
    "stablelm-2-1.6b": _model(
        "stablelm", 100352, 4096, 24, 2048, 32, intermediate_size=5632, use_qkv_bias=True
    ),
    "gemma-2-2b": _llama(26, (2304, 9216), (8, 4), 256000, 8192, **_GEMMA2),
    "gemma-2-9b": _llama(42, (3584, 14336), (16, 8), 256000, 8192, **_GEMMA2),
    "gemma-3-270m": _llama(18, (640, 2048), (4, 1), 262144, 32768, **_GEMMA3),
    "gemma-3-1b": _llama(26, (1152, 6912), (4, 1), 262144, 32768, **_GEMMA3),
    "smollm2-135m": _llama(30, (576, 1536), (9, 3), 49152, 8192, rope_theta=1e5, **_TIED),
    "smollm2-360m": _llama(32, (960, 2560), (15, 5), 49152, 8192, rope_theta=1e5, **_TIED),
    "smollm2-1.7b": _llama(24, (2048, 8192), (32, 32), 49152, 8192, rope_theta=1.3e5, **_TIED),
}
