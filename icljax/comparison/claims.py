"""What a crossed comparison shows: own pairs against the links that could explain them.

Shape glossary: as in icljax/comparison/crossed.py.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from icljax import metrics
from icljax.catalog import LINKS, METHODS, SYNTHETIC
from icljax.comparison import answers
from icljax.comparison.crossed import DRAWN, Plan
from icljax.comparison.statistics import number
from icljax.metrics import SeedEstimate
from icljax.metrics.seeds import own as own
from icljax.records import Claim, LayerContrast, OtherMethod, RateCurve
from icljax.results import Estimate, Number
from icljax.runtime.chunks import Arrays

# Claims that are judged together: of similarities, and of behaviour.
FAMILIES = (("output", "map", "kendall", "label_output", "label_map"), ("answers", "label_answers"))


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


def right(logprob: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether the right answer is chosen, bool [..., N]."""
    return np.asarray(answers.chosen(logprob) == labels)


def calibrated(logprob: np.ndarray) -> np.ndarray:
    """Beside each label's mean over the queries."""
    return np.asarray(metrics.calibrate(logprob))


def settings(plan: Plan, arrays: Arrays) -> dict[str, np.ndarray]:
    """Log-probabilities: "zsl" [N, Y]; "icl", "ft", "icl_flipped", "ft_flipped" [R, N, Y]."""
    out = {"zsl": arrays["logprob_zsl"]}
    variants = {DRAWN: "", plan.contrasts: "_flipped"} if plan.contrasts else {DRAWN: ""}
    for variant, suffix in variants.items():
        out[f"icl{suffix}"] = plan.of_prompts(arrays["logprob_icl"], variant)
        out[f"ft{suffix}"] = plan.of_updates(arrays["logprob_ft"], variant)
    return out


def accuracies(correct: dict[str, np.ndarray]) -> dict[str, Estimate]:
    """Shares of right answers; zero-shot, which has no seeds, without an interval."""
    out = {s: of_values(c.astype(float)) for s, c in correct.items() if c.ndim == 2}
    return {"zsl": Estimate(mean=number(correct["zsl"].mean())), **out}


def gains(correct: dict[str, np.ndarray]) -> dict[str, SeedEstimate]:
    """Accuracy of "icl" and "ft" above zero-shot, and of "icl_over_ft", paired by query."""
    zsl, icl, ft = (correct[s].astype(float) for s in ("zsl", "icl", "ft"))
    pairs = {"icl": icl - zsl, "ft": ft - zsl, "icl_over_ft": icl - ft}
    return {s: metrics.seed_estimate(gain) for s, gain in pairs.items()}


# ---- The learning rates ------------------------------------------------------------------------


def rate_curve(
    plan: Plan, rates: Sequence[float], arrays: Arrays, labels: np.ndarray, loss: np.ndarray
) -> RateCurve:
    """What every learning rate does, mean over seeds (and queries, and layers).

    Args:
        plan: its updates are named as the rates.
        labels: int32 [N].
        loss: [rates, steps], training losses.
    """
    steps = loss.shape[1]
    logprob = arrays["logprob_ft"]
    prompts = arrays["logprob_icl"]
    measured = [field.name for field in dataclasses.fields(RateCurve)][1:]
    values: dict[str, list[Number]] = {name: [] for name in measured}
    for name, of_rate in zip(plan.updates, loss, strict=True):
        of = plan.of_updates(logprob, name)
        values["nll"].append(number(calibrated_nll(of, labels)))
        values["accuracy"].append(number(_if_defined(of, right(calibrated(of), labels))))
        values["loss_start"].append(number(of_rate[: (steps + 1) // 2].mean()))
        values["loss_end"].append(number(of_rate[steps // 2 :].mean()))
        values["step"].append(number(plan.of_updates(arrays["step_ft"], name).mean()))
        for key in ("output", "map"):
            pairs = own(plan.block(arrays[f"pair_{key}"], DRAWN, name))
            values[key].append(number(pairs.mean()))
        values["answers"].append(number(_movement(arrays["logprob_zsl"], prompts, of).mean()))
    return RateCurve(learning_rates=tuple(rates), **{k: tuple(x) for k, x in values.items()})


def _if_defined(logprob: np.ndarray, values: np.ndarray) -> float:
    return float(values.mean()) if np.isfinite(logprob).all() else math.nan


def calibrated_nll(logprob: np.ndarray, labels: np.ndarray) -> float:
    """Mean -log p of the right answer, each label's mean over the examples taken out; or NaN.

    Args:
        logprob: [seeds, N, Y].
    """
    with np.errstate(invalid="ignore"):  # a run that diverged is NaN
        centred = np.asarray(metrics.calibrate(logprob), np.float64)
        among = centred - np.logaddexp.reduce(centred, -1, keepdims=True)
    return float(-np.take_along_axis(among, labels[None, :, None], -1).mean())


def _movement(zsl: np.ndarray, icl: np.ndarray, ft: np.ndarray) -> np.ndarray:
    """Correlation over queries of how far own prompts and updates move the answers: [R]."""
    zsl, icl, ft = (np.asarray(x, np.float64) for x in (zsl, icl, ft))
    moved = metrics.movement_correlation(np.broadcast_to(zsl, icl.shape), ft, icl)
    return np.asarray(moved, np.float64)


# ---- The claims --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Tested:
    """A difference, and its two p-values before they are adjusted.

    Attributes:
        link: mean similarity of the pairs that the own ones are held against.
        difference, per_seed: own minus those, its values [R].
    """

    link: float
    difference: SeedEstimate
    per_seed: np.ndarray
    p_above: float
    p_equal: float


def tested(pairs: np.ndarray, link: np.ndarray, margin: float) -> Tested:
    """Of own pairs and those of a link, [R, N] each."""
    values = np.asarray(pairs - link, np.float64)
    found = metrics.seed_estimate(values)
    equal = float(found.p_equal(margin))
    level = float(np.nanmean(link))
    return Tested(level, found, np.nanmean(values, 1), float(found.p_above()), equal)


def tested_own(matrix: np.ndarray, margin: float) -> Tested:
    """Own pairs against those of different seeds, [R, R, N]; above: by permutation too."""
    found, each = metrics.own_estimate(matrix), metrics.own_minus_other(matrix)
    above = max(float(found.p_above()), metrics.permutation_p(np.nanmean(matrix, 2)))
    level = float(np.nanmean(matrix[~np.eye(len(matrix), dtype=bool)]))
    return Tested(level, found, np.nanmean(each, 1), above, float(found.p_equal(margin)))


def movements(arrays: Arrays) -> np.ndarray:
    """Correlation over queries of how far prompts and updates move the answers: [P, U, 1]."""
    zsl, icl, ft = (np.asarray(arrays[f"logprob_{s}"], np.float64) for s in ("zsl", "icl", "ft"))
    shape = (len(icl), len(ft), *zsl.shape)
    spread = [np.broadcast_to(x, shape) for x in (zsl, ft[None], icl[:, None])]
    return np.asarray(metrics.movement_correlation(*spread), np.float64)[..., None]


def measured(arrays: Arrays) -> dict[str, np.ndarray]:
    """Every measure of pairs, mean over layers: [P, U, N], of answers [P, U, 1]."""
    pairs = {k: _over_layers(arrays[f"pair_{k}"]) for k in ("output", "map")}
    return pairs | {"answers": movements(arrays)}


def tests(
    plan: Plan,
    arrays: Arrays,
    values: dict[str, np.ndarray],
    untrained: Arrays | None,
    links: Collection[str],
    margin: float,
) -> dict[tuple[str, str], Tested]:
    """Every claim by (measure, link).

    Args:
        values: `measured(arrays)`.
        untrained: as in `experiments.crossed.Measured`.
        links: of `catalog.LINKS`.
    """
    out: dict[tuple[str, str], Tested] = {}
    learned_nothing = measured(untrained) if untrained else {}
    for measure, matrix in values.items():
        drawn = plan.block(matrix, DRAWN, DRAWN)
        pairs = own(drawn)
        against: dict[str, np.ndarray] = {}
        if plan.contrasts:
            against["wrong_labels_ft"] = own(plan.block(matrix, DRAWN, plan.contrasts))
            against["wrong_labels_icl"] = own(plan.block(matrix, plan.contrasts, DRAWN))
        if plan.contrasts and measure == "output":
            against["other_query"] = _over_layers(arrays["query_output"])
        for name in (name for name in plan.updates if name in SYNTHETIC):
            against[name] = own(plan.block(matrix, DRAWN, name))
        found = {k: tested(pairs, link, margin) for k, link in against.items()}
        found["other_demonstrations"] = tested_own(drawn, margin)
        if untrained:
            # Attention's numbers are paired by query; that of the answers is one of all queries.
            same = pairs if measure == "answers" else pairs[:, untrained["place"]]
            found["untrained"] = tested(same, own(learned_nothing[measure]), margin)
        out |= {(measure, link): found[link] for link in LINKS if link in found and link in links}
    out |= {("kendall", k): t for k, t in _ranked(plan, arrays, untrained, margin) if k in links}
    if not plan.contrasts:
        return out
    contrasts = {of: own(_over_layers(arrays[f"label_{of}"])) for of in ("output", "map")}
    contrasts["answers"] = label_movements(plan, arrays)[:, None]
    for of, contrast in contrasts.items():
        out[f"label_{of}", "nothing"] = tested(contrast, np.zeros_like(contrast), margin)
    return out


def label_movements(plan: Plan, arrays: Arrays) -> np.ndarray:
    """`movements` of own pairs, with wrong labels in zero-shot's place: [R].

    How far right labels move the answers beside wrong ones, of ICL and of FT.
    """
    sides = []
    for side, of in (("icl", plan.of_prompts), ("ft", plan.of_updates)):
        logprob = np.asarray(arrays[f"logprob_{side}"], np.float64)
        sides.append(of(logprob, DRAWN) - of(logprob, plan.contrasts))
    nothing = np.zeros(sides[0].shape[1:])
    return _movement(nothing, *sides)


def _ranked(
    plan: Plan, arrays: Arrays, untrained: Arrays | None, margin: float
) -> Iterator[tuple[str, Tested]]:
    """Links of Kendall's tau, in which only pairs of one seed rank the same tokens."""
    if not plan.tokens:
        return
    tau = _over_layers(arrays["kendall"])
    if plan.contrasts:
        yield "wrong_labels_ft", tested(tau[0, 0], tau[0, 1], margin)
        yield "wrong_labels_icl", tested(tau[0, 0], tau[1, 0], margin)
    yield "other_query", tested(tau[0, 0], _over_layers(arrays["query_kendall"]), margin)
    if untrained:
        other = _over_layers(untrained["kendall"])[0, 0]
        yield "untrained", tested(tau[0, 0][:, untrained["place"]], other, margin)


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
                    level=number(t.link),
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
    """The own pairs' label contrast in each layer (or head), [R, N, L]."""
    found = metrics.seed_estimate(contrast)
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


def contrasts(arrays: Arrays) -> dict[str, Any]:
    """Label contrasts by layer and head, and own pairs minus others of the specific parts."""
    heads = arrays["label_map_head"]
    specific = {of: _over_layers(arrays[f"specific_{of}"]) for of in ("output", "map")}
    return {
        "layers": {k: by_layer(own(arrays[k])) for k in ("label_output", "label_map")},
        "heads": by_layer(heads.reshape(*heads.shape[:2], -1)),
        "specific": {
            of: estimate(metrics.own_estimate(x), np.nanmean(metrics.own_minus_other(x), 1))
            for of, x in specific.items()
        },
    }


def no_verdicts(gained: dict[str, SeedEstimate], num_seeds: int) -> str:
    """Why claims get no verdict; "": they do."""
    if num_seeds < metrics.FEWEST_SEEDS:
        return f"{num_seeds} seeds are too few for a verdict: give {metrics.FEWEST_SEEDS} or more"
    low = {s: float(gained[s].interval()[0]) for s in ("icl", "ft")}
    poor = [s.upper() for s, bound in low.items() if not bound > 0]
    if poor:
        return (
            f"{' and '.join(poor)} not surely above zero-shot (calibrated accuracy): nothing to be "
            "alike in"
        )
    return ""


def seeds_needed(spreads: dict[tuple[str, str], float], margin: float) -> dict[str, int | None]:
    """For each claim, how many seeds would show that a difference of 0 is within the margin.

    Args:
        spreads: by (measure, link), standard deviation of a seed's difference.
    """
    out: dict[str, int | None] = {}
    for family in FAMILIES:
        keys = [key for key in spreads if key[0] in family]
        for key in keys:
            spread, alpha = spreads[key], 0.05 / len(keys)
            name = "/".join(key)
            out[name] = None if math.isnan(spread) else metrics.seeds_needed(spread, margin, alpha)
    return out


def _over_layers(x: np.ndarray) -> np.ndarray:
    """Mean over the last axis; of queries without a number NaN."""
    return np.asarray(np.mean(np.asarray(x, np.float64), -1))


def matrix(plan: Plan, pairs: np.ndarray) -> tuple[tuple[Number, ...], ...]:
    """Mean over queries and layers of [P, U, N, L]: drawn, then with wrong labels."""
    names = [name for name in (DRAWN, plan.contrasts) if name]
    means = np.nanmean(np.asarray(pairs, np.float64), (2, 3))
    blocks = [[plan.block(means, p, u) for u in names] for p in names]
    return tuple(tuple(number(x) for x in row) for row in np.block(blocks))


def variants(plan: Plan, values: dict[str, np.ndarray]) -> dict[str, dict[str, Estimate]]:
    """Own pairs of the other variants, on both sides at once: described, not counted."""
    names = [name for name in plan.prompts if name != DRAWN]
    return {
        measure: {name: of_values(own(plan.block(x, name, name))) for name in names}
        for measure, x in values.items()
    }


def methods(plan: Plan, arrays: Arrays, values: dict[str, np.ndarray]) -> dict[str, OtherMethod]:
    """Own pairs whose update is another method's: described, not counted.

    Args:
        values: `measured(arrays)`.
    """
    first = {k: own(plan.block(x, DRAWN, DRAWN)) for k, x in values.items()}

    def one(name: str) -> OtherMethod:
        logprob = plan.of_updates(arrays["logprob_ft"], name)
        other = {k: own(plan.block(x, DRAWN, name)) for k, x in values.items()}
        answered = (logprob, calibrated(logprob))
        plain, centred = (of_values(right(x, arrays["label"]).astype(float)) for x in answered)
        return OtherMethod(
            accuracy=plain,
            accuracy_calibrated=centred,
            similarity={k: of_values(x) for k, x in other.items()},
            difference={k: of_values(first[k] - x) for k, x in other.items()},
        )

    return {name: one(name) for name in plan.updates if name in METHODS}


def behaviour(
    logprob: dict[str, np.ndarray], correct: dict[str, np.ndarray], centred: dict[str, np.ndarray]
) -> dict[str, Estimate]:
    """How far apart the answers of own pairs are, and whether the same are right.

    Args:
        correct, centred: whether each setting is right, plain and calibrated, bool.
    """
    divergence = np.asarray(metrics.js_divergence(logprob["icl"], logprob["ft"]))
    consistency = np.asarray(metrics.error_consistency(correct["icl"], correct["ft"]))
    return {
        "divergence": of_values(divergence),
        "consistency": estimate(metrics.seed_estimate(consistency[:, None]), consistency),
        "rec2ftp": _recall(correct),
        "rec2ftp_calibrated": _recall(centred),
    }


def _recall(correct: dict[str, np.ndarray]) -> Estimate:
    """Rec2FTP as a share, of all seeds together."""
    ft_only = (~correct["zsl"] & correct["ft"]).astype(float)
    recovered = ft_only * correct["icl"]
    with np.errstate(invalid="ignore"):  # a seed in which finetuning repairs nothing
        each = recovered.sum(1) / ft_only.sum(1)
    return estimate(metrics.ratio_estimate(recovered, ft_only), each)


def steps(plan: Plan, arrays: Arrays, untrained: Arrays | None) -> dict[str, Estimate]:
    """||change|| / ||zero-shot|| of attention outputs, by setting."""
    found = {"icl": plan.of_prompts(arrays["step_icl"], DRAWN)}
    found |= {name: plan.of_updates(arrays["step_ft"], name) for name in plan.updates}
    found["ft"] = found.pop(DRAWN)
    if plan.contrasts:
        found["icl_flipped"] = plan.of_prompts(arrays["step_icl"], plan.contrasts)
        found["ft_flipped"] = found.pop(plan.contrasts)
    if untrained:
        found |= {f"untrained_{s}": untrained[f"step_{s}"] for s in ("icl", "ft")}
    return {name: of_values(_over_layers(x)) for name, x in found.items()}


def found(
    plan: Plan, arrays: Arrays, untrained: Arrays | None, study: ConfigDict
) -> dict[str, Any]:
    """The fields of `records.Crossed` that the arrays say.

    Args:
        study: config.study.
    """
    logprob, labels, margin = settings(plan, arrays), arrays["label"], study.margin
    correct = {s: right(x, labels) for s, x in logprob.items()}
    centred = {s: right(calibrated(x), labels) for s, x in logprob.items()}
    gained = gains(centred)
    values = measured(arrays)
    tested = tests(plan, arrays, values, untrained, study.links, margin)
    spreads = {key: float(np.std(t.per_seed, ddof=1)) for key, t in tested.items()}
    silent = no_verdicts(gained, plan.seeds)
    of_answers = metrics.kl_divergence(
        logprob["ft"], np.broadcast_to(logprob["zsl"], logprob["ft"].shape)
    )
    return {
        "accuracy": accuracies(correct),
        "accuracy_calibrated": accuracies(centred),
        "gain": {s: estimate(g) for s, g in gained.items()},
        "margin": margin,
        "no_verdicts": silent,
        "own": {k: of_values(own(plan.block(x, DRAWN, DRAWN))) for k, x in values.items()}
        | ({"kendall": of_values(_over_layers(arrays["kendall"])[0, 0])} if plan.tokens else {}),
        "variants": variants(plan, values),
        "methods": methods(plan, arrays, values),
        "claims": claims(tested, judge=not silent),
        "matrix": {k: matrix(plan, arrays[f"pair_{k}"]) for k in ("output", "map")},
        **(contrasts(arrays) if plan.contrasts else {"layers": {}}),
        "steps": steps(plan, arrays, untrained),
        "step_answers": of_values(np.asarray(of_answers)),
        "behaviour": behaviour(logprob, correct, centred),
        "seeds_needed": seeds_needed(spreads, margin),
    }
