"""The examples of one split: which of them have one text, and which are drawn.

Two examples have one text where their fields, and their choices in whatever order, are equal once
normalised (`icljax.data.task.normalized`): Unicode's NFKC, lower case, runs of whitespace made one
blank, stripped. Their labels may differ.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence

import numpy as np

from icljax.data.task import normalized
from icljax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """The examples of one split.

    Attributes:
        name: the split's name in the source.
        fields: N dicts, template field -> text.
        labels: int32 [N], position in the task's answers or in the example's choices.
        indices: int32 [N], position of the example in the source's split, from 0.
        choices: multiple choice: N lists of texts, of any length from 2; empty: the task has
            answers.
    """

    name: str
    fields: list[dict[str, str]]
    labels: np.ndarray
    indices: np.ndarray
    choices: list[list[str]] = dataclasses.field(default_factory=list)

    def where(self, row: int) -> str:
        """Returns what an example is called in errors."""
        return f"example {self.indices[row]} of {self.name!r} (from 0)"


@functools.lru_cache(maxsize=4)  # of a job's splits: each is asked for several times
def keys(split: Split) -> list[tuple[str, ...]]:
    """What tells each example from the others: its texts, and its choices in whatever order."""
    choices = split.choices or [[]] * len(split.fields)
    return [
        (*map(normalized, f.values()), *sorted(map(normalized, c)))
        for f, c in zip(split.fields, choices, strict=True)
    ]


def sharing(split: Split, of: Split, rows: Iterable[int]) -> np.ndarray:
    """Returns the rows of `split`, int64, whose texts are those of a row among `rows` of `of`."""
    of_rows = keys(of)
    texts = {of_rows[row] for row in rows}
    found = [i for i, key in enumerate(keys(split)) if key in texts]
    return np.array(found, np.int64)


def draw(
    split: Split, num: int, seed: int, balanced: bool = False, exclude: Iterable[int] = ()
) -> np.ndarray:
    """Returns row numbers of `split`, int64 [at most num], shuffled with `seed`.

    Args:
        split: where to draw from.
        num: how many; 0: all. Where there are fewer, fewer are returned.
        seed: of NumPy's default generator.
        balanced: equally many of each class; what is left over goes to the first classes. With num
            0, as many of each as the rarest class has.
        exclude: row numbers not to draw.

    Raises:
        UserError: nothing is left to draw, or `num` is negative.
    """
    if num < 0:
        raise UserError(f"number of examples {num}: expected 0 (all) or more")
    order = np.random.default_rng(seed).permutation(len(split.labels))
    order = order[~np.isin(order, np.fromiter(exclude, np.int64))]
    drawn = _balanced(split.labels, order, num) if balanced else order[: num or None]
    if not drawn.size:
        raise UserError(
            f"no example left to draw from split {split.name!r} with {len(split.labels)} rows; "
            f"lower the number of examples or give more data"
        )
    return drawn


def draw_distinct(
    split: Split, num: int, seed: int, balanced: bool = False
) -> tuple[np.ndarray, int]:
    """Draws as `draw` does, but no example that has the text of one drawn before it.

    The next in the same order takes its place: a draw without such an example is `draw`'s own.

    Returns:
        Row numbers, int64 [at most num], and how many examples were left out.

    Raises:
        UserError: as `draw`.
    """
    left_out = np.empty(0, np.int64)
    while True:
        drawn = draw(split, num, seed, balanced, exclude=left_out)
        again = repeated(split, drawn)
        if not again.size:
            return drawn, len(left_out)
        left_out = np.concatenate([left_out, again])


def repeated(split: Split, rows: Sequence[int] | np.ndarray) -> np.ndarray:
    """Returns those of the rows, int64, that have the text of one before them."""
    of_split, seen, found = keys(split), set(), []
    for row in rows:
        if of_split[row] in seen:
            found.append(row)
        seen.add(of_split[row])
    return np.array(found, np.int64)


def _balanced(labels: np.ndarray, order: np.ndarray, num: int) -> np.ndarray:
    """Cuts `order` down to equally many of each class, without changing the order."""
    classes = np.unique(labels)
    shuffled = labels[order]
    if num == 0:
        num = len(classes) * min(int((shuffled == c).sum()) for c in classes)
    each, over = divmod(num, len(classes))
    keep = np.zeros(len(order), bool)
    for position, label in enumerate(classes):
        keep[np.flatnonzero(shuffled == label)[: each + (position < over)]] = True
    return order[keep]
