"""Variants of demonstrations and the learning-rate grid, on a tiny model and made-up reviews."""

import jax
import numpy as np
import pytest

from icljax import catalog, checkpoints
from icljax.comparison import changes, grid, inputs, memory, programs, reading, weights
from icljax.data import tasks
from icljax.errors import UserError
from icljax.experiments import config
from icljax.runtime import sharding
from icljax.runtime.chunks import Chunks
from tests.comparison.test_company import Uncommitted
from tests.experiments.test_compare import tiny_config


@pytest.fixture(scope="module")
def started(tiny_folder, reviews, tmp_path_factory):
    """A job that has finetuned its grid: three seeds, two rates, pieces of two runs."""
    cfg = tiny_config(
        tiny_folder,
        reviews,
        **{"seeds": (1, 2, 3), "finetune.runs_at_once": 2},
    )
    checkpoint = checkpoints.open_checkpoint(cfg.model)
    crossed = cfg.copy_and_resolve_references()
    crossed.mode, crossed.study.variants = "crossed", tuple(catalog.VARIANTS)
    prepared = inputs.prepare(crossed, checkpoint, lambda _: None)
    params = checkpoints.load_params(checkpoint.folder, checkpoint.config)
    mesh = sharding.make_mesh(1, 1)
    made = programs.make_programs(checkpoint.config, cfg, prepared.encoder.bos, 4, mesh)
    chunks = Chunks(tmp_path_factory.mktemp("work"), {}, print)
    subject = programs.Subject(made, params, prepared.demonstrations)
    selection = (prepared.selection, prepared.selection_labels)
    chosen = grid.finetune_grid(subject, *selection, cfg, chunks, lambda _: None)
    return cfg, prepared, subject, chosen


def compared(started, learned):
    """The chosen runs, or others, on the selection examples."""
    _, prepared, subject, _ = started
    rest = (prepared.selection, Uncommitted(), "test", lambda _: None)
    return reading.compare_settings(subject, learned, *rest)


def test_the_grid_keeps_what_a_comparison_of_the_chosen_run_gives(started):
    """`score` and `compare` are two programs; the first reads ICL once for all rates of a seed."""
    chosen = started[3]
    same = compared(started, chosen.learned)
    at = np.arange(3), chosen.rate_index
    right = same.logprob_ft.argmax(-1) == started[1].selection_labels
    np.testing.assert_array_equal(chosen.dose.correct[at], right)
    for name, values in same.similarity.items():
        values = values.mean(-1) if values.ndim == 4 else values
        atol = 0.02 if name.startswith(("kendall", "recall")) else 2e-5
        for kept, axis in ((chosen.dose.by_example, 2), (chosen.dose.by_layer, 1)):
            np.testing.assert_allclose(kept[name][at], values.mean(axis), atol=atol, err_msg=name)
    assert np.ptp(chosen.dose.by_example["sim_aou"], axis=1).min() > 1e-3  # rates do differ


def test_changed_demonstrations(started):
    prepared = started[1]
    own, changed = prepared.demonstrations, prepared.changed
    names = ["permuted_labels", "flipped_labels", "other_answers", "shuffled_tokens"]
    assert list(changed) == names
    negative, positive = (a[0] for a in prepared.encoder.answers)
    length = own.train_length

    def examples(demonstrations):
        return [
            [d.train[r, e, :n].tolist() for r in range(3) for e, n in enumerate(length[r])]
            for d in demonstrations
        ]

    ours, permuted, flipped, shuffled = examples(
        (own, *(changed[n] for n in ("permuted_labels", "flipped_labels", "shuffled_tokens")))
    )
    assert [e[:-1] for e in flipped] == [e[:-1] for e in ours]
    assert all(a[-1] != b[-1] for a, b in zip(flipped, ours, strict=True))
    assert [e[:-1] for e in permuted] == [e[:-1] for e in ours]
    assert [e[-1] for e in permuted] != [e[-1] for e in ours]
    assert {e[-1] for e in permuted} == {negative, positive}
    assert [e[-1] for e in shuffled] == [e[-1] for e in ours]
    assert [sorted(e[1:]) for e in shuffled] == [sorted(e[1:]) for e in ours]
    assert all(a != b for a, b in zip(shuffled, ours, strict=True))
    others = prepared.encoder.tokenizer.decode(changed["other_answers"].context[0].tolist())
    assert "World" in others or "Sports" in others
    assert "Sentiment: Positive" not in others
    assert jax.tree.map(np.shape, own) == jax.tree.map(np.shape, changed["other_answers"])


def test_words_of_another_task():
    own = tasks.get_task("sst5")
    assert changes.other_words(own, "") == tasks.TASKS["trec"].answers  # AG News has too few
    assert changes.other_words(own, "subj") == ("objective", "subjective")
    assert changes.other_words(tasks.get_task("agnews"), "") == tasks.TASKS["trec"].answers
    symbols = tasks.get_task("agnews", answers=("symbols",))  # AG News' own would be the truth
    assert changes.other_words(symbols, "") == tasks.TASKS["trec"].answers
    with pytest.raises(UserError, match=r"answers of task agnews itself .World, Sports"):
        changes.other_words(symbols, "agnews")
    with pytest.raises(UserError, match="unknown task"):
        changes.other_words(own, "sts2")
    with pytest.raises(UserError, match="multiple choice"):
        changes.other_words(own, "piqa")


@pytest.mark.parametrize(
    ("runs", "seeds", "data", "expected"),
    # Most that a device may hold: 4 runs; of 6 rates, or of one.
    [(30, 5, 1, 3), (18, 3, 2, 6), (5, 5, 1, 3), (6, 6, 2, 6)],
)
def test_runs_at_once_are_shares_of_seeds(started, runs, seeds, data, expected):
    cfg, prepared, subject, _ = started
    one = jax.tree.map(lambda x: np.repeat(x[:1], seeds, 0), prepared.demonstrations)
    cfg = cfg.copy_and_resolve_references()
    cfg.finetune.runs_at_once = 4 * data
    at_once = memory.runs_at_once(cfg, subject.params, one, [runs], runs // seeds, 3 << 30, data)
    assert at_once == expected
    assert runs // seeds % (at_once // data) == 0 or (at_once // data) % (runs // seeds) == 0


def test_names_of_variants():
    cfg = config.default()
    cfg.study.variants = ("shuffled_tokens", "permuted_labels")
    assert inputs.variant_names(cfg) == ("permuted_labels", "shuffled_tokens")
    cfg.mode = "paper"
    assert inputs.variant_names(cfg) == ()


def test_every_variant_has_its_own_change():
    """A name without one would run another's."""
    assert catalog.VARIANTS.keys() == changes._CHANGES.keys()
    assert catalog.WEIGHTS.keys() == weights._KEPT.keys()


def test_unknown_weights_are_refused(started):
    """`fresh` weights kept the embeddings."""
    subject = started[2]
    with pytest.raises(UserError, match="weights is 'fresh'; expected one of trained, untrained"):
        weights.reinitialize(subject.params, "fresh", subject.programs.initialize, 0)
