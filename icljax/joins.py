"""Where the tokens of joined pieces are not the tokenizer's tokens of the whole text.

A prompt is joined from pieces that keep their tokens in every setting (icljax/prompts.py). Here
each join is compared with the tokens of the text around it: a few words, which is as far as a
tokenizer looks, so the cost does not grow with the prompt.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from icljax.data import Split
from icljax.prompts import Encoder, following
from icljax.tasks import Task

_NEAR = 3  # words on each side of a join
_START = (
    "BOS|text",
    "in every setting a text has the tokens that it has after a separator, so also alone after BOS",
)
_LEFT = (
    "demonstration|separator",
    "a demonstration's tokens are the same in every setting; --config.prompt.separator changes it",
)
_RIGHT = ("separator|text", _LEFT[1].replace("demonstration", "text"))
_ANSWER = (
    "prompt|answer",
    "all prompts share the answers' tokens; end --config.template in a word, as 'Answer:'",
)


class Piece(NamedTuple):
    """An example's texts.

    Attributes:
        where: which example it is.
        prompt: its text before the answer.
        candidates: each text that may follow, after a blank.
        label: the right one's place.
    """

    where: str
    prompt: str
    candidates: list[str]
    label: int


class _Case(NamedTuple):
    """Tokens as the prompt has them and as the tokenizer writes the whole text, at one join."""

    kind: tuple[str, str]
    where: str
    used: list[int]
    written: list[int]


def pieces(task: Task, split: Split, rows: np.ndarray) -> list[Piece]:
    """The texts of some rows."""
    out = []
    for row in rows:
        candidates = task.candidates(split.fields[row], split.choices[row] if split.choices else ())
        out.append(
            Piece(
                f"example {split.indices[row]} of {split.name!r}",
                task.prompt(split.fields[row]),
                [f"{read} {scored}".strip() for read, scored in candidates],
                int(split.labels[row]),
            )
        )
    return out


def notes(encoder: Encoder, shown: Sequence[Piece], asked: Sequence[Piece]) -> list[str]:
    """A line for each kind of join at which the tokens differ, with an example; none: no lines.

    Args:
        shown: the demonstrations.
        asked: the queries.
    """
    cases = [
        *_at_start(encoder, [*shown, *asked]),
        *_at_separator(encoder, shown, asked),
        *_at_answer(encoder, [*shown, *asked]),
    ]
    lines = []
    for kind in (_START, _LEFT, _RIGHT, _ANSWER):
        every = [case for case in cases if case.kind == kind]
        differ = [case for case in every if case.used != case.written]
        if differ:
            used, written = _window(encoder, differ[0])
            lines.append(
                f"Tokens at the join {kind[0]} are not those of the whole text in {len(differ)} of "
                f"{len(every)}, e.g. {differ[0].where}: {used}, where the tokenizer writes "
                f"{written} ({kind[1]})."
            )
    return lines


def _at_start(encoder: Encoder, every: Sequence[Piece]) -> Iterable[_Case]:
    heads = [_head(piece.prompt) for piece in every]
    pairs = zip(every, encoder.encode(heads), encoder.encode(heads, first=True), strict=True)
    for piece, used, written in pairs:
        yield _Case(_START, piece.where, used, written)


def _at_separator(
    encoder: Encoder, shown: Sequence[Piece], asked: Sequence[Piece]
) -> Iterable[_Case]:
    text = encoder.separator_text
    if text is None:  # a special token, which no text is joined with
        return
    lefts = [*shown, *[shown[0]] * len(asked)]
    rights = [*shown[1:], shown[0], *asked]
    tails = [_tail(f"{left.prompt} {left.candidates[left.label]}".strip()) for left in lefts]
    heads = [_head(right.prompt) for right in rights]
    wholes = _encode(encoder, [t + text + h for t, h in zip(tails, heads, strict=True)])
    starts, ends = _encode(encoder, tails), encoder.encode(heads)
    for i, (whole, start, end) in enumerate(zip(wholes, starts, ends, strict=True)):
        used = [*start, *encoder.separator, *end]
        right_is_whole = not end or whole[-len(end) :] == end
        left_is_whole = whole[: len(start)] == start
        differs = used != whole
        # Each demonstration is on the left once; each text on the right once.
        if i < len(shown):
            at_fault = differs and (right_is_whole or not left_is_whole)
            yield _Case(_LEFT, lefts[i].where, used, whole if at_fault else used)
        at_fault = differs and not right_is_whole
        yield _Case(_RIGHT, rights[i].where, used, whole if at_fault else used)


def _at_answer(encoder: Encoder, every: Sequence[Piece]) -> Iterable[_Case]:
    own = not encoder.answers
    tails = [_tail(piece.prompt) for piece in every]
    texts = dict.fromkeys(
        f"{tail} {candidate}"
        for tail, piece in zip(tails, every, strict=True)
        for candidate in piece.candidates
    )
    wholes = dict(zip(texts, _encode(encoder, list(texts)), strict=True))
    starts = dict(zip(tails, _encode(encoder, tails), strict=True))
    for piece, tail in zip(every, tails, strict=True):
        if not tail:
            continue
        tokens = encoder.answers
        if own:
            tokens = following(encoder.tokenizer, tail, piece.candidates)
        pairs = [
            ([*starts[tail], *used], wholes[f"{tail} {candidate}"])
            for used, candidate in zip(tokens, piece.candidates, strict=True)
        ]
        yield _Case(_ANSWER, piece.where, *next((p for p in pairs if p[0] != p[1]), pairs[0]))


def _encode(encoder: Encoder, texts: list[str]) -> list[list[int]]:
    encoded = encoder.tokenizer.encode_batch(texts, add_special_tokens=False)
    return [one.ids for one in encoded]


def _head(text: str) -> str:
    return " ".join(text.split(" ", _NEAR)[:_NEAR])


def _tail(text: str) -> str:
    return " ".join(text.rsplit(" ", _NEAR)[-_NEAR:])


def _window(encoder: Encoder, case: _Case) -> list[list[str]]:
    """The tokens, used and written, from one before the first that differ to the last."""
    first = max(0, _same(case.used, case.written) - 1)
    used, written = case.used[first:], case.written[first:]
    back = _same(used[:0:-1], written[:0:-1])
    name = encoder.tokenizer.id_to_token
    return [[str(name(i)) for i in ids[: len(ids) - back]] for ids in (used, written)]


def _same(a: list[int], b: list[int]) -> int:
    """How many first tokens are the same."""
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
