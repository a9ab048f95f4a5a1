"""The text of a compiled program (`compiled.as_text()`): computations and instructions."""

import dataclasses
import math
import re
from collections.abc import Iterator

_BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128, "bf16": 16}
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array; `space` is 0 in the device's main memory."""

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Bytes, without padding."""
        known = _BITS.get(self.dtype)
        bits = known if known is not None else int(re.findall(r"\d+", self.dtype)[0])
        return -(-self.size * bits // 8)

    @property
    def main_bytes(self) -> int:
        """Bytes in main memory: none for an array placed on the chip."""
        return 0 if self.space else self.bytes


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: the arrays it gives (several for a tuple), and what it is given."""

    name: str
    shapes: tuple[Shape, ...]
    opcode: str
    given: str
    text: str
    root: bool

    @property
    def operands(self) -> list[str]:
        """Names of the instructions that it is given."""
        return re.findall(r"%([\w.\-]+)", self.given)

    def attribute(self, pattern: str) -> str:
        """The first group of `pattern` in the attributes, or an empty text."""
        found = re.search(pattern, self.text)
        return found.group(1) if found else ""

    def numbers(self, name: str) -> tuple[int, ...]:
        """The numbers of an attribute such as lhs_contracting_dims={1,2}."""
        return tuple(int(x) for x in re.findall(r"\d+", self.attribute(rf"\b{name}={{([\d,]*)}}")))


Computations = dict[str, dict[str, Instruction]]


def parse(text: str) -> tuple[Computations, str]:
    """The computations by name, each its instructions by name, and the entry's name.

    Raises:
        ValueError: when there is no entry computation in the text.
    """
    computations: Computations = {}
    entry, current = "", {}
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = computations[header.group(2)] = {}
            entry = header.group(2) if header.group(1) else entry
        elif found := _INSTRUCTION.match(line):
            instruction = _instruction(found.group(2), found.group(3), bool(found.group(1)))
            current[instruction.name] = instruction
    if not entry:
        raise ValueError("no ENTRY computation in the text; give compiled.as_text()")
    return computations, entry


def _instruction(name: str, rest: str, root: bool) -> Instruction:
    """`SHAPE opcode(operands), attributes`; shapes and operands may hold brackets themselves."""
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    opening = rest.index("(", end)
    closing = _closing(rest, opening)
    return Instruction(
        name,
        tuple(_shapes(rest[:end])),
        rest[end:opening].strip(),
        rest[opening + 1 : closing],
        rest[closing:],
        root,
    )


def _closing(text: str, start: int) -> int:
    depth = 0
    for found in re.finditer(r"[()]", text[start:]):
        depth += 1 if found.group() == "(" else -1
        if depth == 0:
            return start + found.start()
    raise ValueError(f"unbalanced brackets: {text[:80]}")


def _shapes(text: str) -> Iterator[Shape]:
    for dtype, dims, layout in _SHAPE.findall(text):
        space = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(int(x.removeprefix("<=")) for x in dims.split(",") if x)
        yield Shape(dtype, sizes, int(space.group(1)) if space else 0)
