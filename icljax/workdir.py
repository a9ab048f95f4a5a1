"""The folder of one job: its config, its results, and the rule that two jobs never mix in one."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from icljax.errors import UserError

CONFIG, RESULTS, EXAMPLES = "config.json", "results.json", "examples.npz"


def open_workdir(path: Path, config: ConfigDict) -> dict[str, Any] | None:
    """Claims a folder for a job, or returns the results that the same job left there.

    Raises:
        UserError: when the folder cannot be written, holds something else, or another config.
    """
    wanted = as_plain(config)
    record = path / CONFIG
    try:
        path.mkdir(parents=True, exist_ok=True)
        inside = {p.name for p in path.iterdir()}
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
    except OSError as e:
        raise UserError(
            f"workdir {path} cannot be used ({e.strerror}); give a folder that you can write to"
        ) from e
    except json.JSONDecodeError as e:
        raise UserError(f"workdir {path} holds a damaged file ({e}); give a new folder") from e
    return None


def _check_same(there: dict[str, Any], wanted: dict[str, Any], path: Path) -> None:
    there, wanted = _flatten(there), _flatten(wanted)
    differ = [
        f"{key} was {there.get(key)!r}, now {wanted.get(key)!r}"
        for key in sorted(there.keys() | wanted.keys())
        if there.get(key) != wanted.get(key)
    ]
    if differ:
        raise UserError(
            f"workdir {path} belongs to another config ({'; '.join(differ)}); "
            "give another --workdir, or the config it was made with"
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
