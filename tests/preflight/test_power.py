"""How many seeds a pilot's spread asks for, and their time."""

import dataclasses
import json
import math

import pytest
from scipy import stats

from icljax import results
from icljax.errors import UserError
from icljax.experiments import config as config_lib
from icljax.preflight import power
from icljax.records import Claim, Crossed, RateCurve, RateSelection
from icljax.results import Data, Demonstrations, Device, Estimate, Model
from icljax.runtime import workdir
from tests.preflight.test_check import command

SECONDS = {"weights": 10.0, "select": 20.0, "finetune": 8.0, "random_step": 2.0, "cross": 40.0}


def config_of(**changes):
    config = config_lib.of_task("sst2")
    config.seeds = (1, 2, 3, 4)
    config.update_from_flattened_dict(changes)
    return config


def claim(measure, link, spread):
    each = (0.0,) * 4
    difference = Estimate(mean=0.0, per_seed=each, seed_std=spread)
    return Claim(
        measure=measure, link=link, level=0.2, difference=difference, p_above=0.5, p_equal=0.5
    )


def pilot_of(*claims, **changes):
    curve = RateCurve(**{f.name: () for f in dataclasses.fields(RateCurve)})
    return Crossed(
        config=workdir.as_plain(config_of(**changes)),
        versions={},
        device=Device(platform="cpu", kind="cpu", count=1),
        task="sst2",
        template="",
        answers=("a", "b"),
        model=Model(name="qwen2.5-coder-1.5b"),
        data=Data(source="", fingerprint="", evaluated=128, validation_examples=872),
        demonstrations=Demonstrations(asked=16, used=(16,) * 4),
        prompts=(),
        updates=(),
        selection=RateSelection(rate=0.1, seeds=(1,), num_examples=8, selected_on="", curve=curve),
        **{key: {} for key in ("accuracy", "accuracy_calibrated", "gain", "own", "variants")},
        **{key: {} for key in ("matrix", "layers", "steps", "behaviour", "seeds_needed")},
        step_answers=Estimate(),
        random_scale={},
        margin=0.05,
        claims=claims,
        seconds=SECONDS,
    )


def fewest(spread, margin, claims):
    """The least R at which t(1 - .025 / claims) + t(.9) standard errors are within the margin."""
    for seeds in range(2, 1000):
        df = seeds - 1
        tails = stats.t.ppf(1 - 0.025 / claims, df) + stats.t.ppf(0.9, df)
        if tails * spread / math.sqrt(seeds) <= margin:
            return seeds
    raise AssertionError


def test_seeds_and_seconds_by_hand():
    """Claims of similarities share their error, those of behaviour stand alone."""
    pilot = pilot_of(
        claim("output", "untrained", 0.02),
        claim("output", "random_step", 0.05),
        claim("answers", "untrained", 0.05),
    )
    found = power.plan(config_of(**{"study.margin": 0.04}), pilot)
    wanted = [fewest(0.02, 0.04, 2), fewest(0.05, 0.04, 2), fewest(0.05, 0.04, 1)]
    assert [need.seeds for need in found.needs] == wanted
    assert found.seeds == max(wanted)
    # 30 s whatever the seeds, 50 s for 4 of them.
    assert [need.seconds for need in found.needs] == [30 + 12.5 * seeds for seeds in wanted]
    assert found.seconds == 30 + 12.5 * max(wanted)
    assert found.pilot_seconds == 80
    assert not found.differs


def test_a_verdict_needs_more_than_a_tiny_spread():
    found = power.plan(config_of(), pilot_of(claim("output", "untrained", 1e-6)))
    assert found.needs[0].seeds < found.seeds == 5


def test_a_claim_that_no_study_shows_leaves_the_whole_open():
    pilot = pilot_of(claim("output", "untrained", 9.0), claim("map", "untrained", 0.01))
    found = power.plan(config_of(), pilot)
    assert found.needs[0].seeds is found.needs[0].seconds is found.seeds is found.seconds is None
    assert found.needs[1].seeds


def test_other_settings_are_named():
    """Seeds and margin may differ."""
    pilot = pilot_of(claim("output", "untrained", 0.01), num_demonstrations=4)
    found = power.plan(config_of(seeds=(7, 8, 9), **{"study.margin": 0.1}), pilot)
    assert found.differs == "num_demonstrations was 4, now 16"


@pytest.mark.parametrize(
    ("changes", "message"), [({"task": "mr"}, "pilot's task is 'sst2'"), ({"model": "x"}, "model")]
)
def test_a_pilot_of_something_else_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        power.plan(config_of(**changes), pilot_of())


def saved(folder, pilot):
    folder.mkdir(parents=True, exist_ok=True)
    workdir.save_results(folder, results.to_plain(pilot))
    return folder


def test_what_is_no_pilot_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"No such file.*--pilot=WORKDIR"):
        power.read(tmp_path)
    (tmp_path / workdir.RESULTS).write_text(json.dumps({"task": "sst2"}))
    with pytest.raises(UserError, match=r"missing required field .*--pilot=WORKDIR"):
        power.read(tmp_path)
    with pytest.raises(UserError, match=r"has 2 seeds.* 3 or more"):
        power.read(saved(tmp_path, pilot_of(seeds=(1, 2))))
    with pytest.raises(UserError, match="no crossed comparison"):
        power.read(saved(tmp_path, pilot_of(mode="paper")))


def test_the_command_line(tmp_path):
    pilot = pilot_of(claim("output", "untrained", 0.02), claim("label_map", "nothing", 5.0))
    folder, file = saved(tmp_path / "pilot", pilot), tmp_path / "found.json"
    done = command(f"--pilot={folder}", f"--json={file}", config="sst2.py")
    assert done.returncode == 0, done.stderr
    assert "a model that learned nothing" in done.stdout
    assert "more than 1,000 seeds" in done.stdout
    found = json.loads(file.read_text())
    assert found["needs"][0]["seeds"] == fewest(0.02, 0.03, 2)
    both = command(f"--pilot={folder}", "--topology=gpu:1xh100", config="sst2.py")
    assert both.returncode == 2
    assert "one of --topology and --pilot" in both.stderr
    assert len(both.stderr.splitlines()) == 1
