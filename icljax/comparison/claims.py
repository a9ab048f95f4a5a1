"""What a crossed comparison shows: own pairs against the links that could explain them.

Shape glossary: R seeds, N queries, L layers, Y answers; P = U = 2 R (right, then wrong labels).
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from icljax import metrics
from icljax.comparison import answers
from icljax.comparison.statistics import number
from icljax.metrics import SeedEstimate
from icljax.metrics.seeds import own as own
from icljax.records import Claim, LayerContrast
from icljax.results import Estimate, Number
from icljax.runtime.chunks import Arrays

# Claims that are judged together: of similarities, and of behaviour.
FAMILIES = (("output", "map", "label_output", "label_map"), ("answers",))
PER_SEED = ("icl", "ft", "icl_flipped", "ft_flipped")


def estimate(found: SeedEstimate, per_seed: np.ndarray | None = None) -> Estimate:
    """As results.json holds it.

    Args:
        per_seed: [R], each seed's value.
    """
    low, high = found.interval()
    each = () if per_seed is None else tuple(number(x) for x in per_seed)
    spread = None if per_seed is None or len(each) < 2 else number(np.std(per_seed, ddof=1))
    return Estimate(
        mean=number(found.mean),
        interval=(number(low), number(high)),
        per_seed=each,
        seed_std=spread,
    )


def of_values(values: np.ndarray) -> Estimate:
    """Of one value for each seed and query, [R, N]."""
    return estimate(metrics.seed_estimate(values), np.nanmean(values, 1))


def by_setting(icl: np.ndarray, ft: np.ndarray) -> dict[str, np.ndarray]:
    """Arrays of prompts and of updates [P, ...], by the setting and the labels, [R, ...] each."""
    seeds = len(icl) // 2
    return dict(zip(PER_SEED, (icl[:seeds], ft[:seeds], icl[seeds:], ft[seeds:]), strict=True))


def logprobs(arrays: Arrays) -> dict[str, np.ndarray]:
    """Log-probabilities of each setting, [N, Y] zero-shot and [R, N, Y] of the others."""
    rest = by_setting(arrays["logprob_icl"], arrays["logprob_ft"])
    return {"zsl": arrays["logprob_zsl"], **rest}


def right(logprob: dict[str, np.ndarray], labels: np.ndarray) -> dict[str, np.ndarray]:
    """Whether each setting chooses the right answer, bool."""
    return {s: answers.chosen(x) == labels for s, x in logprob.items()}


def calibrated(logprob: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Beside each label's mean over the queries."""
    return {s: np.asarray(metrics.calibrate(x)) for s, x in logprob.items()}


def accuracies(correct: dict[str, np.ndarray]) -> dict[str, Estimate]:
    """Shares of right answers; zero-shot, which has no seeds, without an interval."""
    out = {s: of_values(c.astype(float)) for s, c in correct.items() if c.ndim == 2}
    return {"zsl": Estimate(mean=number(correct["zsl"].mean())), **out}


def gains(correct: dict[str, np.ndarray]) -> dict[str, SeedEstimate]:
    """Accuracy of "icl" and "ft" above zero-shot, paired by query."""
    zsl = correct["zsl"].astype(float)
    return {s: metrics.seed_estimate(correct[s].astype(float) - zsl) for s in ("icl", "ft")}


@dataclasses.dataclass(frozen=True)
class Tested:
    """A difference, and its two p-values before they are adjusted."""

    difference: SeedEstimate
    per_seed: np.ndarray
    p_above: float
    p_equal: float


def tested(values: np.ndarray, margin: float) -> Tested:
    """Of paired differences [R, N]."""
    found = metrics.seed_estimate(values)
    equal = float(found.p_equal(margin))
    return Tested(found, np.nanmean(values, 1), float(found.p_above()), equal)


def tested_own(matrix: np.ndarray, margin: float) -> Tested:
    """Own pairs against those of different seeds, [R, R, N]; above: by permutation too."""
    found, each = metrics.own_estimate(matrix), metrics.own_minus_other(matrix)
    above = max(float(found.p_above()), metrics.permutation_p(np.nanmean(matrix, 2)))
    return Tested(found, np.nanmean(each, 1), above, float(found.p_equal(margin)))


def movements(arrays: Arrays) -> np.ndarray:
    """Correlation over queries of how far prompts and updates move the answers: [P, U, 1]."""
    zsl, icl, ft = (np.asarray(arrays[f"logprob_{s}"], np.float64) for s in ("zsl", "icl", "ft"))
    shape = (len(icl), len(ft), *zsl.shape)
    spread = [np.broadcast_to(x, shape) for x in (zsl, ft[None], icl[:, None])]
    return np.asarray(metrics.movement_correlation(*spread), np.float64)[..., None]


def tests(arrays: Arrays, margin: float) -> dict[tuple[str, str], Tested]:
    """Every claim by (measure, link)."""
    out = {}
    pairs = {k: _over_layers(arrays[f"pair_{k}"]) for k in ("output", "map")}
    for measure, matrix in (pairs | {"answers": movements(arrays)}).items():
        seeds = len(matrix) // 2
        true = matrix[:seeds, :seeds]
        out[measure, "other_demonstrations"] = tested_own(true, margin)
        wrong = {"ft": matrix[:seeds, seeds:], "icl": matrix[seeds:, :seeds]}
        for side, other in wrong.items():
            out[measure, f"wrong_labels_{side}"] = tested(own(true) - own(other), margin)
    seeds = len(pairs["output"]) // 2
    elsewhere = _over_layers(arrays["query_output"])[:seeds]
    here = own(pairs["output"][:seeds, :seeds])
    out["output", "other_query"] = tested(here - elsewhere, margin)
    for of in ("output", "map"):
        contrast = _over_layers(arrays[f"label_{of}"])
        out[f"label_{of}", "nothing"] = tested(own(contrast), margin)
    return out


def claims(found: dict[tuple[str, str], Tested], judge: bool) -> tuple[Claim, ...]:
    """Adjusted within each family, and judged where `judge`."""
    out = []
    for family in FAMILIES:
        of_family = {k: t for k, t in found.items() if k[0] in family}
        above = _adjusted(of_family, lambda t: t.p_above)
        equal = _adjusted(of_family, lambda t: t.p_equal)
        for key, t in of_family.items():
            out.append(
                Claim(
                    measure=key[0],
                    link=key[1],
                    difference=estimate(t.difference, t.per_seed),
                    p_above=number(above[key]),
                    p_equal=number(equal[key]),
                    verdict=metrics.verdict(above[key], equal[key]) if judge else "",
                )
            )
    return tuple(out)


def _adjusted(
    found: dict[tuple[str, str], Tested], of: Callable[[Tested], float]
) -> dict[tuple[str, str], float]:
    adjusted = metrics.holm({"/".join(key): of(t) for key, t in found.items()})
    return {key: adjusted["/".join(key)] for key in found}


def by_layer(contrast: np.ndarray) -> LayerContrast:
    """The own pairs' label contrast in each layer, [R, R, N, L]."""
    found = metrics.seed_estimate(own(contrast))
    low, high = found.interval()
    above = found.p_above()
    adjusted = metrics.holm({str(i): float(p) for i, p in enumerate(above)})
    numbers = [tuple(number(x) for x in values) for values in (found.mean, low, high)]
    return LayerContrast(
        mean=numbers[0],
        low=numbers[1],
        high=numbers[2],
        p=tuple(number(adjusted[str(i)]) for i in range(len(above))),
    )


def no_verdicts(gained: dict[str, SeedEstimate], num_seeds: int) -> str:
    """Why claims get no verdict; "": they do."""
    if num_seeds < metrics.FEWEST_SEEDS:
        return f"{num_seeds} seeds are too few for a verdict: give {metrics.FEWEST_SEEDS} or more"
    low = {s: float(g.interval()[0]) for s, g in gained.items()}
    poor = [s.upper() for s, bound in low.items() if not bound > 0]
    if poor:
        return (
            f"{' and '.join(poor)} not surely above zero-shot (calibrated accuracy): nothing to be "
            "alike in"
        )
    return ""


def seeds_needed(found: dict[tuple[str, str], Tested], margin: float) -> dict[str, int | None]:
    """For each claim, how many seeds would show that a difference of 0 is within the margin."""
    out: dict[str, int | None] = {}
    for family in FAMILIES:
        keys = [key for key in found if key[0] in family]
        for key in keys:
            spread = float(np.std(found[key].per_seed, ddof=1))
            alpha = 0.05 / len(keys)
            name = "/".join(key)
            out[name] = None if math.isnan(spread) else metrics.seeds_needed(spread, margin, alpha)
    return out


def _over_layers(x: np.ndarray) -> np.ndarray:
    """Mean over the last axis; of queries without a number NaN."""
    return np.asarray(np.mean(np.asarray(x, np.float64), -1))


def matrix(pairs: np.ndarray) -> tuple[tuple[Number, ...], ...]:
    """Mean over queries and layers of [P, U, N, L]."""
    means = np.nanmean(np.asarray(pairs, np.float64), (2, 3))
    return tuple(tuple(number(x) for x in row) for row in means)


def behaviour(
    logprob: dict[str, np.ndarray], correct: dict[str, np.ndarray]
) -> dict[str, Estimate]:
    """How far apart the answers of own pairs are, and whether the same are right."""
    divergence = np.asarray(metrics.js_divergence(logprob["icl"], logprob["ft"]))
    consistency = np.asarray(metrics.error_consistency(correct["icl"], correct["ft"]))
    return {
        "divergence": of_values(divergence),
        "consistency": estimate(metrics.seed_estimate(consistency[:, None]), consistency),
    }
