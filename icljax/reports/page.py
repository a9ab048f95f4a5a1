"""One report of many jobs: report.md, report.tex and report.html, a page that needs no network."""

import html
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from icljax.catalog import CONTROLS, SIMILARITIES
from icljax.errors import UserError
from icljax.reports import charts, markup
from icljax.reports.drawings import Figure, figures, layer_causal_figures, main_groups
from icljax.reports.study import TITLES, Group, read
from icljax.reports.tables import Cell, Row, Table, all_tables, headline
from icljax.reports.wording import CAVEAT
from icljax.runtime import workdir

HTML = "report.html"
QUESTION = "Does in-context learning behave like finetuning?"
_ABOUT = (
    "A language model can learn a task from examples in its prompt (in-context learning, ICL) or "
    "by having its weights trained on them (finetuning, FT). Dai et al. (2023) found the two alike "
    "by four measures. This page repeats their measurements and holds each against control "
    "conditions: untrained models, corrupted demonstrations, other updates. A likeness that they "
    "share is no evidence of learning."
)
_SOURCES = (
    ("Dai et al. 2023, the paper", "https://arxiv.org/abs/2212.10559"),
    ("Deutch et al. 2024, the revisit", "https://arxiv.org/abs/2311.07772"),
)


def write(paths: Sequence[Path], out: Path) -> list[Path]:
    """Merges the results in these folders into a report in three formats, with figures.

    Returns:
        The files: Markdown, LaTeX, HTML.

    Raises:
        UserError: for folders without results, two results for one cell, a folder that is a job's
            own or cannot be written.
    """
    if (out / workdir.RESULTS).exists():
        raise UserError(f"{out} holds the report of one job; give another folder with --out=DIR")
    groups = read(paths)
    with workdir.writing(out):
        (out / "figures").mkdir(parents=True, exist_ok=True)
    workdir.check_writable(out / HTML)
    files = _files(groups)
    with workdir.writing(out):
        for name, text in files.items():
            workdir.write_atomically(out / name, text.encode())
    return [out / name for name in list(files)[:3]]


def _files(groups: Sequence[Group]) -> dict[str, str]:
    """The report's files by name."""
    tables, drawn = all_tables(groups), [f for g in main_groups(groups) for f in figures(g)]
    drawn += layer_causal_figures(groups)
    return {
        "report.md": _markdown(groups, tables, drawn),
        "report.tex": markup.latex(tables, QUESTION, _answers(groups)),
        HTML: _html(groups, tables, drawn),
        **{f"figures/{f.key}.svg": charts.standalone(f.panels, f.legend, f.title) for f in drawn},
    }


def _answers(groups: Sequence[Group]) -> list[str]:
    lines = []
    for group in main_groups(groups):
        answer, why = headline(group)
        lines += [answer, *(f"{what} {line}" for what, line in why)]
    return lines


# ---------------------------------------------------------------------------------- Markdown


def _markdown(groups: Sequence[Group], tables: Sequence[Table], drawn: Sequence[Figure]) -> str:
    text = markup.markdown_text
    parts = [f"# {QUESTION}", text(_ABOUT)]
    for group in main_groups(groups):
        answer, why = headline(group)
        parts += [f"**{text(answer)}**", "\n".join(f"- **{text(a)}** {text(b)}" for a, b in why)]
    parts += [text(CAVEAT), "## Figures"]
    for figure in drawn:
        alt = text(figure.title).replace("[", "(").replace("]", ")")
        parts += [f"![{alt}](figures/{figure.key}.svg)", f"*{alt}.* {text(figure.caption)}"]
    parts += ["## Tables", *map(markup.markdown, tables), "## How to read it", *_guides(text)]
    parts.append("Sources: " + "; ".join(f"[{name}]({url})" for name, url in _SOURCES) + ".")
    return "\n\n".join(parts) + "\n"


def _guides(text: Callable[[str], str]) -> list[str]:
    guides = [(m.title, m.guide.replace("*", "")) for m in SIMILARITIES.values()]
    guides += [(control.title, control.guide) for control in CONTROLS.values()]
    return ["\n".join(f"- **{text(title)}**: {text(guide)}" for title, guide in guides)]


# -------------------------------------------------------------------------------------- HTML

_PAGE_STYLE = """
*{box-sizing:border-box}
html{color-scheme:light dark;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);
font:1.0625rem/1.6 Charter,"Bitstream Charter","Iowan Old Style","Source Serif 4",Georgia,serif}
main,header,footer{max-width:74rem;margin:0 auto;padding:0 1.25rem}
header{padding-top:clamp(2rem,6vw,4.5rem)}
p,ul,ol,h1,h2,h3,figcaption,.notes,summary{max-width:44rem}
h1{font-size:clamp(1.8rem,5vw,2.7rem);line-height:1.15;letter-spacing:-.01em;margin:0 0 1.2rem;
font-weight:600}
h2{max-width:none;font-size:1.55rem;line-height:1.25;margin:3.5rem 0 .8rem;padding-top:1.2rem;
border-top:1px solid var(--rule);font-weight:600}
b{font-weight:600}
h3{font-size:1.1rem;line-height:1.35;margin:2.2rem 0 .5rem;font-weight:600}
.lead{font-size:1.3rem;line-height:1.45;margin:1.4rem 0 .9rem}
.kicker,nav,th,td,summary,.notes,.legend,footer{font-family:ui-sans-serif,system-ui,
"Liberation Sans",Helvetica,Arial,sans-serif}
.kicker{font-size:.8rem;letter-spacing:.06em;text-transform:uppercase;
color:var(--soft);margin:0 0 .8rem}
a{color:var(--icl)}
nav{font-size:.88rem;margin:1.8rem 0 0}
nav a{display:block;padding:.22rem 0;text-decoration:none}
nav a:hover{text-decoration:underline}
@media(min-width:70rem){header{display:grid;grid-template-columns:44rem 1fr;column-gap:4rem}
nav{margin-top:2.1rem;border-left:1px solid var(--rule);padding-left:1.6rem;align-self:start}}
.why{padding-left:1.2rem}.why li{margin:.45rem 0}
figure{margin:1.2rem 0 2rem}
.panels{display:grid;gap:1.4rem 2rem;
grid-template-columns:repeat(auto-fill,minmax(min(100%,20rem),1fr))}
.panels svg{width:100%;height:auto;max-width:30rem;display:block}
figcaption{font-size:.95rem;line-height:1.5;color:var(--soft);margin-top:.8rem}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;list-style:none;padding:0;margin:.2rem 0 .9rem;
font-size:.8rem;color:var(--soft);max-width:none}
.legend svg{width:22px;height:12px;margin-right:.45rem;vertical-align:-1px}
.scroll{overflow-x:auto;margin:.8rem 0 .4rem;border-top:2px solid var(--ink);
border-bottom:1px solid var(--ink)}
.scroll:focus-visible{outline:2px solid var(--icl)}
table{border-collapse:collapse;font-size:.84rem;line-height:1.3;font-variant-numeric:tabular-nums;
min-width:100%}
th,td{padding:.38rem .75rem;text-align:right;vertical-align:top;white-space:nowrap;font-weight:400}
thead th{border-bottom:1px solid var(--rule);color:var(--soft);font-size:.78rem;
vertical-align:bottom;white-space:normal;max-width:7.5rem}
th:first-child{text-align:left;position:sticky;left:0;background:var(--paper);white-space:normal;
min-width:8.5rem;max-width:16rem;padding-left:0}
.long td{white-space:normal;text-align:left;min-width:7rem;overflow-wrap:anywhere}
small{display:block;color:var(--soft);font-size:.74rem}
tr.group th{font-style:italic;padding-top:.9rem;color:var(--soft);max-width:none;position:static}
tr.group span{position:sticky;left:0;display:inline-block;max-width:min(84vw,44rem);
white-space:normal;text-align:left}
tr.own>*{font-weight:600}tr.own small{font-weight:400}
tr.paper>*{color:var(--soft);background:var(--wash)}
td.none{color:var(--data);font-style:italic}
.notes{font-size:.8rem;line-height:1.5;color:var(--soft);margin:.3rem 0 0}
details{margin:.6rem 0;border-bottom:1px solid var(--rule);padding-bottom:.4rem}
summary{cursor:pointer;font-size:.92rem;padding:.35rem 0}
summary:hover{color:var(--icl)}
code{font:.85em ui-monospace,"Liberation Mono",Menlo,monospace;overflow-wrap:anywhere}
dt{font-weight:600;margin-top:.7rem}dd{margin:0;max-width:44rem}
footer{font-size:.82rem;color:var(--soft);padding-top:2rem;padding-bottom:4rem}
@media print{details::details-content{content-visibility:visible}.scroll{overflow:visible}}
"""


def _html(groups: Sequence[Group], tables: Sequence[Table], drawn: Sequence[Figure]) -> str:
    sections = [
        ("claims", "The four claims, against controls", _claims_part(tables, drawn)),
        ("dose", "Dose and response", _part(tables, drawn, ("dose",))),
        ("layers", "Layer by layer", _part(tables, drawn, ("layers",))),
        ("accuracy", "The paper's tables, beside ours", _part(tables, drawn, _PAPER_PARTS)),
        ("lcgd", "Layer-causal gradient descent", _part(tables, drawn, ("lcgd",))),
        ("detail", "Every similarity and its controls", _part(tables, drawn, _DETAIL_PARTS)),
        ("missing", "What is missing", _part(tables, drawn, ("missing",))),
        ("reading", "How to read the measures", _reading()),
    ]
    shown = [section for section in sections if section[2]]
    links = "".join(f'<a href="#part-{key}">{_e(title)}</a>' for key, title, _ in shown)
    body = "".join(
        f'<section id="part-{key}"><h2>{_e(title)}</h2>{text}</section>'
        for key, title, text in shown
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{QUESTION}</title><style>{charts.STYLE}{_PAGE_STYLE}</style></head><body>"
        f"{_header(groups, links)}<main>{body}</main>{_footer()}</body></html>\n"
    )


_PAPER_PARTS = ("accuracy", "rec2ftp", "sim_aou", "sim_am", "kendall", "selection")
_DETAIL_PARTS = tuple(f"{name}-controls" for name in ("accuracy", *TITLES))


def _header(groups: Sequence[Group], links: str) -> str:
    answers = ""
    for group in main_groups(groups):
        answer, why = headline(group)
        items = "".join(f"<li><b>{_e(what)}</b> {_e(line)}</li>" for what, line in why)
        answers += f'<p class="lead">{_e(answer)}</p><ul class="why">{items}</ul>'
    return (
        '<header><div><p class="kicker">In-context learning against finetuning</p>'
        f"<h1>{QUESTION}</h1>{answers}<p>{_e(_ABOUT)}</p></div>"
        f'<nav aria-label="Sections">{links}</nav></header>'
    )


def _claims_part(tables: Sequence[Table], drawn: Sequence[Figure]) -> str:
    text = (
        "Each claim of the paper stands on a measure, in bold below. It holds in a task where that "
        "measure lies above its baseline and above every control: where the whole 95 % interval of "
        f"the paired difference lies above 0. {CAVEAT}"
    )
    return f"<p>{_e(text)}</p>{_part(tables, drawn, ('claims', 'controls'))}"


def _part(tables: Sequence[Table], drawn: Sequence[Figure], keys: Sequence[str]) -> str:
    """Tables and figures whose key is one of these, or starts with one and the name of a group."""

    def belongs(key: str) -> bool:
        return any(key == k or key.startswith(f"{k}-") for k in keys)

    figures = "".join(_figure(f) for f in drawn if belongs(f.key))
    return figures + "".join(_table(t) for t in tables if _own_part(t.key, keys))


def _own_part(key: str, keys: Sequence[str]) -> bool:
    """As `belongs`, but "sim_aou-controls-..." is no part of "sim_aou"."""
    if "-controls-" in key:
        return any(key.startswith(f"{k}-") for k in keys if k.endswith("-controls"))
    return any(key == k or key.startswith(f"{k}-") for k in keys)


def _figure(figure: Figure) -> str:
    legend = "".join(
        f'<li><svg class="panel" aria-hidden="true" viewBox="0 0 22 12">'
        f"{charts.swatch(c.kind)}</svg>{_e(c.name)}</li>"
        for c in figure.legend
    )
    body = (
        f'<ul class="legend">{legend}</ul>'
        f'<div class="panels">{"".join(map(charts.svg, figure.panels))}</div>'
        f"<figcaption>{_e(figure.caption)}</figcaption>"
    )
    return _section(figure.key, figure.title, f"<figure>{body}</figure>", figure.folded)


def _section(key: str, title: str, body: str, folded: bool) -> str:
    key = f"{html.escape(key)}"
    if folded:
        return f'<details id="{key}"><summary>{_e(title)}</summary>{body}</details>'
    return f'<h3 id="{key}">{_e(title)}</h3>{body}'


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{_e(h)}</th>' for h in table.header)
    rows = "".join(_row(row, len(table.header)) for row in table.rows)
    notes = "".join(f'<p class="notes">{_e(note)}</p>' for note in table.notes)
    kind = ' class="long"' if table.key == "missing" else ""
    body = (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_e(table.title)}">'
        f"<table{kind}><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{notes}"
    )
    return _section(f"table-{table.key}", table.title, body, table.folded)


def _row(row: Row, width: int) -> str:
    if row.kind == "group":
        text = f"<span>{_e(row.cells[0].text)}</span>"
        return f'<tr class="group"><th colspan="{width}" scope="colgroup">{text}</th></tr>'
    kind = f' class="{row.kind}"' if row.kind else ""
    first = f'<th scope="row">{_cell(row.cells[0])}</th>'
    rest = "".join(_data_cell(cell) for cell in row.cells[1:])
    return f"<tr{kind}>{first}{rest}</tr>"


def _data_cell(cell: Cell) -> str:
    kind = ' class="none"' if cell.text in ("missing", "failed") else ""
    return f"<td{kind}>{_cell(cell)}</td>"


def _cell(cell: Cell) -> str:
    return _e(cell.text) + (f"<small>{_e(cell.detail)}</small>" if cell.detail else "")


def _reading() -> str:
    guides = [(m.title, m.guide.replace("*", "")) for m in SIMILARITIES.values()]
    controls = [(control.title, control.guide) for control in CONTROLS.values()]

    def listed(pairs: Sequence[tuple[str, str]]) -> str:
        return "".join(f"<dt>{_e(k)}</dt><dd>{_e(v[:1].upper() + v[1:])}</dd>" for k, v in pairs)

    return (
        "<p>Intervals are 95 % bootstrap over seeds and examples (one draw of examples for all "
        "seeds, which read the same); differences are taken example by example before they are "
        "averaged.</p>"
        f"<details><summary>The measures</summary><dl>{listed(guides)}</dl></details>"
        f"<details><summary>The controls</summary><dl>{listed(controls)}</dl></details>"
    )


def _footer() -> str:
    links = " · ".join(f'<a href="{url}">{_e(name)}</a>' for name, url in _SOURCES)
    return (
        f"<footer><p>{links}</p><p>Made by <code>python -m icljax.report DIR...</code> from the "
        "result files alone; no text of any data set is in this page.</p></footer>"
    )


def _e(text: str) -> str:
    """Escaped text, with a proper minus before numbers."""
    return re.sub(r"(?<![\w.)])-(?=\d)", "\N{MINUS SIGN}", html.escape(text))
