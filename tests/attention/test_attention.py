"""The forms of each linear kind of attention against each other, and against numbers by hand.

Shape glossary: as in icljax/attention/recurrence.py. Kinds that differ only in their rates share a
compiled program, because rates are inputs: `structure` keeps what a form looks at.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icljax import attention
from icljax.attention import KINDS, Kind, Memory, Rates

B, S, G, J, K, V, CHUNK = 3, 11, 2, 2, 4, 5, 4
LINEAR = {name: kind for name, kind in KINDS.items() if kind.base == "linear"}
FORMS = ("recurrent", "chunked", "parallel")
# One row without holes, one padded at its end, one with holes.
VALID = np.stack([np.ones(S, bool), np.arange(S) < 7, np.arange(S) % 3 != 1])


def structure(kind):
    return Kind("linear", kind.loss, eta=0.5 if attention.has_momentum(kind) else 0.0)


def make(kind, batch=B, length=S, seed=0):
    """Inputs by name; keys of length 1, rates that differ from head to head and token to token."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    k = normal(batch, length, G, K)
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    return {
        "q": normal(batch, length, G, J, K),
        "k": k,
        "v": normal(batch, length, G, V),
        "eta": np.asarray([kind.eta, 0.6 * kind.eta], np.float32),
        "alpha": np.asarray([kind.alpha, 1 - 2 * (1 - kind.alpha)], np.float32),
        "beta": (kind.beta * rng.uniform(0.3, 1, (batch, length, G))).astype(np.float32),
        "s": normal(G, V, K),
        "m": normal(G, V, K),
    }


def causal(valid):
    """What `parallel` needs to read a causal prompt."""
    lower = np.tril(np.ones((valid.shape[1],) * 2, bool))
    return jnp.cumsum(valid, 1), lower[None] & valid[:, None, :]


def run(kind, form, x, valid=None, chunk=CHUNK):
    """(out, Memory or None); outputs of tokens that take no step are not defined, so 0."""
    tokens = tuple(jnp.asarray(x[n]) for n in "qkv")
    rates = Rates(*(jnp.asarray(x[n]) for n in ("eta", "alpha", "beta", "eta")))
    memory = Memory(jnp.asarray(x["s"]), jnp.asarray(x["m"]), jnp.zeros(x["s"].shape[:2]))
    left = None
    if form == "parallel":
        keep = jnp.ones(x["k"].shape[:2], bool) if valid is None else valid
        rates = rates._replace(beta=jnp.where(keep[:, :, None], rates.beta, 0))
        out = attention.parallel(kind, *tokens, rates, *causal(keep), memory)
    elif form == "recurrent":
        out, left = attention.recurrent(kind, *tokens, rates, valid, memory)
    else:
        out, left = attention.chunked(kind, *tokens, rates, valid, memory, chunk)
    return (out if valid is None else jnp.where(valid[:, :, None, None, None], out, 0)), left


@functools.partial(jax.jit, static_argnums=(0, 1, 4))
def forward(kind, form, x, valid=None, chunk=CHUNK):
    return run(kind, form, x, valid, chunk)


@functools.partial(jax.jit, static_argnums=(0, 1))
def gradients(kind, form, x, valid, weights):
    return jax.grad(lambda x: jnp.sum(run(kind, form, x, valid)[0] * weights))(x)


def close(a, b, tolerance=1e-5):
    """Relative to the largest number: max |a - b| / max |b|."""
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(float(np.max(np.abs(b))), 1e-6))


@pytest.mark.parametrize("name", LINEAR)
def test_forms_agree_with_masks_ragged_lengths_and_a_given_memory(name):
    kind = LINEAR[name]
    x = make(kind)
    out, left = forward(structure(kind), "recurrent", x, VALID)
    for form in FORMS[1:]:
        other, state = forward(structure(kind), form, x, VALID)
        close(other, out)
        if state is not None:
            close(state.s, left.s)
            close(state.m, left.m)


@pytest.mark.parametrize("name", ["linear_momentum", "delta", "delta_momentum", "delta_decay"])
def test_gradients_agree(name):
    kind = LINEAR[name]
    x, weights = make(kind), np.random.default_rng(1).standard_normal((B, S, G, J, V))
    expected, *others = (
        gradients(structure(kind), form, x, VALID, weights.astype(np.float32)) for form in FORMS
    )
    momentum = ("eta", "m") if attention.has_momentum(kind) else ()
    for field in ("q", "k", "v", "alpha", "beta", "s", *momentum):
        assert np.any(expected[field]), field
        for gradient in others:
            close(gradient[field], expected[field])


@pytest.mark.parametrize("name", ["linear", "delta_momentum"])
def test_whole_chunks_without_a_mask(name):
    kind = LINEAR[name]
    x = make(kind, batch=1, length=2 * CHUNK)
    out, left = forward(structure(kind), "recurrent", x)
    other, state = forward(structure(kind), "chunked", x)
    close(other, out)
    close(state.s, left.s)
    close(state.m, left.m)


@pytest.mark.parametrize("form", FORMS)
def test_causal(form):
    kind = LINEAR["delta_momentum"]
    x, at = make(kind), 6
    changed = {**x, **{n: x[n].copy() for n in ("q", "k", "v", "beta")}}
    for n in ("q", "k", "v", "beta"):
        changed[n][:, at] *= 0.5
    out, other = (np.asarray(forward(structure(kind), form, y, VALID)[0]) for y in (x, changed))
    np.testing.assert_array_equal(out[:, :at], other[:, :at])
    assert np.all(np.any(out[0, at:] != other[0, at:], -1))  # every later token, head and query


@pytest.mark.parametrize("form", ["recurrent", "chunked"])
def test_a_sequence_in_two_parts_is_one_pass(form):
    kind, at = LINEAR["delta_momentum"], 6  # neither part is whole chunks
    x = make(kind, batch=1, length=2 * at)
    whole, end = forward(structure(kind), form, x)
    parts = [{**x, **{n: x[n][:, cut] for n in ("q", "k", "v", "beta")}}
             for cut in (slice(at), slice(at, None))]  # fmt: skip
    first, left = forward(structure(kind), form, parts[0])
    second, last = forward(structure(kind), form, {**parts[1], "s": left.s[0], "m": left.m[0]})
    close(np.concatenate([first, second], 1), whole)
    close(last.s, end.s)
    close(last.m, end.m)


@pytest.mark.parametrize("name", ["retention", "delta_momentum"])
def test_branches_of_a_tree_are_separate_sequences(name):
    kind = LINEAR[name]
    x = make(kind, batch=1, length=10)
    stem, first, second = range(4), range(4, 7), range(7, 10)
    paths = [[*stem, *first], [*stem, *second]]
    visible = np.zeros((1, 10, 10), bool)
    for path in paths:
        for n, t in enumerate(path):
            visible[0, t, path[: n + 1]] = True
    steps = jnp.asarray([[1, 2, 3, 4, 5, 6, 7, 5, 6, 7]])
    tokens = tuple(jnp.asarray(x[n]) for n in "qkv")
    rates = Rates(*(jnp.asarray(x[n]) for n in ("eta", "alpha", "beta", "eta")))
    memory = Memory(jnp.asarray(x["s"]), jnp.asarray(x["m"]), jnp.zeros((G, V)))
    parallel = jax.jit(attention.parallel, static_argnums=0)
    out = parallel(structure(kind), *tokens, rates, steps, jnp.asarray(visible), memory)
    for path in paths:
        alone = {**x, **{n: x[n][:, path] for n in ("q", "k", "v", "beta")}}
        expected, _ = forward(structure(kind), "recurrent", alone)
        close(out[:, path], expected)


@pytest.mark.parametrize("loss", ["dot", "square"])
def test_a_masked_token_changes_nothing(loss):
    """Not even with keys and values that are large."""
    kind = Kind("linear", loss, eta=0.5)
    x = make(KINDS["delta_momentum"])
    changed = {**x, "k": x["k"].copy(), "v": x["v"].copy()}
    changed["k"][~VALID] *= 100
    changed["v"][~VALID] *= 100
    for form in FORMS:
        out, left = forward(kind, form, x, VALID)
        other, state = forward(kind, form, changed, VALID)
        np.testing.assert_array_equal(other, out)
        if left is not None:
            np.testing.assert_array_equal(state.s, left.s)


# By hand, one head, from S = M = 0.
BY_HAND = {
    # Keys (1, 0), (.6, .8), (1, 0), values 1, 2, 3, beta 1, read with (1, 1).
    # S_1 = (1, 0); error 2 - .6 = 1.4, S_2 = (1, 0) + 1.4 (.6, .8) = (1.84, 1.12);
    # error 3 - 1.84 = 1.16, S_3 = (3, 1.12).
    "delta": (
        Kind("linear", "square"),
        [[1, 0], [0.6, 0.8], [1, 0]],
        [1, 2, 3],
        [1, 1],
        [1, 2.96, 4.12],
        [3, 1.12],
    ),
    # Keys 1, 2, 1, values 1, 1, 3, beta 1, eta .5: M = 1, .5 + 2, 1.25 + 3; S sums them.
    "momentum": (Kind("linear", eta=0.5), [[1], [2], [1]], [1, 1, 3], [1], [1, 3.5, 7.75], [7.75]),
    # The same, eta .5, alpha .5, beta .5 on the square loss: M_1 = .5 = S_1; error 1 - 2 * .5 = 0,
    # M_2 = .25, S_2 = .25 + .25; error 3 - .5 = 2.5, M_3 = .125 + 1.25, S_3 = .25 + 1.375.
    "delta, momentum, decay": (
        Kind("linear", "square", eta=0.5, alpha=0.5, beta=0.5),
        [[1], [2], [1]],
        [1, 1, 3],
        [1],
        [0.5, 0.5, 1.625],
        [1.625],
    ),
}


@pytest.mark.parametrize("form", FORMS[:2])
@pytest.mark.parametrize("case", BY_HAND)
def test_three_tokens_by_hand(case, form):
    kind, k, v, q, out, end = BY_HAND[case]
    width = len(q)
    zero = np.zeros((1, 1, width), np.float32)
    x = {
        "q": np.tile(np.asarray(q, np.float32), (1, 3, 1, 1, 1)),
        "k": np.asarray(k, np.float32).reshape(1, 3, 1, width),
        "v": np.asarray(v, np.float32).reshape(1, 3, 1, 1),
        "eta": np.full(1, kind.eta, np.float32),
        "alpha": np.full(1, kind.alpha, np.float32),
        "beta": np.full((1, 3, 1), kind.beta, np.float32),
        "s": zero,
        "m": zero,
    }
    found, left = forward(structure(kind), form, x, chunk=2)
    np.testing.assert_allclose(np.ravel(found), out, rtol=1e-6)
    np.testing.assert_allclose(np.ravel(left.s), end, rtol=1e-6)


def test_unit_lower_inverse():
    size = 64
    rng = np.random.default_rng(0)
    keys = rng.standard_normal((size, 16))
    keys /= np.linalg.norm(keys, axis=-1, keepdims=True)
    # With all keys equal a Neumann series has terms as large as binomial(63, 31), about 1e18.
    matrices = {"random": keys @ keys.T, "equal": np.ones((size, size)), "half": keys @ keys.T / 2}
    inverse = jax.jit(attention.unit_lower_inverse)
    for name, matrix in matrices.items():
        a = np.tril(matrix, -1).astype(np.float32)
        expected = np.linalg.inv(np.eye(size) + a.astype(np.float64))
        np.testing.assert_allclose(inverse(a), expected, atol=2e-6 * np.max(np.abs(expected)),
                                   err_msg=name)  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_ema_is_the_papers_sum(form):
    """Strictly past values, unnormalised, continued from a state (Dai et al. 2023, 5.1)."""
    rng = np.random.default_rng(0)
    v, before = rng.standard_normal((B, S, G, V)), rng.standard_normal((G, V))
    eta = np.asarray([0.3, 0.95])
    valid = np.ones((B, S), bool) if form == "chunked" else VALID  # it takes no mask
    total, expected = np.broadcast_to(before, (B, G, V)), np.zeros_like(v)
    for t in range(S):
        expected[:, t] = eta[:, None] * total
        kept = eta[:, None] * total + v[:, t]
        total = np.where(valid[:, t, None, None], kept, total)
    arrays = [jnp.asarray(x, jnp.float32) for x in (v, eta, before)]
    if form == "parallel":
        out, left = jax.jit(attention.ema_parallel)(*arrays[:2], *causal(valid), arrays[2]), None
    elif form == "chunked":
        out, left = jax.jit(attention.ema_chunked, static_argnums=3)(*arrays, CHUNK)
    else:
        out, left = jax.jit(attention.ema_recurrent)(*arrays[:2], valid, arrays[2])
    close(np.where(valid[:, :, None, None], out, 0), np.where(valid[:, :, None, None], expected, 0))
    if left is not None:
        close(left, total)
