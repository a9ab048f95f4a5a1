"""What every test shares: strict JAX settings, and a tiny model with a real tokenizer on disk."""

import contextlib
import functools
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import hypothesis
import jax
import numpy as np
import pytest
from jaxtyping import install_import_hook
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

# Every call of these rooms' functions is held to its annotation, shapes included.
_ROOMS = ["icljax.attention", "icljax.metrics", "icljax.models.decoder", "icljax.models.rotary"]
install_import_hook(_ROOMS, "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Compiling takes longer than running where models are tiny: a third of the time with these.
_FAST_COMPILATION = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if jax.__version_info__ < (0, 11):  # a later one knows no such flag, and ends
    _FAST_COMPILATION += " --xla_cpu_use_fusion_emitters=false"
_MOST_BYTES = 2 << 30  # of compiled programs that are kept


def pytest_configure(config: pytest.Config) -> None:
    """Sets up compilation, before JAX starts its devices and pytest its workers.

    All processes of a session, and the next session, share their compiled programs: the workers,
    and the commands that tests run. Real models run longer than they compile: with marks of its own
    choice, a session compiles as users do.
    """
    if hasattr(config, "workerinput"):
        return
    kept = Path(config.cache.mkdir("programs"))
    if sum(file.stat().st_size for file in kept.iterdir()) > _MOST_BYTES:
        shutil.rmtree(kept)
        kept.mkdir()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(kept)
    jax.config.update("jax_compilation_cache_dir", str(kept))
    if config.option.markexpr in config.getini("addopts"):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FAST_COMPILATION}"


@pytest.fixture(scope="session", autouse=True)
def traced_once() -> Iterator[None]:
    """Jobs of one model and one configuration share their programs: none is traced twice."""
    from icljax.comparison import programs  # not before the hook above

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "programs_of", functools.cache(programs.programs_of))
        yield


@contextlib.contextmanager
def undrawn() -> Iterator[None]:
    """Inside, reports have empty figures: a tiny job draws ten times as long as it computes."""
    from icljax.reports import plots

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "png", lambda _: b"")
        patch.setattr(plots, "svg", lambda *_: "")
        yield


def bounded(examples: int) -> hypothesis.settings:
    """Settings of a fuzz test: the same few inputs every time, or with FUZZ=N, N times new ones."""
    times = int(os.environ.get("FUZZ", "0"))
    return hypothesis.settings(
        max_examples=examples * max(times, 1),
        derandomize=not times,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


_TEXT = """the film is a quiet and moving story of loss a dull empty mess that never ends bright
funny warm cold slow clever tired fresh stale bold weak tender loud Review Sentiment Positive
Negative good bad great terrible neutral Label Sentence very 1 2 3 4 . , : ?"""
WORDS = _TEXT.split()


def make_tokenizer() -> Tokenizer:
    """A byte-level BPE, trained on the words above; <s> and </s> are its special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rng = np.random.default_rng(0)
    tokenizer.train_from_iterator([" ".join(rng.choice(WORDS, 12)) for _ in range(300)], trainer)
    return tokenizer


def tiny_llama_config(**changes: object) -> dict[str, object]:
    config = {
        "model_type": "llama",
        "vocab_size": 400,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    return config | changes


def llama_tensors(config: dict, seed: int = 0, scale: float = 0.3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    width, mlp = config["hidden_size"], config["intermediate_size"]
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    head = width // heads

    def matrix(*shape: int) -> np.ndarray:
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    tensors = {"model.embed_tokens.weight": matrix(config["vocab_size"], width)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        tensors |= {
            prefix + "self_attn.q_proj.weight": matrix(heads * head, width),
            prefix + "self_attn.k_proj.weight": matrix(groups * head, width),
            prefix + "self_attn.v_proj.weight": matrix(groups * head, width),
            prefix + "self_attn.o_proj.weight": matrix(width, heads * head),
            prefix + "mlp.gate_proj.weight": matrix(mlp, width),
            prefix + "mlp.up_proj.weight": matrix(mlp, width),
            prefix + "mlp.down_proj.weight": matrix(width, mlp),
            prefix + "input_layernorm.weight": 1 + matrix(width),
            prefix + "post_attention_layernorm.weight": 1 + matrix(width),
        }
    return tensors | {"model.norm.weight": 1 + matrix(width)}


def write_folder(folder: Path, config: dict, tensors: dict[str, np.ndarray]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    make_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with a random three-layer Llama-type model."""
    config = tiny_llama_config()
    return write_folder(tmp_path_factory.mktemp("model") / "tiny", config, llama_tensors(config))


def write_reviews(folder: Path, train: int = 60, validation: int = 20) -> Path:
    """A JSONL task of made-up reviews."""
    rng = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", train), ("validation", validation)):
        lines = [
            json.dumps(
                {
                    "text": " ".join(rng.choice(WORDS[:34], rng.integers(4, 14))) + f" {split} {i}",
                    "label": i % 2,
                }
            )
            for i in range(count)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reviews(tmp_path_factory.mktemp("data") / "reviews")


def gguf_of(name: str) -> Path:
    """The GGUF file of a named model, which `checkpoints.open_checkpoint` has fetched."""
    from icljax.models.named import NAMED

    return NAMED[name].file.path
