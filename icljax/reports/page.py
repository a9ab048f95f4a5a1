"""A report as one HTML page that needs no network: templates/page.html and page.css."""

import re
from importlib import resources

import jinja2
import markupsafe

from icljax.reports import plots
from icljax.reports.document import Block, Report


def page(report: Report) -> str:
    """The whole page; figures are inline SVG, in the colours of a light or a dark screen."""
    folder = resources.files("icljax.reports") / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (folder / name).read_text()),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"signs": _signs, "stroke": _stroke, "svg": _svg, "kind": _kind}
    style = markupsafe.Markup((folder / "page.css").read_text())
    template = environment.get_template("page.html")
    return template.render(report=report, palette=plots.PALETTE, style=style)


def _kind(block: Block) -> str:
    return type(block).__name__


def _signs(text: str) -> markupsafe.Markup:
    """Escaped text, with a proper minus before numbers."""
    escaped = str(markupsafe.escape(text))
    return markupsafe.Markup(re.sub(r"(?<![\w.)])-(?=\d)", "\N{MINUS SIGN}", escaped))


def _svg(panel: plots.Panel, prefix: str) -> markupsafe.Markup:
    return markupsafe.Markup(plots.svg(panel, re.sub(r"\W", "-", prefix)))


def _stroke(style: str) -> str:
    """CSS of a line in a legend."""
    color, *rest = style.split()
    dashes = {"dash": "5 3", "dot": "1 2.5"}
    dash = next((f";stroke-dasharray:{dashes[w]}" for w in rest if w in dashes), "")
    return f"stroke:var(--{color});stroke-width:{1.2 if 'thin' in rest else 2}{dash}"
