"""Whether a job fits, and how long it takes, before anything is paid for.

    python -m icljax.preflight --config=configs/sst2.py --config.model=fairseq-13b \
        --topology=v5e:4x4 [--config.mesh.model=8] [--json=FILE]

For a TPU slice every program of the job is compiled ahead of time, with the job's own shardings and
without a TPU (libtpu, extra `tpu`); what it needs and does is read from the compiled program. For
GPUs, and without libtpu, it is estimated from shapes alone. No data and no weights are read.

    python -m icljax.preflight --config=configs/sst2.py --pilot=WORKDIR

How many seeds a crossed comparison's margin needs, and their time, from the spread of a pilot.

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
import time
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import jax
from absl import app, flags
from jax.experimental import topologies
from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict

from icljax import checkpoints
from icljax import main as main_lib
from icljax.catalog import METHODS
from icljax.comparison import crossed, programs
from icljax.comparison.inputs import Inputs, make_encoder
from icljax.data import tasks
from icljax.errors import UserError
from icljax.experiments import config as config_lib
from icljax.experiments import job, pretrain, train
from icljax.models import families
from icljax.models.architectures import ARCHITECTURES
from icljax.models.decoder import DecoderConfig
from icljax.preflight import hardware, power, tables
from icljax.preflight.calls import Call, compare_calls, train_calls
from icljax.preflight.crossed import ASSUMED, crossed_calls
from icljax.preflight.hardware import Topology
from icljax.preflight.lengths import lengths, make_inputs
from icljax.preflight.rows import Report, Row, Verdict, compiled_row, estimated_row
from icljax.runtime import downloads, sharding, terminal, workdir
from icljax.runtime.terminal import Console

_DOUBT = 1.25  # a mesh that needs more than this by its shapes is not compiled
_WIDTH = 150  # of tables that go to a file
_TOKENS_PER_BATCH = 4096  # of `inputs.batch_tokens` on an accelerator


@dataclasses.dataclass(frozen=True)
class Options:
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


@dataclasses.dataclass(frozen=True)
class Checked:
    """What is checked: a job on an accelerator, without its data.

    Attributes:
        decoder, inputs: None in training, which has a decoder for each variant.
        compiled: rows of programs that were compiled, by all that they depend on.
    """

    config: ConfigDict
    decoder: DecoderConfig | None = None
    inputs: Inputs | None = None
    compiled: dict[Any, Row] = dataclasses.field(default_factory=dict)

    def calls(self, mesh: Mesh | AbstractMesh, memory: int) -> list[Call]:
        """The job's programs on a mesh; raises a UserError where the mesh does not divide it."""
        if self.decoder is None or self.inputs is None:
            return list(train_calls(self.config, mesh))
        of_job = crossed_calls if self.config.mode == "crossed" else compare_calls
        return of_job(self.config, self.decoder, self.inputs, mesh, memory)

    def programs(self, mesh: Mesh, variant: str) -> dict[str, Any]:
        """Those programs themselves, jitted, by their names."""
        c = self.config
        if self.decoder is None or self.inputs is None:
            decoder = pretrain.decoder_config(c, variant, c.text.vocab_size)
            return vars(train.make_programs(decoder, c.train, mesh, c.eval.curve_points))
        steps = self.inputs.demonstrations.train.shape[1]
        static = programs.make_static(self.decoder, c, self.inputs.encoder.bos, steps, mesh)
        if variant in METHODS:
            static = dataclasses.replace(static, method=variant)
        return vars(programs.programs_of(static)) | vars(crossed.make_programs(static))


def make_checked(config: ConfigDict, options: Options) -> Checked:
    """The job that a config describes, as it would run on an accelerator.

    Raises:
        UserError: for an unknown model or task, or lengths that do not fit.
    """
    config = config.copy_and_resolve_references()
    in_pretraining = config.experiment == "pretrain"
    if config.dtype == "auto":
        config.dtype = "bfloat16" if in_pretraining else job.compute_dtype(config)
    if in_pretraining:
        return Checked(config)
    if config.experiment != "compare":
        raise UserError(
            f"config.experiment is {config.experiment!r}, which has no preflight; expected compare "
            "or pretrain, e.g. --config=configs/sst2.py"
        )
    config_lib.fill_in(config)
    config.eval.tokens_per_batch = config.eval.tokens_per_batch or _TOKENS_PER_BATCH
    decoder = job.with_config(model_decoder(config), config)
    tokens = lengths(config, options.demonstration_tokens, options.query_tokens, options.examples)
    return Checked(config, decoder, make_inputs(config, decoder, tokens))


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
    make_encoder(config, checkpoint, task)
    return checkpoint.config


def examine(checked: Checked, topology: Topology, options: Options) -> Report:
    """The verdict on a topology, and the smallest one of the same chip that fits.

    Raises:
        UserError: where no mesh, or not the one that was asked for, divides the model.
    """
    topology = dataclasses.replace(topology, exact=checked.config.dtype == "float32")
    asked = best_mesh(checked, topology, options)
    if asked is None:
        raise UserError(
            f"no mesh of {topology.name} divides the model; give another --topology, or "
            "--config.mesh.model"
        )
    smaller = [t for t in hardware.sizes_of(topology) if t.size < topology.size]
    larger = [t for t in hardware.sizes_of(topology) if t.size > topology.size]
    free = dataclasses.replace(options, model_axis=0)
    for candidate in smaller if asked.fits else larger:
        if found := best_mesh(checked, candidate, free, only_if_fits=True):
            return Report(asked, found)
    return Report(asked, asked if asked.fits else None)


def best_mesh(
    checked: Checked, topology: Topology, options: Options, only_if_fits: bool = False
) -> Verdict | None:
    """The mesh with the smallest model axis with which the job fits, else the nearest to it.

    Only meshes that fit by their shapes are compiled, worst program first; None where no mesh
    divides the model, or `only_if_fits` and none fits.
    """
    axes = [options.model_axis] if options.model_axis else _divisors(topology.size)
    guesses: list[Verdict] = []
    for model in axes:
        try:
            guesses.append(from_shapes(checked, topology, model))
        except UserError as e:
            if options.model_axis:
                raise UserError(f"{e} ({_which_divide(checked, topology)})") from e
    limit = topology.chip.memory
    possible = [g for g in guesses if _held(g) <= limit and g.needed <= _DOUBT * limit]
    for guess in possible:
        found = measured(checked, guess, options, stop_early=True)
        if found is not None and found.fits:
            return found
    if only_if_fits or not guesses:
        return None
    nearest = min(guesses, key=lambda g: g.needed)
    return measured(checked, nearest, options, stop_early=False)


def _divisors(count: int) -> list[int]:
    return [n for n in range(1, count + 1) if count % n == 0]


def _which_divide(checked: Checked, topology: Topology) -> str:
    """For an error's message."""
    good = []
    for model in _divisors(topology.size):
        try:
            from_shapes(checked, topology, model)
            good.append(str(model))
        except UserError:
            continue
    return f"on {topology.name} --config.mesh.model may be {', '.join(good) or 'nothing'}"


def _held(guess: Verdict) -> float:
    """Bytes that a device needs in any case: whatever the temporaries are."""
    return max(row.total - row.temporaries for row in guess.rows)


def from_shapes(checked: Checked, topology: Topology, model: int) -> Verdict:
    """The verdict from closed forms alone; raises a UserError where the mesh does not divide."""
    given, size = checked.config.mesh.data, topology.size
    data = size // model if given == -1 or size < given * model else given
    if data < 1:
        raise UserError(f"mesh.model={model} is more than the {size} chips of {topology.name}")
    mesh = AbstractMesh((data, model), ("data", "model"))
    calls = checked.calls(mesh, topology.chip.memory)
    rows = [estimated_row(call, topology, data * model) for call in calls]
    return Verdict(topology, data, model, rows)


def measured(
    checked: Checked, guess: Verdict, options: Options, stop_early: bool
) -> Verdict | None:
    """The verdict with every program compiled, as far as that can be done in time.

    The worst by its shapes comes first; with `stop_early`, None as soon as one does not fit.
    """
    if not (options.compile and guess.topology.tpu and has_compiler()):
        return guess if guess.fits or not stop_early else None
    mesh = tpu_mesh(guess)
    calls = checked.calls(mesh, guess.topology.chip.memory)
    made = {
        variant: checked.programs(mesh, variant) for variant in {call.variant for call in calls}
    }
    rows = dict(enumerate(guess.rows))
    for number in sorted(rows, key=lambda n: -rows[n].total):
        if time.monotonic() > options.deadline:
            break
        call = calls[number]
        variant = call.variant if checked.decoder is None or call.variant in METHODS else ""
        key = (guess.topology, guess.data, guess.model, call.name, variant, str(call.arguments))
        if key not in checked.compiled:
            program = made[call.variant][call.name]
            checked.compiled[key] = compiled_row(program, call, guess, options.effort)
        rows[number] = dataclasses.replace(
            checked.compiled[key],
            name=rows[number].name,
            calls=call.times,
            beside=call.beside,
        )
        if stop_early and rows[number].total > guess.topology.chip.memory:
            return None
    return dataclasses.replace(guess, rows=[rows[n] for n in sorted(rows)])


def set_up() -> None:
    """Programs are compiled for elsewhere, whatever is here: no accelerator is looked for or taken.

    A second process may compile at the same time, and libtpu does not ask around for a host.
    """
    jax.config.update("jax_platforms", "cpu")
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    os.environ |= {"TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_WORKER_HOSTNAMES": "localhost"}


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


# ---- The command line --------------------------------------------------------------------------

_TOPOLOGY = flags.DEFINE_string("topology", None, "Chips, e.g. v5e:4x4 or gpu:8xh100.")
_PILOT = flags.DEFINE_string(
    "pilot", None, "Workdir of a crossed comparison: how many seeds, and how long, its claims need."
)
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
    if config is None or bool(_TOPOLOGY.value) == bool(_PILOT.value):
        raise UserError(f"--config and one of --topology and --pilot are needed; usage: {_USAGE}")
    topology = hardware.parse(_TOPOLOGY.value) if _TOPOLOGY.value else None
    out = downloads.user_path(_JSON.value, "--json") if _JSON.value else None
    if out:
        workdir.check_writable(out)
    import_module(config_lib.experiment_module(config)).validate(config)
    set_up()
    console = Console()
    if not console.is_terminal:
        console.width = _WIDTH
    found, code = _fits(config, topology, console) if topology else _power(config, console)
    if out:
        with workdir.writing(out):
            workdir.write_atomically(out, (json.dumps(found, indent=1) + "\n").encode())
    return code


def _fits(config: ConfigDict, topology: Topology, console: Console) -> tuple[dict[str, Any], int]:
    """(everything that is found, the exit code) of a job on a topology."""
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
    checked = make_checked(config, options)
    with job.precision(checked.config):
        report = examine(checked, topology, options)
    tables.show(report, console, _COLLECTIVES.value)
    if config.get("mode") == "crossed":
        console.print(ASSUMED, soft_wrap=True)
    return tables.as_json(report), 0 if report.asked.fits else 1


def _power(config: ConfigDict, console: Console) -> tuple[dict[str, Any], int]:
    """The same of a study after its pilot."""
    if config.get("mode") != "crossed":
        raise UserError(
            "--pilot is for crossed comparisons (config.mode=crossed); give, e.g., "
            "--config=configs/sst2.py"
        )
    planned = power.plan(config, power.read(downloads.user_path(_PILOT.value or "", "--pilot")))
    power.show(planned, console)
    return dataclasses.asdict(planned), 0


def run() -> None:
    """The console entry point."""
    logging.getLogger("jax").setLevel(logging.WARNING)
    terminal.run(lambda: app.run(main, flags_parser=main_lib.parse))
