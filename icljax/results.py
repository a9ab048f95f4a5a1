"""What a comparison leaves behind, typed: the scalars of results.json, the arrays of examples.npz.

`open_job` reads both from a job's folder. Every reader of results goes through this file, so that
the form of a result is said once. A number that is None was undefined (JSON has no NaN).

Shape glossary: R seeds, N examples, L layers, G key/value heads, Y answers.
"""

import dataclasses
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from icljax.catalog import SIMILARITIES
from icljax.errors import UserError
from icljax.runtime.workdir import EXAMPLES, RESULTS, reading_results

if TYPE_CHECKING:
    import xarray

SCHEMA = 2  # 1: the similarities stood beside the other fields (version 0.1.0)

Number = float | None
Interval = tuple[Number, Number]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean with its 95 % interval.

    Attributes:
        mean: over the defined values.
        interval: (low, high).
        per_seed: the mean of each of R seeds.
        seed_std: their standard deviation; None for one seed.
    """

    mean: Number = None
    interval: Interval = (None, None)
    per_seed: tuple[Number, ...] = ()
    seed_std: Number = None


UNKNOWN = Estimate()


@dataclass(frozen=True, kw_only=True)
class Series(Estimate):
    """An estimate that there is of every layer.

    Attributes:
        per_layer: [L].
        per_layer_interval: [L] of (low, high).
        per_layer_head: [L, G]; empty where heads are not told apart.
        f2t, f2t_interval: the mean where ZSL is wrong and FT and ICL are right.
    """

    per_layer: tuple[Number, ...] = ()
    per_layer_interval: tuple[Interval, ...] = ()
    per_layer_head: tuple[tuple[Number, ...], ...] = ()
    f2t: Number = None
    f2t_interval: Interval = (None, None)


@dataclass(frozen=True, kw_only=True)
class Similarity(Series):
    """A similarity of ICL and FT, and its baselines by their names in the catalog."""

    baselines: dict[str, Series] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Shares from 0 to 1 of right answers, in each setting and of the most frequent class."""

    zsl: Estimate
    icl: Estimate
    ft: Estimate
    majority: float

    def of(self, setting: str) -> Estimate:
        """The estimate of "zsl", "icl" or "ft"."""
        return {"zsl": self.zsl, "icl": self.icl, "ft": self.ft}[setting]


@dataclass(frozen=True, kw_only=True)
class Recall:
    """Rec2FTP over all seeds: a percentage, and the counts that it is the ratio of."""

    percent: Number
    interval: Interval
    icl_and_ft_right_zsl_wrong: int
    ft_right_zsl_wrong: int
    per_seed: tuple[Number, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Which settings are right together, and how often two predict the same: shares from 0 to 1.

    Attributes:
        patterns: by a letter for ZSL, ICL and FT, upper case where that setting is right.
        pairwise: by the two settings' names, e.g. "icl_ft".
        patterns_interval, pairwise_interval: 95 %.
    """

    patterns: dict[str, Number] = field(default_factory=dict)
    pairwise: dict[str, Number] = field(default_factory=dict)
    patterns_interval: dict[str, Interval] = field(default_factory=dict)
    pairwise_interval: dict[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Count:
    """So many of so many."""

    count: int
    of: int


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What is measured of a job.

    Attributes:
        accuracy_calibrated: None where every example has its own candidates.
        f2t: cases (seeds x examples) where ZSL is wrong and FT and ICL are right.
        similarities: by their names in the catalog.
        steps: how far finetuning goes, by their names in the catalog.
        update_share: of "icl" and "ft", the update's share of the norm beside W_ZSL.
        differences: paired; of "accuracy" by pairs of settings ("icl_zsl"), of a similarity by its
            baselines.
    """

    accuracy: Accuracy
    accuracy_calibrated: Accuracy | None = None
    rec2ftp: Recall
    agreement: Agreement = Agreement()
    f2t: Count
    similarities: dict[str, Similarity]
    steps: dict[str, Series] = field(default_factory=dict)
    update_share: dict[str, Series] = field(default_factory=dict)
    differences: dict[str, dict[str, Estimate]] = field(default_factory=dict)

    def gap(self, name: str, other: str) -> Estimate:
        """A paired difference; `UNKNOWN` where it was not taken."""
        return self.differences.get(name, {}).get(other, UNKNOWN)


@dataclass(frozen=True, kw_only=True)
class BestSeed:
    """The one seed that is reported, and the accuracies that it was selected by."""

    seed: int
    icl_accuracy: tuple[Number, ...]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """How learning rates, and a seed, were selected; tables are [R, learning rates]."""

    selected_on: str
    num_examples: int
    learning_rates: tuple[float, ...]
    learning_rate: tuple[float, ...]
    accuracy: tuple[tuple[Number, ...], ...]
    nll: tuple[tuple[Number, ...], ...]
    training_loss: tuple[tuple[Number, ...], ...]
    best_seed: BestSeed | None = None


@dataclass(frozen=True, kw_only=True)
class DoseResponse:
    """What each learning rate gives on the selection examples; lists run over the rates.

    Attributes:
        diverged: seeds whose run diverged.
        similarity, steps: by name; Series without intervals of layers.
    """

    examples: int
    measured_on: str
    learning_rates: tuple[float, ...]
    diverged: tuple[int, ...]
    accuracy: tuple[Estimate, ...]
    training_loss: tuple[Estimate, ...]
    similarity: dict[str, tuple[Similarity, ...]]
    steps: dict[str, tuple[Series, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Demonstrations:
    """How many were asked for, and used by each seed."""

    asked: int
    used: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """Examples with the normalised text of another, left out of the demonstrations or kept.

    Attributes:
        kept: whether `data.duplicates` is "keep".
        evaluated: of the train part, those with the text of an example of the validation split.
        repeated: of the draws of all seeds, those with the text of the seed's demonstration before.
    """

    kept: bool
    evaluated: int
    repeated: int


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where examples came from; `duplicates` None: not counted, as in version 0.1.0."""

    source: str
    fingerprint: str
    notes: tuple[str, ...] = ()
    evaluated: int
    validation_examples: int
    duplicates: Duplicates | None = None


@dataclass(frozen=True, kw_only=True)
class Model:
    """What was asked for as model, weights and attention, and what the checkpoint's weights are.

    Attributes:
        attention: "": the checkpoint's own.
        tuning: "base", "instruct", or what the file calls it; "" where nothing says so.
        quantisation: of the file that was dequantised, or "none" and the types it is stored in.
        dtype: of matrix products.
        source: where the weights come from; "" in results that are older than these four.
    """

    name: str
    weights: str = "trained"
    attention: str = ""
    fingerprint: str = ""
    tuning: str = ""
    quantisation: str = ""
    dtype: str = ""
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Device:
    """What it ran on."""

    platform: str
    kind: str
    count: int


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """How it was finetuned, of `catalog.METHODS`."""

    method: str = "gd"


@dataclass(frozen=True, kw_only=True)
class Made:
    """What every result was made with.

    Attributes:
        config: the whole config, as the user gave it.
        versions: of the packages that numbers depend on.
    """

    config: dict[str, Any]
    versions: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Provenance(Made):
    """The same, and the device."""

    device: Device


@dataclass(frozen=True, kw_only=True)
class Results(Measures, Provenance):
    """results.json of a comparison.

    Attributes:
        stand_in: what the data stand in for; "" where they are what was asked for.
        seconds: of each stage.
    """

    schema: int = SCHEMA
    task: str
    stand_in: str = ""
    template: str
    answers: tuple[str, ...]
    multiple_choice: bool = False
    record_position: str = "answer"
    finetune: Finetune = Finetune()
    selection: Selection
    dose_response: DoseResponse | None = None
    demonstrations: Demonstrations
    data: Data
    model: Model
    seconds: Mapping[str, Number] = field(default_factory=dict)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that were run."""
        return tuple(self.config["seeds"])

    @property
    def reported_seeds(self) -> tuple[int, ...]:
        """The seeds that the numbers are of."""
        best = self.selection.best_seed
        return self.seeds if best is None else (best.seed,)


def to_plain(results: Made) -> dict[str, Any]:
    """What results.json holds."""
    return json.loads(json.dumps(dataclasses.asdict(results), allow_nan=False))


def from_plain(found: dict[str, Any]) -> Results:
    """The results that results.json holds, in this layout or in that of version 0.1.0.

    Raises:
        msgspec.ValidationError: naming the field that has not the form of results.
    """
    if "schema" not in found:
        found = _from_0_1_0(found)
    return msgspec.convert(found, Results)


def _from_0_1_0(found: dict[str, Any]) -> dict[str, Any]:
    return _gathered(found) | {"stand_in": found.get("stand_in") or ""}


def _gathered(measures: dict[str, Any]) -> dict[str, Any]:
    """Measures whose similarities stand under one field."""
    similarities = {n: measures[n] for n in SIMILARITIES if n in measures}
    gaps = {k: v for k, v in measures.get("differences", {}).items() if v is not None}
    rest = {k: v for k, v in measures.items() if k not in SIMILARITIES}
    return rest | {"similarities": similarities, "differences": gaps}


def read(file: Path) -> Results | None:
    """The comparison in a results.json; None where the file holds something else.

    Raises:
        UserError: for a file that cannot be read, or that is not what it says it is.
    """
    return typed(decoded(file), file)


def typed(found: Any, file: Path) -> Results | None:
    """The same of what a file holds."""
    if not isinstance(found, dict) or not {"task", "accuracy", "model"} <= found.keys():
        return None  # another experiment's, or a config
    if is_crossed(found):
        return None
    with reading_results(file):
        return from_plain(found)


def decoded(file: Path) -> Any:
    """What a JSON file holds.

    Raises:
        UserError: for a file that cannot be read.
    """
    try:
        return msgspec.json.decode(file.read_bytes())
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise UserError(f"{file} cannot be read ({e}); remove it or make it again") from e


def is_crossed(found: Any) -> bool:
    """Whether this is what results.json of a crossed comparison holds (`records.Crossed`)."""
    return isinstance(found, dict) and {"claims", "matrix"} <= found.keys()


@dataclass(frozen=True)
class Job:
    """A finished comparison.

    Attributes:
        results: its scalars.
        examples: one row an evaluated example, on the axes seed, example, answer, layer, head;
            `seed` and `layer` (from 1) are coordinates, `index` is the row in the data's file.
    """

    results: Results
    examples: "xarray.Dataset"


def open_job(folder: str | Path) -> Job:
    """The results in a job's folder.

    Raises:
        UserError: where there are none, or they cannot be read.
    """
    folder = Path(folder)
    if not (folder / RESULTS).is_file():
        raise UserError(f"{folder} holds no {RESULTS}; give the --workdir of a finished job")
    results = read(folder / RESULTS)
    if results is None:
        raise UserError(
            f"{folder / RESULTS} is not of a comparison in paper mode; give another folder (of a "
            "crossed one: icljax.records.open_crossed)"
        )
    return Job(results, labelled(read_examples(folder), results.seeds))


def read_examples(folder: Path) -> dict[str, np.ndarray]:
    """The arrays in a job's folder.

    Raises:
        UserError: where they cannot be read.
    """
    try:
        with np.load(folder / EXAMPLES) as f:
            return dict(f)
    except (OSError, ValueError, zipfile.BadZipFile) as e:
        raise UserError(f"{folder / EXAMPLES} cannot be read ({e}); run the job again") from e


WITHOUT_SEEDS = ("index", "label", "pred_zsl", "logprob_zsl")  # of the arrays in examples.npz


def labelled(arrays: dict[str, np.ndarray], seeds: tuple[int, ...]) -> "xarray.Dataset":
    """Arrays of examples.npz on named axes; `seeds`: those that were run."""
    import xarray  # a second, which a job does without

    def axes(name: str) -> tuple[str, ...]:
        lead = ("example",) if name in WITHOUT_SEEDS else ("seed", "example")
        rest = ("answer",) if name.startswith("logprob") else ("layer", "head")
        return (lead + rest)[: arrays[name].ndim]

    by_layer = {n: x for n, x in arrays.items() if x.ndim > 2 and not n.startswith("logprob")}
    layers = max(x.shape[2] for x in by_layer.values())
    # A number without layers, as of the answers, has a layer axis of one in the file.
    arrays = arrays | {n: x[:, :, 0] for n, x in by_layer.items() if x.shape[2] < layers}
    dataset = xarray.Dataset({name: (axes(name), x) for name, x in arrays.items()})
    return dataset.assign_coords(seed=np.asarray(seeds), layer=np.arange(1, layers + 1))
