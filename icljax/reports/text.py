"""How numbers are written, once: a dash for what is undefined, intervals in brackets."""

from collections.abc import Iterable, Mapping, Sequence

from icljax.results import Duplicates, Estimate, Model, Number

PERCENT = 1, 100  # digits and scale of a share that is written in percent


def number(value: Number, digits: int = 3, scale: float = 1) -> str:
    """A number; a dash for None, and no "-0.000"."""
    return "-" if value is None else f"{round(scale * value, digits) + 0.0:.{digits}f}"


def signed(value: Number, digits: int = 3, scale: float = 1) -> str:
    """A difference, with its sign."""
    text = number(value, digits, scale)
    return text if text[0] == "-" else f"+{text}"


def percent(value: Number) -> str:
    """A share as a percentage with one decimal."""
    return number(value, 1, 100)


def rate(value: Number) -> str:
    """A learning rate as people write it; a dash for None."""
    return "-" if value is None else f"{value:g}"


def interval(pair: Sequence[Number], digits: int = 3, scale: float = 1, signs: bool = False) -> str:
    """Text like "[low, high]"; nothing where one is undefined."""
    write = signed if signs else number
    return "" if None in pair else f"[{', '.join(write(v, digits, scale) for v in pair)}]"


def estimate(value: Estimate, digits: int = 3, scale: float = 1) -> str:
    """Text like "0.512 [0.498, 0.526]"; a dash where there is no mean."""
    return f"{number(value.mean, digits, scale)} {interval(value.interval, digits, scale)}".strip()


def plus_minus(value: Estimate, digits: int = 3) -> str:
    """Text like "0.512 ± 0.014", for an interval around its mean (Student's t)."""
    mean, high = value.mean, value.interval[1]
    if mean is None or high is None:
        return number(mean, digits)
    return f"{number(mean, digits)} ± {number(high - mean, digits)}"


def gap(difference: Estimate, digits: int = 3, scale: float = 1) -> str:
    """A paired difference: text like "+0.012 [-0.003, +0.027]"."""
    ends = interval(difference.interval, digits, scale, signs=True)
    return f"{signed(difference.mean, digits, scale)} {ends}".strip()


def listed(values: Iterable[Number], digits: int = 3, scale: float = 1) -> str:
    """Numbers in a row; a dash for none."""
    return ", ".join(number(v, digits, scale) for v in values) or "-"


def plural(count: int, noun: str) -> str:
    """Text like "1 task", "6 tasks"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def seconds(stages: Mapping[str, Number], digits: int = 0) -> str:
    """The sum, and what each stage took."""
    total = sum(filter(None, stages.values()))
    each = ", ".join(f"{k} {number(v, digits)}" for k, v in stages.items())
    return f"{number(total, digits)} ({each})"


def duration(value: float) -> str:
    """Seconds as a person reads them."""
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if value >= 2 * size:
            return f"{value / size:.3g} {unit}"
    return f"{float(f'{value:.2g}'):g} s"  # 110, not 1.1e+02


def duplicates_text(found: Duplicates) -> str:
    """How many examples have the normalised text of another, and what became of them."""
    done = "kept among" if found.kept else "left out of"
    return (
        f"{done} the demonstrations (by normalised text): {found.evaluated:,} train examples that "
        f"are also in the validation split, {found.repeated:,} draws that repeat a demonstration "
        "of their seed"
    )


def weights(model: Model) -> str:
    """A line that says what a model's weights are, and where from; "" where results do not."""
    if not model.source:
        return ""
    quantised = f"quantisation {model.quantisation}" if model.quantisation else ""
    parts = (model.tuning, quantised, f"computed in {model.dtype}", f"from {model.source}")
    return f"Weights of {model.name}: {'; '.join(filter(None, parts))}."
