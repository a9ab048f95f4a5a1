"""Variants of demonstrations: what each changes."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from icljax.data import prompts, splits, tasks
from icljax.data.prompts import Encoder, Query
from icljax.errors import UserError, named


def changed_demonstrations(
    name: str,
    encoder: Encoder,
    split: splits.Split,
    rows: np.ndarray,
    rng: np.random.Generator,
    words: Sequence[str],
) -> list[list[int]]:
    """Demonstrations in a variant.

    Args:
        name: one of `_CHANGES`.
        words: the answers that "other_answers" puts in.

    Raises:
        UserError: for another name.
    """
    change = named("variant", name, _CHANGES)
    queries = encoder.queries(split, rows, start=True)
    return change(encoder, queries, split.labels[rows], rng, words)


def _permuted_labels(
    encoder: Encoder, queries: list[Query], labels: np.ndarray, rng: np.random.Generator, _: Any
) -> list[list[int]]:
    """They exchange their labels at random."""
    # In multiple choice an example may have fewer candidates than another's label counts.
    pairs = zip(queries, rng.permutation(labels), strict=True)
    return [q.demonstration(label % len(q.candidates)) for q, label in pairs]


def _flipped_labels(
    encoder: Encoder, queries: list[Query], labels: np.ndarray, _: Any, __: Any
) -> list[list[int]]:
    """Each label becomes the next one, round the end: all are wrong, and alike."""
    pairs = zip(queries, labels + 1, strict=True)
    return [q.demonstration(label % len(q.candidates)) for q, label in pairs]


def _shuffled_tokens(
    encoder: Encoder, queries: list[Query], labels: np.ndarray, rng: np.random.Generator, _: Any
) -> list[list[int]]:
    """The tokens of each input in random order, its label still last."""
    queries = [dataclasses.replace(q, prompt=rng.permutation(q.prompt).tolist()) for q in queries]
    return [q.demonstration(label) for q, label in zip(queries, labels, strict=True)]


def _other_answers(
    encoder: Encoder, queries: list[Query], labels: np.ndarray, _: Any, words: Sequence[str]
) -> list[list[int]]:
    """Each label is one of `words` throughout."""
    answers = prompts.answer_tokens(encoder.tokenizer, encoder.task.template, words)
    named_so = labels % len(words)
    return [[*q.prompt, *answers[label]] for q, label in zip(queries, named_so, strict=True)]


_CHANGES = {
    "permuted_labels": _permuted_labels,
    "flipped_labels": _flipped_labels,
    "shuffled_tokens": _shuffled_tokens,
    "other_answers": _other_answers,
}


def other_words(task: tasks.Task, name: str) -> tuple[str, ...]:
    """The answers of the task called `name`, or of one that has enough, and none in common.

    Raises:
        UserError: for an unknown name, a task of multiple choice, or one whose answers are among
            the task's own.
    """
    if name:
        words = tasks.get_task(name).answers
        if not words:
            raise UserError(
                f"config.study.answers_of={name!r} is multiple choice and has no answers of its "
                "own; give a classification task, say agnews"
            )
        if shared := _shared(words, task):
            raise UserError(
                f"config.study.answers_of={name!r} has answers of task {task.name} itself "
                f"({', '.join(shared)}), which change nothing; give a task with other answers, or "
                "leave it empty and one is chosen"
            )
        return words
    for other in ("agnews", "trec"):
        words = tasks.TASKS[other].answers
        if len(words) >= len(task.answers) and not _shared(words, task):
            break
    return words


def _shared(words: Sequence[str], task: tasks.Task) -> list[str]:
    """Those that are answers of the task, or what symbols stand for: they would give it away."""
    own = set(map(tasks.folded, (*task.answers, *task.classes)))
    return [word for word in words if tasks.folded(word) in own]
