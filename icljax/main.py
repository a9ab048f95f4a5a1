"""The command line: parses flags, starts one experiment.

python -m icljax.main --config=configs/mr.py --workdir=DIR
"""

import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags
from rich.console import Console

from icljax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file("config", help_string="Job, e.g. configs/mr.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this job's results.")
_USAGE = "python -m icljax.main --config=configs/mr.py --workdir=DIR [--config.FIELD=VALUE ...]"


def main(argv: Sequence[str]) -> None:
    """Runs the experiment that the flags ask for and shows its result."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; usage: {_USAGE}")
    if _CONFIG.value is None or not _WORKDIR.value:
        raise UserError(f"--config and --workdir are both needed; usage: {_USAGE}")
    # These take a second to import, which a mistake in the flags should not cost.
    from icljax import config, runtime

    absl_logging.set_verbosity(absl_logging.WARNING)  # not every step of writing a checkpoint
    console = Console()
    experiment = import_module(config.experiment_module(_CONFIG.value))
    experiment.validate(_CONFIG.value)
    runtime.set_up()
    path = Path(_WORKDIR.value).expanduser()
    experiment.show(experiment.run(_CONFIG.value, path, console), path, console)


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as e:
        # ml_collections raises AttributeError for an unknown key (with the nearest known one).
        if isinstance(e, AttributeError | KeyError):
            raise UserError(f"unknown config key {_one_line(e)}") from e
        raise UserError(_one_line(e)) from e


def _one_line(error: BaseException) -> str:
    text = str(error.args[0]) if error.args else str(error)
    return " ".join(text.replace("\\n", " ").split())


def run() -> None:
    """The console entry point: exit code 2 and one line for a user's mistake."""
    logging.getLogger("jax").setLevel(logging.WARNING)  # absl shows INFO: probing for a TPU
    # XLA:CPU warns on standard error that a cached program names more CPU features than it knows.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        app.run(main, flags_parser=_parse)
    except UserError as e:
        print(f"icljax: error: {_one_line(e)}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run()
