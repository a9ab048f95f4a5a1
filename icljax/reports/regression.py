"""The report, figures and console tables of in-context regression, from results.json's content.

Shape glossary: L layers, C numbers of examples (of the lists inside results.json).
"""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from icljax.reports import figures
from icljax.reports.wording import Results, number
from icljax.runtime import workdir

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BAR_ERROR, BAR_RATIO = 1e-5, 0.02
NAMES = {
    "linear": "linear attention",
    "softmax": "softmax attention",
    "moattn": "MoAttn (softmax + EMA)",
    "gd": "tuned GD",
    "gd++": "tuned GD++",
}
RIVALS = ("gd", "gd++")
# Okabe and Ito's colours; optimizers are grey and dotted or dashed.
STYLES: dict[str, dict[str, Any]] = {
    "linear": {"color": "#0072B2", "marker": "o"},
    "softmax": {"color": "#E69F00", "marker": "s"},
    "moattn": {"color": "#CC4778", "marker": "^"},
    "gd": {"color": "#555555", "linestyle": (0, (1, 1.2))},
    "gd++": {"color": "#555555", "linestyle": (0, (5, 1.5))},
}
KIND_COLORS = ("#0072B2", "#CC4778", "#009E73", "#E69F00", "#56B4E9", "#D55E00")


def write(path: Path, results: Results) -> None:
    """Writes `report.md` and its figures (PNG, in `figures/`) into the existing folder `path`."""
    (path / "figures").mkdir(exist_ok=True)
    for name, content in draw(results).items():
        workdir.write_atomically(path / "figures" / name, content)
    workdir.write_atomically(path / "report.md", markdown(results).encode())


# ------------------------------------------------------------------------------- what is in results


def deep_families(results: Results) -> list[str]:
    """The trained families of 1 to L layers."""
    return [n for n in NAMES if n in results["models"] and n not in RIVALS]


def online_pairs(results: Results) -> list[tuple[Results, Results, str]]:
    """(trained kind, its tuned optimizer, name of the optimizer's family) in the config's order."""
    pairs = {}
    for loss in ("dot", "square"):
        kinds = results["models"].get(f"online_{loss}", [])
        tuned = results["models"].get(f"optax_{loss}", [])
        for kind, optimizer in zip(kinds, tuned, strict=True):
            pairs[kind["name"]] = (kind, optimizer, f"optax_{loss}")
    return [pairs[n] for n in results["config"]["online"]]


def largest_error(results: Results) -> float:
    """Of all constructions."""
    return max(c["error"] for c in results["constructions"])


def interval_text(series: Results, digits: int = 3) -> str:
    """E.g. "0.512 [0.498, 0.526]"."""
    low, high = (number(v, digits) for v in series["interval"])
    return f"{number(series['mean'], digits)} [{low}, {high}]"


def verdict(ratio: Results) -> str:
    """What a ratio of losses with its interval says about the model."""
    low, high = ratio["interval"]
    if low is None or high is None:
        return "unknown: a loss was not finite"
    if low <= 1 <= high:
        return "no clear difference"
    return "lower loss" if high < 1 else "higher loss"


def bars(results: Results) -> list[tuple[str, str, str]]:
    """(bar, measured, "holds" or "does not hold")."""
    error = largest_error(results)
    rows = [
        (
            f"every constructed model is its optimizer: largest error below {BAR_ERROR:g}",
            f"{error:.1e}",
            _holds(error < BAR_ERROR),
        )
    ]
    if "linear" in results["models"]:
        ratio = results["models"]["linear"][0]["against"]["gd"]["ratio"]
        within = ratio["mean"] is not None and abs(ratio["mean"] - 1) <= BAR_RATIO
        bar = f"trained 1-layer linear attention: loss within {BAR_RATIO:.0%} of 1 tuned GD step's"
        rows.append((bar, f"ratio {interval_text(ratio, 4)}", _holds(within)))
    return rows


def _holds(holds: bool) -> str:
    return "holds" if holds else "does not hold"


# --------------------------------------------------------------------------------------- report.md


def markdown(results: Results) -> str:
    """The report."""
    sections = [
        _title(results),
        _in_short(results),
        _layers_section(results),
        "![Loss against number of layers](figures/layers.png)",
        _alignment_section(results),
        "![Prediction difference and cosine of sensitivities](figures/alignment.png)",
        "## Loss against number of examples\n\n"
        "Trained with the number of examples at the vertical line, tested with others. Step sizes "
        "and weights that fit that number are too large for far fewer, so lines leave the figure.",
        "![Loss against number of examples](figures/examples.png)",
        _online_section(results),
        _constructions_section(results),
        _training_section(),
        _reproduce_section(results),
    ]
    return "\n\n".join(s for s in sections if s) + "\n"


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(c) for c in line)} |" for line in lines)


def _title(results: Results) -> str:
    config = results["config"]
    return (
        "# In-context regression: is a trained attention layer a step of an optimizer?\n\n"
        "After von Oswald et al. 2023 (arXiv 2212.07677). Tasks y = w . x with w ~ N(0, I) and "
        f"x ~ U(-1, 1) in {config['dims']} dimensions; a prompt of {config['num_examples']} "
        f"examples and a query. Losses are mean squared errors on {config['eval']['tasks']:,} "
        f"tasks that no model was trained on (predicting 0: {number(results['zero_loss'])}). "
        f"Intervals are 95 % over {len(config['seeds'])} seeds (weights and training tasks), "
        "Student's t; where two are compared, paired by seed, on the same tasks."
    )


def _in_short(results: Results) -> str:
    table = _table(["bar", "measured", ""], bars(results))
    lines = [*_depth_sentences(results), *_eta_sentence(results), *_online_sentences(results)]
    guide = (
        "The numbers below are a trained model's loss divided by a tuned optimizer's: 1, as good; "
        "below 1, better."
    )
    return f"## In short\n\n{table}\n\n{guide}\n\n" + "\n".join(f"- {line}" for line in lines)


def _depth_sentences(results: Results) -> list[str]:
    lines = []
    for family in deep_families(results):
        for rival in RIVALS:
            said = [
                f"{model['name']}: {interval_text(ratio, 2)}, {verdict(ratio)}"
                for model in results["models"][family]
                for ratio in [model["against"][rival]["ratio"]]
            ]
            what = f"{NAMES[family]} against as many steps of {NAMES[rival]}, by number of layers"
            lines.append(f"{what}: {'; '.join(said)}.")
    return lines


def _eta_sentence(results: Results) -> list[str]:
    """What EMA(V) ended with in the deepest MoAttn: 0 means that training removed it."""
    if "moattn" not in results["models"]:
        return []
    learned = results["models"]["moattn"][-1]["learned"]["ema"]
    etas = "; ".join(f"{i}: {interval_text(eta, 2)}" for i, eta in enumerate(learned, 1))
    return [f"eta of EMA(V) after training, from 0.5, in the deepest MoAttn, by layer: {etas}."]


def _online_sentences(results: Results) -> list[str]:
    said = [
        f"{kind['name']}: {interval_text(ratio)}, {verdict(ratio)}"
        for kind, _, optimizer in online_pairs(results)
        for ratio in [kind["against"][optimizer]["ratio"]]
    ]
    what = "one causal layer of each kind against the tuned optimizer that it is, a step an example"
    return [f"{what}: {'; '.join(said)}."] if said else []


def _layers_section(results: Results) -> str:
    names = [*deep_families(results), *RIVALS]
    depths = range(results["config"]["layers"])
    header = ["", *(f"{i + 1} layer{'s' if i else ''} or step{'s' if i else ''}" for i in depths)]
    rows = [
        [NAMES[n], *(interval_text(model["loss"]) for model in results["models"][n])] for n in names
    ]
    return f"## Loss against number of layers\n\n{_table(header, rows)}"


def _alignment_section(results: Results) -> str:
    rows = []
    for family in deep_families(results):
        for model in results["models"][family]:
            for rival in RIVALS:
                pair = model["against"][rival]
                cells = [interval_text(pair[k]) for k in ("ratio", "difference", "cosine")]
                rows.append([NAMES[family], model["name"], NAMES[rival], *cells])
    header = [
        "model",
        "layers",
        "against as many steps of",
        "ratio of losses",
        "prediction difference",
        "cosine of sensitivities",
    ]
    guide = (
        "Ratio of losses: below 1, the model is better. Prediction difference: mean distance (L2) "
        "of the two predictions; 0: the same. Sensitivity: the gradient of a prediction with "
        "respect to the query; cosine 1: both use the query alike."
    )
    return f"## Do models predict what the optimizer predicts?\n\n{guide}\n\n{_table(header, rows)}"


def _online_section(results: Results) -> str:
    pairs = online_pairs(results)
    if not pairs:
        return ""
    rows = []
    for kind, optimizer, family in pairs:
        against = kind["against"][family]
        rows.append(
            [
                kind["name"],
                interval_text(kind["loss"]),
                interval_text(optimizer["loss"]),
                *(interval_text(against[k]) for k in ("ratio", "difference", "cosine")),
                _rates_text(kind),
                _rates_text(optimizer),
            ]
        )
    header = [
        "kind",
        "trained layer's loss",
        "tuned optimizer's loss",
        "ratio",
        "prediction difference",
        "cosine of sensitivities",
        "learned eta, alpha, beta",
        "tuned",
    ]
    guide = (
        "One causal layer reads the examples in their order; its kind is an optimizer that takes "
        "one step an example. The trained layer has its projections too, the optimizer its step "
        "size, momentum and weight decay only, which optax applies and Adam tunes on the same "
        "tasks. A layer's beta is up to the scale of its projections."
    )
    image = "![Loss of each kind and of its optimizer](figures/online.png)"
    return f"## One step an example\n\n{guide}\n\n{_table(header, rows)}\n\n{image}"


def _rates_text(model: Results) -> str:
    return ", ".join(number(model["learned"][k]["mean"]) for k in ("eta", "alpha", "beta"))


def _constructions_section(results: Results) -> str:
    rows = [[c["model"], c["optimizer"], f"{c['error']:.1e}"] for c in results["constructions"]]
    header = ["constructed weights of", "are", "largest error of a prediction, float32"]
    return f"## Constructed weights\n\n{_table(header, rows)}"


def _training_section() -> str:
    image = "![Training loss](figures/training.png)"
    return (
        "## Training\n\nLoss on fresh tasks, medians over seeds and over stretches of steps: deep "
        "linear attention is a polynomial of high degree, which explodes on rare tasks until the "
        f"learning rate has decayed.\n\n{image}"
    )


def _reproduce_section(results: Results) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in results["versions"].items())
    seconds = ", ".join(f"{k} {number(v, 1)}" for k, v in results["seconds"].items())
    return (
        "## How to reproduce\n\n"
        "`python -m icljax.main --config=configs/regression.py --workdir=NEW_FOLDER`, with "
        "`--config.FIELD=VALUE` for each field that differs from this, the whole config of this "
        f"job ({versions}; seconds: {seconds}):\n\n"
        f"```json\n{json.dumps(results['config'], indent=2)}\n```"
    )


# ----------------------------------------------------------------------------------------- figures


def draw(results: Results) -> dict[str, bytes]:
    """PNG files by name."""
    return figures.render(results, _FIGURES)


def _band(ax: "Axes", x: Sequence[float], values: Sequence[Results], **style: Any) -> None:
    """A line with its interval as a band."""
    mean = np.array([v["mean"] for v in values], float)
    low, high = np.array([v["interval"] for v in values], float).T
    # An interval that reaches below 0 is of losses that exploded: it would fill the figure.
    ax.fill_between(x, low, high, where=low > 0, color=style["color"], alpha=0.18, linewidth=0)
    ax.plot(x, mean, **{"linewidth": 1.9, "markersize": 5} | style)


def _log_losses(ax: "Axes", results: Results) -> None:
    ax.axhline(results["zero_loss"], color="#bbbbbb", linewidth=1.2, label="predicting 0")
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(_locator())
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter("")


def _frame(axes: Iterable["Axes"], results: Results, losses: Iterable[float | None]) -> None:
    """Limits of a loss axis: from the smallest loss to a bit above that of predicting 0."""
    finite = [loss for loss in losses if loss]
    for ax in axes:
        ax.set_ylim(0.8 * min(finite, default=1), 2 * results["zero_loss"])


def _locator() -> Any:
    from matplotlib.ticker import LogLocator

    return LogLocator(base=10, subs=(1, 2, 5))


def _draw_layers(results: Results) -> "Figure":
    figure = figures.new_figure(7, 4.4)
    ax = figure.subplots()
    depths = range(1, results["config"]["layers"] + 1)
    for name in [*deep_families(results), *RIVALS]:
        losses = [model["loss"] for model in results["models"][name]]
        _band(ax, depths, losses, label=NAMES[name], **STYLES[name])
    _log_losses(ax, results)
    ax.set_xticks(depths)
    ax.set_xlabel("Layers, or steps")
    ax.set_ylabel("Mean squared error")
    ax.set_title("Loss against number of layers")
    figures.shared_legend(figure, [ax], 3)
    return figure


def _draw_examples(results: Results) -> "Figure":
    last = results["config"]["layers"] - 1
    shown = [0, last] if last else [0]
    figure = figures.new_figure(4.6 * len(shown) + 0.4, 4.4)
    axes = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    counts = results["config"]["eval"]["examples"]
    order = np.argsort(counts)
    for ax, depth in zip(axes, shown, strict=True):
        for name in [*deep_families(results), *RIVALS]:
            losses = results["models"][name][depth]["by_examples"]
            _band(
                ax,
                [counts[i] for i in order],
                [losses[i] for i in order],
                label=NAMES[name],
                **STYLES[name],
            )
        _log_losses(ax, results)
        ax.axvline(results["config"]["num_examples"], color="#bbbbbb", linewidth=0.8, zorder=1)
        ax.set_title(f"{depth + 1} layer{'s' if depth else ''} or step{'s' if depth else ''}")
        ax.set_xlabel("Examples in the prompt (line: in training)")
        ax.xaxis.get_major_locator().set_params(integer=True)
    models = [results["models"][n][d] for n in [*deep_families(results), *RIVALS] for d in shown]
    _frame(axes, results, [v["mean"] for model in models for v in model["by_examples"]])
    axes[0].set_ylabel("Mean squared error")
    figures.shared_legend(figure, axes, 3)
    return figure


def _draw_alignment(results: Results) -> "Figure | None":
    if not deep_families(results):
        return None
    figure = figures.new_figure(9.6, 7)
    axes = figure.subplots(2, 2, sharex=True, sharey="row")
    depths = range(1, results["config"]["layers"] + 1)
    for column, rival in zip(axes.T, RIVALS, strict=True):
        for ax, key in zip(column, ("difference", "cosine"), strict=True):
            for name in deep_families(results):
                values = [model["against"][rival][key] for model in results["models"][name]]
                _band(ax, depths, values, label=NAMES[name], **STYLES[name])
        column[0].set_title(f"Against as many steps of {NAMES[rival]}")
        column[1].set_xlabel("Layers, or steps")
        column[1].set_xticks(depths)
    axes[0, 0].set_ylim(bottom=0)
    axes[0, 0].set_ylabel("Prediction difference (mean L2)")
    axes[1, 0].set_ylabel("Cosine of sensitivities")
    figures.shared_legend(figure, axes.flatten(), 3)
    return figure


def _draw_online(results: Results) -> "Figure | None":
    pairs = online_pairs(results)
    if not pairs:
        return None
    figure = figures.new_figure(10, 4.6)
    losses, by_examples = figure.subplots(1, 2, width_ratios=(1.1, 1))
    for row, (kind, optimizer, _) in enumerate(pairs):
        color = KIND_COLORS[row % len(KIND_COLORS)]
        _bar(losses, row - 0.18, kind["loss"], color, "trained layer" if row == 0 else None)
        _bar(losses, row + 0.18, optimizer["loss"], "#b5b5b5", None if row else "tuned optimizer")
        counts = results["config"]["eval"]["examples"]
        order = np.argsort(counts)
        x = [counts[i] for i in order]
        style = {"color": color, "marker": "o", "label": kind["name"]}
        _band(by_examples, x, [kind["by_examples"][i] for i in order], **style)
        dotted = [optimizer["by_examples"][i]["mean"] for i in order]
        by_examples.plot(x, dotted, color=color, linestyle=(0, (1, 1.2)), linewidth=1.6)
    losses.set_yticks(range(len(pairs)), [kind["name"] for kind, _, _ in pairs])
    losses.invert_yaxis()
    losses.grid(visible=False)
    losses.tick_params(axis="y", length=0)
    losses.set_xlabel("Mean squared error")
    losses.set_title("Trained layer (colour), tuned optimizer (grey)")
    _log_losses(by_examples, results)
    by_examples.axvline(results["config"]["num_examples"], color="#bbbbbb", linewidth=0.8, zorder=1)
    by_examples.xaxis.get_major_locator().set_params(integer=True)
    by_examples.set_xlabel("Examples in the prompt (line: in training)")
    by_examples.set_ylabel("Mean squared error")
    by_examples.set_title("Solid: trained layer; dotted: optimizer")
    figures.shared_legend(figure, [by_examples], 6)
    return figure


def _bar(ax: "Axes", y: float, series: Results, color: str, label: str | None) -> None:
    ax.barh(y, series["mean"] or 0, 0.34, color=color, label=label)
    ax.plot(np.array(series["interval"], float), [y, y], color=figures.INK, linewidth=2)
    end = max(series["mean"] or 0, series["interval"][1] or 0)
    ax.text(end, y, f" {number(series['mean'])}", va="center", fontsize=9)


def _draw_training(results: Results) -> "Figure | None":
    families = deep_families(results)
    if not families:
        return None
    figure = figures.new_figure(3.4 * len(families) + 0.4, 3.9)
    axes = figure.subplots(1, len(families), sharey=True, squeeze=False)[0]
    for ax, name in zip(axes, families, strict=True):
        models = results["models"][name]
        for model, alpha in zip(models, np.linspace(0.35, 1, len(models)), strict=True):
            curve = np.array(model["curve"], float)
            x = (np.arange(len(curve)) + 0.5) * results["config"]["steps"] / len(curve)
            color = STYLES[name]["color"]
            label = f"{model['name']} layer{'s' if model['name'] != '1' else ''}"
            ax.plot(x, curve, color=color, alpha=alpha, linewidth=1.8)
            ax.text(x[-1], curve[-1], f" {label}", fontsize=9, va="center", color=figures.INK)
        ax.set_xlim(0, 1.3 * results["config"]["steps"])
        _log_losses(ax, results)
        ax.set_title(NAMES[name])
        ax.set_xlabel("Step")
    curves = [model["curve"] for name in families for model in results["models"][name]]
    _frame(axes, results, [loss for curve in curves for loss in curve])
    axes[0].set_ylabel("Mean squared error")
    return figure


_FIGURES: dict[str, Callable[[Results], "Figure | None"]] = {
    "layers.png": _draw_layers,
    "alignment.png": _draw_alignment,
    "examples.png": _draw_examples,
    "online.png": _draw_online,
    "training.png": _draw_training,
}


# ----------------------------------------------------------------------------------------- console

_WIDTH = 88


def show(results: Results, path: Path, console: Console) -> None:
    """Prints what came out, and where the report is."""
    width = min(console.width, _WIDTH)
    lines: list[Any] = [_layers_table(results), ""]
    if online_pairs(results):
        lines += [_online_table(results), ""]
    lines += [f"{holds}: {bar} ({measured})" for bar, measured, holds in bars(results)]
    lines += ["", f"Seconds: {number(sum(filter(None, results['seconds'].values())), 0)}"]
    for line in lines:
        console.print(line, width=width, markup=False, highlight=False)
    report = Text(f"Report: {path / 'report.md'}", "bold")
    console.print(report, soft_wrap=True)  # one line, however long, so that it can be copied


def _console_table(title: str, columns: Sequence[str]) -> Table:
    style: dict[str, Any] = {"title_justify": "left", "title_style": "bold", "box": None}
    table = Table(title=title, pad_edge=False, padding=(0, 1, 0, 0), **style)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", header_style="dim")
    return table


def _layers_table(results: Results) -> Table:
    depths = [model["name"] for model in results["models"]["gd"]]
    title = f"Mean squared error by layers or steps (predicting 0: {number(results['zero_loss'])})"
    table = _console_table(title, ["", *depths])
    for name in [*deep_families(results), *RIVALS]:
        losses = (model["loss"] for model in results["models"][name])
        table.add_row(NAMES[name], *(_plus_minus(loss) for loss in losses))
    return table


def _online_table(results: Results) -> Table:
    title = "One step an example: a trained layer and the optimizer that it is"
    table = _console_table(title, ["", "trained", "tuned optimizer", "ratio [95 %]"])
    for kind, optimizer, family in online_pairs(results):
        ratio = interval_text(kind["against"][family]["ratio"])
        cells = (_plus_minus(kind["loss"]), _plus_minus(optimizer["loss"]), ratio)
        table.add_row(kind["name"], *cells)
    return table


def _plus_minus(series: Results) -> str:
    if None in (series["mean"], series["interval"][1]):
        return number(series["mean"])
    return f"{number(series['mean'])} ± {number(series['interval'][1] - series['mean'])}"
