"""The kinds of attention: what each one is, as numbers; docs/attention.md has the table."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Kind:
    """How one layer mixes tokens.

    Attributes:
        base: "softmax" or "linear".
        loss: the linear family's in-context loss, "dot" or "square".
        eta: momentum of the recurrence, in [0, 1).
        alpha: what a step keeps of S, in (0, 1]; 1 - alpha is weight decay.
        beta: step size, above 0.
        feature_map: of queries and keys, "identity" or "elu+1".
        normalize: divide by the same recurrence on values of 1 ("dot" only): a weighted mean.
        unit_keys: scale keys to length 1, so that beta < 2 keeps "square" stable.
        ema: eta of EMA(V), in (0, 1); 0: no EMA is added.
        ema_normalized: scale EMA(V) by (1 - eta) / eta, so that its weights sum to at most 1.
        window: how many tokens softmax sees, the last one of them its own; 0: all earlier ones.
        cap: softmax is given cap * tanh(logits / cap) (Gemma 2); 0: the logits.
        learn: which of "eta", "alpha", "ema" (one a head) and "beta" (one a head and token) are
            parameters, starting at the values above.
    """

    base: str = "softmax"
    loss: str = "dot"
    eta: float = 0.0
    alpha: float = 1.0
    beta: float = 1.0
    feature_map: str = "identity"
    normalize: bool = False
    unit_keys: bool = False
    ema: float = 0.0
    ema_normalized: bool = False
    window: int = 0
    cap: float = 0.0
    learn: tuple[str, ...] = ()


KINDS = {
    "softmax": Kind(),
    "momentum": Kind(ema=0.5),
    "linear": Kind("linear"),
    "linear_momentum": Kind("linear", eta=0.5),
    "retention": Kind("linear", alpha=0.97),
    "delta": Kind("linear", "square", unit_keys=True),
    "delta_momentum": Kind("linear", "square", eta=0.3, beta=0.5, unit_keys=True),
    "delta_decay": Kind("linear", "square", alpha=0.97, unit_keys=True),
}


def has_momentum(kind: Kind) -> bool:
    """Whether M takes part; where it does not, forms leave it as it was."""
    return kind.eta > 0 or "eta" in kind.learn
