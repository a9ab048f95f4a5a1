"""Controls and the whole learning-rate grid, on a tiny model with made-up reviews."""

import jax
import numpy as np
import pytest

from icljax import catalog, checkpoints
from icljax.comparison import changes, controls, finetune, grid, inputs, memory, programs, reading
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
        **{"seeds": (1, 2, 3), "finetune.runs_at_once": 2, "controls.names": ("all",)},
    )
    checkpoint = checkpoints.open_checkpoint(cfg.model)
    prepared = inputs.prepare(cfg, checkpoint, lambda _: None)
    params = checkpoints.load_params(checkpoint.folder, checkpoint.config)
    mesh = sharding.make_mesh(1, 1)
    made = programs.make_programs(checkpoint.config, cfg, prepared.encoder.bos, 4, mesh)
    chunks = Chunks(tmp_path_factory.mktemp("work"), {}, print)
    subject = programs.Subject(made, params, prepared.demonstrations)
    selection = (prepared.selection, prepared.selection_labels)
    chosen = grid.finetune_grid(subject, *selection, cfg, chunks, lambda _: None)
    trained = controls.Trained(subject, chosen, prepared, prepared.selection)
    return cfg, checkpoint, trained, chunks


def compared(started, learned):
    """The chosen runs, or others, on the selection examples."""
    trained = started[2]
    rest = (trained.inputs.selection, Uncommitted(), "test", lambda _: None)
    return reading.compare_settings(trained.subject, learned, *rest)


def test_the_grid_keeps_what_a_comparison_of_the_chosen_run_gives(started):
    """`score` and `compare` are two programs; the first reads ICL once for all rates of a seed."""
    chosen = started[2].chosen
    same = compared(started, chosen.learned)
    at = np.arange(3), chosen.rate_index
    right = same.logprob_ft.argmax(-1) == started[2].inputs.selection_labels
    np.testing.assert_array_equal(chosen.dose.correct[at], right)
    for name, values in same.similarity.items():
        values = values.mean(-1) if values.ndim == 4 else values
        atol = 0.02 if name.startswith(("kendall", "recall")) else 2e-5
        for kept, axis in ((chosen.dose.by_example, 2), (chosen.dose.by_layer, 1)):
            np.testing.assert_allclose(kept[name][at], values.mean(axis), atol=atol, err_msg=name)
    assert np.ptp(chosen.dose.by_example["sim_aou"], axis=1).min() > 1e-3  # rates do differ


def test_controls_of_the_update(started):
    cfg, _, trained, chunks = started
    got = controls.compare(trained, ("update",), cfg, chunks, lambda _: None)
    assert list(got) == ["perturbation", "other_seed"]
    own = compared(started, trained.chosen.learned)
    for comparison in got.values():
        np.testing.assert_allclose(comparison.logprob_icl, own.logprob_icl, atol=1e-5)
        assert np.abs(comparison.logprob_ft - own.logprob_ft).max() > 1e-3
        assert np.isnan(comparison.similarity["kendall"]).all()
        assert np.isfinite(comparison.similarity["sim_aou"]).all()
    rolled = np.roll(own.logprob_ft, -1, 0)  # the next seed's finetuned model
    np.testing.assert_allclose(got["other_seed"].logprob_ft, rolled, atol=1e-5)


def test_a_perturbation_is_as_large_as_the_update(started):
    trained = started[2]
    base = finetune.kv_params_of(trained.subject.params)
    own = trained.chosen.learned([0, 1]).kv_params
    random = trained.subject.programs.perturb(base, own, np.asarray([0, 1], np.int32))
    for before, after, other in zip(*map(jax.tree.leaves, (base, own, random)), strict=True):
        ours, theirs = (np.asarray(x - before[None]).reshape(2, 3, -1) for x in (after, other))
        norms = np.linalg.norm(ours, axis=-1)
        np.testing.assert_allclose(np.linalg.norm(theirs, axis=-1), norms, rtol=1e-4)
        cosine = np.sum(ours * theirs, -1) / norms**2
        assert np.abs(cosine).max() < 0.3
        assert np.abs(theirs[0] - theirs[1]).max() > 0


def test_changed_demonstrations(started):
    trained = started[2]
    own, changed = trained.inputs.demonstrations, trained.inputs.changed
    names = ["permuted_labels", "flipped_labels", "other_answers", "shuffled_tokens"]
    assert list(changed) == names
    negative, positive = (a[0] for a in trained.inputs.encoder.answers)
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
    others = trained.inputs.encoder.tokenizer.decode(changed["other_answers"].context[0].tolist())
    assert "World" in others or "Sports" in others
    assert "Sentiment: Positive" not in others
    assert jax.tree.map(np.shape, own) == jax.tree.map(np.shape, changed["other_answers"])


def test_words_of_another_task():
    own = tasks.get_task("sst5")
    assert changes.other_words(own, "") == tasks.TASKS["trec"].answers  # AG News has too few
    assert changes.other_words(own, "subj") == ("objective", "subjective")
    assert changes.other_words(tasks.get_task("agnews"), "") == tasks.TASKS["trec"].answers
    with pytest.raises(UserError, match="unknown task"):
        changes.other_words(own, "sts2")
    with pytest.raises(UserError, match="multiple choice"):
        changes.other_words(own, "piqa")


@pytest.mark.parametrize(
    ("runs", "seeds", "data", "expected"),
    # Most that a device may hold: 4 runs; of 6 rates, or of one (the controls).
    [(30, 5, 1, 3), (18, 3, 2, 6), (5, 5, 1, 3), (6, 6, 2, 6)],
)
def test_runs_at_once_are_shares_of_seeds(started, runs, seeds, data, expected):
    cfg, _, trained, _ = started
    one = jax.tree.map(lambda x: np.repeat(x[:1], seeds, 0), trained.inputs.demonstrations)
    cfg = cfg.copy_and_resolve_references()
    cfg.finetune.runs_at_once = 4 * data
    at_once = memory.runs_at_once(cfg, trained.subject.params, one, runs, 3 << 30, data)
    assert at_once == expected
    assert runs // seeds % (at_once // data) == 0 or (at_once // data) % (runs // seeds) == 0


def test_names_of_controls():
    cfg = config.default()
    cfg.controls.names = ("all",)
    assert inputs.control_names(cfg) == tuple(catalog.CONTROLS)
    cfg.seeds = (7,)
    assert "other_seed" not in inputs.control_names(cfg)
    cfg.controls.names = ("perturbation", "untrained", "perturbation")
    assert inputs.control_names(cfg) == ("untrained", "perturbation")


def test_every_control_has_its_own_computation():
    """A name without one would be left out, or run another's."""
    kinds: dict = {}
    for name, control in catalog.CONTROLS.items():
        kinds.setdefault(control.kind, set()).add(name)
    assert kinds.pop("model") == controls.WEIGHTS.keys() - {"trained"}
    assert kinds.pop("data") == changes._CHANGES.keys()
    assert kinds.pop("update") == controls._UPDATES.keys()
    assert not kinds


def test_an_unknown_control_is_refused(started, monkeypatch):
    """`shuffled_update` ran the perturbation, and `fresh` weights kept the embeddings."""
    cfg, _, trained, chunks = started
    with pytest.raises(UserError, match="weights is 'fresh'; expected one of trained, untrained"):
        controls.reinitialize(
            trained.subject.params, "fresh", trained.subject.programs.initialize, 0
        )
    odd = catalog.Control("", "", "", "update", "update")
    monkeypatch.setitem(catalog.CONTROLS, "shuffled_update", odd)
    with pytest.raises(UserError, match="update control is 'shuffled_update'; expected one of oth"):
        controls.compare(trained, ("update",), cfg, chunks, lambda _: None)
