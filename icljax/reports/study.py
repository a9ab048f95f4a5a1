"""Results of many jobs as one study: which cells there are, and which are missing."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import msgspec

from icljax import records
from icljax.errors import UserError
from icljax.records import Crossed
from icljax.reports import paper
from icljax.results import Results

SWEEP = "sweep.json"  # in a sweep's folder: job's folder -> task, model, setting, error


class Planned(msgspec.Struct, frozen=True):
    """What a sweep's plan says of a job; `error`: why it has no result, "" where it has."""

    task: str
    model: str
    setting: str
    error: str


@dataclass(frozen=True)
class Entry:
    """One cell of a study: a task with a model in a setting.

    Attributes:
        results: of paper mode, or of crossed mode; None where there are none yet.
        error: why there are none, where a sweep says so.
        source: the file, for messages.
    """

    task: str
    model: str
    setting: str
    results: Results | Crossed | None
    error: str
    source: Path

    @property
    def name(self) -> tuple[str, str, str]:
        """What tells it from all others."""
        return self.task, self.model, self.setting


@dataclass(frozen=True)
class Group:
    """The cells of one model in one setting, by task."""

    model: str
    setting: str
    cells: dict[str, Entry]

    @property
    def title(self) -> str:
        """Model and setting, as tables call it."""
        return f"{self.model}, {self.setting}"

    def key(self, what: str) -> str:
        """The name of a table or a figure of this group."""
        return f"{what}-{cell_name(self.model, self.setting)}"

    def measured(self) -> dict[str, Results]:
        """Results of paper mode by task, where there are some."""
        return {t: e.results for t, e in self.cells.items() if isinstance(e.results, Results)}

    def crossed(self) -> dict[str, Crossed]:
        """Results of crossed mode by task, where there are some."""
        return {t: e.results for t, e in self.cells.items() if isinstance(e.results, Crossed)}


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
    plans = {p.resolve(): _plan(p) for root in paths for p in sorted(root.rglob(SWEEP))}
    for file in _files(paths):
        of_job = records.read_comparison(file)
        if of_job is None:
            continue
        entry = _entry(of_job, file, plans)
        other = found.setdefault(entry.name, entry)
        if other.results != of_job:
            raise UserError(
                f"two results for one cell ({', '.join(entry.name)}): {other.source} and {file}; "
                "leave one out, or name the folder or file TASK_MODEL_SETTING to tell them apart"
            )
    for place, plan in plans.items():
        for job in plan.values():
            name = job.task, model_name(job.model), job.setting
            found.setdefault(name, Entry(*name, None, job.error, place))
    if not any(e.results for e in found.values()):
        folders = ", ".join(map(str, paths))
        raise UserError(f"no results of a comparison in {folders}; run python -m icljax.main first")
    return _groups(found.values())


def _files(paths: Sequence[Path]) -> list[Path]:
    """Files that may hold results, each once however the folders overlap."""
    named = [p for root in paths for p in sorted(root.rglob("results.json"))]
    flat = [p for root in paths for p in sorted(root.glob("*.json")) if p.name != SWEEP]
    return list({p.resolve(): p for p in (*named, *flat)}.values())


def _plan(file: Path) -> dict[str, Planned]:
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, Planned])
    except (OSError, msgspec.DecodeError) as e:
        raise UserError(f"{file} cannot be read ({e}); remove it or make it again") from e


def _entry(of_job: Results | Crossed, file: Path, plans: dict[Path, dict[str, Planned]]) -> Entry:
    short, weights = model_name(of_job.model.name), of_job.model.weights
    name = short + ("" if weights == "trained" else f" ({weights})")
    stem = file.parent.name if file.name == "results.json" else file.stem
    planned = plans.get((file.parent.parent / SWEEP).resolve()) or plans.get(
        (file.parent / SWEEP).resolve(), {}
    )
    prefix = cell_name(of_job.task, short) + "_"
    if stem in planned:
        setting = planned[stem].setting
    elif stem.startswith(prefix):
        setting = stem.removeprefix(prefix)
    elif isinstance(of_job, Crossed):
        setting = f"{of_job.config['finetune']['method']}, crossed"
    else:
        setting = of_job.finetune.method
    return Entry(of_job.task, name, setting, of_job, "", file)


def _groups(entries: Iterable[Entry]) -> list[Group]:
    order = {task: i for i, task in enumerate(paper.TASKS)}
    groups: dict[tuple[str, str], Group] = {}
    for e in sorted(entries, key=lambda e: (order.get(e.task, len(order)), e.task)):
        group = groups.setdefault((e.model, e.setting), Group(e.model, e.setting, {}))
        group.cells[e.task] = e
    models = list(dict.fromkeys(model for model, _ in groups))
    return sorted(groups.values(), key=lambda g: (models.index(g.model), g.setting != "gd"))


def main_groups(groups: Sequence[Group]) -> list[Group]:
    """Each model's first setting that was measured: the one with figures of its own."""
    first: dict[str, Group] = {}
    for group in groups:
        if group.measured() or group.crossed():
            first.setdefault(group.model, group)
    return list(first.values())


def layer_causal(groups: Sequence[Group]) -> list[tuple[Group, Group]]:
    """Pairs of groups of one model, finetuned by gradient descent and layer by layer."""

    def method(group: Group) -> str:
        return next((r.finetune.method for r in group.measured().values()), "")

    return [
        (gd, lcgd)
        for lcgd in groups
        for gd in groups
        if method(lcgd).startswith("lcgd") and method(gd) == "gd" and lcgd.model == gd.model
    ]


def task_columns(groups: Sequence[Group]) -> list[str]:
    """The paper's six tasks, then all others."""
    extra = {task for group in groups for task in group.cells} - paper.TASKS.keys()
    return [*paper.TASKS, *sorted(extra)]


def task_title(task: str) -> str:
    """A task as the paper's tables call it, or as its name is."""
    return paper.TASKS[task].title if task in paper.TASKS else task


def model_name(model: str) -> str:
    """A model's short name: of a hub name or a path its last part that says something."""
    path = PurePath(model.rstrip("/"))
    if path.suffix == ".pt" and len(path.parts) > 1:  # fairseq calls each of them model.pt
        return path.parent.name
    return path.stem if path.suffix in (".gguf", ".pt") else path.name


def cell_name(*parts: str) -> str:
    """TASK_MODEL_SETTING, of characters that every file system takes."""
    return "_".join(re.sub(r"[^\w.-]+", "-", p, flags=re.ASCII).strip("-.") or "x" for p in parts)
