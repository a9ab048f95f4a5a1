"""Prompts x updates: does ICL resemble finetuning on *these* demonstrations, with these labels?

Every prompt (a seed's demonstrations with right labels, and with wrong ones) and every update
(finetuning on each of them) is read once on all queries, and all pairs are compared. What a pair
shares because any update would, or any demonstrations, stands in the pairs whose link is cut.
"""

import copy
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from icljax import checkpoints, metrics, results
from icljax.comparison import answers, claims, crossed
from icljax.comparison.finetune import Finetuned
from icljax.comparison.grid import finetune_pieces
from icljax.comparison.inputs import Inputs
from icljax.comparison.programs import Subject, make_static, programs_of
from icljax.comparison.reading import read_all
from icljax.comparison.statistics import data_record, model_record, number, provenance
from icljax.comparison.store import Run, Store
from icljax.data import tasks
from icljax.data.prompts import Demonstrations
from icljax.errors import UserError
from icljax.experiments import compare
from icljax.experiments import config as config_lib
from icljax.experiments.config import check_types, distinct_integers, is_count, require
from icljax.records import Crossed, RateSelection
from icljax.reports import crossed as crossed_report
from icljax.reports.crossed import show as show
from icljax.runtime import processes, sharding, workdir
from icljax.runtime.chunks import Arrays, Chunks
from icljax.runtime.progress import Stages

WRONG = "flipped_labels"  # the demonstrations of the second half of prompts and updates
_LEFT_OUT = ("controls", "select_seed", "weights")


def default() -> ConfigDict:
    """Every field of the experiment, with its default."""
    config = config_lib.default()
    for field in _LEFT_OUT:
        del config[field]
    config.experiment = "crossed"
    config.seeds = (1, 2, 3, 4, 5, 6, 7, 8)
    config.eval.num_examples = 128
    config.selection.num_examples = 128
    config.finetune.learning_rates = (0.0001, 0.0003, 0.001, 0.003, 0.01)
    # One rate serves all seeds: the one with the lowest calibrated loss on so many of them.
    config.selection_seeds = 3
    config.margin = 0.03  # differences of a similarity within it count as none
    return config


def of_task(task: str) -> ConfigDict:
    """The experiment on a task of data/task_table.py, from the source that is named there."""
    config = default()
    config.task = task
    config.data.source = config_lib.of_task(task).data.source
    return config


def validate(config: ConfigDict) -> None:
    """Checks what flags cannot.

    Raises:
        UserError: naming the field, what it is and what it may be.
    """
    check_types(config, default())
    require(config, "margin", lambda v: 0 < v < 1, "a number above 0 and below 1")
    require(config, "selection_seeds", is_count, "a whole number above 0")
    enough = "three different whole numbers or more, e.g. 1,2,3: a pair is held against others"
    require(config, "seeds", lambda v: distinct_integers(v) and len(v) > 2, enough)
    job = job_config(config)
    config_lib.validate(job)
    config.answers = job.answers  # tidied
    if not tasks.get_task(job.task, job.template, job.answers, job.data.choices).answers:
        raise UserError(
            f"task {config.task!r} is multiple choice, which has no wrong labels to teach; give a "
            "classification task"
        )


def job_config(config: ConfigDict) -> ConfigDict:
    """The comparison whose demonstrations, queries and programs are used."""
    job = config_lib.default()
    for field in job:
        if field in config and field != "experiment":
            job[field] = copy.deepcopy(config[field])
    job.controls.names = (WRONG,)
    return job


@workdir.one_job
def run(config: ConfigDict, path: Path, console: Console) -> dict[str, Any]:
    """Runs the experiment into a folder, or returns the results that it already left there.

    Raises:
        UserError: for whatever is wrong with what the user gave.
    """
    job = job_config(config)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.model)
    with Stages(console) as stages, processes.ending_after_commits():
        checkpoint, inputs = compare.open_inputs(job, stages)
        identity = compare.identity(job, checkpoint, inputs, mesh)
        chunks = compare.open_chunks(path, identity, stages)
        both = _both(inputs)
        static = make_static(checkpoint.config, job, inputs.encoder.bos, both.train.shape[1], mesh)
        with stages.stage("weights", "weights", 1):
            params = compare.load_params(checkpoint, mesh)
        subject = Subject(programs_of(static), params, both)
        programs = crossed.make_programs(static, len(config.seeds))
        selection = select_rate(subject, programs, inputs, config, chunks, stages)
        arrays = measure(subject, programs, inputs, config, selection.rate, chunks, stages)
        with stages.stage("report", "statistics, report and figures", 1):
            found = summarize(config, checkpoint, inputs, selection, arrays)
            found = dataclasses.replace(found, seconds=stages.seconds)
            compare.save(path, arrays, functools.partial(crossed_report.report, found))
    return compare.finish(path, found, chunks)


def _both(inputs: Inputs) -> Demonstrations:
    """The demonstrations of every seed, then the same with wrong labels."""
    pair = (inputs.demonstrations, inputs.changed[WRONG])
    return Demonstrations(*(np.concatenate(x) for x in zip(*pair, strict=True)))


def select_rate(
    subject: Subject,
    programs: crossed.Programs,
    inputs: Inputs,
    config: ConfigDict,
    chunks: Chunks,
    stages: Stages,
) -> RateSelection:
    """One learning rate for all seeds, and labels right or wrong.

    The one with the lowest calibrated negative log-probability of the right answer on the selection
    examples, mean over the first seeds, among those at which the mean training loss does not rise.

    Raises:
        UserError: where there is none.
    """
    rates = config.finetune.learning_rates
    seeds = range(min(config.selection_seeds, len(config.seeds)))
    runs = [(seed, rate) for seed in seeds for rate in range(len(rates))]
    store = Store(subject, chunks, "select")

    def judge(piece: list[Run], finetuned: Finetuned) -> tuple[Arrays, list[Run]]:
        score = functools.partial(programs.score, subject.params, finetuned.kv_params)
        logprob = read_all(score, inputs.selection, subject.programs.devices, by_row=True)
        nll = calibrated_nll(np.asarray(logprob), inputs.selection_labels)
        loss = np.asarray(finetuned.loss)
        return {"nll": nll[: len(piece)], "loss": loss[: len(piece)]}, []

    title = f"finetune {len(runs)} runs, select a rate"
    with stages.stage("select", title, len(runs)) as advance:
        parts = []
        for piece, arrays in finetune_pieces(store, subject, runs, config, judge):
            parts.append(arrays)
            advance(len(piece))
    shape = (len(seeds), len(rates))
    nll = np.concatenate([p["nll"] for p in parts]).reshape(shape).mean(0)
    steps = inputs.used[0] if len(set(inputs.used)) == 1 else min(inputs.used)
    loss = np.concatenate([p["loss"] for p in parts]).reshape(*shape, -1)[..., :steps].mean(0)
    start, end = loss[:, : (steps + 1) // 2].mean(1), loss[:, steps // 2 :].mean(1)
    fit = np.isfinite(nll) & (end <= start)
    if not fit.any():
        raise UserError(
            f"at no learning rate ({', '.join(map(str, rates))}) does finetuning lower its own "
            "loss; give smaller ones with --config.finetune.learning_rates"
        )
    numbers = [tuple(number(x) for x in values) for values in (nll, start, end)]
    return RateSelection(
        rate=rates[int(np.argmin(np.where(fit, nll, np.inf)))],
        learning_rates=tuple(rates),
        seeds=tuple(config.seeds[s] for s in seeds),
        num_examples=len(inputs.selection_labels),
        selected_on=inputs.selected_on,
        nll=numbers[0],
        loss_start=numbers[1],
        loss_end=numbers[2],
    )


def calibrated_nll(logprob: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mean -log p of the right answer, each label's mean over the examples taken out: [runs].

    Args:
        logprob: [runs, N, Y].
    """
    with np.errstate(invalid="ignore"):  # a run that diverged is NaN
        centred = np.asarray(metrics.calibrate(logprob), np.float64)
        among = centred - np.logaddexp.reduce(centred, -1, keepdims=True)
    return np.asarray(-np.take_along_axis(among, labels[None, :, None], -1)[..., 0].mean(-1))


def measure(
    subject: Subject,
    programs: crossed.Programs,
    inputs: Inputs,
    config: ConfigDict,
    rate: float,
    chunks: Chunks,
    stages: Stages,
) -> Arrays:
    """Finetunes on every seed's demonstrations, right and wrong, and reads all pairs.

    Returns:
        Arrays of `crossed.AXES`, and each query's "index" and "label".
    """
    place = config.finetune.learning_rates.index(rate)
    runs = [(seed, place) for seed in range(len(subject.demonstrations.context))]
    store = Store(subject, chunks, "update")

    def keep_all(piece: list[Run], finetuned: Finetuned) -> tuple[Arrays, list[Run]]:
        return {}, piece

    with stages.stage("finetune", f"finetune {len(runs)} updates", len(runs)) as advance:
        for piece, _ in finetune_pieces(store, subject, runs, config, keep_all):
            advance(len(piece))

    def kv_params() -> Any:
        return store.stacked(runs, range(len(runs))).kv_params

    title = f"{len(runs)} prompts x {len(runs)} updates"
    with stages.stage("cross", title, len(inputs.labels)) as advance:
        example, arrays = crossed.read_crossed(
            programs, subject, kv_params, inputs.evaluation, chunks, advance
        )
    check_defined(arrays, [inputs.names[i] for i in example], config.seeds)
    return {"index": inputs.rows[example], "label": inputs.labels[example], **arrays}


def check_defined(arrays: Arrays, names: Sequence[str], seeds: Sequence[int]) -> None:
    """Raises a UserError that names an example, where any setting has no number to count."""
    answers.check("zero-shot", arrays["logprob_zsl"], names, seeds, compare.OVERFLOW)
    twice = [*seeds, *seeds]
    answers.check("in-context", arrays["logprob_icl"], names, twice, compare.OVERFLOW)
    cause = "finetuning went too far; give smaller --config.finetune.learning_rates"
    answers.check("the finetuned model", arrays["logprob_ft"], names, twice, cause)


def summarize(
    config: ConfigDict,
    checkpoint: checkpoints.Checkpoint,
    inputs: Inputs,
    selection: RateSelection,
    arrays: Arrays,
) -> Crossed:
    """Everything that results.json says, but the seconds."""
    labels, margin = arrays["label"], config.margin
    logprob = claims.logprobs(arrays)
    correct, centred = (claims.right(x, labels) for x in (logprob, claims.calibrated(logprob)))
    gained = claims.gains(centred)
    found = claims.tests(arrays, margin)
    silent = claims.no_verdicts(gained, len(config.seeds))
    num_seeds = len(config.seeds)
    pairs = {k: arrays[f"pair_{k}"][:num_seeds, :num_seeds] for k in ("output", "map")}
    steps = claims.by_setting(arrays["step_icl"], arrays["step_ft"])
    return Crossed(
        task=inputs.encoder.task.name,
        template=inputs.encoder.task.template,
        answers=tuple(inputs.encoder.task.answers),
        stand_in=inputs.dataset.stand_in,
        model=model_record(job_config(config), checkpoint),
        data=data_record(config, inputs, len(labels)),
        demonstrations=results.Demonstrations(
            asked=config.num_demonstrations, used=tuple(inputs.used)
        ),
        selection=selection,
        accuracy=claims.accuracies(correct),
        accuracy_calibrated=claims.accuracies(centred),
        gain={s: claims.estimate(g) for s, g in gained.items()},
        margin=margin,
        no_verdicts=silent,
        own={k: claims.of_values(claims.own(x).mean(-1)) for k, x in pairs.items()}
        | {"answers": _own_movement(arrays, num_seeds)},
        claims=claims.claims(found, judge=not silent),
        matrix={k: claims.matrix(arrays[f"pair_{k}"]) for k in ("output", "map")},
        layers={k: claims.by_layer(arrays[k]) for k in ("label_output", "label_map")},
        steps={s: claims.of_values(x.mean(-1)) for s, x in steps.items()},
        behaviour=claims.behaviour(logprob, correct),
        seeds_needed=claims.seeds_needed(found, margin),
        **vars(provenance(config)),
    )


def _own_movement(arrays: Arrays, num_seeds: int) -> results.Estimate:
    return claims.of_values(claims.own(claims.movements(arrays)[:num_seeds, :num_seeds]))
