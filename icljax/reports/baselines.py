"""What stands beside a similarity: its baselines, by paired differences, and learning rates."""

from dataclasses import dataclass

from icljax.catalog import BASELINES, SIMILARITIES
from icljax.results import Estimate, Interval, Number, Results

# The similarities that tables of many columns show; the report's other tables show all.
COLUMNS = (
    "sim_aou",
    "sim_aou_unnormalized",
    "sim_am",
    "sim_am_delta",
    "kendall",
    "sim_update",
)


def measured_columns(results: Results) -> list[str]:
    """Those of `COLUMNS` that a job has."""
    return [name for name in COLUMNS if name in results.similarities]


TITLES = {"rec2ftp": "Rec2FTP"} | {name: m.title for name, m in SIMILARITIES.items()}
UNLIKE = "unlike_finetuning"  # Rec2FTP's baseline: ICL's rate on what finetuning leaves wrong


def name_of(other: str) -> str:
    """A baseline, as people read it."""
    return "ICL where FT stays wrong" if other == UNLIKE else BASELINES[other].title


@dataclass(frozen=True)
class Beside:
    """What stands beside a similarity.

    Attributes:
        own: its own numbers.
        difference: how far the similarity lies above it, on the same examples and seeds.
    """

    own: Estimate
    difference: Estimate


def beside(results: Results, metric: str) -> dict[str, Beside]:
    """What stands beside a similarity: its baselines by name."""
    similarity = results.similarities.get(metric)
    if similarity is None:
        return {}
    return {n: Beside(own, results.gap(metric, n)) for n, own in similarity.baselines.items()}


def rate_unlike(results: Results) -> Number:
    """Percentage of the examples that ZSL and FT both get wrong, and that ICL gets right."""
    patterns = results.agreement.patterns
    right, wrong = patterns.get("zIf"), patterns.get("zif")
    if right is None or wrong is None or right + wrong == 0:
        return None
    return 100 * right / (right + wrong)


def outcome(interval: Interval) -> str:
    """Where a difference's interval lies: "above", "level" (around 0), "below" or "unknown"."""
    low, high = interval
    if low is None or high is None:
        return "unknown"
    return "above" if low > 0 else "below" if high < 0 else "level"


def verdict(results: Results, metric: str) -> str:
    """Whether a similarity is above its baselines."""
    lows = {name: b.difference.interval[0] for name, b in beside(results, metric).items()}
    reached = [name_of(name) for name, low in lows.items() if low is not None and low <= 0]
    if reached:
        return f"not above: {', '.join(reached)}"
    return "unknown" if not lows or None in lows.values() else "above"


def seeds_above(results: Results, metric: str) -> str:
    """In how many seeds the similarity is above all that it is compared with."""
    columns = [b.difference.per_seed for b in beside(results, metric).values()]
    known = [row for row in zip(*columns, strict=False) if None not in row]
    return f"{sum(min(v or 0 for v in row) > 0 for row in known)} of {len(known)}"


# ------------------------------------------------------------------------------ learning rates


@dataclass(frozen=True, order=True)
class Dose:
    """One learning rate: accuracy of FT and a similarity."""

    rate: float
    accuracy: float
    similarity: float
    place: int


def doses(results: Results, metric: str) -> list[Dose]:
    """Every learning rate at which both are defined."""
    dose = results.dose_response
    if dose is None or metric not in dose.similarity:
        return []
    return [
        Dose(rate, accuracy.mean, similarity.mean, place)
        for place, (rate, accuracy, similarity) in enumerate(
            zip(dose.learning_rates, dose.accuracy, dose.similarity[metric], strict=True)
        )
        if accuracy.mean is not None and similarity.mean is not None
    ]


def highest_and_best(results: Results, metric: str) -> tuple[Dose, Dose] | None:
    """The rates with the highest similarity and with the best accuracy.

    None where fewer than two rates have both numbers.
    """
    known = doses(results, metric)
    if len(known) < 2:
        return None
    return max(known, key=lambda d: d.similarity), max(known, key=lambda d: d.accuracy)
