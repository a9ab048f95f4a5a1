"""The figures of one comparison, and the curves that figures of many share."""

import math
from collections.abc import Sequence

from icljax.catalog import BASELINES, SETTINGS, SIMILARITIES
from icljax.reports import plots
from icljax.reports.document import Figure, Panel
from icljax.reports.plots import Curve, Mark
from icljax.reports.tables import DOSE_SIMILARITIES
from icljax.reports.text import rate
from icljax.results import DoseResponse, Estimate, Interval, Number, Results, Series

LAYER = "layer (1: next to the input)"


def estimate_mark(name: str, estimate: Estimate | None, style: str, scale: float = 1) -> Mark:
    """A dot of an estimate; nothing where it is undefined."""
    if estimate is None or estimate.mean is None:
        return Mark(name, None, (None, None), style)
    return Mark(name, scale * estimate.mean, _scaled(estimate.interval, scale), style)


def _scaled(interval: Interval, scale: float) -> Interval:
    low, high = (None if v is None else scale * v for v in interval)
    return low, high


def estimate_curve(
    name: str, style: str, x: Sequence[float], estimates: Sequence[Estimate]
) -> Curve:
    """A curve with its band, in ascending x."""
    pairs = sorted(zip(x, estimates, strict=True), key=lambda pair: pair[0])
    band = tuple(e.interval for _, e in pairs)
    return Curve(name, style, tuple(x for x, _ in pairs), tuple(e.mean for _, e in pairs), band)


def level_curve(name: str, style: str, x: Sequence[float], value: Number) -> Curve:
    """A level line over the range of x."""
    ends = min(x), max(x)
    return Curve(name, style, ends, (value, value))


# --------------------------------------------------------------------------- layers and rates


def layer_curve(name: str, style: str, series: Series, band: bool = False) -> Curve:
    """A series of every layer; `band`: with its intervals."""
    layers = tuple(range(1, len(series.per_layer) + 1))
    return Curve(name, style, layers, series.per_layer, series.per_layer_interval if band else ())


def baseline_curves(results: Results, metric: str) -> list[Curve]:
    """A similarity's baselines of each layer."""
    return [
        layer_curve(BASELINES[name].title, BASELINES[name].style, series)
        for name, series in results.similarities[metric].baselines.items()
    ]


def layer_panel(title: str, results: Results, metric: str) -> Panel:
    """A similarity of each layer beside its baselines, and at the lowest and highest rate."""
    curves = baseline_curves(results, metric)
    curves += [
        layer_curve(f"FT at learning rate {rate(lr)} ({which})", style, series)
        for which, style, lr, series in extreme_rates(results, metric)
    ]
    own = results.similarities[metric]
    curves.append(layer_curve("measured, with 95 % band", "own", own, band=True))
    return plots.lines(title, curves, LAYER)


def extreme_rates(results: Results, metric: str) -> list[tuple[str, str, float, Series]]:
    """(which, style, learning rate, similarity) at the lowest and at the highest that has one."""
    dose = results.dose_response
    curve = dose.similarity.get(metric, ()) if dose else ()
    rates = dose.learning_rates if dose else ()
    known = sorted(
        ((lr, one) for lr, one in zip(rates, curve, strict=False) if one.mean is not None),
        key=lambda pair: pair[0],
    )
    ends = [("lowest", "zsl thin", pair) for pair in known[:1]]
    ends += [("highest", "ft thin", pair) for pair in known[1:][-1:]]
    return [(which, style, lr, one) for which, style, (lr, one) in ends]


def dose_curves(dose: DoseResponse, metric: str, style: str) -> list[Curve]:
    """A similarity at every learning rate."""
    curve = dose.similarity.get(metric)
    title = SIMILARITIES[metric].title
    return [estimate_curve(title, style, dose.learning_rates, curve)] if curve else []


def job_figures(results: Results) -> dict[str, Figure]:
    """The figures of one job by their keys; those without numbers have no panels."""
    drawn = (
        _accuracy_figure(results),
        _agreement_figure(results),
        _similarity_figure(results),
        _update_figure(results),
        _dose_figure(results),
        _selection_figure(results),
    )
    return {figure.key: figure for figure in drawn}


def _accuracy_figure(results: Results) -> Figure:
    kinds = {
        "As predicted, %": results.accuracy,
        "Calibrated, %": results.accuracy_calibrated,
    }
    panels = []
    for title, accuracy in kinds.items():
        if accuracy is None:
            continue
        rows = []
        for setting, name in SETTINGS.items():
            share = accuracy.of(setting)
            seeds = zip(results.reported_seeds, share.per_seed, strict=False)
            each = [
                Mark(f"seed {seed}", None if v is None else 100 * v, style=f"{setting} thin")
                for seed, v in seeds
            ]
            rows.append((name, [estimate_mark(name, share, setting, 100), *each]))
        rows.append(("majority", [Mark("majority class", 100 * accuracy.majority, style="base")]))
        panels.append(plots.dots(title, rows))
    caption = (
        "The mean with its 95 % interval, then each seed. Calibrated: each answer's mean "
        "log-probability subtracted."
    )
    return Figure("accuracy", "Accuracy of ZSL, ICL and FT", caption, panels)


# A letter for ZSL, ICL and FT, upper case where right; from all right to all wrong.
_PATTERNS = {
    "ZIF": "all right",
    "zIF": "ICL and FT (raises it)",
    "ZIf": "ZSL and ICL",
    "ZiF": "ZSL and FT",
    "zIf": "ICL alone",
    "ziF": "FT alone (lowers it)",
    "Zif": "ZSL alone",
    "zif": "none",
}


def _agreement_figure(results: Results) -> Figure:
    agreement = results.agreement
    panels = []
    if agreement.patterns:
        unknown: Interval = (None, None)

        def mark(name: str, share: Number, interval: Interval, own: bool) -> list[Mark]:
            estimate = Estimate(mean=share, interval=interval)
            return [estimate_mark(name, estimate, "own" if own else "base", 100)]

        right = [
            (
                name,
                mark(
                    name,
                    agreement.patterns.get(key),
                    agreement.patterns_interval.get(key, unknown),
                    key in ("zIF", "ziF"),
                ),
            )
            for key, name in _PATTERNS.items()
        ]
        alike = []
        for pair, share in agreement.pairwise.items():
            name = " = ".join(SETTINGS[s] for s in pair.split("_"))
            interval = agreement.pairwise_interval.get(pair, unknown)
            alike.append((name, mark(name, share, interval, pair == "icl_ft")))
        panels = [
            plots.dots("Which settings are right", right, "share of examples, %"),
            plots.dots("How often two predict the same", alike, "share of examples, %"),
        ]
    title = "Which settings are right, and how often two agree"
    return Figure("agreement", title, "Means over seeds with 95 % intervals. It: Rec2FTP.", panels)


def _similarity_figure(results: Results) -> Figure:
    panels = [layer_panel(SIMILARITIES[m].title, results, m) for m in results.similarities]
    legend = [("measured, with 95 % band", "own"), ("random", "base dot")]
    if "sim_am" in results.similarities:
        legend.append((BASELINES["before_finetuning"].title, "base"))
    ends = extreme_rates(results, "sim_aou")
    legend += [(f"FT at the {which} rate ({rate(lr)})", style) for which, style, lr, _ in ends]
    caption = (
        "Beside baselines, and the lowest and the highest learning rate at which every seed "
        "converged."
    )
    return Figure("similarity", "Every similarity, layer by layer", caption, panels, tuple(legend))


def _update_figure(results: Results) -> Figure:
    panels = []
    update = results.similarities.get("sim_update")
    if update and results.update_share:
        shares = [
            layer_curve(f"dW_{SETTINGS[s]}", s, results.update_share[s]) for s in ("icl", "ft")
        ]
        panels = [
            plots.heat("SimUpdate of every head", update.per_layer_head, LAYER, "key/value head"),
            plots.lines("Share of the norm, beside W_ZSL", shares, LAYER),
        ]
    legend = (("dW_ICL", "icl"), ("dW_FT", "ft"))
    caption = "Left: the cosine of both updates in each head. Right: how large each update is."
    return Figure("update", "Updates of attention's linear map", caption, panels, legend)


def _dose_figure(results: Results) -> Figure:
    dose = results.dose_response
    if dose is None:
        return Figure("dose_response", "", "", [])
    rates, chosen = dose.learning_rates, results.selection.learning_rate
    percent = [
        Estimate(mean=m.mean, interval=m.interval)
        for e in dose.accuracy
        for m in [estimate_mark("", e, "ft", 100)]
    ]
    settings = [
        level_curve(
            f"{SETTINGS[s]}, evaluated examples", s, rates, estimate_mark("", own, s, 100).mean
        )
        for s in ("zsl", "icl")
        for own in [results.accuracy.of(s)]
    ]
    panels = [
        plots.lines(
            "FT accuracy, %",
            [*settings, estimate_curve("FT", "ft", rates, percent)],
            "learning rate",
            log=True,
            chosen=chosen,
        )
    ]
    for metric in DOSE_SIMILARITIES:
        curves = dose_curves(dose, metric, "own")
        if not curves:
            continue
        for name in SIMILARITIES[metric].baselines:
            baseline = [one.baselines[name] for one in dose.similarity[metric]]
            curve = estimate_curve(BASELINES[name].title, BASELINES[name].style, rates, baseline)
            curves.insert(0, Curve(curve.name, curve.style, curve.x, curve.y))
        title = SIMILARITIES[metric].title
        panels.append(plots.lines(title, curves, "learning rate", log=True, chosen=chosen))
    legend = [("ZSL", "zsl"), ("ICL", "icl"), ("FT", "ft"), ("similarity", "own")]
    legend.append(("random", "base dot"))
    caption = "On the selection examples, with 95 % bands; triangles: rates chosen for a seed."
    title = "Accuracy of FT and its similarity to ICL against learning rate"
    return Figure("dose_response", title, caption, panels, tuple(legend))


def _selection_figure(results: Results) -> Figure:
    s = results.selection
    order = sorted(range(len(s.learning_rates)), key=s.learning_rates.__getitem__)
    rates = tuple(s.learning_rates[i] for i in order)

    def panel(title: str, table: Sequence[Sequence[Number]], scale: float) -> Panel:
        rows = [[None if r[i] is None else scale * (r[i] or 0) for i in order] for r in table]
        seeds = [
            Curve(f"seed {seed}", "ft thin", rates, tuple(values))
            for seed, values in zip(results.seeds, rows, strict=True)
        ]
        # It ends where a seed's loss is not finite: a mean of the other seeds would mislead.
        columns = [[v for v in c if v is not None] for c in zip(*rows, strict=True)]
        mean = tuple(sum(c) / len(c) if len(c) == len(rows) else None for c in columns)
        curves = [*seeds, Curve("mean over seeds", "own", rates, mean)]
        return plots.lines(title, curves, "learning rate", log=True, chosen=s.learning_rate)

    logs = [[v and (math.log10(v) if v > 0 else None) for v in row] for row in s.training_loss]
    panels = [
        panel("Accuracy on the selection examples, %", s.accuracy, 100),
        panel("Training loss, log10 of nats per token", logs, 1),
    ]
    legend = (("one seed", "ft thin"), ("mean over seeds", "own"))
    caption = "Triangles: rates chosen for a seed. A line ends where a run diverged."
    return Figure("selection", "How learning rates were selected", caption, panels, legend)
