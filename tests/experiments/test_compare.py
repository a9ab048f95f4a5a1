"""The whole job on a tiny model and made-up reviews: files, reruns, refusals, invariances."""

import contextlib
import functools
import io
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from rich.console import Console

from icljax import checkpoints, metrics
from icljax.comparison import inputs, memory, programs
from icljax.comparison import weights as weights_lib
from icljax.errors import UserError
from icljax.experiments import compare, paper
from icljax.experiments import config as config_lib
from icljax.runtime import workdir
from tests.conftest import undrawn, write_folder

SIMILARITIES = ("sim_aou", "sim_aou_random", "sim_am_before", "sim_am")
RANKS = ("kendall", "kendall_random")


def tiny_config(folder, reviews, **changes) -> ConfigDict:
    config = config_lib.default()
    config.update(
        {
            "mode": "paper",
            "task": "mr",
            "model": str(folder),
            "num_demonstrations": 4,
            "seeds": (1, 2),
            "select_seed": False,
            "record_position": "answer",
            "data": {"source": f"jsonl:{reviews}"},
            "finetune": {"learning_rates": (0.01, 0.1)},
            "selection": {"num_examples": 8, "split": "train"},
            "eval": {"num_examples": 12},
            "metrics": {"bootstrap_samples": 200, "random_update": "gaussian"},
        }
    )
    config.update_from_flattened_dict(changes)
    return config


def run(config, path, drawn=False):
    console = Console(file=io.StringIO(), width=100)
    with contextlib.nullcontext() if drawn else undrawn():
        results = compare.run(config, path, console)
    (path.parent / "console.txt").write_text(console.file.getvalue())
    return results


@pytest.fixture(scope="module")
def done(tiny_folder, reviews, tmp_path_factory):
    path = tmp_path_factory.mktemp("work") / "job"
    config = tiny_config(tiny_folder, reviews)
    return config, path, run(config, path, drawn=True)


def test_examples_npz(done):
    _, path, _ = done
    with np.load(path / "examples.npz") as f:
        arrays = dict(f)
    assert arrays["label"].shape == arrays["index"].shape == arrays["pred_zsl"].shape == (12,)
    assert arrays["logprob_zsl"].shape == (12, 2)
    for setting in ("icl", "ft"):
        assert arrays[f"pred_{setting}"].shape == (2, 12)
        assert arrays[f"logprob_{setting}"].shape == (2, 12, 2)
    for name in SIMILARITIES + RANKS:
        assert arrays[name].shape == (2, 12, 3), name
        assert np.isfinite(arrays[name]).all(), name
        assert np.abs(arrays[name]).max() <= 1 + 1e-5, name
    source = Path(done[0].data.source.removeprefix("jsonl:")) / "validation.jsonl"
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    assert arrays["label"].tolist() == [rows[i]["label"] for i in arrays["index"]]


def test_results_agree_with_the_examples(done):
    _, path, results = done
    with np.load(path / "examples.npz") as f:
        arrays = dict(f)
    stored = json.loads((path / "results.json").read_text())
    assert stored == results
    label = arrays["label"]
    for setting in ("zsl", "icl", "ft"):
        mean = np.mean(arrays[f"pred_{setting}"] == label)
        assert results["accuracy"][setting]["mean"] == pytest.approx(mean, abs=1e-6)
        centred = np.asarray(metrics.calibrate(arrays[f"logprob_{setting}"]))
        mean = np.mean(centred.argmax(-1) == label)
        assert results["accuracy_calibrated"][setting]["mean"] == pytest.approx(mean, abs=1e-6)
    wrong = (arrays["pred_zsl"] != label)[None]
    ft_only = wrong & (arrays["pred_ft"] == label)
    both = ft_only & (arrays["pred_icl"] == label)
    assert results["rec2ftp"]["ft_right_zsl_wrong"] == ft_only.sum()
    assert results["rec2ftp"]["icl_and_ft_right_zsl_wrong"] == both.sum()
    for name in ("sim_aou", "kendall"):
        assert results["similarities"][name]["mean"] == pytest.approx(arrays[name].mean(), abs=1e-5)
        np.testing.assert_allclose(
            results["similarities"][name]["per_layer"], arrays[name].mean((0, 1)), atol=1e-5
        )
        low, high = results["similarities"][name]["interval"]
        assert low < results["similarities"][name]["mean"] < high
        baseline = next(iter(results["similarities"][name]["baselines"].values()))
        assert baseline["mean"] == pytest.approx(arrays[name + "_random"].mean(), abs=1e-5)
    assert sum(results["agreement"]["patterns"].values()) == pytest.approx(1, abs=1e-5)


def test_report_and_figures_are_there(done):
    _, path, _ = done
    assert (path / "report.md").stat().st_size > 1000
    assert len(list((path / "figures").glob("*.png"))) >= 3


def test_rerun_only_shows_the_result(done, monkeypatch):
    config, path, results = done
    monkeypatch.setattr(checkpoints, "open_checkpoint", lambda *_: pytest.fail("ran again"))
    assert run(config, path) == results


def test_another_config_is_refused_and_named(done):
    config, path, _ = done
    other = ConfigDict(config.to_dict())
    other.seeds, other.prompt.separator = (5,), "<eos>"
    expected = r"another config \(prompt.separator was '\\n', now '<eos>'; seeds was \[1, 2\], now"
    with pytest.raises(UserError, match=expected):
        run(other, path)


def test_foreign_workdir_is_refused(tiny_folder, reviews, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        run(tiny_config(tiny_folder, reviews), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_unwritable_workdir_is_refused(tiny_folder, reviews, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        run(tiny_config(tiny_folder, reviews), tmp_path / "file" / "job")


def test_batching_does_not_change_anything(done, tiny_folder, reviews, tmp_path, monkeypatch):
    """Fewer queries, runs and seeds at once."""
    monkeypatch.setattr(memory, "seeds_at_once", lambda *_: 1)
    small = tiny_config(
        tiny_folder, reviews, **{"eval.tokens_per_batch": 256, "finetune.runs_at_once": 3}
    )
    run(small, tmp_path / "job")
    with np.load(done[1] / "examples.npz") as a, np.load(tmp_path / "job/examples.npz") as b:
        for name in a.files:
            # Rounding may swap two near-equal tokens in a ranking.
            ranks = name.startswith(("kendall", "recall"))
            atol = 0.02 if ranks else 1e-4
            np.testing.assert_allclose(a[name], b[name], atol=atol, rtol=1e-4, err_msg=name)


def test_demonstrations_are_dropped_for_icl_and_ft_alike(tiny_folder, reviews):
    config = tiny_config(tiny_folder, reviews, **{"prompt.max_length": 90})
    notes: list[str] = []
    made = inputs.prepare(config, checkpoints.open_checkpoint(config.model), notes.append)
    assert max(made.used) < 4
    assert min(made.used) >= 1
    assert any("Demonstrations used" in note for note in notes)
    for demonstrations in (made.demonstrations, *made.changed.values()):
        in_prompt = [len(set(row[row >= 0])) for row in demonstrations.example]
        trained_on = np.sum(demonstrations.train_length > 0, 1)
        assert in_prompt == trained_on.tolist() == made.used


def test_no_demonstration_fits(tiny_folder, reviews, tmp_path):
    config = tiny_config(tiny_folder, reviews, **{"prompt.max_length": 40})
    with pytest.raises(UserError, match="no demonstration fits"):
        run(config, tmp_path / "job")


def test_selecting_as_the_paper_does(tiny_folder, reviews, tmp_path):
    config = tiny_config(
        tiny_folder,
        reviews,
        **{"selection.split": "validation", "select_seed": True},
    )
    results = run(config, tmp_path / "job")
    with np.load(tmp_path / "job/examples.npz") as f:
        accuracy = np.mean(f["pred_icl"] == f["label"], 1)
    best = results["selection"]["best_seed"]
    assert best["seed"] == (1, 2)[accuracy.argmax()]
    assert results["accuracy"]["icl"]["mean"] == pytest.approx(accuracy.max(), abs=1e-6)
    assert "validation" in results["selection"]["selected_on"]


def test_seed_selected_on_held_out_examples(tiny_folder, reviews, tmp_path):
    changes = {"select_seed": True}
    results = run(tiny_config(tiny_folder, reviews, **changes), tmp_path / "job")
    best = results["selection"]["best_seed"]
    assert best["icl_accuracy"][(1, 2).index(best["seed"])] == max(best["icl_accuracy"])


def test_loss_not_finite_at_any_rate(tiny_folder, reviews, tmp_path):
    config = tiny_config(tiny_folder, reviews, **{"finetune.learning_rates": (2e38, 3e38)})
    with pytest.raises(UserError, match=r"seed 1: .*no finite loss at any learning rate"):
        run(config, tmp_path / "job")


def test_one_bad_rate_is_passed_over(tiny_folder, reviews, tmp_path):
    changes = {"finetune.learning_rates": (0.01, 3e38)}
    results = run(tiny_config(tiny_folder, reviews, **changes), tmp_path / "job")
    assert results["selection"]["learning_rate"] == [0.01, 0.01]
    assert [row[1] for row in results["selection"]["accuracy"]] == [None, None]


def test_untrained_weights_keep_what_they_say(tiny_folder):
    checkpoint = checkpoints.open_checkpoint(str(tiny_folder))
    params = checkpoints.load_params(checkpoint.folder, checkpoint.config)
    initialize = functools.partial(programs.initialize, checkpoint.config)
    kept, fresh = (
        weights_lib.reinitialize(params, weights, initialize, 0)
        for weights in ("untrained_keep_embeddings", "untrained")
    )
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path)
        same = [
            np.array_equal(leaf, dict(jax.tree_util.tree_leaves_with_path(p))[path])
            for p in (kept, fresh)
        ]
        assert same == ["embed" in name or "norm" in name, False], name


@pytest.mark.slow
def test_gpt2_folder_runs_through_the_same_code(reviews, tmp_path):
    rng = np.random.default_rng(0)

    def matrix(*shape):
        return (0.2 * rng.standard_normal(shape)).astype(np.float32)

    tensors = {"wte.weight": matrix(400, 16), "wpe.weight": matrix(512, 16)}
    for layer in range(2):
        for name, shape in {
            "ln_1": (16,),
            "ln_2": (16,),
            "attn.c_attn": (16, 48),
            "attn.c_proj": (16, 16),
            "mlp.c_fc": (16, 64),
            "mlp.c_proj": (64, 16),
        }.items():
            tensors[f"h.{layer}.{name}.weight"] = matrix(*shape)
            tensors[f"h.{layer}.{name}.bias"] = matrix(shape[-1])
    tensors |= {"ln_f.weight": matrix(16), "ln_f.bias": matrix(16)}
    config = {
        "model_type": "gpt2",
        "vocab_size": 400,
        "n_layer": 2,
        "n_embd": 16,
        "n_head": 2,
        "n_positions": 512,
        "activation_function": "gelu_new",
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    folder = write_folder(tmp_path / "gpt2", config, tensors)
    changes = {"answers": ("very good film", "bad")}
    results = run(tiny_config(folder, reviews, **changes), tmp_path / "job")
    assert len(results["similarities"]["sim_aou"]["per_layer"]) == 2


def test_a_mistake_does_not_lock_the_workdir(tiny_folder, reviews, tmp_path):
    wrong = tiny_config(tiny_folder, reviews, **{"prompt.max_length": 40})
    with pytest.raises(UserError, match="no demonstration fits"):
        run(wrong, tmp_path / "job")
    right = tiny_config(
        tiny_folder,
        reviews,
    )
    assert run(right, tmp_path / "job")["config"]["prompt"]["max_length"] == 0


def test_interrupted_job_starts_again(tiny_folder, reviews, tmp_path):
    config = tiny_config(
        tiny_folder,
        reviews,
    )
    with workdir.claimed(tmp_path / "job", config) as done:
        assert done is None
    assert run(config, tmp_path / "job")["task"] == "mr"


@pytest.mark.slow
def test_every_kind_of_attention_runs_through_the_same_code(done, tiny_folder, reviews, tmp_path):
    """Layers of a linear kind with momentum, momentum attention and softmax, in one model."""
    changes = {
        "attention.kind": "delta_momentum,momentum,softmax",
        "attention.ema": 0.3,
    }
    results = run(tiny_config(tiny_folder, reviews, **changes), tmp_path / "job")
    assert "delta_momentum,momentum,softmax" in (tmp_path / "job/report.md").read_text()
    assert np.shape(results["similarities"]["sim_update"]["per_layer_head"]) == (3, 2)
    with np.load(done[1] / "examples.npz") as a, np.load(tmp_path / "job/examples.npz") as b:
        for name in (*SIMILARITIES, *RANKS, "sim_update", "update_share_ft"):
            assert np.isfinite(b[name]).all(), name
            assert b[name].shape == a[name].shape
        assert np.abs(a["logprob_zsl"] - b["logprob_zsl"]).max() > 0.01


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("kind", "linaer", "linaer.*unknown; expected softmax, momentum"),
        ("kind", "softmax+delta", "unknown"),
        ("eta", 1.0, "eta is 1.0; expected at least 0 and below 1"),
        ("feature_map", "relu", "identity or elu"),
        ("normalize", True, "delta rule"),
        ("implementation", "cuda", "one of auto, xla"),
    ],
)
def test_attention_that_has_no_meaning_is_refused(field, value, match):
    config = config_lib.default()
    config.attention.kind = "delta"
    config.attention[field] = value
    with pytest.raises(UserError, match=match):
        config_lib.validate(config)


def test_a_number_that_is_not_one_ends_the_job(tiny_folder, reviews, tmp_path, monkeypatch):
    """With NaN of its own the job says where."""
    settings_compared = paper.compare_settings

    def nothing(*args):
        out = settings_compared(*args)
        out.logprob_zsl[3] = np.nan
        return out

    monkeypatch.setattr(paper, "compare_settings", nothing)
    with pytest.raises(UserError, match=r"example \d+ .*: zero-shot gives log-probabilities \[nan"):
        run(tiny_config(tiny_folder, reviews), tmp_path / "b")
    assert not (tmp_path / "b/results.json").exists()
    assert list((tmp_path / "b/progress").glob("*.npz"))  # what was computed is kept
