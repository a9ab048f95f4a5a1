"""Results of many jobs as one study: which cells there are, and what is above its controls."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from icljax.catalog import BASELINES, CONTROLS, SIMILARITIES
from icljax.errors import UserError
from icljax.reports import paper, report
from icljax.reports.wording import Results
from icljax.runtime import workdir

SWEEP = "sweep.json"  # in a sweep's folder: job's folder -> task, model, setting, error


class Entry(NamedTuple):
    """One cell of a study: a task with a model in a setting.

    Attributes:
        results: what results.json holds; None where there is none yet.
        error: why there is none, where a sweep says so.
        source: the file, for messages.
    """

    task: str
    model: str
    setting: str
    results: Results | None
    error: str
    source: Path


class Group(NamedTuple):
    """The cells of one model in one setting, by task."""

    model: str
    setting: str
    cells: dict[str, Entry]

    @property
    def title(self) -> str:
        """Model and setting, as tables call it."""
        return f"{self.model}, {self.setting}"

    def measured(self) -> dict[str, Results]:
        """Results by task, where there are some."""
        return {task: e.results for task, e in self.cells.items() if e.results is not None}


def read(paths: Sequence[Path]) -> list[Group]:
    """All results of comparisons in these folders and their subfolders, and what is missing there.

    Read are every `results.json`, every sweep's plan, and JSON files directly in a folder, so that
    copies under names like TASK_MODEL_SETTING.json serve too. A result wins over a sweep's word
    that it is missing.

    Returns:
        Groups by model, the plain setting first; in each, the paper's tasks in its order first.

    Raises:
        UserError: for a folder that is not there, a damaged file, two different results for one
            cell, no result at all.
    """
    found: dict[tuple[str, str, str], Entry] = {}
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path} is no folder; give folders that hold results")
    plans = {p.resolve(): _load(p) for root in paths for p in sorted(root.rglob(SWEEP))}
    for file in _files(paths):
        results = _load(file)
        if not isinstance(results, dict) or not {"task", "accuracy", "model"} <= results.keys():
            continue  # another experiment's, or a config
        _check_form(results, file)
        entry = _entry(results, file, plans)
        other = found.setdefault(entry[:3], entry)
        if other.results != results:
            raise UserError(
                f"two results for one cell ({', '.join(entry[:3])}): {other.source} and {file}; "
                "leave one out, or name the folder or file TASK_MODEL_SETTING to tell them apart"
            )
    for place, plan in plans.items():
        for job in plan.values():
            key = job["task"], model_name(job["model"]), job["setting"]
            found.setdefault(key, Entry(*key, None, job["error"], place))
    if not any(e.results for e in found.values()):
        folders = ", ".join(map(str, paths))
        raise UserError(f"no results of a comparison in {folders}; run python -m icljax.main first")
    return _groups(found.values())


def _files(paths: Sequence[Path]) -> list[Path]:
    """Files that may hold results, each once however the folders overlap."""
    named = [p for root in paths for p in sorted(root.rglob("results.json"))]
    flat = [p for root in paths for p in sorted(root.glob("*.json")) if p.name != SWEEP]
    return list({p.resolve(): p for p in (*named, *flat)}.values())


def _load(file: Path) -> Any:
    try:
        return json.loads(file.read_text(), parse_constant=_not_json)
    except (OSError, ValueError, RecursionError) as e:
        raise UserError(f"{file} cannot be read ({e}); remove it or make it again") from e


def _not_json(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _check_form(results: Results, file: Path) -> None:
    """Raises a UserError for results of which no report can be made."""
    with workdir.reading_results(file):
        report.markdown(results, ())


def _entry(results: Results, file: Path, plans: dict[Path, Any]) -> Entry:
    model, weights = results["model"]["name"], results["model"].get("weights", "trained")
    name = model_name(model) + ("" if weights == "trained" else f" ({weights})")
    stem = file.parent.name if file.name == "results.json" else file.stem
    planned = plans.get((file.parent.parent / SWEEP).resolve()) or plans.get(
        (file.parent / SWEEP).resolve(), {}
    )
    if stem in planned:
        setting = planned[stem]["setting"]
    else:
        prefix = cell_name(results["task"], model_name(model)) + "_"
        setting = stem.removeprefix(prefix) if stem.startswith(prefix) else method(results)
    return Entry(results["task"], name, setting, results, "", file)


def _groups(entries: Iterable[Entry]) -> list[Group]:
    order = {task: i for i, task in enumerate(paper.TASKS)}
    groups: dict[tuple[str, str], Group] = {}
    for e in sorted(entries, key=lambda e: (order.get(e.task, len(order)), e.task)):
        group = groups.setdefault((e.model, e.setting), Group(e.model, e.setting, {}))
        group.cells[e.task] = e
    models = list(dict.fromkeys(model for model, _ in groups))
    return sorted(groups.values(), key=lambda g: (models.index(g.model), g.setting != "gd"))


def method(results: Results) -> str:
    """How the job finetuned: "gd", "lcgd" or "lcgd_attention"."""
    return results.get("finetune", {}).get("method", "gd")


def task_columns(groups: Sequence[Group]) -> list[str]:
    """The paper's six tasks, then all others."""
    extra = {task for group in groups for task in group.cells} - paper.TASKS.keys()
    return [*paper.TASKS, *sorted(extra)]


def model_name(model: str) -> str:
    """A model's short name: of a hub name or a path its last part that says something."""
    path = PurePath(model.rstrip("/"))
    if path.suffix == ".pt" and len(path.parts) > 1:  # fairseq calls each of them model.pt
        return path.parent.name
    return path.stem if path.suffix in (".gguf", ".pt") else path.name


def cell_name(*parts: str) -> str:
    """TASK_MODEL_SETTING, of characters that every file system takes."""
    return "_".join(re.sub(r"[^\w.-]+", "-", p, flags=re.ASCII).strip("-.") or "x" for p in parts)


# ------------------------------------------------------------------------------ above its control


class Counts(NamedTuple):
    """In how many tasks a similarity is above what it is compared with, level with it, below it."""

    above: int
    level: int
    below: int
    unknown: int


class Claim(NamedTuple):
    """One of the paper's claims, and the similarities that it stands on: the paper's own first."""

    text: str
    metrics: tuple[str, ...]


CLAIMS = (
    Claim("ICL corrects what finetuning corrects", ("rec2ftp",)),
    Claim(
        "ICL and finetuning change attention's output in the same direction",
        ("sim_aou", "sim_aou_unnormalized"),
    ),
    Claim("ICL and finetuning attend to the query alike", ("sim_am", "sim_am_delta")),
    Claim("ICL and finetuning rank the training tokens alike", ("kendall", "kendall_example")),
)
TITLES = {"rec2ftp": "Rec2FTP"} | {name: m.title for name, m in SIMILARITIES.items()}
UNLIKE = "unlike_finetuning"  # Rec2FTP's baseline: ICL's rate on what finetuning leaves wrong
_NAMES = BASELINES | {UNLIKE: "ICL where FT stays wrong"}


def name_of(other: str) -> str:
    """A baseline or control, as people read it."""
    return CONTROLS[other].title if other in CONTROLS else _NAMES.get(other, other)


def kind_of(name: str) -> str:
    """What a control changes ("model", "data", "update"); "base" for a baseline."""
    return CONTROLS[name].kind if name in CONTROLS else "base"


def is_control(name: str) -> bool:
    """Whether it is a control rather than a baseline."""
    return name not in BASELINES and name != UNLIKE


def differences(results: Results, metric: str) -> dict[str, tuple[float | None, float | None]]:
    """Interval of the job minus each baseline and each control, by their names.

    Similarities: 95 %, paired on examples and seeds. Rec2FTP is not paired: the job's interval
    against the nearer end of the control's; against `UNLIKE`, a share of the job's own examples, as
    it stands. (None, None): measured, but the difference is not known.
    """
    if metric == "rec2ftp":
        return _rec2ftp_differences(results)
    baselines = look(results, f"{metric}.baselines") or {}
    where = {name: f"differences.{metric}.{name}" for name in baselines}
    for name, control in results.get("controls", {}).items():
        if look(control, f"{metric}.mean") is not None:
            where[name] = f"controls.{name}.difference.{metric}"
    gaps = {name: look(results, path) or {} for name, path in where.items()}
    return {name: tuple(gap.get("interval", (None, None))) for name, gap in gaps.items()}


def _rec2ftp_differences(results: Results) -> dict[str, tuple[float | None, float | None]]:
    low, high = results["rec2ftp"]["interval"]
    unlike = rate_unlike(results)
    others = {UNLIKE: (unlike, unlike)}
    for name, control in results.get("controls", {}).items():
        if "rec2ftp" in control:
            others[name] = tuple(control["rec2ftp"]["interval"])
    return {
        name: (None, None) if None in (low, high, a, b) else (low - b, high - a)
        for name, (a, b) in others.items()
    }


def rate_unlike(results: Results) -> float | None:
    """Percentage of the examples that ZSL and FT both get wrong, and that ICL gets right."""
    patterns = results.get("agreement", {}).get("patterns", {})
    right, wrong = patterns.get("zIf"), patterns.get("zif")
    return None if None in (right, wrong) or right + wrong == 0 else 100 * right / (right + wrong)


def outcome(interval: Sequence[float | None]) -> str:
    """Where a difference's interval lies: "above", "level" (around 0), "below" or "unknown"."""
    low, high = interval
    if low is None or high is None:
        return "unknown"
    return "above" if low > 0 else "below" if high < 0 else "level"


def others(group: Group, metrics: Iterable[str] = tuple(TITLES)) -> list[str]:
    """Baselines and controls that a group's tasks have for these metrics, baselines first."""
    names = {
        name: None
        for results in group.measured().values()
        for metric in metrics
        for name in differences(results, metric)
    }
    order = {name: i for i, name in enumerate(CONTROLS)}
    return sorted(names, key=lambda name: (is_control(name), order.get(name, len(order))))


def count(group: Group, metric: str, against: Sequence[str]) -> Counts:
    """Counts of tasks: above means above each of those named; below: below any of them."""
    tally = dict.fromkeys(("above", "level", "below", "unknown"), 0)
    for results in group.measured().values():
        intervals = differences(results, metric)
        outcomes = [outcome(intervals.get(name, (None, None))) for name in against]
        worst = next((o for o in ("below", "level", "unknown") if o in outcomes), "above")
        tally[worst if outcomes else "unknown"] += 1
    return Counts(**tally)


def layer_causal(groups: Sequence[Group]) -> list[tuple[Group, Group]]:
    """Pairs of groups of one model, finetuned by gradient descent and layer by layer."""

    def of(group: Group) -> str:
        return next((method(r) for r in group.measured().values()), "")

    return [
        (gd, lcgd)
        for lcgd in groups
        for gd in groups
        if of(lcgd).startswith("lcgd") and of(gd) == "gd" and lcgd.model == gd.model
    ]


def look(results: Results, path: str) -> Any:
    """What stands under keys joined by dots; None where a key is missing."""
    if path == UNLIKE:
        return rate_unlike(results)
    found: Any = results
    for key in path.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    return found
