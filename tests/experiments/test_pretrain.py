"""Training from scratch: data order, the optimizer, a mesh, a kill, and the whole comparison."""

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from rich.console import Console

from icljax import checkpoints
from icljax.checkpoints import save
from icljax.data import corpus
from icljax.errors import UserError
from icljax.experiments import pretrain, train
from icljax.models.decoder import Decoder, DecoderConfig, init_params
from icljax.runtime import sharding
from tests.conftest import WORDS, make_tokenizer

VARIANTS = "softmax; momentum learn=ema"


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory):
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("text")
    for name in ("a", "b"):
        lines = (" ".join(rng.choice(WORDS, 15)) for _ in range(400))
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return folder


def tiny_config(text_folder, reviews) -> ConfigDict:
    config = pretrain.default()
    config.update(
        {
            "variants": VARIANTS,
            "seeds": (1, 2),
            "text": {"source": f"text:{text_folder}", "vocab_size": 300},
            "model": {"layers": 2, "width": 16, "mlp_width": 24, "heads": 2, "length": 128},
            "train": {"steps": 12, "batch": 2, "warmup_steps": 3, "checkpoint_every": 4},
            "eval": {"tokens": 256, "curve_points": 3},
            "icl": {
                "tasks": f"mr=jsonl:{reviews}",
                "seeds": (1,),
                "num_demonstrations": 2,
                "num_examples": 8,
            },
        }
    )
    return config


def run(config, path):
    return pretrain.run(config, path, Console(file=io.StringIO(), width=100))


@pytest.fixture(scope="module")
def done(text_folder, reviews, tmp_path_factory):
    path = tmp_path_factory.mktemp("pretrain") / "job"
    config = tiny_config(text_folder, reviews)
    return config, path, run(config, path)


def test_results_hold_every_run_and_its_paired_differences(done):
    config, path, results = done
    assert json.loads((path / "results.json").read_text()) == results
    first, second = pretrain.split(config.variants)
    names = [f"{part}-{n}" for part in ("train", "validation") for n in (32, 64, 128)]
    assert list(results["perplexity"][first]) == names
    reference, other = (results["perplexity"][v]["validation-128"] for v in (first, second))
    assert 1 < reference["mean"] < 400
    change = np.subtract(other["per_seed"], reference["per_seed"])
    assert other["difference"]["per_seed"] == pytest.approx(change, abs=1e-4)
    # Student's t with one degree of freedom: 12.706 standard errors.
    half = 12.706 * np.std(change, ddof=1) / np.sqrt(2)
    low, high = other["difference"]["interval"]
    assert high - low == pytest.approx(2 * half, rel=1e-3, abs=1e-4)
    of_eight = 12.5 * np.arange(9)
    assert set(results["accuracy"]["mr"][first]["icl"]["per_seed"]) <= set(of_eight)
    losses = np.asarray(results["curves"]["training_loss"][first])
    assert losses.shape == (2, 12)
    assert losses[:, -1].mean() < losses[:, 0].mean() - 0.05
    assert np.asarray(results["learned"][second][0]["ema"]).shape == (2, 2)
    assert "table 6" in (path / "report.md").read_text()
    assert (path / "figures" / "curves.png").stat().st_size > 5000
    assert (path / "figures" / "eta.png").stat().st_size > 2000
    assert "table 6" in (path / "report.html").read_text()
    assert run(config, path) == results


def test_a_trained_model_is_a_model_of_the_main_job(done):
    config, path, _ = done
    folder = next((path / "runs").glob("momentum*-1")) / "model"
    checkpoint = checkpoints.open_checkpoint(str(folder))
    assert checkpoint.config.learned() == ("ema",)
    params = checkpoints.load_params(folder, checkpoint.config)
    result = json.loads((folder.parent / pretrain.RUN_RESULT).read_text())
    stream = np.load(path / "corpus" / "validation.npy")
    blocks = train.evaluation_batches(stream, 128, config.train.batch, config.eval.tokens)
    loss = np.mean(
        [train.mean_loss(Decoder(checkpoint.config), params, b) for b in jnp.asarray(blocks)]
    )
    assert np.exp(loss) == pytest.approx(result["perplexity"]["validation-128"], rel=1e-5)


def test_the_order_of_batches_depends_on_step_and_seed_alone():
    parts = corpus.blocks(np.arange(101, dtype=np.int32), 10)
    assert parts.shape == (10, 11)
    assert parts[3].tolist() == list(range(30, 41))
    epoch = np.concatenate([corpus.batch_at(parts, s, 5, 7)[:, 0] for s in range(2)])
    assert sorted(epoch) == list(range(0, 100, 10))
    again = np.concatenate([corpus.batch_at(parts, s, 5, 7)[:, 0] for s in range(2, 4)])
    assert sorted(again) == sorted(epoch)
    assert again.tolist() != epoch.tolist()
    assert corpus.batch_at(parts, 0, 5, 8)[:, 0].tolist() != epoch[:5].tolist()
    across = corpus.batch_at(parts, 0, 15, 7)[:, 0]
    assert across.tolist() == [*epoch, *again[:5]]


def test_corpus_from_files(text_folder, tmp_path):
    made = corpus.load(f"text:{text_folder}", 300, None, tmp_path / "c", 0.1)
    text = (text_folder / "a.txt").read_text() + (text_folder / "b.txt").read_text()
    documents = made.tokenizer.decode(made.train.tolist() + made.validation.tolist())
    assert sorted(documents.split()) == sorted(text.split())
    assert made.train[0] == made.train[-1] == made.validation[0] == made.end
    assert np.sum(made.train == made.end) == 3
    assert 0.08 < len(made.validation) / (len(made.train) + len(made.validation)) < 0.12
    again = corpus.load("text:/does/not/exist", 1, None, tmp_path / "c", 0.5)
    np.testing.assert_array_equal(again.train, made.train)
    with pytest.raises(UserError, match="fewer than one block"):
        corpus.blocks(made.validation[:20], 64)


def test_accumulated_parts_are_one_batch():
    decoder = DecoderConfig(50, 1, 16, 24, 2, 2, 8, 32)
    config = pretrain.default().train
    config.steps, config.warmup_steps, config.clip = 4, 1, 1e9
    programs = train.make_programs(decoder, config, sharding.make_mesh(1, 1), 1)
    tokens = np.random.default_rng(0).integers(0, 50, (2, 8, 17)).astype(np.int32)
    states = {}
    for parts in (1, 4):
        state = programs.init(jax.random.key(0))
        for batch in tokens:
            state = programs.step(state, batch.reshape(parts, 8 // parts, 17))
        states[parts] = state
    np.testing.assert_allclose(states[1].losses, states[4].losses, rtol=1e-5)
    for a, b in zip(*(jax.tree.leaves(s.params) for s in states.values()), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_mixed_precision_trains_float32_parameters():
    decoder = DecoderConfig(50, 1, 16, 24, 2, 2, 8, 32)
    config = pretrain.default().train
    config.steps, config.warmup_steps = 3, 0
    tokens = np.random.default_rng(0).integers(0, 50, (1, 4, 17)).astype(np.int32)
    losses = {}
    for dtype in ("float32", "bfloat16"):
        cast = dataclasses.replace(decoder, dtype=dtype)
        programs = train.make_programs(cast, config, sharding.make_mesh(1, 1), 1)
        state = programs.init(jax.random.key(0))
        for _ in range(3):
            state = programs.step(state, tokens)
        assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
        losses[dtype] = np.asarray(state.losses)
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=0.02)
    assert not np.array_equal(losses["bfloat16"], losses["float32"])


def test_corpus_from_rows(tmp_path):
    (tmp_path / "rows").mkdir()
    for split, count in (("train", 30), ("test", 4)):
        lines = [json.dumps({"text": f"{split} {i} " + "bright film " * 20}) for i in range(count)]
        (tmp_path / "rows" / f"{split}.jsonl").write_text("\n".join(lines))
    made = corpus.load(f"jsonl:{tmp_path / 'rows'}", 300, None, tmp_path / "c", 0.1)
    assert made.about["train_documents"] == 30
    assert made.about["validation_documents"] == 4
    text = made.tokenizer.decode(made.validation.tolist())
    assert all(f"test {i} " in text for i in range(4))
    assert "train" not in text
    (tmp_path / "rows" / "train.jsonl").write_text('{"words": "x"}')
    with pytest.raises(UserError, match="no field 'text' but words"):
        corpus.load(f"jsonl:{tmp_path / 'rows'}", 300, None, tmp_path / "d", 0.1)
    with pytest.raises(UserError, match="no file and no folder"):
        corpus.load("text:/no/such", 300, None, tmp_path / "e", 0.1)


def test_schedule_is_warm_up_then_polynomial_decay():
    config = pretrain.default().train
    config.steps, config.warmup_steps, config.learning_rate = 100, 20, 0.5
    optimizer = train.make_optimizer(config)
    params = {"w": jnp.zeros(())}
    state = optimizer.init(params)
    sizes = []
    for _ in range(100):
        update, state = optimizer.update({"w": jnp.ones(())}, state, params)
        sizes.append(float(-update["w"]))
    # Adam's step for a constant gradient is the learning rate itself.
    np.testing.assert_allclose(sizes[:21], 0.5 * np.arange(21) / 20, atol=1e-4)
    np.testing.assert_allclose(sizes[60], 0.25, atol=1e-3)
    assert sizes[-1] < 0.01


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_export_and_open_again(tmp_path, kind):
    family = {}
    if kind == "gpt2":
        family = {"norm": "layer", "positions": "learned", "mlp": "gelu_new"}
        family |= {"qkv_bias": True, "output_bias": True, "mlp_bias": True}
    attention = pretrain.parse_variant("delta_momentum+momentum ema=0.7 learn=ema,beta,eta")
    config = DecoderConfig(
        400, 2, 16, 24, 4, 4 if family else 2, 4, 32, attention=attention, tied=False, **family
    )
    params = init_params(config, jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    leaves = [x + 0.1 * jnp.arange(x.size).reshape(x.shape) / x.size for x in leaves]
    params = jax.tree.unflatten(tree, leaves)
    save.save(tmp_path / "m", config, params, make_tokenizer(), 0, 1)
    checkpoint = checkpoints.open_checkpoint(str(tmp_path / "m"))
    assert checkpoint.config == config
    loaded = checkpoints.load_params(tmp_path / "m", config)
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


_SHARDED = """
import sys, numpy as np, jax
from icljax.experiments import pretrain, train
from icljax.runtime import sharding
from icljax.models.decoder import DecoderConfig
kinds = pretrain.parse_variant("momentum,delta learn=ema")
decoder = DecoderConfig(64, 2, 16, 32, 4, 4, 4, 32, attention=kinds)
config = pretrain.default().train
config.steps, config.warmup_steps = 3, 1
tokens = np.random.default_rng(0).integers(0, 64, (3, 2, 8, 17)).astype(np.int32)
losses = {}
for shape in ((1, 1), (2, 4)):
    programs = train.make_programs(decoder, config, sharding.make_mesh(*shape), 1)
    state = programs.init(jax.random.key(0))
    for batch in tokens:
        state = programs.step(state, batch)
    losses[shape] = (np.asarray(state.losses), float(programs.evaluate(state.params, tokens[0])))
    split = state.params["layers"]["attention"]["key"]["kernel"].sharding.spec
for shape, (values, after) in losses.items():
    np.testing.assert_allclose(values, losses[1, 1][0], rtol=1e-5)
    np.testing.assert_allclose(after, losses[1, 1][1], rtol=1e-5)
assert split == jax.P(None, None, "model", None), split
print("same on", len(jax.devices()))
"""


@pytest.mark.slow
def test_sharded_equals_one_device():
    env = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    out = subprocess.run(
        [sys.executable, "-c", _SHARDED], env=env, capture_output=True, text=True, check=False
    )
    assert out.stdout == "same on 8\n", out.stderr[-2000:]


def test_a_mesh_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match="does not fit 1 devices"):
        sharding.make_mesh(2, 2, jax.devices()[:1])
    mesh = sharding.make_mesh(-1, 1, jax.devices()[:1])
    assert dict(mesh.shape) == {"data": 1, "model": 1}


@pytest.mark.slow
def test_killed_and_started_again(done, text_folder, reviews, tmp_path):
    """SIGKILL in the middle of the second run; the same command ends with the same numbers."""
    config, _, results = done
    job = tmp_path / "job"
    program = f"""
import sys, json, jax
from pathlib import Path
sys.path[:0] = [{str(Path(__file__).parents[2])!r}]
from tests import conftest
from tests.experiments import test_pretrain
config = test_pretrain.tiny_config(Path({str(text_folder)!r}), Path({str(reviews)!r}))
test_pretrain.run(config, Path({str(job)!r}))
"""
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    second = f"runs/{pretrain.run_name('softmax', 2)}/checkpoints/4"
    deadline = time.monotonic() + 120
    while not (job / second).exists():
        assert process.poll() is None, "it ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (job / "results.json").exists()
    again = run(config, job)
    for key in ("perplexity", "accuracy", "curves", "learned"):
        assert again[key] == results[key], key


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("variants", "softmax; mamba", "mamba.*unknown"),
        ("variants", "momentum ema=1.5", "ema is 1.5"),
        ("variants", "momentum eta", "no option"),
        ("variants", "momentum learn=gamma", "gamma"),
        ("variants", "delta normalize=true", "normalize"),
        ("model.family", "rwkv", "llama"),
        ("model.heads", 3, "divisor"),
        ("train.steps", 0, "above 0"),
        ("icl.tasks", "mr", "TASK=SOURCE"),
        ("text.vocab_size", 100, "256"),
    ],
)
def test_bad_values_are_refused(field, value, match):
    config = pretrain.default()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=match):
        pretrain.validate(config)
