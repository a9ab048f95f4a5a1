"""Annotated shapes are held in tests (conftest.py installs the hook), and cost users nothing."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from icljax import attention, metrics
from icljax.models import decoder

CALLS = {
    "attention, rank": (attention.unit_lower_inverse, (jnp.zeros(4),)),
    "attention, sizes that differ": (
        attention.ema_chunked,
        (jnp.zeros((2, 5, 3, 4)), jnp.zeros(2), jnp.zeros((3, 4))),
    ),
    "metrics, rank": (metrics.calibrate, (np.zeros(3, np.float32),)),
    "metrics, dtype": (metrics.kendall_tau, (np.zeros(3), np.zeros(3), np.ones(3))),
    "decoder, rank": (decoder.sinusoids, (jnp.zeros(3, jnp.int32), 8)),
    "decoder, dtype": (decoder.sinusoids, (jnp.zeros((1, 3)), 8)),
}


@pytest.mark.parametrize(("function", "arguments"), CALLS.values(), ids=CALLS)
def test_what_does_not_fit_an_annotation_is_refused(function, arguments):
    with pytest.raises(TypeCheckError):
        function(*arguments)


def test_shapes_are_held_inside_compiled_programs_too():
    with pytest.raises(TypeCheckError):
        jax.jit(attention.unit_lower_inverse)(jnp.zeros((4, 5)))


def test_users_pay_nothing():
    """Metrics import fast and alone; without the hook no call is checked."""
    code = """
import sys, time
from icljax import metrics
seconds = time.process_time()
heavy = {"flax", "xarray", "matplotlib", "beartype", "optax", "scipy"} & sys.modules.keys()
assert not heavy, heavy
print(seconds, metrics.kendall_tau([1.0, 2.0], [1.0, 2.0]))
"""
    seconds = []
    for _ in range(3):
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        seconds.append(float(run.stdout.split()[0]))
        assert float(run.stdout.split()[1]) == 1
    assert min(seconds) < 1.5  # of a processor
