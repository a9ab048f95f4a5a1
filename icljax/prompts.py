"""Examples -> token arrays of static shape: demonstrations of every seed, packed query batches.

Shape glossary:
  R seeds (draws of demonstrations)     E demonstrations of a seed      T context tokens
  C demonstration tokens compared (no BOS, no separators)
  U tokens of a training example        B rows of a batch               S tokens of a row
  A query slots of a row                P places of a query that predict answer tokens
  Y answers (classes)                   M tokens of an answer
Padding is -1 where it indexes examples, 0 where a mask beside it says so.

Short queries share a row of S tokens under a block mask, so no row is padded to the longest query
and one compiled shape serves all. An answer of several tokens continues its query as a *branch*:
its tokens see the query and each other, never another answer, so one pass scores all answers.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from icljax.data import Split
from icljax.errors import UserError
from icljax.model import Array
from icljax.tasks import Task

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


class Queries(NamedTuple):
    """A batch of packed queries.

    Attributes:
        tokens: int32 [B, S].
        positions: int32 [B, S], counted from the end of the state.
        segment: int32 [B, S], the slot (0 .. A-1) a token belongs to, -1 on padding.
        branch: int32 [B, S], 0 for the query itself, 1 + y for the continuation of answer y.
        example: int32 [B, A], the example's row number, -1 for an empty slot.
        places: int32 [B, A, P], columns whose next-token distribution is read; the first is the
            answer position.
        source: int32 [B, A, Y, M], which of the P places predicts an answer's m-th token.
        target: int32 [B, A, Y, M], that token.
        target_mask: bool [B, A, Y, M].
    """

    tokens: Array
    positions: Array
    segment: Array
    branch: Array
    example: Array
    places: Array
    source: Array
    target: Array
    target_mask: Array


@dataclasses.dataclass(frozen=True)
class Encoder:
    """How texts of one task become token ids with one tokenizer."""

    tokenizer: Tokenizer
    task: Task
    bos: tuple[int, ...]
    separator: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]

    def prompts(self, split: Split, rows: np.ndarray) -> list[list[int]]:
        """Token ids of the filled template of each row, without BOS."""
        texts = [self.task.prompt(split.fields[row]) for row in rows]
        return [e.ids for e in self.tokenizer.encode_batch(texts, add_special_tokens=False)]


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

    def encode(text: str) -> tuple[int, ...]:
        if text in ids:
            return (ids[text],)
        return tuple(tokenizer.encode(text, add_special_tokens=False).ids)

    answers = answer_tokens(tokenizer, task.template, task.answers)
    for answer, tokens in zip(task.answers, answers, strict=True):
        if not tokens or answers.count(tokens) > 1:
            raise UserError(
                f"answer {answer!r} becomes tokens {list(tokens)}, not distinct from the other "
                f"answers {task.answers}; give distinct answers with --config.answers"
            )
    if not bos or not encode(bos):
        raise UserError(f"prompt.bos={bos!r} gives no token; use <bos>, <eos> or a text")
    return Encoder(tokenizer, task, encode(bos), encode(separator) if separator else (), answers)


def answer_tokens(
    tokenizer: Tokenizer, template: str, answers: Sequence[str]
) -> tuple[tuple[int, ...], ...]:
    """Token ids of answers as they follow the template after one space.

    They may depend on the text before, so each is encoded after the template's own ending
    (`Label:`), and that ending is cut off again.
    """
    tail = template.rpartition("}")[2].strip()

    def encode(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text, add_special_tokens=False).ids)

    before = len(encode(tail)) if tail else 0
    return tuple(encode(f"{tail} {answer}")[before:] for answer in answers)


def query_length(prompt: Sequence[int], encoder: Encoder) -> int:
    """Tokens that a query takes in a row: its prompt and the branches of its answers."""
    return len(prompt) + sum(len(answer) - 1 for answer in encoder.answers)


def longest_query(prompts: Sequence[Sequence[int]], encoder: Encoder) -> int:
    """Tokens of context that the longest query with its longest answer needs."""
    return max(map(len, prompts)) + max(map(len, encoder.answers)) - 1


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
    prompts: list[list[int]], encoder: Encoder, tokens_per_batch: int, row_length: int = 256
) -> Queries:
    """Packs queries into batches of one static shape.

    Args:
        prompts: token ids of each query; its place in the list is its `example`.
        tokens_per_batch: B * S, rounded up to whole rows.
        row_length: S; raised where a query is longer.

    Returns:
        Queries with a leading axis over batches.
    """
    lengths = [query_length(prompt, encoder) for prompt in prompts]
    row_length = max(row_length, _ceil(max(lengths), 64))
    rows = _fill_rows(lengths, row_length)
    num_rows = max(1, min(tokens_per_batch // row_length, len(rows)))
    batches = math.ceil(len(rows) / num_rows)
    slots = max(map(len, rows))
    extra = sum(len(answer) - 1 for answer in encoder.answers)
    answer_shape = (len(encoder.answers), max(map(len, encoder.answers)))
    total = batches * num_rows
    out = Queries(
        tokens=np.zeros((total, row_length), np.int32),
        positions=np.zeros((total, row_length), np.int32),
        segment=np.full((total, row_length), -1, np.int32),
        branch=np.zeros((total, row_length), np.int32),
        example=np.full((total, slots), -1, np.int32),
        places=np.zeros((total, slots, 1 + extra), np.int32),
        source=np.zeros((total, slots, *answer_shape), np.int32),
        target=np.zeros((total, slots, *answer_shape), np.int32),
        target_mask=np.zeros((total, slots, *answer_shape), bool),
    )
    for row, examples in enumerate(rows):
        start = 0
        for slot, example in enumerate(examples):
            _place_query(out, row, slot, start, prompts[example], encoder)
            out.example[row, slot] = example
            start += lengths[example]
    return Queries(*(x.reshape(batches, num_rows, *x.shape[1:]) for x in out))


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
    out: Queries, row: int, slot: int, start: int, prompt: list[int], encoder: Encoder
) -> None:
    """Writes a query and the branches of its answers into a row, from column `start`."""
    end = start + len(prompt)
    out.tokens[row, start:end] = prompt
    out.positions[row, start:end] = np.arange(len(prompt))
    out.places[row, slot, :] = end - 1
    place = 1
    column = end
    for y, answer in enumerate(encoder.answers):
        fed = len(answer) - 1
        out.tokens[row, column : column + fed] = answer[:-1]
        out.positions[row, column : column + fed] = len(prompt) + np.arange(fed)
        out.branch[row, column : column + fed] = 1 + y
        out.places[row, slot, place : place + fed] = np.arange(column, column + fed)
        out.source[row, slot, y, 1 : 1 + fed] = np.arange(place, place + fed)
        out.target[row, slot, y, : len(answer)] = answer
        out.target_mask[row, slot, y, : len(answer)] = True
        place, column = place + fed, column + fed
    out.segment[row, start:column] = slot


def _ceil(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
