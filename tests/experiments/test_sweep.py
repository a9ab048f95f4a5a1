"""Many jobs as one: which there are, what failed, what a second command does."""

import io
import json
import os
import signal

import pytest
from rich.console import Console

from configs import paper
from icljax.errors import UserError
from icljax.experiments import compare, sweep
from icljax.experiments import config as config_lib
from icljax.reports import paper as published
from icljax.runtime import processes, workdir
from tests.conftest import undrawn
from tests.reports.test_tables import job, real  # noqa: F401 - `real` is a fixture


def sweep_config(**changes):
    config = config_lib.sweep()
    config.tasks = ("mr", "cb")
    config.models = ("org/one", "two")
    config.base.data.source = "jsonl:data/{task}"
    config.settings = (("gd", {}), ("k8", {"num_demonstrations": 8}))
    config.update_from_flattened_dict(changes)
    config.lock()
    return config


def run(config, path):
    console = Console(file=io.StringIO(), width=100)
    return sweep.run(config, path, console)


@pytest.fixture
def jobs(monkeypatch, real):  # noqa: F811
    """Stands for experiment.run: notes its calls; tasks in `fail` fail."""
    calls, fail = [], {}

    @workdir.one_job
    def stub(config, path, console):
        calls.append(path.name)
        if config.task in fail:
            raise fail[config.task]
        result = job(real, config.task, config.model)
        workdir.save_results(path, result)
        return result

    monkeypatch.setattr(compare, "run", stub)
    monkeypatch.setattr(processes, "_asked", [])
    with undrawn():
        yield calls, fail


FOLDERS = ["mr_one", "mr_two", "cb_one", "cb_two"]


def test_tasks_models_and_settings_make_the_jobs():
    plan = sweep.plan(sweep_config())
    assert [p.folder for p in plan] == [*FOLDERS, *(f"{f}_k8" for f in FOLDERS)]
    assert [p.config.num_demonstrations for p in plan] == [16] * 4 + [8] * 4
    assert plan[2].config.data.source == "jsonl:data/cb"
    assert plan[0].config.model == "org/one"


def test_overrides_are_for_the_jobs_whose_names_fit():
    overrides = (("cb_*", {"seeds": (5,)}), ("*_two_k8", {"seeds": (6,), "data.source": "tfds:x"}))
    plan = {p.folder: p.config for p in sweep.plan(sweep_config(overrides=overrides))}
    assert plan["mr_one"].seeds == (1, 2, 3, 4, 5, 6, 7, 8)
    assert plan["cb_one"].seeds == plan["cb_two"].seeds == plan["cb_one_k8"].seeds == (5,)
    assert plan["cb_two_k8"].seeds == plan["mr_two_k8"].seeds == (6,)
    assert plan["cb_two_k8"].data.source == "tfds:x"


def test_jobs_can_be_left_out():
    config = sweep_config(skip=("cb_*_k8,*_two_k8",))
    sweep.validate(config)
    assert [p.folder for p in sweep.plan(config)] == [*FOLDERS, "mr_one_k8"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"skip": ("*",)}, "config.skip is .*some job that is left"),
        ({"tasks": ()}, "config.tasks is"),
        ({"models": ("a", "a")}, "config.models is"),
        ({"settings": ()}, "config.settings is"),
        ({"settings": ("gd",)}, "config.settings is"),
        ({"settings": (("x", {"seedz": (1,)}),)}, "job mr_one_x: .*seedz"),
        ({"settings": (("x", {"seeds": (1, 1)}),)}, "job mr_one_x: config.seeds"),
        (
            {"overrides": (("cb*", {"finetune.method": "sgd"}),)},
            "job cb_one: config.finetune.method",
        ),
        ({"models": ("a/x", "b/x")}, "share the folder mr_x"),
    ],
)
def test_a_mistake_is_found_before_anything_runs(changes, message):
    with pytest.raises(UserError, match=message):
        sweep.validate(sweep_config(**changes))


def test_a_failure_is_recorded_and_the_others_go_on(jobs, tmp_path):
    calls, fail = jobs
    fail["mr"] = UserError("no data\nfor mr; do this")
    config, path = sweep_config(settings=(("gd", {}),)), tmp_path / "all"
    record = run(config, path)
    assert calls == FOLDERS
    assert record["mr_one"]["error"] == "no data for mr; do this"
    assert record["cb_one"]["error"] == ""
    assert json.loads((path / "sweep.json").read_text()) == record
    assert "no data for mr" in (path / "report.md").read_text()
    with pytest.raises(
        UserError, match=r"2 of 4 jobs failed \(mr_one: no data for mr; do this; mr_t"
    ):
        sweep.show(record, path, Console(file=io.StringIO()))
    # The same command tries these again, and only these.
    calls.clear()
    fail.clear()
    record = run(config, path)
    assert calls == ["mr_one", "mr_two"]
    assert not any(j["error"] for j in record.values())
    assert "failed" not in (path / "report.md").read_text()
    sweep.show(record, path, Console(file=io.StringIO()))


def test_all_may_fail(jobs, tmp_path):
    jobs[1].update(mr=UserError("a"), cb=UserError("b"))
    record = run(sweep_config(), tmp_path)
    assert all(j["error"] for j in record.values())
    assert not (tmp_path / "report.md").exists()


def test_a_mistake_of_ours_is_not_swallowed(jobs, tmp_path):
    jobs[1]["mr"] = KeyError("bug")
    with pytest.raises(KeyError, match="bug"):
        run(sweep_config(), tmp_path)


def test_asked_to_stop_it_stops_between_jobs_and_goes_on_later(jobs, monkeypatch, tmp_path):
    calls, _ = jobs
    stub = compare.run

    def stopping(config, path, console):
        if path.name == "mr_two":
            os.kill(os.getpid(), signal.SIGTERM)
        return stub(config, path, console)

    monkeypatch.setattr(compare, "run", stopping)
    with pytest.raises(processes.Stopped):
        run(sweep_config(), tmp_path)
    assert calls == ["mr_one", "mr_two"]
    monkeypatch.setattr(processes, "_asked", [])
    monkeypatch.setattr(compare, "run", stub)
    run(sweep_config(), tmp_path)
    assert calls == [*FOLDERS, *(f"{f}_k8" for f in FOLDERS)]  # none twice
    assert (tmp_path / "report.html").is_file()


def test_another_folder_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no sweep"):
        run(sweep_config(), tmp_path)


def test_a_sweep_can_grow(jobs, tmp_path):
    calls, _ = jobs
    run(sweep_config(tasks=("mr",)), tmp_path)
    calls.clear()
    run(sweep_config(), tmp_path)
    assert [c for c in calls if c.startswith("mr")] == []


# ------------------------------------------------------------------------------------- its configs


def test_the_papers_sweep_is_the_papers():
    plan = {p.folder: p.config for p in sweep.plan(paper.get_config())}
    assert len(plan) == 12
    for (task, size), cell in published.CELLS.items():
        (config,) = (c for f, c in plan.items() if f.startswith(f"{task}_") and size.upper() in f)
        assert config.seeds == (cell.seed,)
        assert config.finetune.learning_rates == (cell.learning_rate,)
        assert config.num_demonstrations == published.TASKS[task].demonstrations
        assert (config.eval.num_examples, config.prompt.separator) == (0, "<eos>")
        assert (config.mode, config.select_seed) == ("paper", False)


def test_the_papers_search():
    config = paper.get_config("search")
    sweep.validate(config)
    job = sweep.plan(config)[0].config
    config_lib.fill_in(job)
    assert len(job.finetune.learning_rates) * len(job.seeds) == 36 * 7
    assert (job.selection.split, job.select_seed) == ("validation", True)
    with pytest.raises(UserError, match="published or search"):
        paper.get_config("serach")
