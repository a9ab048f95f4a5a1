"""What both modes of a comparison share: a job is opened, its weights loaded, its results saved."""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from icljax import checkpoints, results
from icljax.attention import mixing
from icljax.comparison import statistics
from icljax.comparison.inputs import Inputs, fingerprint, prepare
from icljax.models.decoder import DecoderConfig, init_params
from icljax.reports import report
from icljax.reports.document import Report
from icljax.runtime import processes, sharding, workdir
from icljax.runtime.chunks import Chunks
from icljax.runtime.progress import Stages
from icljax.types import Params

# Why a model whose weights are finite gives no number.
OVERFLOW = (
    "activations overflow (give --config.dtype=float32 if it was not), "
    "or config.json is not this model's; see what is special about this text"
)


@dataclasses.dataclass(frozen=True)
class Opened:
    """A job before its weights are loaded.

    Attributes:
        checkpoint: with the decoder that the config asks for.
        inputs: what is read with it.
        mesh: of the devices.
        chunks: what is committed.
    """

    checkpoint: checkpoints.Checkpoint
    inputs: Inputs
    mesh: jax.sharding.Mesh
    chunks: Chunks


def open_job(config: ConfigDict, path: Path, stages: Stages) -> Opened:
    """Opens the job that a config describes, in its folder."""
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.model)
    checkpoint, inputs = _open_inputs(config, stages)
    chunks = Chunks(path, _identity(config, checkpoint, inputs, mesh), stages.note)
    if len(chunks):
        stages.note(f"Going on after {len(chunks)} committed chunks in {path}.")
    return Opened(checkpoint, inputs, mesh, chunks)


def _open_inputs(config: ConfigDict, stages: Stages) -> tuple[checkpoints.Checkpoint, Inputs]:
    with stages.stage("model", "model (fetched and converted once)", 1) as bar:
        checkpoint = checkpoints.open_checkpoint(config.model, bar.at, stages.note)
    with stages.stage("prompts", "data and prompts", 1):
        inputs = prepare(config, checkpoint, stages.note)
    if inputs.dataset.stand_in:
        stages.note(inputs.dataset.stand_in, style="bold white on red")
    decoder = with_config(checkpoint.config, config)
    return dataclasses.replace(checkpoint, config=decoder), inputs


def with_config(decoder: DecoderConfig, config: ConfigDict) -> DecoderConfig:
    """A model's decoder, with the type and the attention that the config asks for."""
    return dataclasses.replace(
        decoder,
        dtype=compute_dtype(config),
        attention=mixing.parse_kinds(config.attention) or decoder.attention,
        implementation=config.attention.implementation,
    )


def load_params(checkpoint: checkpoints.Checkpoint, mesh: jax.sharding.Mesh) -> Params:
    """The weights, on the devices."""
    where = sharding.shardings(shapes(checkpoint.config), mesh)
    return checkpoints.load_params(checkpoint.folder, checkpoint.config, where)


def save(path: Path, arrays: dict[str, np.ndarray], make_report: Callable[[], Report]) -> None:
    """Writes the arrays and the report; one process of several does."""
    if processes.is_first():
        with workdir.writing(path):
            workdir.save_examples(path, arrays)
            report.write(path, make_report())


def finish(path: Path, found: results.Made, chunks: Chunks) -> dict[str, Any]:
    """Writes results.json, which ends the job, and returns what it holds."""
    plain = results.to_plain(found)
    if processes.is_first():
        with workdir.writing(path):
            workdir.save_results(path, plain)
        chunks.clear()
    return plain


def shapes(decoder: DecoderConfig) -> Params:
    """The decoder's parameters as shapes, costing no memory."""
    return jax.eval_shape(lambda: init_params(decoder, jax.random.key(0)))


def _identity(
    config: ConfigDict, checkpoint: checkpoints.Checkpoint, inputs: Inputs, mesh: jax.sharding.Mesh
) -> dict[str, Any]:
    """What a job's numbers depend on beside its config; the same on every host."""
    files = {
        "model files": checkpoints.fingerprint(checkpoint.folder),
        "data and prompts": fingerprint(inputs),
    }
    for what, value in files.items():
        processes.check_same(what, value)
    made_with = statistics.provenance(config)
    return files | {
        "mesh": dict(mesh.shape),
        "versions": made_with.versions,
        "device": made_with.device.kind,
    }


def compute_dtype(config: ConfigDict) -> str:
    """The type that a comparison computes in: float32 everywhere, unless given."""
    return "float32" if config.dtype == "auto" else config.dtype


def precision(config: ConfigDict) -> contextlib.AbstractContextManager[Any]:
    """Inside, matrix products of float32 are exact on accelerators too.

    By default a TPU rounds their factors to bfloat16 and a GPU to TF32, which moves a seed's
    similarity by more than the margin (docs/crossed.md).
    """
    exact = compute_dtype(config) == "float32"
    return jax.default_matmul_precision("highest") if exact else contextlib.nullcontext()
