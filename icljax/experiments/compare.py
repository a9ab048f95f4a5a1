"""A comparison of ICL and finetuning on one task and one model, in the mode that is asked for."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from rich.console import Console

from icljax.errors import named
from icljax.experiments import crossed, job, paper
from icljax.experiments.config import fill_in, validate
from icljax.reports import crossed as crossed_report
from icljax.reports import summary
from icljax.runtime import workdir

__all__ = ["run", "show", "validate"]
_RUN = {"crossed": crossed.run, "paper": paper.run}


def run(config: ConfigDict, path: Path, console: Console) -> dict[str, Any]:
    """Runs a job into a folder, or returns the results that it already left there.

    Raises:
        UserError: for whatever is wrong with what the user gave.
    """
    fill_in(config)
    with job.precision(config):
        return workdir.one_job(named("mode", config.mode, _RUN))(config, path, console)


def show(results: dict[str, Any], path: Path, console: Console) -> None:
    """Prints what came out, and where the report is."""
    one = crossed_report if results["config"]["mode"] == "crossed" else summary
    one.show(results, path, console)
