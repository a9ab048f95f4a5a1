"""The command line: parses flags, starts one experiment.

python -m icljax.main --config=configs/mr.py --workdir=DIR

Exit codes: 0 done; 2 a mistake, told in one line; 75 asked to stop (SIGTERM), and all that was done
is committed: the same command continues; 130 interrupted by Ctrl-C; 76 another process of the job
was lost: run the job again (134 where JAX's own service notices first, by a missing heartbeat, and
aborts).
"""

from icljax.runtime.terminal import end_on_interrupt

if __name__ == "__main__":  # the imports below take a second
    end_on_interrupt()

import contextlib
import logging
import os
import traceback
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from icljax.errors import UserError
from icljax.runtime import terminal
from icljax.runtime.terminal import Console, one_line

_CONFIG = config_flags.DEFINE_config_file("config", help_string="Job, e.g. configs/mr.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this job's results.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "One of several processes, found out from Cloud TPU, Slurm or Kubernetes."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, to say it by hand."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "With --coordinator: of the job.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "With --coordinator: this process, from 0.")
_USAGE = "python -m icljax.main --config=configs/mr.py --workdir=DIR [--config.FIELD=VALUE ...]"


def main(argv: Sequence[str]) -> None:
    """Runs the experiment that the flags ask for and shows its result."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; usage: {_USAGE}")
    if _CONFIG.value is None or not _WORKDIR.value:
        raise UserError(f"--config and --workdir are both needed; usage: {_USAGE}")
    # These take a second to import, which a mistake in the flags should not cost.
    from icljax.experiments import config
    from icljax.runtime import downloads, processes, workdir

    absl_logging.set_verbosity(absl_logging.WARNING)  # not every step of writing a checkpoint
    if _DISTRIBUTED.value or _COORDINATOR.value:
        _join(processes)
    console = Console(quiet=not processes.is_first())
    experiment = import_module(config.experiment_module(_CONFIG.value))
    experiment.validate(_CONFIG.value)
    if processes.several() and _CONFIG.value.experiment != "compare":
        raise UserError(
            f"experiment {_CONFIG.value.experiment!r} runs in one process, on all of its devices; "
            "leave out --distributed and --coordinator"
        )
    processes.set_up()
    path = downloads.user_path(_WORKDIR.value, "--workdir")
    file = path / workdir.RESULTS
    # What this run has just made is of this version: an error in showing it is a mistake of ours.
    reading = workdir.reading_results(file) if file.exists() else contextlib.nullcontext()
    results = experiment.run(_CONFIG.value, path, console)
    with reading:
        experiment.show(results, path, console)


def _join(runtime: ModuleType) -> None:
    by_hand = (_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    if _COORDINATOR.value and None in by_hand:
        raise UserError(
            "--coordinator needs --num_processes and --process_id too; usage: "
            "--coordinator=HOST:PORT --num_processes=N --process_id=I"
        )
    runtime.join(*by_hand)


def parse(argv: Sequence[str]) -> list[str]:
    """The flags of a command line; what is wrong with them is a UserError."""
    try:
        rest = flags.FLAGS(argv)
        if _CONFIG.value is not None:
            _CONFIG.value.keys()  # of a file that cannot be read ml_collections tells only now
        return rest
    except Exception as e:
        if line := _mistake(e):
            raise UserError(line) from e
        raise


def _mistake(error: Exception) -> str:
    """What is wrong with the flags or the config's file; "" for a mistake of ours."""
    if isinstance(error, flags.DuplicateFlagError):
        return "--config is given twice; give it once"
    if isinstance(error, OSError):
        return f"--config: {one_line(error).rpartition('] ')[2]}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f.name in ("get_config", "<module>")]  # of the config's file
    if own or isinstance(error, SyntaxError):
        where = f"{own[-1].filename}, line {own[-1].lineno}: " if own else ""
        return f"{where}{type(error).__name__}: {' '.join(str(error).split())}"
    if "has no attribute 'get_config'" in str(error):
        return "--config: expected a file with a function get_config() that returns the config"
    if isinstance(error, AttributeError | KeyError):  # ml_collections adds the nearest known key
        return f"unknown config key {one_line(error)}"
    return one_line(error) if isinstance(error, flags.Error | TypeError | ValueError) else ""


def run() -> None:
    """The console entry point: one line and an exit code, where a job does not come to its end."""
    logging.getLogger("jax").setLevel(logging.WARNING)  # absl shows INFO: probing for a TPU
    # XLA:CPU warns on standard error that a cached program names more CPU features than it knows.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    terminal.run(lambda: app.run(main, flags_parser=parse), _end_from_outside)


def _end_from_outside(error: Exception) -> None:
    """Ends the process for what ended the job from outside it, or one process of several."""
    code, line = _outside(error)
    if code:
        terminal.end(code, line)
    if _COORDINATOR.value or _DISTRIBUTED.value:
        traceback.print_exc()
        terminal.end(1, "error: a mistake of ours in one process ends the job; see above")


def _outside(error: Exception) -> tuple[int, str]:
    """(exit code, line) of what ended a job from outside it; code 0: a mistake of ours."""
    from icljax.runtime import processes

    what = one_line(error)[:300]
    if isinstance(error, processes.Stopped):
        return processes.STOPPED, what
    if "RESOURCE_EXHAUSTED" in what:
        return 2, (
            f"error: the devices' memory is full ({what}); `python -m icljax.preflight` says what "
            "fits: give a larger --config.mesh.model or a smaller --config.finetune.runs_at_once"
        )
    if processes.several() and any(sign in what for sign in processes.SIGNS_OF_LOSS):
        return processes.LOST, (
            f"error: another process of the job was lost ({what}); what is committed is kept: run "
            "the job again"
        )
    return 0, ""


if __name__ == "__main__":
    run()
