"""The paper's protocol: each seed's ICL beside its own finetuned model.

Load, prompt, encode, finetune, select, compare, report.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from icljax.comparison import answers, statistics, weights
from icljax.comparison.grid import Chosen, finetune_grid
from icljax.comparison.inputs import Inputs
from icljax.comparison.memory import committed_seeds_at_once
from icljax.comparison.programs import Programs, Subject, encode_demonstrations, make_programs
from icljax.comparison.reading import Comparison, compare_settings, equal_groups, read_all
from icljax.experiments import job
from icljax.reports import job as job_report
from icljax.runtime import processes
from icljax.runtime.chunks import Chunks
from icljax.runtime.progress import Stages
from icljax.types import Params


def run(config: ConfigDict, path: Path, console: Console) -> dict[str, Any]:
    """Runs a job into a folder, or returns the results that it already left there.

    Raises:
        UserError: for whatever is wrong with what the user gave.
    """
    with Stages(console) as stages, processes.ending_after_commits():
        opened = job.open_job(config, path, stages)
        checkpoint, inputs, mesh = opened.checkpoint, opened.inputs, opened.mesh
        bos, num_demonstrations = inputs.encoder.bos, inputs.demonstrations.train.shape[1]
        programs = make_programs(checkpoint.config, config, bos, num_demonstrations, mesh)

        def load() -> Params:
            params = job.load_params(checkpoint, mesh)
            seed = config.metrics.seed
            return weights.reinitialize(params, config.weights, programs.initialize, seed)

        measured = measure(programs, load, inputs, config, opened.chunks, stages)
        with stages.stage("report", "statistics, report and figures", 1):
            arrays = statistics.example_arrays(inputs, measured.comparison)
            summary = dataclasses.replace(
                statistics.summarize(
                    config, checkpoint, inputs, measured.chosen, arrays, measured.best_seed
                ),
                seconds=stages.seconds,
            )
            job.save(path, arrays, functools.partial(job_report.report, summary))
    return job.finish(path, summary, opened.chunks)


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a job measures.

    Attributes:
        chosen: each seed's learning rate.
        comparison: on the trained model.
        best_seed: the seed that is reported, and what it was selected by; None: all are.
    """

    chosen: Chosen
    comparison: Comparison
    best_seed: tuple[int, list[float]] | None


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
        load: gives the weights.

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
    return Measured(chosen, comparison, best_seed)


def check_defined(inputs: Inputs, comparison: Comparison, config: ConfigDict) -> None:
    """Raises a UserError that names an example, where any setting has no number to count."""
    names = [inputs.names[i] for i in comparison.example]
    causes = {
        "zero-shot": (comparison.logprob_zsl, job.OVERFLOW),
        "in-context": (comparison.logprob_icl, job.OVERFLOW),
        "the finetuned model": (
            comparison.logprob_ft,
            "finetuning went too far; give smaller --config.finetune.learning_rates, in another "
            "--workdir",
        ),
    }
    for setting, (logprob, cause) in causes.items():
        answers.check(setting, logprob, names, config.seeds, cause)


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
        groups = equal_groups(len(config.seeds), at_once)
        logprob = np.concatenate([_read_states(subject, inputs, group) for group in groups])
        logprob = logprob[: len(config.seeds)]
        answers.check("in-context", logprob, inputs.selection_names, config.seeds, job.OVERFLOW)
    accuracy = np.mean(answers.chosen(logprob) == inputs.selection_labels, -1)
    return int(accuracy.argmax()), accuracy.tolist()


def _read_states(subject: Subject, inputs: Inputs, group: np.ndarray) -> np.ndarray:
    """ICL's answer log-probabilities [seeds, N, Y] on the selection examples."""
    programs, params = subject.programs, subject.params
    states = encode_demonstrations(programs, params, subject.demonstrations, group).state
    score = functools.partial(programs.score_states, params, states)
    return np.asarray(read_all(score, inputs.selection, programs.devices, by_row=True))
