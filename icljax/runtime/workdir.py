"""The folder of one job: its config, its results, and the rule that two jobs never mix in one.

While a job runs, its folder holds a lock: a file that names the process, its host and its start. It
is found by its existence, so it holds on every file system where all hosts see a new file at once
(NFS, Lustre, mounted buckets with their caches of file names off). That of a process of this host
that is no longer there is taken over.
"""

import contextlib
import errno
import functools
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import SoftFileLock, Timeout
from ml_collections import ConfigDict
from rich.console import Console

from icljax.errors import UserError
from icljax.runtime import processes, terminal

CONFIG, RESULTS, EXAMPLES = "config.json", "results.json", "examples.npz"
LOCK = "running.lock"

Run = Callable[[ConfigDict, Path, Console], dict[str, Any]]


def one_job(run: Run) -> Run:
    """Makes an experiment's `run` claim its folder until it ends, or return what is done there."""

    @functools.wraps(run)
    def claimed_run(config: ConfigDict, path: Path, console: Console) -> dict[str, Any]:
        with claimed(path, config) as done:
            return run(config, path, console) if done is None else done

    return claimed_run


@contextlib.contextmanager
def claimed(path: Path, config: ConfigDict) -> Iterator[dict[str, Any] | None]:
    """Claims a folder for a job until the block ends; gives the results the same job left there.

    Process 0 claims it; the others must see the same folder.

    Raises:
        UserError: when the folder cannot be written, holds something else, another config, or a
            job that runs.
    """
    wanted = as_plain(config)
    with contextlib.ExitStack() as held:
        done = processes.from_first(lambda: _claim(path, wanted, held))
        if not processes.all_true((path / CONFIG).is_file()):
            raise UserError(
                f"workdir {path} is not one folder that all hosts see; give one on a shared disk "
                "or a mounted bucket with --workdir"
            )
        yield done


def _claim(path: Path, wanted: dict[str, Any], held: contextlib.ExitStack) -> dict[str, Any] | None:
    with writing(path):
        try:
            if (path / RESULTS).exists():  # a finished job's folder may be read-only
                return _finished(path, wanted)
            make_folder(path)
            held.enter_context(locked(path))
            if (path / RESULTS).exists():  # it has ended since
                return _finished(path, wanted)
            record, inside = path / CONFIG, {p.name for p in path.iterdir()} - {LOCK}
            # A config alone is of a job that ended before it had anything: its folder is free.
            if record.exists() and inside != {CONFIG}:
                _check_same(json.loads(record.read_text()), wanted, path)
            elif inside - {CONFIG}:
                raise not_ours(path, CONFIG)
            else:
                write_atomically(record, json.dumps(wanted, indent=2).encode())
        except (ValueError, RecursionError) as e:
            if isinstance(e, UserError):
                raise
            raise UserError(f"workdir {path} holds a damaged file ({e}); give a new folder") from e
    return None


def make_folder(path: Path) -> None:
    """Makes a folder for results; raises a UserError where something else is in its place."""
    if path.is_symlink() and not path.exists():
        raise UserError(f"workdir {path} is a link to nothing; give a folder with --workdir")
    if path.exists() and not path.is_dir():
        raise UserError(f"workdir {path} is a file; give a new or empty folder with --workdir")
    path.mkdir(parents=True, exist_ok=True)


def _finished(path: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    if not (path / CONFIG).is_file():
        raise not_ours(path, CONFIG)
    _check_same(json.loads((path / CONFIG).read_text()), wanted, path)
    results = json.loads((path / RESULTS).read_text())
    if not isinstance(results, dict):
        raise ValueError(f"{RESULTS} is no JSON object")
    return results


def not_ours(path: Path, missing: str) -> UserError:
    """The mistake of giving a folder that holds something else."""
    return UserError(
        f"workdir {path} is not empty and holds no {missing} of icljax; give a new or empty folder "
        "with --workdir"
    )


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a folder's lock inside the block.

    Raises:
        UserError: where a process that runs, or may run on another host, holds it.
    """
    lock = SoftFileLock(path / LOCK, timeout=0)
    with writing(path):
        try:
            lock.acquire()
        except Timeout as e:
            raise UserError(
                f"workdir {path} is in use by {_holder(path / LOCK)}; give another --workdir, or "
                f"wait; if that process is gone, remove {path / LOCK}"
            ) from e
    try:
        with terminal.before_exit(lock.release):
            yield
    finally:
        lock.release()


def _holder(lock: Path) -> str:
    """Who holds a lock: its file's lines are the process, its host, and its start."""
    try:
        process, host, *_ = lock.read_text().splitlines()
    except (OSError, ValueError):
        return "another process"
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(lock.stat().st_mtime))
    return f"process {process} on host {host} since {since}"


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Makes one UserError of what the file system refuses."""
    try:
        yield
    except OSError as e:
        raise UserError(
            f"{path} cannot be written ({e.strerror or e}); make room or give a place that you can "
            "write to; what is committed is kept, and the same command continues"
        ) from e


def _check_same(there: Any, wanted: dict[str, Any], path: Path) -> None:
    if not isinstance(there, dict):
        raise ValueError(f"{CONFIG} is no JSON object")
    if differ := differences(flatten(there), flatten(wanted)):
        raise UserError(
            f"workdir {path} belongs to another config ({differ}); "
            "give another --workdir, or the config it was made with"
        )


def differences(there: dict[str, Any], wanted: dict[str, Any]) -> str:
    """What two flat records differ in, as a user reads it; empty where they are equal."""
    return "; ".join(
        f"{key} was {there.get(key)!r}, now {wanted.get(key)!r}"
        for key in sorted(there.keys() | wanted.keys())
        if there.get(key) != wanted.get(key)
    )


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A config as one level: "data.source" and so on."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= (
            flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat


def as_plain(config: ConfigDict) -> dict[str, Any]:
    """The config as JSON holds it (tuples become lists)."""
    return json.loads(config.to_json_best_effort())


@contextlib.contextmanager
def replacing(path: Path, synced: bool = False) -> Iterator[BinaryIO]:
    """A file to write: a reader sees the old one or the whole new one, never a part.

    Args:
        synced: wait until the disk has it; leave no part where the disk is full.
    """
    temporary = path.with_name(path.name + ".partial")
    try:
        with temporary.open("wb") as f:
            yield f
            if synced:
                f.flush()
                os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """As `replacing`, of content that is at hand."""
    with replacing(path) as f:
        f.write(content)


def check_writable(path: Path) -> None:
    """Raises a UserError where a file cannot be written; for asking before long work."""
    with writing(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder, expected a file")
        write_atomically(path.with_name(f".{path.name}.try"), b"")
        path.with_name(f".{path.name}.try").unlink()


@contextlib.contextmanager
def reading_results(file: Path) -> Iterator[None]:
    """Makes one UserError of what results in another form than this version's lead to."""
    try:
        yield
    except UserError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError) as e:
        raise UserError(
            f"{file} has not the form of this version's results ({type(e).__name__}: {e}); give "
            "another folder, or leave it out"
        ) from e


def save_examples(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes `examples.npz` atomically."""
    with replacing(path / EXAMPLES) as f:
        np.savez_compressed(f, allow_pickle=False, **arrays)


def save_results(path: Path, results: dict[str, Any]) -> None:
    """Writes `results.json` atomically; it comes last, so its presence means a finished job."""
    content = json.dumps(results, indent=1, allow_nan=False)
    write_atomically(path / RESULTS, content.encode())
