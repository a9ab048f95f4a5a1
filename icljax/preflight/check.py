"""Whether a job fits, and how long it takes, before anything is paid for.

    python -m icljax.preflight --config=configs/sst2.py --config.model=fairseq-13b \
        --topology=v5e:4x4 [--config.mesh.model=8] [--json=FILE]

For a TPU slice every program of the job is compiled ahead of time, with the job's own shardings and
without a TPU (libtpu, extra `tpu`); what it needs and does is read from the compiled program. For
GPUs, and without libtpu, it is estimated from shapes alone. No data and no weights are read.

The compiler is told to make little effort (--effort=-1), which saves more than it changes. With the
job's own (--effort=0), benchmarks/preflight.py's job at 1.3B on v5e:4x4 with mesh.model=4 had
temporaries of 6.5 GiB instead of 6.2 in `finetune`, which took 54 s of CPU time to compile instead
of 17, and of 0.6 instead of 0.2 in `score`.

Exit codes: 0 it fits; 1 it does not; 2 a mistake, told in one line.
"""

import dataclasses
import importlib.util
import json
import logging
import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import app, flags
from jax.experimental import topologies
from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict
from rich.table import Table

from icljax import checkpoints
from icljax import main as main_lib
from icljax.attention import mixing
from icljax.comparison import job as job_lib
from icljax.comparison import programs
from icljax.data import tasks
from icljax.errors import UserError
from icljax.experiments import config as config_lib
from icljax.experiments import pretrain, train
from icljax.models import families
from icljax.models.architectures import ARCHITECTURES
from icljax.models.decoder import DecoderConfig
from icljax.preflight import hardware, hlo
from icljax.preflight.hardware import Topology
from icljax.preflight.workload import (
    Call,
    Work,
    compare_calls,
    device_bytes,
    lengths,
    make_work,
    train_calls,
)
from icljax.runtime import downloads, sharding, terminal, workdir
from icljax.runtime.terminal import Console

# What the estimate of seconds assumes: shares of the published rates that programs reach, and what
# an operation and a collective take at least. Matrix products and memory traffic of one operation
# overlap; operations, and communication, follow each other.
MATRIX_SHARE = 0.5
MEMORY_SHARE = 0.7
LINK_SHARE = 0.5
OPERATION_SECONDS = 1e-6
COLLECTIVE_SECONDS = 5e-6
# What makes a program smaller, where it is the one that does not fit.
REMEDIES = {
    "compare": "--config.eval.tokens_per_batch=4096 makes its batches smaller",
    "finetune": "--config.finetune.remat=True, or a smaller --config.finetune.runs_at_once",
    "step": "--config.model.remat=True, or fewer --config.train.batch sequences in more parts",
}
_DOUBT = 1.25  # a mesh that needs more than this by its shapes is not compiled
_WIDTH = 150  # of tables that go to a file
_TOKENS_PER_BATCH = 4096  # of `job.batch_tokens` on an accelerator


class Options(NamedTuple):
    """What the flags say beside the job's config.

    Attributes:
        demonstration_tokens, query_tokens, examples: instead of the measured ones; 0: those.
        model_axis: `mesh.model` as the user gave it; 0: chosen.
        compile: whether to compile where that is possible.
        effort: of the compiler, -1 to 1; 0 is the job's own.
        deadline: `time.monotonic()` after which nothing more is compiled.
    """

    demonstration_tokens: int = 0
    query_tokens: int = 0
    examples: int = 0
    model_axis: int = 0
    compile: bool = True
    effort: float = -1.0
    deadline: float = math.inf


class Row(NamedTuple):
    """One program: bytes and FLOPs of one device and one call.

    Attributes:
        name: the program's, and the model's it runs on.
        calls: in the whole job.
        compiled: whether the numbers are those of a compiled program.
        arguments, temporaries, outputs: bytes; outputs without what reuses an argument's memory.
        beside: bytes that the job holds meanwhile for later.
        flops, moved, sent: matrix FLOPs; bytes to and from main memory, and to other devices.
        expected_flops, expected_sent: in closed form; sent: two all-reduces a layer.
        collectives: (kind, times, bytes sent in all, where it comes from).
        seconds: of one call.
    """

    name: str
    calls: int
    compiled: bool
    arguments: float
    temporaries: float
    outputs: float
    beside: float
    flops: float
    expected_flops: float
    moved: float
    sent: float
    expected_sent: float
    collectives: list[tuple[str, int, float, str]]
    seconds: float

    @property
    def total(self) -> float:
        """Bytes of a device while the program runs."""
        return self.arguments + self.temporaries + self.outputs + self.beside


class Verdict(NamedTuple):
    """All programs of a job on one topology and mesh."""

    topology: Topology
    data: int
    model: int
    rows: list[Row]

    @property
    def needed(self) -> float:
        """Bytes of a device at the worst moment."""
        return max(row.total for row in self.rows)

    @property
    def fits(self) -> bool:
        """Whether every program fits."""
        return self.needed <= self.topology.chip.memory

    @property
    def compiled(self) -> bool:
        """Whether all of it was compiled."""
        return all(row.compiled for row in self.rows)

    @property
    def seconds(self) -> float:
        """Of the whole job, without loading, compiling and the host."""
        return sum(row.calls * row.seconds for row in self.rows)


class Report(NamedTuple):
    """The answer: the topology that was asked for, and the smallest one that fits, if any does."""

    asked: Verdict
    smallest: Verdict | None


@dataclasses.dataclass(frozen=True)
class Job:
    """What is checked: a job without its data.

    Attributes:
        decoder, work: None in training, which has a decoder for each variant.
        compiled: rows of programs that were compiled, by all that they depend on.
    """

    config: ConfigDict
    decoder: DecoderConfig | None
    work: Work | None
    compiled: dict[Any, Row] = dataclasses.field(default_factory=dict)

    def calls(self, mesh: Mesh | AbstractMesh, memory: int) -> list[Call]:
        """The job's programs on a mesh; raises a UserError where the mesh does not divide it."""
        if self.decoder is None or self.work is None:
            return train_calls(self.config, mesh)
        return compare_calls(self.config, self.decoder, self.work, mesh, memory)

    def programs(self, mesh: Mesh, variant: str) -> Any:
        """Those programs themselves."""
        c = self.config
        if self.decoder is None or self.work is None:
            decoder = pretrain.decoder_config(c, variant, c.text.vocab_size)
            return train.make_programs(decoder, c.train, mesh, c.eval.curve_points)
        steps = self.work.demonstrations.train.shape[1]
        return programs.make_programs(self.decoder, c, self.work.bos, steps, mesh)


def make_job(config: ConfigDict, options: Options) -> Job:
    """The job that a config describes, as it would run on an accelerator.

    Raises:
        UserError: for an unknown model or task, or lengths that do not fit.
    """
    config = config.copy_and_resolve_references()
    config.dtype = "bfloat16" if config.dtype == "auto" else config.dtype
    if config.experiment == "pretrain":
        return Job(config, None, None)
    if config.experiment != "compare":
        raise UserError(
            f"config.experiment is {config.experiment!r}, which has no preflight; expected compare "
            "or pretrain, e.g. --config=configs/sst2.py"
        )
    config.eval.tokens_per_batch = config.eval.tokens_per_batch or _TOKENS_PER_BATCH
    decoder = model_decoder(config)
    decoder = dataclasses.replace(
        decoder,
        dtype=config.dtype,
        attention=mixing.parse_kinds(config.attention) or decoder.attention,
        implementation=config.attention.implementation,
    )
    tokens = lengths(config, options.demonstration_tokens, options.query_tokens, options.examples)
    return Job(config, decoder, make_work(config, decoder, tokens))


def model_decoder(config: ConfigDict) -> DecoderConfig:
    """That of a published architecture by its name, or of a checkpoint, which can be read.

    Raises:
        UserError: for an unknown name, or fixed texts that the checkpoint cannot read.
    """
    name = config.model
    if name in ARCHITECTURES:
        return families.decoder_config(ARCHITECTURES[name], name)
    try:
        checkpoint = checkpoints.open_checkpoint(name)
    except UserError as e:
        known = ", ".join(ARCHITECTURES)
        raise UserError(f"{e}; or one of the architectures {known}") from e
    task = tasks.get_task(config.task, config.template, config.answers, config.data.choices)
    job_lib.make_encoder(config, checkpoint, task)
    return checkpoint.config


def examine(job: Job, topology: Topology, options: Options) -> Report:
    """The verdict on a topology, and the smallest one of the same chip that fits.

    Raises:
        UserError: where no mesh, or not the one that was asked for, divides the model.
    """
    asked = best_mesh(job, topology, options)
    if asked is None:
        raise UserError(
            f"no mesh of {topology.name} divides the model; give another --topology, or "
            "--config.mesh.model"
        )
    smallest = asked if asked.fits else None
    for candidate in hardware.sizes_of(topology):
        if asked.fits and candidate.size >= topology.size:
            break
        if not asked.fits and candidate.size <= topology.size:
            continue
        free = options._replace(model_axis=0)
        found = best_mesh(job, candidate, free, only_if_fits=True)
        if found is not None:
            smallest = found
            break
    return Report(asked, smallest)


def best_mesh(
    job: Job, topology: Topology, options: Options, only_if_fits: bool = False
) -> Verdict | None:
    """The mesh with the smallest model axis with which the job fits, else the nearest to it.

    Only meshes that fit by their shapes are compiled, worst program first; None where no mesh
    divides the model, or `only_if_fits` and none fits.
    """
    axes = [options.model_axis] if options.model_axis else _divisors(topology.size)
    guesses: list[Verdict] = []
    for model in axes:
        try:
            guesses.append(from_shapes(job, topology, model))
        except UserError as e:
            if options.model_axis:
                raise UserError(f"{e} ({_which_divide(job, topology)})") from e
    limit = topology.chip.memory
    possible = [g for g in guesses if _held(g) <= limit and g.needed <= _DOUBT * limit]
    for guess in possible:
        found = measured(job, guess, options, stop_early=True)
        if found is not None and found.fits:
            return found
    if only_if_fits or not guesses:
        return None
    nearest = min(guesses, key=lambda g: g.needed)
    return measured(job, nearest, options, stop_early=False)


def _divisors(count: int) -> list[int]:
    return [n for n in range(1, count + 1) if count % n == 0]


def _which_divide(job: Job, topology: Topology) -> str:
    """For an error's message."""
    good = []
    for model in _divisors(topology.size):
        try:
            from_shapes(job, topology, model)
            good.append(str(model))
        except UserError:
            continue
    return f"on {topology.name} --config.mesh.model may be {', '.join(good) or 'nothing'}"


def _held(guess: Verdict) -> float:
    """Bytes that a device needs in any case: whatever the temporaries are."""
    return max(row.total - row.temporaries for row in guess.rows)


def mesh_sizes(job: Job, topology: Topology, model: int) -> tuple[int, int]:
    """(data, model) on a topology; raises a UserError where that is too many."""
    given = job.config.mesh.data
    data = topology.size // model if given == -1 or topology.size < given * model else given
    if data < 1:
        raise UserError(
            f"mesh.model={model} is more than the {topology.size} chips of {topology.name}"
        )
    return data, model


def from_shapes(job: Job, topology: Topology, model: int) -> Verdict:
    """The verdict from closed forms alone; raises a UserError where the mesh does not divide."""
    data, model = mesh_sizes(job, topology, model)
    mesh = AbstractMesh((data, model), ("data", "model"))
    calls = job.calls(mesh, topology.chip.memory)
    return Verdict(
        topology, data, model, [_estimated(call, topology, data * model) for call in calls]
    )


def _row_name(call: Call) -> str:
    return f"{call.variant}: {call.name}" if call.variant else call.name


def _estimated(call: Call, topology: Topology, devices: int) -> Row:
    """A row without a compiler: what is computed twice, or padded, it does not know."""
    cost, chip = call.estimate, topology.chip
    arguments, outputs = device_bytes(call.arguments), device_bytes(call.outputs)
    flops = cost.flops / devices
    moved = cost.passes * device_bytes(call.arguments[0]) + outputs + 2 * cost.temporaries
    return Row(
        _row_name(call),
        call.times,
        False,
        arguments,
        cost.temporaries,
        outputs,
        call.beside,
        flops,
        flops,
        moved,
        cost.sent,
        cost.sent,
        [("all-reduce", cost.collectives, cost.sent, "tensor parallelism")] if cost.sent else [],
        max(flops / (MATRIX_SHARE * chip.flops), moved / (MEMORY_SHARE * chip.bandwidth))
        + cost.sent / (LINK_SHARE * chip.links)
        + cost.collectives * COLLECTIVE_SECONDS,
    )


def measured(job: Job, guess: Verdict, options: Options, stop_early: bool) -> Verdict | None:
    """The verdict with every program compiled, as far as that can be done in time.

    The worst by its shapes comes first; with `stop_early`, None as soon as one does not fit.
    """
    if not (options.compile and guess.topology.tpu and has_compiler()):
        return guess if guess.fits or not stop_early else None
    mesh = tpu_mesh(guess)
    calls = job.calls(mesh, guess.topology.chip.memory)
    made = {variant: job.programs(mesh, variant) for variant in {call.variant for call in calls}}
    rows = dict(enumerate(guess.rows))
    for number in sorted(rows, key=lambda n: -rows[n].total):
        if time.monotonic() > options.deadline:
            break
        call = calls[number]
        variant = call.variant if job.decoder is None else ""
        key = (guess[:3], call.name, variant, str(call.arguments[1:]))
        if key not in job.compiled:
            program = _stack if call.name == "stack" else getattr(made[call.variant], call.name)
            job.compiled[key] = compiled_row(program, call, guess, options.effort)
        rows[number] = job.compiled[key]._replace(
            name=rows[number].name, calls=call.times, beside=call.beside
        )
        if stop_early and rows[number].total > guess.topology.chip.memory:
            return None
    return guess._replace(rows=[rows[n] for n in sorted(rows)])


def set_up() -> None:
    """Programs are compiled for elsewhere, whatever is here: no accelerator is looked for or taken.

    A second process may compile at the same time, and libtpu does not ask around for a host.
    """
    jax.config.update("jax_platforms", "cpu")
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    os.environ |= {"TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_WORKER_HOSTNAMES": "localhost"}


@jax.jit
def _stack(*trees: Any) -> Any:
    """As `grid.Kept.stacked` joins the runs that were chosen."""
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def has_compiler() -> bool:
    """Whether libtpu is installed."""
    return importlib.util.find_spec("libtpu") is not None


def tpu_mesh(guess: Verdict) -> Mesh:
    """The mesh on devices that are described, not there."""
    name = guess.topology.name
    more: dict[str, Any] = {}
    if guess.topology.size == 1:
        more["chips_per_host_bounds"] = [1, 1, 1]
    if name.startswith("v4:"):
        more["chip_config_name"] = "megacore"  # a chip's two cores as one device
    devices = topologies.get_topology_desc(name, platform="tpu", **more).devices
    return sharding.make_mesh(guess.data, guess.model, list(devices))


def compiled_row(program: Any, call: Call, guess: Verdict, effort: float) -> Row:
    """A row from the compiled program; of one that is too large, its size alone."""
    estimate = _estimated(call, guess.topology, guess.data * guess.model)
    try:
        compiled = program.lower(*call.arguments).compile(
            compiler_options={"exec_time_optimization_effort": effort}
        )
    except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e):
            raise
        return estimate._replace(compiled=True, temporaries=_too_large(str(e), estimate))
    memory, cost = compiled.memory_analysis(), hlo.analyze(compiled.as_text())
    return estimate._replace(
        compiled=True,
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        flops=cost.flops,
        moved=cost.bytes,
        sent=cost.sent,
        collectives=_by_origin(cost),
        seconds=seconds(cost, guess.topology),
    )


def _by_origin(cost: hlo.Cost) -> list[tuple[str, int, float, str]]:
    """(kind, times, bytes sent, where it comes from), most bytes first."""
    found: dict[tuple[str, str], tuple[int, float]] = {}
    for c, n in cost.collectives.items():
        times, sent = found.get((c.kind, c.op_name), (0, 0.0))
        found[c.kind, c.op_name] = (times + n, sent + c.sent * n)
    rows = ((kind, *numbers, name) for (kind, name), numbers in found.items())
    return sorted(rows, key=lambda row: -row[2])


def _too_large(message: str, estimate: Row) -> float:
    """Bytes beside the arguments and outputs of a program that the compiler gave up on."""
    sizes = re.findall(r"(?:[Uu]sed|\(|requires) ?([\d.]+)([MG])\b", message)
    found = max((float(n) * {"M": 1 << 20, "G": 1 << 30}[unit] for n, unit in sizes), default=0)
    return max(found - estimate.arguments - estimate.outputs, estimate.temporaries)


def seconds(cost: hlo.Cost, topology: Topology) -> float:
    """Of one call: each operation at the slower of matrix and memory rate, then communication."""
    chip = topology.chip
    matrix, memory = MATRIX_SHARE * chip.flops, MEMORY_SHARE * chip.bandwidth
    operations = sum(
        n * max(w.flops / matrix, w.bytes / memory, OPERATION_SECONDS) for w, n in cost.work.items()
    )
    links = cost.sent / (LINK_SHARE * chip.links)
    return operations + links + COLLECTIVE_SECONDS * cost.collectives.total()


# ---- What is printed ---------------------------------------------------------------------------


def show(report: Report, console: Console, every_collective: bool) -> None:
    """Prints the tables and what they come to."""
    asked = report.asked
    console.print(_memory_table(asked))
    console.print(_work_table(asked))
    if every_collective:
        console.print(_collective_table(asked))
    for line in _summary(report):
        console.print(line, soft_wrap=True)


def _title(verdict: Verdict, what: str) -> str:
    how = "compiled ahead of time" if verdict.compiled else "estimated from shapes alone"
    if any(row.compiled for row in verdict.rows) and not verdict.compiled:
        how = "partly compiled, * from shapes alone"
    mesh = f"mesh data={verdict.data} model={verdict.model}"
    return f"{what} on {verdict.topology.name}, {mesh}, {how}"


def _memory_table(verdict: Verdict) -> Table:
    limit = verdict.topology.chip.memory
    title = _title(verdict, f"GiB a chip, of {limit / 2**30:.2f},")
    table = Table("program", title=title)
    for name in ("arguments", "temporaries", "outputs", "held beside", "total", "share", "fits"):
        table.add_column(name, justify="right")
    for row in verdict.rows:
        parts = (row.arguments, row.temporaries, row.outputs, row.beside, row.total)
        table.add_row(
            row.name + ("" if row.compiled == verdict.compiled else "*"),
            *(f"{x / 2**30:.2f}" for x in parts),
            f"{row.total / limit:.0%}",
            "yes" if row.total <= limit else "NO",
        )
    return table


def _work_table(verdict: Verdict) -> Table:
    table = Table("program", title=_title(verdict, "Work of one call"))
    devices = verdict.data * verdict.model
    for name in (
        "TFLOP a chip",
        "all chips",
        "/ closed form",
        "GB moved a chip",
        "collectives",
        "MB sent a chip",
        "seconds",
        "calls",
        "seconds in all",
    ):
        table.add_column(name, justify="right")
    for row in verdict.rows:
        ratio = row.flops / row.expected_flops if row.expected_flops else math.nan
        table.add_row(
            row.name,
            f"{row.flops / 1e12:.3g}",
            f"{row.flops * devices / 1e12:.3g}",
            f"{ratio:.2f}" if math.isfinite(ratio) else "",
            f"{row.moved / 1e9:.3g}",
            str(sum(n for _, n, _, _ in row.collectives)),
            f"{row.sent / 1e6:.3g}",
            f"{row.seconds:.2g}",
            str(row.calls),
            f"{row.seconds * row.calls:.2g}",
        )
    return table


def _collective_table(verdict: Verdict) -> Table:
    table = Table("program", "collective", title="Communication of one call")
    table.add_column("times", justify="right")
    table.add_column("MB sent a chip", justify="right")
    table.add_column("comes from")
    for row in verdict.rows:
        for kind, times, sent, where in row.collectives:
            table.add_row(row.name, kind, str(times), f"{sent / 1e6:.3g}", where)
    return table


def duration(value: float) -> str:
    """Seconds as a person reads them."""
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if value >= 2 * size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.2g} s"


def _summary(report: Report) -> Iterator[str]:
    asked, smallest = report.asked, report.smallest
    worst = max(asked.rows, key=lambda row: row.total)
    share = worst.total / asked.topology.chip.memory
    yield (
        f"{'Fits' if asked.fits else 'DOES NOT FIT'}: at worst {worst.total / 2**30:.2f} GiB a "
        f"chip ({share:.0%}), in {worst.name}. About {duration(asked.seconds)} in all, without "
        "loading, compiling and the host."
    )
    remedy = REMEDIES.get(worst.name.rpartition(" ")[2])
    if asked.fits:
        yield f"Give the job --config.mesh.model={asked.model}."
    elif remedy:
        yield f"What {worst.name} needs less memory with: {remedy}."
    if smallest is None:
        yield "No topology of this chip fits by these meshes; see `held beside` and the arguments."
    else:
        how = "" if smallest.compiled else " (from shapes alone)"
        yield (
            f"Smallest that fits: {smallest.topology.name} with "
            f"--config.mesh.model={smallest.model}{how}, about {duration(smallest.seconds)}."
        )
    held = [row for row in asked.rows if row.name.startswith("control")]
    if (
        not asked.fits
        and held
        and all(row.total <= asked.topology.chip.memory for row in asked.rows if row not in held)
    ):
        yield "Without the controls it fits: --config.controls.names=()."
    yield (
        f"Assumed: {MATRIX_SHARE:.0%} of the matrix rate, {MEMORY_SHARE:.0%} of the memory's and "
        f"{LINK_SHARE:.0%} of the links' published rates; {OPERATION_SECONDS * 1e6:.0f} us an "
        f"operation and {COLLECTIVE_SECONDS * 1e6:.0f} us a collective at least. Not measured on "
        "such chips."
    )


def as_json(report: Report) -> dict[str, Any]:
    """Everything, as JSON has it."""

    def verdict(v: Verdict) -> dict[str, Any]:
        summary = {"fits": v.fits, "bytes": v.needed, "seconds": v.seconds, "compiled": v.compiled}
        mesh = {"data": v.data, "model": v.model}
        rows = [row._asdict() | {"total": row.total} for row in v.rows]
        memory = v.topology.chip.memory
        return {
            "topology": v.topology.name,
            "memory": memory,
            "mesh": mesh,
            **summary,
            "programs": rows,
        }

    smallest = None if report.smallest is None else verdict(report.smallest)
    shares = {"matrix": MATRIX_SHARE, "memory": MEMORY_SHARE, "links": LINK_SHARE}
    return {"asked": verdict(report.asked), "smallest": smallest, "assumed_shares": shares}


# ---- The command line --------------------------------------------------------------------------

_TOPOLOGY = flags.DEFINE_string("topology", None, "Chips, e.g. v5e:4x4 or gpu:8xh100.")
_JSON = flags.DEFINE_string("json", None, "File for everything that is found.")
_MOST = 1_000_000
_DEMONSTRATION = flags.DEFINE_integer(
    "demonstration_tokens", 0, "Of each, instead of measured.", 0, _MOST
)
_QUERY = flags.DEFINE_integer("query_tokens", 0, "Of each query, instead of measured.", 0, _MOST)
_EXAMPLES = flags.DEFINE_integer(
    "examples", 0, "Of the evaluated split, instead of the known.", 0, _MOST
)
_COMPILE = flags.DEFINE_bool("compile", True, "False: estimate from shapes alone.")
_EFFORT = flags.DEFINE_float(
    "effort", -1.0, "Of the compiler: -1 is quick, 0 what the job itself gets.", -1.0, 1.0
)
_SECONDS = flags.DEFINE_integer("seconds", 170, "After which nothing more is compiled.")
_COLLECTIVES = flags.DEFINE_bool("collectives", False, "Print every collective and its source.")
_USAGE = "python -m icljax.preflight --config=configs/sst2.py --topology=v5e:4x4 [...]"


def main(argv: Sequence[str]) -> int:
    """Examines the job that the flags describe; the exit code."""
    config = flags.FLAGS.config
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; usage: {_USAGE}")
    if config is None or not _TOPOLOGY.value:
        raise UserError(f"--config and --topology are both needed; usage: {_USAGE}")
    topology = hardware.parse(_TOPOLOGY.value)
    out = downloads.user_path(_JSON.value, "--json") if _JSON.value else None
    if out:
        workdir.check_writable(out)
    import_module(config_lib.experiment_module(config)).validate(config)
    given = flags.FLAGS["config.mesh.model"].present if "config.mesh.model" in flags.FLAGS else 0
    options = Options(
        _DEMONSTRATION.value,
        _QUERY.value,
        _EXAMPLES.value,
        config.mesh.model if given else 0,
        _COMPILE.value,
        _EFFORT.value,
        time.monotonic() + _SECONDS.value,
    )
    set_up()
    report = examine(make_job(config, options), topology, options)
    if out:
        with workdir.writing(out):
            workdir.write_atomically(out, (json.dumps(as_json(report), indent=1) + "\n").encode())
    console = Console()
    if not console.is_terminal:
        console.width = _WIDTH
    show(report, console, _COLLECTIVES.value)
    return 0 if report.asked.fits else 1


def run() -> None:
    """The console entry point."""
    logging.getLogger("jax").setLevel(logging.WARNING)
    terminal.run(lambda: app.run(main, flags_parser=main_lib.parse))
