"""The Pallas kernels against the forms they stand for, and that they compile for TPU and GPU.

The kernel runs in interpret mode here. `attention.recurrent` is the recurrence as it is written,
so it is what a kernel has to equal; `attention.chunked` is what it replaces.
"""

import dataclasses
import functools
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icljax import attention
from icljax.attention import KINDS, Memory, Rates, Tokens, kernels
from icljax.errors import UserError

CHUNK = 4


def make_arguments(kind, length=11, batch=2, groups=2, queries=2, width=4, values=5):
    """(q, k, v, beta, s, m, eta, alpha); eta and alpha differ between heads."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    k = normal(batch, length, groups, width)
    k = k / jnp.linalg.norm(k, axis=-1, keepdims=True)
    beta = jnp.asarray(rng.uniform(0.2, 0.9, (batch, length, groups)), jnp.float32)
    head = jnp.arange(groups, dtype=jnp.float32) / 10
    eta = kind.eta + (head if kind.eta else 0 * head)
    return (
        normal(batch, length, groups, queries, width),
        k,
        normal(batch, length, groups, values),
        beta,
        normal(groups, values, width),
        normal(groups, values, width),
        eta,
        kind.alpha - head,
    )


def run(form, kind, q, k, v, beta, s, m, eta, alpha, valid=None, chunk=CHUNK):
    ema = jnp.zeros(eta.shape)
    rates, memory = Rates(eta, alpha, beta, ema), Memory(s, m, jnp.zeros(s.shape[:2]))
    if form == "recurrent":
        return attention.recurrent(kind, q, k, v, rates, valid, memory)
    return kernels.chunked(kind, Tokens(q, k, v), rates, valid, memory, chunk, form)


def value_and_gradients(form, kind, arguments, **options):
    """(out, memory) and the gradients of a scalar that depends on every part of them."""

    def loss(*args):
        out, memory = run(form, kind, *args, **options)
        total = jnp.sum(jnp.sin(out)) + jnp.sum(jnp.cos(memory.s)) + jnp.sum(jnp.sin(memory.m))
        return total, (out, memory)

    wanted = tuple(i for i in range(8) if i not in unlearned(kind))
    return jax.grad(loss, wanted, has_aux=True)(*arguments)


def unlearned(kind):
    """Positions of the arguments that `kind` ignores or does not learn."""
    return () if attention.has_momentum(kind) else (5, 6)


def assert_close(actual, expected, tolerance):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, atol=tolerance * max(1, np.abs(b).max()), rtol=0)


@pytest.mark.parametrize("name", ["linear", "linear_momentum", "delta_momentum", "retention"])
def test_equals_the_recurrence_and_the_xla_form(name):
    """Forward, memory and gradients, eta's and alpha's too; GQA, a given memory, 2.75 chunks."""
    kind = dataclasses.replace(KINDS[name], learn=("eta", "alpha") if KINDS[name].eta else ())
    arguments = make_arguments(kind)

    def compute(*args):
        kernel, exact = (
            value_and_gradients(form, kind, args) for form in ("pallas_interpret", "recurrent")
        )
        return kernel, exact, run("xla", kind, *args)

    kernel, exact, xla = jax.jit(compute)(*arguments)
    assert_close(kernel, exact, 1e-5)
    assert_close(kernel[1], xla, 1e-5)
    assert all(float(jnp.abs(x).max()) > 1e-3 for x in kernel[0])  # no gradient is dropped


def test_bfloat16_is_close():
    kind = KINDS["delta"]
    arguments = make_arguments(kind, length=8)
    half = tuple(x.astype(jnp.bfloat16) for x in arguments[:3]) + arguments[3:]
    compute = jax.jit(
        lambda *args: [value_and_gradients(f, kind, args) for f in ("pallas_interpret", "xla")]
    )
    kernel, xla = compute(*half)
    assert kernel[0][0].dtype == jnp.bfloat16  # a gradient has its input's dtype
    assert kernel[1][0].dtype == jnp.float32
    assert_close(kernel, xla, 0.02)


def test_vmap_over_seeds():
    kind = KINDS["linear_momentum"]
    arguments = make_arguments(kind, length=8)
    seeds = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x]), arguments)
    together = jax.jit(jax.vmap(functools.partial(run, "pallas_interpret", kind)))(*seeds)
    halves = tuple(0.5 * x for x in arguments)
    assert_close(jax.tree.map(lambda x: x[1], together), run("xla", kind, *halves), 1e-6)


def uses_kernel(form, length, **options):
    kind = KINDS["delta"]
    shapes = jax.eval_shape(lambda: make_arguments(kind, length))
    program = jax.make_jaxpr(functools.partial(run, form, kind, **options))(*shapes)
    return "pallas_call" in str(program)


def test_which_form_is_chosen(monkeypatch):
    assert uses_kernel("pallas_interpret", 4)
    assert not uses_kernel("pallas_interpret", 3)  # less than a chunk
    assert not uses_kernel("pallas_interpret", 8, valid=jnp.ones((2, 8), bool))
    assert not uses_kernel("auto", 8)  # on CPU
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert uses_kernel("auto", 8)
    assert uses_kernel("pallas", 8)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not uses_kernel("auto", 64)
    assert uses_kernel("pallas", 64)


@pytest.mark.parametrize(
    ("form", "name", "message"),
    [
        ("palas", "delta", "choose one of auto, xla"),
        ("pallas", "delta", "no kernel for 'cpu'"),
        ("jla", "linear_momentum", "without momentum"),
    ],
)
def test_a_users_mistake(form, name, message):
    arguments = make_arguments(KINDS[name])
    with pytest.raises(UserError, match=message):
        run(form, KINDS[name], *arguments)


def test_64_bits_have_no_tpu_kernel():
    with jax.enable_x64(True):
        with pytest.raises(UserError, match="while jax_enable_x64 is on"):
            uses_kernel("pallas_tpu", 8)
        assert uses_kernel("pallas_interpret", 8)


def test_jla_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "jla", None)
    monkeypatch.setitem(sys.modules, "jla.ops", None)
    with pytest.raises(UserError, match="is not installed"):
        run("jla", KINDS["delta"], *make_arguments(KINDS["delta"]))


@pytest.mark.parametrize("name", ["linear", "retention", "delta", "delta_decay"])
def test_jla_equals_the_xla_form(name):
    pytest.importorskip("jla")
    learn = ("alpha",) if KINDS[name].alpha < 1 else ()
    kind = dataclasses.replace(KINDS[name], learn=learn)
    arguments = (*make_arguments(kind)[:7], jnp.full(2, kind.alpha))
    valid = jnp.arange(11)[None] % 5 > jnp.arange(2)[:, None]
    for mask in (None, valid):
        jla, xla = (run(form, kind, *arguments, valid=mask) for form in ("jla", "xla"))
        assert_close(jla[1], xla[1], 1e-5)
        seen = np.ones((2, 11), bool) if mask is None else np.asarray(mask)
        assert_close(jla[0][seen], xla[0][seen], 1e-5)


@pytest.mark.skipif(
    jax.__version_info__ > (0, 10, 2), reason="later JAX needs the CUDA plugin to lower Triton"
)
@pytest.mark.parametrize(("name", "values"), [("linear", 64), ("delta_momentum", 65)])
def test_lowers_for_a_gpu(name, values):
    """As far as Triton's IR, which needs no GPU: forward and backward are one kernel each."""
    kind = KINDS[name]
    arguments = jax.eval_shape(lambda: make_arguments(kind, 80, width=64, values=values, queries=1))
    half = tuple(jax.ShapeDtypeStruct(x.shape, jnp.bfloat16) for x in arguments[:3])
    gradient = jax.jit(lambda *args: value_and_gradients("pallas_gpu", kind, args)[0])
    lowered = gradient.trace(*half, *arguments[3:]).lower(lowering_platforms=("cuda",))
    assert lowered.as_text().count("xla.gpu.triton") == 2


TPU_PROGRAM = """
import jax, numpy as np
from tests.attention import test_kernels as t
from jax.experimental import topologies
from icljax.attention import KINDS

device = topologies.get_topology_desc("v5e:2x2", platform="tpu").devices[0]
mesh = jax.sharding.Mesh(np.array([device]), ("x",))
place = jax.sharding.SingleDeviceSharding(device)
for name, dtype in (("linear", "float32"), ("delta_momentum", "bfloat16")):
    kind = KINDS[name]
    shapes = jax.eval_shape(lambda: t.make_arguments(kind, 256, width=64, values=65))
    dtypes = [dtype] * 3 + ["float32"] * 5
    inputs = [
        jax.ShapeDtypeStruct(x.shape, d, sharding=place)
        for x, d in zip(shapes, dtypes, strict=True)
    ]
    gradient = jax.jit(lambda *a: t.value_and_gradients("pallas_tpu", kind, a, chunk=64)[0])
    with jax.sharding.set_mesh(mesh):  # which tells Mosaic the generation it lowers for
        compiled = gradient.trace(*inputs).lower(lowering_platforms=("tpu",)).compile()
    kernels = compiled.as_text().count("tpu_custom_call")
    print(name, dtype, "kernels", kernels, "temp", compiled.memory_analysis().temp_size_in_bytes)
"""


@pytest.mark.tpu_compile
def test_compiles_for_a_tpu():
    """Ahead of time, forward and backward, for one v5e chip; in a process of its own."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed")
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    # No chip is taken, so that another process, or a crashed one's lock, need not stop this one.
    alone = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    environment = os.environ | alone | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", TPU_PROGRAM],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert [line.split(" temp")[0] for line in lines] == [
        "linear float32 kernels 2",
        "delta_momentum bfloat16 kernels 2",
    ]
