"""One comparison as the paper's section reads: load, prompt, encode, finetune, compare, report."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from icljax import checkpoints, results
from icljax.attention import mixing
from icljax.comparison import answers, controls, statistics
from icljax.comparison.grid import Chosen, finetune_grid
from icljax.comparison.inputs import Inputs, control_names, fingerprint, prepare
from icljax.comparison.memory import committed_seeds_at_once
from icljax.comparison.programs import Programs, Subject, encode_demonstrations, make_programs
from icljax.comparison.reading import Comparison, compare_settings, read_all, seed_groups
from icljax.errors import UserError
from icljax.experiments.config import validate
from icljax.models.decoder import DecoderConfig, init_params
from icljax.reports import job as job_report
from icljax.reports import report
from icljax.reports.document import Report
from icljax.reports.summary import show
from icljax.runtime import processes, sharding, workdir
from icljax.runtime.chunks import Chunks
from icljax.runtime.progress import Stages
from icljax.types import Params

__all__ = ["run", "show", "validate"]

# Why a model whose weights are finite gives no number.
OVERFLOW = (
    "activations overflow (give --config.dtype=float32 if it was not), "
    "or config.json is not this model's; see what is special about this text"
)


@workdir.one_job
def run(config: ConfigDict, path: Path, console: Console) -> dict[str, Any]:
    """Runs a job into a folder, or returns the results that it already left there.

    Raises:
        UserError: for whatever is wrong with what the user gave.
    """
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.model)
    with Stages(console) as stages, processes.ending_after_commits():
        checkpoint, inputs = open_inputs(config, stages)
        decoder = checkpoint.config
        chunks = open_chunks(path, identity(config, checkpoint, inputs, mesh), stages)
        num_demonstrations = inputs.demonstrations.train.shape[1]
        programs = make_programs(decoder, config, inputs.encoder.bos, num_demonstrations, mesh)

        def load() -> Params:
            params = load_params(checkpoint, mesh)
            seed = config.metrics.seed
            return controls.reinitialize(params, config.weights, programs.initialize, seed)

        measured = measure(programs, load, inputs, config, chunks, stages)
        left_out = leave_out_undefined(inputs, measured.controls, config)
        for line in left_out:
            stages.note(line, style="bold")
        with stages.stage("report", "statistics, report and figures", 1):
            arrays = statistics.example_arrays(inputs, measured.comparison)
            summary = dataclasses.replace(
                statistics.summarize(
                    config,
                    checkpoint,
                    inputs,
                    measured.chosen,
                    arrays,
                    measured.best_seed,
                    measured.controls,
                ),
                controls_left_out=tuple(left_out),
                seconds=stages.seconds,
            )
            save(path, arrays, functools.partial(job_report.report, summary))
    return finish(path, summary, chunks)


def open_inputs(config: ConfigDict, stages: Stages) -> tuple[checkpoints.Checkpoint, Inputs]:
    """The model, with the decoder that the config asks for, and what is read with it."""
    with stages.stage("model", "model (fetched and converted once)", 1) as bar:
        checkpoint = checkpoints.open_checkpoint(config.model, bar.at, stages.note)
    with stages.stage("prompts", "data and prompts", 1):
        inputs = prepare(config, checkpoint, stages.note)
    if inputs.dataset.stand_in:
        stages.note(inputs.dataset.stand_in, style="bold white on red")
    decoder = dataclasses.replace(
        checkpoint.config,
        dtype=compute_dtype(config),
        attention=mixing.parse_kinds(config.attention) or checkpoint.config.attention,
        implementation=config.attention.implementation,
    )
    return dataclasses.replace(checkpoint, config=decoder), inputs


def open_chunks(path: Path, of: dict[str, Any], stages: Stages) -> Chunks:
    """What the job has committed; `of`: its `identity`."""
    chunks = Chunks(path, of, stages.note)
    if len(chunks):
        stages.note(f"Going on after {len(chunks)} committed chunks in {path}.")
    return chunks


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


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a job measures.

    Attributes:
        chosen: each seed's learning rate.
        comparison: on the trained model.
        best_seed: the seed that is reported, and what it was selected by; None: all are.
        controls: the same comparison by the controls' names.
    """

    chosen: Chosen
    comparison: Comparison
    best_seed: tuple[int, list[float]] | None
    controls: dict[str, Comparison]


def measure(
    programs: Programs,
    load: Callable[[], Params],
    inputs: Inputs,
    config: ConfigDict,
    chunks: Chunks,
    stages: Stages,
) -> Measured:
    """Everything that a job runs on its devices, in order; preflight walks it with shapes.

    Args:
        load: gives the weights. Nothing else may hold them: controls need their memory.

    Raises:
        UserError: for numbers that are not finite.
    """
    with stages.stage("weights", "weights", 1):
        subject = Subject(programs, load(), inputs.demonstrations)
    num_runs = len(config.seeds) * len(config.finetune.learning_rates)
    title = f"finetune {num_runs} runs, select rates"
    with stages.stage("finetune", title, num_runs) as advance:
        selection = (inputs.selection, inputs.selection_labels)
        chosen = finetune_grid(subject, *selection, config, chunks, advance)
    total = len(inputs.labels) * len(config.seeds)
    with stages.stage("compare", "ZSL, ICL, FT and metrics", total) as advance:
        comparison = compare_settings(
            subject, chosen.learned, inputs.evaluation, chunks, "compare", advance
        )
        check_defined(inputs, comparison, config)
        best_seed = select_seed(subject, inputs, comparison, chunks, config)
    compared: dict[str, Comparison] = {}
    if names := control_names(config):
        queries = controls.first_batches(inputs.evaluation, config.controls.num_examples)
        total = len(names) * int(np.sum(queries.example >= 0)) * len(config.seeds)
        trained = controls.Trained(subject, chosen, inputs, queries)
        with stages.stage("controls", "the same on controls", total) as advance:
            rest = (config, chunks, advance)
            compared = controls.compare(trained, ("data", "update"), *rest)
            # Models that were never trained come last: the trained weights make room for them.
            subject = dataclasses.replace(subject, params=controls.only_kept(subject.params))
            trained = dataclasses.replace(trained, subject=subject)
            compared |= controls.compare(trained, ("model",), *rest)
    return Measured(chosen, comparison, best_seed, compared)


def shapes(decoder: DecoderConfig) -> Params:
    """The decoder's parameters as shapes, costing no memory."""
    return jax.eval_shape(lambda: init_params(decoder, jax.random.key(0)))


def identity(
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
    """The type of matrix products: float32 on CPU, bfloat16 on accelerators, unless given."""
    if config.dtype != "auto":
        return config.dtype
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def check_defined(inputs: Inputs, comparison: Comparison, config: ConfigDict) -> None:
    """Raises a UserError that names an example, where any setting has no number to count."""
    names = [inputs.names[i] for i in comparison.example]
    causes = {
        "zero-shot": (comparison.logprob_zsl, OVERFLOW),
        "in-context": (comparison.logprob_icl, OVERFLOW),
        "the finetuned model": (
            comparison.logprob_ft,
            "finetuning went too far; give smaller --config.finetune.learning_rates, in another "
            "--workdir",
        ),
    }
    for setting, (logprob, cause) in causes.items():
        answers.check(setting, logprob, names, config.seeds, cause)


def leave_out_undefined(
    inputs: Inputs, compared: dict[str, Comparison], config: ConfigDict
) -> list[str]:
    """Takes out the controls that have no number somewhere, and says so: the job itself stands."""
    left_out = []
    for name, comparison in list(compared.items()):
        try:
            check_defined(inputs, comparison, config)
        except UserError as e:
            left_out.append(f"control {name} is left out: {e}")
            del compared[name]
    return left_out


def select_seed(
    subject: Subject, inputs: Inputs, comparison: Comparison, chunks: Chunks, config: ConfigDict
) -> tuple[int, list[float]] | None:
    """The seed with the best ICL accuracy on the selection examples, and those accuracies."""
    if not config.select_seed:
        return None
    if config.selection.split == "validation":
        logprob = comparison.logprob_icl
    else:
        at_once = committed_seeds_at_once(subject, chunks, "compare-size")
        groups = seed_groups(len(config.seeds), at_once)
        logprob = np.concatenate([_read_states(subject, inputs, group) for group in groups])
        logprob = logprob[: len(config.seeds)]
        answers.check("in-context", logprob, inputs.selection_names, config.seeds, OVERFLOW)
    accuracy = np.mean(answers.chosen(logprob) == inputs.selection_labels, -1)
    return int(accuracy.argmax()), accuracy.tolist()


def _read_states(subject: Subject, inputs: Inputs, group: np.ndarray) -> np.ndarray:
    """ICL's answer log-probabilities [seeds, N, Y] on the selection examples."""
    programs, params = subject.programs, subject.params
    states = encode_demonstrations(programs, params, subject.demonstrations, group).state
    score = functools.partial(programs.score_states, params, states)
    return np.asarray(read_all(score, inputs.selection, programs.devices, by_row=True))
