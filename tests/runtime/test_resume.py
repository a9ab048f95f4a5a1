"""A job that is interrupted, at any moment and in any way, ends with the numbers of a whole one.

`pytest -m slow -rP tests/runtime/test_resume.py` kills a job at 20 random moments and prints what
it cost.
"""

import collections
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from icljax.errors import UserError
from icljax.runtime import chunks, processes
from tests.experiments.test_compare import run, tiny_config
from tests.test_main import ROOT, tiny_flags


def job_config(folder, reviews, runs=3):
    """Small chunks: of `runs` finetuning runs, or a batch of queries."""
    changes = {
        "finetune.learning_rates": (0.01, 0.1, 0.2) * (1 if runs > 1 else 3),
        "finetune.runs_at_once": runs,
        "eval.tokens_per_batch": 256,
        "eval.num_examples": 20,
    }
    return tiny_config(folder, reviews, **changes)


@pytest.fixture(scope="module")
def whole(tiny_folder, reviews, tmp_path_factory):
    """The job, never interrupted."""
    path = tmp_path_factory.mktemp("whole") / "job"
    config = job_config(tiny_folder, reviews)
    run(config, path)
    return config, path


def assert_same(path, other):
    """results.json and examples.npz, byte for byte but for the seconds."""
    assert (path / "examples.npz").read_bytes() == (other / "examples.npz").read_bytes()
    ours, theirs = (json.loads((p / "results.json").read_text()) for p in (path, other))
    assert json.dumps(ours | {"seconds": 0}) == json.dumps(theirs | {"seconds": 0})
    assert not (path / chunks.FOLDER).exists()


def interrupt(monkeypatch, after):
    """Lets the job end after so many commits from now on, as SIGTERM would."""
    left = [after]

    def stop():
        left[0] -= 1
        if left[0] == 0:
            raise processes.Stopped("stopped")

    monkeypatch.setattr(processes, "stop_if_asked", stop)


def run_in_pieces(config, path, monkeypatch, commits=2):
    """Runs a job that is interrupted after every so many chunks; how often it was."""
    starts = 0
    while not (path / "results.json").exists():
        interrupt(monkeypatch, commits)
        try:
            run(config, path)
        except processes.Stopped:
            starts += 1
            assert len(committed(path)) == commits * starts
    return starts


def test_interrupted_after_every_other_chunk(whole, tmp_path, monkeypatch):
    config, path = whole
    assert run_in_pieces(config, tmp_path / "job", monkeypatch) >= 3
    assert_same(tmp_path / "job", path)


def test_a_crossed_job_interrupted_after_every_third_chunk(
    tiny_folder, reviews, tmp_path, monkeypatch
):
    """In the selection, between updates, random steps and queries, and in the untrained model."""
    config = job_config(tiny_folder, reviews)
    config.mode, config.seeds = "crossed", (1, 2, 3)
    config.study.selection_seeds, config.study.untrained_examples = 1, 4
    run(config, tmp_path / "whole")
    assert run_in_pieces(config, tmp_path / "job", monkeypatch, 3) >= 4
    assert_same(tmp_path / "job", tmp_path / "whole")


@pytest.fixture
def stopped(whole, tmp_path, monkeypatch):
    """(config, uninterrupted job, workdir of the same job stopped after its fourth commit)."""
    config, path = whole
    interrupt(monkeypatch, 4)
    with pytest.raises(processes.Stopped):
        run(config, tmp_path / "job")
    monkeypatch.undo()
    return config, path, tmp_path / "job"


def committed(path):
    return sorted((path / chunks.FOLDER).glob("*.npz"))


def test_a_damaged_chunk_is_named_and_computed_again(stopped):
    config, whole_path, path = stopped
    chunk = committed(path)[1]
    content = bytearray(chunk.read_bytes())
    content[content.index(b"\x93NUMPY") + 128] ^= 255  # of an array, not of the archive's headers
    chunk.write_bytes(content)
    run(config, path)
    said = (path.parent / "console.txt").read_text()
    assert f"{chunk.name} is damaged" in said.replace("\n", "")
    assert_same(path, whole_path)


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "partial"])
def test_a_damaged_chunk_is_not_read(tmp_path, damage):
    said = []

    def opened():
        return chunks.Chunks(tmp_path, {"model": "a"}, said.append)

    opened().once("one", lambda: {"x": np.arange(100)})
    opened().once("two", lambda: {"x": np.arange(3)})
    file = tmp_path / chunks.FOLDER / "one.npz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    if damage == "partial":  # what a kill in the middle of writing leaves behind
        file.rename(file.with_name("one.npz.partial"))
    else:
        file.write_bytes({"cut": content[:300], "changed": content, "empty": b""}[damage])
    again = opened()
    assert [name for name in ("one", "two") if name in again] == ["two"]
    assert len(said) == (damage != "partial")
    assert all("one.npz is damaged" in line for line in said)
    assert not list((tmp_path / chunks.FOLDER).glob("*.partial"))
    made = again.once("one", lambda: {"x": np.arange(5)})
    assert made["x"].tolist() == opened().once("one", pytest.fail)["x"].tolist()


def test_damaged_finetuned_weights_are_refused(stopped):
    config, _, path = stopped
    for tree in (path / chunks.FOLDER / "trees").iterdir():
        shutil.rmtree(tree)
        tree.mkdir()
    with pytest.raises(UserError, match=r"finetuned weights in .* are damaged"):
        run(config, path)


def test_other_finetuned_weights_are_refused(stopped):
    """Weights that can be read but are not those of the chunk: their checksum tells."""
    config, _, path = stopped
    first, *_, last = sorted((path / chunks.FOLDER / "trees").iterdir())
    shutil.rmtree(last)
    shutil.copytree(first, last)
    with pytest.raises(UserError, match="its checksum differs"):
        run(config, path)


@pytest.mark.parametrize("what", ["model files", "data and prompts", "mesh", "versions"])
def test_something_else_under_the_same_config_is_refused(
    stopped, what, tiny_folder, reviews, monkeypatch
):
    config, _, path = stopped
    if what == "mesh":
        record = path / chunks.FOLDER / "job.json"
        record.write_text(record.read_text().replace('"data": 1', '"data": 4'))
    elif what == "versions":
        monkeypatch.setattr(jax, "__version__", "0.0.1")
    else:
        file = tiny_folder / "model.safetensors"
        file = file if what == "model files" else reviews / "validation.jsonl"
        before = file.read_bytes()
        changed = before.replace(b"the ", b"a ") if what != "model files" else before[:-1] + b"\1"
        file.write_bytes(changed)
    try:
        with pytest.raises(UserError, match=rf"begun with something else.*{what} was"):
            run(config, path)
    finally:
        if what in ("model files", "data and prompts"):
            file.write_bytes(before)


def test_a_full_disk_costs_nothing_that_is_committed(stopped, monkeypatch):
    config, whole_path, path = stopped
    before = committed(path)

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"No space left on device.*the same command continues"):
        run(config, path)
    monkeypatch.undo()
    assert committed(path) == before
    assert not list((path / chunks.FOLDER).glob("*.partial"))
    run(config, path)
    assert_same(path, whole_path)


_CHILD = """
import sys
from pathlib import Path
import jax
sys.path[:0] = [{root!r}]
from icljax.runtime import chunks
from tests import conftest
from tests.runtime import test_resume
jax.config.update("jax_compilation_cache_dir", {cache!r})
once = chunks.Chunks.once

def logged(self, name, compute):
    def computed():
        with open({log!r}, "a") as f:
            print(name, file=f)
        return compute()
    return once(self, name, computed)

chunks.Chunks.once = logged
config = test_resume.job_config(Path({folder!r}), Path({reviews!r}), {runs})
test_resume.run(config, Path({job!r}))
"""


def kill_at_random(whole_path, folder, reviews, tmp_path, kills, seed, runs):
    """Kills the job `kills` times; returns (chunks computed, distinct ones)."""
    log, job = tmp_path / "log", tmp_path / "job"
    log.write_text("")
    program = _CHILD.format(
        root=str(ROOT),
        cache=jax.config.jax_compilation_cache_dir,
        log=str(log),
        folder=str(folder),
        reviews=str(reviews),
        job=str(job),
        runs=runs,
    )

    def start():
        return subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)

    rng, done = random.Random(seed), 0
    while done < kills:
        before, process = len(log.read_text().split()), start()
        # A moment within the start, or within the two chunks after it.
        wanted, wait = before + rng.choice((0, 0, 1, 1, 2)), rng.uniform(0, 1.5)
        while len(log.read_text().split()) < wanted and process.poll() is None:
            time.sleep(0.005)
        time.sleep(wait * rng.random())
        process.send_signal(signal.SIGKILL)
        process.wait()
        done += 1
        assert not (job / "results.json").exists(), f"ended before kill {done}"
    assert start().wait() == 0
    assert_same(job, whole_path)
    computed = collections.Counter(log.read_text().split())
    return computed.total(), len(computed)


@pytest.mark.slow
def test_killed_twenty_times(tiny_folder, reviews, tmp_path):
    run(job_config(tiny_folder, reviews, 1), tmp_path / "whole")
    whole = tmp_path / "whole"
    total, distinct = kill_at_random(whole, tiny_folder, reviews, tmp_path, 20, 1, 1)
    print(f"20 kills: {distinct} chunks, of which {total - distinct} were computed twice")
    assert total - distinct <= 20


@pytest.mark.slow
def test_sigterm_ends_after_a_commit_with_its_own_code(tiny_folder, reviews, tmp_path):
    flags = tiny_flags(tiny_folder, reviews, tmp_path / "job")
    env = os.environ | {"ICLJAX_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}

    def start():
        return subprocess.Popen(
            [sys.executable, "-m", "icljax.main", *flags],
            env=env,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    process = start()
    deadline = time.monotonic() + 120
    while not committed(tmp_path / "job"):
        assert process.poll() is None, "it ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[1]
    assert process.returncode == processes.STOPPED, said
    assert "the same command continues" in said
    assert "Traceback" not in said
    number = len(committed(tmp_path / "job"))
    assert number >= 1
    with start() as again:
        assert again.communicate()[1] == ""
    with np.load(tmp_path / "job/examples.npz") as f:
        assert f["label"].shape == (10,)
