"""Crossed jobs with other answers in one report: a tiny model, and numbers by hand."""

import dataclasses
import json
import shutil

import msgspec
import pytest

from icljax.data.task_table import SYMBOLS
from icljax.errors import UserError
from icljax.records import Claim, Crossed, LayerContrast
from icljax.reports import beside, document, report
from icljax.results import Estimate
from tests.experiments.test_crossed import crossed_config, run


def about(mean, low, high):
    return Estimate(mean=mean, interval=(low, high))


@pytest.fixture(scope="module")
def folders(tiny_folder, reviews, tmp_path_factory):
    """The smallest crossed jobs with labels: natural ones, and words without meaning."""
    path = tmp_path_factory.mktemp("beside")
    small = {
        "seeds": (1, 2, 3),
        "study.links": ("other_demonstrations", "wrong_labels_ft"),
        "study.kendall": False,
        "finetune.learning_rates": (0.1,),
        "study.selection_seeds": 1,
    }
    for name, answers in {"natural": (), "symbols": ("symbols",)}.items():
        run(crossed_config(tiny_folder, reviews, answers=answers, **small), path / name)
    return path / "natural", path / "symbols"


@pytest.fixture(scope="module")
def natural(folders):
    return msgspec.convert(json.loads((folders[0] / "results.json").read_text()), Crossed)


def by_hand(job, answers, classes, verdicts, **changes):
    """The job with one measure, two links and round numbers."""
    links = ("other_demonstrations", "wrong_labels_ft")
    levels = ((0.5, 0.01), (0.25, 0.125))
    claims = tuple(
        Claim(
            measure="output",
            link=link,
            level=0.1,
            difference=about(mean, mean - 0.005, mean + 0.005),
            p_above=0.5,
            p_equal=0.5,
            verdict=verdict,
        )
        for link, mean, verdict in zip(links, levels[bool(classes)], verdicts, strict=True)
    )
    zsl, icl, ft = (0.5, 0.9, 0.8) if classes else (0.75, 0.875, 0.85)
    of = {
        "zsl": Estimate(mean=zsl),
        "icl": about(icl, icl - 0.05, icl + 0.05),
        "ft": about(ft, 0.7, 1),
    }
    above = {
        s: about(x - zsl, x - zsl - 0.05, x - zsl + 0.05) for s, x in (("icl", icl), ("ft", ft))
    }
    layers = LayerContrast(mean=(0.1, 0.2), low=(0.0, 0.1), high=(0.2, 0.3), p=(0.5, 0.01))
    new = {
        "answers": answers,
        "classes": classes,
        "no_verdicts": "",
        "claims": claims,
        "accuracy_calibrated": of,
        "gain": above,
        "own": {"output": about(0.3, 0.25, 0.35)},
        "steps": {"icl": about(0.4, 0.3, 0.5), "ft": about(0.2, 0.1, 0.3)},
        "layers": {"label_output": layers},
    }
    return dataclasses.replace(job, **new | changes)


@pytest.fixture
def pair(natural):
    one = by_hand(natural, ("Negative", "Positive"), (), ("equal", "open"))
    other = by_hand(natural, ("foo", "bar"), ("Negative", "Positive"), ("equal", "above"))
    return one, other


def test_table_by_hand(pair):
    accuracy, claims = beside.report(pair).tables()
    assert accuracy.header == ("accuracy, %", "Negative, Positive", "foo, bar (no meaning)")
    assert [[f"{c.text} {c.detail}".strip() for c in r.cells] for r in accuracy.rows] == [
        ["ZSL", "75.0", "50.0"],
        ["ICL", "87.5 [82.5, 92.5]", "90.0 [85.0, 95.0]"],
        ["FT", "85.0 [70.0, 100.0]", "80.0 [70.0, 100.0]"],
        ["above zero-shot, points"],
        ["ICL", "+12.5 [+7.5, +17.5]", "+40.0 [+35.0, +45.0]"],
        ["FT", "+10.0 [+5.0, +15.0]", "+30.0 [+25.0, +35.0]"],
        ["step of attention outputs, ||change|| / ||ZSL||"],
        ["ICL", "0.400 [0.300, 0.500]", "0.400 [0.300, 0.500]"],
        ["FT", "0.200 [0.100, 0.300]", "0.200 [0.100, 0.300]"],
    ]
    assert accuracy.notes[0].startswith("A guess is right in 50.0 %.")
    rows = [[(c.text, c.detail, c.strong) for c in r.cells] for r in claims.rows]
    assert rows[0] == [("SimAOU, not normalised", "", False)]
    assert rows[1][0][0] == "own pair"
    assert rows[2:] == [
        [
            ("FT on other demonstrations", "", False),
            ("equal within the margin", "+0.5000 [+0.4950, +0.5050]", True),
            ("equal within the margin", "+0.2500 [+0.2450, +0.2550]", True),
        ],
        [
            ("FT on wrong labels", "", False),
            ("open", "+0.0100 [+0.0050, +0.0150]", False),
            ("above", "+0.1250 [+0.1200, +0.1300]", True),
        ],
    ]


def test_the_answer_comes_first(pair):
    lead = beside.report(pair).lead
    assert lead[0] == (
        "Negative, Positive: zero-shot is right in 75.0 % (calibrated); ICL +12.5 [+7.5, +17.5] "
        "points from there, FT +10.0 [+5.0, +15.0]."
    )
    assert lead[1].startswith("foo, bar (no meaning): zero-shot is right in 50.0 %")
    assert lead[2:] == ("The verdict is the same in 1 of 2 claims.",)


def test_a_job_without_verdicts_says_why(pair):
    silent = by_hand(pair[0], pair[0].answers, (), ("", ""), no_verdicts="3 seeds are too few")
    made = beside.report((silent, pair[1]))
    assert made.lead[1] == document.Notice("Negative, Positive: no verdicts: 3 seeds are too few.")
    assert not [b for b in made.lead if isinstance(b, str) and "verdict" in b]
    cells = made.tables()[1].rows[-1].cells
    assert (cells[1].text, cells[1].detail) == ("+0.0100", "[+0.0050, +0.0150]")
    assert cells[2].text == "above"


def test_two_jobs_become_one_report(folders, tmp_path):
    """Which they may: examples, demonstrations and labels are the same."""
    out = tmp_path / "out"
    report.main([*map(str, folders), f"--out={out}"])
    text = (out / "report.md").read_text()
    assert "| accuracy, % | Negative, Positive | foo, bar (no meaning) |" in text
    assert "no verdicts: 3 seeds are too few" in text
    assert "words without meaning: foo for Negative, bar for Positive; learning rate" in text
    own = json.loads((folders[1] / "results.json").read_text())
    assert tuple(own["answers"]) == SYMBOLS[:2]
    assert own["config"]["answers"] == ["symbols"]
    assert "foo for Negative" in (folders[1] / "report.md").read_text()
    assert (out / "figures/layers.png").stat().st_size > 0
    assert {"report.tex", "report.html"} <= {p.name for p in out.iterdir()}


def changed(folder, path, change):
    """A copy of a job's results in which some fields differ, given as "a.b"."""
    found = json.loads((folder / "results.json").read_text())
    for key, value in change.items():
        *parents, last = key.split(".")
        inner = found
        for name in parents:
            inner = inner[name]
        inner[last] = value
    path.mkdir()
    (path / "results.json").write_text(json.dumps(found))
    return path


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"config.seeds": [1, 2, 4]}, r"seeds: \[1, 2, 3\] and \[1, 2, 4\]"),
        ({"model.fingerprint": "x"}, "model files: '.*' and 'x'"),
        ({"config.num_demonstrations": 5}, "num_demonstrations: 4 and 5"),
        ({"demonstrations.used": [4, 4, 3]}, r"demonstrations used: \(4, 4, 4\) and \(4, 4, 3\)"),
        ({"data.fingerprint": "x"}, "texts and labels: '.*' and 'x'"),
        ({"config.eval.seed": 2}, r"eval\.seed: 1 and 2"),
        ({"template": "{text} is"}, r"template: '.*' and '\{text\} is'"),
        ({"answers": ["foo", "bar", "kel"]}, "number of answers: 2 and 3"),
    ],
)
def test_what_differs_beyond_answers_is_refused(folders, tmp_path, change, says):
    other = changed(folders[1], tmp_path / "other", change)
    with pytest.raises(UserError, match=f"differ in more than their answers .{says}") as caught:
        report.main([str(folders[0]), str(other), f"--out={tmp_path / 'out'}"])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_what_changes_no_number_may_differ(folders, tmp_path):
    change = {"config.eval.tokens_per_batch": 1, "config.data.source": "jsonl:elsewhere"}
    other = changed(folders[1], tmp_path / "other", change)
    assert len(beside.read([folders[0], other])) == 2


def test_folders_that_make_no_pair_are_refused(folders, tmp_path):
    natural, symbols = folders
    copy = tmp_path / "copy"
    shutil.copytree(symbols, copy)
    with pytest.raises(UserError, match=r"same answers .foo, bar"):
        report.merge([symbols, copy], tmp_path / "out")
    with pytest.raises(UserError, match="holds the report of one job; give another folder"):
        report.main([str(natural), str(symbols)])
    (copy / "results.json").write_text('{"claims": 1, "matrix": 2}')
    with pytest.raises(UserError, match=r"copy/results\.json has not the form"):
        report.merge([natural, copy], tmp_path / "out")
