"""The job on several devices and in several processes: the same numbers, and clear ends.

Runs the command line on virtual CPU devices; `-rP` prints the largest differences.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from icljax.runtime import processes
from tests.conftest import llama_tensors, tiny_llama_config, write_folder
from tests.test_main import ROOT

RANKS = ("kendall", "recall")  # two numbers that differ by rounding may change places
COMPARED = (
    f"--config={ROOT / 'configs/mr.py'}",
    "--config.seeds=1,2",
    "--config.eval.num_examples=20",
    "--config.mode=paper",
    "--config.select_seed=False",
    "--config.metrics.bootstrap_samples=100",
)
CROSSED = (
    f"--config={ROOT / 'configs/mr.py'}",
    "--config.seeds=1,2,3",
    "--config.eval.num_examples=12",
    "--config.study.selection_seeds=2",
    "--config.study.untrained_examples=4",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """8 heads in 4 groups, so that a model axis of 4 divides all."""
    config = tiny_llama_config(
        hidden_size=64, intermediate_size=96, num_attention_heads=8, num_key_value_heads=4
    )
    path = tmp_path_factory.mktemp("model") / "tiny"
    return write_folder(path, config, llama_tensors(config, scale=0.15))


@pytest.fixture(scope="module")
def job(folder, reviews, tmp_path_factory):
    """A function that starts a job: (workdir, devices, flags, its own config) -> process."""
    cache = tmp_path_factory.mktemp("cache")
    flag = "--xla_force_host_platform_device_count"

    def start(workdir, devices, *flags, own=COMPARED):
        env = os.environ | {
            "ICLJAX_CACHE": str(cache),
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}={devices}",
        }
        common = (
            f"--workdir={workdir}",
            f"--config.model={folder}",
            f"--config.data.source=jsonl:{reviews}",
            "--config.num_demonstrations=4",
            "--config.finetune.learning_rates=0.01,0.1,0.2",
            "--config.selection.num_examples=8",
            "--config.eval.tokens_per_batch=256",
        )
        return subprocess.Popen(
            [sys.executable, "-m", "icljax.main", *own, *common, *flags],
            env=env,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


def mesh(data, model):
    return (f"--config.mesh.data={data}", f"--config.mesh.model={model}")


def finish(process):
    said = process.communicate()[0]
    assert process.returncode == 0, said[-3000:]
    return said


def joined(port, number, of=2):
    return (f"--coordinator=127.0.0.1:{port}", f"--num_processes={of}", f"--process_id={number}")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def numbers(tree, path=""):
    """Every number of results.json by its path, but times and what the devices are."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key not in ("seconds", "config", "device", "versions"):
                yield from numbers(value, f"{path}.{key}")
    elif isinstance(tree, list):
        for i, value in enumerate(tree):
            yield from numbers(value, f"{path}[{i}]")
    elif isinstance(tree, int | float):
        yield path, tree


def results(workdir):
    return dict(numbers(json.loads((workdir / "results.json").read_text())))


def compare(name, ours, theirs):
    """All metrics to 1e-5 (their values are rounded to 1e-6), rank metrics to 1e-3."""
    ours, theirs = results(ours), results(theirs)
    assert ours.keys() == theirs.keys()
    difference = {k: abs(ours[k] - theirs[k]) for k in ours}
    for ranks in (False, True):
        some = {k: d for k, d in difference.items() if any(r in k for r in RANKS) == ranks}
        worst = max(some, key=some.__getitem__)
        print(f"{name}: {len(some)} numbers, worst {worst} {some[worst]:.1e}")
        assert some[worst] <= (1e-3 if ranks else 1.1e-5), worst


@pytest.fixture(scope="module")
def single(job, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("single") / "job"
    finish(job(workdir, 1))
    return workdir


@pytest.mark.parametrize(
    "shape",
    [
        (2, 4),
        pytest.param((8, 1), marks=pytest.mark.slow),
        pytest.param((1, 4), marks=pytest.mark.slow),
    ],
)
def test_a_mesh_changes_nothing(job, single, shape, tmp_path):
    finish(job(tmp_path / "job", 8, *mesh(*shape)))
    compare(f"data {shape[0]} x model {shape[1]}", tmp_path / "job", single)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(8, 1), (2, 4)])
def test_a_mesh_changes_nothing_of_a_crossed_comparison(job, shape, tmp_path):
    finish(job(tmp_path / "one", 1, own=CROSSED))
    finish(job(tmp_path / "mesh", 8, *mesh(*shape), own=CROSSED))
    with np.load(tmp_path / "one/examples.npz") as f, np.load(tmp_path / "mesh/examples.npz") as g:
        assert f.files == g.files
        for name in f.files:
            near = 1e-3 if any(r in name for r in RANKS) else 1e-4
            np.testing.assert_allclose(g[name], f[name], atol=near, rtol=near, err_msg=name)
    one, other = (results(tmp_path / name) for name in ("one", "mesh"))
    assert one.keys() == other.keys()


@pytest.mark.slow
@pytest.mark.parametrize("each", [1, 4])
def test_two_processes_equal_one(job, each, tmp_path):
    """Over data alone nothing is ever summed across devices: equal byte for byte."""
    finish(job(tmp_path / "one", 2 * each, *mesh(2 * each, 1)))
    port = free_port()
    flags = mesh(2 * each, 1)
    pair = [job(tmp_path / "two", each, *flags, *joined(port, i)) for i in (0, 1)]
    first, second = (finish(process) for process in pair)
    assert "SimAOU" in first
    assert "SimAOU" not in second, "process 0 alone prints"
    one, two = tmp_path / "one", tmp_path / "two"
    assert (one / "examples.npz").read_bytes() == (two / "examples.npz").read_bytes()
    assert results(one) == results(two)


@pytest.mark.slow
def test_two_processes_with_a_model_axis(job, single, tmp_path):
    port = free_port()
    pair = [job(tmp_path / "job", 4, *mesh(2, 4), *joined(port, i)) for i in (0, 1)]
    for process in pair:
        finish(process)
    compare("2 processes, data 2 x model 4", tmp_path / "job", single)


def test_a_lost_process_ends_the_job(job, tmp_path):
    port = free_port()
    pair = [job(tmp_path / "job", 1, *mesh(2, 1), *joined(port, i)) for i in (0, 1)]
    deadline = time.monotonic() + 120
    while not list((tmp_path / "job/progress").glob("*.npz")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    pair[1].send_signal(signal.SIGKILL)
    pair[1].communicate()
    said = pair[0].communicate(timeout=90)[0]
    # JAX's own service may be first to notice, and aborts.
    expected = {
        processes.LOST: "another process of the job was lost",
        -signal.SIGABRT: "stopped sending heartbeats",
    }
    assert expected[pair[0].returncode] in said, said[:3000]
    assert "Traceback" not in said, said[:3000]


def test_heads_that_do_not_divide_are_refused(job, tmp_path):
    process = job(tmp_path / "job", 8, *mesh(1, 8))
    said = process.communicate()[0]
    assert process.returncode == 2
    assert "cannot be split over mesh.model=8: 4 does not divide evenly" in said


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--coordinator=127.0.0.1:1",), "needs --num_processes and --process_id too"),
        (("--distributed",), "cannot join"),
        (mesh(4, 4), "does not fit 2 devices"),
    ],
)
def test_mistakes_are_told_in_one_line(job, flags, expected, tmp_path):
    process = job(tmp_path / "job", 2, *flags)
    said = process.communicate()[0]
    assert process.returncode == 2
    assert expected in said
    assert "Traceback" not in said
