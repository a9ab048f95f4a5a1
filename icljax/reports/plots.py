"""Panels drawn by matplotlib: as one PNG for Markdown, as inline SVG for a page.

A style is words: a colour of `PALETTE`, then any of "dash", "dot", "thin" ("ft dash"). In SVG each
colour becomes a CSS variable of that name, so that one drawing serves light and dark pages.
"""

import html
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from icljax.reports.document import Figure, Panel
from icljax.reports.text import interval, number, rate
from icljax.results import Interval, Number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

WIDTH = 3.4  # inches, of every panel
# name -> (light, dark). No two light colours are the same: SVG's colours are told apart by them.
PALETTE = {
    "paper": ("#fdfcf9", "#16181c"),
    "ink": ("#22242a", "#e7e4dd"),
    "soft": ("#5b5e66", "#a5a7ad"),
    "rule": ("#dcd8cf", "#363a42"),
    "wash": ("#f4f1ea", "#1f2228"),
    "own": ("#b0305f", "#f28ab2"),
    "zsl": ("#a86b00", "#e3b04e"),
    "icl": ("#0067a3", "#6fb7ec"),
    "ft": ("#00775a", "#52c9a3"),
    "base": ("#85888f", "#8d9097"),
    "model": ("#5f6269", "#b4b7be"),
    "data": ("#b45309", "#f0a355"),
    "update": ("#5d54a4", "#a9a1ee"),
}
# For lines that are of no kind with a colour of its own, in this order.
COLORS = ("icl", "zsl", "own", "ft", "update", "data")
DASHES: dict[str, Any] = {"dash": (0, (5, 3)), "dot": (0, (1, 1.8))}
_LIGHT = {name: light for name, (light, _) in PALETTE.items()}
_STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": _LIGHT["soft"],
    "axes.facecolor": "none",
    "axes.labelcolor": _LIGHT["soft"],
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": _LIGHT["ink"],
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "figure.facecolor": "none",
    "font.size": 8,
    "grid.color": _LIGHT["rule"],
    "grid.linewidth": 0.7,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "legend.labelcolor": _LIGHT["ink"],
    "svg.fonttype": "none",
    "svg.hashsalt": "icljax",
    "xtick.color": _LIGHT["soft"],
    "xtick.major.width": 0.6,
    "ytick.color": _LIGHT["soft"],
    "ytick.major.width": 0.6,
}


@dataclass(frozen=True)
class Curve:
    """A line through points, with a band where there are intervals.

    Attributes:
        name: of the legend and the tooltip.
        style: see the module.
        x, y: as many as there are points; None breaks the line.
        band: (low, high) of each point; (): none.
    """

    name: str
    style: str
    x: tuple[float, ...]
    y: tuple[Number, ...]
    band: tuple[Interval, ...] = ()


@dataclass(frozen=True)
class Mark:
    """A dot with its interval; a mean of None is not drawn."""

    name: str
    mean: Number
    interval: Interval = (None, None)
    style: str = "own"


def line_style(style: str) -> dict[str, Any]:
    """Matplotlib's arguments for a style."""
    color, *rest = style.split()
    dashes = next((DASHES[word] for word in rest if word in DASHES), "-")
    width = 1.1 if "thin" in rest else 1.7
    return {"color": _LIGHT[color], "linestyle": dashes, "linewidth": width}


def lines(
    title: str,
    curves: Sequence[Curve],
    x_title: str,
    log: bool = False,
    chosen: Sequence[float] = (),
    from_zero: bool = True,
    log_y: tuple[float, float] | None = None,
) -> Panel:
    """Curves over one axis.

    Args:
        log: whether x is logarithmic.
        chosen: places of x that get a triangle.
        from_zero: whether the axis of y holds 0, and a line there.
        log_y: ends of a logarithmic axis of y; curves may leave it.
    """

    def draw(ax: "Axes") -> None:
        ax.set_title(title)
        if log_y:
            _loss_axis(ax, log_y)
        elif from_zero:
            ax.axhline(0, color=_LIGHT["soft"], linewidth=0.6, linestyle=DASHES["dot"])
        for curve in curves:
            _draw_curve(ax, curve)
        places = sorted({x for curve in curves for x in curve.x})
        (_rate_axis if log else _count_axis)(ax, places)
        ax.set_xlabel(x_title)
        ax.grid(axis="y")
        if not log_y:
            ax.locator_params(axis="y", nbins=6)
        at = list(dict.fromkeys(chosen))
        bottom: Any = ax.get_xaxis_transform()
        ax.plot(at, [0.02] * len(at), "^", color=_LIGHT["own"], markersize=5, transform=bottom)

    ends = "; ".join(f"{c.name}: {_ends(c)}" for c in curves)
    return Panel(f"{title}, by {x_title}. {ends}", draw)


def _draw_curve(ax: "Axes", curve: Curve) -> None:
    style = line_style(curve.style)
    x, y = np.array(curve.x, float), np.array(curve.y, float)
    if curve.band:
        low, high = np.array(curve.band, float).T
        # On a logarithmic axis, an interval that reaches below 0 would fill the panel.
        shown = low > 0 if ax.get_yscale() == "log" else None
        ax.fill_between(x, low, high, where=shown, color=style["color"], alpha=0.16, linewidth=0)
    alone = "o" if len(x) == 1 else None
    (line,) = ax.plot(x, y, marker=alone, markersize=3.6, label=curve.name, **style)
    _tip(line, f"{curve.name}: {_ends(curve)}")


def _ends(curve: Curve) -> str:
    known = [y for y in curve.y if y is not None]
    if not known:
        return "-"
    return f"{number(min(known), 2)} to {number(max(known), 2)}, last {number(known[-1], 2)}"


def _loss_axis(ax: "Axes", ends: tuple[float, float]) -> None:
    from matplotlib.ticker import LogLocator

    ax.set_yscale("log")
    ax.set_ylim(*ends)
    ax.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter("")


def _rate_axis(ax: "Axes", rates: Sequence[float]) -> None:
    ax.set_xscale("log")
    powers = [10.0**p for p in range(-12, 13) if rates[0] <= 1.001 * 10**p <= 1.002 * rates[-1]]
    shown = powers if len(powers) > 1 else [rates[0], rates[-1]]
    ax.set_xticks(shown, [rate(r) for r in shown])
    ax.set_xticks([], minor=True)


def _count_axis(ax: "Axes", places: Sequence[float]) -> None:
    ax.locator_params(axis="x", integer=True)
    if places:
        ax.set_xlim(places[0] - 0.5, places[-1] + 0.5)


def dots(title: str, rows: Sequence[tuple[str, Sequence[Mark]]], unit: str = "") -> Panel:
    """Rows of dots with their intervals over one axis; a line at 0."""

    def draw(ax: "Axes") -> None:
        ax.set_title(title)
        ax.axvline(0, color=_LIGHT["soft"], linewidth=0.7, linestyle=DASHES["dot"])
        for i, (_, marks) in enumerate(rows):
            step = min(0.17, 0.8 / max(len(marks), 1))
            for j, mark in enumerate(marks):
                _draw_mark(ax, mark, i + step * (j - (len(marks) - 1) / 2))
        ax.set_yticks(range(len(rows)), [name for name, _ in rows], color=_LIGHT["ink"])
        ax.set_ylim(len(rows) - 0.45, -0.55)
        ax.locator_params(axis="x", nbins=5)
        ax.grid(axis="x")
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        ax.set_xlabel(unit)

    height = 0.65 + 0.3 * len(rows) + (0.15 if unit else 0)
    return Panel(f"{title}. {_described(rows)}", draw, height, left=0.42)


def _draw_mark(ax: "Axes", mark: Mark, y: float) -> None:
    if mark.mean is None:
        return
    color = _LIGHT[mark.style.split()[0]]
    text = f"{mark.name}: {number(mark.mean)} {interval(mark.interval)}".strip()
    if None not in mark.interval:
        low, high = mark.interval
        (line,) = ax.plot([low or 0, high or 0], [y, y], color=color, linewidth=1.3)
        _tip(line, text)
    (dot,) = ax.plot(mark.mean, y, "o", color=color, markersize=3.6, label=mark.name)
    _tip(dot, text)


def _described(rows: Sequence[tuple[str, Sequence[Mark]]]) -> str:
    texts = []
    for name, marks in rows:
        known = [m.mean for m in marks if m.mean is not None]
        ends = dict.fromkeys(number(v, 2) for v in (min(known), max(known))) if known else ("-",)
        texts.append(f"{name}: {' to '.join(ends)}")
    return "; ".join(texts)


def heat(title: str, values: Sequence[Sequence[Number]], x_title: str, y_title: str) -> Panel:
    """A map of numbers around 0, [x, y]."""
    grid = np.array(values, float)
    size = max(0.05, float(np.abs(np.nan_to_num(grid)).max()))

    def draw(ax: "Axes") -> None:
        ax.set_title(title)
        image = ax.imshow(grid.T, cmap="RdBu_r", vmin=-size, vmax=size, aspect="auto")
        for axis, count in zip((ax.xaxis, ax.yaxis), grid.shape, strict=True):
            places = range(0, count, max(1, math.ceil(count / 10)))
            axis.set_ticks(places, [str(place + 1) for place in places])
        ax.set_xlabel(x_title)
        ax.set_ylabel(y_title)
        ax.figure.colorbar(image, ax=ax)

    low, high = np.nan_to_num(grid).min(), np.nan_to_num(grid).max()
    return Panel(f"{title}: {number(low, 2)} to {number(high, 2)}", draw)


def crossed(title: str, values: Sequence[Sequence[Number]], names: Sequence[str]) -> Panel:
    """A matrix of prompts (down) and updates (across), in blocks with their means.

    Args:
        values: [P][U], as many prompts and updates of each of `names`.
    """
    grid = np.array(values, float)
    size = len(grid) // len(names)
    low, high = np.nanmin(grid), np.nanmax(grid)
    shade = (grid - low) / max(high - low, 1e-9)
    ends = [(i * size, (i + 1) * size) for i in range(len(names))]
    middles = [(a + b) / 2 for a, b in ends]

    def draw(ax: "Axes") -> None:
        from matplotlib.patches import Rectangle

        ax.set_title(title)
        for (i, j), value in np.ndenumerate(grid):
            alpha = 0.08 + 0.8 * float(np.nan_to_num(shade[i, j]))
            cell = Rectangle((j, i), 1, 1, facecolor=_LIGHT["icl"], alpha=alpha, linewidth=0)
            tip = f"ICL {_seed(i, size, names)}, FT {_seed(j, size, names)}: {value:.4f}"
            _tip(ax.add_patch(cell), tip)
        for a, b in ends:
            for c, d in ends:
                text = f"{np.nanmean(grid[a:b, c:d]):.3f}"
                box = {"facecolor": _LIGHT["paper"], "edgecolor": "none", "pad": 1.5}
                middle = ((c + d) / 2, (a + b) / 2)
                ax.text(*middle, text, color=_LIGHT["ink"], ha="center", va="center", bbox=box)
        ax.plot([0, len(grid)], [0, len(grid)], color=_LIGHT["own"], linewidth=0.8)
        for start, _ in ends[1:]:
            ax.axhline(start, color=_LIGHT["paper"], linewidth=2)
            ax.axvline(start, color=_LIGHT["paper"], linewidth=2)
        ax.set_xlim(0, len(grid))
        ax.set_ylim(len(grid), 0)
        ax.set_xticks(middles, [f"FT, {name}" for name in names])
        ax.set_yticks(middles, [f"ICL,\n{name}" for name in names])
        ax.tick_params(length=0)

    own = np.diagonal(grid)[:size].mean()
    other = grid[:size, :size][~np.eye(size, dtype=bool)].mean()
    label = f"{title}: same demonstrations {own:.4f}, others {other:.4f}"
    return Panel(label, draw, height=2.9, left=0.24)


def _seed(place: int, size: int, names: Sequence[str]) -> str:
    """What a row or column of `crossed` is."""
    return f"seed number {place % size + 1}, {names[place // size]}"


def _tip(artist: Any, text: str) -> None:
    """Shows a text where the pointer rests on what is drawn (in SVG)."""
    artist.set_gid("tip-" + text.encode().hex())


# ------------------------------------------------------------------------------------- files


def _drawing(width: float, height: float, layout: Any = None) -> "Drawing":
    """A figure that belongs to no window and to no global list."""
    from matplotlib.figure import Figure as Drawing

    return Drawing(figsize=(width, height), layout=layout)


def png(figure: Figure) -> bytes:
    """The figure's panels, two in a row, over its legend."""
    import matplotlib  # half a second, which other commands should not wait

    columns = min(2, len(figure.panels))
    groups = [figure.panels[i : i + columns] for i in range(0, len(figure.panels), columns)]
    heights = [max(panel.height for panel in group) for group in groups]
    lines_of_legend = math.ceil(len(figure.legend) / (2 * columns))
    with matplotlib.rc_context(_STYLE):
        width = 1.3 * WIDTH * columns
        size = (width, 1.15 * sum(heights) + 0.22 * lines_of_legend)
        drawing = _drawing(*size, layout="constrained")
        drawing.set_facecolor("white")
        axes = drawing.subplots(len(groups), columns, height_ratios=heights, squeeze=False)
        for group, of_row in zip(groups, axes, strict=True):
            for panel, ax in zip(group, of_row, strict=False):
                panel.draw(ax)
            for ax in of_row[len(group) :]:
                ax.set_axis_off()
        _draw_legend(drawing, figure, 2 * columns)
        buffer = io.BytesIO()
        drawing.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _draw_legend(drawing: "Drawing", figure: Figure, columns: int) -> None:
    from matplotlib.lines import Line2D

    if figure.legend:
        handles = [Line2D([], [], **line_style(style)) for _, style in figure.legend]
        names = [name for name, _ in figure.legend]
        drawing.legend(handles, names, loc="outside lower center", ncols=columns)


def svg(panel: Panel, prefix: str) -> str:
    """The panel as an element of a page; `prefix` makes its ids unique there."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        drawing = _drawing(WIDTH, panel.height)
        bottom, top = 0.42 / panel.height, 1 - 0.24 / panel.height
        ax = drawing.add_axes((panel.left, bottom, 0.97 - panel.left, top - bottom))
        panel.draw(ax)
        if panel.left > 0.2:  # the title above the row names, not above the axes
            ax.set_title(ax.get_title(loc="left"), x=-(panel.left - 0.01) / (0.97 - panel.left))
        buffer = io.StringIO()
        drawing.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue(), panel, prefix)


def _inline(text: str, panel: Panel, prefix: str) -> str:
    """The file as an element: colours as variables, ids made unique, tooltips."""
    body = text[text.index("<defs>") : text.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = body.replace('<g id="tip-', '<g class="tip-')
    used = set(re.findall(r"(?:url\(|href=\")#([^\")]+)", body))
    body = re.sub(
        r' id="([^"]+)"', lambda m: f' id="{prefix}-{m[1]}"' if m[1] in used else "", body
    )
    body = re.sub(r'(url\(|href=")#', rf"\1#{prefix}-", body)
    names = {light: name for name, light in _LIGHT.items()}
    body = re.sub(r"#[0-9a-f]{6}\b", lambda m: _variable(m[0], names), body)
    body = re.sub(r" font-family: [^;]*;", "", body).replace("xlink:href", "href")
    # A hundredth of a point is enough; numbers that are read, outside of tags, stay as they are.
    body = re.sub(r"<[^>]*>", lambda m: re.sub(r"(\.\d\d)\d+", r"\1", m[0]), body)
    body = re.sub(r"\s*\n\s*", "\n", body)
    body = re.sub(
        r'<g class="tip-([0-9a-f]+)">',
        lambda m: f"<g><title>{html.escape(bytes.fromhex(m[1]).decode())}</title>",
        body,
    )
    width, height = 72 * WIDTH, 72 * panel.height
    return (
        f'<svg class="panel" role="img" aria-label="{html.escape(panel.label)}" '
        f'viewBox="0 0 {width:g} {height:g}">{body}</svg>'
    )


def _variable(color: str, names: dict[str, str]) -> str:
    return f"var(--{names[color]})" if color in names else color
