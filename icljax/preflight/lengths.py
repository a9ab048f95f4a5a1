"""A comparison's inputs before any data is read: made-up tokens, as many as the task's texts have.

Shape glossary: as in icljax/data/prompts.py; R seeds.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from icljax.catalog import VARIANTS
from icljax.comparison.inputs import Inputs, fitter, pack
from icljax.data import prompts
from icljax.errors import UserError
from icljax.models.decoder import DecoderConfig
from icljax.results import Duplicates


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Tokens of a task's prompts.

    Attributes:
        examples: of the split that is evaluated.
        answers: tokens of each answer.
        demonstrations: least, quartiles, 95th percentile and most tokens of train prompts.
        queries: the same of the evaluated split.
    """

    examples: int
    answers: tuple[int, ...]
    demonstrations: tuple[int, ...]
    queries: tuple[int, ...]


# Measured once over whole splits (AG News' train split: 4,000 of 120,000; IMDB: 1,000 of 25,000 of
# each) with the templates of data/task_table.py and SmolLM2's byte-level BPE of 49,152 tokens.
# Evaluated: the validation split, and the test split of Subj, AG News, TREC and IMDB.
QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)
LENGTHS = {
    "sst2": Lengths(872, (1,) * 2, (6, 9, 13, 21, 36, 73), (7, 20, 28, 35, 47, 64)),
    "sst5": Lengths(1101, (1,) * 5, (7, 19, 27, 36, 49, 86), (7, 20, 28, 35, 48, 64)),
    "mr": Lengths(1066, (1,) * 2, (6, 22, 29, 38, 50, 83), (7, 21, 30, 38, 51, 80)),
    "subj": Lengths(2000, (1,) * 2, (14, 24, 30, 39, 55, 174), (14, 24, 30, 40, 57, 154)),
    "agnews": Lengths(7600, (1,) * 4, (41, 66, 75, 85, 109, 334), (39, 65, 74, 84, 104, 315)),
    "cb": Lengths(56, (1,) * 3, (36, 63, 80, 105, 182, 278), (36, 70, 88, 116, 191, 277)),
    "trec": Lengths(500, (1,) * 6, (7, 12, 15, 18, 25, 57), (8, 10, 12, 14, 18, 26)),
    "imdb": Lengths(1000, (1,) * 2, (38, 169, 237, 369, 763, 3300), (17, 169, 227, 381, 762, 1377)),
}


def lengths(config: ConfigDict, demonstration: int, query: int, examples: int) -> Lengths:
    """The task's lengths; numbers above 0 replace what the table has.

    Raises:
        UserError: for a task that is not in the table, unless all three are given.
    """
    known = LENGTHS.get(config.task)
    if known is None and not (demonstration and query and examples):
        raise UserError(
            f"task {config.task!r} has no measured lengths (known: {', '.join(LENGTHS)}); give all "
            "of --demonstration_tokens, --query_tokens and --examples"
        )
    known = known or Lengths(0, (1,) * max(2, len(config.answers)), (), ())
    return Lengths(
        examples or known.examples,
        known.answers,
        (demonstration,) * len(QUANTILES) if demonstration else known.demonstrations,
        (query,) * len(QUANTILES) if query else known.queries,
    )


def spread(quantiles: Sequence[int], count: int) -> list[int]:
    """`count` lengths that are distributed as the quantiles say."""
    places = (np.arange(count) + 0.5) / count
    return [int(x) for x in np.round(np.interp(places, QUANTILES, quantiles))]


def make_inputs(config: ConfigDict, decoder: DecoderConfig, tokens: Lengths) -> Inputs:
    """Lays out made-up prompts of these lengths, by the job's own code.

    Raises:
        UserError: when not one demonstration fits in the context.
    """
    separator = (0,) if config.prompt.separator else ()
    answers = tuple((0,) * count for count in tokens.answers)
    encoder = prompts.Encoder(None, None, (0,), separator, answers)  # type: ignore[arg-type]
    seeds, count = len(config.seeds), config.num_demonstrations
    longest_answer = max(tokens.answers)
    drawn = [n + longest_answer for n in spread(tokens.demonstrations, seeds * count)]
    chosen = min(config.eval.num_examples or tokens.examples, tokens.examples)
    queries = [prompts.Query([0] * n, answers) for n in spread(tokens.queries, chosen)]
    selection = queries
    if config.selection.split == "train":
        wanted = spread(tokens.demonstrations, config.selection.num_examples)
        selection = [prompts.Query([0] * n, answers) for n in wanted]
    fit = fitter(config, decoder, encoder, queries + selection)
    fitting = [fit([[0] * n for n in drawn[seed::seeds]]) for seed in range(seeds)]
    demonstrations = prompts.build_demonstrations(fitting, encoder)
    packed = pack(config, selection, queries)
    return Inputs(
        dataset=None,  # type: ignore[arg-type]
        encoder=encoder,
        demonstrations=demonstrations,
        changed=dict.fromkeys(VARIANTS, demonstrations),
        used=[len(seed) for seed in fitting],
        selection=packed[0],
        selection_labels=np.zeros(len(selection), np.int32),
        selection_names=[""] * len(selection),
        evaluation=packed[1],
        labels=np.zeros(len(queries), np.int32),
        names=[""] * len(queries),
        rows=np.arange(len(queries)),
        notes=(),
        selected_on="",
        duplicates=Duplicates(kept=False, evaluated=0, repeated=0),
    )
