"""Candidates' log-probabilities -> the answer that is chosen; never from a number that is not one.

Shape glossary: R seeds, N examples, Y candidates.
"""

from collections.abc import Sequence

import numpy as np

from icljax.errors import UserError


def chosen(logprob: np.ndarray) -> np.ndarray:
    """The most probable candidate: [..., N, Y] -> int [..., N].

    Args:
        logprob: -inf for candidates that an example does not have.

    Raises:
        UserError: where one is NaN or +inf, or none is there. `argmax` would call that candidate 0
            or the NaN's, and it would be counted.
    """
    if defined(logprob).all():
        return logprob.argmax(-1)
    raise UserError("a log-probability is not finite; no answer can be chosen")


def defined(logprob: np.ndarray) -> np.ndarray:
    """Whether an answer can be chosen: [..., N, Y] -> bool [..., N]."""
    finite = np.isfinite(logprob)
    return (finite | np.isneginf(logprob)).all(-1) & finite.any(-1)


def check(
    setting: str, logprob: np.ndarray, where: Sequence[str], seeds: Sequence[int], cause: str
) -> None:
    """Raises a UserError that names the first example without a defined answer.

    Args:
        setting: names the setting.
        logprob: [N, Y], or [R, N, Y].
        where: what each example is called.
        seeds: the R seeds' numbers.
        cause: the likely cause, and what to do.
    """
    bad = np.argwhere(~defined(logprob))
    if not len(bad):
        return
    *seed, example = bad[0].tolist()
    of_seed = f" of seed {seeds[seed[0]]}" if seed else ""
    raise UserError(
        f"{where[example]}: {setting}{of_seed} gives log-probabilities "
        f"{[float(x) for x in logprob[(*seed, example)][:8]]}, which are not finite (so do "
        f"{len(bad) - 1} more); likely cause: {cause}"
    )
