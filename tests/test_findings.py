"""docs/findings.md says what docs/findings holds."""

import re
from pathlib import Path

import pytest

from icljax import records
from icljax.reports import markup, merged, study

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "findings.md").read_text()
MODEL = "qwen2.5-coder-1.5b"


@pytest.fixture(scope="module")
def printed() -> str:
    """The merged report, without its figures."""
    report = merged.report(study.read(sorted((DOCS / "findings").glob("*_*/"))))
    return markup.markdown(report, {figure.key: b"" for figure in report.figures()})


def test_numbers_with_intervals_are_printed_by_the_report(printed):
    number = r"[+-]?\d+\.\d+"
    found = re.findall(rf"{number} \[{number}, {number}\]", PAGE)
    assert len(found) > 60
    assert [text for text in found if text not in printed] == []


def test_verdicts_stand_with_their_numbers(printed):
    cells = re.findall(r"(?:\*\*[a-z ]+\*\*|open|-) <sub>[^<]+</sub>", PAGE)
    assert len(cells) > 40
    assert [text for text in cells if text not in printed] == []


def test_rows_of_layers_are_those_surely_above():
    rows = re.findall(r"^\| (sst2|agnews|trec) \| ([\d, ]+) \| ([\d, ]+) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 3
    for task, *shown in rows:
        found = records.read_crossed(DOCS / "findings" / f"{task}_{MODEL}" / "results.json")
        assert found is not None
        for text, contrast in zip(shown, found.layers.values(), strict=True):
            sure = [str(i + 1) for i, p in enumerate(contrast.p) if p is not None and p < 0.05]
            assert text == ", ".join(sure)


def test_accuracy_rows_are_the_jobs():
    rows = re.findall(r"^\| ([a-z\d.-]+), (\w+)(, symbols)? \| (\d.*) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 6
    for model, task, symbols, cells in rows:
        folder = f"{task}_{model}{'_symbols' if symbols else ''}"
        found = records.read_crossed(DOCS / "findings" / folder / "results.json")
        assert found is not None
        means = [100 * (x.mean or 0) for x in found.accuracy_calibrated.values()]
        order = list(found.accuracy_calibrated)
        shown = [float(cell.split()[0]) for cell in cells.split(" | ")]
        wanted = [means[order.index(s)] for s in ("zsl", "icl", "ft", "icl_flipped", "ft_flipped")]
        assert shown == pytest.approx(wanted, abs=0.051)
