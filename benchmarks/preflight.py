"""What the paper's whole grid needs and takes on TPU slices, as a Markdown table.

    python benchmarks/preflight.py

SST-2 as the paper runs it: all 872 validation examples, 32 demonstrations, 36 learning rates x 7
seeds in one job, without the untrained models. Compiled ahead of time (libtpu, extra `tpu`); the
model axis is the smallest that fits. `--json=FILE` keeps finished cells, so that it can be stopped.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from icljax.experiments import config as config_lib
from icljax.preflight import check, hardware, tables

MODELS = ("fairseq-125m", "fairseq-1.3b", "fairseq-2.7b", "fairseq-13b", "smollm2-135m")
TOPOLOGIES = ("v5e:2x2", "v5e:4x4", "v5e:16x16", "v6e:4x4", "v5p:2x2x2")


def paper_config(model: str) -> ConfigDict:
    config = config_lib.default()
    config.task, config.model = "sst2", model
    config.num_demonstrations, config.seeds = 32, tuple(range(1, 8))
    config.finetune.learning_rates = tuple(0.001 * (i + 1) for i in range(36))
    config.eval.num_examples = 0
    config.mode = "paper"
    return config


def cell(model: str, name: str, seconds: float) -> dict[str, Any]:
    """One model on one slice."""
    start = time.monotonic()
    options = check.Options(deadline=start + seconds)
    checked = check.make_checked(paper_config(model), options)
    verdict = check.best_mesh(checked, hardware.parse(name), options)
    assert verdict is not None  # one chip's model axis always divides
    worst = max(verdict.rows, key=lambda row: row.total)
    return {
        "gib": worst.total / 2**30,
        "limit": verdict.topology.chip.memory / 2**30,
        "worst": worst.name,
        "fits": verdict.fits,
        "compiled": verdict.compiled,
        "mesh": f"{verdict.data} x {verdict.model}",
        "seconds": verdict.seconds,
        "took": time.monotonic() - start,
        "programs": [dataclasses.asdict(row) for row in verdict.rows],
    }


def text(found: dict[str, Any]) -> str:
    """`GiB of limit, data x model, time`; * where not all of it was compiled."""
    star = "" if found["compiled"] else "*"
    if not found["fits"]:
        return f"**no**: {found['gib']:.1f}{star} ({found['worst']})"
    return f"{found['gib']:.1f}{star}, {found['mesh']}, {tables.duration(found['seconds'])}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--topologies", nargs="+", default=list(TOPOLOGIES))
    parser.add_argument("--json", type=Path, help="finished cells")
    parser.add_argument("--seconds", type=float, default=170, help="of compiling a cell")
    args = parser.parse_args()
    check.set_up()
    done = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    limits = [
        f"{name} ({hardware.parse(name).chip.memory / 2**30:.2f})" for name in args.topologies
    ]
    for model in args.models:
        for name in args.topologies:
            key = f"{model} {name}"
            if key not in done:
                done[key] = cell(model, name, args.seconds)
            if args.json:
                args.json.write_text(json.dumps(done, indent=1) + "\n")
    print("GiB a chip at worst, mesh data x model, time of the job\n")
    print("| model | " + " | ".join(limits) + " |")
    print("|---" * (1 + len(limits)) + "|")
    for model in args.models:
        cells = [text(done[f"{model} {name}"]) for name in args.topologies]
        print(f"| {model} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
