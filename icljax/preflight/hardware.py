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
        exact: the same of float32 products at the highest precision.
        bandwidth: bytes a second between main memory and the chip.
        links: bytes a second to other chips of the slice or host, one way, all links together.
    """

    memory: int
    flops: float
    exact: float
    bandwidth: float
    links: float


def _tpu(memory: float, flops: int, bandwidth: int, links: int) -> Chip:
    """Rates in teraflops and gigabytes a second; an exact product takes six of bfloat16 parts."""
    rates = flops * _TERA, flops * _TERA / 6, bandwidth * _GB, links * _GB
    return Chip(int(memory * _GIB), *rates)


def _gpu(memory: int, flops: int, exact: int, bandwidth: int, links: int) -> Chip:
    """Rates in teraflops (`exact`: without tensor cores) and gigabytes a second."""
    rates = flops * _TERA, exact * _TERA, bandwidth * _GB, links * _GB
    return Chip(int(0.9 * memory * _GB), *rates)


# Rates: Google Cloud's "System architecture" page of each TPU version (docs.cloud.google.com/tpu),
# links from its "inter-chip interconnect bandwidth", which counts both ways. Memory: what the
# compiler itself says it has ("exceeds available HBM (15.75G)"), libtpu 0.0.42.
TPUS = {
    "v4": _tpu(30.75, 275, 1228, 300),
    "v5e": _tpu(15.75, 197, 819, 200),
    "v5p": _tpu(95.74, 459, 2765, 600),
    "v6e": _tpu(31.25, 918, 1640, 400),
}
# NVIDIA's data sheets of the SXM forms: dense bfloat16, float32, memory, NVLink (half of both
# ways). JAX takes 75 % of the memory unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise; .9 is
# meant here.
GPUS = {
    "a100-40": _gpu(40, 312, 20, 1555, 300),
    "a100-80": _gpu(80, 312, 20, 2039, 300),
    "h100": _gpu(80, 989, 67, 3350, 450),
    "h200": _gpu(141, 989, 67, 4800, 450),
    "b200": _gpu(180, 2250, 80, 8000, 900),
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
        exact: whether products are of float32.
    """

    name: str
    chip: Chip
    size: int
    tpu: bool
    exact: bool = False

    @property
    def flops(self) -> float:
        """Matrix FLOPs a second of a chip."""
        return self.chip.exact if self.exact else self.chip.flops


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
        found = [parse(f"{kind}:{shape}") for shape in SLICES[kind]]
    else:
        gpu = topology.name.partition("x")[2]
        found = [parse(f"gpu:{count}x{gpu}") for count in _GPU_COUNTS]
    return [dataclasses.replace(one, exact=topology.exact) for one in found]
