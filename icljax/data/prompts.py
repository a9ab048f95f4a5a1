"""Examples -> token arrays of static shape: demonstrations of every seed, packed query batches.

Shape glossary:
  R seeds (draws of demonstrations)     E demonstrations of a seed      T context tokens
  C demonstration tokens compared (no BOS, no separators)
  U tokens of a training example        B rows of a batch               S tokens of a row
  A query slots of a row                P places of a row that predict candidates' tokens
  Y candidates (answers, or choices)    M tokens of a candidate
Padding is -1 where it indexes examples, 0 where a mask or weight beside it says so.

A query is a prompt that its candidates share, and each candidate a continuation of it, of which
some tokens may be only read and the others are scored. Short queries share a row of S tokens under
a block mask, so no row is padded to the longest query and one compiled shape serves all. A
candidate of several tokens continues its query as a *branch*: its tokens see the query and each
other, never another candidate, so one pass scores all candidates.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from icljax.data.splits import Split
from icljax.data.task import Task
from icljax.errors import UserError
from icljax.types import Array

# What stands before a text of which nothing is known but that it is not the first.
_WORD, _LINE_END = "a", "\n"
_TOO_LONG = "shorten it, raise --config.prompt.max_length, or use a model with a longer context"


class Demonstrations(NamedTuple):
    """The demonstrations of R seeds, as a prompt (ICL) and as training examples (FT).

    Attributes:
        context: int32 [R, T], BOS, then each demonstration and its separator.
        context_valid: bool [R, T].
        columns: int32 [R, C], the context column of each compared token.
        example: int32 [R, C], the demonstration it belongs to, -1 on padding.
        train: int32 [R, E, U], BOS and the demonstration, one example a row.
        train_length: int32 [R, E], 0 for a demonstration that this seed does not have.
        train_index: int32 [R, C], the compared token's place in `train[r]` flattened to E * U.
    """

    context: Array
    context_valid: Array
    columns: Array
    example: Array
    train: Array
    train_length: Array
    train_index: Array


@dataclasses.dataclass(frozen=True)
class Query:
    """One example as token ids.

    Attributes:
        prompt: what all candidates share, without BOS; its last token is the answer position.
        candidates: what each one adds, at least a token.
        read_only: how many first tokens of each candidate are not scored; empty: none.
    """

    prompt: list[int]
    candidates: tuple[tuple[int, ...], ...]
    read_only: tuple[int, ...] = ()

    def demonstration(self, label: int) -> list[int]:
        """The prompt and the candidate at place `label`."""
        return [*self.prompt, *self.candidates[label]]

    def branches(self, position: str) -> list[int]:
        """Tokens of each candidate that a row holds: all but its last, which predicts nothing.

        With `position` "first_label" the first candidate's last token is studied, so it is there.
        """
        first = int(position == "first_label")
        return [len(c) - (0 if first and y == 0 else 1) for y, c in enumerate(self.candidates)]


class Queries(NamedTuple):
    """A batch of packed queries.

    Attributes:
        tokens: int32 [B, S].
        positions: int32 [B, S], counted from the end of the state.
        segment: int32 [B, S], the slot (0 .. A-1) a token belongs to, -1 on padding.
        branch: int32 [B, S], 0 for the prompt itself, 1 + y for the continuation of candidate y.
        example: int32 [B, A], the example's row number, -1 for an empty slot.
        studied: int32 [B, A], the column whose attention is recorded.
        places: int32 [B, P], columns whose next-token distribution is read.
        source: int32 [B, A, Y, M], which of the row's places predicts a candidate's m-th token.
        target: int32 [B, A, Y, M], that token.
        target_weight: float32 [B, A, Y, M], its weight in the candidate's score: 1 / (number of
            scored tokens) for a mean, 1 for a sum, 0 where nothing is scored; all 0 for a candidate
            that the example does not have.
    """

    tokens: Array
    positions: Array
    segment: Array
    branch: Array
    example: Array
    studied: Array
    places: Array
    source: Array
    target: Array
    target_weight: Array


@dataclasses.dataclass(frozen=True)
class Encoder:
    """How texts of one task become token ids with one tokenizer.

    A text has the tokens that it has inside a prompt, after a separator, in every setting: what is
    compared between settings are the same tokens. Only a seed's first demonstration, always the
    first, has those at the start of a text. They differ where a tokenizer writes a blank before
    the first word of a text (Llama 2, Mistral).

    Attributes:
        answers: empty in multiple choice, where each example has its own candidates.
        separator_text: how `separator` is written in a text; None: it cannot be.
        start: the text of `bos`, empty for a special token.
    """

    tokenizer: Tokenizer
    task: Task
    bos: tuple[int, ...]
    separator: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    separator_text: str | None = None
    start: str = ""

    def encode(self, texts: Sequence[str], first: bool = False) -> list[list[int]]:
        """Tokens of texts, each after a separator or, with `first`, at the start of a prompt."""
        if first or self.separator_text is None:
            return after(self.tokenizer, self.start if first else "", texts)
        if not self.separator_text:  # a text is at least not the first of the whole
            return after(self.tokenizer, _WORD + _LINE_END, texts)
        start = [*_ids(self.tokenizer, _WORD), *self.separator]
        return after(self.tokenizer, _WORD + self.separator_text, texts, start)

    def queries(self, split: Split, rows: np.ndarray, start: bool = True) -> list[Query]:
        """The queries of some rows, as they follow each other in a prompt.

        Args:
            start: whether the first is the start of the prompt, as a seed's first demonstration;
                False: it follows a separator, as what is asked does.

        Raises:
            UserError: for an example with a prompt or candidate without tokens, or with two
                candidates of the same tokens.
        """
        texts = [self.task.prompt(split.fields[row]) for row in rows]
        prompts = self.encode(texts)
        if start:
            prompts[:1] = self.encode(texts[:1], first=True)
        out = []
        for text, prompt, row in zip(texts, prompts, rows, strict=True):
            if not prompt:  # it has no answer position
                raise UserError(
                    f"{split.where(row)}: the prompt {text!r} has no tokens; leave the example "
                    "out, or give a --config.template with words"
                )
            if self.answers:
                out.append(Query(prompt, self.answers))
            else:
                candidates = self.task.candidates(split.fields[row], split.choices[row])
                out.append(
                    _multiple_choice(self.tokenizer, split.where(row), text, prompt, candidates)
                )
        return out


def _multiple_choice(
    tokenizer: Tokenizer,
    where: str,
    text: str,
    prompt: list[int],
    candidates: Sequence[tuple[str, str]],
) -> Query:
    """The query of an example with choices of its own."""
    read = following(tokenizer, text, [read for read, _ in candidates])
    texts = [f"{read} {scored}".strip() for read, scored in candidates]
    whole = following(tokenizer, text, texts)
    if any(len(c) <= len(r) for c, r in zip(whole, read, strict=True)):
        raise UserError(
            f"{where}: one of the candidates {candidates} has no tokens; leave the example out"
        )
    if len(set(whole)) < len(candidates):
        raise UserError(
            f"{where}: two of its candidates {texts} become the same tokens with this tokenizer, "
            "so the model cannot choose; leave the example out, or use another model"
        )
    return Query(prompt, whole, tuple(map(len, read)))


def after(
    tokenizer: Tokenizer, before: str, texts: Sequence[str], start: list[int] | None = None
) -> list[list[int]]:
    """Tokens of texts as they follow `before`; on its own, one that is not cut off from it.

    Args:
        start: the tokens of `before` when something follows; None: as when nothing does.
    """
    start = _ids(tokenizer, before) if start is None else start
    wholes = tokenizer.encode_batch([before + t for t in texts], add_special_tokens=False)
    out = [whole.ids for whole in wholes]
    return [
        ids[len(start) :] if ids[: len(start)] == start else _ids(tokenizer, text)
        for ids, text in zip(out, texts, strict=True)
    ]


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def following(
    tokenizer: Tokenizer, text: str, continuations: Sequence[str]
) -> tuple[tuple[int, ...], ...]:
    """Token ids of continuations that follow `text` after one space; none for an empty one.

    They may depend on the text before, so each is encoded after its last word, which is cut off.
    """
    tokens = after(tokenizer, text.rpartition(" ")[2] or _WORD, [f" {c}" for c in continuations])
    return tuple(tuple(t) if c else () for t, c in zip(tokens, continuations, strict=True))


def answer_tokens(
    tokenizer: Tokenizer, template: str, answers: Sequence[str]
) -> tuple[tuple[int, ...], ...]:
    """Token ids of answers as they follow the template, which ends as in `Label:`."""
    return following(tokenizer, template.rpartition("}")[2].strip(), answers)


def make_encoder(
    tokenizer: Tokenizer, task: Task, bos: str, separator: str, ids: dict[str, int]
) -> Encoder:
    """Encodes the fixed parts of the task's prompts.

    Args:
        bos: start of every prompt; "<bos>" and "<eos>" stand for the tokenizer's own.
        separator: what follows each demonstration, in the same notation.
        ids: {"<bos>": id, "<eos>": id}.

    Raises:
        UserError: when an answer or BOS has no tokens, or two answers have the same ones.
    """
    answers = answer_tokens(tokenizer, task.template, task.answers)
    for answer, tokens in zip(task.answers, answers, strict=True):
        if not tokens or answers.count(tokens) > 1:
            raise UserError(
                f"answer {answer!r} becomes tokens {list(tokens)}, not distinct from the other "
                f"answers {task.answers}; give distinct answers with --config.answers"
            )
    first = (ids[bos],) if bos in ids else tuple(_ids(tokenizer, bos))
    if not first:
        raise UserError(f"prompt.bos={bos!r} gives no token; use <bos>, <eos> or a text")
    start = "" if bos in ids else bos
    if separator not in ids:
        between = tuple(_separator(tokenizer, separator)) if separator else ()
        return Encoder(tokenizer, task, first, between, answers, separator, start)
    special = ids[separator]
    text = tokenizer.id_to_token(special)
    if text is not None and _ids(tokenizer, text) != [special]:
        text = None
    return Encoder(tokenizer, task, first, (special,), answers, text, start)


def _separator(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a separator between two texts."""
    left, whole = _ids(tokenizer, _WORD), _ids(tokenizer, _WORD + text + _WORD)
    for before in (text, _LINE_END):  # alone, line ends may be one token that a text splits
        (right,) = after(tokenizer, _WORD + before, [_WORD])
        middle = whole[len(left) : len(whole) - len(right)]
        if [*left, *middle, *right] == whole:
            return middle
    return after(tokenizer, _WORD, [text])[0]  # it is one token with a text beside it


def longest_query(queries: Sequence[Query], position: str = "answer") -> int:
    """Tokens of context that the longest query with its longest candidate needs."""
    return max(len(q.prompt) + max(q.branches(position)) for q in queries)


def fit(
    demonstrations: list[list[int]], encoder: Encoder, reserved: int, max_length: int
) -> list[list[int]]:
    """The first demonstrations that leave room for `reserved` tokens within `max_length`.

    Raises:
        UserError: when not even one fits.
    """
    room = max_length - reserved - len(encoder.bos)
    ends = np.cumsum([len(d) + len(encoder.separator) for d in demonstrations])
    kept = int(np.sum(ends <= room))
    if kept == 0:
        raise UserError(
            f"no demonstration fits: the longest query needs {reserved} tokens and the first "
            f"demonstration {ends[0]}, of {max_length} in all; {_TOO_LONG}"
        )
    return demonstrations[:kept]


def build_demonstrations(seeds: list[list[list[int]]], encoder: Encoder) -> Demonstrations:
    """Lays out the demonstrations (input and label tokens, no BOS) of every seed.

    Args:
        seeds: for each seed, its demonstrations as token ids, already cut by `fit`.
    """
    bos, separator = len(encoder.bos), len(encoder.separator)
    num_seeds, num = len(seeds), max(map(len, seeds))
    compared = _ceil(max(sum(map(len, s)) for s in seeds), 64)
    context = _ceil(max(bos + sum(len(d) + separator for d in s) for s in seeds), 64)
    train = _ceil(bos + max(len(d) for s in seeds for d in s), 16)
    out = Demonstrations(
        context=np.zeros((num_seeds, context), np.int32),
        context_valid=np.zeros((num_seeds, context), bool),
        columns=np.zeros((num_seeds, compared), np.int32),
        example=np.full((num_seeds, compared), -1, np.int32),
        train=np.zeros((num_seeds, num, train), np.int32),
        train_length=np.zeros((num_seeds, num), np.int32),
        train_index=np.zeros((num_seeds, compared), np.int32),
    )
    for r, demonstrations in enumerate(seeds):
        out.context[r, :bos] = encoder.bos
        column, token = bos, 0
        for e, tokens in enumerate(demonstrations):
            here = slice(token, token + len(tokens))
            out.context[r, column : column + len(tokens)] = tokens
            out.columns[r, here] = np.arange(column, column + len(tokens))
            out.example[r, here] = e
            out.train[r, e, :bos] = encoder.bos
            out.train[r, e, bos : bos + len(tokens)] = tokens
            out.train_length[r, e] = bos + len(tokens)
            out.train_index[r, here] = e * train + np.arange(bos, bos + len(tokens))
            column, token = column + len(tokens), token + len(tokens)
            out.context[r, column : column + separator] = encoder.separator
            column += separator
        out.context_valid[r, :column] = True
    return out


def pack(
    queries: Sequence[Query],
    tokens_per_batch: int,
    row_length: int = 256,
    score: str = "mean",
    position: str = "answer",
) -> Queries:
    """Packs queries into batches of one static shape: `pack_alike` of one part."""
    return pack_alike([queries], tokens_per_batch, row_length, score, position)[0]


def pack_alike(
    parts: Sequence[Sequence[Query]],
    tokens_per_batch: int,
    row_length: int = 256,
    score: str = "mean",
    position: str = "answer",
) -> list[Queries]:
    """Packs each part's queries into batches; those of all parts have one static shape.

    Args:
        parts: a query's place in its part is its `example`.
        tokens_per_batch: B * S at most, but one row at least; B is what wastes the fewest rows.
        row_length: S; raised where a query is longer.
        score: "mean" or "sum" of a candidate's log-probabilities.
        position: what is studied: the "answer" position or the last token of the "first_label".

    Returns:
        Queries of each part with a leading axis over batches.
    """
    every = [query for part in parts for query in part]
    row_length = max(row_length, _ceil(max(_length(q, position) for q in every), 64))
    rows = [_fill_rows([_length(q, position) for q in part], row_length) for part in parts]
    num_rows = _rows_of_batch([len(of_part) for of_part in rows], tokens_per_batch // row_length)
    together = list(zip(parts, rows, strict=True))
    places = max(sum(_num_places(part[i]) for i in row) for part, some in together for row in some)
    slots = max(len(row) for of_part in rows for row in of_part)
    candidates = max(len(q.candidates) for q in every)
    longest = max(len(c) for q in every for c in q.candidates)

    def laid_out(part: Sequence[Query], of_part: list[list[int]]) -> Queries:
        batches = math.ceil(len(of_part) / num_rows)
        out = _empty(batches * num_rows, row_length, places, (slots, candidates, longest))
        for row, examples in enumerate(of_part):
            start = place = 0
            for slot, query in enumerate(part[i] for i in examples):
                out.example[row, slot] = examples[slot]
                _place_query(out, row, slot, start, place, query, query.branches(position))
                _weigh(out, row, slot, query, score)
                start, place = start + _length(query, position), place + _num_places(query)
        return Queries(*(x.reshape(batches, num_rows, *x.shape[1:]) for x in out))

    return [laid_out(*part) for part in together]


def _length(query: Query, position: str) -> int:
    """Tokens of a query with its branches."""
    return len(query.prompt) + sum(query.branches(position))


def _num_places(query: Query) -> int:
    """Places whose logits are read."""
    return 1 + sum(len(c) - 1 for c in query.candidates)


def _rows_of_batch(parts: Sequence[int], most: int) -> int:
    """Rows of a batch, at most `most`, for parts of so many rows."""

    def cost(size: int) -> float:
        """Rows that are read, those that fill up the last batch too; half of one for each batch."""
        return sum(math.ceil(count / size) for count in parts) * (size + 0.5)

    return min(range(1, max(1, min(most, max(parts))) + 1), key=cost)


def _empty(rows: int, row_length: int, places: int, per_slot: tuple[int, int, int]) -> Queries:
    """Queries of B * batches rows that hold nothing; `per_slot` is (A, Y, M)."""
    return Queries(
        tokens=np.zeros((rows, row_length), np.int32),
        positions=np.zeros((rows, row_length), np.int32),
        segment=np.full((rows, row_length), -1, np.int32),
        branch=np.zeros((rows, row_length), np.int32),
        example=np.full((rows, per_slot[0]), -1, np.int32),
        studied=np.zeros((rows, per_slot[0]), np.int32),
        places=np.zeros((rows, places), np.int32),
        source=np.zeros((rows, *per_slot), np.int32),
        target=np.zeros((rows, *per_slot), np.int32),
        target_weight=np.zeros((rows, *per_slot), np.float32),
    )


def _fill_rows(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Longest query first into the emptiest row; a new row where it does not fit."""
    used = [0] * math.ceil(sum(lengths) / row_length)
    rows: list[list[int]] = [[] for _ in used]
    for example in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = min(range(len(used)), key=used.__getitem__)
        if used[row] + lengths[example] > row_length:
            row = len(used)
            used.append(0)
            rows.append([])
        used[row] += lengths[example]
        rows[row].append(example)
    return rows


def _place_query(
    out: Queries, row: int, slot: int, start: int, place: int, query: Query, branches: list[int]
) -> None:
    """Writes a query and its branches into a row, from column `start` and place `place`."""
    prompt = len(query.prompt)
    column = start + prompt
    out.tokens[row, start:column] = query.prompt
    out.positions[row, start:column] = np.arange(prompt)
    out.places[row, place] = out.studied[row, slot] = column - 1
    first, place = place, place + 1
    for y, (candidate, fed) in enumerate(zip(query.candidates, branches, strict=True)):
        size = len(candidate)
        here, after = slice(column, column + fed), slice(place, place + size - 1)
        out.tokens[row, here] = candidate[:fed]
        out.positions[row, here] = prompt + np.arange(fed)
        out.branch[row, here] = 1 + y
        out.places[row, after] = np.arange(column, column + size - 1)
        out.source[row, slot, y, :size] = [first, *range(place, place + size - 1)]
        out.target[row, slot, y, :size] = candidate
        if fed == size:  # the first label, whose last token is studied
            out.studied[row, slot] = column + fed - 1
        place, column = place + size - 1, column + fed
    out.segment[row, start:column] = slot


def _weigh(out: Queries, row: int, slot: int, query: Query, score: str) -> None:
    """Writes the weights of a query's candidates."""
    skipped = query.read_only or (0,) * len(query.candidates)
    for y, (candidate, skip) in enumerate(zip(query.candidates, skipped, strict=True)):
        weight = 1 / (len(candidate) - skip) if score == "mean" else 1
        out.target_weight[row, slot, y, skip : len(candidate)] = weight


def _ceil(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
