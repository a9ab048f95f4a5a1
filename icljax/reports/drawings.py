"""Results of many jobs -> figures, as panels of `charts` under captions in plain words."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from icljax.catalog import SIMILARITIES
from icljax.reports import charts, paper
from icljax.reports.charts import Curve, Mark, Panel, Point
from icljax.reports.study import (
    Group,
    cell_name,
    is_control,
    kind_of,
    layer_causal,
    look,
    name_of,
    others,
)
from icljax.reports.tables import task_title
from icljax.reports.wording import Results


class Figure(NamedTuple):
    """Panels under one caption.

    Attributes:
        key: its name in links and files.
        title, caption: what it shows, in plain words.
        panels: side by side.
        legend: what the colours are; the points of its curves do not matter.
        folded: whether it is shown only when asked for.
    """

    key: str
    title: str
    caption: str
    panels: list[Panel]
    legend: list[Curve]
    folded: bool = False


def main_groups(groups: Sequence[Group]) -> list[Group]:
    """Each model's first setting that was measured: the one with figures of its own."""
    first: dict[str, Group] = {}
    for group in groups:
        if group.measured():
            first.setdefault(group.model, group)
    return list(first.values())


_AGAINST = ("sim_aou", "sim_aou_unnormalized", "sim_am", "sim_am_delta", "kendall", "sim_update")
_OVER_LAYERS = ("sim_aou", "sim_am_delta", "kendall", "sim_update")


def figures(group: Group) -> list[Figure]:
    """The figures of one model in one setting, those that have numbers."""
    found = (
        _controls_figure(group),
        _dose_figure(group),
        *(_layers_figure(group, metric) for metric in _OVER_LAYERS),
        _accuracy_figure(group),
    )
    return [figure for figure in found if figure.panels]


def _key(name: str, group: Group) -> str:
    return f"{name}-{cell_name(group.model, group.setting)}"


def _named(*pairs: tuple[str, str]) -> list[Curve]:
    return [Curve(name, [], kind) for name, kind in pairs]


def _mark(name: str, series: Any, kind: str, scale: float = 1) -> Mark:
    """A dot of a series of results.json; nothing where it is missing."""
    if not series or series.get("mean") is None:
        return Mark(name, None, (None, None), kind)
    low, high = (None if v is None else scale * v for v in series.get("interval", (None, None)))
    return Mark(name, scale * series["mean"], (low, high), kind)


def _controls_figure(group: Group) -> Figure:
    measured = group.measured()
    panels = []
    for metric in _AGAINST:
        rows = [
            ("measured", [_mark(task_title(t), r.get(metric), "own") for t, r in measured.items()])
        ]
        for name in others(group, [metric]):
            path = f"controls.{name}.{metric}" if is_control(name) else f"{metric}.baselines.{name}"
            marks = [
                _mark(task_title(t), look(r, path), kind_of(name)) for t, r in measured.items()
            ]
            rows.append((_row_name(name), marks))
        if len(rows) > 1:
            panels.append(charts.dots(SIMILARITIES[metric].title, rows))
    legend = _named(
        ("measured", "own"),
        ("random, or before finetuning", "base"),
        ("models that learned nothing", "model"),
        ("other demonstrations", "data"),
        ("other weight changes", "update"),
    )
    tasks = ", ".join(map(task_title, measured))
    caption = (
        f"Each dot is a task (from top to bottom: {tasks}) with its 95 % interval. The claim needs "
        "the coloured row at the top to stand to the right of every other row."
    )
    title = f"Similarity of ICL and finetuning against controls: {group.title}"
    return Figure(_key("controls", group), title, caption, panels, legend)


def _row_name(name: str) -> str:
    return _SHORT.get(name) or name_of(name)


_SHORT = {
    "untrained_keep_embeddings": "untrained, emb. kept",
    "random_icl": "random update",
    "other_answers": "other answers",
    "other_seed": "FT of another seed",
}


def _dose_figure(group: Group) -> Figure:
    curves_of = {
        "accuracy of FT": ("accuracy", "ft"),
        "SimAOU": ("similarity.sim_aou", "own"),
        "SimAOU, not normalised": ("similarity.sim_aou_unnormalized", "own dash"),
        "SimAM-delta": ("similarity.sim_am_delta", "data thin"),
    }
    panels = []
    for task, results in group.measured().items():
        if not (dose := results.get("dose_response")):
            continue
        rates = dose["learning_rates"]
        curves = [
            Curve(name, _points(rates, look(dose, path)), kind)
            for name, (path, kind) in curves_of.items()
            if look(dose, path)
        ]
        majority = look(results, "accuracy.majority")
        chance: list[Point] = [(x, majority, None, None) for x in (rates[0], rates[-1])]
        curves.append(Curve("majority class", chance, "base dot"))
        chosen = results["selection"]["learning_rate"]
        panels.append(charts.lines(task_title(task), curves, "learning rate", True, chosen))
    legend = _named(*((name, kind) for name, (_, kind) in curves_of.items()))
    caption = (
        "Accuracy of the finetuned model and its similarity to ICL at every learning rate, on the "
        "examples that rates are selected on; bands are 95 % intervals, triangles the rates that "
        "were chosen. Where similarity goes on rising while accuracy falls, it does not measure "
        "useful learning."
    )
    title = f"Accuracy and similarity at every learning rate: {group.title}"
    legend += _named(("majority class", "base dot"))
    return Figure(_key("dose", group), title, caption, panels, legend)


def _points(xs: Iterable[float], series: Iterable[Results]) -> list[Point]:
    return [
        (x, one["mean"], *one.get("interval", (None, None)))
        for x, one in sorted(zip(xs, series, strict=False), key=lambda pair: pair[0])
    ]


_LAYER_CONTROLS = {
    "untrained": "model dash",
    "untrained_keep_embeddings": "model dot",
    "permuted_labels": "data",
    "perturbation": "update thin",
}


def _layers_figure(group: Group, metric: str) -> Figure:
    panels = []
    for task, results in group.measured().items():
        sources = {"measured": (results.get(metric), "own")}
        for name in look(results, f"{metric}.baselines") or {}:
            sources[name_of(name)] = (look(results, f"{metric}.baselines.{name}"), "base dot")
        for name, kind in _LAYER_CONTROLS.items():
            sources[name_of(name)] = (look(results, f"controls.{name}.{metric}"), kind)
        sources["largest learning rate"] = (_largest_rate(results, metric), "ft thin")
        curves = [
            Curve(name, _by_layer(series, band=name == "measured"), kind)
            for name, (series, kind) in sources.items()
            if series and series.get("per_layer")
        ]
        if curves:
            panels.append(charts.lines(task_title(task), curves, "layer"))
    pairs = [
        ("measured", "own"),
        ("its baseline", "base dot"),
        ("largest learning rate", "ft thin"),
    ]
    pairs += [(name_of(name), kind) for name, kind in _LAYER_CONTROLS.items()]
    title = f"{SIMILARITIES[metric].title}, layer by layer: {group.title}"
    caption = (
        f"What is compared: {SIMILARITIES[metric].compared}. Where the measured line runs among "
        "the controls, those layers show no likeness that learning has made. The largest "
        "learning rate is that of the dose-response measurement at which no run diverged."
    )
    folded = metric != _OVER_LAYERS[0]
    return Figure(_key(f"layers-{metric}", group), title, caption, panels, _named(*pairs), folded)


def _largest_rate(results: Results, metric: str) -> Results | None:
    """The similarity at the largest learning rate that has one."""
    dose = results.get("dose_response") or {}
    series = look(dose, f"similarity.{metric}") or []
    known = [
        (lr, one)
        for lr, one in zip(dose.get("learning_rates", ()), series, strict=False)
        if one.get("mean") is not None
    ]
    return max(known, key=lambda pair: pair[0])[1] if known else None


def _by_layer(series: Results, band: bool) -> list[Point]:
    values = series["per_layer"]
    intervals = series.get("per_layer_interval") if band else None
    pairs = intervals or [(None, None)] * len(values)
    return [
        (layer, value, *pair)
        for layer, (value, pair) in enumerate(zip(values, pairs, strict=True), 1)
    ]


def _accuracy_figure(group: Group) -> Figure:
    measured = group.measured()

    def ours(kind: str) -> list[tuple[str, list[Mark]]]:
        return [
            (task_title(t), [_mark(s.upper(), look(r, f"{kind}.{s}"), s, 100) for s in _SETTINGS])
            for t, r in measured.items()
        ]

    panels = [charts.dots("Measured, accuracy in %", ours("accuracy"))]
    if any(r.get("accuracy_calibrated") for r in measured.values()):
        panels.append(charts.dots("Measured, calibrated", ours("accuracy_calibrated")))
    sizes = [paper.size_of(group.model)] if paper.size_of(group.model) else list(paper.MODELS)
    for size in sizes:
        rows = [
            (
                task.title,
                [Mark(s.upper(), getattr(paper.CELLS[name, size], s), kind=s) for s in _SETTINGS],
            )
            for name, task in paper.TASKS.items()
        ]
        panels.append(charts.dots(f"The paper's {paper.MODELS[size]}", rows))
    legend = _named(*((s.upper(), s) for s in _SETTINGS))
    caption = (
        "Accuracy of the query alone (ZSL), after finetuning on the demonstrations (FT) and with "
        "them in the prompt (ICL), with 95 % intervals; the paper gives none."
    )
    title = f"Accuracy: {group.title}"
    return Figure(_key("accuracy", group), title, caption, panels, legend)


_SETTINGS = ("zsl", "ft", "icl")


def layer_causal_figures(groups: Sequence[Group]) -> list[Figure]:
    """Gradient descent beside its layer-causal form, for each model that has both."""
    found = []
    for gd, lcgd in layer_causal(groups):
        both = [t for t in gd.measured() if t in lcgd.measured()]
        panels = []
        for metric, averages in paper.REVISIT.items():
            rows = [
                (
                    f"{name}, ours",
                    [_mark(task_title(t), g.measured()[t].get(metric), k) for t in both],
                )
                for name, g, k in (("GD", gd, "own"), ("LCGD", lcgd, "icl"))
            ]
            rows += [
                (f"{name}, revisit", [Mark("average", value, kind="base")])
                for name, value in zip(("GD", "LCGD"), averages, strict=True)
            ]
            panels.append(charts.dots(SIMILARITIES[metric].title, rows))
        tasks = ", ".join(map(task_title, both))
        caption = (
            f"Each coloured dot is a task ({tasks}) with its 95 % interval; grey: the averages "
            "that Deutch et al. report for their own models. Layer-causal gradient descent (LCGD) "
            "lets no layer's update know of later layers, as is the case in ICL."
        )
        title = f"Gradient descent against its layer-causal form: {gd.model}"
        legend = _named(("GD", "own"), ("LCGD", "icl"), ("the revisit's averages", "base"))
        if both:
            found.append(Figure(_key("lcgd", lcgd), title, caption, panels, legend))
    return found
