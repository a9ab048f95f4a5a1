"""results.json of the dual form, typed."""

from dataclasses import dataclass

from icljax.results import Made, Model, Number

# Largest relative differences by what is compared, of outputs, states and gradients.
Differences = dict[str, dict[str, Number]]


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """The optimizer that a kind of attention is: in formulas, optax code, and in words."""

    loss: str
    update: str
    optax: str
    words: str


@dataclass(frozen=True, kw_only=True)
class Equality:
    """How far attention is from optax in one dtype, and whether the largest is below the bar."""

    largest: Number
    differences: Differences
    holds: bool


@dataclass(frozen=True, kw_only=True)
class DualRow:
    """One kind of attention on one variant of the examples."""

    kind: str
    variant: str
    float64: Equality
    float32: Equality

    @property
    def holds(self) -> bool:
        """Whether it does in both dtypes."""
        return self.float64.holds and self.float32.holds


@dataclass(frozen=True, kw_only=True)
class FormRow:
    """How far one form of attention is from the recurrent one; `largest` by part of the result."""

    kind: str
    form: str
    largest: dict[str, Number]
    holds: bool
    differences: Differences


@dataclass(frozen=True, kw_only=True)
class Dual(Made):
    """results.json of the dual form.

    Attributes:
        examples: their sizes: layers L, tokens T, heads G, width K.
        bars: of relative differences, by dtype.
        kinds: by their names.
        holds: whether every row does.
        seconds: of each stage.
        model: whose keys and values they are; None where they are random.
    """

    examples: dict[str, int]
    model: Model | None = None
    bars: dict[str, float]
    kinds: dict[str, Optimizer]
    dual: tuple[DualRow, ...]
    forms: tuple[FormRow, ...]
    holds: bool
    seconds: dict[str, Number]
