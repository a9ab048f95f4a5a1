"""results.json of in-context regression, typed.

Shape glossary: R seeds, C numbers of examples, L layers, X points of a curve, G heads.
"""

from dataclasses import dataclass, field

from icljax.results import Estimate, Made, Number


@dataclass(frozen=True, kw_only=True)
class Against:
    """A model against an optimizer, paired by seed on the same tasks.

    Attributes:
        ratio: of their losses; below 1: the model's is lower.
        difference: mean distance of their predictions.
        cosine: of the gradients of their predictions with respect to the query.
    """

    ratio: Estimate
    difference: Estimate
    cosine: Estimate


@dataclass(frozen=True, kw_only=True)
class RegressionModel:
    """A trained model, or a tuned optimizer.

    Attributes:
        name: its number of layers or steps, or its kind of attention.
        loss: mean squared error.
        by_examples: [C], the same with each number of examples.
        curve: [X], the training loss.
        learned: the optimizer's numbers that it ended with, by their names; [L] where layers have
            their own.
        against: by the family of the optimizer.
    """

    name: str
    loss: Estimate
    by_examples: tuple[Estimate, ...]
    curve: tuple[Number, ...]
    learned: dict[str, Estimate | tuple[Estimate, ...]]
    against: dict[str, Against] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Construction:
    """The largest error of a prediction of constructed weights, which are an optimizer."""

    model: str
    optimizer: str
    error: float


@dataclass(frozen=True, kw_only=True)
class Regression(Made):
    """results.json of in-context regression.

    Attributes:
        zero_loss: of predicting 0.
        models: of each family, from 1 layer or step to L, or one a kind of attention.
        seconds: of each stage.
    """

    zero_loss: float
    models: dict[str, tuple[RegressionModel, ...]]
    constructions: tuple[Construction, ...]
    seconds: dict[str, Number]
