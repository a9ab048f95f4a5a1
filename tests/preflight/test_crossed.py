"""A crossed comparison's programs, as preflight foresees them."""

import itertools
from collections import Counter

import jax
import numpy as np
import pytest

from icljax import catalog, checkpoints
from icljax.comparison import crossed as programs_lib
from icljax.comparison import work
from icljax.comparison.inputs import prepare
from icljax.comparison.work import ROUNDS
from icljax.experiments import config as config_lib
from icljax.experiments import crossed, job
from icljax.preflight import check, hardware, hlo
from icljax.preflight.crossed import crossed_calls
from icljax.runtime import sharding
from tests.experiments.test_crossed import crossed_config
from tests.experiments.test_crossed import run as run_crossed
from tests.preflight.test_check import (
    SHAPES_ONLY,
    EndOfJobError,
    check_foreseen,
    counted,
    end_of_job,
    examined,
    signature,
    small_job,
)

LINKS = tuple(name for name in catalog.LINKS if name != "nothing")


def sst2(model="qwen2.5-coder-1.5b", **changes):
    config = config_lib.of_task("sst2")
    config.model = model
    config.update_from_flattened_dict(changes)
    return config


def test_every_program_of_a_real_job_was_foreseen(tiny_folder, reviews, tmp_path, monkeypatch):
    """Same programs, arguments and numbers of calls as a job's, whose programs return zeros."""
    config = crossed_config(tiny_folder, reviews, seeds=(1, 2, 3), **{"study.links": LINKS})
    config_lib.validate(config)
    seen: Counter = Counter()
    steps = itertools.cycle([1.0, *[2.0] * (ROUNDS - 1), 1.0])

    def zeros(programs):
        return counted(programs, seen, lambda name: next(steps) if name == "mean_step" else 0)

    programs_of, make_programs = crossed.programs_of, programs_lib.make_programs
    monkeypatch.setattr(crossed, "programs_of", lambda static: zeros(programs_of(static)))
    monkeypatch.setattr(programs_lib, "make_programs", lambda static: zeros(make_programs(static)))
    monkeypatch.setattr(crossed, "summarize", end_of_job)
    with pytest.raises(EndOfJobError):
        run_crossed(config, tmp_path / "job")

    checkpoint = checkpoints.open_checkpoint(config.model)
    inputs = prepare(config, checkpoint, lambda _: None)
    mesh = sharding.make_mesh(1, 1)
    check_foreseen(crossed_calls(config, checkpoint.config, inputs, mesh, 1 << 33), seen)


@pytest.fixture(scope="module")
def small():
    """A small decoder's study on one device, with its programs."""
    config = sst2("fairseq-125m", num_demonstrations=4, dtype="float32", seeds=(1, 2, 3))
    config.study.links = LINKS
    return small_job(config)


def test_what_programs_hand_each_other(small):
    calls, programs = small
    for call in calls:
        if call.outputs is not None and call.variant in ("", "random"):
            out = jax.eval_shape(programs[call.name], *call.arguments)
            assert signature(out) == signature(call.outputs), call.name


@pytest.mark.parametrize(
    "name", ["zero_shot", "read_prompt", "read_update", "pairs", "random_step"]
)
def test_closed_forms_are_what_is_compiled(small, name):
    calls, programs = small
    call = [c for c in calls if c.name == name and c.variant in ("", "random")][-1]
    compiled = programs[name].lower(*call.arguments).compile()
    cost = hlo.analyze(compiled.as_text())
    np.testing.assert_allclose(cost.flops, call.estimate.flops, rtol=0.01)


def test_what_a_study_holds():
    """The trained weights make room for the untrained ones; all prompts' states are kept."""
    checked = check.make_checked(sst2(), SHAPES_ONLY)
    verdict = check.from_shapes(checked, hardware.parse("gpu:1xh100"), 1)
    untrained = [row for row in verdict.rows if row.name == "untrained: finetune"]
    assert [row.beside for row in untrained] == [0, 0]
    weights = 4 * 1_777_088_000  # float32
    assert untrained[0].arguments == pytest.approx(weights, rel=0.02)
    encode = next(row for row in verdict.rows if row.name == "encode_prompt")
    tokens = checked.inputs.demonstrations.context.shape[1]
    assert encode.outputs == pytest.approx(28 * 2 * tokens * 2 * 128 * 4, rel=0.01)


def test_links_that_are_not_asked_for_cost_nothing():
    full = examined(sst2(), "gpu:1xh100").asked
    config = sst2(**{"study.links": ("other_demonstrations",), "study.kendall": False})
    small = examined(config, "gpu:1xh100").asked
    assert {row.name.partition(":")[0] for row in full.rows} >= {"random", "untrained"}
    assert not {row.name.partition(":")[0] for row in small.rows} & {"random", "untrained"}
    assert small.seconds < full.seconds


def test_another_method_is_planned_too():
    config = sst2(**{"study.methods": ("lcgd",)})
    rows = {row.name: row for row in examined(config, "gpu:1xh100").asked.rows}
    without = {row.name: row for row in examined(sst2(), "gpu:1xh100").asked.rows}
    assert set(rows) - set(without) >= {"lcgd: finetune", "lcgd: read_update"}
    assert rows["lcgd: finetune"].seconds > rows["untrained: finetune"].seconds  # reads every layer
    assert rows["read_update"].calls == without["read_update"].calls * 32 // 24  # 8 seeds


@pytest.mark.parametrize("method", ["gd", "lcgd"])
def test_what_a_job_says_of_its_length_is_what_is_planned(method):
    """But finetuning, which preflight pads to the longest example, and without attention."""
    config = sst2(**{"study.methods": ("lcgd",)} if method == "lcgd" else {})
    checked = check.make_checked(config, SHAPES_ONLY)
    mesh = sharding.make_mesh(1, 1)
    calls = checked.calls(mesh, 1 << 36)
    planned = sum(call.estimate.flops * call.times for call in calls if call.name != "finetune")
    runs = sum(call.estimate.flops * call.times for call in calls if call.name == "finetune")
    plan, inputs = crossed.make_plan(config), checked.inputs
    shown = crossed.all_demonstrations(inputs, plan)
    said = work.crossed_flops(config, job.shapes(checked.decoder), inputs, shown, plan)
    assert 0.8 * planned < said < 1.1 * (planned + runs)


def test_a_larger_model_axis_needs_less_and_talks_more():
    checked = check.make_checked(sst2("fairseq-13b"), SHAPES_ONLY)
    topology = hardware.parse("gpu:8xa100-40")
    one, four = (check.from_shapes(checked, topology, model) for model in (1, 4))
    assert four.needed < one.needed
    talking = {row.name for row in four.rows if row.sent}
    assert talking >= {"zero_shot", "read_prompt", "read_update", "random: random_step"}
    assert not any(row.sent for row in one.rows)


def test_a_named_model_is_neither_fetched_nor_converted(monkeypatch):
    def fetch(*_):
        raise AssertionError

    monkeypatch.setattr(check.checkpoints, "open_checkpoint", fetch)
    assert examined(sst2(), "gpu:1xh100").asked.fits
