"""Prompts x updates on a tiny model and made-up reviews."""

import dataclasses
import io
import json
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from ml_collections import ConfigDict
from rich.console import Console

from icljax import metrics, records
from icljax.comparison import claims, crossing
from icljax.comparison import crossed as pairs_lib
from icljax.data import prompts
from icljax.errors import UserError
from icljax.experiments import compare, crossed
from icljax.experiments import config as config_lib
from icljax.records import Crossed, RateCurve
from icljax.reports import report
from tests.experiments.test_compare import run as run_compare
from tests.experiments.test_compare import tiny_config

SEEDS = (1, 2, 3, 4, 5)


def crossed_config(folder, reviews, **changes) -> ConfigDict:
    config = config_lib.default()
    config.update(
        {
            "task": "mr",
            "model": str(folder),
            "num_demonstrations": 4,
            "seeds": SEEDS,
            "data": {"source": f"jsonl:{reviews}"},
            "finetune": {"learning_rates": (0.01, 0.1)},
            "selection": {"num_examples": 8},
            "study": {"selection_seeds": 2, "untrained_examples": 4},
            "eval": {"num_examples": 12, "tokens_per_batch": 128},
        }
    )
    config.update_from_flattened_dict(changes)
    return config


def run(config, path):
    console = Console(file=io.StringIO(), width=100)
    compare.validate(config)
    results = compare.run(config, path, console)
    compare.show(results, path, console)
    return results, console.file.getvalue()


@pytest.fixture(scope="module")
def done(tiny_folder, reviews, tmp_path_factory):
    path = tmp_path_factory.mktemp("crossed") / "job"
    results, shown = run(crossed_config(tiny_folder, reviews), path)
    with np.load(path / "examples.npz") as f:
        return path, msgspec.convert(results, Crossed), dict(f), shown


def test_arrays_have_the_shapes_that_are_said(done):
    _, _, arrays, _ = done
    prompts, updates, queries, layers = 2 * len(SEEDS), 3 * len(SEEDS), 12, 3
    assert arrays["logprob_zsl"].shape == (queries, 2)
    assert arrays["logprob_icl"].shape == (prompts, queries, 2)
    assert arrays["logprob_ft"].shape == (updates, queries, 2)
    assert arrays["pair_output"].shape == (prompts, updates, queries, layers)
    assert arrays["label_map"].shape == (len(SEEDS), len(SEEDS), queries, layers)
    for name in pairs_lib.AXES:
        assert np.isfinite(arrays[name]).all(), name


def test_pairs_equal_separate_jobs(done, tiny_folder, reviews, tmp_path):
    """Own pairs are what a job in paper mode measures at the same learning rate."""
    _, results, arrays, _ = done
    config = tiny_config(
        tiny_folder,
        reviews,
        seeds=SEEDS,
        **{
            "finetune.learning_rates": (results.selection.rate,),
            "eval.tokens_per_batch": 128,
        },
    )
    run_compare(config, tmp_path / "job")
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
    tau = arrays["kendall"][0, 0][:, order]  # all labels have one token: nothing is left out
    np.testing.assert_allclose(tau, theirs["kendall"], atol=0.02)
    assert tau.mean() == pytest.approx(theirs["kendall"].mean(), abs=1e-3)
    np.testing.assert_allclose(
        arrays["logprob_ft"][:count][:, order], theirs["logprob_ft"], rtol=1e-4
    )
    np.testing.assert_allclose(
        arrays["step_ft"][:count][:, order], theirs["step_output"], atol=1e-4
    )


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
    change = pairs_lib.Change(np.zeros((4, 1, 2)), output, output[:, :, :, None], output)
    mask, there = np.ones((1, 1, 2), bool), np.ones(1, bool)
    plan = pairs_lib.Plan(2, ("drawn", "wrong"), ("drawn", "wrong"), "wrong")
    got = pairs_lib.contrasts(plan, change, change, mask, there)
    # Right minus wrong: (3, 0) and (1, -2).
    expected = [[1, 1 / 5**0.5], [1 / 5**0.5, 1]]
    for of in ("output", "map"):
        np.testing.assert_allclose(got[f"label_{of}"][:, :, 0, 0], expected, atol=1e-6)
        # Minus the mean over seeds: (1, 0) and (-1, 0).
        specific = got[f"specific_{of}"][:, :, 0, 0]
        np.testing.assert_allclose(specific, [[1, -1], [-1, 1]], atol=1e-6)
    np.testing.assert_allclose(got["label_map_head"][:, 0, 0, 0], [1, 1], atol=1e-6)
    pairs = pairs_lib._alike("pair", change, change, mask)["pair_output"]
    assert pairs[0, 3, 0, 0] == pytest.approx(0)


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
    wrong = claims.own(arrays["pair_output"][:count, count : 2 * count].mean(-1)).mean()
    assert by_name["output", "wrong_labels_ft"].difference.mean == pytest.approx(
        own - wrong, abs=1e-5
    )
    elsewhere = arrays["query_output"].mean()
    assert by_name["output", "other_query"].difference.mean == pytest.approx(
        own - elsewhere, abs=1e-5
    )
    contrast = claims.own(arrays["label_map"])
    assert by_name["label_map", "nothing"].difference.mean == pytest.approx(
        contrast.mean(), abs=1e-5
    )
    np.testing.assert_allclose(results.layers["label_map"].mean, contrast.mean((0, 1)), atol=1e-5)
    of_heads = arrays["label_map_head"]
    np.testing.assert_allclose(of_heads.mean(-1), contrast, atol=1e-5)
    assert results.heads is not None
    np.testing.assert_allclose(results.heads.mean, of_heads.mean((0, 1)).reshape(-1), atol=1e-5)
    part = arrays["specific_map"].mean(-1)
    apart = claims.own(part).mean() - part[~np.eye(count, dtype=bool)].mean()
    assert results.specific["map"].mean == pytest.approx(apart, abs=1e-5)
    by_hand = []
    for i in range(count):
        icl, ft = (
            arrays[f"logprob_{s}"][i] - arrays[f"logprob_{s}"][count + i] for s in ("icl", "ft")
        )
        margins = [x[:, 0] - x[:, 1] for x in (icl, ft)]
        by_hand.append(np.corrcoef(*margins)[0, 1])
    got = by_name["label_answers", "nothing"].difference
    np.testing.assert_allclose(got.per_seed, by_hand, atol=1e-5)
    moved = claims.movements(arrays)
    zsl, icl, ft = (arrays[f"logprob_{s}"] for s in ("zsl", "icl", "ft"))
    expected = metrics.movement_correlation(zsl, ft[2], icl[1])
    assert moved[1, 2, 0] == pytest.approx(float(expected), abs=1e-5)


def test_holm_counts_the_whole_family(done):
    _, results, _, _ = done
    family = [c for c in results.claims if c.measure in claims.FAMILIES[0]]
    assert len(family) == 6 + 5 + 4 + 2  # outputs, maps, Kendall, label contrasts
    assert len(results.claims) == len(family) + 5 + 1
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

    def unused(static):
        return pairs_lib.Programs(*[end] * len(dataclasses.fields(pairs_lib.Programs)))

    monkeypatch.setattr(pairs_lib, "make_programs", unused)
    results, _ = run(config, tmp_path / "job")
    assert "3 seeds are too few" in results["no_verdicts"]
    assert {c["verdict"] for c in results["claims"]} == {""}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": (1, 2)}, "config.seeds"),
        ({"study.margin": 0.0}, "config.study.margin"),
        ({"study.selection_seeds": 0}, "config.study.selection_seeds"),
        ({"study.links": ("wrong_label",)}, "config.study.links"),
        ({"study.links": ("untrained", "untrained")}, "config.study.links"),
        ({"study.methods": ("gd",)}, "config.study.methods .* some of lcgd, lcgd_attention"),
        ({"study.variants": ("permuted_labels",)}, "config.study.variants .* flipped_labels"),
        ({"num_demonstrations": 0}, "config.num_demonstrations"),
        ({"task": "piqa"}, "multiple choice"),
    ],
)
def test_refused_before_anything_is_fetched(tiny_folder, reviews, changes, message):
    with pytest.raises(UserError, match=message):
        compare.validate(crossed_config(tiny_folder, reviews, **changes))


def test_answers_of_one_flag_are_split(tiny_folder, reviews):
    config = crossed_config(tiny_folder, reviews, answers=("foo,bar",))
    compare.validate(config)
    assert config.answers == ("foo", "bar")


def test_selected_rate_is_the_lowest_calibrated_loss(done):
    _, results, _, _ = done
    s = results.selection
    c = s.curve
    columns = zip(c.nll, c.learning_rates, c.loss_start, c.loss_end, strict=True)
    fit = [(nll, rate) for nll, rate, start, end in columns if end <= start]
    assert s.rate == min(fit)[1]
    assert s.seeds == (1, 2)


def test_calibrated_nll_by_hand():
    logprob = np.log([[[0.8, 0.2], [0.4, 0.6]]])
    centred = logprob - logprob.mean(1, keepdims=True)
    among = centred - np.log(np.exp(centred).sum(-1, keepdims=True))
    expected = -(among[0, 0, 0] + among[0, 1, 1]) / 2
    got = claims.calibrated_nll(logprob, np.asarray([0, 1]))
    assert got == pytest.approx(expected, abs=1e-6)


def curve(rates, steps):
    none = (0.0,) * len(rates)
    fields = {field.name: none for field in dataclasses.fields(RateCurve)}
    return RateCurve(**fields | {"learning_rates": rates, "step": steps})


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ((0.01, 0.1, 1.0), 1e-3 * 10**0.5),  # half way, of logarithms
        ((0.5, 0.6, 0.7), 1e-4),  # beyond: the last one
        ((0.01, 0.1, None), 1e-3),  # one diverged
    ],
)
def test_a_rate_with_the_same_step(steps, expected):
    own = curve((0.1, 0.2), (0.1 * 10**0.5, 1.0))
    got = crossed.matched_rate(own, 0.1, curve((1e-4, 1e-3, 1e-2), steps))
    assert got == pytest.approx(expected, rel=1e-6)


def test_random_steps_and_the_untrained_model_take_finetunings_step(done):
    """Each matched on selection examples."""
    _, results, _, _ = done
    wanted = results.steps["ft"].mean
    assert results.steps["random_step"].mean == pytest.approx(wanted, rel=0.2)
    assert len(results.random_scale["random_step"].per_seed) == len(SEEDS)
    s = results.selection
    assert s.untrained.learning_rates == s.curve.learning_rates
    assert min(s.curve.learning_rates) <= s.untrained_rate <= max(s.curve.learning_rates)


def test_own_pairs_of_other_variants_are_described(tiny_folder, reviews, tmp_path):
    config = crossed_config(
        tiny_folder,
        reviews,
        seeds=(1, 2, 3),
        **{
            "study.variants": ("permuted_labels", "flipped_labels"),
            "study.links": ("other_demonstrations", "wrong_labels_ft", "weight_noise"),
        },
    )
    results, _ = run(config, tmp_path / "job")
    assert set(results["variants"]["output"]) == {"permuted_labels", "flipped_labels"}
    links = {c["link"] for c in results["claims"]}
    assert links == {"other_demonstrations", "wrong_labels_ft", "weight_noise", "nothing"}
    assert "Other demonstrations on both sides" in (tmp_path / "job/report.md").read_text()
    assert len(results["matrix"]["output"]) == 6


def test_another_method_is_what_its_own_job_measures(tiny_folder, reviews, tmp_path):
    """At the learning rate that gives it this one's step."""
    changes = {"study.links": ("other_demonstrations",), "study.variants": (), "seeds": (1, 2, 3)}
    both = {**changes, "study.methods": ("lcgd",), "finetune.learning_rates": (1e-4, 1e-2, 1.0)}
    run(crossed_config(tiny_folder, reviews, **both), tmp_path / "both")
    found = records.open_crossed(tmp_path / "both")
    rate = found.results.selection.methods["lcgd"].rate
    alone = {**changes, "finetune.method": "lcgd", "finetune.learning_rates": (rate,)}
    run(crossed_config(tiny_folder, reviews, **alone), tmp_path / "alone")
    theirs = records.open_crossed(tmp_path / "alone")
    assert found.results.updates == ("drawn", "lcgd")
    lcgd = found.examples.pair_output[:, found.examples.update_name.to_numpy() == "lcgd"]
    np.testing.assert_allclose(lcgd, theirs.examples.pair_output, atol=1e-4)
    other = found.results.methods["lcgd"]
    for measure, similarity in other.similarity.items():
        expected = theirs.results.own[measure].mean
        assert similarity.mean == pytest.approx(expected, abs=1e-4)
        apart = found.results.own[measure].mean - expected
        assert other.difference[measure].mean == pytest.approx(apart, abs=1e-4)
    assert other.accuracy_calibrated.mean == theirs.results.accuracy_calibrated["ft"].mean
    assert found.results.steps["lcgd"].mean == pytest.approx(
        found.results.steps["ft"].mean, rel=0.5
    )
    assert "Other ways to finetune" in (tmp_path / "both/report.md").read_text()


def test_only_tokens_that_all_variants_have_are_compared():
    """One seed, two variants: the second's first label has a token more."""
    encoder = SimpleNamespace(bos=[1], separator=[2])
    drawn, wrong = [[5, 6, 7], [8, 9]], [[5, 6, 3, 4], [8, 3]]
    shown = prompts.build_demonstrations([drawn, wrong], encoder)
    got = crossing.aligned(shown, 1)
    assert (got.example >= 0).sum(1).tolist() == [5, 5]
    for p, tokens in enumerate(([5, 6, 7, 8, 9], [5, 6, 3, 8, 3])):
        assert got.example[p, :6].tolist() == [0, 0, 0, 1, 1, -1]
        assert shown.context[p, got.columns[p, :5]].tolist() == tokens
        assert shown.train[p].reshape(-1)[got.train_index[p, :5]].tolist() == tokens


def test_kendall_by_hand():
    """One seed, two queries, one layer: ICL ranks the tokens as FT does on the other query."""
    icl, ft = np.asarray([[1.0, 2, 3], [3, 2, 1]]), np.asarray([[3.0, 2, 1], [1, 2, 3]])
    none = np.zeros((1, 2, 1, 0))
    sides = [pairs_lib.Change(none, none, none, x[None, :, None]) for x in (icl, ft)]
    plan = pairs_lib.Plan(1, ("drawn",), ("drawn",), tokens=True)
    got = pairs_lib.rankings(plan, *sides, np.ones(2, bool))
    np.testing.assert_allclose(got["kendall"][0, 0, 0, :, 0], [-1, -1])
    np.testing.assert_allclose(got["query_kendall"][0, :, 0], [1, 1])


def test_arrays_are_read_with_names_on_their_axes(done):
    path, results, arrays, _ = done
    job = records.open_crossed(path)
    assert job.results == results
    pairs = job.examples["pair_output"]
    assert pairs.dims == ("prompt", "update", "example", "layer")
    flipped = pairs.where(
        (job.examples.prompt_name == "drawn") & (job.examples.update_name == "flipped_labels"),
        drop=True,
    )
    count = len(SEEDS)
    np.testing.assert_array_equal(flipped, arrays["pair_output"][:count, count : 2 * count])
    assert flipped.update_seed.values.tolist() == list(SEEDS)
    assert job.examples["kendall"].dims[:3] == ("icl_labels", "ft_labels", "seed")
    assert job.examples["label_map"].dims == ("seed", "ft_seed", "example", "layer")


def test_folders_that_hold_no_crossed_comparison(done, tmp_path):
    with pytest.raises(UserError, match=r"holds no results\.json of a crossed"):
        records.open_crossed(tmp_path)
    (tmp_path / "results.json").write_bytes((done[0] / "results.json").read_bytes())
    with pytest.raises(UserError, match=r"examples.npz cannot be read .*; run the job again"):
        records.open_crossed(tmp_path)


def test_jobs_of_several_tasks_are_merged(done, tmp_path):
    """The same claims in columns, one a task; "b" has verdicts."""
    path, _, _, _ = done
    found = json.loads((path / "results.json").read_text())
    decided = found | {"task": "b", "no_verdicts": ""}
    decided["claims"] = [c | {"verdict": "equal"} for c in found["claims"]]
    for name, content in (("a", found), ("b", decided)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(content))
    report.merge([tmp_path], tmp_path / "out")
    text = (tmp_path / "out/report.md").read_text()
    line = next(x for x in text.splitlines() if x.startswith("| FT's update of another query"))
    claim = next(c for c in found["claims"] if c["link"] == "other_query")
    mean = f"{claim['difference']['mean']:+.4f}"
    first, second = line.split(" | ")[1:]
    assert mean in first
    assert second.startswith("**equal within the margin**")
    assert "The paper's tables" not in text
