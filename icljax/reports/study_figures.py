"""The figures of many comparisons, under captions in plain words."""

from collections.abc import Sequence

from icljax.catalog import SIMILARITIES
from icljax.reports import paper, plots
from icljax.reports.document import Figure
from icljax.reports.figures import (
    baseline_curves,
    dose_curves,
    estimate_curve,
    estimate_mark,
    extreme_rates,
    layer_curve,
    level_curve,
)
from icljax.reports.plots import Mark
from icljax.reports.study import Group, layer_causal, main_groups, task_title
from icljax.reports.tables import PAPER_ORDER

OVER_LAYERS = ("sim_aou", "sim_am_delta", "kendall", "sim_update")


def study_figures(groups: Sequence[Group]) -> list[Figure]:
    """The figures of many jobs, those that have numbers."""
    found = []
    for group in main_groups(groups):
        found.append(_doses_figure(group))
        found += [_layers_figure(group, metric) for metric in OVER_LAYERS]
        found.append(_accuracies_figure(group))
    found += [_layer_causal_figure(*pair) for pair in layer_causal(groups)]
    return [figure for figure in found if figure.panels]


def _doses_figure(group: Group) -> Figure:
    styles = {"sim_aou": "own", "sim_aou_unnormalized": "own dash", "sim_am_delta": "data thin"}
    panels = []
    for task, results in group.measured().items():
        if (dose := results.dose_response) is None:
            continue
        rates = dose.learning_rates
        curves = [estimate_curve("accuracy of FT", "ft", rates, dose.accuracy)]
        for metric, style in styles.items():
            curves += dose_curves(dose, metric, style)
        curves.append(level_curve("majority class", "base dot", rates, results.accuracy.majority))
        chosen = results.selection.learning_rate
        panels.append(plots.lines(task_title(task), curves, "learning rate", True, chosen))
    legend = [("accuracy of FT", "ft")]
    legend += [(SIMILARITIES[metric].title, style) for metric, style in styles.items()]
    legend.append(("majority class", "base dot"))
    caption = (
        "Accuracy of the finetuned model and its similarity to ICL at every learning rate, on the "
        "examples that rates are selected on; bands are 95 % intervals, triangles the rates that "
        "were chosen. Where similarity goes on rising while accuracy falls, it does not measure "
        "useful learning."
    )
    title = f"Accuracy and similarity at every learning rate: {group.title}"
    return Figure(group.key("dose"), title, caption, panels, tuple(legend))


def _layers_figure(group: Group, metric: str) -> Figure:
    panels = []
    for task, results in group.measured().items():
        if (own := results.similarities.get(metric)) is None:
            continue
        curves = [
            layer_curve("measured", "own", own, band=True),
            *baseline_curves(results, metric),
        ]
        curves += [
            layer_curve("largest learning rate", "ft thin", series)
            for which, _, _, series in extreme_rates(results, metric)
            if which == "highest"
        ]
        panels.append(plots.lines(task_title(task), curves, "layer"))
    legend = [("measured", "own"), ("its baseline", "base dot")]
    legend.append(("largest learning rate", "ft thin"))
    title = f"{SIMILARITIES[metric].title}, layer by layer: {group.title}"
    caption = (
        f"What is compared: {SIMILARITIES[metric].compared}. The largest "
        "learning rate is that of the dose-response measurement at which no run diverged."
    )
    folded = metric != OVER_LAYERS[0]
    return Figure(group.key(f"layers-{metric}"), title, caption, panels, tuple(legend), folded)


def _accuracies_figure(group: Group) -> Figure:
    measured = group.measured()
    panels = []
    for title, calibrated in (("Measured, accuracy in %", False), ("Measured, calibrated", True)):
        rows = []
        for task, r in measured.items():
            if accuracy := r.accuracy_calibrated if calibrated else r.accuracy:
                marks = [
                    estimate_mark(name, accuracy.of(s), s, 100) for s, name in PAPER_ORDER.items()
                ]
                rows.append((task_title(task), marks))
        if rows:
            panels.append(plots.dots(title, rows))
    sizes = [paper.size_of(group.model)] if paper.size_of(group.model) else list(paper.MODELS)
    for size in sizes:
        rows = [
            (
                task.title,
                [
                    Mark(name, getattr(paper.CELLS[key, size], s), style=s)
                    for s, name in PAPER_ORDER.items()
                ],
            )
            for key, task in paper.TASKS.items()
        ]
        panels.append(plots.dots(f"The paper's {paper.MODELS[size]}", rows))
    legend = tuple((name, s) for s, name in PAPER_ORDER.items())
    caption = (
        "Accuracy of the query alone (ZSL), after finetuning on the demonstrations (FT) and with "
        "them in the prompt (ICL), with 95 % intervals; the paper gives none."
    )
    title = f"Accuracy: {group.title}"
    return Figure(group.key("accuracy"), title, caption, panels if measured else [], legend)


def _layer_causal_figure(gd: Group, lcgd: Group) -> Figure:
    """Gradient descent beside its layer-causal form."""
    both = [t for t in gd.measured() if t in lcgd.measured()]
    panels = []
    for metric, averages in paper.REVISIT.items():
        rows = [
            (
                f"{name}, ours",
                [
                    estimate_mark(
                        task_title(t), group.measured()[t].similarities.get(metric), style
                    )
                    for t in both
                ],
            )
            for name, group, style in (("GD", gd, "own"), ("LCGD", lcgd, "icl"))
        ]
        rows += [
            (f"{name}, revisit", [Mark("average", value, style="base")])
            for name, value in zip(("GD", "LCGD"), averages, strict=True)
        ]
        panels.append(plots.dots(SIMILARITIES[metric].title, rows))
    tasks = ", ".join(map(task_title, both))
    caption = (
        f"Each coloured dot is a task ({tasks}) with its 95 % interval; grey: the averages that "
        "Deutch et al. report for their own models. Layer-causal gradient descent (LCGD) lets no "
        "layer's update know of later layers, as is the case in ICL."
    )
    title = f"Gradient descent against its layer-causal form: {gd.model}"
    legend = (("GD", "own"), ("LCGD", "icl"), ("the revisit's averages", "base"))
    return Figure(lcgd.key("lcgd"), title, caption, panels if both else [], legend)
