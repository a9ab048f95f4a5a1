"""An example's numbers do not depend on its company: what else is evaluated, and how it is packed.

Log-probabilities and similarities are the same to 1e-5. Kendall and recall are of ranks, in which
two numbers that differ by rounding may change places: to 1 % of their range. Baselines of random
vectors are drawn by an example's place among those evaluated, and left out here.
"""

import functools

import jax
import numpy as np
import pytest

from icljax import checkpoints
from icljax.comparison import finetune
from icljax.comparison.pairs import NAMES
from icljax.comparison.programs import Subject, make_programs
from icljax.comparison.reading import compare_settings
from icljax.data import prompts
from icljax.data.prompts import Query
from icljax.data.splits import Split
from icljax.data.task import Task
from icljax.experiments import config as config_lib
from icljax.runtime import sharding
from icljax.runtime.chunks import Chunks
from tests.conftest import WORDS, make_tokenizer

SEEDS, DEMONSTRATIONS = 2, 3
LONGEST = 150  # words
ODD = {
    "one token": "film",
    "empty": "",
    "blanks": "  \t ",
    "other white space": "\u00a0\u2003\u3000\u200b\ufeff\x1c",
    "line ends": "quiet\r\n\n\u2028film",
    "punctuation": "?!.,:;",
    "not ASCII": "caf\u00e9 \u4e2d\u6587 \U0001f600",
    "repeated": "a quiet and moving story",
    "again": "a quiet and moving story",
    "longest": " ".join(WORDS[i % 30] for i in range(LONGEST)),
}
TEXTS = [*ODD.values(), *(" ".join(WORDS[i : i + 3 + i]) for i in range(8))]
RANKS = ("kendall", "recall")


class Uncommitted(Chunks):
    """Every chunk is computed, and none is written."""

    def __init__(self):
        pass

    def once(self, name, compute):
        return compute()


@pytest.fixture(scope="module")
def model(tiny_folder):
    """Reads queries, in whatever company, with every setting and both kinds of candidates."""
    checkpoint = checkpoints.open_checkpoint(str(tiny_folder))
    params = checkpoints.load_params(checkpoint.folder, checkpoint.config)
    task = Task("t", "Review: {text} Sentiment:", ("good", "very bad", "terrible"))
    encoder = prompts.make_encoder(make_tokenizer(), task, "<bos>", "\n", {"<bos>": 0, "<eos>": 1})
    labels = np.arange(len(TEXTS)) % 3
    split = Split("t", [{"text": t} for t in TEXTS], labels, np.arange(len(TEXTS)))
    queries = encoder.queries(split, np.arange(len(TEXTS)), start=False)
    # Every fourth has candidates of its own, of which the first token is only read.
    queries = [
        Query(q.prompt, ((5, 6), (7, 8, 9)), (1, 1)) if i % 4 == 2 else q
        for i, q in enumerate(queries)
    ]
    shown = [[q.demonstration(0) for q in queries[-8 + 3 * s :][:3]] for s in range(SEEDS)]
    demonstrations = prompts.build_demonstrations(shown, encoder)
    config = config_lib.default()
    config_lib.fill_in(config)
    programs = make_programs(
        checkpoint.config, config, encoder.bos, DEMONSTRATIONS, sharding.make_mesh(1, 1)
    )
    key = jax.random.key(0)
    leaves = jax.tree.map(
        lambda x: np.stack([x + 0.05 * jax.random.normal(key, x.shape) for _ in range(SEEDS)]),
        finetune.kv_params_of(params),
    )
    compared, (layers, _, heads, width) = (
        demonstrations.columns.shape[1],
        params["layers"]["attention"]["query"]["kernel"].shape,
    )
    queries_of = jax.random.normal(key, (SEEDS, layers, compared, heads * width))
    learned = finetune.Learned(leaves, queries_of)
    subject = Subject(programs, params, demonstrations)

    def read(chosen, tokens_per_batch=256, row_length=64):
        packed = prompts.pack([queries[i] for i in chosen], tokens_per_batch, row_length)
        rest = (packed, Uncommitted(), "test", lambda _: None)
        return compare_settings(subject, lambda seeds: learned, *rest)

    return read, functools.cache(lambda: read(range(len(TEXTS))))


@pytest.mark.parametrize(
    ("chosen", "packing"),
    [
        # In another order, and in shorter rows.
        ([i for i in range(len(TEXTS)) if TEXTS[i] != ODD["longest"]][::-1], {}),
        ([0, 1, 2, 9], {"tokens_per_batch": 1, "row_length": 512}),  # a row a batch
    ],
    ids=["reversed, without the longest", "few, row by row"],
)
def test_numbers_do_not_depend_on_the_company(model, chosen, packing):
    read, whole = model
    ours, all_of_them = read(chosen, **packing), whole()
    order = np.argsort(ours.example)
    assert ours.example[order].tolist() == list(range(len(chosen)))
    for field in ("logprob_zsl", "logprob_icl", "logprob_ft"):
        a = getattr(ours, field)[..., order, :]
        b = getattr(all_of_them, field)[..., chosen, :][..., : a.shape[-1]]
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=0, err_msg=field)
    for field in NAMES:
        if "random" in field:
            continue
        a = ours.similarity[field][:, order]
        b = all_of_them.similarity[field][:, chosen]
        atol = 0.01 if field.startswith(RANKS) else 1e-5
        np.testing.assert_allclose(a, b, atol=atol, rtol=0, err_msg=field)


def test_every_number_is_one(model):
    """Whatever the text, as long as it has a token."""
    _, whole = model
    for field, values in whole().similarity.items():
        assert np.isfinite(values).all(), field
    np.testing.assert_allclose(
        *(whole().logprob_icl[:, list(ODD).index(name)] for name in ("repeated", "again")),
        atol=1e-5,
    )
