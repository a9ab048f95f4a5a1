"""The report of made-up numbers, laid out by icljax.results itself so that they cannot drift."""

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

from icljax import config as config_lib
from icljax import figures, report, results
from icljax.compare import Similarity
from icljax.grid import Chosen
from icljax.tasks import get_task

SEEDS, EXAMPLES, LAYERS = (3, 7), 16, 5
RATES = (0.001, 0.01, 0.1)
FIGURES = {"accuracy", "agreement", "more_similarity", "selection", "similarity", "update"}


def make_arrays(seed=0):
    """Random arrays laid out as `results.example_arrays` lays them out."""
    rng = np.random.default_rng(seed)
    lead = {"zsl": (), "icl": (len(SEEDS),), "ft": (len(SEEDS),)}
    logprob = {s: rng.normal(size=(*a, EXAMPLES, 2)).astype(np.float32) for s, a in lead.items()}
    shape = len(SEEDS), EXAMPLES, LAYERS

    def similarity(name):
        heads = (2,) if "update" in name else ()
        return rng.uniform(-0.2, 0.9, (*shape, *heads)).astype(np.float32)

    return {
        "index": np.arange(EXAMPLES),
        "label": (np.arange(EXAMPLES) % 3 == 0).astype(int),
        **{f"pred_{s}": v.argmax(-1) for s, v in logprob.items()},
        **{f"logprob_{s}": v for s, v in logprob.items()},
        **{name: similarity(name) for name in Similarity._fields},
    }


def make_config():
    config = config_lib.default()
    config.seeds, config.finetune.learning_rates = SEEDS, RATES
    config.metrics.bootstrap_samples = 50
    config.num_demonstrations = 4
    return config


def make_results(folder, arrays, stand_in="", best_seed=None):
    """Results as a job makes them, with two controls, after a round trip through JSON."""
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text("{}")
    config = make_config()
    dataset = types.SimpleNamespace(
        stand_in=stand_in,
        source="jsonl:reviews",
        fingerprint="f" * 64,
        notes=["a | b"],
        validation=types.SimpleNamespace(labels=np.zeros(1066)),
    )
    job = types.SimpleNamespace(
        encoder=types.SimpleNamespace(task=get_task("mr")),
        dataset=dataset,
        used=[4, 3],
        selection_labels=np.zeros(64),
    )
    loss = np.array([[5.0, 4.0, np.nan], [5.5, 4.5, 900.0]])  # one diverged, one nearly
    chosen = Chosen(None, np.array([1, 0]), loss / 1000, loss, loss)
    checkpoint = types.SimpleNamespace(folder=folder)
    summary = results.summarize(config, checkpoint, job, chosen, arrays, best_seed)
    summary["controls"] = {
        name: results.measure(make_arrays(i), config) | {"evaluated": EXAMPLES}
        for i, name in enumerate(config.controls.weights, 1)
    }
    summary["seconds"] = {"finetune": 61.25, "compare": 2.5}
    return json.loads(json.dumps(summary, allow_nan=False))


@pytest.fixture(scope="module")
def arrays():
    return make_arrays()


@pytest.fixture(scope="module")
def summary(tmp_path_factory, arrays):
    return make_results(tmp_path_factory.mktemp("model"), arrays)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, summary):
    path = tmp_path_factory.mktemp("report")
    report.write(path, summary)
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
    given = ("config", "learning_rates", "learning_rate")
    if isinstance(tree, dict):
        return {k: v if k in given else nulled(v) for k, v in tree.items()}
    if isinstance(tree, list):
        return [nulled(v) for v in tree]
    return None if isinstance(tree, float) else tree


def shown(summary, path, width=200):
    out = io.StringIO()
    report.show(summary, path, Console(file=out, width=width, force_terminal=False))
    return out.getvalue()


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


def test_similarities_and_what_they_are_compared_with(text, summary, arrays):
    right = {s: arrays[f"pred_{s}"] == arrays["label"] for s in ("zsl", "icl", "ft")}
    subset = ~right["zsl"] & right["icl"] & right["ft"]
    means = {row[0]: row for row in table(text, "similarity", "mean")}
    beside = {row[0]: row for row in table(text, "similarity", "baseline")}
    assert len(means) == len(beside) == len(report.SIMILARITIES)
    for name, metric in report.SIMILARITIES.items():
        values = arrays["sim_am_after" if name == "sim_am" else name]
        if values.ndim == 4:  # of every head
            values = values.mean(-1)
        other = arrays["sim_am_before" if name == "sim_am" else name + "_random"]
        _, mean, _, spread, per_seed, f2t = means[metric.title]
        assert float(mean) == pytest.approx(values.mean(), abs=6e-4)
        assert float(spread) == pytest.approx(values.mean((1, 2)).std(ddof=1), abs=6e-4)
        got = [float(v) for v in per_seed.split(", ")]
        np.testing.assert_allclose(got, values.mean((1, 2)), atol=6e-4)
        assert float(f2t) == pytest.approx(values[subset].mean(), abs=6e-4)
        assert f" {other.mean():.3f} [" in beside[metric.title][1]
        for control in summary["controls"].values():
            assert f" {control[name]['mean']:.3f} [" in beside[metric.title][2]
    assert f"({subset.sum()} of {subset.size}, seeds x examples)" in text


def test_selection_names_rates_counts_and_what_diverged(text):
    rows = table(text, "seed", "chosen rate")
    assert [row[:2] for row in rows] == [["3", "0.01"], ["7", "0.001"]]
    assert rows[0][2:] == ["0.5 / 5.000 / 5.00", "0.4 / 4.000 / 4.00", "- / - / -"]
    assert "on 64 examples" in text
    assert "in no seed's demonstrations" in text


def test_setup_is_complete(text, summary):
    rows = dict(row[:2] for row in table(text, "", "") if len(row) == 2)
    assert rows["seconds"] == "63.8 (finetune 61.2, compare 2.5)"
    assert rows["demonstrations"] == "asked 4; used 4 (seed 3), 3 (seed 7)"
    assert rows["data note 1"] == r"a \| b"  # a bar does not end the cell
    for fingerprint in (summary["data"]["fingerprint"], summary["model"]["fingerprint"]):
        assert fingerprint in text
    assert "```text\nReview: {text} Sentiment:\n```" in text
    block = re.search(r"```json\n(.*?)\n```", text, re.DOTALL)
    assert json.loads(block[1]) == summary["config"]
    assert "3 or 4 demonstrations (asked for 4, fewer fit)" in text


def test_a_template_with_a_fence_does_not_end_its_block(summary):
    text = report.markdown(summary | {"template": "```{text}"}, ())
    assert "````text\n```{text}\n````" in text


@pytest.mark.parametrize("stand_in", ["", "rotten stand in [bold]for[/bold] glue/sst2"])
def test_stand_in_is_in_the_title_and_on_the_console(summary, tmp_path, stand_in):
    changed = summary | {"stand_in": stand_in}
    title, _, below = report.markdown(changed, ()).splitlines()[:3]
    assert title.startswith("# MR")
    assert title.endswith("does in-context learning behave like finetuning?")
    assert ("STAND-IN" in title) == bool(stand_in)
    assert (below == f"> **Warning: stand-in data.** {stand_in}") == bool(stand_in)
    console = shown(changed, tmp_path)
    assert console.startswith(f"STAND-IN DATA, not what was asked for: {stand_in}") == bool(
        stand_in
    )


def test_best_of_seeds_is_called_optimistic(tmp_path, arrays):
    text = report.markdown(make_results(tmp_path, arrays, best_seed=(1, [0.5, 0.75])), ())
    assert "Best of seeds, as in the paper: optimistic" in text
    assert "Only seed 7 is reported" in text
    assert "(50.0, 75.0 % for seeds 3, 7)" in text
    (row,) = (r for r in table(text, "setting", "kind") if r[:2] == ["ICL", "raw"])
    assert row[4:] == ["-", f"{100 * (arrays['pred_icl'][1] == arrays['label']).mean():.1f}"]


def test_all_seeds_are_not_called_optimistic(text):
    assert "optimistic" not in text


def series(low, high, per_seed=(0.5, 0.5)):
    return {"mean": 0.5, "interval": [low, high], "per_seed": list(per_seed)}


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ({"a": series(0.1, 0.39)}, "above"),
        ({"a": series(0.1, 0.4)}, "not above: a"),  # intervals that touch
        ({"a": series(0.7, 0.9), "b": series(0.1, 0.2)}, "not above: a"),
        ({"a": series(0.7, 0.9), "b": series(0.3, 0.5)}, "not above: a, b"),
        ({"a": series(None, None), "b": series(0.1, 0.2)}, "unknown"),
        ({"a": series(None, None), "b": series(0.1, 0.5)}, "not above: b"),
        ({}, "unknown"),
    ],
)
def test_verdict(others, expected):
    assert report.verdict(series(0.4, 0.6), others) == expected


@pytest.mark.parametrize(
    ("own", "other", "expected"),
    [((0.5, 0.1), (0.2, 0.2), "1 of 2"), ((0.5, None), (0.2, 0.2), "1 of 1"), ((), (), "0 of 0")],
)
def test_seeds_above(own, other, expected):
    assert report.seeds_above(series(0, 1, own), {"a": series(0, 1, other)}) == expected


def test_a_similarity_that_is_not_above_its_control_is_said_plainly(summary):
    changed = copy.deepcopy(summary)
    changed["kendall"] |= series(0.4, 0.6)
    changed["kendall"]["baselines"]["random_weights"] |= series(0.0, 0.1)
    controls = changed["controls"]
    controls["untrained"]["kendall"] |= series(0.45, 0.55)
    controls["untrained_keep_embeddings"]["kendall"] |= series(0.1, 0.2)
    line = (
        "- **Kendall, tokens**, 0.500 [0.400, 0.600], is **not above** "
        "untrained model (0.500 [0.450, 0.550])."
    )
    assert line in report.markdown(changed, ())
    controls["untrained"]["kendall"]["interval"] = [0.0, 0.1]
    assert "- **Kendall, tokens**, 0.500" not in report.markdown(changed, ())


# ----------------------------------------------------------------- what is missing or undefined


def test_undefined_numbers_are_dashes(summary, tmp_path):
    missing = nulled(summary)
    report.write(tmp_path, missing)
    text = (tmp_path / "report.md").read_text() + shown(missing, tmp_path)
    assert report.UNDEFINED in text
    assert not re.search(r"\bnan\b|\bNone\b", text)
    assert {p.stem for p in (tmp_path / "figures").iterdir()} == FIGURES


def test_rec2ftp_without_a_correction_is_undefined(tmp_path, arrays):
    same = arrays | {"pred_ft": np.broadcast_to(arrays["pred_zsl"], arrays["pred_ft"].shape)}
    changed = make_results(tmp_path, same)
    rows = dict(row[:2] for row in table(report.markdown(changed, ()), "", "over all seeds"))
    assert rows["Rec2FTP"] == report.UNDEFINED
    assert rows["each seed, %"] == "undefined, undefined"
    assert rows["ZSL wrong, FT right"] == "0"
    assert report.UNDEFINED in shown(changed, tmp_path)


def test_missing_parts_are_left_out(summary, tmp_path):
    gone = {"agreement", "recall_tokens"}
    less = {k: v for k, v in summary.items() if k not in gone} | {"controls": {}}
    report.write(tmp_path, less)
    text = (tmp_path / "report.md").read_text()
    assert "No untrained model was measured" in text
    assert "Recall, tokens" not in [row[0] for row in table(text, "similarity", "mean")]
    assert {p.stem for p in (tmp_path / "figures").iterdir()} == FIGURES - {"agreement"}
    assert "agreement.png" not in text
    assert "untrained" not in shown(less, tmp_path)


# ----------------------------------------------------------------------------------------- figures


def test_figures_are_embedded_and_drawn(folder, text):
    from matplotlib import image

    paths = re.findall(r"!\[[^\]]+\]\((figures/\w+\.png)\)", text)
    assert sorted(paths) == sorted(f"figures/{name}.png" for name in FIGURES)
    assert not list(folder.rglob("*.partial"))
    for path in paths:
        pixels = image.imread(folder / path)
        height, width, _ = pixels.shape
        assert width == (1950 if "update" in path else 1350)  # 13 or 9 inches at 150 dpi
        assert 500 < height < 1100
        assert len(np.unique(pixels[::2, ::2, 0])) > 50
        assert (folder / path).stat().st_size > 20_000
        # Nothing is cut off at an edge.
        edges = (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])
        assert all(np.all(edge == 1) for edge in edges), path


@pytest.mark.parametrize("setting", ["zsl", "icl", "ft"])
def test_bars_are_as_high_as_the_accuracy(summary, setting):
    import matplotlib

    with matplotlib.rc_context(figures.STYLE):
        raw, calibrated = figures._draw_accuracy(summary).axes
    position = list(report.SETTINGS).index(setting)
    for ax, key in ((raw, "accuracy"), (calibrated, "accuracy_calibrated")):
        bar = ax.patches[position]
        assert bar.get_height() == pytest.approx(100 * summary[key][setting]["mean"])
        assert matplotlib.colors.same_color(bar.get_facecolor(), figures.COLORS[setting])


def test_each_panel_draws_its_own_series(summary):
    import matplotlib

    with matplotlib.rc_context(figures.STYLE):
        axes = figures._draw_similarity(summary).axes
    for ax in axes:
        (name,) = (n for n, m in report.SIMILARITIES.items() if m.title == ax.get_title("left"))
        drawn = {line.get_label(): line for line in ax.lines}
        expected = {
            "ICL and FT, with 95 % band": summary[name],
            "untrained model": summary["controls"]["untrained"][name],
            "untrained except embeddings": summary["controls"]["untrained_keep_embeddings"][name],
            **{
                figures.BASELINE_STYLES[b]["label"]: s
                for b, s in summary[name]["baselines"].items()
            },
        }
        for label, values in expected.items():
            np.testing.assert_allclose(drawn[label].get_ydata(), values["per_layer"], atol=1e-6)


def test_chosen_rates_are_marked(summary):
    accuracy, loss = figures._draw_selection(summary).axes
    marks = np.asarray(accuracy.collections[0].get_offsets())
    np.testing.assert_allclose(marks, [[0.01, 0.4], [0.001, 0.55]])
    assert loss.get_yscale() == "log"  # 900 would flatten 4 to 5.5


def test_drawing_leaves_matplotlib_as_it_was(summary, monkeypatch):
    import matplotlib

    monkeypatch.setattr(figures, "_FIGURES", {"accuracy.png": figures._draw_accuracy})

    def settings():  # reading "backend" would choose one
        return {k: matplotlib.rcParams[k] for k in matplotlib.rcParams if k != "backend"}

    before = settings()
    assert list(figures.draw(summary)) == ["accuracy.png"]
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
    for name, metric in report.SIMILARITIES.items():
        (line,) = (row for row in text.splitlines() if row.startswith(metric.title + " "))
        numbers = re.findall(r"-?\d\.\d{3}", line)
        baseline = next(iter(summary[name]["baselines"].values()))
        controls = [c[name]["mean"] for c in summary["controls"].values()]
        s = summary[name]
        expected = [s["mean"], *s["interval"], baseline["mean"], *controls]
        np.testing.assert_allclose([float(n) for n in numbers], expected, atol=6e-4)
    assert "Learning rates 0.01, 0.001 selected on 64 examples" in text
