"""The report of made-up numbers, laid out by `results` itself so that they cannot drift."""

import copy
import io
import json
import re
import subprocess
import sys
import types

import numpy as np
import pytest
from rich.console import Console

from icljax import results
from icljax.catalog import SETTINGS, SIMILARITIES
from icljax.checkpoints.origin import Origin
from icljax.comparison import statistics
from icljax.comparison.grid import Chosen, Dose
from icljax.comparison.pairs import NAMES
from icljax.comparison.reading import Comparison
from icljax.data.tasks import get_task
from icljax.experiments import config as config_lib
from icljax.reports import baselines, figures, job, markup, plots, rates, report
from icljax.reports import summary as summaries
from icljax.reports.tables import DOSE_SIMILARITIES

SEEDS, EXAMPLES, LAYERS = (3, 7), 16, 5
SELECTION_EXAMPLES = 8
RATES = (0.001, 0.01, 0.1)
FIGURES = {
    "accuracy",
    "agreement",
    "dose_response",
    "selection",
    "similarity",
    "update",
}
LABELS = (np.arange(EXAMPLES) % 3 == 0).astype(int)


def make_comparison(seed=0, examples=EXAMPLES):
    """Random numbers laid out as `programs.compare_settings` lays them out."""
    rng = np.random.default_rng(seed)
    lead = {"zsl": (), "icl": (len(SEEDS),), "ft": (len(SEEDS),)}
    logprob = {s: rng.normal(size=(*a, examples, 2)).astype(np.float32) for s, a in lead.items()}

    def similarity(name):
        shape = (len(SEEDS), examples, LAYERS, *((2,) if "update" in name else ()))
        return rng.uniform(-0.2, 0.9, shape).astype(np.float32)

    fields = {name: similarity(name) for name in NAMES}
    return Comparison(np.arange(examples), logprob["zsl"], logprob["icl"], logprob["ft"], fields)


def make_dose(rng):
    """The learning-rate grid; the first seed diverges at the highest rate."""
    shape = len(SEEDS), len(RATES)
    converged = np.ones(shape, bool)
    converged[0, -1] = False

    def fields(last):
        values = (rng.uniform(-0.2, 0.9, (*shape, last)) for _ in NAMES)
        return {
            name: np.where(converged[..., None], x, np.nan).astype(np.float32)
            for name, x in zip(NAMES, values, strict=True)
        }

    correct = (rng.uniform(size=(*shape, SELECTION_EXAMPLES)) < 0.6) & converged[..., None]
    return Dose(correct, fields(SELECTION_EXAMPLES), fields(LAYERS))


def make_config():
    config = config_lib.default()
    config.mode, config.record_position, config.select_seed = "paper", "answer", False
    config.seeds, config.finetune.learning_rates = SEEDS, RATES
    config.metrics.bootstrap_samples = 50
    config.num_demonstrations = 4
    return config


def make_job(stand_in="", answers=None):
    task = get_task("mr")
    dataset = types.SimpleNamespace(
        stand_in=stand_in,
        source="jsonl:reviews",
        fingerprint="f" * 64,
        notes=["a | b"],
        validation=types.SimpleNamespace(labels=np.zeros(1066)),
    )
    if answers is not None:
        task = types.SimpleNamespace(name="mr", template=task.template, answers=answers)
    return types.SimpleNamespace(
        encoder=types.SimpleNamespace(task=task),
        dataset=dataset,
        used=[4, 3],
        selection_labels=np.zeros(64),
        selected_on="examples of the train part whose texts are in no seed's demonstrations",
        duplicates=results.Duplicates(kept=False, evaluated=1234, repeated=5),
        notes=(),
        labels=LABELS,
        rows=np.arange(EXAMPLES),
    )


def make_results(folder, arrays, job=None, best_seed=None, **changes):
    """Results as a job makes them, after a round trip through JSON."""
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text("{}")
    config = make_config()
    config.update_from_flattened_dict(changes)
    loss = np.array([[5.0, 4.0, np.nan], [5.5, 4.5, 900.0]])  # one diverged, one nearly
    dose = make_dose(np.random.default_rng(9))
    chosen = Chosen(None, np.array([1, 0]), loss / 1000, loss / 1000, loss, dose)
    origin = Origin("instruct", "Q4_1: Q4_1 79 %, Q8_0 21 %", "folder tiny")
    dtype = types.SimpleNamespace(dtype="float32")
    checkpoint = types.SimpleNamespace(folder=folder, config=dtype, origin=origin)
    given = (config, checkpoint, job or make_job(), chosen, arrays, best_seed)
    summary = results.to_plain(statistics.summarize(*given))
    summary["seconds"] = {"finetune": 61.25, "compare": 2.5}
    return json.loads(json.dumps(summary, allow_nan=False))


def typed(summary):
    return results.from_plain(summary)


def markdown(summary):
    return markup.markdown(job.report(typed(summary)), ())


@pytest.fixture(scope="module")
def arrays():
    return statistics.example_arrays(make_job(), make_comparison())


@pytest.fixture(scope="module")
def summary(tmp_path_factory, arrays):
    return make_results(tmp_path_factory.mktemp("model"), arrays)


@pytest.fixture(scope="module")
def of_best_seed(tmp_path_factory, arrays):
    return make_results(tmp_path_factory.mktemp("model"), arrays, best_seed=(1, [0.5, 0.75]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, summary):
    path = tmp_path_factory.mktemp("report")
    report.write(path, job.report(typed(summary)))
    return path


@pytest.fixture
def text(folder):
    return (folder / "report.md").read_text()


def table(text, first_header, *more):
    """The rows below the table header that starts with these cells, as lists of cells."""
    head = "| " + " | ".join((first_header, *more)) + " |"
    lines = text[text.index(head) :].split("\n\n")[0].splitlines()
    return [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def nulled(tree):
    """Every measured float made None: what JSON holds for an undefined number."""
    given = ("config", "learning_rates", "learning_rate", "majority")
    if isinstance(tree, dict):
        return {k: v if k in given else nulled(v) for k, v in tree.items()}
    if isinstance(tree, list):
        return [nulled(v) for v in tree]
    return None if isinstance(tree, float) else tree


def shown(summary, path, width=200):
    out = io.StringIO()
    summaries.show(summary, path, Console(file=out, width=width, force_terminal=False))
    return out.getvalue()


# ------------------------------------------------------------------------------------ results.json


def brute_force(values, num_examples):
    """Percentile interval of the mean of [R, N], resample by resample."""
    drawn = statistics.draw_resamples(make_config(), len(values), num_examples)
    means = []
    for examples, seeds in zip(*map(np.asarray, drawn), strict=True):
        picked = values.repeat(seeds.astype(int), 0).repeat(examples.astype(int), 1)
        means.append(np.nanmean(picked))
    return np.quantile(means, [0.025, 0.975])


def check_average(given, values):
    assert given["mean"] == pytest.approx(np.nanmean(values), abs=2e-6)
    np.testing.assert_allclose(given["interval"], brute_force(values, values.shape[1]), atol=2e-6)


def test_differences_are_of_the_same_examples_seeds_and_resamples(summary, arrays):
    right = {s: (arrays[f"pred_{s}"] == arrays["label"]) * 1.0 for s in ("zsl", "icl", "ft")}
    differences = summary["differences"]
    check_average(differences["accuracy"]["icl_zsl"], right["icl"] - right["zsl"])
    check_average(differences["accuracy"]["icl_ft"], right["icl"] - right["ft"])
    paired = differences["sim_am"]["before_finetuning"]
    values = arrays["sim_am"] - arrays["sim_am_before"]
    check_average(paired, values.mean(-1))
    np.testing.assert_allclose(paired["per_seed"], values.mean((1, 2)), atol=2e-6)


def test_intervals_are_over_seeds_and_examples(summary, arrays):
    right = (arrays["pred_ft"] == arrays["label"]) * 1.0
    check_average(summary["accuracy"]["ft"], right)
    check_average(summary["similarities"]["sim_aou"], arrays["sim_aou"].mean(-1))
    zsl = np.tile((arrays["pred_zsl"] == arrays["label"]) * 1.0, (len(SEEDS), 1))
    check_average(summary["accuracy"]["zsl"], zsl)  # seeds change nothing: examples alone
    low, high = np.transpose(summary["similarities"]["sim_aou"]["per_layer_interval"])
    expected = [brute_force(x, EXAMPLES) for x in np.moveaxis(arrays["sim_aou"], -1, 0)]
    np.testing.assert_allclose(np.stack([low, high], 1), expected, atol=2e-6)


def test_the_dose_response_is_of_every_rate_and_null_where_a_seed_diverged(summary):
    dose = make_dose(np.random.default_rng(9))
    given = summary["dose_response"]
    assert (given["examples"], given["diverged"]) == (SELECTION_EXAMPLES, [0, 0, 1])
    assert "in no seed's demonstrations" in given["measured_on"]
    for rate in (0, 1):
        check_average(given["accuracy"][rate], dose.correct[:, rate] * 1.0)
        series = given["similarity"]["sim_am"][rate]
        check_average(series, dose.by_example["sim_am"][:, rate])
        layers = dose.by_layer["sim_am"][:, rate].mean(0)
        np.testing.assert_allclose(series["per_layer"], layers, atol=2e-6)
        before = series["baselines"]["before_finetuning"]
        check_average(before, dose.by_example["sim_am_before"][:, rate])
    for series in (given["accuracy"][2], given["similarity"]["kendall"][2]):
        assert (series["mean"], series["interval"]) == (None, [None, None])
        assert [v is None for v in series["per_seed"]] == [True, False]


# --------------------------------------------------------------------------------------- report.md


def test_accuracies_are_those_of_the_arrays(text, arrays):
    rows = {tuple(row[:2]): row[2:] for row in table(text, "setting", "kind", "accuracy, %")}
    for setting in ("zsl", "icl", "ft"):
        logprob = arrays[f"logprob_{setting}"]
        centred = logprob - logprob.mean(-2, keepdims=True)
        for kind, values in (("raw", logprob), ("calibrated", centred)):
            right = 100 * (values.argmax(-1) == arrays["label"]).mean(-1)
            mean, interval, spread, per_seed = rows[setting.upper(), kind]
            assert mean == f"{right.mean():.1f}"
            low, high = map(float, interval.strip("[]").split(", "))
            assert low <= right.mean() <= high
            if setting != "zsl":
                assert spread == f"{right.std(ddof=1):.1f}"
                assert per_seed == ", ".join(f"{r:.1f}" for r in right)
    assert rows["majority class", "raw"][0] == f"{100 * 10 / 16:.1f}"


def test_rec2ftp_shows_both_counts(text, arrays):
    zsl, icl, ft = (arrays[f"pred_{s}"] == arrays["label"] for s in ("zsl", "icl", "ft"))
    corrected, recovered = (~zsl & ft).sum(), (~zsl & ft & icl).sum()
    assert 0 < recovered < corrected
    rows = dict(row[:2] for row in table(text, "", "over all seeds"))
    assert rows["Rec2FTP"] == f"{100 * recovered / corrected:.1f} % ({recovered} of {corrected})"
    assert rows["ZSL wrong, FT right"] == str(corrected)
    assert rows["ZSL wrong, FT and ICL right"] == str(recovered)


def test_similarities_and_what_they_are_compared_with(text, arrays):
    right = {s: arrays[f"pred_{s}"] == arrays["label"] for s in ("zsl", "icl", "ft")}
    subset = ~right["zsl"] & right["icl"] & right["ft"]
    means = {row[0]: row for row in table(text, "similarity", "mean")}
    beside = {row[0]: row for row in table(text, "similarity", "baseline")}
    assert len(means) == len(beside) == len(SIMILARITIES)
    for name, metric in SIMILARITIES.items():
        values = arrays[name]
        if values.ndim == 4:  # of every head
            values = values.mean(-1)
        other = arrays["sim_am_before" if name == "sim_am" else name + "_random"]
        if other.ndim == 4:
            other = other.mean(-1)
        _, mean, _, spread, per_seed, f2t = means[metric.title]
        assert float(mean) == pytest.approx(values.mean(), abs=6e-4)
        assert float(spread) == pytest.approx(values.mean((1, 2)).std(ddof=1), abs=6e-4)
        got = [float(v) for v in per_seed.split(", ")]
        np.testing.assert_allclose(got, values.mean((1, 2)), atol=6e-4)
        assert float(f2t.split()[0]) == pytest.approx(values[subset].mean(), abs=6e-4)
        assert f" {other.mean():.3f} [" in beside[metric.title][1]
        assert float(beside[metric.title][2].split()[0]) == pytest.approx(
            values.mean() - other.mean(), abs=6e-4
        )
    assert f"({subset.sum()} of {subset.size}, seeds x examples)" in text


def test_selection_names_rates_counts_and_what_diverged(text):
    rows = table(text, "seed", "chosen rate")
    assert [row[:2] for row in rows] == [["3", "0.01"], ["7", "0.001"]]
    assert rows[0][2:] == ["0.5 / 0.005 / 5.00", "0.4 / 0.004 / 4.00", "- / - / -"]
    assert "on 64 examples" in text
    assert "in no seed's demonstrations" in text


def test_what_the_weights_are(text, summary):
    told = (
        f"Weights of {summary['model']['name']}: instruct; quantisation Q4_1: Q4_1 79 %, Q8_0 21 "
        "%; computed in float32; from folder tiny."
    )
    assert text.count(told.replace("_", r"\_")) == 1  # Markdown's
    assert told in summaries.console_blocks(typed(summary))


def test_results_that_do_not_say_what_the_weights_are(summary):
    """As those of version 0.1.0."""
    older = {k: summary["model"][k] for k in ("name", "weights", "attention", "fingerprint")}
    summary = summary | {"model": older}
    assert "Weights of" not in markdown(summary)
    assert not any("Weights of" in str(b) for b in summaries.console_blocks(typed(summary)))


def test_what_differs_from_the_papers_protocol(text, summary):
    assert "best seed reported False (True); seeds 2 (7); learning rates 3 (36)" in text
    config = copy.deepcopy(summary["config"])
    config |= {"select_seed": True, "seeds": list(range(7)), "num_demonstrations": 36}
    config["selection"]["split"], config["record_position"] = "validation", "first_label"
    config["prompt"]["separator"] = "<eos>"
    told = job.protocol_text(typed(summary | {"config": config}))
    assert "selected on" not in told
    assert "learning rates 3 (36)" in told
    assert "model 'smollm2-135m' (\"fairseq's dense 1.3B and 2.7B\")" in told
    del config["mode"]
    assert job.protocol_text(typed(summary | {"config": config})) == ""


def test_setup_is_complete(text, summary):
    setup = text[text.index("## Data, model, machine") :]
    rows = dict(table(setup, "", ""))
    assert rows["seconds"] == "63.8 (finetune 61.2, compare 2.5)"
    assert rows["demonstrations"] == "asked 4; used 4 (seed 3), 3 (seed 7)"
    assert rows["duplicates"] == (
        "left out of the demonstrations (by normalised text): 1,234 train examples that are also "
        "in the validation split, 5 draws that repeat a demonstration of their seed"
    )
    assert rows["data note 1"] == r"a \| b"  # a bar does not end the cell
    for fingerprint in (summary["data"]["fingerprint"], summary["model"]["fingerprint"]):
        assert fingerprint in text
    assert "```text\nReview: {text} Sentiment:\n```" in text
    block = re.search(r"```json\n(.*?)\n```", text, re.DOTALL)
    assert json.loads(block[1]) == summary["config"]
    assert "3 or 4 demonstrations (asked for 4, fewer fit)" in text


def test_a_template_with_a_fence_does_not_end_its_block(summary):
    text = markdown(summary | {"template": "```{text}"})
    assert "````text\n```{text}\n````" in text


@pytest.mark.parametrize("stand_in", ["", "rotten stand in [bold]for[/bold] glue/sst2"])
def test_stand_in_is_in_the_title_and_on_the_console(summary, tmp_path, stand_in):
    changed = summary | {"stand_in": stand_in}
    title, _, below = markdown(changed).splitlines()[:3]
    told = f"> **Stand-in data. {stand_in}**"
    assert title.startswith("# MR")
    assert title.endswith("does in-context learning behave like finetuning?")
    assert ("STAND-IN" in title) == bool(stand_in)
    assert (below == told) == bool(stand_in)
    console = shown(changed, tmp_path)
    assert console.startswith(f"STAND-IN DATA, not what was asked for: {stand_in}") == bool(
        stand_in
    )


def test_best_of_seeds_is_called_optimistic(of_best_seed, arrays):
    text = markdown(of_best_seed)
    assert "Best of seeds, as in the paper: optimistic" in text
    assert "Only seed 7 is reported" in text
    assert "(50.0, 75.0 % for seeds 3, 7)" in text
    (row,) = (r for r in table(text, "setting", "kind") if r[:2] == ["ICL", "raw"])
    assert row[4:] == ["-", f"{100 * (arrays['pred_icl'][1] == arrays['label']).mean():.1f}"]


def test_all_seeds_are_not_called_the_best_of_seeds(text):
    assert "Best of seeds" not in text


def compared(monkeypatch, others):
    """What stands beside a similarity: name -> (low end, each seed's) of the difference."""
    found = {
        name: baselines.Beside(
            results.UNKNOWN,
            results.Estimate(mean=low, interval=(low, 1.0), per_seed=tuple(per_seed)),
        )
        for name, (low, per_seed) in others.items()
    }
    monkeypatch.setattr(baselines, "beside", lambda *_: found)
    monkeypatch.setattr(baselines, "name_of", lambda name: name)


@pytest.mark.parametrize(
    ("lows", "expected"),
    [
        ({"a": 0.1}, "above"),
        ({"a": 0.0}, "not above: a"),
        ({"a": -0.1, "b": 0.2}, "not above: a"),
        ({"a": -0.1, "b": -0.2}, "not above: a, b"),
        ({"a": None, "b": 0.2}, "unknown"),
        ({"a": None, "b": -0.1}, "not above: b"),
        ({}, "unknown"),
    ],
)
def test_verdict(lows, expected, monkeypatch):
    compared(monkeypatch, {name: (low, ()) for name, low in lows.items()})
    assert baselines.verdict(None, "sim_aou") == expected


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((0.5, 0.1), (0.2, -0.2), "1 of 2"),
        ((0.5, None), (0.2, 0.2), "1 of 1"),
        ((), (), "0 of 0"),
    ],
)
def test_seeds_above(one, other, expected, monkeypatch):
    compared(monkeypatch, {"a": (0, one), "b": (0, other)})
    assert baselines.seeds_above(None, "sim_aou") == expected


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((0.1, 0.2), "above"),
        ((-0.2, -0.1), "below"),
        ((-0.1, 0.1), "no clear difference"),
        ((None, None), "unknown"),
    ],
)
def test_direction(interval, expected):
    assert job.direction(results.Estimate(interval=interval)) == expected


def test_the_dose_response_says_where_similarity_is_highest(summary):
    changed = copy.deepcopy(summary)
    dose = changed["dose_response"]
    for i, (right, similar) in enumerate([(0.7, 0.2), (0.5, 0.4), (0.6, 0.3)]):
        dose["accuracy"][i] |= {"mean": right, "interval": [right, right]}
        dose["similarity"]["sim_aou"][i] |= {"mean": similar, "interval": [0.1, 0.5]}
    assert rates.dose_sentence(typed(changed), "sim_aou") == (
        "SimAOU is highest at learning rate 0.01 (0.400 [0.100, 0.500]), where FT's accuracy is "
        "50.0 % [50.0, 50.0]: highest where finetuning is worst. At FT's best rate, 0.001 "
        "(70.0 % [70.0, 70.0]), it is 0.200 [0.100, 0.500]."
    )
    dose["accuracy"][2]["mean"] = 0.4
    assert "not where finetuning is best" in rates.dose_sentence(typed(changed), "sim_aou")
    dose["accuracy"][1]["mean"] = 0.8
    assert "the best of all rates" in rates.dose_sentence(typed(changed), "sim_aou")
    dose["accuracy"][2]["mean"] = dose["accuracy"][1]["mean"] = None
    assert rates.dose_sentence(typed(changed), "sim_aou") == ""


def test_the_dose_table_names_what_diverged(text):
    rows = table(text, "learning rate", "chosen for", "FT accuracy, %")
    assert [row[:2] for row in rows] == [
        ["0.001", "1 seed"],
        ["0.01", "1 seed"],
        ["0.1", "0 seeds"],
    ]
    assert rows[2][2:] == ["1 of 2 seeds diverged", *["-"] * 9]


def test_method_and_record_position_are_named(tmp_path, arrays):
    changes = {"finetune.method": "lcgd_attention", "record_position": "first_label"}
    text = markdown(make_results(tmp_path, arrays, **changes))
    about = text.splitlines()[2]
    assert "layer-causal gradient descent, read out after attention" in about
    assert "recorded one token later" in about


def test_multiple_choice_has_nothing_calibrated(tmp_path, arrays):
    changed = make_results(tmp_path, arrays, job=make_job(answers=()))
    assert changed["accuracy_calibrated"] is None
    text = markdown(changed)
    assert {row[1] for row in table(text, "setting", "kind")} == {"raw"}
    assert "its own candidates" in text
    assert "calibrated" not in shown(changed, tmp_path)
    assert len(job_figure(changed, "accuracy").panels) == 1


def test_one_seed_is_reported(of_best_seed):
    assert len(of_best_seed["similarities"]["sim_aou"]["per_seed"]) == 1
    assert len(of_best_seed["dose_response"]["accuracy"][0]["per_seed"]) == len(SEEDS)


# ----------------------------------------------------------------- what is missing or undefined


def test_undefined_numbers_are_dashes(summary, tmp_path):
    missing = nulled(summary)
    report.write(tmp_path, job.report(typed(missing)))
    text = (tmp_path / "report.md").read_text() + shown(missing, tmp_path)
    assert job.UNDEFINED in text
    assert not re.search(r"\bnan\b|\bNone\b", text)
    assert {p.stem for p in (tmp_path / "figures").iterdir()} == FIGURES


def test_rec2ftp_without_a_correction_is_undefined(tmp_path, arrays):
    same = arrays | {"pred_ft": np.broadcast_to(arrays["pred_zsl"], arrays["pred_ft"].shape)}
    changed = make_results(tmp_path, same)
    rows = dict(row[:2] for row in table(markdown(changed), "", "over all seeds"))
    assert rows["Rec2FTP"] == job.UNDEFINED
    assert rows["each seed, %"] == "undefined, undefined"
    assert rows["ZSL wrong, FT right"] == "0"
    assert job.UNDEFINED in shown(changed, tmp_path)


def test_missing_parts_are_left_out(summary, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "png", lambda figure: b"")
    gone = {"agreement", "dose_response", "differences"}
    less = {k: v for k, v in summary.items() if k not in gone}
    kept = {k: v for k, v in summary["similarities"].items() if k != "recall_tokens"}
    less["similarities"] = kept
    report.write(tmp_path, job.report(typed(less)))
    text = (tmp_path / "report.md").read_text()
    assert "Recall, tokens" not in [row[0] for row in table(text, "similarity", "mean")]
    assert {p.stem for p in (tmp_path / "figures").iterdir()} == FIGURES - {
        "agreement",
        "dose_response",
    }
    assert "agreement.png" not in text


# ----------------------------------------------------------------------------------------- figures


def job_figure(summary, key):
    return figures.job_figures(typed(summary))[key]


def drawn(panel):
    """Name -> y values of a panel's curves, as matplotlib has them."""
    from matplotlib.figure import Figure

    ax = Figure().subplots()
    panel.draw(ax)
    return {line.get_label(): line for line in ax.lines if line.get_label()[0] != "_"}, ax


def test_figures_are_embedded_and_drawn(folder, text):
    from matplotlib import image

    paths = re.findall(r"!\[[^\]]+\]\((figures/\w+\.png)\)", text)
    assert sorted(paths) == sorted(f"figures/{name}.png" for name in FIGURES)
    assert not list(folder.rglob("*.partial"))
    for path in paths:
        pixels = image.imread(folder / path)
        assert len(np.unique(pixels[::2, ::2, 0])) > 40
        assert (folder / path).stat().st_size > 15_000
        # Nothing is cut off at an edge.
        edges = (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])
        assert all(np.all(edge == 1) for edge in edges), path
    page = (folder / "report.html").read_text()
    assert all(f'id="{name}"' in page for name in FIGURES)


@pytest.mark.parametrize("setting", ["zsl", "icl", "ft"])
def test_dots_stand_at_the_accuracy(summary, setting):
    raw, calibrated = job_figure(summary, "accuracy").panels
    for panel, key in ((raw, "accuracy"), (calibrated, "accuracy_calibrated")):
        lines, ax = drawn(panel)
        assert (
            list(ax.get_yticklabels())[list(SETTINGS).index(setting)].get_text()
            == (SETTINGS[setting])
        )
        dot = lines[SETTINGS[setting]]
        assert dot.get_xdata()[0] == pytest.approx(100 * summary[key][setting]["mean"])
        assert dot.get_color() == plots.PALETTE[setting][0]


def test_each_panel_draws_its_own_series(summary):
    panels = job_figure(summary, "similarity").panels
    dose = summary["dose_response"]["similarity"]
    for panel, name in zip(panels, SIMILARITIES, strict=True):
        own = summary["similarities"][name]
        expected = {baselines.name_of(b): s for b, s in own["baselines"].items()}
        expected |= {
            "FT at learning rate 0.001 (lowest)": dose[name][0],
            "FT at learning rate 0.01 (highest)": dose[name][1],  # 0.1 diverged
            "measured, with 95 % band": own,
        }
        lines, _ = drawn(panel)
        assert lines.keys() == expected.keys()
        for label, values in expected.items():
            got = lines[label].get_ydata()
            np.testing.assert_allclose(got, values["per_layer"], atol=1e-6)


def test_the_dose_figure_draws_every_rate(summary):
    accuracy, *panels = job_figure(summary, "dose_response").panels
    dose = summary["dose_response"]
    curves = {"FT": (accuracy, dose["accuracy"], 100)}
    for name, panel in zip(DOSE_SIMILARITIES, panels, strict=True):
        curves[SIMILARITIES[name].title] = (panel, dose["similarity"][name], 1)
    for name, (panel, curve, scale) in curves.items():
        line = drawn(panel)[0][name]
        np.testing.assert_allclose(line.get_xdata(), RATES)
        means = [np.nan if at_rate["mean"] is None else at_rate["mean"] for at_rate in curve]
        np.testing.assert_allclose(line.get_ydata(), scale * np.array(means))
        assert np.isnan(line.get_ydata()[2])


def test_chosen_rates_are_marked(summary):
    accuracy, loss = job_figure(summary, "selection").panels
    for panel in (accuracy, loss):
        _, ax = drawn(panel)
        np.testing.assert_allclose(ax.lines[-1].get_xdata(), [0.01, 0.001])
    np.testing.assert_allclose(drawn(loss)[0]["seed 7"].get_ydata()[2], np.log10(900))


def test_drawing_leaves_matplotlib_as_it_was(summary):
    import matplotlib

    def settings():  # reading "backend" would choose one
        return {k: matplotlib.rcParams[k] for k in matplotlib.rcParams if k != "backend"}

    before, figure = settings(), job_figure(summary, "accuracy")
    assert plots.png(figure)[1:4] == b"PNG"
    assert "<svg" in plots.svg(figure.panels[0], "a")
    assert settings() == before


def test_matplotlib_is_imported_only_to_draw():
    code = "import sys, icljax.report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ----------------------------------------------------------------------------------------- console


@pytest.mark.parametrize("width", [80, 200])
def test_console_is_narrow(summary, folder, width):
    long = folder / ("long" * 60)
    lines = shown(summary, long, width).splitlines()
    assert lines.pop() == f"Report: {long / 'report.md'}"  # whole, to be copied
    assert 40 < max(map(len, lines)) < min(width + 1, 90)


def test_console_has_the_numbers(summary, folder):
    text = shown(summary, folder)
    icl = summary["accuracy"]["icl"]
    assert f"{100 * icl['mean']:.1f} ± {100 * icl['seed_std']:.1f}" in text
    for name, metric in SIMILARITIES.items():
        (line,) = (row for row in text.splitlines() if row.startswith(f"{metric.title}  "))
        numbers = re.findall(r"-?\d\.\d{3}", line)
        s = summary["similarities"][name]
        baseline = next(iter(s["baselines"].values()))
        expected = [s["mean"], *s["interval"], baseline["mean"]]
        np.testing.assert_allclose([float(n) for n in numbers], expected, atol=6e-4)
    assert "(0.01, 0.001) was selected on 64 examples" in text
