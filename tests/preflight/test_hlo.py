"""What a compiled program does, against counts made by hand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icljax.preflight import hlo

DATA = Path(__file__).parent / "data"


def compiled_text(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(function).lower(*arguments).compile().as_text()


def test_a_matrix_product_counts_two_flops_a_multiplication():
    cost = hlo.analyze(compiled_text(lambda a, b: a @ b, (16, 32), (32, 8)))
    assert cost.flops == 2 * 16 * 32 * 8
    assert cost.bytes == 4 * (16 * 32 + 32 * 8 + 16 * 8)
    assert not cost.collectives


def test_loops_within_loops_multiply():
    def nested(x, w):
        def outer(c, _):
            return jax.lax.scan(lambda c, w: (c @ w, None), c, w)[0], None

        return jax.lax.scan(outer, x, None, length=5)[0]

    text = compiled_text(nested, (16, 32), (3, 32, 32))
    assert hlo.analyze(text).flops == 5 * 3 * 2 * 16 * 32 * 32


def test_a_loop_reads_a_slice_of_what_it_scans_over():
    """Not the whole stack of weights in each trip."""
    width, trips = 64, 10
    text = compiled_text(
        lambda x, w: jax.lax.scan(lambda c, w: (c @ w, None), x, w)[0],
        (8, width),
        (trips, width, width),
    )
    stack = 4 * trips * width**2
    assert stack < hlo.analyze(text).bytes < 4 * stack


def test_a_conditional_counts_its_dearest_branch():
    def either(which, a):
        branches = [lambda a: a, lambda a: a @ a, lambda a: a @ a @ a]
        return jax.lax.switch(which.astype(int)[0], branches, a)

    text = compiled_text(either, (1,), (16, 16))
    assert hlo.analyze(text).flops == 2 * 2 * 16**3


def test_a_loop_whose_end_the_data_decide_counts_once():
    def grow(a):
        return jax.lax.while_loop(lambda a: a[0, 0] < 9, lambda a: a @ a, a)

    text = compiled_text(grow, (8, 8))
    assert hlo.analyze(text).flops == 2 * 8**3


def test_convolutions_count_what_meets_an_element():
    def convolve(image, kernel):
        return jax.lax.conv_general_dilated(image, kernel, (1, 1), "VALID")

    text = compiled_text(convolve, (2, 3, 10, 10), (4, 3, 3, 3))
    assert hlo.analyze(text).flops == 2 * 2 * 4 * 8 * 8 * 3 * 3 * 3


@pytest.mark.parametrize(
    ("image", "kernel", "out", "window", "expected"),
    [
        (8, 1, 8, {"stride": 1, "low": 0, "image": 1, "kernel": 1}, 8),
        (8, 3, 8, {"stride": 1, "low": 1, "image": 1, "kernel": 1}, 22),  # the edges meet padding
        # A batch axis as a TPU's compiler writes it: each output meets one element.
        (8, 8, 8, {"stride": 7, "low": 0, "image": 8, "kernel": 1}, 8),
        (8, 8, 8, {"stride": 8, "low": 7, "image": 7, "kernel": 1}, 8),
    ],
)
def test_places_that_meet_an_element(image, kernel, out, window, expected):
    assert hlo._valid_pairs(image, kernel, out, window) == expected


# On eight virtual devices, in a process of its own.
PARTITIONED = """
import json
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from icljax.runtime import sharding

mesh = sharding.make_mesh(1, 8)

def text(function, *specs):
    inputs = [
        jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=NamedSharding(mesh, s)) for s in specs
    ]
    program = jax.jit(function, out_shardings=NamedSharding(mesh, P()))
    return program.lower(*inputs).compile().as_text()

def layers(x, w):
    return jax.lax.scan(lambda x, _: ((x @ w) @ w.T, None), x, None, length=3)[0]

print(json.dumps([text(layers, P(), P(None, "model")), text(lambda x: x, P("model"))]))
"""


@pytest.fixture(scope="module")
def partitioned():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", PARTITIONED],
        env=os.environ | flags | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    return [hlo.analyze(text) for text in json.loads(done.stdout)]


def test_an_all_reduce_in_a_loop(partitioned):
    """Tensor parallelism's: column-split, then row-split, and a sum over the devices."""
    cost = partitioned[0]
    assert cost.flops == 3 * 2 * 2 * 64**3 / 8
    (collective,) = cost.collectives
    assert (collective.kind, collective.group) == ("all-reduce", 8)
    assert cost.collectives[collective] == 3
    assert collective.bytes == 4 * 64 * 64
    assert cost.sent == 3 * 2 * 7 / 8 * 4 * 64 * 64
    assert "while/body" in collective.op_name


def test_an_all_gather_sends_to_every_other(partitioned):
    (collective,) = partitioned[1].collectives
    assert (collective.kind, collective.group) == ("all-gather", 8)
    assert partitioned[1].sent == 7 * 4 * 64 * 64 / 8


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ("replica_groups={{0,1},{2,3}}, x", 2),
        ("replica_groups=[2,4]<=[8], x", 4),
        ("replica_groups=[2,4]<=[4,2]T(1,0), x", 4),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2,'axis_2'=3] {'axis_0','axis_2'}, x", 12),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([4,2]T(1,0)) {'b'}, x", 2),
        ("source_target_pairs={{0,1},{1,0}}", 2),
    ],
)
def test_groups_in_every_form(groups, expected):
    instruction = hlo.Instruction("x", (), "all-reduce", "%y", f"), {groups}", False)
    assert hlo._group_size(instruction) == expected


def test_a_tpu_program():
    """Out of a v5e program of a scanned decoder: what libtpu writes and a CPU's compiler does not.

    Tiled layouts, arrays placed on the chip (S(1)), a loop with its bound in the condition, a batch
    axis as a dilated convolution, an asynchronous collective in three fusions, a reduce-scatter as
    an all-reduce of which a slice is kept, copies onto the chip.
    """
    cost = hlo.analyze((DATA / "tpu_program.hlo").read_text())
    trips, tokens, width, devices = 24, 256, 2048, 4
    product = 2 * tokens * (width // devices) * width
    scores = 2 * 16 * 8 * 256 * 256 * 64
    assert cost.flops == trips * (product + scores)
    found = {c.kind: (n, c.bytes, c.group, c.op_name) for c, n in cost.collectives.items()}
    gathered = 2 * tokens * width
    assert found == {
        "all-gather": (trips, gathered // devices, devices, "layers/mlp/up"),
        "reduce-scatter": (trips, gathered, devices, "layers/attention/output"),
    }
    assert cost.sent == trips * 2 * 3 / 4 * gathered
    # A layer's weights, the scores that it writes, queries and keys; on the chip's own memory,
    # what is copied onto it aside, nothing counts.
    moved = 2 * width * width // devices + 4 * 16 * 8 * 256 * 256 + 2 * 16 * 256 * 8 * 64
    assert cost.bytes == pytest.approx(trips * moved, rel=0.001)


def test_text_that_is_no_program():
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.analyze("nothing")


def test_agrees_with_xla_where_there_is_no_loop():
    def mlp(x, a, b):
        return jnp.tanh(x @ a) @ b

    shapes = ((32, 64), (64, 128), (128, 16))
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    compiled = jax.jit(mlp).lower(*arguments).compile()
    theirs = compiled.cost_analysis()["flops"]
    np.testing.assert_allclose(hlo.analyze(compiled.as_text()).flops, theirs, rtol=0.02)
