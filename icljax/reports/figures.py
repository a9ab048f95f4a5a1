"""The figures of a report, from results.json's content alone.

Shape glossary: R seeds, L layers (of the lists inside results.json).
"""

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from icljax.catalog import CONTROLS, SIMILARITIES
from icljax.reports.wording import SETTINGS, Results, percent, rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers tell apart. Greys are always baselines.
COLORS = {"zsl": "#E69F00", "icl": "#0072B2", "ft": "#009E73"}
SIMILARITY_COLOR = "#CC4778"  # of ICL and FT together
INK = "#333333"
RANDOM_STYLE: dict[str, Any] = {"color": "#777777", "linestyle": (0, (1, 1.2)), "linewidth": 1.8}
BASELINE_STYLES: dict[str, dict[str, Any]] = {
    "random_update": {"label": "random in FT's place", **RANDOM_STYLE},
    "random_weights": {"label": "random in FT's place", **RANDOM_STYLE},
    "random_icl": {"label": "random in ICL's place", **RANDOM_STYLE},
    "before_finetuning": {
        "label": "ZSL in FT's place (before finetuning)",
        "color": "#aaaaaa",
        "linewidth": 2.4,
    },
}
# A colour for each kind of control; models that learned nothing are grey, as baselines are.
CONTROL_STYLES: dict[str, dict[str, Any]] = {
    "untrained": {"color": "#777777", "linestyle": "--", "linewidth": 1.2},
    "untrained_keep_embeddings": {"color": "#777777", "linestyle": "-.", "linewidth": 1.2},
    "permuted_labels": {"color": "#0072B2", "linewidth": 1.3},
    "other_answers": {"color": "#0072B2", "linestyle": "--", "linewidth": 1.2},
    "shuffled_tokens": {"color": "#0072B2", "linestyle": (0, (1, 1.2)), "linewidth": 1.6},
    "perturbation": {"color": "#009E73", "linewidth": 1.3},
    "other_seed": {"color": "#009E73", "linestyle": "--", "linewidth": 1.2},
}
RATE_COLORS = {"lowest": "#E69F00", "highest": "#D55E00"}
STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.12,
    "font.size": 10,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "legend.fontsize": 9.5,
}


def draw(results: Results) -> dict[str, bytes]:
    """PNG files by name, of those figures that the results have the numbers for."""
    return render(results, _FIGURES)


def render(
    results: Results, drawings: Mapping[str, Callable[[Results], "Figure | None"]]
) -> dict[str, bytes]:
    """PNG files by name, each drawn by its function in the style of all reports; None: left out."""
    import matplotlib  # half a second, which other commands should not wait

    drawn = {}
    with matplotlib.rc_context(STYLE):
        for name, draw in drawings.items():
            figure = draw(results)
            if figure is not None:
                drawn[name] = png(figure)
    return drawn


def png(figure: "Figure") -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def new_figure(width: float, height: float) -> "Figure":
    """A figure that belongs to no window and to no global list."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _floats(values: Any) -> np.ndarray:
    """JSON's null becomes NaN, which matplotlib leaves out."""
    return np.asarray(values, np.float64)


def _draw_accuracy(results: Results) -> "Figure | None":
    titles = {
        "accuracy": "As predicted",
        "accuracy_calibrated": "Calibrated (each answer's mean subtracted)",
    }
    panels = [(key, title) for key, title in titles.items() if results[key]]
    figure = new_figure(4.5 * len(panels), 4.2)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (key, title) in zip(axes, panels, strict=True):
        for x, setting in enumerate(SETTINGS):
            _accuracy_bar(ax, x, setting, results[key][setting])
        ax.axhline(
            100 * _floats(results[key]["majority"]).item(), label="majority class", **RANDOM_STYLE
        )
        words = ("query alone", "demonstrations\nin the prompt", "finetuned on\nthem")
        labels = [f"{s}\n{w}" for s, w in zip(SETTINGS.values(), words, strict=True)]
        ax.set_xticks(range(3), labels)
        ax.set_title(title)
        ax.tick_params(axis="x", length=0)
    axes[0].set_ylabel("Accuracy, %")
    axes[0].set_ylim(0, 100)
    shared_legend(figure, axes, 3 if len(panels) > 1 else 2)
    return figure


def _accuracy_bar(ax: "Axes", x: int, setting: str, share: Results) -> None:
    mean, (low, high) = share["mean"], 100 * _floats(share["interval"])
    ax.bar(x, 100 * _floats(mean), 0.62, color=COLORS[setting])
    ax.plot([x, x], [low, high], color=INK, linewidth=2.2, label="95 % interval")
    per_seed = 100 * _floats(share.get("per_seed", ()))
    spots = x + 0.1 + 0.16 * np.arange(len(per_seed)) / max(len(per_seed) - 1, 1)  # beside the line
    style: dict[str, Any] = {"facecolor": "white", "edgecolor": INK, "linewidth": 1.1, "zorder": 3}
    ax.scatter(spots, per_seed, 26, label="one seed", clip_on=False, **style)
    color = INK if setting == "zsl" else "white"
    ax.text(x, 2.5, percent(mean), ha="center", color=color, weight="bold", fontsize=11)


def shared_legend(figure: "Figure", axes: Iterable["Axes"], columns: int) -> None:
    """One legend under all panels, each label once."""
    handles: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=columns)


def _draw_similarity(results: Results) -> "Figure | None":
    names = ("sim_aou", "sim_aou_unnormalized", "sim_am", "sim_am_delta")
    return _layer_rows(results, names)


def _draw_more_similarity(results: Results) -> "Figure | None":
    names = ("kendall", "kendall_example", "sim_update", "recall_tokens", "recall_examples")
    return _layer_rows(results, names)


def _layer_rows(results: Results, names: Sequence[str]) -> "Figure | None":
    """A row for each similarity: left beside models and updates, right beside data and rates."""
    names = [n for n in names if n in results]
    if not names:
        return None
    figure = new_figure(9, 1.4 + 2.35 * len(names))
    axes = figure.subplots(len(names), 2, sharex=True, sharey="row", squeeze=False)
    for (left, right), name in zip(axes, names, strict=True):
        for ax in (left, right):
            _layer_panel(ax, results, name)
        for baseline, series in results[name].get("baselines", {}).items():
            _plot_layers(left, series, **BASELINE_STYLES.get(baseline, RANDOM_STYLE))
        _plot_controls(left, results, name, ("model", "update"))
        _plot_controls(right, results, name, ("data",))
        _plot_rates(right, results, name)
        left.set_title(SIMILARITIES[name].title, pad=20)
        left.set_ylabel(SIMILARITIES[name].unit)
        notes = (SIMILARITIES[name].compared, "the same, other demonstrations and learning rates")
        for ax, note in zip((left, right), notes, strict=True):
            ax.text(0, 1.03, note, transform=ax.transAxes, fontsize=9.5, color="#555555")
    for ax in axes[-1]:
        ax.set_xlabel("Layer (1: next to the input)")
        ax.xaxis.get_major_locator().set_params(integer=True)
    shared_legend(figure, axes.flatten(), 3)
    return figure


def _layer_panel(ax: "Axes", results: Results, name: str) -> None:
    """The job's own curve."""
    band = _floats(results[name]["per_layer_interval"]).reshape(-1, 2)
    x = np.arange(1, len(band) + 1)
    ax.fill_between(x, band[:, 0], band[:, 1], color=SIMILARITY_COLOR, alpha=0.22, linewidth=0)
    style: dict[str, Any] = {
        "color": SIMILARITY_COLOR,
        "linewidth": 1.8,
        "marker": "o",
        "markersize": 2.6,
    }
    _plot_layers(ax, results[name], label="this job, with 95 % band", zorder=3, **style)
    ax.axhline(0, color="#bbbbbb", linewidth=0.8, zorder=1)
    ax.set_xlim(0.4, len(band) + 0.6)


def _plot_controls(ax: "Axes", results: Results, name: str, kinds: Sequence[str]) -> None:
    for control, measured in results.get("controls", {}).items():
        if name in measured and measured["kind"] in kinds:
            style = CONTROL_STYLES[control]
            _plot_layers(ax, measured[name], label=CONTROLS[control].title, **style)


def _plot_rates(ax: "Axes", results: Results, name: str) -> None:
    """The learning-rate control: the lowest and the highest rate at which every seed converged."""
    for which, (learning_rate, series) in extreme_rates(results, name).items():
        label = f"FT at learning rate {rate(learning_rate)} ({which})"
        _plot_layers(ax, series, label=label, color=RATE_COLORS[which], linewidth=1.3)


def extreme_rates(results: Results, name: str) -> dict[str, tuple[float, Results]]:
    """The lowest and the highest learning rate with a finite similarity, and its numbers there."""
    dose = results.get("dose_response", {})
    curve = dose.get("similarity", {}).get(name, ())
    pairs = zip(dose.get("learning_rates", ()), curve, strict=False)
    finite = sorted((r, i) for i, (r, s) in enumerate(pairs) if s["mean"] is not None)
    ends = {"lowest": finite[:1], "highest": finite[1:][-1:]}
    return {which: (r, curve[i]) for which, end in ends.items() for r, i in end}


def _plot_layers(ax: "Axes", series: Results, **style: Any) -> None:
    values = _floats(series["per_layer"])
    ax.plot(np.arange(1, len(values) + 1), values, **style)


def _draw_update(results: Results) -> "Figure | None":
    """dW_ICL against dW_FT: the cosine of every head, and how large both are."""
    if "sim_update" not in results or "update_share" not in results:
        return None
    figure = new_figure(9, 3.6)
    of_heads, shares = figure.subplots(1, 2)
    heads = _floats(results["sim_update"]["per_layer_head"])
    size = max(0.05, float(np.abs(np.nan_to_num(heads)).max()))
    image = of_heads.imshow(heads.T, cmap="RdBu_r", vmin=-size, vmax=size, aspect="auto")
    of_heads.set_xticks(*_every(len(heads)))
    of_heads.set_yticks(*_every(heads.shape[1]))
    of_heads.set_ylabel("Key/value head")
    of_heads.set_title("SimUpdate of every head")
    of_heads.grid(visible=False)
    figure.colorbar(image, ax=of_heads, label="Cosine")
    for setting in ("icl", "ft"):
        style: dict[str, Any] = {"color": COLORS[setting], "linewidth": 1.8}
        share = results["update_share"][setting]
        _plot_layers(shares, share, label=f"dW_{SETTINGS[setting]}", **style)
    shares.set_title("Share of the norm, beside W_ZSL")
    shares.set_ylim(0, 1)
    shares.set_xlim(0.4, len(heads) + 0.6)
    shares.xaxis.get_major_locator().set_params(integer=True)
    shares.legend()
    for ax in (of_heads, shares):
        ax.set_xlabel("Layer (1: next to the input)")
    return figure


def _every(count: int) -> tuple[list[int], list[int]]:
    """Tick places from 0 and their numbers from 1, at most about ten."""
    places = list(range(0, count, max(1, math.ceil(count / 10))))
    return places, [place + 1 for place in places]


DOSE_SIMILARITIES = ("sim_aou", "sim_aou_unnormalized", "sim_am_delta", "sim_update", "kendall")


def _draw_dose(results: Results) -> "Figure | None":
    """Finetuning's accuracy and its similarity to ICL against learning rate."""
    dose = results.get("dose_response")
    if not dose:
        return None
    figure = new_figure(9, 6.3)
    axes = figure.subplots(2, 3).flatten()
    chosen = sorted(set(results["selection"]["learning_rate"]))
    _dose_accuracy(axes[0], results, chosen)
    for ax, name in zip(axes[1:], DOSE_SIMILARITIES, strict=True):
        if name in dose["similarity"] and name in results:
            _dose_similarity(ax, results, name, chosen)
        else:
            ax.set_axis_off()
    shared_legend(figure, axes, 3)
    return figure


def _dose_accuracy(ax: "Axes", results: Results, chosen: Sequence[float]) -> None:
    dose = results["dose_response"]
    for setting in ("zsl", "icl"):
        mean = 100 * _floats(results["accuracy"][setting]["mean"]).item()
        label = f"{SETTINGS[setting]}, evaluated examples"
        ax.axhline(mean, color=COLORS[setting], linewidth=1.6, label=label)
    rates, color = _floats(dose["learning_rates"]), COLORS["ft"]
    _dose_curve(ax, rates, dose["accuracy"], chosen, 100, color=color, label="FT, with 95 % band")
    ax.set_title("FT accuracy, %")


def _dose_similarity(ax: "Axes", results: Results, name: str, chosen: Sequence[float]) -> None:
    dose = results["dose_response"]
    rates, curve = _floats(dose["learning_rates"]), dose["similarity"][name]
    order = np.argsort(rates)
    for baseline in curve[0]["baselines"]:
        means = _floats([at_rate["baselines"][baseline]["mean"] for at_rate in curve])
        ax.plot(rates[order], means[order], label="random baseline", **RANDOM_STYLE)
    for control, measured in results.get("controls", {}).items():
        if name in measured and measured["kind"] == "model":
            mean = _floats(measured[name]["mean"]).item()
            ax.axhline(mean, label=CONTROLS[control].title, **CONTROL_STYLES[control])
    label = "similarity to ICL, with 95 % band"
    _dose_curve(ax, rates, curve, chosen, 1, color=SIMILARITY_COLOR, label=label)
    ax.axhline(0, color="#bbbbbb", linewidth=0.8, zorder=1)
    ax.set_title(SIMILARITIES[name].title)


def _dose_curve(
    ax: "Axes",
    rates: np.ndarray,
    curve: Sequence[Results],
    chosen: Sequence[float],
    scale: float,
    color: str,
    label: str,
) -> None:
    """One number against learning rate, with its band; it ends where a seed diverged."""
    order = np.argsort(rates)
    means = scale * _floats([at_rate["mean"] for at_rate in curve])
    low, high = scale * _floats([at_rate["interval"] for at_rate in curve])[order].T
    ax.fill_between(rates[order], low, high, color=color, alpha=0.2, linewidth=0)
    ax.plot(rates[order], means[order], color=color, linewidth=2, marker="o", ms=3.5, label=label)
    style: dict[str, Any] = {"facecolor": "white", "edgecolor": INK, "linewidth": 1.4, "zorder": 3}
    picked = np.isin(rates, chosen)
    ax.scatter(rates[picked], means[picked], 40, label="rate chosen for a seed", **style)
    _rate_axis(ax, rates)


def _rate_axis(ax: "Axes", rates: np.ndarray) -> None:
    ax.set_xscale("log")
    ax.set_xlim(rates.min() / 1.3, rates.max() * 1.3)
    shown = np.sort(rates)[:: -(-len(rates) // 6)]  # at most six, or their labels overlap
    ax.set_xticks(shown, [rate(r) for r in shown], rotation=45)
    ax.set_xticks([], minor=True)
    ax.set_xlabel("Learning rate")


# Letters in the order ZSL, ICL, FT, upper case where right; from all right to all wrong.
_PATTERNS = ("ZIF", "zIF", "ZIf", "ZiF", "zIf", "ziF", "Zif", "zif")


def _draw_agreement(results: Results) -> "Figure | None":
    agreement = results.get("agreement")
    if not agreement:
        return None
    figure = new_figure(9, 4.4)
    dots, bars, pairs = figure.subplots(1, 3, width_ratios=(1, 2.6, 2.2))
    _pattern_dots(dots)
    _pattern_bars(bars, agreement)
    _pairwise_bars(pairs, agreement)
    return figure


def _pattern_dots(ax: "Axes") -> None:
    """A row for each pattern, a column for each setting; filled: right."""
    for row, pattern in enumerate(_PATTERNS):
        for column, (setting, letter) in enumerate(zip(SETTINGS, pattern, strict=True)):
            right, color = letter.isupper(), COLORS[setting]
            style: dict[str, Any] = {"facecolor": color if right else "white", "edgecolor": color}
            ax.scatter(column, row, 85, linewidth=1.4, **style)
    ax.set_xticks(range(3), list(SETTINGS.values()))
    ax.xaxis.tick_top()
    ax.set(xlim=(-0.6, 2.6), ylim=(7.6, -0.6), yticks=[])
    ax.set_xlabel("filled: right\nhollow: wrong")
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)


def _pattern_bars(ax: "Axes", agreement: Results) -> None:
    patterns = agreement["patterns"]
    shares = 100 * _floats([patterns.get(p) for p in _PATTERNS])
    colors = [SIMILARITY_COLOR if p in ("zIF", "ziF") else "#8c8c8c" for p in _PATTERNS]
    ax.barh(range(8), shares, 0.66, color=colors)
    notes = {
        "ZIF": "all right",
        "zIF": "raises Rec2FTP",
        "ziF": "lowers Rec2FTP",
        "zif": "all wrong",
    }
    furthest = 1.0
    for row, pattern in enumerate(_PATTERNS):
        text = f" {percent(patterns.get(pattern))} %  {notes.get(pattern, '')}"
        end = _whisker(ax, row, shares[row], agreement.get("patterns_interval", {}).get(pattern))
        ax.text(end, row, text, va="center", fontsize=9)
        furthest = max(furthest, end)
    ax.set(ylim=(7.6, -0.6), yticks=[], xlim=(0, 1.7 * furthest))
    ticks = ax.get_xticks()
    ax.set_xticks(ticks[ticks <= 100])  # the room beyond is for the words
    ax.set_title("Which settings are right together")
    ax.set_xlabel("Share of examples, %, with 95 % interval")
    ax.grid(visible=False)


def _whisker(ax: "Axes", row: int, value: float, interval: Sequence[float | None] | None) -> float:
    """Draws a share's interval across its bar, and says where both end."""
    ends = np.nan_to_num(100 * _floats(interval or [None, None]), nan=np.nan_to_num(value))
    ax.plot(ends, [row, row], color=INK, linewidth=1.4)
    return max(ends[1], np.nan_to_num(value))


def _pairwise_bars(ax: "Axes", agreement: Results) -> None:
    pairwise = agreement["pairwise"]
    shares = 100 * _floats(list(pairwise.values()))
    labels = [" = ".join(SETTINGS.get(s, s) for s in pair.split("_")) for pair in pairwise]
    colors = [SIMILARITY_COLOR if pair == "icl_ft" else "#8c8c8c" for pair in pairwise]
    ax.barh(range(len(shares)), shares, 0.45, color=colors)
    for row, (pair, value) in enumerate(pairwise.items()):
        end = _whisker(ax, row, shares[row], agreement.get("pairwise_interval", {}).get(pair))
        ax.text(end + 2, row, f"{percent(value)} %", va="center", fontsize=9)
    ax.set_yticks(range(len(shares)), labels)
    ax.set(xlim=(0, 135), xticks=range(0, 101, 25), ylim=(len(shares) - 0.4, -0.6))
    ax.set_title("How often two predict the same")
    ax.set_xlabel("Share of examples, %, with interval")
    ax.grid(visible=False)
    ax.tick_params(axis="y", length=0)


def _draw_selection(results: Results) -> "Figure | None":
    selection = results["selection"]
    rates = _floats(selection["learning_rates"])
    chosen = [int(np.argmin(abs(rates - r))) for r in selection["learning_rate"]]
    figure = new_figure(9, 3.7)
    axes = figure.subplots(1, 2)
    _rate_panel(axes[0], rates, 100 * _floats(selection["accuracy"]), chosen)
    _rate_panel(axes[1], rates, _floats(selection["training_loss"]), chosen)
    axes[0].set_title("Accuracy on the selection examples")
    axes[0].set_ylabel("Accuracy, %")
    axes[1].set_title("Training loss, mean over the steps")
    axes[1].set_ylabel("Loss, nats per token")
    shared_legend(figure, axes, 3)
    return figure


def _rate_panel(ax: "Axes", rates: np.ndarray, values: np.ndarray, chosen: list[int]) -> None:
    """Curves of [R, rates] against learning rate: seeds thin, their mean thick."""
    order = np.argsort(rates)
    for row in values:
        thin: dict[str, Any] = {"color": COLORS["ft"], "linewidth": 1, "alpha": 0.55, "marker": "."}
        ax.plot(rates[order], row[order], label="one seed", **thin)
    # It ends where a seed's loss is not finite: a mean of the other seeds would mislead.
    mean = values.mean(0)
    ax.plot(rates[order], mean[order], color=COLORS["ft"], linewidth=2.8, label="mean over seeds")
    marked = values[np.arange(len(chosen)), chosen]
    style: dict[str, Any] = {"facecolor": "white", "edgecolor": INK, "linewidth": 1.4, "zorder": 3}
    ax.scatter(rates[chosen], marked, 40, label="chosen for a seed", **style)
    finite = values[np.isfinite(values)]
    _rate_axis(ax, rates)
    if finite.size and finite.min() > 0 and finite.max() > 20 * finite.min():
        ax.set_yscale("log")  # a diverging rate would flatten the others


_FIGURES: dict[str, Callable[[Results], "Figure | None"]] = {
    "accuracy.png": _draw_accuracy,
    "similarity.png": _draw_similarity,
    "more_similarity.png": _draw_more_similarity,
    "update.png": _draw_update,
    "agreement.png": _draw_agreement,
    "dose_response.png": _draw_dose,
    "selection.png": _draw_selection,
}
