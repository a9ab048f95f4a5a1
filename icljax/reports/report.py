"""results.json -> report.md with its figures, and the table at the end of a job on the console.

Shape glossary: R seeds, L layers (of the lists inside results.json).
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from rich.console import Console
from rich.table import Table
from rich.text import Text

from icljax.catalog import BASELINES, CONTROL_KINDS, CONTROLS, METHODS, SIMILARITIES
from icljax.errors import UserError
from icljax.reports import figures
from icljax.reports.wording import CAVEAT, SETTINGS, Results, number, percent, rate, signed
from icljax.runtime import downloads, workdir

UNDEFINED = "undefined: FT corrected nothing"


def write(path: Path, results: Results) -> None:
    """Writes `report.md` and its figures (PNG, in `figures/`) into the folder `path`.

    Args:
        path: an existing folder.
        results: what results.json holds (see `icljax.comparison.results`); numbers may be None.
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
    if series["mean"] is None:
        return "-"
    return f"{number(series['mean'])} {_interval(series['interval'])}"


def _signed_interval(difference: Results, digits: int = 3, scale: float = 1) -> str:
    if difference["mean"] is None:
        return "-"
    interval = ", ".join(signed(v, digits, scale) for v in difference["interval"])
    return f"{signed(difference['mean'], digits, scale)} [{interval}]"


class Compared(NamedTuple):
    """What stands beside a similarity.

    Attributes:
        series: its own numbers.
        difference: how far the similarity lies above it, on the same examples and seeds.
    """

    series: Results
    difference: Results


UNKNOWN: Results = {"mean": None, "interval": [None, None], "per_seed": []}


def compared_with(results: Results, name: str) -> dict[str, Compared]:
    """What stands beside a similarity: its baselines, then the controls, by their titles."""
    differences = results.get("differences", {}).get(name, {})
    found = {
        BASELINES.get(k, k): Compared(series, differences.get(k, UNKNOWN))
        for k, series in results[name].get("baselines", {}).items()
    }
    for control, measured in results.get("controls", {}).items():
        if name in measured:
            difference = measured.get("difference", {}).get(name, UNKNOWN)
            found[CONTROLS[control].title] = Compared(measured[name], difference)
    return found


def verdict(others: dict[str, Compared]) -> str:
    """Whether a similarity is above all that it is compared with (`not_above`)."""
    reached = not_above(others)
    if reached:
        return f"not above: {', '.join(reached)}"
    lows = [other.difference["interval"][0] for other in others.values()]
    return "unknown" if not lows or None in lows else "above"


def not_above(others: dict[str, Compared]) -> list[str]:
    """The names of those whose paired difference's interval is not wholly above 0."""
    lows = {name: other.difference["interval"][0] for name, other in others.items()}
    return [name for name, low in lows.items() if low is not None and low <= 0]


def seeds_above(others: dict[str, Compared]) -> str:
    """In how many seeds the similarity is above all that it is compared with."""
    columns = [other.difference["per_seed"] for other in others.values()]
    known = [row for row in zip(*columns, strict=False) if None not in row]
    return f"{sum(min(row) > 0 for row in known)} of {len(known)}"


def direction(difference: Results) -> str:
    """A paired difference in a word."""
    low, high = difference["interval"]
    if low is None or high is None:
        return "unknown"
    return "above" if low > 0 else "below" if high < 0 else "no clear difference"


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
        _image("accuracy.png", "Accuracy of ZSL, ICL and FT beside the majority class", figures),
        _rec2ftp_section(results),
        _image("agreement.png", "Which settings are right, and how often two agree", figures),
        _guide(),
        _similarity_section(results),
        _layers_text(results),
        _image(
            "similarity.png",
            "SimAOU, SimAOU not normalised, SimAM and SimAM-delta of each layer, beside their "
            "baselines, every control and the lowest and highest learning rate",
            figures,
        ),
        _image(
            "more_similarity.png",
            "Kendall, SimUpdate and recall of each layer, beside the same",
            figures,
        ),
        _image("update.png", "dW_ICL and dW_FT: cosine of each head, share of the norm", figures),
        _controls_section(results),
        _dose_section(results),
        _image(
            "dose_response.png",
            "Accuracy of FT and its similarity to ICL against learning rate, beside ZSL, ICL, the "
            "random baseline and untrained models",
            figures,
        ),
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
    model, method = results["model"], results.get("finetune", {}).get("method", "gd")
    control = CONTROLS.get(model["weights"])
    parts = [model["name"], control.title if control else f"{model['weights']} model"]
    if model.get("attention"):
        parts.append(f"attention {model['attention']}")
    if method != "gd":
        parts.append(f"finetuned by {METHODS[method]}")
    if results.get("record_position", "answer") != "answer":
        parts.append("recorded one token later, at the first label's token")
    return ", ".join(parts)


def _demonstrations_text(demonstrations: Results) -> str:
    used = sorted(set(demonstrations["used"]))
    text = f"{' or '.join(map(str, used))} demonstrations"
    asked = demonstrations["asked"]
    return text if used == [asked] else f"{text} (asked for {asked}, fewer fit)"


def _headline(results: Results) -> str:
    rows = _accuracy_rows(results)
    rows.append(["Rec2FTP", rec2ftp_text(results["rec2ftp"]), "both counts", ""])
    for name in (n for n in COLUMNS if n in results):
        others = compared_with(results, name)
        beside = [
            f"{k} {number(other.series['mean'])}: {_signed_interval(other.difference)}"
            for k, other in others.items()
            if k in _IN_SHORT
        ]
        title = SIMILARITIES[name].title
        rows.append([title, _with_interval(results[name]), "<br>".join(beside), verdict(others)])
    table = _table(["", "measured", "beside it (paired difference)", "above or not"], rows)
    parts = (_best_seed_text(results), _selected_text(results), _intervals_text())
    return f"## In short\n\n{table}\n\n{' '.join(filter(None, parts))}"


# The similarities that tables of many columns show; the report's other tables show all.
COLUMNS = (
    "sim_aou",
    "sim_aou_unnormalized",
    "sim_am",
    "sim_am_delta",
    "kendall",
    "sim_update",
)
_IN_SHORT = {*BASELINES.values(), CONTROLS["untrained"].title}


def _accuracy_rows(results: Results) -> list[Sequence[str]]:
    accuracy, calibrated = results["accuracy"], results["accuracy_calibrated"]
    differences = results.get("differences", {}).get("accuracy", {})
    rows: list[Sequence[str]] = []
    for setting, label in SETTINGS.items():
        share = accuracy[setting]
        text = f"{percent(share['mean'])} {_interval(share['interval'], 1, 100)}"
        text += f" ({percent(calibrated[setting]['mean'])})" if calibrated else ""
        difference = differences.get(f"{setting}_zsl", UNKNOWN)
        beside = f"majority {percent(accuracy['majority'])}"
        if setting != "zsl":
            beside = f"ZSL {percent(accuracy['zsl']['mean'])}: "
            beside += f"{_signed_interval(difference, 1, 100)} points"
        word = "" if setting == "zsl" else direction(difference)
        rows.append(
            [f"Accuracy {label}, %{' (calibrated)' if calibrated else ''}", text, beside, word]
        )
    return rows


def _best_seed_text(results: Results) -> str:
    return (
        "**Best of seeds, as in the paper: optimistic.**"
        if results["selection"].get("best_seed")
        else ""
    )


def _selected_text(results: Results) -> str:
    """What FT's numbers owe to a selection."""
    s = results["selection"]
    return (
        f"FT's learning rate of each seed ({', '.join(rate(r) for r in s['learning_rate'])}) was "
        f"selected on {s['num_examples']:,} examples: {s['selected_on']}."
    )


def _intervals_text() -> str:
    return (
        "Intervals are 95 % percentile bootstrap: each resample draws seeds, and examples that all "
        "of them read (for ZSL and for a single seed, examples alone). With fewer than about five "
        "seeds they are a rough guess, and too narrow. Differences are paired: taken on the same "
        "examples and seeds, in the same resamples. *Above* means that the interval of every "
        "difference, to each baseline and to each control, lies wholly above 0; *not above* that "
        "this is not shown, which is not to say that they are equal. Spread = standard deviation "
        "over seeds."
    )


def _accuracy_section(results: Results) -> str:
    seeds = ", ".join(map(str, seed_numbers(results)))
    kinds = {"accuracy": "raw", "accuracy_calibrated": "calibrated"}
    kinds = {key: kind for key, kind in kinds.items() if results[key]}
    rows = []
    for key, kind in kinds.items():
        rows += [[label, kind, *_accuracy_cells(results[key][s])] for s, label in SETTINGS.items()]
        majority = results[key]["majority"]
        rows.append(["majority class", kind, percent(majority), "-", "-", "-"])
    header = ["setting", "kind", "accuracy, %", "95 % interval", "spread", f"seeds {seeds}"]
    note = (
        "Calibrated: each answer's mean log-probability over the evaluated examples is subtracted "
        "before the best answer is taken (batch calibration). This is transductive: it uses the "
        "other evaluated examples, though not their labels, and stands beside the raw accuracy, "
        "not in its place. Its intervals leave the subtracted means as they are."
        if results["accuracy_calibrated"]
        else "Every example has its own candidates, so that there is nothing to calibrate with."
    )
    tables = _table(header, rows), _accuracy_differences(results, kinds)
    return "\n\n".join(["## Accuracy", _selected_text(results), *tables, note])


def _accuracy_differences(results: Results, kinds: dict[str, str]) -> str:
    differences = results.get("differences", {})
    rows = []
    for pair in ("icl_zsl", "ft_zsl", "icl_ft"):
        title = " - ".join(SETTINGS[setting] for setting in pair.split("_"))
        of_pair = [differences.get(key, {}).get(pair, UNKNOWN) for key in kinds]
        cells = [_signed_interval(d, 1, 100) for d in of_pair]
        rows.append([title, *cells, direction(of_pair[0])])
    points = (f"{kind}, points" for kind in kinds.values())
    header = ["paired difference", *points, "raw: clear or not"]
    return _table(header, rows)


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
    header2 = ["similarity", "baseline", "minus baseline", "above or not", "seeds above all"]
    rows2 = [[SIMILARITIES[n].title, *_comparison_cells(results, n)] for n in names]
    f2t = results["f2t"]
    note = (
        f"Means over examples and layers. {_selected_text(results)} f2t: the mean over those cases "
        "where ZSL is wrong and FT and ICL are right "
        f"({f2t['count']:,} of {f2t['of']:,}, seeds x examples)."
    )
    beside = (
        f"Beside its baseline and the controls (below), by paired differences. {CAVEAT}"
        if results.get("controls")
        else "No control was measured: the similarities stand beside baselines only."
    )
    return f"{note}\n\n{_table(header, rows)}\n\n{beside}\n\n{_table(header2, rows2)}"


def _series_cells(series: Results) -> list[str]:
    return [
        number(series["mean"]),
        _interval(series["interval"]),
        number(series.get("seed_std")),
        _listed(series["per_seed"]),
        f"{number(series.get('f2t'))} {_interval(series.get('f2t_interval', (None, None)))}",
    ]


def _comparison_cells(results: Results, name: str) -> list[str]:
    others = compared_with(results, name)
    baselines = {k: other for k, other in others.items() if k in BASELINES.values()}
    return [
        "<br>".join(f"{k} {_with_interval(other.series)}" for k, other in baselines.items()),
        "<br>".join(_signed_interval(other.difference) for other in baselines.values()),
        verdict(others),
        seeds_above(others),
    ]


def _layers_text(results: Results) -> str:
    """What the figures by layer show, and on which examples."""
    parts = [f"By layer: this job, on the {results['data']['evaluated']:,} evaluated examples"]
    if controls := results.get("controls"):
        counts = sorted({c["evaluated"] for c in controls.values()})
        parts.append(f"its controls, on {' or '.join(map(str, counts))} of these")
    if dose := results.get("dose_response"):
        parts.append(
            "the same model finetuned at the lowest and at the highest learning rate at which all "
            f"seeds converged, on {dose['examples']:,} examples ({dose['measured_on']})"
        )
    return "; ".join(parts) + "."


def _controls_section(results: Results) -> str:
    controls = results.get("controls", {})
    left_out = [f"- {line}" for line in results.get("controls_left_out", [])]
    if not controls:
        return "\n".join(["## Controls\n", *left_out]) if left_out else ""
    names = [n for n in COLUMNS if n in results]
    header = ["", "examples", "ICL, %", "FT, %", *(SIMILARITIES[n].title for n in names)]
    own = [percent(results["accuracy"][s]["mean"]) for s in ("icl", "ft")]
    similarities = [number(results[n]["mean"]) for n in names]
    rows = [["**this job**", results["data"]["evaluated"], *own, *similarities]]
    for kind, title in CONTROL_KINDS.items():
        of_kind = {k: c for k, c in controls.items() if c["kind"] == kind}
        if of_kind:
            rows.append([f"*{title}*", *[""] * (len(header) - 1)])
        rows += [[CONTROLS[k].title, *_control_cells(c, names)] for k, c in of_kind.items()]
    intro = (
        "The same comparison under control conditions (untrained models, corrupted "
        "demonstrations, other updates), on some of the evaluated examples. In each cell, under "
        "the control's own number: this job minus the control on the same examples and seeds, "
        "with its interval; **bold** where a similarity is not above the control. Controls that "
        "are finetuned anew take each seed's learning rate from this job. "
        f"{_selected_text(results)}"
    )
    guides = [f"- **{CONTROLS[k].title}**: {CONTROLS[k].guide}" for k in controls] + left_out
    return f"## Controls\n\n{intro}\n\n{_table(header, rows)}\n\n" + "\n".join(guides)


def _control_cells(control: Results, names: Sequence[str]) -> list[str]:
    cells = [str(control["evaluated"])]
    differences = control.get("difference", {})
    for setting in ("icl", "ft"):
        difference = differences.get(f"accuracy_{setting}", UNKNOWN)
        mean = percent(control["accuracy"][setting]["mean"])
        cells.append(f"{mean}<br>{_signed_interval(difference, 1, 100)}")
    for name in names:
        difference = differences.get(name, UNKNOWN)
        low = difference["interval"][0]
        text = _signed_interval(difference)
        text = f"**{text}**" if low is not None and low <= 0 else text
        cells.append(f"{number(control[name]['mean'])}<br>{text}" if name in control else "-")
    return cells


def _dose_section(results: Results) -> str:
    dose = results.get("dose_response")
    if not dose:
        return ""
    names = [n for n in COLUMNS if n in dose["similarity"]]
    header = ["learning rate", "chosen for", "FT accuracy, %", "training loss"]
    rows = []
    for i in sorted(range(len(dose["learning_rates"])), key=dose["learning_rates"].__getitem__):
        accuracy, loss = dose["accuracy"][i], dose["training_loss"][i]["mean"]
        cells = [f"{percent(accuracy['mean'])} {_interval(accuracy['interval'], 1, 100)}"]
        if dose["diverged"][i]:
            cells = [f"{dose['diverged'][i]} of {len(accuracy['per_seed'])} seeds diverged"]
        cells += [number(loss, 2), *(_with_interval(dose["similarity"][n][i]) for n in names)]
        at = dose["learning_rates"][i]
        count = results["selection"]["learning_rate"].count(at)
        rows.append([rate(at), f"{count} seeds" if count != 1 else "1 seed", *cells])
    note = (
        "What every learning rate gives, not the chosen ones alone: a similarity that is higher "
        "where finetuning has destroyed the model says nothing about useful finetuning. Measured "
        f"on {dose['examples']:,} examples ({dose['measured_on']}), on which the rates were "
        "chosen as well: accuracies at a chosen rate are optimistic here."
    )
    table = _table([*header, *(SIMILARITIES[n].title for n in names)], rows)
    title = "## Similarity against learning rate (dose response)"
    sentences = " ".join(filter(None, (dose_sentence(results, "sim_aou"), _dose_count(results))))
    return "\n\n".join(filter(None, (title, note, sentences, table)))


def _dose_places(results: Results, name: str) -> tuple[int, int, list[int]] | None:
    """Places of the rates with the highest similarity and the best accuracy, and of all compared.

    None where fewer than two rates have both numbers.
    """
    dose = results.get("dose_response", {})
    pairs = zip(dose.get("accuracy", ()), dose.get("similarity", {}).get(name, ()), strict=False)
    known = {i: both for i, both in enumerate(pairs) if None not in [x["mean"] for x in both]}
    if len(known) < 2:
        return None
    best = max(known, key=lambda i: known[i][0]["mean"])
    return max(known, key=lambda i: known[i][1]["mean"]), best, list(known)


def _dose_count(results: Results) -> str:
    """For how many similarities the highest is not at finetuning's best rate."""
    found = [p for p in (_dose_places(results, n) for n in SIMILARITIES if n in results) if p]
    accuracy = results["dose_response"]["accuracy"]
    elsewhere = [top for top, best, _ in found if accuracy[top]["mean"] < accuracy[best]["mean"]]
    if not found:
        return ""
    return (
        f"Of {len(found)} similarities, {len(elsewhere)} are highest at a learning rate at which "
        "FT's accuracy is below its best."
    )


def dose_sentence(results: Results, name: str) -> str:
    """Where a similarity is highest over the learning rates, and how good finetuning is there."""
    places = _dose_places(results, name)
    if places is None:
        return ""
    top, best, compared = places
    dose = results["dose_response"]
    rates, curve = dose["learning_rates"], dose["similarity"][name]
    means = {i: dose["accuracy"][i]["mean"] for i in compared}
    accuracy = {
        i: f"{percent(means[i])} % {_interval(dose['accuracy'][i]['interval'], 1, 100)}"
        for i in compared
    }
    at_top = (
        f"{SIMILARITIES[name].title} is highest at learning rate {rate(rates[top])} "
        f"({_with_interval(curve[top])}), where FT's accuracy is {accuracy[top]}"
    )
    if means[top] == means[best]:
        return f"{at_top}: **the best of all rates**."
    worst = means[top] == min(means.values())
    where = "**highest where finetuning is worst**" if worst else "**not where finetuning is best**"
    return (
        f"{at_top}: {where}. At FT's best rate, {rate(rates[best])} ({accuracy[best]}), it is "
        f"{_with_interval(curve[best])}."
    )


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
        f"{_best_seed_text(results)} Only seed {best['seed']} is reported, the one with the best "
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
        ["answers", ", ".join(results["answers"]) or "each example's own candidates"],
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
    lines = [
        Text(f"{results['task'].upper()}: {_model_text(results)}", "bold"),
        _accuracy_table(results),
        "",
        _rec2ftp_line(results["rec2ftp"]),
        "",
        _similarity_table(results),
        Text(
            "baseline: random in FT's place (SimAM: before finetuning; SimUpdate: random in ICL's "
            "place); above: this and all controls, by the paired difference's interval ('no' is "
            "not shown to be above, not shown to be equal)",
            "dim",
        ),
        "",
        *filter(None, [dose_sentence(results, "sim_aou").replace("**", "")]),
        _selected_text(results),
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


def _console_table(columns: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", header_style="dim")
    return table


def _accuracy_table(results: Results) -> Table:
    table = _console_table(("accuracy, %", *SETTINGS.values(), "majority"))
    kinds = (("accuracy", "raw"), ("accuracy_calibrated", "calibrated"))
    for key, name in (kind for kind in kinds if results[kind[0]]):
        shares = [_spread_text(results[key][s]) for s in SETTINGS]
        table.add_row(name, *shares, percent(results[key]["majority"]))
    return table


def _spread_text(share: Results) -> str:
    std = share.get("seed_std")
    return percent(share["mean"]) + ("" if std is None else f" ± {percent(std)}")


def _similarity_table(results: Results) -> Table:
    columns = ("similarity of ICL and FT", "mean [95 %]", "baseline", "highest control", "above")
    table = _console_table(columns)
    for name in (n for n in SIMILARITIES if n in results):
        baselines = results[name].get("baselines", {}).values()
        cells = [
            SIMILARITIES[name].title,
            _with_interval(results[name]),
            ", ".join(number(b["mean"]) for b in baselines),
            _highest_control(results, name),
            _VERDICTS[verdict(compared_with(results, name)).split(":")[0]],
        ]
        table.add_row(*cells)
    return table


def _highest_control(results: Results, name: str) -> str:
    controls = results.get("controls", {}).items()
    means = {k: c[name]["mean"] for k, c in controls if name in c}
    known = {k: mean for k, mean in means.items() if mean is not None}
    if not known:
        return "-"
    highest = max(known, key=known.__getitem__)
    return f"{CONTROLS[highest].short} {number(known[highest])}"


_VERDICTS = {"above": "yes", "not above": "no", "unknown": "?"}


# ------------------------------------------------------------------------------------ many jobs


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """A mistake, in one line as every other."""
        raise UserError(f"{message}; usage: python -m icljax.report DIR... [--out=DIR]")


def main(argv: Sequence[str] | None = None) -> None:
    """Merges the results of many jobs into one report (see `icljax.reports.page`)."""
    parser = _Parser(prog="python -m icljax.report", description=main.__doc__)
    parser.add_argument("folders", nargs="+", metavar="DIR", help="holds results")
    parser.add_argument("--out", metavar="DIR", help="for the report; default: the first")
    given = parser.parse_args(argv)
    from icljax.reports import page  # a report of one job does without it

    folders = [downloads.user_path(folder, "DIR") for folder in given.folders]
    out = downloads.user_path(given.out, "--out") if given.out else folders[0]
    for file in page.write(folders, out):
        print(file)
