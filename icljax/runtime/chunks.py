"""What a job has done so far, committed piece by piece, so that the same command continues.

A chunk is one file of small arrays that appears whole or not at all (NumPy's own format, whose CRCs
tell a damaged one); trees of device arrays that a chunk relies on are written before it, by orbax.
All of it lies in WORKDIR/progress and goes when the job is done. Process 0 alone writes chunks.
"""

import json
import shutil
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from icljax.errors import UserError
from icljax.runtime import processes, workdir

FOLDER = "progress"
_IDENTITY, _TREES, _SUM = "job.json", "trees", "tree:"
Arrays = dict[str, np.ndarray]
T = TypeVar("T")  # a tree of arrays


class Chunks:
    """The committed chunks of one job; made by every process together."""

    def __init__(self, path: Path, identity: dict[str, Any], note: Callable[[str], None]):
        """Opens the progress of the job in workdir `path`, or starts it.

        Args:
            identity: what results depend on besides the config, as JSON; all of it must be the
                same when the job continues.
            note: gets a line about each damaged chunk; it will be computed again.

        Raises:
            UserError: where the job was begun with something else, or the folder is not writable.
        """
        self.folder = path.absolute() / FOLDER
        found = processes.from_first(lambda: self._open(identity))
        for line in found["damaged"]:
            note(line)
        self._done: set[str] = set(found["done"])
        self._sums: dict[str, int] = found["sums"]
        self._new_sums: dict[str, int] = {}

    def __contains__(self, name: str) -> bool:
        """Whether the chunk is committed."""
        return name in self._done

    def __len__(self) -> int:
        """How many chunks are committed."""
        return len(self._done)

    def once(self, name: str, compute: Callable[[], Arrays]) -> Arrays:
        """The chunk's arrays, read where it is committed, otherwise computed and committed.

        Raises:
            Stopped: after the commit, where the process was asked to end.
            UserError: where the disk does not take it.
        """
        path = self.folder / f"{name}.npz"
        if name in self._done:
            arrays = _read(path)
            return {key: x for key, x in arrays.items() if not key.startswith(_SUM)}
        arrays = compute()
        sums = {_SUM + key: np.asarray(value) for key, value in self._new_sums.items()}
        processes.from_first(lambda: _write(path, arrays | sums))
        self._done.add(name)
        self._sums |= self._new_sums
        self._new_sums = {}
        processes.stop_if_asked()
        return arrays

    def keep(self, name: str, tree: T) -> T:
        """Writes a tree that the next chunk relies on; returns it."""
        with workdir.writing(self.folder):
            ocp.save(self.folder / _TREES / name, tree, overwrite=True)
        self._new_sums[name] = int(_checksum(tree))
        return tree

    def kept(self, name: str, abstract: T) -> T:
        """Reads a tree of `keep`, onto the devices that the abstract tree names.

        Raises:
            UserError: where it is damaged or gone.
        """
        path = self.folder / _TREES / name
        try:
            tree = ocp.load(path, abstract)
        except Exception as e:  # of orbax, tensorstore and zarr
            raise _damaged_tree(path, type(e).__name__) from e
        if int(_checksum(tree)) != self._sums.get(name):
            raise _damaged_tree(path, "its checksum differs")
        return tree

    def forget(self, name: str) -> None:
        """Removes a tree that no chunk relies on any more."""
        if processes.is_first():
            shutil.rmtree(self.folder / _TREES / name, ignore_errors=True)

    def clear(self) -> None:
        """Removes all of it; for a job whose results are written."""
        if processes.is_first():
            shutil.rmtree(self.folder, ignore_errors=True)

    def _open(self, identity: dict[str, Any]) -> dict[str, Any]:
        """Checks and tidies the folder; only process 0 does."""
        trees = self.folder / _TREES
        record = self.folder / _IDENTITY
        with workdir.writing(self.folder):
            trees.mkdir(parents=True, exist_ok=True)
            if record.exists():
                if differ := workdir.differences(json.loads(record.read_text()), identity):
                    raise UserError(
                        f"the job in {self.folder.parent} was begun with something else ({differ});"
                        " go on with what it was begun with, or start again in another --workdir"
                    )
            else:
                workdir.write_atomically(record, json.dumps(identity, indent=1).encode())
            for partial in (*self.folder.glob("*.partial"), *trees.glob("*orbax-checkpoint-tmp*")):
                shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
            sums: dict[str, int] = {}
            done, damaged = [], []
            for path in sorted(self.folder.glob("*.npz")):
                try:
                    arrays = _read(path)
                except UserError as e:
                    damaged.append(f"{e}; it is computed again")
                    path.unlink()
                    continue
                done.append(path.stem)
                sums |= {k.removeprefix(_SUM): int(x) for k, x in arrays.items() if _SUM in k}
        return {"done": done, "sums": sums, "damaged": damaged}


def _read(path: Path) -> Arrays:
    try:
        with path.open("rb") as f, np.load(f, allow_pickle=False) as file:
            return dict(file)
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as e:
        raise UserError(f"chunk {path} is damaged ({e})") from e


def _write(path: Path, arrays: Arrays) -> None:
    with workdir.writing(path.parent), workdir.replacing(path, synced=True) as f:
        np.savez(f, allow_pickle=False, **arrays)


def _damaged_tree(path: Path, what: str) -> UserError:
    return UserError(
        f"finetuned weights in {path} are damaged ({what}); remove {path.parent.parent} and run "
        "the same command again"
    )


@jax.jit
def _checksum(tree: object) -> jax.Array:
    """The sum of all 32-bit words, modulo 2^32; the same however arrays are split over devices."""
    words = [
        jnp.sum(jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32), dtype=jnp.uint32)
        for x in jax.tree.leaves(tree)
    ]
    return jnp.sum(jnp.stack(words), dtype=jnp.uint32)
