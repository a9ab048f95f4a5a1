"""Where the tokens of joined pieces are not the tokenizer's tokens of the whole text.

A prompt is joined from pieces that keep their tokens in every setting (icljax/data/prompts.py).
Here each join is compared with the tokens of the text around it: a few words, which is as far as a
tokenizer looks, so the cost does not grow with the prompt.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from icljax.data.prompts import Encoder, following
from icljax.data.splits import Split
from icljax.data.task import Task

_NEAR = 2  # words on each side of a join
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


@dataclasses.dataclass(frozen=True)
class Piece:
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


@dataclasses.dataclass(frozen=True)
class _Case:
    """Tokens as the prompt has them and as the tokenizer writes the whole text, at one join."""

    kind: tuple[str, str]
    where: str
    used: list[int]
    written: list[int]

    @property
    def differs(self) -> bool:
        return self.used != self.written


def pieces(task: Task, split: Split, rows: np.ndarray) -> list[Piece]:
    """The texts of some rows."""
    out = []
    for row in rows:
        candidates = task.candidates(split.fields[row], split.choices[row] if split.choices else ())
        out.append(
            Piece(
                split.where(row),
                task.prompt(split.fields[row]),
                [f"{read} {scored}".strip() for read, scored in candidates],
                int(split.labels[row]),
            )
        )
    return out


def notes(encoder: Encoder, seeds: Sequence[Sequence[Piece]], asked: Sequence[Piece]) -> list[str]:
    """A line for each kind of join at which the tokens differ, with an example; none: no lines.

    Args:
        seeds: each seed's demonstrations, in their order.
        asked: the queries.
    """
    shown = [piece for pieces in seeds for piece in pieces]
    cases: dict[tuple[str, str], dict[str, _Case]] = {
        k: {} for k in (_START, _LEFT, _RIGHT, _ANSWER)
    }
    for case in (
        *_at_start(encoder, [*shown, *asked]),
        *_at_separator(encoder, seeds, asked),
        *_at_answer(encoder, [*shown, *asked]),
    ):
        known = cases[case.kind].setdefault(case.where, case)
        if case.differs and not known.differs:
            cases[case.kind][case.where] = case
    lines = []
    for (join, why), examples in cases.items():
        if differ := [case for case in examples.values() if case.differs]:
            used, written = _window(encoder, differ[0])
            lines.append(
                f"Tokens at the join {join} are not those of the whole text for {len(differ)} of "
                f"{len(examples)} examples, as {differ[0].where}: {used}, where the tokenizer "
                f"writes {written} ({why})."
            )
    return lines


def _at_start(encoder: Encoder, every: Sequence[Piece]) -> Iterable[_Case]:
    heads = [_head(piece.prompt) for piece in every]
    # A BOS that is a special token is in no text; one that is a text may grow into the first word.
    bos = encoder.bos if encoder.start else ()
    wholes = _encode(encoder, [encoder.start + head for head in heads])
    for piece, used, written in zip(every, encoder.encode(heads), wholes, strict=True):
        yield _Case(_START, piece.where, [*bos, *used], written)


def _at_separator(
    encoder: Encoder, seeds: Sequence[Sequence[Piece]], asked: Sequence[Piece]
) -> Iterable[_Case]:
    text = encoder.separator_text
    if text is None:  # a special token, which no text is joined with
        return
    pairs = [pair for pieces in seeds for pair in itertools.pairwise(pieces)]
    last = {_tail(_answered(pieces[-1])): pieces[-1] for pieces in seeds}
    pairs += itertools.product(last.values(), asked)
    near = [(_tail(_answered(left)), _head(right.prompt)) for left, right in pairs]
    ends = list(dict.fromkeys(near))
    wholes = _encode(encoder, [tail + text + head for tail, head in ends])
    tails = dict.fromkeys(tail for tail, _ in ends)
    heads = dict.fromkeys(head for _, head in ends)
    starts = dict(zip(tails, _encode(encoder, list(tails)), strict=True))
    rests = dict(zip(heads, encoder.encode(list(heads)), strict=True))
    whole_of = dict(zip(ends, wholes, strict=True))
    for (left, right), (tail, head) in zip(pairs, near, strict=True):
        start, rest, whole = starts[tail], rests[head], whole_of[tail, head]
        used = [*start, *encoder.separator, *rest]
        cut_left, cut_right = whole[: len(start)] == start, whole[len(whole) - len(rest) :] == rest
        # Both ends may stand and what is between them differ: the left one has changed it.
        yield _Case(_LEFT, left.where, used, used if cut_left and not cut_right else whole)
        yield _Case(_RIGHT, right.where, used, used if cut_right else whole)


def _answered(piece: Piece) -> str:
    return f"{piece.prompt} {piece.candidates[piece.label]}".strip()


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
