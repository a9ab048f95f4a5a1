"""Prompts x updates: does ICL resemble finetuning on *these* demonstrations, with these labels?

Every prompt (a seed's demonstrations with right labels, and with wrong ones) and every update
(finetuning on each of them, and random ones) is read once on all queries, and all pairs are
compared. What a pair shares because any update would, or any demonstrations, stands in the pairs
whose link is cut.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from icljax import checkpoints, results
from icljax.catalog import SYNTHETIC
from icljax.comparison import answers, claims, crossed, crossing, work
from icljax.comparison.crossed import DRAWN, Plan
from icljax.comparison.crossing import Crossing
from icljax.comparison.inputs import Inputs, variant_names
from icljax.comparison.memory import committed_runs_at_once
from icljax.comparison.programs import Programs, Subject, make_static, programs_of
from icljax.comparison.reading import first_batches
from icljax.comparison.statistics import data_record, model_record, provenance
from icljax.comparison.store import Run, Store
from icljax.data.prompts import Demonstrations, Queries
from icljax.errors import UserError
from icljax.experiments import job
from icljax.experiments.config import WRONG
from icljax.records import Crossed, MatchedRate, RateCurve, RateSelection
from icljax.reports import crossed as crossed_report
from icljax.reports.text import duration, percent, plural
from icljax.runtime import processes
from icljax.runtime.chunks import Arrays, Chunks
from icljax.runtime.progress import Stages

Updates = tuple[tuple[Store, Run], ...]  # where each is kept


def make_plan(config: ConfigDict) -> Plan:
    """Which prompts and updates the config asks for."""
    variants = variant_names(config)
    random = tuple(name for name in SYNTHETIC if name in config.study.links)
    wrong = WRONG if WRONG in variants else ""
    prompts = (DRAWN, *variants)
    updates = (*prompts, *random, *config.study.methods)
    return Plan(len(config.seeds), prompts, updates, wrong, config.study.kendall)


def run(config: ConfigDict, path: Path, console: Console) -> dict[str, Any]:
    """Runs the experiment into a folder, or returns the results that it already left there.

    Raises:
        UserError: for whatever is wrong with what the user gave.
    """
    with Stages(console) as stages, processes.ending_after_commits():
        opened = job.open_job(config, path, stages)
        checkpoint, inputs, mesh = opened.checkpoint, opened.inputs, opened.mesh
        shown = all_demonstrations(inputs, make_plan(config))
        if not len(opened.chunks):
            weights, plan = job.shapes(checkpoint.config), make_plan(config)
            flops = work.crossed_flops(config, weights, inputs, shown, plan)
            took = duration(work.seconds(flops))
            stages.note(
                f"About {took} of computing here ({flops / 1e12:.0f} TFLOP), and compiling."
            )
        bos, steps = inputs.encoder.bos, shown.train.shape[1]
        static = make_static(checkpoint.config, config, bos, steps, mesh)

        def load() -> Subject:
            return Subject(programs_of(static), job.load_params(checkpoint, mesh), shown)

        others = {
            name: programs_of(dataclasses.replace(static, method=name))
            for name in config.study.methods
        }
        reading = crossed.make_programs(static)
        study = Study(config, inputs, reading, others, opened.chunks, stages)
        measured = study.measure(load)
        with stages.stage("report", "statistics, report and figures", 1):
            found = summarize(config, checkpoint, inputs, measured)
            found = dataclasses.replace(found, seconds=stages.seconds)
            job.save(path, measured.arrays, functools.partial(crossed_report.report, found))
    return job.finish(path, found, opened.chunks)


def all_demonstrations(inputs: Inputs, plan: Plan) -> Demonstrations:
    """The demonstrations of every seed as drawn, then each variant of them."""
    variants = [inputs.changed[name] for name in plan.prompts if name != DRAWN]
    joined = zip(inputs.demonstrations, *variants, strict=True)
    shown = Demonstrations(*map(np.concatenate, joined))
    return crossing.aligned(shown, plan.seeds) if plan.tokens else crossing.without_tokens(shown)


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a crossed comparison measures.

    Attributes:
        plan: which prompts and updates there are.
        selection: how the learning rate was chosen.
        arrays: of `crossed.AXES`, and each query's "index" and "label".
        untrained: the same of the model that learned nothing, its queries' "place" among the
            others; None: not asked for.
        random: by name of `SYNTHETIC`: norms beside finetuning's, [R].
    """

    plan: Plan
    selection: RateSelection
    arrays: Arrays
    untrained: Arrays | None
    random: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Study:
    """A crossed comparison under way.

    Attributes:
        config, inputs: as given, and as prepared from it.
        programs: of crossed comparisons.
        methods: those of a comparison that finetunes by each of `config.study.methods`.
        chunks: what is committed.
        stages: the progress that is shown.
    """

    config: ConfigDict
    inputs: Inputs
    programs: crossed.Programs
    methods: dict[str, Programs]
    chunks: Chunks
    stages: Stages

    def measure(self, load: Callable[[], Subject]) -> Measured:
        """Everything that runs on the devices, in order.

        Args:
            load: gives the weights. Nothing else may hold them: the untrained model needs their
                memory.
        """
        with self.stages.stage("weights", "weights", 1):
            subject = load()
        plan, config = make_plan(self.config), self.config
        seeds = range(min(config.study.selection_seeds, plan.seeds))
        chosen_on = self.inputs.selection
        curve, look = self.rate_curve(subject, seeds, chosen_on, "select", "select a rate")
        self.stages.note(look)
        rate = choose_rate(curve)
        updates, random = self.all_updates(subject, plan, rate)
        methods: dict[str, MatchedRate] = {}
        for name, programs in self.methods.items():
            of_method = dataclasses.replace(subject, programs=programs)
            methods[name], more = self.at_step(of_method, curve, rate, name)
            updates += more
        arrays = self.read_all(subject, plan, updates)
        untrained, other = None, None
        if "untrained" in config.study.links:
            shapes = jax.tree.map(_shape, subject.params)
            subject = dataclasses.replace(subject, params=shapes)
            other, untrained = self.read_untrained(subject, curve, rate)
        selection = RateSelection(
            rate=rate,
            seeds=tuple(config.seeds[s] for s in seeds),
            num_examples=len(self.inputs.selection_labels),
            selected_on=self.inputs.selected_on,
            curve=curve,
            untrained=other.curve if other else None,
            untrained_rate=other.rate if other else None,
            methods=methods,
        )
        return Measured(plan, selection, arrays, untrained, random)

    def rate_curve(
        self, subject: Subject, seeds: Sequence[int], queries: Queries, name: str, purpose: str
    ) -> tuple[RateCurve, str]:
        """What every learning rate does to selection examples, over seeds, and `first_look`."""
        config = self.config
        rates = config.finetune.learning_rates
        of_seeds = _of(subject, seeds)
        runs = [(seed, rate) for seed in range(len(seeds)) for rate in range(len(rates))]
        store = Store(of_seeds, self.chunks, name)
        title = f"finetune {len(runs)} runs, {purpose}"
        with self.stages.stage(name, title, len(runs)) as advance:
            loss = self._finetune(store, of_seeds, runs, rates, advance)
        kept = tuple((store, run) for run in sorted(runs, key=lambda run: (run[1], run[0])))
        plan = Plan(len(seeds), (DRAWN,), tuple(map(str, rates)))
        cross = Crossing(of_seeds, self.programs, plan, kept)
        title = f"{len(runs)} updates on selection examples"
        with self.stages.stage(f"{name}-read", title, _count(queries)) as advance:
            example, arrays = crossing.read_pairs(
                cross, queries, self.chunks, f"{name}-read", advance
            )
        for run in runs:
            store.forget(run)
        used = min(self.inputs.used[s] for s in seeds)
        loss = loss.reshape(len(seeds), len(rates), -1)[..., :used].mean(0)
        labels = self.inputs.selection_labels[example]
        curve = claims.rate_curve(plan, rates, arrays, labels, loss)
        return curve, first_look(curve, arrays, labels)

    def all_updates(
        self, subject: Subject, plan: Plan, rate: float
    ) -> tuple[Updates, dict[str, np.ndarray]]:
        """Finetunes on all demonstrations, and adds random steps.

        Returns:
            (where they are kept, as `Measured.random`).
        """
        config, inputs, stages = self.config, self.inputs, self.stages
        place = config.finetune.learning_rates.index(rate)
        runs = [(prompt, place) for prompt in range(len(plan.prompts) * plan.seeds)]
        # Those of a seed have the same texts: together they are padded least.
        by_seed = sorted(runs, key=lambda run: run[0] % plan.seeds)
        store = Store(subject, self.chunks, "update")
        with stages.stage("finetune", f"finetune {len(runs)} updates", len(runs)) as advance:
            self._finetune(store, subject, by_seed, config.finetune.learning_rates, advance)
        cross = Crossing(subject, self.programs, plan, tuple((store, run) for run in runs))
        random = {}
        for name in (name for name in plan.updates if name in SYNTHETIC):
            title = f"{plan.seeds} random updates"
            with stages.stage(name, title, plan.seeds) as advance:
                kept, random[name] = crossing.make_random(
                    cross, name, config.seeds, inputs.selection, self.chunks, advance
                )
            more = tuple((kept, (seed, 0)) for seed in range(plan.seeds))
            cross = dataclasses.replace(cross, updates=cross.updates + more)
        return cross.updates, random

    def read_all(self, subject: Subject, plan: Plan, updates: Updates) -> Arrays:
        """Reads all pairs on all queries; the arrays of `Measured`."""
        config, inputs, stages = self.config, self.inputs, self.stages
        cross = Crossing(subject, self.programs, plan, updates)
        title = f"{len(plan.prompts) * plan.seeds} prompts x {len(updates)} updates"
        with stages.stage("cross", title, len(inputs.labels)) as advance:
            example, arrays = crossing.read_pairs(
                cross, inputs.evaluation, self.chunks, "crossed", advance
            )
        check_defined(plan, arrays, [inputs.names[i] for i in example], config.seeds)
        return {"index": inputs.rows[example], "label": inputs.labels[example], **arrays}

    def read_untrained(
        self, subject: Subject, curve: RateCurve, rate: float
    ) -> tuple[MatchedRate, Arrays]:
        """The same of weights drawn anew, at the learning rate with the trained model's step.

        Args:
            subject: of whose weights the shapes are enough.
        """
        config = self.config
        params = subject.programs.initialize(subject.params, config.metrics.seed)
        subject = dataclasses.replace(subject, params=params)
        other, updates = self.at_step(subject, curve, rate, "untrained")
        plan = Plan(len(config.seeds), (DRAWN,), (DRAWN,), tokens=config.study.kendall)
        cross = Crossing(_of(subject, range(plan.seeds)), self.programs, plan, updates)
        queries = first_batches(self.inputs.evaluation, config.study.untrained_examples)
        with self.stages.stage("untrained-read", "untrained", _count(queries)) as advance:
            example, arrays = crossing.read_pairs(
                cross, queries, self.chunks, "untrained-read", advance
            )
        return other, {"place": example, **arrays}

    def at_step(
        self, subject: Subject, curve: RateCurve, rate: float, name: str
    ) -> tuple[MatchedRate, Updates]:
        """Finetunes on the demonstrations as drawn, at the learning rate with the same step.

        Args:
            subject: finetunes with other weights, or by another method.
            curve, rate: whose step is taken.
            name: of the other, for stages and what is kept.
        """
        few = first_batches(self.inputs.selection, self.config.study.untrained_examples)
        other, _ = self.rate_curve(subject, [0], few, f"{name}-select", f"find {name}'s step")
        found = MatchedRate(rate=matched_rate(curve, rate, other), curve=other)
        seeds = range(len(self.config.seeds))
        drawn, runs = _of(subject, seeds), [(seed, 0) for seed in seeds]
        store = Store(drawn, self.chunks, name)
        text = f"{name}: finetune {len(runs)} updates"
        with self.stages.stage(name, text, len(runs)) as advance:
            self._finetune(store, drawn, runs, [found.rate], advance)
        return found, tuple((store, run) for run in runs)

    def _finetune(
        self,
        store: Store,
        subject: Subject,
        runs: list[Run],
        learning_rates: Sequence[float],
        advance: Callable[[int], None],
    ) -> np.ndarray:
        """Finetunes runs and keeps them all, as many at once as in every stage; their losses."""
        seeds, rates = len(self.config.seeds), len(self.config.finetune.learning_rates)
        prompts = seeds * len(make_plan(self.config).prompts)
        stages = [self.config.study.selection_seeds * rates, prompts]
        matched = ("untrained" in self.config.study.links) + len(self.methods)
        stages += [rates, seeds] * matched
        at_once = committed_runs_at_once(self.config, subject, self.chunks, stages)
        return crossing.finetune_all(store, subject, runs, learning_rates, at_once, advance)


def _shape(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def _of(subject: Subject, seeds: Sequence[int]) -> Subject:
    """The same weights with the demonstrations of some seeds."""
    some = Demonstrations(*(np.asarray(x)[list(seeds)] for x in subject.demonstrations))
    return dataclasses.replace(subject, demonstrations=some)


def _count(queries: Queries) -> int:
    return int(np.sum(np.asarray(queries.example) >= 0))


def first_look(curve: RateCurve, arrays: Arrays, labels: np.ndarray) -> str:
    """How often each side is right on the selection examples, which are read first.

    Args:
        arrays: the answers "logprob_zsl" [N, Y] and "logprob_icl" [R, N, Y].
        labels: int32 [N].
    """
    zsl, icl = (
        percent(float(claims.right(claims.calibrated(arrays[f"logprob_{s}"]), labels).mean()))
        for s in ("zsl", "icl")
    )
    ft = percent(max((x for x in curve.accuracy if x is not None), default=None))
    return (
        f"On {plural(len(labels), 'selection example')}, calibrated: zero-shot {zsl} % right, ICL "
        f"{icl} %, FT {ft} % at its best learning rate."
    )


def choose_rate(curve: RateCurve) -> float:
    """The learning rate of the lowest calibrated loss, where the training loss does not rise.

    Raises:
        UserError: where there is none.
    """
    nll, start, end = (
        np.asarray([np.nan if x is None else x for x in values])
        for values in (curve.nll, curve.loss_start, curve.loss_end)
    )
    fit = np.isfinite(nll) & (end <= start)
    if not fit.any():
        raise UserError(
            f"at no learning rate ({', '.join(map(str, curve.learning_rates))}) does finetuning "
            "lower its own loss; give smaller ones with --config.finetune.learning_rates"
        )
    return curve.learning_rates[int(np.argmin(np.where(fit, nll, np.inf)))]


def matched_rate(curve: RateCurve, rate: float, other: RateCurve) -> float:
    """The learning rate at which the other model takes this one's step, between those tried.

    Between two rates the step's logarithm goes straight with the rate's; beyond them the last one.

    Args:
        curve, rate: the step that is wanted: of this model at its rate.
    """
    wanted = curve.step[curve.learning_rates.index(rate)]
    known = [(s, r) for s, r in zip(other.step, other.learning_rates, strict=True) if s]
    if not known or wanted is None:
        return rate
    known.sort(key=lambda pair: pair[1])
    steps, rates = np.log(np.asarray(known)).T
    return float(np.exp(np.interp(np.log(wanted), np.maximum.accumulate(steps), rates)))


def check_defined(plan: Plan, arrays: Arrays, names: Sequence[str], seeds: Sequence[int]) -> None:
    """Raises a UserError that names an example, where any setting has no number to count."""
    answers.check("zero-shot", arrays["logprob_zsl"], names, seeds, job.OVERFLOW)
    every = [*seeds] * len(plan.prompts)
    answers.check("in-context", arrays["logprob_icl"], names, every, job.OVERFLOW)
    cause = "finetuning went too far; give smaller --config.finetune.learning_rates"
    every = [*seeds] * len(plan.updates)
    answers.check("the finetuned model", arrays["logprob_ft"], names, every, cause)


def summarize(
    config: ConfigDict, checkpoint: checkpoints.Checkpoint, inputs: Inputs, measured: Measured
) -> Crossed:
    """Everything that results.json says, but the seconds."""
    return Crossed(
        task=inputs.encoder.task.name,
        template=inputs.encoder.task.template,
        answers=tuple(inputs.encoder.task.answers),
        classes=tuple(inputs.encoder.task.classes),
        stand_in=inputs.dataset.stand_in,
        model=model_record(config, checkpoint),
        data=data_record(config, inputs, len(measured.arrays["label"])),
        demonstrations=results.Demonstrations(
            asked=config.num_demonstrations, used=tuple(inputs.used)
        ),
        prompts=measured.plan.prompts,
        updates=measured.plan.updates,
        selection=measured.selection,
        random_scale={
            name: claims.of_values(scale[:, None]) for name, scale in measured.random.items()
        },
        **claims.found(measured.plan, measured.arrays, measured.untrained, config.study),
        **vars(provenance(config)),
    )
