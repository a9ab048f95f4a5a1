"""Charts as SVG text, drawn by hand: small panels that a page lays out side by side.

Colours are CSS classes (`STYLE`), so that one drawing serves light and dark pages.
"""

import html
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from icljax.reports.wording import number

WIDTH = 340  # of every panel, in its own units
_LINES_HEIGHT, _ROW, _TOP, _BOTTOM = 230, 30, 30, 30

STYLE = """
:root{--paper:#fdfcf9;--ink:#22242a;--soft:#5b5e66;--rule:#dcd8cf;--wash:#f4f1ea;--own:#b0305f;
--zsl:#a86b00;--icl:#0067a3;--ft:#00775a;--base:#85888f;--model:#5f6269;--data:#b45309;
--update:#5d54a4}
@media (prefers-color-scheme:dark){:root{--paper:#16181c;--ink:#e7e4dd;--soft:#a5a7ad;
--rule:#363a42;--wash:#1f2228;--own:#f28ab2;--zsl:#e3b04e;--icl:#6fb7ec;--ft:#52c9a3;
--base:#8d9097;--model:#b4b7be;--data:#f0a355;--update:#a9a1ee}}
.panel text{font:11px/1 ui-sans-serif,system-ui,"Liberation Sans",Helvetica,Arial,sans-serif;
fill:var(--soft)}
.panel .name{font-weight:600;font-size:12.5px;fill:var(--ink)}
.panel .row{fill:var(--ink)}
.panel .axis{stroke:var(--rule)}.panel .zero{stroke:var(--soft);stroke-dasharray:2 3}
.panel .line{fill:none;stroke-width:1.8;stroke-linejoin:round}.panel .band{opacity:.16;stroke:none}
.panel .thin{stroke-width:1.2}.panel .dash{stroke-dasharray:5 3}.panel .dot{stroke-dasharray:1 3}
.own{--c:var(--own)}.zsl{--c:var(--zsl)}.icl{--c:var(--icl)}.ft{--c:var(--ft)}.base{--c:var(--base)}
.model{--c:var(--model)}.data{--c:var(--data)}.update{--c:var(--update)}
.panel .mark{stroke:var(--c);fill:var(--c)}.panel .line{stroke:var(--c)}.panel .band{fill:var(--c)}
"""


# (x, y, low, high): a None in y breaks a line, in low or high its band.
Point = tuple[float, float | None, float | None, float | None]


class Mark(NamedTuple):
    """A dot with its interval.

    Attributes:
        name: what it is of, for the tooltip.
        mean: where it stands; None is not drawn.
        interval: (low, high); None in it: the dot alone.
        kind: CSS class, the colour.
    """

    name: str
    mean: float | None
    interval: tuple[float | None, float | None] = (None, None)
    kind: str = "own"


class Curve(NamedTuple):
    """A line through points.

    Attributes:
        name: of the legend.
        points: from left to right.
        kind: CSS classes, e.g. "ft dash".
    """

    name: str
    points: list[Point]
    kind: str


class Panel(NamedTuple):
    """A drawing of its own, `WIDTH` wide.

    Attributes:
        label: alternative text.
        height: in the drawing's units.
        body: SVG elements.
    """

    label: str
    height: float
    body: str


def svg(panel: Panel) -> str:
    """The panel as an element of a page."""
    return (
        f'<svg class="panel" role="img" aria-label="{html.escape(panel.label)}" '
        f'viewBox="0 0 {WIDTH} {panel.height:g}">{panel.body}</svg>'
    )


def standalone(panels: Sequence[Panel], legend: Sequence[Curve], label: str) -> str:
    """Panels in two columns as one SVG file, with a legend under them."""
    columns = min(2, len(panels))
    width, body = columns * (WIDTH + 20), ""
    height: float = 10
    for row in range(0, len(panels), columns):
        beside = panels[row : row + columns]
        for i, panel in enumerate(beside):
            left = 10 + i * (WIDTH + 20)
            body += (
                f'<svg x="{left}" y="{height:g}" width="{WIDTH}" height="{panel.height:g}">'
                f"{panel.body}</svg>"
            )
        height += 14 + max(panel.height for panel in beside)
    x: float = 20
    for curve in legend:
        length = 40 + 6.2 * len(curve.name)
        if x + length > width and x > 20:
            x, height = 20, height + 18
        body += swatch(curve.kind, x, height + 6) + _text(x + 28, height + 10, curve.name)
        x += length
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="panel" role="img" '
        f'aria-label="{html.escape(label)}" width="{width}" height="{height + 24:g}" '
        f'viewBox="0 0 {width} {height + 24:g}"><style>{STYLE}</style>'
        f'<rect width="100%" height="100%" fill="var(--paper)"/>{body}</svg>'
    )


def swatch(kind: str, x: float = 0, y: float = 6) -> str:
    """A short piece of a curve, for a legend."""
    return f'<path class="line {kind}" d="M{x:g} {y:g}h22"/>'


def dots(title: str, rows: Sequence[tuple[str, Sequence[Mark]]]) -> Panel:
    """Rows of dots with their intervals over one axis; a line at 0."""
    values = [v for _, marks in rows for m in marks for v in (m.mean, *m.interval) if v is not None]
    low, high, ticks = _ticks([*values, 0.0])
    left, right, height = 142, WIDTH - 14, _TOP + _ROW * len(rows)
    across = _scale(low, high, left, right)
    body = _name(title)
    for tick in ticks:
        kind = "zero" if tick == 0 else "axis"
        body += f'<path class="{kind}" d="M{across(tick):.1f} {_TOP - 4}V{height}"/>'
        body += _text(across(tick), height + 14, f"{tick:g}", "middle")
    for i, (name, marks) in enumerate(rows):
        middle = _TOP + _ROW * (i + 0.5)
        body += _text(left - 10, middle + 4, name, "end", "row")
        step = min(5.0, 24 / max(len(marks), 1))
        for j, mark in enumerate(marks):
            body += _mark(mark, across, middle + step * (j - (len(marks) - 1) / 2))
    return Panel(f"{title}. {_described(rows)}", height + 22, body)


def _described(rows: Sequence[tuple[str, Sequence[Mark]]]) -> str:
    texts = []
    for name, marks in rows:
        known = [m.mean for m in marks if m.mean is not None]
        ends = dict.fromkeys(number(v, 2) for v in (min(known), max(known))) if known else ("-",)
        texts.append(f"{name}: {' to '.join(ends)}")
    return "; ".join(texts)


def _mark(mark: Mark, across: Callable[[float], float], y: float) -> str:
    if mark.mean is None:
        return ""
    low, high = mark.interval
    bar, text = "", f"{mark.name}: {number(mark.mean)}"
    if low is not None and high is not None:
        bar = f'<path d="M{across(low):.1f} {y:.1f}H{across(high):.1f}" stroke-width="1.4"/>'
        text += f" [{number(low)}, {number(high)}]"
    dot = f'<circle cx="{across(mark.mean):.1f}" cy="{y:.1f}" r="2.6" stroke="none"/>'
    return f'<g class="mark {mark.kind}"><title>{html.escape(text)}</title>{bar}{dot}</g>'


def lines(
    title: str,
    curves: Sequence[Curve],
    x_title: str,
    log: bool = False,
    chosen: Sequence[float] = (),
) -> Panel:
    """Curves with their bands over one axis; `chosen` points of it are marked.

    Args:
        log: whether x is logarithmic, as learning rates are.
    """
    xs = [p[0] for curve in curves for p in curve.points]
    ys = [v for curve in curves for p in curve.points for v in p[1:] if v is not None]
    low, high, ticks = _ticks([*ys, 0.0])
    left, right, bottom = 38, WIDTH - 10, _LINES_HEIGHT - _BOTTOM - 8
    up = _scale(low, high, bottom, _TOP)
    first, last = min(xs, default=1), max(xs, default=1)
    convert: Callable[[float], float] = math.log10 if log else float
    across = _scale(convert(first), convert(last), left + 6, right - 6)

    def x_of(x: float) -> float:
        return across(convert(x))

    body = _name(title)
    for tick in ticks:
        kind = "zero" if tick == 0 else "axis"
        body += f'<path class="{kind}" d="M{left} {up(tick):.1f}H{right}"/>'
        body += _text(left - 6, up(tick) + 4, f"{tick:g}", "end")
    for x, text in _x_ticks(first, last, log):
        body += f'<path class="axis" d="M{x_of(x):.1f} {bottom}v4"/>'
        body += _text(x_of(x), bottom + 16, text, "middle")
    body += _text((left + right) / 2, bottom + 31, x_title, "middle")
    for x in dict.fromkeys(chosen):
        at = x_of(x)
        body += f'<path class="mark own" stroke="none" d="M{at:.1f} {bottom - 7}l-4 7h8z"/>'
    body += "".join(_curve(curve, x_of, up) for curve in curves)
    ends = "; ".join(f"{c.name}: {_ends(c)}" for c in curves)
    return Panel(f"{title}, by {x_title}. {ends}", _LINES_HEIGHT, body)


def _ends(curve: Curve) -> str:
    known = [y for _, y, *_ in curve.points if y is not None]
    if not known:
        return "-"
    return f"{number(min(known), 2)} to {number(max(known), 2)}, last {number(known[-1], 2)}"


def _curve(curve: Curve, x_of: Callable[[float], float], up: Callable[[float], float]) -> str:
    body = ""
    for piece in _unbroken(curve.points):
        xy = [f"{x_of(x):.1f} {up(y):.1f}" for x, y, _, _ in piece if y is not None]
        lower = [f"{x_of(x):.1f} {up(low):.1f}" for x, _, low, _ in piece if low is not None]
        upper = [f"{x_of(x):.1f} {up(high):.1f}" for x, _, _, high in piece if high is not None]
        if len(lower) == len(upper) == len(xy):
            band = "L".join([*lower, *upper[::-1]])
            body += f'<path class="band {curve.kind}" d="M{band}z"/>'
        body += f'<path class="line {curve.kind}" d="M{"L".join(xy)}"/>'
    return f"<g><title>{html.escape(curve.name)}</title>{body}</g>"


def _unbroken(points: Iterable[Point]) -> list[list[Point]]:
    pieces: list[list[Point]] = [[]]
    for point in points:
        if point[1] is None:
            pieces.append([])
        else:
            pieces[-1].append(point)
    return [piece for piece in pieces if piece]


def _x_ticks(first: float, last: float, log: bool) -> list[tuple[float, str]]:
    if log:
        powers = range(math.floor(math.log10(first)), math.ceil(math.log10(last)) + 1)
        inside = [p for p in powers if first <= 10**p * 1.001 and 10**p <= last * 1.001]
        return [(10.0**p, f"{10.0**p:g}") for p in inside]
    step = max(1, math.ceil((last - first) / 6))
    return [(x, f"{x:g}") for x in range(int(first), int(last) + 1, step)]


def _ticks(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """(low, high, ticks): round numbers around all values."""
    span = (max(values) - min(values)) or 1.0
    power = 10 ** math.floor(math.log10(span / 4))
    step = next(power * k for k in (1, 2, 5, 10) if span / (power * k) <= 5)
    low, high = math.floor(min(values) / step), math.ceil(max(values) / step)
    if low == high:
        high += 1
    return low * step, high * step, [round(k * step, 10) for k in range(low, high + 1)]


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = (high - low) or 1.0
    return lambda value: start + (end - start) * (value - low) / span


def _name(title: str) -> str:
    return _text(4, 14, title, "start", "name")


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{html.escape(text)}</text>'
