"""In-context regression -> its report, and what the console shows at a job's end.

Shape glossary: L layers, C numbers of examples.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from icljax.records import Against, Regression, RegressionModel
from icljax.reports import console as console_lib
from icljax.reports import plots
from icljax.reports import report as report_lib
from icljax.reports.baselines import outcome
from icljax.reports.document import Code, Figure, Items, Panel, Report, Section, Table, row, section
from icljax.reports.figures import estimate_curve, estimate_mark, level_curve
from icljax.reports.plots import COLORS, Curve
from icljax.reports.text import estimate, number, plural, plus_minus, seconds
from icljax.results import Estimate

BAR_ERROR, BAR_RATIO = 1e-5, 0.02
# Family -> (name, style in figures).
FAMILIES = {
    "linear": ("linear attention", "icl"),
    "softmax": ("softmax attention", "zsl"),
    "moattn": ("MoAttn (softmax + EMA)", "own"),
    "gd": ("tuned GD", "model dot"),
    "gd++": ("tuned GD++", "model dash"),
}
NAMES = {family: name for family, (name, _) in FAMILIES.items()}
RIVALS = ("gd", "gd++")
# What is said of a model against an optimizer.
PAIRS = {
    "ratio": "ratio of losses",
    "difference": "prediction difference",
    "cosine": "cosine of sensitivities",
}
_ZERO = ("predicting 0", "base thin")
_HOLDS = {True: "holds", False: "does not hold"}
_VERDICTS = {
    "above": "higher loss",
    "level": "no clear difference",
    "below": "lower loss",
    "unknown": "unknown: a loss was not finite",
}


def show(results: dict[str, Any], path: Path, console: Console) -> None:
    """Prints what came out, and where the report is."""
    blocks = console_blocks(msgspec.convert(results, Regression))
    console_lib.show(console, blocks, path / report_lib.MARKDOWN)


# ------------------------------------------------------------------------------- what is in results


def deep_families(results: Regression) -> list[str]:
    """The trained families of 1 to L layers."""
    return [n for n in NAMES if n in results.models and n not in RIVALS]


def _shown(results: Regression) -> list[str]:
    return [*deep_families(results), *RIVALS]


def online_pairs(results: Regression) -> list[tuple[RegressionModel, RegressionModel, str]]:
    """(trained kind, its tuned optimizer, name of the optimizer's family) in the config's order."""
    pairs = {}
    for loss in ("dot", "square"):
        kinds = results.models.get(f"online_{loss}", ())
        tuned = results.models.get(f"optax_{loss}", ())
        for kind, optimizer in zip(kinds, tuned, strict=True):
            pairs[kind.name] = (kind, optimizer, f"optax_{loss}")
    return [pairs[n] for n in results.config["online"]]


def verdict(ratio: Estimate) -> str:
    """What a ratio of losses with its interval says about the model."""
    low, high = (None if v is None else v - 1 for v in ratio.interval)
    return _VERDICTS[outcome((low, high))]


def bars(results: Regression) -> list[tuple[str, str, str]]:
    """(bar, measured, "holds" or "does not hold")."""
    error = max(c.error for c in results.constructions)
    bar = f"every constructed model is its optimizer: largest error below {BAR_ERROR:g}"
    rows = [(bar, f"{error:.1e}", _HOLDS[error < BAR_ERROR])]
    if "linear" in results.models:
        ratio = results.models["linear"][0].against["gd"].ratio
        within = ratio.mean is not None and abs(ratio.mean - 1) <= BAR_RATIO
        bar = f"trained 1-layer linear attention: loss within {BAR_RATIO:.0%} of 1 tuned GD step's"
        rows.append((bar, f"ratio {estimate(ratio, 4)}", _HOLDS[within]))
    return rows


# ------------------------------------------------------------------------------------------ report


def report(results: Regression) -> Report:
    """The report of one job."""
    config = results.config
    lead = (
        "After von Oswald et al. 2023 (arXiv 2212.07677). Tasks y = w . x with w ~ N(0, I) and "
        f"x ~ U(-1, 1) in {config['dims']} dimensions; a prompt of {config['num_examples']} "
        "examples and a query.",
        f"Losses are mean squared errors on {config['eval']['tasks']:,} "
        f"tasks that no model was trained on (predicting 0: {number(results.zero_loss)}). "
        f"Intervals are 95 % over {len(config['seeds'])} seeds (weights and training tasks), "
        "Student's t; where two are compared, paired by seed, on the same tasks.",
    )
    sections = (
        _in_short(results),
        _layers_section(results),
        _alignment_section(results),
        _examples_section(results),
        *([_online_section(results)] if results.config["online"] else []),
        _constructions_section(results),
        *([_training_section(results)] if deep_families(results) else []),
        _reproduce_section(results),
    )
    return Report(
        "In-context regression: is a trained attention layer a step of an optimizer?",
        lead,
        tuple(s for s in sections if s.blocks),
        (("von Oswald et al. 2023", "https://arxiv.org/abs/2212.07677"),),
        "In-context learning against optimizers",
    )


def _in_short(results: Regression) -> Section:
    return section(
        "short",
        "In short",
        Table("bars", "", ("bar", "measured", ""), [row(*b) for b in bars(results)], words=True),
        "The numbers below are a trained model's loss divided by a tuned optimizer's: 1, as good; "
        "below 1, better.",
        Items((*_depth_items(results), *_eta_items(results), *_online_items(results))),
    )


def _depth_items(results: Regression) -> list[tuple[str, str]]:
    items = []
    for family in deep_families(results):
        for rival in RIVALS:
            what = f"{NAMES[family]} against as many steps of {NAMES[rival]}, by number of layers:"
            ratios = [(m.name, m.against[rival].ratio) for m in results.models[family]]
            items.append((what, _said(ratios, 2)))
    return items


def _online_items(results: Regression) -> list[tuple[str, str]]:
    ratios = [(k.name, k.against[name].ratio) for k, _, name in online_pairs(results)]
    what = "one causal layer of each kind against the tuned optimizer that it is, a step an example"
    return [(f"{what}:", _said(ratios, 3))] if ratios else []


def _said(ratios: Sequence[tuple[str, Estimate]], digits: int) -> str:
    each = (f"{name}: {estimate(ratio, digits)}, {verdict(ratio)}" for name, ratio in ratios)
    return f"{'; '.join(each)}."


def _eta_items(results: Regression) -> list[tuple[str, str]]:
    """What EMA(V) ended with in the deepest MoAttn: 0 means that training removed it."""
    if "moattn" not in results.models:
        return []
    learned = results.models["moattn"][-1].learned["ema"]
    etas = (f"{i}: {estimate(eta, 2)}" for i, eta in enumerate(_by_layer(learned), 1))
    what = "eta of EMA(V) after training, from 0.5, in the deepest MoAttn, by layer:"
    return [(what, f"{'; '.join(etas)}.")]


def _by_layer(learned: Estimate | tuple[Estimate, ...]) -> tuple[Estimate, ...]:
    return (learned,) if isinstance(learned, Estimate) else learned


def _layers_section(results: Regression) -> Section:
    names = _shown(results)
    curves = [_by_layers(n, [m.loss for m in results.models[n]]) for n in names]
    panels = _loss_panels(results, {"Mean squared error": curves}, "layers, or steps")
    title, caption = "Loss against number of layers", "Means over seeds with 95 % bands."
    return section(
        "layers",
        title,
        _layers_table(results, "", _depth, estimate),
        Figure("layers", title, caption, panels, _legend(names)),
    )


def _by_layers(family: str, values: Sequence[Estimate]) -> Curve:
    return estimate_curve(*FAMILIES[family], range(1, len(values) + 1), values)


def _layers_table(
    results: Regression, title: str, head: Callable[[int], str], write: Callable[[Estimate], str]
) -> Table:
    rows = [row(NAMES[n], *(write(m.loss) for m in results.models[n])) for n in _shown(results)]
    return Table("layers", title, ("", *map(head, range(1, results.config["layers"] + 1))), rows)


def _depth(layers: int) -> str:
    return f"{plural(layers, 'layer')} or step{'s' * (layers > 1)}"


def _legend(families: Sequence[str]) -> tuple[tuple[str, str], ...]:
    return (*(FAMILIES[n] for n in families), _ZERO)


def _loss_panels(
    results: Regression, curves: dict[str, list[Curve]], x_title: str, trained: Sequence[float] = ()
) -> list[Panel]:
    """Losses by panel, on one logarithmic axis: from the smallest to above that of predicting 0."""
    finite = [y for of_panel in curves.values() for curve in of_panel for y in curve.y if y]
    ends = 0.8 * min(finite, default=results.zero_loss), 2 * results.zero_loss
    panels = []
    for title, own in curves.items():
        zero = level_curve(*_ZERO, [x for curve in own for x in curve.x], results.zero_loss)
        panels.append(plots.lines(title, [zero, *own], x_title, chosen=trained, log_y=ends))
    return panels


def _alignment_section(results: Regression) -> Section:
    families = deep_families(results)
    rows = [
        row(NAMES[f], m.name, NAMES[r], *_pair_cells(m.against[r]))
        for f in families
        for m in results.models[f]
        for r in RIVALS
    ]
    panels = []
    for key in ("difference", "cosine") if families else ():
        for rival in RIVALS:
            curves = [
                _by_layers(f, [getattr(m.against[rival], key) for m in results.models[f]])
                for f in families
            ]
            title, zero = f"{PAIRS[key].capitalize()}, {NAMES[rival]}", key == "difference"
            panels.append(plots.lines(title, curves, "layers, or steps", from_zero=zero))
    header = ("model", "layers", "against as many steps of", *PAIRS.values())
    title = "Prediction difference and cosine of sensitivities"
    caption = "Against as many steps of the optimizer, with 95 % bands."
    return section(
        "alignment",
        "Do models predict what the optimizer predicts?",
        "Ratio of losses: below 1, the model is better. Prediction difference: mean distance (L2) "
        "of the two predictions; 0: the same. Sensitivity: the gradient of a prediction with "
        "respect to the query; cosine 1: both use the query alike.",
        Table("alignment", "", header, rows),
        Figure("alignment", title, caption, panels, tuple(FAMILIES[f] for f in families)),
    )


def _pair_cells(pair: Against) -> list[str]:
    return [estimate(getattr(pair, key)) for key in PAIRS]


def _examples_section(results: Regression) -> Section:
    names = _shown(results)
    curves = {
        _depth(i): [_by_examples(results, results.models[n][i - 1], *FAMILIES[n]) for n in names]
        for i in sorted({1, results.config["layers"]})
    }
    title, caption = "Loss against number of examples", "Mean squared error, with 95 % bands."
    return section(
        "examples",
        title,
        "Trained with the number of examples at the triangle, tested with others. Step sizes and "
        "weights that fit that number are too large for far fewer, so lines leave the figure.",
        Figure("examples", title, caption, _examples_panels(results, curves), _legend(names)),
    )


def _by_examples(results: Regression, model: RegressionModel, name: str, style: str) -> Curve:
    return estimate_curve(name, style, results.config["eval"]["examples"], model.by_examples)


def _examples_panels(results: Regression, curves: dict[str, list[Curve]]) -> list[Panel]:
    x_title = "examples in the prompt (triangle: in training)"
    return _loss_panels(results, curves, x_title, [results.config["num_examples"]])


def _online_section(results: Regression) -> Section:
    rows = [
        row(
            kind.name,
            *map(estimate, (kind.loss, optimizer.loss)),
            *_pair_cells(kind.against[family]),
            *map(_rates_text, (kind, optimizer)),
        )
        for kind, optimizer, family in online_pairs(results)
    ]
    losses = ("trained layer's loss", "tuned optimizer's loss")
    header = ("kind", *losses, *PAIRS.values(), "learned eta, alpha, beta", "tuned")
    text = (
        "One causal layer reads the examples in their order; its kind is an optimizer that takes "
        "one step an example. The trained layer has its projections too, the optimizer its step "
        "size, momentum and weight decay only, which optax applies and Adam tunes on the same "
        "tasks. A layer's beta is up to the scale of its projections."
    )
    table = Table("online", "", header, rows)
    return section("online", "One step an example", text, table, _online_figure(results))


def _rates_text(model: RegressionModel) -> str:
    rates = (x for k in ("eta", "alpha", "beta") for x in _by_layer(model.learned[k]))
    return ", ".join(number(x.mean) for x in rates)


def _online_figure(results: Regression) -> Figure:
    rows, curves, legend = [], [], []
    for i, (kind, optimizer, _) in enumerate(online_pairs(results)):
        color = COLORS[i % len(COLORS)]
        trained = estimate_mark("trained layer", kind.loss, color)
        tuned = estimate_mark("tuned optimizer", optimizer.loss, "base")
        rows.append((kind.name, [trained, tuned]))
        dotted = _by_examples(results, optimizer, f"{kind.name}, optimizer", f"{color} dot")
        curves.append(_by_examples(results, kind, kind.name, color))
        curves.append(dataclasses.replace(dotted, band=()))
        legend.append((kind.name, color))
    right = _examples_panels(results, {"By number of examples": curves})
    panels = [plots.dots("Mean squared error", rows), *right]
    caption = (
        "Left: trained layer (colour), tuned optimizer (grey), with 95 % intervals. Right: the "
        "same losses with other numbers of examples; solid: trained layer; dotted: optimizer."
    )
    title = "Loss of each kind and of its optimizer"
    return Figure("online", title, caption, panels, (*legend, ("tuned optimizer", "base"), _ZERO))


def _constructions_section(results: Regression) -> Section:
    rows = [row(c.model, c.optimizer, f"{c.error:.1e}") for c in results.constructions]
    header = ("constructed weights of", "are", "largest error of a prediction, float32")
    title = "Constructed weights"
    return section("constructions", title, Table("constructions", "", header, rows, words=True))


def _training_section(results: Regression) -> Section:
    families, steps = deep_families(results), results.config["steps"]
    curves = {
        plural(depth + 1, "layer"): [
            _curve_of_training(results.models[n][depth], steps, *FAMILIES[n]) for n in families
        ]
        for depth in range(results.config["layers"])
    }
    panels = _loss_panels(results, curves, "step")
    return section(
        "training",
        "Training",
        "Loss on fresh tasks, medians over seeds and over stretches of steps: deep linear "
        "attention is a polynomial of high degree, which explodes on rare tasks until the learning "
        "rate has decayed.",
        Figure("training", "Training loss", "Mean squared error.", panels, _legend(families)),
    )


def _curve_of_training(model: RegressionModel, steps: int, name: str, style: str) -> Curve:
    count = len(model.curve)
    return Curve(name, style, tuple((i + 0.5) * steps / count for i in range(count)), model.curve)


def _reproduce_section(results: Regression) -> Section:
    versions = ", ".join(f"{k} {v}" for k, v in results.versions.items())
    return section(
        "reproduce",
        "How to reproduce",
        "python -m icljax.main --config=configs/regression.py --workdir=NEW_FOLDER, with "
        "--config.FIELD=VALUE for each field that differs from this, the whole config of this "
        f"job ({versions}; seconds: {seconds(results.seconds, 1)}):",
        Code(json.dumps(results.config, indent=2), "json"),
    )


# ----------------------------------------------------------------------------------------- console


def console_blocks(results: Regression) -> list[str | Table]:
    """What came out, in a few lines."""
    title = f"Mean squared error by layers or steps (predicting 0: {number(results.zero_loss)})"
    online = [
        row(kind.name, *map(plus_minus, (kind.loss, optimizer.loss)), estimate(ratio))
        for kind, optimizer, family in online_pairs(results)
        for ratio in [kind.against[family].ratio]
    ]
    title2 = "One step an example: a trained layer and the optimizer that it is"
    header = ("", "trained", "tuned optimizer", "ratio [95 %]")
    return [
        _layers_table(results, title, str, plus_minus),
        *([Table("online", title2, header, online)] if online else []),
        *(f"{holds}: {bar} ({measured})" for bar, measured, holds in bars(results)),
        f"\nSeconds: {seconds(results.seconds)}",
    ]
