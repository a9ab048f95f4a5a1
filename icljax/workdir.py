"""The folder of one job: its config, its results, and the rule that two jobs never mix in one."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from icljax import runtime
from icljax.errors import UserError

CONFIG, RESULTS, EXAMPLES = "config.json", "results.json", "examples.npz"


def open_workdir(path: Path, config: ConfigDict) -> dict[str, Any] | None:
    """Claims a folder for a job, or returns the results that the same job left there.

    Process 0 claims it; the others must see the same folder.

    Raises:
        UserError: when the folder cannot be written, holds something else, or another config.
    """
    wanted = as_plain(config)
    done = runtime.from_first(lambda: _claim(path, wanted))
    if not runtime.all_true((path / CONFIG).is_file()):
        raise UserError(
            f"workdir {path} is not one folder that all hosts see; give one on a shared disk or a "
            "mounted bucket with --workdir"
        )
    return done


def _claim(path: Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
    record = path / CONFIG
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        inside = {p.name for p in path.iterdir()}
        try:
            # A config alone is of a job that ended before it had anything: its folder is free.
            if record.exists() and inside != {CONFIG}:
                _check_same(json.loads(record.read_text()), wanted, path)
            elif inside - {CONFIG}:
                raise UserError(
                    f"workdir {path} is not empty and holds no {CONFIG} of icljax; "
                    "give a new or empty folder with --workdir"
                )
            else:
                write_atomically(record, json.dumps(wanted, indent=2).encode())
            if (path / RESULTS).exists():
                return json.loads((path / RESULTS).read_text())
        except json.JSONDecodeError as e:
            raise UserError(f"workdir {path} holds a damaged file ({e}); give a new folder") from e
    return None


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Makes one UserError of what the file system refuses."""
    try:
        yield
    except OSError as e:
        raise UserError(
            f"workdir {path} cannot be used ({e.strerror or e}); make room or give a folder that "
            "you can write to; what is committed is kept, and the same command continues"
        ) from e


def _check_same(there: dict[str, Any], wanted: dict[str, Any], path: Path) -> None:
    if differ := differences(_flatten(there), _flatten(wanted)):
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


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= (
            _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat


def as_plain(config: ConfigDict) -> dict[str, Any]:
    """The config as JSON holds it (tuples become lists)."""
    return json.loads(config.to_json_best_effort())


def write_atomically(path: Path, content: bytes) -> None:
    """A reader sees the old file or the whole new one, never a part."""
    temporary = path.with_name(path.name + ".partial")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def save_examples(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes `examples.npz` atomically."""
    temporary = path / (EXAMPLES + ".partial")
    with temporary.open("wb") as f:
        np.savez_compressed(f, allow_pickle=False, **arrays)
    os.replace(temporary, path / EXAMPLES)


def save_results(path: Path, results: dict[str, Any]) -> None:
    """Writes `results.json` atomically; it comes last, so its presence means a finished job."""
    content = json.dumps(results, indent=1, allow_nan=False)
    write_atomically(path / RESULTS, content.encode())
