"""results.json of a crossed comparison, typed.

Shape glossary: R seeds, C numbers of examples, L layers, X points of a curve, G heads.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from icljax.errors import UserError
from icljax.results import (
    Data,
    Demonstrations,
    Estimate,
    Model,
    Number,
    Provenance,
    Results,
    decoded,
    is_crossed,
    read_examples,
    typed,
)
from icljax.runtime.workdir import RESULTS, reading_results

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A pair's similarity held against one link.

    Attributes:
        measure: of `catalog.CROSSED`.
        link: of `catalog.LINKS`.
        level: mean similarity of the link's pairs.
        difference: the own pairs' mean minus the link's.
        p_above, p_equal: adjusted for all claims of the family (Holm).
        verdict: "above", "equal", "open"; "": none is given.
    """

    measure: str
    link: str
    level: Number
    difference: Estimate
    p_above: Number
    p_equal: Number
    verdict: str = ""


@dataclass(frozen=True, kw_only=True)
class LayerContrast:
    """A label contrast by layer.

    Attributes:
        mean, low, high: [L]; 95 % intervals.
        p: [L], adjusted for looking at all layers (Holm).
    """

    mean: tuple[Number, ...]
    low: tuple[Number, ...]
    high: tuple[Number, ...]
    p: tuple[Number, ...]


@dataclass(frozen=True, kw_only=True)
class RateCurve:
    """What learning rates do, on selection examples, mean over seeds; None: diverged.

    Attributes:
        nll: calibrated mean negative log-probability of the right answer.
        accuracy: calibrated, a share.
        loss_start, loss_end: mean training loss of the first and of the last half of the steps.
        step: ||change|| / ||zero-shot|| of attention outputs.
        output, map, answers: similarity of own pairs, of `catalog.CROSSED`.
    """

    learning_rates: tuple[float, ...]
    nll: tuple[Number, ...]
    accuracy: tuple[Number, ...]
    loss_start: tuple[Number, ...]
    loss_end: tuple[Number, ...]
    step: tuple[Number, ...]
    output: tuple[Number, ...]
    map: tuple[Number, ...]
    answers: tuple[Number, ...]


@dataclass(frozen=True, kw_only=True)
class MatchedRate:
    """The learning rate at which another model or method takes the same step.

    Attributes:
        curve: on its first seed.
    """

    rate: float
    curve: RateCurve


@dataclass(frozen=True, kw_only=True)
class RateSelection:
    """How the one learning rate was chosen.

    Attributes:
        seeds: that it was chosen on.
        curve: of the model.
        untrained: of the model that learned nothing, on its first seed; None: not asked for.
        untrained_rate: that was given to it, for a step of the same size.
        methods: of other finetuning methods, the same.
    """

    rate: float
    seeds: tuple[int, ...]
    num_examples: int
    selected_on: str
    curve: RateCurve
    untrained: RateCurve | None = None
    untrained_rate: Number = None
    methods: dict[str, MatchedRate] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class OtherMethod:
    """Updates of another finetuning method on the demonstrations as drawn, at the same step.

    Attributes:
        accuracy, accuracy_calibrated: after finetuning by it.
        similarity: to ICL, own pairs, by measure.
        difference: by measure, that of `Crossed.own` minus it, paired by seed (and query).
    """

    accuracy: Estimate
    accuracy_calibrated: Estimate
    similarity: dict[str, Estimate]
    difference: dict[str, Estimate]


@dataclass(frozen=True, kw_only=True)
class Crossed(Provenance):
    """results.json of a crossed comparison.

    Attributes:
        classes: the words that the answers stand for, in the same order; empty: themselves.
        prompts, updates: their names, R of each, one a seed: "drawn", then variants of the
            demonstrations, then (updates) random ones, and those of other methods.
        accuracy, accuracy_calibrated: of "zsl", "icl", "ft", "icl_flipped", "ft_flipped".
        gain: calibrated accuracy of "icl" and "ft" above zero-shot, paired; of "icl_over_ft", ICL
            above FT (not in results before version 0.2).
        margin: within which a difference counts as none.
        no_verdicts: why claims get no verdict; "": they do.
        own: mean similarity of own pairs, right labels, by measure.
        variants: the same of other demonstrations on both sides, by measure and variant.
        methods: other ways to finetune, by name.
        claims: each measure against each link.
        matrix: by measure ("output", "map"): [P][U], mean over queries and layers; seeds with right
            labels, then with wrong ones.
        layers: label contrasts.
        heads: that of attention maps, in every head, layer by layer; None: no label contrasts.
        specific: by measure, what own pairs have above others in the part of each side that is owed
            to its demonstrations (minus the mean over seeds).
        steps: ||change|| / ||zero-shot|| of attention outputs, of the keys of `accuracy`, of other
            updates, and of "untrained_icl" and "untrained_ft".
        random_scale: of random updates by name, the norm of their change of the weights beside
            finetuning's.
        step_answers: KL(FT || ZSL) of the answer distribution, in nats.
        behaviour: of own pairs' answers: "divergence", "consistency", "rec2ftp" and
            "rec2ftp_calibrated" (shares).
        seeds_needed: for each claim ("measure/link"), seeds that would show equality; None: more
            than 1,000.
    """

    task: str
    template: str
    answers: tuple[str, ...]
    classes: tuple[str, ...] = ()
    stand_in: str = ""
    model: Model
    data: Data
    demonstrations: Demonstrations
    prompts: tuple[str, ...]
    updates: tuple[str, ...]
    selection: RateSelection
    accuracy: dict[str, Estimate]
    accuracy_calibrated: dict[str, Estimate]
    gain: dict[str, Estimate]
    margin: float
    no_verdicts: str = ""
    own: dict[str, Estimate]
    variants: dict[str, dict[str, Estimate]]
    methods: dict[str, OtherMethod] = field(default_factory=dict)
    claims: tuple[Claim, ...]
    matrix: dict[str, tuple[tuple[Number, ...], ...]]
    layers: dict[str, LayerContrast]
    heads: LayerContrast | None = None
    specific: dict[str, Estimate] = field(default_factory=dict)
    steps: dict[str, Estimate]
    step_answers: Estimate
    random_scale: dict[str, Estimate]
    behaviour: dict[str, Estimate]
    seeds_needed: dict[str, int | None]
    seconds: Mapping[str, Number] = field(default_factory=dict)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that were run."""
        return tuple(self.config["seeds"])


def read_crossed(file: Path) -> Crossed | None:
    """The crossed comparison in a results.json; None where the file holds something else.

    Raises:
        UserError: for a file that cannot be read, or that is not what it says it is.
    """
    found = read_comparison(file)
    return found if isinstance(found, Crossed) else None


def read_comparison(file: Path) -> Results | Crossed | None:
    """The comparison in a results.json, of either mode; None and errors as `read_crossed`."""
    found = decoded(file)
    if not is_crossed(found):
        return typed(found, file)
    with reading_results(file):
        return msgspec.convert(found, Crossed)


@dataclass(frozen=True)
class CrossedJob:
    """A finished crossed comparison.

    Attributes:
        results: its scalars.
        examples: its arrays on named axes: prompt, update, example, answer, layer; seed and ft_seed
            of contrasts, icl_labels and ft_labels of Kendall's tau. A prompt and an update have the
            coordinates of their seed and of their name (`prompts` and `updates` of the results).
    """

    results: Crossed
    examples: "xarray.Dataset"


# Of the arrays of a crossed comparison: each query's (example's) answers, and
#   step: the change's share of the zero-shot output's norm;
#   pair: of every prompt's and every update's change;
#   kendall: of own prompts and updates, drawn and on wrong labels;
#   query: of own pairs, with the update's change of the next query instead;
#   specific: of each side minus its mean over seeds;
#   label: of each side's difference between right and wrong labels; by head of own pairs alone.
CROSSED_AXES = {
    "logprob_zsl": ("example", "answer"),
    "logprob_icl": ("prompt", "example", "answer"),
    "logprob_ft": ("update", "example", "answer"),
    "step_icl": ("prompt", "example", "layer"),
    "step_ft": ("update", "example", "layer"),
    "query_output": ("seed", "example", "layer"),
    **dict.fromkeys(("pair_output", "pair_map"), ("prompt", "update", "example", "layer")),
    **dict.fromkeys(
        ("specific_output", "specific_map", "label_output", "label_map"),
        ("seed", "ft_seed", "example", "layer"),
    ),
    "label_map_head": ("seed", "example", "layer", "head"),
    "kendall": ("icl_labels", "ft_labels", "seed", "example", "layer"),
    "query_kendall": ("seed", "example", "layer"),
}


def open_crossed(folder: str | Path) -> CrossedJob:
    """The results and arrays in the folder of a crossed comparison.

    Raises:
        UserError: where there are none, or they cannot be read.
    """
    import xarray  # a second, which a job does without

    folder = Path(folder)
    found = read_crossed(folder / RESULTS) if (folder / RESULTS).is_file() else None
    if found is None:
        raise UserError(
            f"{folder} holds no {RESULTS} of a crossed comparison; give the --workdir of a "
            "finished one"
        )
    arrays = read_examples(folder)
    axes = {"index": ("example",), "label": ("example",), **CROSSED_AXES}
    seeds = np.asarray(found.seeds)
    dataset = xarray.Dataset({name: (axes[name], x) for name, x in arrays.items()})
    for axis, names in (("prompt", found.prompts), ("update", found.updates)):
        dataset = dataset.assign_coords(
            {
                f"{axis}_seed": (axis, np.tile(seeds, len(names))),
                f"{axis}_name": (axis, np.repeat(names, len(seeds))),
            }
        )
    layers = np.arange(1, dataset.sizes["layer"] + 1)
    return CrossedJob(found, dataset.assign_coords(seed=seeds, layer=layers))
