r"""What a job's numbers owe to the type of its products: one job, same seeds, in several types.

    python benchmarks/dtypes.py --out=DIR -- --config=configs/mr.py --config.mode=paper \
        --config.selection.split=train --config.select_seed=False --config.seeds=1,2,3

float32        products of float32, as on CPU and with jax's precision "highest" everywhere
bfloat16       `--config.dtype=bfloat16`: activations and all weights but keys' and values' too
products       float32, its products' factors rounded to bfloat16: a TPU's default precision
bf16_3x        the same, to 16 bits of mantissa: what three products of bfloat16 parts keep
tf32           the same, to TF32's 10 bits: a GPU's default precision

The last three round on the CPU, in every product of the job forwards and backwards. A job that is
there already is not run again. Seeds of which another learning rate was chosen are left out of the
differences: rates that select alike move the similarities far more than a type does.
"""

import argparse
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from icljax import results

BITS = {"products": 7, "bf16_3x": 15, "tf32": 10}  # of the mantissa of a product's factors
WAYS = ("float32", "bfloat16", *BITS)


def round_products(bits: int) -> None:
    """Makes every matrix product of this process round its factors first."""
    from jax._src.lax import lax
    from jax._src.lib.mlir.dialects import hlo
    from jax.interpreters import mlir

    def lower(ctx, lhs, rhs, **options):  # type: ignore[no-untyped-def]
        rounded = [hlo.reduce_precision(x, 8, bits) for x in (lhs, rhs)]
        return lax._dot_general_lower(ctx, *rounded, platform="cpu", **options)

    mlir.register_lowering(lax.dot_general_p, lower, platform="cpu")


@dataclasses.dataclass(frozen=True)
class Row:
    """What is compared, and its value in each seed."""

    name: str
    seeds: np.ndarray


def rows(found: results.Results) -> list[Row]:
    """The figures of a job that are compared."""
    out = [
        Row(f"accuracy {s}", np.asarray(found.accuracy.of(s).per_seed, float))
        for s in ("icl", "ft")
    ]
    out += [
        Row(name, np.asarray(value.per_seed, float))
        for name, value in (found.similarities | found.steps).items()
        if name in ("sim_aou", "sim_aou_unnormalized", "sim_am_delta", "kendall", "step_output")
    ]
    return [*out, Row("learning rate", np.asarray(found.selection.learning_rate))]


def run(way: str, folder: Path, job: list[str]) -> results.Results:
    """The results of the job in one type."""
    if not (folder / "results.json").is_file():
        dtype = "bfloat16" if way == "bfloat16" else "float32"
        command = [sys.executable, __file__, f"--way={way}", "--", *job]
        command += [f"--config.dtype={dtype}", f"--workdir={folder}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ)
    return results.open_job(folder).results


def table(found: dict[str, results.Results]) -> str:
    """Each figure in float32, and how far each type moves it: mean, and largest in a seed.

    Over the seeds with the same learning rate.
    """
    reference = rows(found["float32"])
    others = [way for way in found if way != "float32"]
    rates = {way: rows(found[way])[-1].seeds for way in found}
    same = {way: rates[way] == rates["float32"] for way in others}
    lines = [f"{'':24}{'float32':>9}" + "".join(f"{way:>20}" for way in others)]
    for i, row in enumerate(reference[:-1]):
        cells = ""
        for way in others:
            moved = (rows(found[way])[i].seeds - row.seeds)[same[way]]
            text = f"{moved.mean():+.4f} ({np.abs(moved).max():.4f})" if len(moved) else "-"
            cells += f"{text:>20}"
        lines.append(f"{row.name:24}{row.seeds.mean():9.4f}{cells}")
    count = len(reference[-1].seeds)
    cells = "".join(f"{f'{same[way].sum()} of {count}':>20}" for way in others)
    return "\n".join([*lines, f"{'same learning rate':33}{cells}"])


def main() -> None:
    """Runs the job in every type and prints the table; with --way, one job in this process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("/tmp/dtypes"))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--way", choices=WAYS, help="used by the script itself")
    parser.add_argument("job", nargs="+", help="the job's flags, after --")
    args = parser.parse_args()
    if args.way:
        if args.way in BITS:
            round_products(BITS[args.way])
        from icljax import main as icljax_main

        sys.argv = ["icljax", *args.job]
        icljax_main.run()
        return
    found = {
        way: run(way, args.out / way, args.job) for way in dict.fromkeys(("float32", *args.ways))
    }
    print(table(found))


if __name__ == "__main__":
    main()
