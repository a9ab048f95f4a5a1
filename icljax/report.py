"""results.json -> report.md with its figures, and the table at the end of a job on the console.

Shape glossary: R seeds, L layers (of the lists inside results.json).
"""

import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from icljax import workdir

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Results = dict[str, Any]


class Metric(NamedTuple):
    """A similarity of ICL and FT, in words.

    Attributes:
        title: what it is called, in tables and above its panel.
        compared: what is compared, under the title of its panel.
        unit: of the vertical axis.
        guide: how to read it.
    """

    title: str
    compared: str
    unit: str
    guide: str


SIMILARITIES = {
    "sim_aou": Metric(
        "SimAOU",
        "attention output updates, ICL - ZSL and FT - ZSL",
        "Cosine",
        "the cosine between what ICL and what FT add to a layer's zero-shot attention output, each "
        "output scaled to length 1 first. 1: the same direction; 0: unrelated; -1: opposite. Look "
        "at the untrained models: scaling first raises the score even there.",
    ),
    "sim_aou_unnormalized": Metric(
        "SimAOU, not normalised",
        "attention output updates, outputs not scaled",
        "Cosine",
        "the same without the scaling, which is the fairer of the two. Read it like SimAOU.",
    ),
    "sim_am": Metric(
        "SimAM",
        "attention maps, ICL and FT",
        "Cosine",
        "the cosine between the attention scores of ICL and FT over the query's own tokens, for "
        "each head. 1: the same map; 0: unrelated. Both share the zero-shot map, so it is high "
        "anyway: only the gain over *before finetuning* (ZSL in FT's place) says something.",
    ),
    "sim_am_delta": Metric(
        "SimAM-delta",
        "attention map changes, ICL - ZSL and FT - ZSL",
        "Cosine",
        "the cosine between how ICL and how FT change the zero-shot attention scores. 1: the same "
        "change; 0: unrelated. Look at the random update and at the untrained models.",
    ),
    "kendall": Metric(
        "Kendall, tokens",
        "ranking of demonstration tokens, ICL and FT",
        "Kendall's tau",
        "whether ICL's attention and FT's update rank the demonstration tokens alike. 1: the same "
        "order; 0: unrelated orders; -1: reversed. Look at the random weights and at the untrained "
        "models.",
    ),
    "kendall_example": Metric(
        "Kendall, demonstrations",
        "ranking of whole demonstrations, ICL and FT",
        "Kendall's tau",
        "the same with the weight of each whole demonstration. Longer demonstrations tend to "
        "get more weight in any setting, which can lift even random weights above 0: compare with "
        "those and with the untrained models.",
    ),
    "recall_tokens": Metric(
        "Recall, tokens",
        "ICL's top 100 tokens in FT's top 100",
        "Share, 0 to 1",
        "the share of the 100 tokens with the most weight in ICL that are among FT's 100. 1: all; "
        "0: none. Chance is far above 0 (100 of all tokens): compare with the random weights.",
    ),
    "recall_examples": Metric(
        "Recall, demonstrations",
        "ICL's top 5 demonstrations in FT's top 5",
        "Share, 0 to 1",
        "the same for the 5 demonstrations with the most weight; here chance is higher still.",
    ),
}
BASELINES = {
    "random_update": "random update",
    "random_weights": "random weights",
    "before_finetuning": "before finetuning",
}
CONTROLS = {
    "untrained": "untrained model",
    "untrained_keep_embeddings": "untrained except embeddings",
}
SETTINGS = {"zsl": "ZSL", "icl": "ICL", "ft": "FT"}
UNDEFINED = "undefined: FT corrected nothing"


def write(path: Path, results: Results) -> None:
    """Writes `report.md` and its figures (PNG, in `figures/`) into the folder `path`.

    Args:
        path: an existing folder.
        results: what results.json holds (see `icljax.results`); numbers may be None.
    """
    figures = draw_figures(results)
    (path / "figures").mkdir(exist_ok=True)
    for name, content in figures.items():
        workdir.write_atomically(path / "figures" / name, content)
    text = markdown(results, figures)
    workdir.write_atomically(path / "report.md", text.encode())


# ---------------------------------------------------------------------------- numbers and verdicts


def _number(value: float | None, digits: int = 3, scale: float = 1) -> str:
    """A number; a dash for None, and no "-0.000"."""
    return "-" if value is None else f"{round(scale * value, digits) + 0.0:.{digits}f}"


def _percent(value: float | None) -> str:
    return _number(value, 1, 100)


def _interval(pair: Sequence[float | None], digits: int = 3, scale: float = 1) -> str:
    return f"[{', '.join(_number(v, digits, scale) for v in pair)}]"


def _listed(values: Iterable[float | None], digits: int = 3, scale: float = 1) -> str:
    return ", ".join(_number(v, digits, scale) for v in values) or "-"


def _with_interval(series: Results) -> str:
    return f"{_number(series['mean'])} {_interval(series['interval'])}"


def compared_with(results: Results, name: str) -> dict[str, Results]:
    """What stands beside a similarity: its baselines, then the untrained models, by their names."""
    found = {BASELINES.get(k, k): v for k, v in results[name].get("baselines", {}).items()}
    for control, measured in results.get("controls", {}).items():
        if name in measured:
            found[CONTROLS.get(control, control)] = measured[name]
    return found


def verdict(series: Results, others: dict[str, Results]) -> str:
    """Whether a similarity's interval lies wholly above those of all that it is compared with."""
    low = series["interval"][0]
    highs = {name: other["interval"][1] for name, other in others.items()}
    reached = not_above(series, others)
    if reached:
        return f"not above: {', '.join(reached)}"
    return "unknown" if not highs or low is None or None in highs.values() else "above"


def not_above(series: Results, others: dict[str, Results]) -> list[str]:
    """The names of those whose intervals a similarity's interval reaches or lies below."""
    low = series["interval"][0]
    highs = {name: other["interval"][1] for name, other in others.items()}
    return [n for n, high in highs.items() if None not in (low, high) and low <= high]


def seeds_above(series: Results, others: dict[str, Results]) -> str:
    """In how many seeds the similarity is above all that it is compared with."""
    columns = [s["per_seed"] for s in (series, *others.values())]
    known = [row for row in zip(*columns, strict=False) if None not in row]
    return f"{sum(row[0] > max(row[1:], default=np.inf) for row in known)} of {len(known)}"


def rec2ftp_text(recall: Results) -> str:
    """Rec2FTP with both counts, e.g. "71.4 % (5 of 7)"."""
    if recall["percent"] is None:
        return UNDEFINED
    counts = f"{recall['icl_and_ft_right_zsl_wrong']} of {recall['ft_right_zsl_wrong']}"
    return f"{_number(recall['percent'], 1)} % ({counts})"


def seed_numbers(results: Results) -> list[int]:
    """The seeds that the numbers are of."""
    best = results["selection"].get("best_seed")
    return [best["seed"]] if best else list(results["config"]["seeds"])


# --------------------------------------------------------------------------------------- report.md


def markdown(results: Results, figures: Iterable[str]) -> str:
    """The report, with images of those `figures` that were drawn."""
    sections = [
        _title(results),
        _headline(results),
        _accuracy_section(results),
        _image("accuracy.png", "Accuracy of ZSL, ICL and FT, raw and calibrated", figures),
        _rec2ftp_section(results),
        _image("agreement.png", "Which settings are right, and how often two agree", figures),
        _guide(),
        _similarity_section(results),
        _image("similarity.png", "SimAOU, SimAM, Kendall and SimAM-delta of each layer", figures),
        _image("more_similarity.png", "Further similarities of each layer", figures),
        _selection_section(results),
        _image("selection.png", "Selection accuracy and loss against learning rate", figures),
        _setup_section(results),
        _reproduce_section(results),
    ]
    return "\n\n".join(s for s in sections if s) + "\n"


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    # A bar would end the cell.
    cells = ([str(c).replace("|", "\\|") for c in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _image(name: str, alt: str, figures: Iterable[str]) -> str:
    return f"![{alt}](figures/{name})" if name in figures else ""


def _title(results: Results) -> str:
    stand_in = results.get("stand_in")
    task = results["task"].upper() + (" (on STAND-IN data)" if stand_in else "")
    title = f"# {task}: does in-context learning behave like finetuning?"
    warning = f"> **Warning: stand-in data.** {' '.join(stand_in.split())}\n\n" if stand_in else ""
    seeds = seed_numbers(results)
    data, demonstrations = results["data"], results["demonstrations"]
    about = (
        f"{_model_text(results)}; {_demonstrations_text(demonstrations)}; "
        f"{data['evaluated']:,} of {data['validation_examples']:,} validation examples; "
        f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}."
    )
    settings = (
        "ZSL: the model sees the query alone. ICL: demonstrations stand before it. FT: the model "
        "is finetuned on the same demonstrations and sees the query alone."
    )
    return f"{title}\n\n{warning}{about}\n\n{settings}"


def _model_text(results: Results) -> str:
    model = results["model"]
    return f"{model['name']}, {CONTROLS.get(model['weights'], model['weights'] + ' model')}"


def _demonstrations_text(demonstrations: Results) -> str:
    used = sorted(set(demonstrations["used"]))
    text = f"{' or '.join(map(str, used))} demonstrations"
    asked = demonstrations["asked"]
    return text if used == [asked] else f"{text} (asked for {asked}, fewer fit)"


def _headline(results: Results) -> str:
    accuracy, calibrated = results["accuracy"], results["accuracy_calibrated"]
    majority = f"majority {_percent(accuracy['majority'])} %"
    rows: list[Sequence[str]] = [
        [f"Accuracy {label}, % (calibrated)", _shares(accuracy[s], calibrated[s]), majority, ""]
        for s, label in SETTINGS.items()
    ]
    rows.append(["Rec2FTP", rec2ftp_text(results["rec2ftp"]), "both counts", ""])
    for name in ("sim_aou", "sim_am", "sim_am_delta", "kendall"):
        if name in results:
            others = compared_with(results, name)
            beside = "<br>".join(f"{k} {_with_interval(v)}" for k, v in others.items())
            verdict_text = verdict(results[name], others)
            rows.append(
                [SIMILARITIES[name].title, _with_interval(results[name]), beside, verdict_text]
            )
    table = _table(["", "measured", "to compare with", "above or not"], rows)
    return f"## In short\n\n{table}\n\n{_best_seed_text(results)}{_intervals_text()}"


def _shares(raw: Results, calibrated: Results) -> str:
    return f"{_percent(raw['mean'])} ({_percent(calibrated['mean'])})"


def _best_seed_text(results: Results) -> str:
    return (
        "**Best of seeds, as in the paper: optimistic.** "
        if results["selection"].get("best_seed")
        else ""
    )


def _intervals_text() -> str:
    return (
        "Intervals are 95 % percentile bootstrap over examples (seeds averaged first); spread = "
        "standard deviation over seeds. *Above* means that the whole interval lies above the "
        "intervals of everything that it is compared with; intervals say nothing about other seeds."
    )


def _accuracy_section(results: Results) -> str:
    seeds = ", ".join(map(str, seed_numbers(results)))
    rows = []
    for key, kind in (("accuracy", "raw"), ("accuracy_calibrated", "calibrated")):
        rows += [[label, kind, *_accuracy_cells(results[key][s])] for s, label in SETTINGS.items()]
        majority = results[key]["majority"]
        rows.append(["majority class", kind, _percent(majority), "-", "-", "-"])
    header = ["setting", "kind", "accuracy, %", "95 % interval", "spread", f"seeds {seeds}"]
    note = (
        "Calibrated: each answer's mean log-probability over the evaluated examples is subtracted "
        "before the best answer is taken (batch calibration). This is transductive: it uses the "
        "other evaluated examples, though not their labels, and stands beside the raw accuracy, "
        "not in its place."
    )
    return f"## Accuracy\n\n{_table(header, rows)}\n\n{note}"


def _accuracy_cells(share: Results) -> list[str]:
    return [
        _percent(share["mean"]),
        _interval(share["interval"], 1, 100),
        _percent(share.get("seed_std")),
        _listed(share.get("per_seed", ()), 1, 100),
    ]


def _rec2ftp_section(results: Results) -> str:
    recall = results["rec2ftp"]
    per_seed = ["undefined" if v is None else _number(v, 1) for v in recall["per_seed"]]
    rows = [
        ["Rec2FTP", rec2ftp_text(recall)],
        ["95 % interval", _interval(recall["interval"], 1)],
        ["each seed, %", ", ".join(per_seed)],
        ["ZSL wrong, FT right", recall["ft_right_zsl_wrong"]],
        ["ZSL wrong, FT and ICL right", recall["icl_and_ft_right_zsl_wrong"]],
        ["ICL accuracy, %, for comparison", _percent(results["accuracy"]["icl"]["mean"])],
    ]
    guide = (
        "Of the examples that ZSL gets wrong and FT gets right, the percentage that ICL gets right "
        "too, counted over all seeds. 100: ICL corrects all that FT corrects; 0: none of it. "
        "Compare it with ICL's accuracy: were ICL right regardless of ZSL and FT, the two would be "
        "equal."
    )
    table = _table(["", "over all seeds"], rows)
    return f"## What finetuning corrects, does ICL correct it too?\n\n{guide}\n\n{table}"


def _similarity_section(results: Results) -> str:
    names = [n for n in SIMILARITIES if n in results]
    header = ["similarity", "mean", "95 % interval", "spread", "each seed", "f2t"]
    rows = [[SIMILARITIES[n].title, *_series_cells(results[n])] for n in names]
    header2 = ["similarity", "baseline", "untrained controls", "above or not", "seeds above all"]
    rows2 = [[SIMILARITIES[n].title, *_comparison_cells(results, n)] for n in names]
    f2t = results["f2t"]
    note = (
        "Means over examples and layers. f2t: the mean over those cases where ZSL is wrong and FT "
        f"and ICL are right ({f2t['count']:,} of {f2t['of']:,}, seeds x examples)."
    )
    parts = [
        f"{note}\n\n{_table(header, rows)}",
        f"{_controls_text(results)}\n\n{_table(header2, rows2)}",
        "\n".join(filter(None, (_plain_verdict(results, n) for n in names))),
    ]
    return "\n\n".join(p for p in parts if p)


def _series_cells(series: Results) -> list[str]:
    return [
        _number(series["mean"]),
        _interval(series["interval"]),
        _number(series.get("seed_std")),
        _listed(series["per_seed"]),
        _number(series.get("f2t")),
    ]


def _comparison_cells(results: Results, name: str) -> list[str]:
    others = compared_with(results, name)
    baselines = set(BASELINES.values())
    texts: dict[bool, list[str]] = {True: [], False: []}
    for label, series in others.items():
        texts[label in baselines].append(f"{label} {_with_interval(series)}")
    cells = ["<br>".join(texts[is_baseline]) or "-" for is_baseline in (True, False)]
    return [*cells, verdict(results[name], others), seeds_above(results[name], others)]


def _controls_text(results: Results) -> str:
    controls = results.get("controls", {})
    if not controls:
        return "No untrained model was measured: the similarities stand beside baselines only."
    counts = sorted({c["evaluated"] for c in controls.values()})
    return (
        "The untrained controls are the same comparison on models that never learned anything "
        f"({' or '.join(map(str, counts))} of the evaluated examples): a similarity that is not "
        "above them is no evidence that learning made ICL behave like finetuning."
    )


def _plain_verdict(results: Results, name: str) -> str:
    """A sentence where a similarity is not above something that it is compared with."""
    others = compared_with(results, name)
    reached = [f"{n} ({_with_interval(others[n])})" for n in not_above(results[name], others)]
    if not reached:
        return ""
    own = f"**{SIMILARITIES[name].title}**, {_with_interval(results[name])}"
    return f"- {own}, is **not above** {' or '.join(reached)}."


def _guide() -> str:
    lines = [f"- **{m.title}**: {m.guide}" for m in SIMILARITIES.values()]
    return "## Similarity of ICL and FT\n\n" + "\n".join(lines)


def _selection_section(results: Results) -> str:
    s = results["selection"]
    header = ["seed", "chosen rate", *(f"rate {_rate(r)}" for r in s["learning_rates"])]
    rows = []
    for i, seed in enumerate(results["config"]["seeds"]):
        cells = zip(s["accuracy"][i], s["nll"][i], s["training_loss"][i], strict=True)
        texts = (f"{_percent(a)} / {_number(n)} / {_number(t, 2)}" for a, n, t in cells)
        rows.append([seed, _rate(s["learning_rate"][i]), *texts])
    note = (
        "Each seed's learning rate is the one with the best accuracy on "
        f"{s['num_examples']:,} examples (then the lowest negative log-likelihood): "
        f"{s['selected_on']}. Cells: accuracy in % / negative log-likelihood on these examples / "
        "mean training loss; dashes where the loss was not finite."
    )
    parts = [f"## Selection\n\n{note}", _seed_text(results), _table(header, rows)]
    return "\n\n".join(p for p in parts if p)


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _seed_text(results: Results) -> str:
    best = results["selection"].get("best_seed")
    if not best:
        return "Seeds were not selected: all are reported."
    return (
        f"{_best_seed_text(results)}Only seed {best['seed']} is reported, the one with the best "
        f"ICL accuracy on these examples ({_listed(best['icl_accuracy'], 1, 100)} % for seeds "
        f"{', '.join(map(str, results['config']['seeds']))})."
    )


def _setup_section(results: Results) -> str:
    data, device = results["data"], results["device"]
    versions = ", ".join(f"{k} {v}" for k, v in results["versions"].items())
    rows = [
        ["data", f"{data['source']} (fingerprint `{data['fingerprint']}`)"],
        *([f"data note {i}", note] for i, note in enumerate(data["notes"], 1)),
        ["evaluated", f"{data['evaluated']:,} of {data['validation_examples']:,} examples"],
        ["model", f"{_model_text(results)} (fingerprint `{results['model']['fingerprint']}`)"],
        ["demonstrations", _used_text(results)],
        ["answers", ", ".join(results["answers"])],
        ["versions", versions],
        ["device", f"{device['count']} x {device['kind']} ({device['platform']})"],
        ["seconds", _seconds_text(results["seconds"], 1)],
    ]
    template = (
        f"Prompt template (the answer follows after one space):\n\n{_fence(results['template'])}"
    )
    return f"## Data, model, machine\n\n{_table(['', ''], rows)}\n\n{template}"


def _seconds_text(seconds: dict[str, float | None], digits: int) -> str:
    total = sum(filter(None, seconds.values()))
    each = ", ".join(f"{k} {_number(v, digits)}" for k, v in seconds.items())
    return f"{_number(total, digits)} ({each})"


def _used_text(results: Results) -> str:
    d = results["demonstrations"]
    pairs = zip(results["config"]["seeds"], d["used"], strict=False)
    return f"asked {d['asked']}; used " + ", ".join(f"{n} (seed {s})" for s, n in pairs)


def _fence(text: str, language: str = "text") -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"


def _reproduce_section(results: Results) -> str:
    config = json.dumps(results["config"], indent=2, ensure_ascii=False)
    return (
        "## How to reproduce\n\n"
        "`python -m icljax.main --config=CONFIG.py --workdir=NEW_FOLDER`, with the task's file in "
        "`configs/` and `--config.FIELD=VALUE` for each field that differs from this, the whole "
        f"config of this job:\n\n{_fence(config, 'json')}"
    )


# ----------------------------------------------------------------------------------------- figures

# Okabe and Ito's colours, which colour-blind readers tell apart. Greys are always baselines.
COLORS = {"zsl": "#E69F00", "icl": "#0072B2", "ft": "#009E73"}
SIMILARITY_COLOR = "#CC4778"  # of ICL and FT together
INK = "#333333"
RANDOM_STYLE: dict[str, Any] = {"color": "#777777", "linestyle": (0, (1, 1.2)), "linewidth": 1.8}
BASELINE_STYLES: dict[str, dict[str, Any]] = {
    "random_update": {"label": "random in FT's place", **RANDOM_STYLE},
    "random_weights": {"label": "random in FT's place", **RANDOM_STYLE},
    "before_finetuning": {
        "label": "ZSL in FT's place (before finetuning)",
        "color": "#aaaaaa",
        "linewidth": 2.4,
    },
}
CONTROL_STYLES: dict[str, dict[str, Any]] = {
    "untrained": {"color": "#777777", "linestyle": "--", "linewidth": 1.1},
    "untrained_keep_embeddings": {"color": "#777777", "linestyle": "-.", "linewidth": 1.1},
}
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


def draw_figures(results: Results) -> dict[str, bytes]:
    """PNG files by name, of those figures that the results have the numbers for."""
    import matplotlib  # half a second, which other commands should not wait

    drawn = {}
    with matplotlib.rc_context(STYLE):
        for name, draw in _FIGURES.items():
            figure = draw(results)
            if figure is not None:
                drawn[name] = _png(figure)
    return drawn


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def _figure(width: float, height: float) -> "Figure":
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
    figure = _figure(9, 4.2)
    axes = figure.subplots(1, 2, sharey=True)
    panels = (
        ("accuracy", "As predicted"),
        ("accuracy_calibrated", "Calibrated (each answer's mean subtracted)"),
    )
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
    _shared_legend(figure, axes, 3)
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
    ax.text(x, 2.5, _percent(mean), ha="center", color=color, weight="bold", fontsize=11)


def _shared_legend(figure: "Figure", axes: Iterable["Axes"], columns: int) -> None:
    """One legend under all panels, each label once."""
    handles: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=columns)


def _draw_similarity(results: Results) -> "Figure | None":
    return _layer_grid(results, ("sim_aou", "sim_am", "kendall", "sim_am_delta"))


def _draw_more_similarity(results: Results) -> "Figure | None":
    names = ("sim_aou_unnormalized", "kendall_example", "recall_tokens", "recall_examples")
    return _layer_grid(results, names)


def _layer_grid(results: Results, names: Sequence[str]) -> "Figure | None":
    names = [n for n in names if n in results]
    if not names:
        return None
    rows = (len(names) + 1) // 2
    figure = _figure(9, 0.9 + 2.9 * rows)
    axes = figure.subplots(rows, 2, sharex=True, squeeze=False).flatten()
    for ax, name in zip(axes, names, strict=False):
        _layer_panel(ax, results, name)
    for ax in axes[len(names) :]:
        ax.set_axis_off()
    for ax in axes[-2:]:
        ax.set_xlabel("Layer (1: next to the input)")
        ax.xaxis.get_major_locator().set_params(integer=True)
    _shared_legend(figure, axes, 3)
    return figure


def _layer_panel(ax: "Axes", results: Results, name: str) -> None:
    band = _floats(results[name]["per_layer_interval"]).reshape(-1, 2)
    x = np.arange(1, len(band) + 1)
    ax.fill_between(x, band[:, 0], band[:, 1], color=SIMILARITY_COLOR, alpha=0.22, linewidth=0)
    style: dict[str, Any] = {
        "color": SIMILARITY_COLOR,
        "linewidth": 1.8,
        "marker": "o",
        "markersize": 2.6,
    }
    _plot_layers(ax, results[name], label="ICL and FT, with 95 % band", zorder=3, **style)
    for baseline, series in results[name].get("baselines", {}).items():
        _plot_layers(ax, series, **BASELINE_STYLES.get(baseline, RANDOM_STYLE))
    for control, measured in results.get("controls", {}).items():
        if name in measured:
            style = CONTROL_STYLES.get(control, CONTROL_STYLES["untrained"])
            _plot_layers(ax, measured[name], label=CONTROLS.get(control, control), **style)
    ax.axhline(0, color="#bbbbbb", linewidth=0.8, zorder=1)
    ax.set_xlim(0.4, len(band) + 0.6)
    _panel_titles(ax, SIMILARITIES[name])


def _panel_titles(ax: "Axes", metric: Metric) -> None:
    ax.set_title(metric.title, pad=20)
    ax.text(0, 1.03, metric.compared, transform=ax.transAxes, fontsize=9.5, color="#555555")
    ax.set_ylabel(metric.unit)


def _plot_layers(ax: "Axes", series: Results, **style: Any) -> None:
    values = _floats(series["per_layer"])
    ax.plot(np.arange(1, len(values) + 1), values, **style)


# Letters in the order ZSL, ICL, FT, upper case where right; from all right to all wrong.
_PATTERNS = ("ZIF", "zIF", "ZIf", "ZiF", "zIf", "ziF", "Zif", "zif")


def _draw_agreement(results: Results) -> "Figure | None":
    agreement = results.get("agreement")
    if not agreement:
        return None
    figure = _figure(9, 4.4)
    dots, bars, pairs = figure.subplots(1, 3, width_ratios=(1, 2.6, 2.2))
    _pattern_dots(dots)
    _pattern_bars(bars, agreement["patterns"])
    _pairwise_bars(pairs, agreement["pairwise"])
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


def _pattern_bars(ax: "Axes", patterns: dict[str, float | None]) -> None:
    shares = 100 * _floats([patterns.get(p) for p in _PATTERNS])
    colors = [SIMILARITY_COLOR if p in ("zIF", "ziF") else "#8c8c8c" for p in _PATTERNS]
    ax.barh(range(8), shares, 0.66, color=colors)
    notes = {
        "ZIF": "all right",
        "zIF": "raises Rec2FTP",
        "ziF": "lowers Rec2FTP",
        "zif": "all wrong",
    }
    for row, pattern in enumerate(_PATTERNS):
        text = f" {_percent(patterns.get(pattern))} %  {notes.get(pattern, '')}"
        ax.text(np.nan_to_num(shares[row]), row, text, va="center", fontsize=9)
    ax.set(ylim=(7.6, -0.6), yticks=[], xlim=(0, 1.6 * max(1, *np.nan_to_num(shares))))
    ticks = ax.get_xticks()
    ax.set_xticks(ticks[ticks <= 100])  # the room beyond is for the words
    ax.set_title("Which settings are right together")
    ax.set_xlabel("Share of examples, % (mean over seeds)")
    ax.grid(visible=False)


def _pairwise_bars(ax: "Axes", pairwise: dict[str, float | None]) -> None:
    shares = 100 * _floats(list(pairwise.values()))
    labels = [" = ".join(SETTINGS.get(s, s) for s in pair.split("_")) for pair in pairwise]
    colors = [SIMILARITY_COLOR if pair == "icl_ft" else "#8c8c8c" for pair in pairwise]
    ax.barh(range(len(shares)), shares, 0.45, color=colors)
    for row, value in enumerate(pairwise.values()):
        ax.text(
            np.nan_to_num(shares[row]) + 2, row, f"{_percent(value)} %", va="center", fontsize=9
        )
    ax.set_yticks(range(len(shares)), labels)
    ax.set(xlim=(0, 120), xticks=range(0, 101, 25), ylim=(len(shares) - 0.4, -0.6))
    ax.set_title("How often two predict the same")
    ax.set_xlabel("Share of examples, %")
    ax.grid(visible=False)
    ax.tick_params(axis="y", length=0)


def _draw_selection(results: Results) -> "Figure | None":
    selection = results["selection"]
    rates = _floats(selection["learning_rates"])
    chosen = [int(np.argmin(abs(rates - r))) for r in selection["learning_rate"]]
    figure = _figure(9, 3.7)
    axes = figure.subplots(1, 2)
    _rate_panel(axes[0], rates, 100 * _floats(selection["accuracy"]), chosen)
    _rate_panel(axes[1], rates, _floats(selection["training_loss"]), chosen)
    axes[0].set_title("Accuracy on the selection examples")
    axes[0].set_ylabel("Accuracy, %")
    axes[1].set_title("Training loss, mean over the steps")
    axes[1].set_ylabel("Loss, nats per token")
    _shared_legend(figure, axes, 3)
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
    ax.set_xscale("log")
    ax.set_xlim(rates.min() / 1.3, rates.max() * 1.3)
    shown = rates[order][:: -(-len(rates) // 6)]  # at most six, or their labels overlap
    ax.set_xticks(shown, [_rate(r) for r in shown], rotation=30)
    ax.set_xticks([], minor=True)
    if finite.size and finite.min() > 0 and finite.max() > 20 * finite.min():
        ax.set_yscale("log")  # a diverging rate would flatten the others
    ax.set_xlabel("Learning rate")


_FIGURES: dict[str, Callable[[Results], "Figure | None"]] = {
    "accuracy.png": _draw_accuracy,
    "similarity.png": _draw_similarity,
    "more_similarity.png": _draw_more_similarity,
    "agreement.png": _draw_agreement,
    "selection.png": _draw_selection,
}


# ----------------------------------------------------------------------------------------- console

_WIDTH = 88


def show(results: Results, path: Path, console: Console) -> None:
    """Prints what came out, and where the report is.

    Args:
        results: what results.json holds; numbers may be None.
        path: the folder with `report.md`.
    """
    width = min(console.width, _WIDTH)
    if results.get("stand_in"):
        warning = f"STAND-IN DATA, not what was asked for: {results['stand_in']}"
        console.print(Text(warning, "bold white on red"), width=width)
    selection = results["selection"]
    lines = [
        _accuracy_table(results),
        "",
        _rec2ftp_line(results["rec2ftp"]),
        "",
        _similarity_table(results),
        Text(
            "baseline: random in FT's place (SimAM: before finetuning); above: of all these", "dim"
        ),
        "",
        f"Learning rates {', '.join(_rate(r) for r in selection['learning_rate'])} selected on "
        f"{selection['num_examples']:,} examples: {selection['selected_on']}",
        _seed_text(results).replace("**", ""),
        f"Seconds: {_seconds_text(results['seconds'], 0)}",
    ]
    for line in lines:
        console.print(line, width=width, markup=False, highlight=False)
    report = Text(f"Report: {path / 'report.md'}", "bold")
    console.print(report, soft_wrap=True)  # one line, however long, so that it can be copied


def _rec2ftp_line(recall: Results) -> str:
    percent = UNDEFINED if recall["percent"] is None else f"{_number(recall['percent'], 1)} %"
    return (
        f"Rec2FTP {percent} {_interval(recall['interval'], 1)}: ZSL wrong and FT right "
        f"{recall['ft_right_zsl_wrong']} times, ICL right in "
        f"{recall['icl_and_ft_right_zsl_wrong']} of these"
    )


def _console_table(title: str, columns: Sequence[str]) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", header_style="dim")
    return table


def _accuracy_table(results: Results) -> Table:
    title = f"{results['task'].upper()}: {_model_text(results)}"
    table = _console_table(title, ("accuracy, %", *SETTINGS.values(), "majority"))
    for key, name in (("accuracy", "raw"), ("accuracy_calibrated", "calibrated")):
        shares = [_spread_text(results[key][s]) for s in SETTINGS]
        table.add_row(name, *shares, _percent(results[key]["majority"]))
    return table


def _spread_text(share: Results) -> str:
    std = share.get("seed_std")
    return _percent(share["mean"]) + ("" if std is None else f" ± {_percent(std)}")


def _similarity_table(results: Results) -> Table:
    controls = results.get("controls", {})
    short = (_CONSOLE_CONTROLS.get(name, name) for name in controls)
    columns = ("", "mean [95 %]", "baseline", *short, "above")
    table = _console_table("Similarity of ICL and FT", columns)
    for name in (n for n in SIMILARITIES if n in results):
        baselines = results[name].get("baselines", {}).values()
        cells = [
            SIMILARITIES[name].title,
            _with_interval(results[name]),
            ", ".join(_number(b["mean"]) for b in baselines),
            *(_number(c.get(name, {}).get("mean")) for c in controls.values()),
            _VERDICTS[verdict(results[name], compared_with(results, name)).split(":")[0]],
        ]
        table.add_row(*cells)
    return table


_CONSOLE_CONTROLS = {"untrained": "untrained", "untrained_keep_embeddings": "emb. kept"}
_VERDICTS = {"above": "yes", "not above": "no", "unknown": "?"}
