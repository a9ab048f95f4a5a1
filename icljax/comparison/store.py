"""Finetuned runs on disk: all of them would fill a device."""

from collections.abc import Sequence
from typing import cast

import jax
import numpy as np
from jax.sharding import NamedSharding

from icljax.comparison.finetune import Learned, kv_params_of
from icljax.comparison.programs import TRAINING_QUERIES, Subject
from icljax.runtime.chunks import Chunks

Run = tuple[int, int]  # (seed index, learning rate index)


class Store:
    """What some runs learned, kept for later; it lives on when the parameters are let go."""

    def __init__(self, subject: Subject, chunks: Chunks, name: str):
        """Keeps runs of `subject`, in trees called `name`-seed-rate beside the chunks."""
        self.programs, self.demonstrations = subject.programs, subject.demonstrations
        self.chunks, self.name = chunks, name
        self.shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), subject.params
        )

    def keep(self, run: Run, learned: Learned) -> None:
        """Writes a run."""
        self.chunks.keep(self._tree(run), learned)

    def forget(self, run: Run) -> None:
        """Drops a run that a better one has replaced."""
        self.chunks.forget(self._tree(run))

    def load(self, run: Run) -> Learned:
        """A run that was kept, on the devices."""
        return self.chunks.kept(self._tree(run), self._abstract())

    def stacked(self, runs: Sequence[Run], seeds: Sequence[int]) -> Learned:
        """These seeds' runs with a leading axis; `runs` has one for every seed."""
        return self.programs.stack([self.load(runs[s]) for s in seeds])

    def _tree(self, run: Run) -> str:
        return f"{self.name}-seed{run[0]}-rate{run[1]}"

    def _abstract(self) -> Learned:
        """Shapes and places of one run."""
        layers, _, heads, width = self.shapes["layers"]["attention"]["query"]["kernel"].shape
        shape = (layers, self.demonstrations.columns.shape[1], heads * width)
        where = NamedSharding(self.programs.devices.mesh, TRAINING_QUERIES)
        queries = jax.ShapeDtypeStruct(shape, np.float32, sharding=where)
        return Learned(kv_params_of(self.shapes), cast(jax.Array, queries))
