"""Writes reports: of one job into its folder, of many jobs into a folder of their own.

python -m icljax.report DIR... [--out=DIR]
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from icljax.errors import UserError
from icljax.reports import beside, markup, merged, page, plots, study
from icljax.reports.document import Report
from icljax.runtime import downloads, workdir

MARKDOWN, LATEX, HTML = "report.md", "report.tex", "report.html"


def files(report: Report) -> dict[str, bytes]:
    """A report's files by name: Markdown with its figures, and one HTML page."""
    drawn = {figure.key: plots.png(figure) for figure in report.figures()}
    return {
        MARKDOWN: markup.markdown(report, drawn).encode(),
        HTML: page.page(report).encode(),
        **{f"figures/{key}.png": content for key, content in drawn.items()},
    }


def save(path: Path, content: dict[str, bytes]) -> None:
    """Writes files into the existing folder `path`, each at once."""
    for name, data in content.items():
        (path / name).parent.mkdir(exist_ok=True)
        workdir.write_atomically(path / name, data)


def write(path: Path, report: Report) -> None:
    """Writes the report of one job into its folder."""
    save(path, files(report))


# ------------------------------------------------------------------------------------ many jobs


def merge(paths: Sequence[Path], out: Path) -> list[Path]:
    """Merges the results in these folders into a report in three formats, with figures.

    Comparisons become one study; crossed jobs, which differ in their answers alone, columns.

    Returns:
        The files: Markdown, LaTeX, HTML.

    Raises:
        UserError: for folders without results, two results for one cell, a folder that is a job's
            own or cannot be written.
    """
    if (out / workdir.RESULTS).exists():
        raise UserError(f"{out} holds the report of one job; give another folder with --out=DIR")
    crossed = beside.read(paths)
    report = beside.report(crossed) if crossed else merged.report(study.read(paths))
    with workdir.writing(out):
        (out / "figures").mkdir(parents=True, exist_ok=True)
    workdir.check_writable(out / HTML)
    content = files(report) | {LATEX: markup.latex(report).encode()}
    with workdir.writing(out):
        save(out, content)
    return [out / name for name in (MARKDOWN, LATEX, HTML)]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """A mistake, in one line as every other."""
        raise UserError(f"{message}; usage: python -m icljax.report DIR... [--out=DIR]")


def main(argv: Sequence[str] | None = None) -> None:
    """Merges the results of many jobs into one report."""
    parser = _Parser(prog="python -m icljax.report", description=main.__doc__)
    parser.add_argument("folders", nargs="+", metavar="DIR", help="holds results")
    parser.add_argument("--out", metavar="DIR", help="for the report; default: the first")
    given = parser.parse_args(argv)
    folders = [downloads.user_path(folder, "DIR") for folder in given.folders]
    out = downloads.user_path(given.out, "--out") if given.out else folders[0]
    for file in merge(folders, out):
        print(file)
