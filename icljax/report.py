"""results.json -> report.md with its figures, and the table at the end of a job on the console.

Shape glossary: R seeds, L layers (of the lists inside results.json).
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from icljax import figures, workdir
from icljax.wording import (
    BASELINES,
    CONTROLS,
    SETTINGS,
    SIMILARITIES,
    Results,
    number,
    percent,
    rate,
)

UNDEFINED = "undefined: FT corrected nothing"


def write(path: Path, results: Results) -> None:
    """Writes `report.md` and its figures (PNG, in `figures/`) into the folder `path`.

    Args:
        path: an existing folder.
        results: what results.json holds (see `icljax.results`); numbers may be None.
    """
    drawn = figures.draw(results)
    (path / "figures").mkdir(exist_ok=True)
    for name, content in drawn.items():
        workdir.write_atomically(path / "figures" / name, content)
    text = markdown(results, drawn)
    workdir.write_atomically(path / "report.md", text.encode())


# ---------------------------------------------------------------------------- numbers and verdicts


def _interval(pair: Sequence[float | None], digits: int = 3, scale: float = 1) -> str:
    return f"[{', '.join(number(v, digits, scale) for v in pair)}]"


def _listed(values: Iterable[float | None], digits: int = 3, scale: float = 1) -> str:
    return ", ".join(number(v, digits, scale) for v in values) or "-"


def _with_interval(series: Results) -> str:
    return f"{number(series['mean'])} {_interval(series['interval'])}"


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
    return f"{number(recall['percent'], 1)} % ({counts})"


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
        _image("update.png", "dW_ICL and dW_FT: cosine of each head, share of the norm", figures),
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
    weights = CONTROLS.get(model["weights"], model["weights"] + " model")
    attention = model.get("attention", "")
    return f"{model['name']}, {weights}" + (f", attention {attention}" if attention else "")


def _demonstrations_text(demonstrations: Results) -> str:
    used = sorted(set(demonstrations["used"]))
    text = f"{' or '.join(map(str, used))} demonstrations"
    asked = demonstrations["asked"]
    return text if used == [asked] else f"{text} (asked for {asked}, fewer fit)"


def _headline(results: Results) -> str:
    accuracy, calibrated = results["accuracy"], results["accuracy_calibrated"]
    majority = f"majority {percent(accuracy['majority'])} %"
    rows: list[Sequence[str]] = [
        [f"Accuracy {label}, % (calibrated)", _shares(accuracy[s], calibrated[s]), majority, ""]
        for s, label in SETTINGS.items()
    ]
    rows.append(["Rec2FTP", rec2ftp_text(results["rec2ftp"]), "both counts", ""])
    for name in ("sim_aou", "sim_am", "sim_am_delta", "kendall", "sim_update"):
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
    return f"{percent(raw['mean'])} ({percent(calibrated['mean'])})"


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
        rows.append(["majority class", kind, percent(majority), "-", "-", "-"])
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
        percent(share["mean"]),
        _interval(share["interval"], 1, 100),
        percent(share.get("seed_std")),
        _listed(share.get("per_seed", ()), 1, 100),
    ]


def _rec2ftp_section(results: Results) -> str:
    recall = results["rec2ftp"]
    per_seed = ["undefined" if v is None else number(v, 1) for v in recall["per_seed"]]
    rows = [
        ["Rec2FTP", rec2ftp_text(recall)],
        ["95 % interval", _interval(recall["interval"], 1)],
        ["each seed, %", ", ".join(per_seed)],
        ["ZSL wrong, FT right", recall["ft_right_zsl_wrong"]],
        ["ZSL wrong, FT and ICL right", recall["icl_and_ft_right_zsl_wrong"]],
        ["ICL accuracy, %, for comparison", percent(results["accuracy"]["icl"]["mean"])],
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
        number(series["mean"]),
        _interval(series["interval"]),
        number(series.get("seed_std")),
        _listed(series["per_seed"]),
        number(series.get("f2t")),
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
    header = ["seed", "chosen rate", *(f"rate {rate(r)}" for r in s["learning_rates"])]
    rows = []
    for i, seed in enumerate(results["config"]["seeds"]):
        cells = zip(s["accuracy"][i], s["nll"][i], s["training_loss"][i], strict=True)
        texts = (f"{percent(a)} / {number(n)} / {number(t, 2)}" for a, n, t in cells)
        rows.append([seed, rate(s["learning_rate"][i]), *texts])
    note = (
        "Each seed's learning rate is the one with the best accuracy on "
        f"{s['num_examples']:,} examples (then the lowest negative log-likelihood): "
        f"{s['selected_on']}. Cells: accuracy in % / negative log-likelihood on these examples / "
        "mean training loss; dashes where the loss was not finite."
    )
    parts = [f"## Selection\n\n{note}", _seed_text(results), _table(header, rows)]
    return "\n\n".join(p for p in parts if p)


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
    each = ", ".join(f"{k} {number(v, digits)}" for k, v in seconds.items())
    return f"{number(total, digits)} ({each})"


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
            "baseline: random in FT's place (SimAM: before finetuning; SimUpdate: random in ICL's "
            "place); above: of all these",
            "dim",
        ),
        "",
        f"Learning rates {', '.join(rate(r) for r in selection['learning_rate'])} selected on "
        f"{selection['num_examples']:,} examples: {selection['selected_on']}",
        _seed_text(results).replace("**", ""),
        f"Seconds: {_seconds_text(results['seconds'], 0)}",
    ]
    for line in lines:
        console.print(line, width=width, markup=False, highlight=False)
    report = Text(f"Report: {path / 'report.md'}", "bold")
    console.print(report, soft_wrap=True)  # one line, however long, so that it can be copied


def _rec2ftp_line(recall: Results) -> str:
    percent = UNDEFINED if recall["percent"] is None else f"{number(recall['percent'], 1)} %"
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
        table.add_row(name, *shares, percent(results[key]["majority"]))
    return table


def _spread_text(share: Results) -> str:
    std = share.get("seed_std")
    return percent(share["mean"]) + ("" if std is None else f" ± {percent(std)}")


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
            ", ".join(number(b["mean"]) for b in baselines),
            *(number(c.get(name, {}).get("mean")) for c in controls.values()),
            _VERDICTS[verdict(results[name], compared_with(results, name)).split(":")[0]],
        ]
        table.add_row(*cells)
    return table


_CONSOLE_CONTROLS = {"untrained": "untrained", "untrained_keep_embeddings": "emb. kept"}
_VERDICTS = {"above": "yes", "not above": "no", "unknown": "?"}
