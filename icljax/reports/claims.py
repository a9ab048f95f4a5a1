"""What a similarity is above: its baselines and every control, by paired differences.

One rule for the job's own report and for the report of many jobs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from icljax.catalog import BASELINES, CONTROLS, METHODS, SIMILARITIES
from icljax.reports.study import Group
from icljax.reports.text import plural
from icljax.results import UNKNOWN, Estimate, Interval, Number, Results

# Stands wherever a verdict over all controls does.
CAVEAT = (
    "Read this verdict with care: controls that change ICL and FT alike (permuted labels, another "
    "task's answers, shuffled tokens) cannot refute that the two are alike, and a score that is "
    "not shown to be above a control is not shown to be equal to it. Another rule is to replace it."
)


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


@dataclass(frozen=True)
class Claim:
    """One of the paper's claims, and the similarities that it stands on: the paper's own first."""

    text: str
    metrics: tuple[str, ...]


CLAIMS = (
    Claim("ICL corrects what finetuning corrects", ("rec2ftp",)),
    Claim(
        "ICL and finetuning change attention's output in the same direction",
        ("sim_aou", "sim_aou_unnormalized"),
    ),
    Claim("ICL and finetuning attend to the query alike", ("sim_am", "sim_am_delta")),
    Claim("ICL and finetuning rank the training tokens alike", ("kendall", "kendall_example")),
)
TITLES = {"rec2ftp": "Rec2FTP"} | {name: m.title for name, m in SIMILARITIES.items()}
UNLIKE = "unlike_finetuning"  # Rec2FTP's baseline: ICL's rate on what finetuning leaves wrong


def name_of(other: str) -> str:
    """A baseline or control, as people read it."""
    if other == UNLIKE:
        return "ICL where FT stays wrong"
    return CONTROLS[other].title if other in CONTROLS else BASELINES[other].title


def is_control(name: str) -> bool:
    """Whether it is a control rather than a baseline."""
    return name not in BASELINES and name != UNLIKE


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
    """What stands beside a similarity, by name: its baselines, then the controls."""
    similarity = results.similarities.get(metric)
    if similarity is None:
        return {}
    found = {n: Beside(own, results.gap(metric, n)) for n, own in similarity.baselines.items()}
    for name, control in results.controls.items():
        own = control.similarities.get(metric, UNKNOWN)
        if own.mean is not None:
            found[name] = Beside(own, control.difference.get(metric, UNKNOWN))
    return found


def differences(results: Results, metric: str) -> dict[str, Interval]:
    """Interval of the job minus each baseline and each control, by their names.

    Similarities: 95 %, paired on examples and seeds. Rec2FTP is not paired: the job's interval
    against the nearer end of the control's; against `UNLIKE`, a share of the job's own examples, as
    it stands. (None, None): measured, but the difference is not known.
    """
    if metric == "rec2ftp":
        return _rec2ftp_differences(results)
    return {name: b.difference.interval for name, b in beside(results, metric).items()}


def _rec2ftp_differences(results: Results) -> dict[str, Interval]:
    low, high = results.rec2ftp.interval
    unlike = rate_unlike(results)
    others: dict[str, Interval] = {UNLIKE: (unlike, unlike)}
    others |= {name: control.rec2ftp.interval for name, control in results.controls.items()}
    return {
        name: (None, None)
        if low is None or high is None or a is None or b is None
        else (low - b, high - a)
        for name, (a, b) in others.items()
    }


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


# ------------------------------------------------------------------------------------- one job


def verdict(results: Results, metric: str) -> str:
    """Whether a similarity is above all that stands beside it."""
    lows = {name: low for name, (low, _) in differences(results, metric).items()}
    reached = [name_of(name) for name, low in lows.items() if low is not None and low <= 0]
    if reached:
        return f"not above: {', '.join(reached)}"
    return "unknown" if not lows or None in lows.values() else "above"


def seeds_above(results: Results, metric: str) -> str:
    """In how many seeds the similarity is above all that it is compared with."""
    columns = [b.difference.per_seed for b in beside(results, metric).values()]
    known = [row for row in zip(*columns, strict=False) if None not in row]
    return f"{sum(min(v or 0 for v in row) > 0 for row in known)} of {len(known)}"


# ------------------------------------------------------------------------------------ many jobs


@dataclass(frozen=True)
class Counts:
    """In how many tasks a similarity is above what it is compared with, level with it, below it."""

    above: int = 0
    level: int = 0
    below: int = 0
    unknown: int = 0


def others(group: Group, metrics: Iterable[str] = tuple(TITLES)) -> list[str]:
    """Baselines and controls that a group's tasks have for these metrics, baselines first."""
    names = {
        name: None
        for results in group.measured().values()
        for metric in metrics
        for name in differences(results, metric)
    }
    order = list(CONTROLS)
    return sorted(names, key=lambda n: (is_control(n), order.index(n) if n in order else -1))


def count(group: Group, metric: str, against: Sequence[str]) -> Counts:
    """Counts of tasks: above means above each of those named; below: below any of them."""
    tally = dict.fromkeys(("above", "level", "below", "unknown"), 0)
    for results in group.measured().values():
        intervals = differences(results, metric)
        outcomes = [outcome(intervals.get(name, (None, None))) for name in against]
        worst = next((o for o in ("below", "level", "unknown") if o in outcomes), "above")
        tally[worst if outcomes else "unknown"] += 1
    return Counts(**tally)


def headline(group: Group) -> tuple[str, list[tuple[str, str]]]:
    """The answer for one model and setting in a sentence; what it rests on: (point, sentences)."""
    tasks, against, kept = len(group.measured()), 0, 0
    for claim in CLAIMS:
        own = others(group, claim.metrics[:1])
        controlled = any(map(is_control, own))
        against += controlled
        kept += controlled and 2 * count(group, claim.metrics[0], own).above > tasks
    points = [(f"{claim.text}:", _claim_text(group, claim)) for claim in CLAIMS]
    if dose := _dose_text(group):
        points.append(dose)
    how = METHODS.get(group.setting, group.setting).split(",")[0]
    on = f"In {group.model}, finetuned by {how}, on {plural(tasks, 'task')}"
    if not against:
        return f"{on}, no control was measured, so that the similarities say little.", points
    answer = {0: "none", len(CLAIMS): "all"}.get(kept, str(kept))
    verb = "holds" if kept < 2 else "hold"
    return (
        f"{on}, {answer} of the paper's four claims {verb} against every control in more than half "
        "of the tasks.",
        points,
    )


def _claim_text(group: Group, claim: Claim) -> str:
    metric, tasks = claim.metrics[0], len(group.measured())
    own = others(group, [metric])
    controls = [name for name in own if is_control(name)]
    base = count(group, metric, [name for name in own if not is_control(name)])
    if base.unknown == tasks:
        return f"not known: the results hold no paired differences of {TITLES[metric]}."
    text = f"{TITLES[metric]} is above its baseline in {base.above} of {plural(tasks, 'task')}"
    if not controls:
        return f"{text}; no control was measured."
    text += f", above every control too in {count(group, metric, own).above}."
    for corrected in claim.metrics[1:]:
        above = count(group, corrected, others(group, [corrected])).above
        text += f" ({TITLES[corrected]}: {above}.)"
    above_each = {name: count(group, metric, [name]) for name in controls}
    # Level with it or below it in most tasks; where that is the same, below it in most.
    hardest = max(
        controls, key=lambda n: (above_each[n].level + above_each[n].below, above_each[n].below)
    )
    if not above_each[hardest].level + above_each[hardest].below:
        return text
    return (
        f"{text} Hardest to beat is the control \u201c{name_of(hardest)}\u201d: above it in "
        f"{above_each[hardest].above}, below it in {above_each[hardest].below}."
    )


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


def _dose_text(group: Group) -> tuple[str, str] | None:
    """What becomes of SimAOU and accuracy from the most accurate learning rate to the largest."""
    apart = known = 0
    for results in group.measured().values():
        found = doses(results, "sim_aou")
        if len(found) > 1:
            known += 1
            most, largest = max(found, key=lambda d: d.accuracy), max(found)
            apart += most.similarity < largest.similarity and largest.accuracy < most.accuracy
    if not known:
        return None
    return (
        "A high similarity does not mean useful finetuning:"
        if 2 * apart > known
        else "Similarity and useful finetuning:",
        "At the largest learning rate SimAOU is higher, and accuracy lower, than at the most "
        f"accurate one in {apart} of {plural(known, 'task')}.",
    )
