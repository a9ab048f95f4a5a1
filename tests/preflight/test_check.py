"""Whether a job fits: the job's own programs and shapes, closed forms, exit codes."""

import dataclasses
import importlib.util
import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from icljax import checkpoints
from icljax.comparison.inputs import prepare
from icljax.errors import UserError
from icljax.experiments import config as config_lib
from icljax.experiments import job, paper, pretrain
from icljax.preflight import calls as calls_lib
from icljax.preflight import check, costs, hardware, hlo, lengths, rows
from icljax.reports import text
from icljax.runtime import sharding

ROOT = Path(__file__).parents[2]
SHAPES_ONLY = check.Options(compile=False)


def sst2(model="fairseq-1.3b", **changes):
    config = config_lib.default()
    config.task, config.model, config.mode, config.select_seed = "sst2", model, "paper", False
    config.seeds, config.finetune.learning_rates = (1, 2, 3), (1e-4, 3e-4, 1e-3, 3e-3, 0.03, 0.3)
    config.selection.split, config.selection.num_examples = "train", 64
    config.eval.num_examples = 200
    config.update_from_flattened_dict(changes)
    return config


def examined(config, topology, options=SHAPES_ONLY):
    checked = check.make_checked(config, options)
    return check.examine(checked, hardware.parse(topology), options)


@pytest.mark.parametrize(
    ("text", "count", "tpu"),
    [
        ("v5e:4x4", 16, True),
        ("v5e:1x1", 1, True),
        ("v5p:2x2x2", 8, True),
        ("gpu:8xh100", 8, False),
        ("gpu:16xa100-80", 16, False),
    ],
)
def test_topologies(text, count, tpu):
    topology = hardware.parse(text)
    assert (topology.size, topology.tpu) == (count, tpu)
    sizes = hardware.sizes_of(topology)
    assert topology in sizes
    assert [t.size for t in sizes] == sorted({t.size for t in sizes})


@pytest.mark.parametrize(
    "text", ["", "v5e", "v5e:", "v5e:0x4", "v9:4x4", "v5p:4x4", "v6e:2x2x2", "gpu:8", "gpu:2xtpu"]
)
def test_topologies_that_there_are_not(text):
    with pytest.raises(UserError, match="topology"):
        hardware.parse(text)


def test_made_up_prompts_are_as_long_as_the_tasks():
    """Means over the whole splits, counted when the quantiles were: SST-2, AG News, TREC."""
    means = {"sst2": (16.3, 28.2), "agnews": (77.4, 76.3), "trec": (15.8, 12.2)}
    for task, expected in means.items():
        known = lengths.LENGTHS[task]
        got = [np.mean(lengths.spread(q, 1000)) for q in (known.demonstrations, known.queries)]
        np.testing.assert_allclose(got, expected, rtol=0.08)
        assert max(lengths.spread(known.queries, 10_000)) <= known.queries[-1]


def test_work_of_the_papers_job():
    config = sst2(
        num_demonstrations=32, **{"eval.num_examples": 0, "eval.tokens_per_batch": 16_384}
    )
    decoder = check.model_decoder(sst2(model="fairseq-1.3b"))
    work = lengths.make_inputs(config, decoder, lengths.LENGTHS["sst2"])
    assert work.demonstrations.train.shape[:2] == (3, 32)
    assert int((work.evaluation.example >= 0).sum()) == 872
    assert int((work.selection.example >= 0).sum()) == 64
    given = lengths.lengths(config, 100, 20, 50)
    work = lengths.make_inputs(config, decoder, given)
    assert int((work.evaluation.example >= 0).sum()) == 50
    assert work.demonstrations.train_length.max() == 102  # BOS, 100 tokens, the answer


# Of `Programs`: once a job, in milliseconds.
NOT_LISTED = {"initialize", "devices"}


class EndOfJobError(Exception):
    """Raised where a job has called its last program."""


def end_of_job(*_):
    raise EndOfJobError


def counted(programs, seen, value=lambda name: 0):
    """Programs that count their calls, and return arrays of the same number throughout."""
    shapes = {}

    def of(name):
        def call(*arguments):
            key = name, signature(arguments)
            seen[key] += 1
            if key not in shapes:
                shapes[key] = jax.eval_shape(getattr(programs, name), *arguments)
            number = value(name)
            return jax.tree.map(lambda x: jnp.full(x.shape, number, x.dtype), shapes[key])

        return call

    names = {field.name for field in dataclasses.fields(programs)} - NOT_LISTED
    return dataclasses.replace(programs, **{name: of(name) for name in names})


def check_foreseen(calls, seen):
    foreseen: Counter = Counter()
    for call in calls:
        foreseen[call.name, signature(call.arguments)] += call.times
    assert seen.keys() == foreseen.keys()
    for (name, arguments), count in foreseen.items():
        assert seen[name, arguments] == count, name


def test_every_program_of_a_real_job_was_foreseen(tiny_folder, reviews, tmp_path, monkeypatch):
    """Same programs, arguments and numbers of calls as a job's, whose programs return zeros."""
    config = config_lib.default()
    config.model, config.task = str(tiny_folder), "mr"
    config.data.source = f"jsonl:{reviews}"
    config.seeds, config.num_demonstrations = (1, 2), 3
    config.finetune.learning_rates, config.finetune.runs_at_once = (0.01, 0.1), 2
    config.selection.num_examples, config.eval.num_examples = 6, 8
    config.mode, config.selection.split, config.select_seed = "paper", "train", True
    config_lib.fill_in(config)
    seen: Counter = Counter()

    make = paper.make_programs
    monkeypatch.setattr(paper, "make_programs", lambda *args: counted(make(*args), seen))
    monkeypatch.setattr(paper.statistics, "example_arrays", end_of_job)
    with pytest.raises(EndOfJobError):
        paper.run(config, tmp_path / "job", Console(quiet=True))

    checkpoint = checkpoints.open_checkpoint(config.model)
    prepared = prepare(config, checkpoint, lambda _: None)
    mesh = sharding.make_mesh(1, 1)
    calls = calls_lib.compare_calls(config, checkpoint.config, prepared, mesh, 1 << 33)
    check_foreseen(calls, seen)


def signature(arguments):
    leaves, tree = jax.tree.flatten(arguments)
    return str(tree), tuple((np.shape(x), str(jnp.result_type(x))) for x in leaves)


@pytest.fixture(scope="module")
def small():
    """A small decoder's job on one device, with its programs."""
    return small_job(sst2("fairseq-125m", num_demonstrations=4, dtype="float32"))


def small_job(config):
    """A job of few examples with a small decoder: (calls, programs)."""
    config.eval.tokens_per_batch, config.eval.num_examples = 512, 32
    job = check.make_checked(config, SHAPES_ONLY)
    small = {"width": 48, "mlp_width": 96, "num_layers": 3, "vocab_size": 512, "head_width": 16}
    decoder = dataclasses.replace(job.decoder, num_heads=4, num_kv_heads=4, **small)
    job = dataclasses.replace(job, decoder=decoder)
    mesh = sharding.make_mesh(1, 1)
    return job.calls(mesh, 1 << 33), job.programs(mesh, "")


def test_what_programs_hand_each_other(small):
    calls, programs = small
    for call in calls:
        out = jax.eval_shape(programs[call.name], *call.arguments)
        if call.outputs is not None:
            assert signature(out) == signature(call.outputs), call.name


@pytest.mark.parametrize("name", ["encode", "update"])
def test_closed_forms_are_what_is_compiled(small, name):
    calls, programs = small
    call = next(c for c in calls if c.name == name)
    compiled = programs[name].lower(*call.arguments).compile()
    cost = hlo.analyze(compiled.as_text())
    np.testing.assert_allclose(cost.flops, call.estimate.flops, rtol=0.01)
    arguments = compiled.memory_analysis().argument_size_in_bytes
    # XLA leaves out what a program does not use.
    assert arguments <= costs.device_bytes(call.arguments) * 1.001


def test_a_larger_model_axis_needs_less_and_talks_more():
    job = check.make_checked(sst2("fairseq-13b"), SHAPES_ONLY)
    topology = hardware.parse("gpu:8xa100-40")
    one, four = (check.from_shapes(job, topology, model) for model in (1, 4))
    assert not one.fits
    assert four.needed < one.needed
    sent = [sum(row.sent for row in verdict.rows) for verdict in (one, four)]
    assert sent[0] == 0 < sent[1]


def test_the_smallest_model_axis_that_fits_is_chosen():
    report = examined(sst2("fairseq-13b"), "gpu:8xa100-40")
    job = check.make_checked(sst2("fairseq-13b"), SHAPES_ONLY)
    assert report.asked.fits
    assert report.asked.model > 1
    smaller = check.from_shapes(job, report.asked.topology, report.asked.model // 2)
    assert not smaller.fits


def test_the_smallest_topology():
    report = examined(sst2("fairseq-13b"), "gpu:1xa100-40")
    assert not report.asked.fits
    assert report.smallest is not None
    count = report.smallest.topology.size
    assert count > 1
    assert not examined(sst2("fairseq-13b"), f"gpu:{count // 2}xa100-40").asked.fits
    assert examined(sst2("fairseq-125m"), "gpu:8xa100-40").smallest.topology.size == 1


def test_more_seeds_cost_more_memory_and_time():
    few = examined(sst2(seeds=(1,)), "gpu:1xh100").asked
    many = examined(sst2(seeds=tuple(range(1, 8))), "gpu:1xh100").asked
    assert many.needed > few.needed
    assert many.seconds > 2 * few.seconds


def test_durations_as_people_read_them():
    texts = [text.duration(x) for x in (0.0123, 56.4, 112, 150, 8000, 200_000)]
    assert texts == ["0.012 s", "56 s", "110 s", "2.5 min", "2.22 h", "2.31 days"]


def test_seconds_of_an_operation_and_a_collective():
    chip = hardware.Chip(memory=1, flops=100.0, exact=20.0, bandwidth=10.0, links=5.0)
    topology = hardware.Topology("x", chip, 2, tpu=True)
    collective = hlo.Collective("all-gather", 10, 2, "")  # sends 10 bytes
    work = Counter({hlo.Work(200.0, 1.0): 3, hlo.Work(1.0, 70.0): 1})
    got = rows.seconds(hlo.Cost(work, Counter({collective: 2})), topology)
    operations = 3 * 200 / (rows.MATRIX_SHARE * 100) + 70 / (rows.MEMORY_SHARE * 10)
    talk = 2 * (10 / (rows.LINK_SHARE * 5) + rows.COLLECTIVE_SECONDS)
    assert math.isclose(got, operations + talk)


def test_pretraining():
    config = pretrain.default()
    config.variants, config.model.family, config.mesh.data = "softmax", "gpt2", -1
    report = examined(config, "gpu:8xh100")
    step = report.asked.rows[0]
    assert step.name == "softmax: step"
    assert step.calls == config.train.steps * len(config.seeds)
    state = check.from_shapes(check.make_checked(config, SHAPES_ONLY), report.asked.topology, 1)
    decoder = pretrain.decoder_config(config, "softmax", config.text.vocab_size)
    size = sum(x.size for x in jax.tree.leaves(job.shapes(decoder)))
    assert state.rows[0].arguments >= 12 * size  # parameters and two moments, float32


@pytest.mark.parametrize(
    ("changes", "topology", "message"),
    [
        ({"experiment": "dual"}, "gpu:1xh100", "has no preflight"),
        ({"task": "mine"}, "gpu:1xh100", "--demonstration_tokens"),
        ({"model": "no-such-model"}, "gpu:1xh100", "fairseq-13b"),
        ({"prompt.max_length": 40}, "gpu:1xh100", "no demonstration fits"),
    ],
)
def test_mistakes(changes, topology, message):
    with pytest.raises(UserError, match=message):
        examined(sst2(**changes), topology)


def test_a_mesh_that_does_not_divide_says_which_would():
    options = dataclasses.replace(SHAPES_ONLY, model_axis=16)
    with pytest.raises(UserError, match=r"--config.mesh.model may be 1, 2, 4, 8 *\)"):
        examined(sst2("fairseq-13b"), "gpu:16xh100", options)


def test_a_compiler_that_gave_up_says_how_much_it_wanted():
    row = examined(sst2(), "gpu:1xh100").asked.rows[0]
    row = dataclasses.replace(row, arguments=1 << 30, outputs=0, temporaries=0)
    message = "Ran out of memory in memory space hbm. Used 20.00G of 15.75G hbm."
    assert rows._too_large(message, row) == 19 << 30


def command(*flags, config="sst2.py"):
    return subprocess.run(
        [sys.executable, "-m", "icljax.preflight", f"--config={ROOT / 'configs' / config}", *flags],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_line(tmp_path):
    file = tmp_path / "found.json"
    fits = command("--config.model=fairseq-13b", "--topology=gpu:8xh100", f"--json={file}")
    assert fits.returncode == 0, fits.stderr
    assert "Give the job --config.mesh.model=" in fits.stdout
    assert "from shapes alone" in fits.stdout
    found = json.loads(file.read_text())
    assert found["asked"]["fits"] is True
    assert {row["name"] for row in found["asked"]["programs"]} >= {
        "encode_prompt",
        "finetune",
        "read_update",
    }
    small = command(
        "--config.model=fairseq-13b",
        "--topology=gpu:4xa100-40",
        "--config.mesh.model=1",
        "--config.study.links=('other_demonstrations',)",
    )
    assert small.returncode == 1, small.stderr
    assert "DOES NOT FIT" in small.stdout
    assert "needs less memory with: --config." in small.stdout
    assert "Smallest that fits: gpu:" in small.stdout
    wrong = command("--topology=v5e:3")
    assert wrong.returncode == 2
    assert "v5e:4x4" in wrong.stderr
    assert len(wrong.stderr.strip().splitlines()) == 1


# The programs that read, for four chips of which pairs share a model.
READING = """
import dataclasses
import json
from icljax.experiments import config as config_lib
from icljax.preflight import check, hardware, rows

check.set_up()
config = config_lib.default()
config.task, config.model, config.seeds = "sst2", "fairseq-125m", (1, 2)
config.mode = "paper"
job = check.make_checked(config, check.Options())
guess = check.from_shapes(job, hardware.parse("v5e:2x2"), 2)
mesh = check.tpu_mesh(guess)
programs = job.programs(mesh, "")
for call in job.calls(mesh, guess.topology.chip.memory):
    if call.name in ("encode", "score", "compare"):
        row = rows.compiled_row(programs[call.name], call, guess, -1.0)
        print(json.dumps(dataclasses.asdict(row)))
"""


@pytest.mark.tpu_compile
def test_compiled_for_a_tpu():
    """FLOPs as in closed form; what is sent is two all-reduces a layer, in one form or another."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed")
    done = subprocess.run(
        [sys.executable, "-c", READING],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # Demonstrations are encoded for the grid, and again beside what the comparison holds.
    encode, score, again, compare = (json.loads(line) for line in done.stdout.splitlines())
    assert again["flops"] == encode["flops"]
    for row in (encode, score, compare):
        assert row["compiled"]
        np.testing.assert_allclose(row["flops"], row["expected_flops"], rtol=0.03)
    inside = [(kind, n) for kind, n, _, name in encode["collectives"] if "/layers/" in name]
    assert inside == [("all-reduce", 2 * 12)] * 2  # seeds x layers, after attention and after MLP
    for row, closed in ((score, 1.05), (compare, 1.5)):  # windowed products send a part twice
        inside = sum(sent for _, _, sent, name in row["collectives"] if "/layers/" in name)
        assert inside < closed * row["expected_sent"]
        assert row["sent"] - inside < 0.1 * row["sent"]
