"""Accelerators as their makers publish them, and what a text such as "v5e:4x4" asks for."""

import dataclasses
import math
import re

from icljax.errors import UserError

_GIB, _GB, _TERA = 1 << 30, 10**9, 10**12


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator, as JAX counts devices.

    Attributes:
        memory: bytes of main memory (HBM) that programs may use.
        flops: matrix FLOPs a second in bfloat16, dense.
        bandwidth: bytes a second between main memory and the chip.
        links: bytes a second to other chips of the slice or host, one way, all links together.
    """

    memory: int
    flops: float
    bandwidth: float
    links: float


# Rates: Google Cloud's "System architecture" page of each TPU version (docs.cloud.google.com/tpu),
# links from its "inter-chip interconnect bandwidth", which counts both ways. Memory: what the
# compiler itself says it has ("exceeds available HBM (15.75G)"), libtpu 0.0.42.
TPUS = {
    "v4": Chip(int(30.75 * _GIB), 275 * _TERA, 1228 * _GB, 300 * _GB),
    "v5e": Chip(int(15.75 * _GIB), 197 * _TERA, 819 * _GB, 200 * _GB),
    "v5p": Chip(int(95.74 * _GIB), 459 * _TERA, 2765 * _GB, 600 * _GB),
    "v6e": Chip(int(31.25 * _GIB), 918 * _TERA, 1640 * _GB, 400 * _GB),
}
# NVIDIA's data sheets of the SXM forms: dense bfloat16, memory, NVLink (half of both ways). JAX
# takes 75 % of the memory unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise; .9 is meant here.
GPUS = {
    "a100-40": Chip(int(0.9 * 40 * _GB), 312 * _TERA, 1555 * _GB, 300 * _GB),
    "a100-80": Chip(int(0.9 * 80 * _GB), 312 * _TERA, 2039 * _GB, 300 * _GB),
    "h100": Chip(int(0.9 * 80 * _GB), 989 * _TERA, 3350 * _GB, 450 * _GB),
    "h200": Chip(int(0.9 * 141 * _GB), 989 * _TERA, 4800 * _GB, 450 * _GB),
    "b200": Chip(int(0.9 * 180 * _GB), 2250 * _TERA, 8000 * _GB, 900 * _GB),
}
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
# The slices that one can ask for, smallest first.
SLICES = {"v4": _CUBES, "v5e": _FLAT, "v5p": _CUBES, "v6e": _FLAT}
_GPU_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips that work together.

    Attributes:
        name: as given, e.g. "v5e:4x4" or "gpu:8xh100".
        chip: what each of them is.
        size: how many there are.
        tpu: whether it is a TPU slice, for which programs can be compiled.
    """

    name: str
    chip: Chip
    size: int
    tpu: bool


def parse(text: str) -> Topology:
    """The topology that a text names.

    Raises:
        UserError: for an unknown chip, or a shape that it does not come in.
    """
    if found := re.fullmatch(r"gpu:(\d{1,5})x([a-z][\w-]*)", text):
        count, kind = int(found.group(1)), found.group(2)
        if kind not in GPUS or count < 1:
            raise UserError(
                f"topology {text!r}: expected gpu:COUNTxKIND with 1 or more of "
                f"{', '.join(GPUS)}, e.g. --topology=gpu:8xh100"
            )
        return Topology(text, GPUS[kind], count, tpu=False)
    kind, _, shape = text.partition(":")
    if kind not in TPUS or not re.fullmatch(r"[1-9]\d{0,3}(x[1-9]\d{0,3}){1,2}", shape):
        raise UserError(
            f"topology {text!r}: expected a TPU slice such as v5e:4x4 or v5p:2x2x2 "
            f"({', '.join(TPUS)}), or GPUs such as gpu:8xh100: --topology=..."
        )
    sizes = [int(size) for size in shape.split("x")]
    axes = SLICES[kind][0].count("x") + 1
    if len(sizes) != axes:
        raise UserError(
            f"topology {text!r}: a {kind} slice has {axes} axes; expected for example "
            f"--topology={kind}:{SLICES[kind][2]}"
        )
    return Topology(text, TPUS[kind], math.prod(sizes), tpu=True)


def sizes_of(topology: Topology) -> list[Topology]:
    """All topologies of the same chip, smallest first."""
    kind = topology.name.partition(":")[0]
    if topology.tpu:
        return [parse(f"{kind}:{shape}") for shape in SLICES[kind]]
    gpu = topology.name.partition("x")[2]
    return [parse(f"gpu:{count}x{gpu}") for count in _GPU_COUNTS]
