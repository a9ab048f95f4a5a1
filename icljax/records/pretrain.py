"""results.json of pretraining, typed.

Shape glossary: R seeds, C numbers of examples, L layers, X points of a curve, G heads.
"""

from dataclasses import dataclass

from icljax.results import Estimate, Interval, Number, Provenance


@dataclass(frozen=True, kw_only=True)
class OverSeeds:
    """A mean over R seeds with Student's 95 % interval, None for one seed."""

    mean: float
    interval: Interval | None
    per_seed: tuple[float, ...]

    @property
    def estimate(self) -> Estimate:
        """The same as an estimate."""
        return Estimate(
            mean=self.mean, interval=self.interval or (None, None), per_seed=self.per_seed
        )


@dataclass(frozen=True, kw_only=True)
class Compared(OverSeeds):
    """A variant's number; `difference`: minus the reference's, paired by seed (its own: None)."""

    difference: OverSeeds | None = None


# By variant, then by what is measured.
ComparedTable = dict[str, dict[str, Compared]]


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The text that models were trained on."""

    source: str
    train_documents: int
    validation_documents: int
    train_tokens: int
    validation_tokens: int
    vocab_size: int
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class TrainingCurves:
    """Losses in training, by variant: [R, X] at the X `steps`, and [R, steps of training]."""

    steps: tuple[int, ...]
    validation_loss: dict[str, tuple[tuple[float, ...], ...]]
    training_loss: dict[str, tuple[tuple[float, ...], ...]]


@dataclass(frozen=True, kw_only=True)
class Pretrain(Provenance):
    """results.json of models trained from scratch.

    Attributes:
        parameters: of a model.
        train_tokens: that it was trained on, counted as often as it saw them.
        reference: the variant that others are compared with.
        perplexity: of each variant on "train-S" and "validation-S", blocks of S tokens.
        accuracy: by task; in %, of each variant in each setting.
        learned: of each variant that learns any, [R] of number's name -> [L, G].
        icl_demonstrations: that fit, by task, one a draw.
        seconds: of each stage.
    """

    corpus: Corpus
    parameters: int
    train_tokens: int
    reference: str
    perplexity: ComparedTable
    accuracy: dict[str, ComparedTable]
    curves: TrainingCurves
    learned: dict[str, tuple[dict[str, tuple[tuple[float, ...], ...]], ...]]
    icl_demonstrations: dict[str, tuple[int, ...]]
    seconds: dict[str, Number]
