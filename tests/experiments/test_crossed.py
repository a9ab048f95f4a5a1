"""Prompts x updates on a tiny model and made-up reviews."""

import io
import json

import msgspec
import numpy as np
import pytest
from ml_collections import ConfigDict
from rich.console import Console

from icljax import metrics
from icljax.comparison import claims
from icljax.comparison import crossed as pairs_lib
from icljax.errors import UserError
from icljax.experiments import crossed
from icljax.records import Crossed
from tests.experiments.test_compare import run as run_compare
from tests.experiments.test_compare import tiny_config

SEEDS = (1, 2, 3, 4, 5)


def crossed_config(folder, reviews, **changes) -> ConfigDict:
    config = crossed.default()
    config.update(
        {
            "task": "mr",
            "model": str(folder),
            "num_demonstrations": 4,
            "seeds": SEEDS,
            "data": {"source": f"jsonl:{reviews}"},
            "finetune": {"learning_rates": (0.01, 0.1)},
            "selection": {"num_examples": 8},
            "selection_seeds": 2,
            "eval": {"num_examples": 12, "tokens_per_batch": 128},
        }
    )
    config.update_from_flattened_dict(changes)
    return config


def run(config, path):
    console = Console(file=io.StringIO(), width=100)
    crossed.validate(config)
    results = crossed.run(config, path, console)
    crossed.show(results, path, console)
    return results, console.file.getvalue()


@pytest.fixture(scope="module")
def done(tiny_folder, reviews, tmp_path_factory):
    path = tmp_path_factory.mktemp("crossed") / "job"
    results, shown = run(crossed_config(tiny_folder, reviews), path)
    with np.load(path / "examples.npz") as f:
        return path, msgspec.convert(results, Crossed), dict(f), shown


def test_arrays_have_the_shapes_that_are_said(done):
    _, _, arrays, _ = done
    count, queries, layers = 2 * len(SEEDS), 12, 3
    assert arrays["logprob_zsl"].shape == (queries, 2)
    assert arrays["logprob_icl"].shape == arrays["logprob_ft"].shape == (count, queries, 2)
    assert arrays["pair_output"].shape == (count, count, queries, layers)
    assert arrays["label_map"].shape == (len(SEEDS), len(SEEDS), queries, layers)
    for name in pairs_lib.AXES:
        assert np.isfinite(arrays[name]).all(), name


def test_pairs_equal_separate_jobs(done, tiny_folder, reviews, tmp_path):
    """The comparison, its flipped labels and its other seed are pairs of the same matrix."""
    _, results, arrays, _ = done
    config = tiny_config(
        tiny_folder,
        reviews,
        seeds=SEEDS,
        **{
            "finetune.learning_rates": (results.selection.rate,),
            "controls.names": ("flipped_labels", "other_seed"),
            "controls.num_examples": 12,
            "eval.tokens_per_batch": 128,
        },
    )
    separate = run_compare(config, tmp_path / "job")
    with np.load(tmp_path / "job" / "examples.npz") as f:
        theirs = dict(f)
    count = len(SEEDS)
    order = [arrays["index"].tolist().index(i) for i in theirs["index"]]
    matrix = arrays["pair_output"][:, :, order]
    own = claims.own(matrix[:count, :count])
    # Cosines of small changes in float32, from runs that were finetuned in other company.
    np.testing.assert_allclose(own, theirs["sim_aou_unnormalized"], atol=5e-5)
    assert own.mean() == pytest.approx(theirs["sim_aou_unnormalized"].mean(), abs=1e-5)
    maps = claims.own(arrays["pair_map"][:count, :count][:, :, order])
    np.testing.assert_allclose(maps, theirs["sim_am_delta"], atol=5e-5)
    np.testing.assert_allclose(
        arrays["logprob_ft"][:count][:, order], theirs["logprob_ft"], rtol=1e-4
    )
    np.testing.assert_allclose(
        arrays["step_ft"][:count][:, order], theirs["step_output"], atol=1e-4
    )
    of_controls = {
        k: c["similarities"]["sim_aou_unnormalized"]["mean"]
        for k, c in separate["controls"].items()
    }
    flipped = claims.own(matrix[count:, count:]).mean()
    assert of_controls["flipped_labels"] == pytest.approx(flipped, abs=1e-5)
    next_seed = np.mean([matrix[i, (i + 1) % count] for i in range(count)])
    assert of_controls["other_seed"] == pytest.approx(next_seed, abs=1e-5)


def test_another_query_is_the_next_one_of_the_batch():
    there = np.asarray([True, False, True, True, False])
    assert np.asarray(pairs_lib._next_query(there)).tolist() == [2, -1, 3, 0, -1]
    alone = np.asarray([False, True, False])
    assert np.asarray(pairs_lib._next_query(alone)).tolist() == [-1, -1, -1]


def test_contrasts_by_hand():
    """Two seeds, one query, one layer, width 2; maps of one head and two tokens."""
    right = np.asarray([[3.0, 0], [1, 0]])
    wrong = np.asarray([[0.0, 0], [0, 2]])
    output = np.concatenate([right, wrong])[:, None, None]
    change = pairs_lib.Change(np.zeros((4, 1, 2)), output, output[:, :, :, None])
    mask, there = np.ones((1, 1, 2), bool), np.ones(1, bool)
    got = pairs_lib.pairs(change, change, mask, there, 2)
    # Right minus wrong: (3, 0) and (1, -2).
    expected = [[1, 1 / 5**0.5], [1 / 5**0.5, 1]]
    for of in ("output", "map"):
        np.testing.assert_allclose(got[f"label_{of}"][:, :, 0, 0], expected, atol=1e-6)
        # Minus the mean over seeds: (1, 0) and (-1, 0).
        specific = got[f"specific_{of}"][:, :, 0, 0]
        np.testing.assert_allclose(specific, [[1, -1], [-1, 1]], atol=1e-6)
    assert got["pair_output"][0, 3, 0, 0] == pytest.approx(0)


def test_claims_agree_with_the_arrays(done):
    _, results, arrays, _ = done
    count = len(SEEDS)
    true = arrays["pair_output"][:count, :count].mean(-1)
    by_name = {(c.measure, c.link): c for c in results.claims}
    claim = by_name["output", "other_demonstrations"]
    own = claims.own(true).mean()
    others = true[~np.eye(count, dtype=bool)].mean()
    assert claim.difference.mean == pytest.approx(own - others, abs=1e-5)
    assert results.own["output"].mean == pytest.approx(own, abs=1e-5)
    wrong = claims.own(arrays["pair_output"][:count, count:].mean(-1)).mean()
    assert by_name["output", "wrong_labels_ft"].difference.mean == pytest.approx(
        own - wrong, abs=1e-5
    )
    elsewhere = arrays["query_output"][:count].mean()
    assert by_name["output", "other_query"].difference.mean == pytest.approx(
        own - elsewhere, abs=1e-5
    )
    contrast = claims.own(arrays["label_map"])
    assert by_name["label_map", "nothing"].difference.mean == pytest.approx(
        contrast.mean(), abs=1e-5
    )
    np.testing.assert_allclose(results.layers["label_map"].mean, contrast.mean((0, 1)), atol=1e-5)
    moved = claims.movements(arrays)
    zsl, icl, ft = (arrays[f"logprob_{s}"] for s in ("zsl", "icl", "ft"))
    expected = metrics.movement_correlation(zsl, ft[2], icl[1])
    assert moved[1, 2, 0] == pytest.approx(float(expected), abs=1e-5)


def test_holm_counts_the_whole_family(done):
    _, results, _, _ = done
    family = [c for c in results.claims if c.measure in claims.FAMILIES[0]]
    assert len(family) == 9
    assert len(results.claims) == 12
    assert {len(c.difference.per_seed) for c in results.claims} == {len(SEEDS)}


def test_report_says_the_answer_first(done):
    path, results, _, shown = done
    text = (path / "report.md").read_text()
    first = text[: text.index("##")]
    assert "above zero-shot in calibrated accuracy" in first
    assert ("No verdicts" in first) == bool(results.no_verdicts)
    assert "above zero-shot in calibrated accuracy" in " ".join(shown.split())
    assert (path / "figures" / "matrix.png").stat().st_size > 0
    page = (path / "report.html").read_text()
    assert "Every prompt with every update" in page
    assert "wrong labels" in page
    assert json.loads((path / "results.json").read_text())["margin"] == 0.03


def test_goes_on_after_an_end_without_reading_again(tiny_folder, reviews, tmp_path, monkeypatch):
    config = crossed_config(tiny_folder, reviews, seeds=(1, 2, 3))
    broken = RuntimeError("ended here")

    def end(*_):
        raise broken

    with monkeypatch.context() as patch:
        patch.setattr(crossed, "summarize", end)
        with pytest.raises(RuntimeError, match="ended here"):
            run(config, tmp_path / "job")

    def unused(static, num_seeds):
        return pairs_lib.Programs(cross=end, score=end)

    monkeypatch.setattr(pairs_lib, "make_programs", unused)
    results, _ = run(config, tmp_path / "job")
    assert "3 seeds are too few" in results["no_verdicts"]
    assert {c["verdict"] for c in results["claims"]} == {""}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": (1, 2)}, "config.seeds"),
        ({"margin": 0.0}, "config.margin"),
        ({"selection_seeds": 0}, "config.selection_seeds"),
        ({"num_demonstrations": 0}, "config.num_demonstrations"),
        ({"task": "piqa"}, "multiple choice"),
    ],
)
def test_refused_before_anything_is_fetched(tiny_folder, reviews, changes, message):
    with pytest.raises(UserError, match=message):
        crossed.validate(crossed_config(tiny_folder, reviews, **changes))


def test_answers_of_one_flag_are_split(tiny_folder, reviews):
    config = crossed_config(tiny_folder, reviews, answers=("foo,bar",))
    crossed.validate(config)
    assert config.answers == ("foo", "bar")


def test_selected_rate_is_the_lowest_calibrated_loss(done):
    _, results, _, _ = done
    s = results.selection
    fit = [
        (nll, rate)
        for nll, rate, start, end in zip(
            s.nll, s.learning_rates, s.loss_start, s.loss_end, strict=True
        )
        if end <= start
    ]
    assert s.rate == min(fit)[1]
    assert s.seeds == (1, 2)


def test_calibrated_nll_by_hand():
    logprob = np.log([[[0.8, 0.2], [0.4, 0.6]]])
    centred = logprob - logprob.mean(1, keepdims=True)
    among = centred - np.log(np.exp(centred).sum(-1, keepdims=True))
    expected = -(among[0, 0, 0] + among[0, 1, 1]) / 2
    got = crossed.calibrated_nll(logprob, np.asarray([0, 1]))
    assert got == pytest.approx(expected, abs=1e-6)
