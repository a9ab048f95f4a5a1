"""What models trained from scratch show: tables 6 and 7 of the paper, with intervals over seeds.

Shape glossary: R seeds, X points of a curve, L layers, G heads.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.stats
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from icljax.reports import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Results = dict[str, Any]

# Okabe and Ito's colours, the first for the variant that others are compared with.
COLORS = ("#333333", "#0072B2", "#E69F00", "#CC4778", "#009E73", "#56B4E9", "#D55E00")


def summarize(
    config: ConfigDict, corpus: Results, steps: list[int], runs: dict[str, list[Results]]
) -> Results:
    """Means, 95 % intervals over seeds, and differences from the first variant, paired by seed.

    Args:
        corpus: what is said about it.
        steps: after which the points of a curve were measured.
        runs: each variant's, one a seed.
    """
    first = next(iter(runs.values()))
    tokens = config.train.steps * config.train.batch * config.train.accumulate * config.model.length
    return {
        "corpus": corpus,
        "parameters": first[0]["parameters"],
        "train_tokens": tokens,
        "reference": next(iter(runs)),
        "perplexity": _compared(runs, list(first[0]["perplexity"]), _perplexity),
        "accuracy": {
            task: _compared(runs, list(of), lambda run, s, task=task: _accuracy(run, task, s))
            for task, of in first[0]["accuracy"].items()
        },
        "curves": {
            "steps": steps,
            "validation_loss": {name: [r["curve"] for r in each] for name, each in runs.items()},
            "training_loss": {name: [r["losses"] for r in each] for name, each in runs.items()},
        },
        "learned": {
            n: [r["learned"] for r in each] for n, each in runs.items() if each[0]["learned"]
        },
    }


def _perplexity(run: Results, name: str) -> float:
    return run["perplexity"][name]


def _accuracy(run: Results, task: str, setting: str) -> float:
    """In percent, averaged over draws of demonstrations."""
    return 100 * float(np.mean(run["accuracy"][task][setting]))


def _compared(runs: dict[str, list[Results]], names: list[str], value: Any) -> Results:
    """{variant: {name: {mean, interval, per_seed, difference}}}."""
    table = {v: {n: [value(r, n) for r in each] for n in names} for v, each in runs.items()}
    reference = next(iter(table.values()))
    out: Results = {}
    for variant, row in table.items():
        out[variant] = {}
        for name, values in row.items():
            out[variant][name] = over_seeds(values)
            if row is not reference:
                change = np.subtract(values, reference[name])
                out[variant][name]["difference"] = over_seeds(change.tolist())
    return out


def over_seeds(values: list[float]) -> Results:
    """Mean and 95 % interval of Student's t over R seeds (None for one seed)."""
    mean, count = float(np.mean(values)), len(values)
    interval = None
    if count > 1:
        half = scipy.stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) / np.sqrt(count)
        interval = [round(mean - half, 5), round(mean + half, 5)]
    return {"mean": round(mean, 5), "interval": interval, "per_seed": [round(v, 5) for v in values]}


def write(path: Path, results: Results) -> None:
    """Writes report.md and figures/."""
    folder = path / "figures"
    folder.mkdir(exist_ok=True)
    drawn = figures.render(results, FIGURES)
    for name, png in drawn.items():
        (folder / name).write_bytes(png)
    (path / "report.md").write_text(markdown(results, list(drawn)))


def markdown(results: Results, drawn: list[str]) -> str:
    """The report."""
    corpus, config = results["corpus"], results["config"]
    seeds = ", ".join(map(str, config["seeds"]))
    about = (
        f"{results['parameters']:,} parameters ({config['model']['layers']} layers of width "
        f"{config['model']['width']}), {results['train_tokens']:,} tokens of training out of "
        f"{corpus['train_tokens']:,} ({corpus['source']}), seeds {seeds}. All variants of a seed "
        "see the same sequences in the same order, so differences are paired by seed."
    )
    perplexity = (
        "Mean over seeds; in brackets the difference from the first row with its 95 % interval "
        "(Student's t over seeds). *train-S*, *validation-S*: on blocks of S tokens of each part."
    )
    demonstrations = {
        task: sorted({min(used), max(used)}) for task, used in results["icl_demonstrations"].items()
    }
    used = "; ".join(f"{t}: {' to '.join(map(str, u))}" for t, u in demonstrations.items())
    sections = [
        "# Language models from scratch: does momentum attention help?",
        about,
        "## In short\n\n" + "\n".join(f"- {line}" for line in conclusions(results)),
        "## Perplexity (the paper's table 6)\n\n" + perplexity,
        _markdown_table(results["perplexity"], 3),
        _figure("curves.png", "Validation loss in training, and its difference", drawn),
        _figure("eta.png", "Validation perplexity against eta", drawn),
        "## Accuracy, % (the paper's table 7)\n\n"
        "By the main job's code, averaged over draws of demonstrations (that fit: "
        f"{used}). *Calibrated*: each answer's mean log-probability over the examples subtracted.",
        *(
            f"### {task}\n\n" + _markdown_table(rows, 1)
            for task, rows in results["accuracy"].items()
        ),
        _learned_section(results),
        "## Set-up\n\n```json\n" + _config_text(results) + "\n```",
    ]
    return "\n\n".join(s for s in sections if s) + "\n"


def conclusions(results: Results) -> list[str]:
    """What the numbers say of each variant against the first, whatever it is."""
    main = list(next(iter(results["perplexity"].values())))[-1]
    lines = [
        _conclusion(variant, rows[main]["difference"], f"perplexity on {main}", -1, 3)
        for variant, rows in list(results["perplexity"].items())[1:]
    ]
    for task, table in results["accuracy"].items():
        best = next(s for s in ("icl calibrated", "icl") if s in next(iter(table.values())))
        what = f"{best.removeprefix('icl')} in-context accuracy on {task}, %".strip()
        lines += [
            _conclusion(variant, rows[best]["difference"], what, 1, 1)
            for variant, rows in list(table.items())[1:]
        ]
    return lines


def _conclusion(variant: str, difference: Results, what: str, good: int, digits: int) -> str:
    interval = difference["interval"]
    text = f"`{variant}`, {what}: {difference['mean']:+.{digits}f} {_interval(interval, digits)}"
    if interval is None:
        return f"{text}: one seed, no interval."
    low, high = sorted(good * bound for bound in interval)
    verdict = "**better**" if low > 0 else "**worse**" if high < 0 else "no clear difference"
    return f"{text}: {verdict}."


def _interval(interval: list[float] | None, digits: int) -> str:
    if interval is None:
        return ""
    return f"[{interval[0]:+.{digits}f}, {interval[1]:+.{digits}f}]"


def _markdown_table(rows: Results, digits: int) -> str:
    names = list(next(iter(rows.values())))
    lines = ["| variant | " + " | ".join(names) + " |", "| --- |" + " ---: |" * len(names)]
    for variant, cells in rows.items():
        text = " | ".join(_cell(cells[name], digits) for name in names)
        lines.append(f"| `{variant}` | {text} |")
    return "\n".join(lines)


def _cell(cell: Results, digits: int) -> str:
    text = f"{cell['mean']:.{digits}f}"
    if difference := cell.get("difference"):
        text += f" ({difference['mean']:+.{digits}f} {_interval(difference['interval'], digits)})"
    return text


def _learned_section(results: Results) -> str:
    """Learned numbers, averaged over seeds and heads, layer by layer."""
    lines = []
    for variant, each in results["learned"].items():
        for name in each[0]:
            layers = np.mean([r[name] for r in each], (0, 2))
            text = ", ".join(f"{x:.3f}" for x in layers)
            lines.append(f"- `{variant}`: {name} by layer {text}")
    if not lines:
        return ""
    return "## What was learned\n\nMean over seeds and heads.\n\n" + "\n".join(lines)


def _config_text(results: Results) -> str:
    return json.dumps(results["config"], indent=1)


def _figure(name: str, alt: str, drawn: list[str]) -> str:
    return f"![{alt}](figures/{name})" if name in drawn else ""


def draw_curves(results: Results) -> "Figure | None":
    """Validation loss of every variant, and its paired difference from the first."""
    figure = figures.new_figure(10, 4)
    left, right = figure.subplots(1, 2)
    curves = {v: np.asarray(c) for v, c in results["curves"]["validation_loss"].items()}
    steps, reference = results["curves"]["steps"], curves[results["reference"]]
    for color, (variant, values) in zip(_colors(len(curves)), curves.items(), strict=True):
        left.plot(steps, values.mean(0), color=color, label=variant)
        if values is reference:
            right.axhline(0, color=color, linewidth=1.2)
            continue
        change = values - reference
        right.plot(steps, change.mean(0), color=color)
        for seed in change:
            right.plot(steps, seed, color=color, alpha=0.35, linewidth=0.8)
    left.set_title("Validation loss, nats a token")
    right.set_title(f"Minus that of {results['reference']}")
    for ax in (left, right):
        ax.set_xlabel("Step")
        ax.set_xlim(0, None)
    figure.legend(loc="outside lower center", ncols=min(4, len(curves)))
    return figure


def draw_eta(results: Results) -> "Figure | None":
    """Paired difference in perplexity against eta of EMA(V), fixed or as it was learned."""
    main = list(next(iter(results["perplexity"].values())))[-1]
    rows = {v: r[main]["difference"] for v, r in results["perplexity"].items() if "ema=" in v}
    learned = {
        v: float(np.mean([r["ema"] for r in each]))
        for v, each in results["learned"].items()
        if "ema" in each[0] and v in results["perplexity"] and v != results["reference"]
    }
    fixed = {v: float(v.split(" ema=")[1].split()[0]) for v in rows if v not in learned}
    if not fixed and not learned:
        return None
    figure = figures.new_figure(7, 4)
    ax = figure.subplots()
    ax.axhline(0, color=COLORS[0], linewidth=1.2, label=results["reference"])
    for color, marker, label, etas in (
        (COLORS[1], "o", "fixed eta", fixed),
        (COLORS[3], "D", "learned eta, at its mean", learned),
    ):
        for v, eta in etas.items():
            change = results["perplexity"][v][main]["difference"]
            low, high = change["interval"] or [change["mean"]] * 2
            ax.plot([eta, eta], [low, high], color=color, linewidth=2)
            ax.plot(eta, change["mean"], color=color, marker=marker, linestyle="", label=label)
            ax.scatter([eta] * len(change["per_seed"]), change["per_seed"], 14, color=color)
            label = "_"  # one entry in the legend
    ax.set_xlim(0, 1)
    ax.set_xlabel("eta of EMA(V)")
    ax.set_ylabel(f"Perplexity, minus {results['reference']}")
    ax.set_title(f"Difference on {main}, with 95 % interval over seeds (dots)")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


FIGURES = {"curves.png": draw_curves, "eta.png": draw_eta}


def _colors(count: int) -> list[str]:
    return [COLORS[i % len(COLORS)] for i in range(count)]


def show(results: Results, path: Path, console: Console) -> None:
    """The tables on the console."""
    names = list(next(iter(results["perplexity"].values())))
    shown = [n for n in names if n.startswith("validation") or n == _longest(names, "train")]
    _show_table(console, "Perplexity", results["perplexity"], shown, 2)
    for task, rows in results["accuracy"].items():
        _show_table(console, f"Accuracy on {task}, %", rows, list(next(iter(rows.values()))), 1)
    console.print("Difference from the first, 95 % interval over seeds, paired", style="italic")
    for line in conclusions(results):
        console.print(line.replace("`", "").replace("**", ""), markup=False, highlight=False)
    seconds = results["seconds"]
    parts = ", ".join(f"{k} {v:.0f}" for k, v in seconds.items())
    console.print(f"Seconds: {sum(seconds.values()):.0f} ({parts})", markup=False, highlight=False)
    console.print(f"Report: {path / 'report.md'}", markup=False, highlight=False, soft_wrap=True)


def _longest(names: list[str], part: str) -> str:
    return [n for n in names if n.startswith(part)][-1]


def _show_table(console: Console, title: str, rows: Results, names: list[str], digits: int) -> None:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("variant", overflow="fold")
    for name in names:
        table.add_column(name.replace("validation", "valid"), justify="right")
    for variant, cells in rows.items():
        table.add_row(variant, *(f"{cells[name]['mean']:.{digits}f}" for name in names))
    console.print(table)
    console.print()
