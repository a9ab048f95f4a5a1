"""Many comparisons as one resumable list of jobs: tasks x models x settings, then one report."""

import collections
import contextlib
import copy
import dataclasses
import fnmatch
import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from rich.console import Console

from icljax.errors import UserError
from icljax.experiments import compare
from icljax.experiments import config as config_lib
from icljax.reports import report
from icljax.reports.study import SWEEP, cell_name, model_name
from icljax.runtime import processes, workdir


@dataclasses.dataclass(frozen=True)
class Planned:
    """One job of a sweep.

    Attributes:
        folder: its folder's name, TASK_MODEL or TASK_MODEL_SETTING.
        task, model, setting: which it is.
        config: the whole config of the job.
    """

    folder: str
    task: str
    model: str
    setting: str
    config: ConfigDict


def validate(config: ConfigDict) -> None:
    """Checks every job of the sweep before any runs; tidies names that are given with commas.

    Raises:
        UserError: naming the job and the field.
    """
    config_lib.check_types(config, config_lib.sweep())
    for key in ("tasks", "models", "skip"):
        config[key] = tuple(name.strip() for part in config[key] for name in str(part).split(","))
    for key in ("tasks", "models"):
        config_lib.require(config, key, _distinct_texts, "different names, at least one")
    for key in ("settings", "overrides"):
        expected = "(name, {field: value}) pairs"
        config_lib.require(config, key, lambda v: all(map(_is_pair, v)), expected)
    config_lib.require(config, "settings", bool, "at least one")
    jobs = plan(config)
    config_lib.require(config, "skip", lambda _: bool(jobs), "some job that is left")
    for job in jobs:
        with _named(job.folder):
            config_lib.validate(job.config)


def plan(config: ConfigDict) -> list[Planned]:
    """The jobs in the order in which they run: setting by setting, task by task.

    Raises:
        UserError: for an unknown field, two jobs with one folder.
    """
    jobs = []
    for setting, changes in config.settings:
        for task in config.tasks:
            for model in config.models:
                name = cell_name(task, model_name(model), setting)
                if any(fnmatch.fnmatchcase(name, p) for p in config.skip):
                    continue
                fitting = [v for p, v in config.overrides if fnmatch.fnmatchcase(name, p)]
                folder = name if changes else cell_name(task, model_name(model))
                given = {"task": task, "model": model}
                with _named(folder):
                    job = _job_config(config.base, [given, changes, *fitting])
                jobs.append(Planned(folder, task, model, setting, job))
    counts = collections.Counter(job.folder for job in jobs)
    if twice := [folder for folder, count in counts.items() if count > 1]:
        raise UserError(
            f"two jobs of the sweep would share the folder {twice[0]}; give models and settings "
            "names that differ"
        )
    return jobs


def _job_config(base: ConfigDict, changes: list[dict[str, Any]]) -> ConfigDict:
    job = copy.deepcopy(base)
    job.lock()
    for change in changes:
        try:
            job.update_from_flattened_dict(change)
        except (AttributeError, KeyError, TypeError, ValueError) as e:
            raise UserError(f"overrides {change}: {e}; expected fields of a single job") from e
    job.data.source = job.data.source.replace("{task}", job.task)
    return job


def run(config: ConfigDict, path: Path, console: Console) -> dict[str, Any]:
    """Runs what is not finished yet, then writes the report of all into the folder.

    A job that ends with a user's mistake, or for which the devices' memory is too small, leaves its
    one line; the others go on. What a job has done is committed, so that the same command goes on.

    Returns:
        What sweep.json holds: folder -> task, model, setting, and the error ("" for none).

    Raises:
        UserError: when the folder is something else's.
        runtime.Stopped: when asked to end.
    """
    jobs = plan(config)
    with _claimed(path):
        return _run_all(jobs, path, console)


def _run_all(jobs: list[Planned], path: Path, console: Console) -> dict[str, Any]:
    record = {
        job.folder: {"task": job.task, "model": job.model, "setting": job.setting, "error": ""}
        for job in jobs
    }
    _save(path, record)
    with processes.ending_after_commits():
        for i, job in enumerate(jobs, 1):
            console.print(f"[{i}/{len(jobs)}] {job.folder}", style="bold", markup=False)
            record[job.folder]["error"] = _run_one(job, path, console)
            _save(path, record)
            _free()
            processes.stop_if_asked()
    if not all(job["error"] for job in record.values()):
        report.merge([path], path)
    return record


def _run_one(job: Planned, path: Path, console: Console) -> str:
    """Runs one job; its error in one line, or ""."""
    try:
        compare.run(job.config, path / job.folder, console)
    except UserError as e:
        error = " ".join(str(e).split())
    except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e):
            raise
        error = f"the devices' memory is full ({' '.join(str(e).split())[:200]})"
    else:
        return ""
    console.print(f"failed: {error}", style="red", markup=False)
    return error


def show(results: dict[str, Any], path: Path, console: Console) -> None:
    """Says where the report is.

    Raises:
        UserError: naming the jobs that failed, so that the command's exit code says so too.
    """
    if (path / report.HTML).exists():
        console.print(f"Report: {path / report.HTML}", style="bold", markup=False, soft_wrap=True)
    failed = {folder: job["error"] for folder, job in results.items() if job["error"]}
    if failed:
        each = "; ".join(f"{folder}: {error}" for folder, error in failed.items())
        raise UserError(
            f"{len(failed)} of {len(results)} jobs failed ({each}); what is done is kept, and the "
            "same command tries these again"
        )


@contextlib.contextmanager
def _claimed(path: Path) -> Iterator[None]:
    """Makes the folder of a sweep, or finds the one that is there, and holds its lock."""
    with workdir.writing(path):
        workdir.make_folder(path)
        if {p.name for p in path.iterdir()} - {workdir.LOCK} and not (path / SWEEP).exists():
            raise workdir.not_ours(path, SWEEP)
    with workdir.locked(path):
        yield


def _save(path: Path, record: dict[str, Any]) -> None:
    with workdir.writing(path):
        workdir.write_atomically(path / SWEEP, json.dumps(record, indent=1).encode())


def _free() -> None:
    """Drops what the last job left on the devices, its compiled programs too."""
    gc.collect()
    jax.clear_caches()


@contextlib.contextmanager
def _named(folder: str) -> Iterator[None]:
    """Says in a UserError of which job it is."""
    try:
        yield
    except UserError as e:
        raise UserError(f"job {folder}: {e}") from e


def _distinct_texts(values: tuple[Any, ...]) -> bool:
    texts = all(isinstance(v, str) and v for v in values)
    return bool(values) and texts and len(set(values)) == len(values)


def _is_pair(value: Any) -> bool:
    return (
        isinstance(value, tuple | list)
        and len(value) == 2
        and isinstance(value[0], str)
        and hasattr(value[1], "items")
    )
