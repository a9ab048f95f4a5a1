"""What a compiled program does, read from its text: matrix FLOPs, bytes moved, collectives.

XLA's own cost analysis counts the body of a loop once, and a decoder is a loop over its layers.
Here everything is multiplied by the trips of the loops it stands in; of a conditional's branches
the dearest counts. Numbers are those of one device, since XLA partitions before it prints.

Bytes are an estimate: what each operation reads and writes in the device's main memory, slices
counted as slices; arrays that a TPU's compiler placed in on-chip memory do not count.
"""

import dataclasses
import functools
import math
import re
from collections import Counter
from collections.abc import Iterator

from icljax.preflight.hlo_text import Computations, Instruction, parse

COLLECTIVES = {
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
}
# They only rename what is there; the rest of control flow is walked through.
_MOVES_NOTHING = {
    "add-dependency",
    "after-all",
    "bitcast",
    "call",
    "conditional",
    "constant",
    "domain",
    "get-tuple-element",
    "opt-barrier",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
    "while",
}
_SLICES = {"dynamic-slice", "gather", "slice"}
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|\w+_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One communication between devices.

    Attributes:
        kind: one of `COLLECTIVES`.
        bytes: of the operands on one device.
        group: devices that take part together.
        op_name: where in the program it comes from.
        channel: its number in the program.
    """

    kind: str
    bytes: int
    group: int
    op_name: str
    channel: str = ""

    @property
    def sent(self) -> float:
        """Bytes that one device sends, by ring algorithms."""
        if self.kind == "collective-permute":
            return self.bytes
        rest = (self.group - 1) / self.group
        return self.bytes * {"all-reduce": 2 * rest, "all-gather": self.group * rest}.get(
            self.kind, rest
        )


@dataclasses.dataclass(frozen=True)
class Work:
    """One operation: FLOPs of its matrix products, bytes it moves in main memory."""

    flops: float
    bytes: float


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a program does on one device, each with the number of times it is done."""

    work: Counter[Work]
    collectives: Counter[Collective]

    @property
    def flops(self) -> float:
        """FLOPs of matrix products and convolutions, a multiplication and an addition each."""
        return sum(w.flops * n for w, n in self.work.items())

    @property
    def bytes(self) -> float:
        """Bytes moved in main memory."""
        return sum(w.bytes * n for w, n in self.work.items())

    @property
    def sent(self) -> float:
        """Bytes sent to other devices."""
        return sum(c.sent * n for c, n in self.collectives.items())

    def plus(self, other: "Cost", times: int = 1) -> "Cost":
        """This and `other`, done `times` times."""
        return Cost(
            self.work + Counter({work: n * times for work, n in other.work.items()}),
            self.collectives + Counter({c: n * times for c, n in other.collectives.items()}),
        )


def analyze(text: str) -> Cost:
    """What the program does whose text (`compiled.as_text()`) this is.

    Raises:
        ValueError: when there is no entry computation in the text.
    """
    computations, entry = parse(text)

    @functools.cache
    def of(name: str) -> Cost:
        cost = Cost(Counter(), Counter())
        channels: set[str] = set()
        for instruction in computations[name].values():
            called = [(of(inner), times) for inner, times in _calls(instruction, computations, of)]
            if instruction.opcode == "fusion":
                fused = _fused(
                    called[0][0], instruction, computations[name], computations, channels
                )
                cost = cost.plus(fused)
                continue
            for inner, times in [(_own(instruction, computations[name]), 1), *called]:
                cost = cost.plus(inner, times)
        return cost

    return of(entry)


def _calls(
    instruction: Instruction, computations: Computations, of: "functools._lru_cache_wrapper[Cost]"
) -> Iterator[tuple[str, int]]:
    """The computations that an instruction runs, and how many times."""
    if instruction.opcode == "while":
        trips = trip_count(instruction, computations)
        yield instruction.attribute(r"body=%?([\w.\-]+)"), trips
        yield instruction.attribute(r"condition=%?([\w.\-]+)"), trips
    elif instruction.opcode == "conditional":
        listed = instruction.attribute(_BRANCHES.pattern)
        branches = re.findall(r"[\w.\-]+", listed) or _CALLED.findall(instruction.text)
        yield max(branches, key=lambda name: (of(name).flops, of(name).bytes)), 1
    elif instruction.opcode in ("call", "fusion", "async-start"):
        yield from ((name, 1) for name in _CALLED.findall(instruction.text))


def trip_count(loop: Instruction, computations: Computations) -> int:
    """How often a loop runs: as XLA knows, else the constant that its condition compares with.

    A loop whose end the data decide counts once.
    """
    if known := loop.attribute(r"known_trip_count\W+n\W+(\d+)"):
        return int(known)
    condition = computations[loop.attribute(r"condition=%?([\w.\-]+)")]
    numbers = (i.given for i in condition.values() if i.opcode == "constant")
    bounds = [int(given) for given in numbers if given.isdecimal()]
    return bounds[0] if len(bounds) == 1 else 1


def _own(instruction: Instruction, around: dict[str, Instruction]) -> Cost:
    """What an instruction other than a fusion does itself, without what it calls."""
    inputs = [around[name] for name in instruction.operands if name in around]
    kind = instruction.opcode.removesuffix("-start")
    if kind in COLLECTIVES:
        return Cost(Counter(), Counter({_collective(kind, instruction, inputs): 1}))
    flops = 0.0
    if instruction.opcode == "dot":
        flops = _dot_flops(instruction, inputs)
    elif instruction.opcode == "convolution":
        flops = _convolution_flops(instruction, inputs)
    work = Work(flops, _moved(instruction, inputs))
    return Cost(Counter({work: 1} if work.flops or work.bytes else {}), Counter())


def _collective(kind: str, instruction: Instruction, inputs: list[Instruction]) -> Collective:
    size = sum(shape.bytes for i in inputs for shape in i.shapes)
    name = instruction.attribute(r'op_name="([^"]*)"')
    channel = instruction.attribute(r"channel_id=(\d+)")
    return Collective(kind, size, _group_size(instruction), name, channel)


def _group_size(instruction: Instruction) -> int:
    """Devices of a group, in the forms {{0,1},{2,3}}, [2,2]<=[4] and mesh['a'=2,'b'=2] {'a'}."""
    if listed := instruction.attribute(r"replica_groups=\{\{([\d,]+)\}"):
        return len(listed.split(","))
    if size := instruction.attribute(r"replica_groups=\[\d+,(\d+)\]"):
        return int(size)
    found = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", instruction.text)
    if found is None:  # collective-permute: a pair
        return 2
    sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", found.group(1))}
    return math.prod(sizes[axis] for axis in re.findall(r"'(\w+)'", found.group(2)))


def _dot_flops(instruction: Instruction, inputs: list[Instruction]) -> float:
    left = inputs[0].shapes[0].dims
    contracted = math.prod(left[axis] for axis in instruction.numbers("lhs_contracting_dims"))
    return 2.0 * instruction.shapes[0].size * contracted


def _convolution_flops(instruction: Instruction, inputs: list[Instruction]) -> float:
    """Also of what a TPU's compiler makes of a matrix product: batch axes as spatial ones."""
    labels = instruction.attribute(r"dim_labels=([^,\s]+)")
    image, kernel, output = re.split(r"_|->", labels)
    left, right = inputs[0].shapes[0].dims, inputs[1].shapes[0].dims
    flops = 2.0 * instruction.shapes[0].dims[output.index("b")]
    flops *= right[kernel.index("o")] * right[kernel.index("i")]
    flops /= int(instruction.attribute(r"batch_group_count=(\d+)") or 1)
    for axis in range(len(labels.split("_")[0]) - 2):
        digit = str(axis)
        inside, over = left[image.index(digit)], right[kernel.index(digit)]
        out = instruction.shapes[0].dims[output.index(digit)]
        flops *= _valid_pairs(inside, over, out, _window(instruction, axis))
    return flops


def _window(instruction: Instruction, axis: int) -> dict[str, int]:
    """Stride, low padding and dilations of one spatial axis."""

    def part(name: str, default: str) -> str:
        listed = instruction.attribute(rf"window={{[^}}]*\b{name}=([\d_x\-]+)")
        return listed.split("x")[axis] if listed else default

    return {
        "stride": int(part("stride", "1")),
        "low": int(part("pad", "0_0").split("_")[0]),
        "image": int(part("lhs_dilate", "1")),
        "kernel": int(part("rhs_dilate", "1")),
    }


def _valid_pairs(image: int, kernel: int, out: int, window: dict[str, int]) -> int:
    """Pairs of an output's and a kernel's place that meet an element, not padding or a hole."""
    places = (
        o * window["stride"] + k * window["kernel"] - window["low"]
        for o in range(out)
        for k in range(kernel)
    )
    end = (image - 1) * window["image"]
    return sum(0 <= place <= end and place % window["image"] == 0 for place in places)


def _moved(instruction: Instruction, inputs: list[Instruction]) -> float:
    """Bytes that an instruction other than a fusion reads and writes in main memory."""
    opcode = instruction.opcode
    if opcode in _MOVES_NOTHING or opcode.endswith(("-done", "-update")):
        return 0.0
    if opcode in ("copy-start", "slice-start"):  # between main memory and the chip's own
        return instruction.shapes[1].bytes
    if opcode == "custom-call" and re.search("AllocateBuffer|Bitcast", instruction.text):
        return 0.0
    out = sum(shape.main_bytes for shape in instruction.shapes)
    if opcode in _SLICES:
        return 2 * out
    if opcode == "dynamic-update-slice":
        return 2 * inputs[1].shapes[0].main_bytes
    return out + sum(shape.main_bytes for i in inputs for shape in i.shapes)


# ---- Fusions: what stays inside costs nothing ----------------------------------------------------


def _fused(
    inner: Cost,
    fusion: Instruction,
    around: dict[str, Instruction],
    computations: Computations,
    channels: set[str],
) -> Cost:
    """One operation with the FLOPs of all that it holds; each of its collectives once.

    A TPU's compiler writes an asynchronous collective into several fusions, its start, its end and
    what runs meanwhile, and a reduce-scatter as an all-reduce of which a slice is kept.

    Args:
        channels: of the collectives that the fusions before hold; those of this one are added.
    """
    collectives = {}
    for collective, times in inner.collectives.items():
        if collective.channel and collective.channel in channels:
            continue
        channels.add(collective.channel)
        kept = sum(shape.bytes for shape in fusion.shapes) * collective.group
        if collective.kind == "all-reduce" and kept == collective.bytes:
            name = fusion.attribute(r'op_name="([^"]*)"')
            collective = dataclasses.replace(collective, kind="reduce-scatter", op_name=name)
        collectives[collective] = times
    work = Work(inner.flops, _moved_by_fusion(fusion, around, computations))
    return Cost(Counter({work: 1} if work.flops or work.bytes else {}), Counter(collectives))


def _moved_by_fusion(
    fusion: Instruction, around: dict[str, Instruction], computations: Computations
) -> float:
    inside = computations[fusion.attribute(r"calls=%?([\w.\-]+)")]
    inputs = [around[name] for name in fusion.operands]
    given = [not any(shape.space for shape in i.shapes) for i in inputs]
    read = sum(_read_inside(p, inside, computations) for p in _parameters(inside, given))
    return read + _written(fusion, inside)


def _read_inside(
    parameter: Instruction, inside: dict[str, Instruction], computations: Computations
) -> float:
    """Bytes of a fusion's parameter that it reads: slices where only slices are taken."""
    whole = float(sum(shape.bytes for shape in parameter.shapes))
    read = 0.0
    for user, names in _users(parameter, inside):
        given = [operand in names for operand in user.operands]
        first = given[0] and not any(given[1:])
        if user.opcode in _SLICES and first:
            read += user.shapes[0].bytes
        elif user.opcode == "fusion":
            inner = computations[user.attribute(r"calls=%?([\w.\-]+)")]
            read += sum(_read_inside(p, inner, computations) for p in _parameters(inner, given))
        elif not (user.opcode == "dynamic-update-slice" and first):  # which updates in place
            return whole
    return min(read, whole)


def _parameters(inside: dict[str, Instruction], given: list[bool]) -> list[Instruction]:
    """The parameters whose numbers are `given`."""
    return [i for i in inside.values() if i.opcode == "parameter" and given[int(i.given)]]


def _users(
    source: Instruction, inside: dict[str, Instruction]
) -> list[tuple[Instruction, set[str]]]:
    """Who uses an instruction, itself or as a bitcast, with the names it goes by."""
    names, users = {source.name}, []
    for instruction in inside.values():  # in order: each after what it uses
        if names.isdisjoint(instruction.operands):
            continue
        if instruction.opcode == "bitcast":
            names.add(instruction.name)
        else:
            users.append((instruction, names))
    return users


def _written(fusion: Instruction, inside: dict[str, Instruction]) -> float:
    """Bytes of a fusion's results; of one that is updated in place, the update."""
    root = next(i for i in inside.values() if i.root)
    results = [inside[name] for name in root.operands] if root.opcode == "tuple" else [root]
    if len(results) != len(fusion.shapes):  # one operation with several results, e.g. a sort
        return sum(shape.main_bytes for shape in fusion.shapes)
    written = 0.0
    for shape, result in zip(fusion.shapes, results, strict=True):
        while result.opcode == "bitcast" and result.operands:
            result = inside[result.operands[0]]
        update = result.opcode == "dynamic-update-slice"
        size = inside[result.operands[1]].shapes[0].bytes if update else shape.bytes
        written += 0 if shape.space else size
    return written
