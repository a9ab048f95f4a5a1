"""The merged report: one HTML page without network, Markdown and LaTeX of the same tables."""

import html.parser
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from icljax.errors import UserError
from icljax.reports import markup, plots, report
from icljax.reports.document import Cell, Report, Section, Table, row
from tests.reports.test_tables import job, real, save  # noqa: F401 - `real` is a fixture

EVIL = '<script>alert("x")</script> & 100 % of $a_b$ | {c} [d](http://e)'
VOID = {"meta", "path", "circle", "rect", "br"}


class Outline(html.parser.HTMLParser):
    """Elements, ids and links of a page; unclosed or crossed elements are an error."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.text = [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def folder(real, tmp_path_factory):  # noqa: F811
    """A report of three tasks, one by two methods, one missing, with a hostile name."""
    path = tmp_path_factory.mktemp("study")
    save(path, "sst2_m", job(real, "sst2", "m", template=EVIL))
    save(path, "sst2_m_lcgd", job(real, "sst2", "m", method="lcgd"))
    save(path, "own_m", job(real, EVIL, "m"))
    plan = {"cb_m": {"task": "cb", "model": "m", "setting": "gd", "error": EVIL}}
    (path / "sweep.json").write_text(json.dumps(plan))
    report.main([str(path), f"--out={path / 'out'}"])
    return path / "out"


@pytest.fixture(scope="module")
def outline(folder):
    return Outline((folder / report.HTML).read_text())


def test_the_page_is_one_small_file_without_network_or_script(folder, outline):
    assert (folder / report.HTML).stat().st_size < 5e6
    names = {name for name, _ in outline.elements}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "image"}
    for name, attributes in outline.elements:
        loads = {
            k: v for k, v in attributes.items() if k in ("src", "srcset", "data", "xlink:href")
        }
        assert not loads, name
        assert not any(k.startswith("on") for k in attributes), name
        own = name in ("a", "use")  # `use` repeats a mark of the same drawing
        assert own or "href" not in attributes, name
        assert name == "a" or attributes.get("href", "#").startswith("#")
    css = re.search(r"<style>(.*?)</style>", (folder / report.HTML).read_text(), re.DOTALL)[1]
    assert not re.search(r"url\((?!#)|@import|@font-face", css)
    assert "prefers-color-scheme:dark" in css


def test_figures_have_alternative_text(outline):
    drawings = [a for a in outline.all("svg") if a.get("aria-hidden") != "true"]
    assert len(drawings) > 15
    for attributes in drawings:
        assert attributes["role"] == "img"
        assert len(attributes["aria-label"]) > 20
    assert all(a["aria-label"] for a in outline.all("div") if a.get("role") == "region")


def test_links_lead_somewhere_and_ids_are_unique(outline):
    ids = [a["id"] for _, a in outline.elements if "id" in a]
    assert len(set(ids)) == len(ids)
    assert not [i for i in ids if re.search(r"\s", i)]
    targets = [a["href"] for a in outline.all("a")]
    assert {t[1:] for t in targets if t.startswith("#")} <= set(ids)
    assert all(t.startswith(("#", "https://arxiv.org/")) for t in targets)


def test_what_users_give_is_text(folder, outline):
    assert EVIL in outline.text
    markdown = (folder / "report.md").read_text()
    assert "<script" not in markdown
    assert "](http://e)" not in markdown.replace(r"\](", "")
    latex = (folder / "report.tex").read_text()
    escaped = r"\& 100 \% of \$a\_b\$ \textbar{} \{c\} {[}d{]}(http://e)"
    assert escaped in latex


def test_all_formats_have_the_same_tables(folder, outline):
    texts = {p: (folder / p).read_text() for p in ("report.md", "report.tex")}
    assert texts["report.tex"].count(r"\begin{table}") == len(outline.all("table")) > 5
    assert len(re.findall(r"^\| ---", texts["report.md"], re.MULTILINE)) == len(
        outline.all("table")
    )
    for text in (*texts.values(), outline.text):
        for part in ("failed", "missing", "92.7", "another model", "revisit"):
            assert part in text


def test_markdown_shows_its_figures(folder):
    shown = re.findall(r"!\[(.+?)\]\((figures/[\w.-]+\.png)\)", (folder / "report.md").read_text())
    assert {Path(p).name for _, p in shown} == {p.name for p in (folder / "figures").iterdir()}
    assert all((folder / path).read_bytes()[1:4] == b"PNG" for _, path in shown)


def test_a_jobs_own_report_is_not_overwritten(real, tmp_path):  # noqa: F811
    save(tmp_path, "one", job(real, "cb"))
    with pytest.raises(UserError, match="--out=DIR"):
        report.main([str(tmp_path / "one")])
    assert [p.name for p in (tmp_path / "one").iterdir()] == ["results.json"]


def test_the_command(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "icljax.report", str(tmp_path / "no")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert (
        run.stderr
        == f"icljax: error: {tmp_path / 'no'} is no folder; give folders that hold results\n"
    )


# -------------------------------------------------------------------------------- markup and plots


def test_latex_rows_cannot_swallow_brackets():
    rows = [row("a", Cell("-0.1", "[-0.2, 0.3]")), row("[b]", "x-1")]
    section = Section("s", "s", (Table("k", "t", ("", "n"), rows),))
    text = markup.latex(Report("title", (), (section,)))
    assert "a & $-$0.1 {\\tiny {[}$-$0.2, 0.3{]}} \\\\" in text
    assert "{[}b{]} & x-1 \\\\" in text
    assert not re.search(r"\\\\\s*\[", text)
    assert text.count("\\begin{") == text.count("\\end{")


def test_dots_tell_their_numbers():
    marks = [plots.Mark("one", 0.0), plots.Mark("two", 0.5, (0.25, 1.0)), plots.Mark("no", None)]
    panel = plots.dots("title", [("row", marks)])
    body = plots.svg(panel, "k")
    assert panel.label == "title. row: 0.00 to 0.50"
    assert body.count("<title>two: 0.500 [0.250, 1.000]</title>") == 2  # its dot and its interval
    assert "<title>one: 0.000</title>" in body
    assert "no:" not in body


def test_curves_break_where_a_number_is_missing():
    y, band = (0.1, None, 0.3, 0.5), ((None, None), (None, None), (0.2, 0.4), (0.4, 0.6))
    curve = plots.Curve("c", "own", (0.001, 0.01, 0.1, 1.0), y, band)
    body = plots.svg(plots.lines("title", [curve], "rate", log=True), "k")
    (line,) = re.findall(r"<title>c: [^<]+</title>\s*<path d=\"([^\"]+)\"", body)
    pieces = [piece.split("L") for piece in line.split("M")[1:]]
    assert [len(piece) for piece in pieces][-1] == 2
    x = [float(piece[0].split()[0]) for piece in pieces]
    last = float(pieces[-1][1].split()[0])
    assert x[-1] - x[0] == pytest.approx(2 * (last - x[-1]), abs=0.3) or len(x) == 1


def test_colours_of_a_drawing_are_variables_of_the_page():
    marks = [plots.Mark("one", 0.1, (0.0, 0.2), style) for style in ("own", "ft", "data")]
    body = plots.svg(plots.dots("title", [("row", marks)]), "k")
    assert not re.search(r"#[0-9a-f]{6}", body)
    assert {"own", "ft", "data", "ink", "rule"} <= set(re.findall(r"var\(--(\w+)\)", body))
    assert len({light for light, _ in plots.PALETTE.values()}) == len(plots.PALETTE)


def test_nothing_to_merge(tmp_path):
    with pytest.raises(UserError, match="no results of a comparison"):
        report.merge([tmp_path], tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"accuracy": []},
        {"similarities": 3},
        {"similarities": None},
        {"model": "x"},
        {"rec2ftp": {}},
    ],
    ids=str,
)
def test_results_of_another_form_are_named(real, tmp_path, change):  # noqa: F811
    save(tmp_path, "fine", job(real, "cb"))
    save(tmp_path, "odd", job(real, "mr") | change)
    with pytest.raises(UserError, match=r"odd.results.json.* not the form of this version's"):
        report.main([str(tmp_path), f"--out={tmp_path / 'out'}"])


def test_numbers_that_json_does_not_have_are_refused(real, tmp_path):  # noqa: F811
    save(tmp_path, "odd", job(real, "mr"))
    file = tmp_path / "odd/results.json"
    file.write_text(file.read_text().replace('"evaluated":', '"evaluated": NaN, "x":', 1))
    with pytest.raises(UserError, match=r"results.json cannot be read .JSON is malformed"):
        report.main([str(tmp_path), f"--out={tmp_path / 'out'}"])
