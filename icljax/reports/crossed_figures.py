"""The figures of a crossed comparison."""

from icljax.catalog import CROSSED
from icljax.records import Crossed, LayerContrast, RateCurve
from icljax.reports import plots
from icljax.reports.document import Figure
from icljax.reports.text import rate

_CONTRAST = "Cosine of (ICL right - wrong) and (FT right - wrong), own pairs, with 95 % intervals."


def title(measure: str) -> str:
    """What of `catalog.CROSSED` it is, as a heading."""
    return _capital(CROSSED[measure].title)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def matrices(found: Crossed) -> Figure:
    """Every prompt with every update, as a heat map."""
    halves = ("right labels", "wrong labels")[: len(found.matrix["output"]) // len(found.seeds)]
    panels = [plots.crossed(CROSSED[k].title, values, halves) for k, values in found.matrix.items()]
    return Figure(
        "matrix",
        "Every prompt with every update",
        "Similarity of what each prompt and each update change, mean over queries and layers; the "
        "number is the block's mean. If it mattered which demonstrations were seen, the diagonal "
        "would stand out; if it mattered whether labels were right, the blocks would differ.",
        panels,
    )


def curves(found: Crossed) -> Figure:
    """Similarity and accuracy of every learning rate, over the size of the step."""
    s = found.selection
    sides = {"trained model": ("own", s.curve)}
    if s.untrained:
        sides["untrained model"] = ("model dash", s.untrained)
    titles = {k: CROSSED[k].title for k in ("output", "map", "answers")}
    titles["accuracy"] = "calibrated accuracy of FT"
    place = s.curve.learning_rates.index(s.rate)
    panels = [_step_panel(title, field, sides, place) for field, title in titles.items()]
    return Figure(
        "steps",
        "Over the step of attention outputs",
        f"Own pairs on selection examples, a point a learning rate; the triangle is the step of "
        f"the chosen one, {rate(s.rate)}.",
        panels,
        tuple((name, style) for name, (style, _) in sides.items()),
    )


def _step_panel(
    title: str, field: str, sides: dict[str, tuple[str, RateCurve]], place: int
) -> plots.Panel:
    """Args: place: of the chosen rate."""
    curves = []
    for name, (style, curve) in sides.items():
        points = zip(curve.step, getattr(curve, field), strict=True)
        known = sorted((x, y) for x, y in points if x is not None and y is not None)
        curves.append(
            plots.Curve(name, style, tuple(x for x, _ in known), tuple(y for _, y in known))
        )
    chosen = sides["trained model"][1].step[place]
    at = () if chosen is None else (chosen,)
    return plots.lines(_capital(title), curves, "step", log=True, chosen=at)


def layer_curve(contrast: LayerContrast, style: str, name: str) -> plots.Curve:
    """A contrast over the layers, with its intervals."""
    x = tuple(float(i + 1) for i in range(len(contrast.mean)))
    band = tuple(zip(contrast.low, contrast.high, strict=True))
    known = all(None not in pair for pair in band)
    return plots.Curve(name, style, x, contrast.mean, band if known else ())


def layers_beside(key: str, heading: str, jobs: dict[str, Crossed]) -> Figure:
    """The label contrasts of several jobs in one panel each; `jobs` by what tells them apart."""
    styles = [plots.COLORS[i % len(plots.COLORS)] for i in range(len(jobs))]
    named = tuple(zip(jobs, styles, strict=True))
    panels = [
        plots.lines(
            title(k),
            [layer_curve(jobs[name].layers[k], style, name) for name, style in named],
            "layer",
        )
        for k in next(iter(jobs.values())).layers
    ]
    return Figure(key, heading, _CONTRAST, panels, named)


def layers(found: Crossed) -> Figure:
    """The label contrasts, layer by layer."""
    styles = {"label_output": "icl", "label_map": "ft"}
    panels = [
        plots.lines(title(k), [layer_curve(c, styles[k], CROSSED[k].title)], "layer")
        for k, c in found.layers.items()
    ]
    return Figure(
        "layers",
        "Label contrast by layer",
        _CONTRAST,
        panels,
    )
