"""What each program of a job needs and does: compiled ahead of time, or from shapes alone."""

import dataclasses
import re
from typing import Any

import jax

from icljax.preflight import hlo
from icljax.preflight.calls import Call
from icljax.preflight.costs import device_bytes
from icljax.preflight.hardware import Topology

# What the estimate of seconds assumes: shares of the published rates that programs reach, and what
# an operation and a collective take at least. Matrix products and memory traffic of one operation
# overlap; operations, and communication, follow each other.
MATRIX_SHARE = 0.5
MEMORY_SHARE = 0.7
LINK_SHARE = 0.5
OPERATION_SECONDS = 1e-6
COLLECTIVE_SECONDS = 5e-6


@dataclasses.dataclass(frozen=True)
class Row:
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


@dataclasses.dataclass(frozen=True)
class Verdict:
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


@dataclasses.dataclass(frozen=True)
class Report:
    """The answer: the topology that was asked for, and the smallest one that fits, if any does."""

    asked: Verdict
    smallest: Verdict | None


def estimated_row(call: Call, topology: Topology, devices: int) -> Row:
    """A row without a compiler: what is computed twice, or padded, it does not know."""
    cost, chip = call.estimate, topology.chip
    arguments, outputs = device_bytes(call.arguments), device_bytes(call.outputs)
    flops = cost.flops / devices
    rest = device_bytes(call.arguments[1:])
    moved = cost.passes * device_bytes(call.arguments[0]) + rest + outputs + 2 * cost.temporaries
    return Row(
        f"{call.variant}: {call.name}" if call.variant else call.name,
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
        max(flops / (MATRIX_SHARE * topology.flops), moved / (MEMORY_SHARE * chip.bandwidth))
        + cost.sent / (LINK_SHARE * chip.links)
        + cost.collectives * COLLECTIVE_SECONDS,
    )


def compiled_row(program: Any, call: Call, guess: Verdict, effort: float) -> Row:
    """A row from the compiled program; of one that is too large, its size alone."""
    estimate = estimated_row(call, guess.topology, guess.data * guess.model)
    try:
        compiled = program.lower(*call.arguments).compile(
            compiler_options={"exec_time_optimization_effort": effort}
        )
    except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in str(e):
            raise
        return dataclasses.replace(
            estimate, compiled=True, temporaries=_too_large(str(e), estimate)
        )
    memory, cost = compiled.memory_analysis(), hlo.analyze(compiled.as_text())
    return dataclasses.replace(
        estimate,
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
    matrix, memory = MATRIX_SHARE * topology.flops, MEMORY_SHARE * chip.bandwidth
    operations = sum(
        n * max(w.flops / matrix, w.bytes / memory, OPERATION_SECONDS) for w, n in cost.work.items()
    )
    links = cost.sent / (LINK_SHARE * chip.links)
    return operations + links + COLLECTIVE_SECONDS * cost.collectives.total()
