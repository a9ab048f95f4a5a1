"""In-context regression: constructions, baselines, and the whole job at a tiny size."""

import io
import json

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from rich.console import Console

from icljax import attention
from icljax.errors import UserError
from icljax.experiments import regression
from icljax.experiments import regression_models as models
from icljax.experiments import regression_training as training
from icljax.records import Regression
from icljax.reports import regression as regression_report
from icljax.results import Estimate

RATES, CORRECTIONS = (0.7, 0.4, 0.9), (0.2, -0.1, 0.3)
FIGURES = ("layers", "alignment", "examples", "online", "training")
KINDS = ("linear", "linear_momentum", "retention", "delta", "delta_momentum", "delta_decay")


@pytest.fixture(scope="module")
def tasks():
    return models.draw_tasks(jax.random.key(3), 16, 6, 4)


def by_optax(tasks, optimizer, loss, batches):
    """Predictions after an optimizer's steps from 0 on `batches` (index arrays), task by task."""

    def row(x, y, query):
        def step(carry, batch):
            w, state = carry
            updates, state = optimizer.update(jax.grad(loss)(w, x[batch], y[batch]), state, w)
            return (optax.apply_updates(w, updates), state), None

        w = jnp.zeros_like(query)
        (w, _), _ = jax.lax.scan(step, (w, optimizer.init(w)), jnp.array(batches))
        return w @ query

    return jax.jit(jax.vmap(row))(tasks.x, tasks.y, tasks.query)


def gd_plus_plus(tasks, rates, corrections):
    """GD++ in NumPy and float64, example by example."""
    predictions = []
    for x, y, query in zip(*(np.asarray(a, np.float64) for a in tasks[:3]), strict=True):
        x, left, q, predicted = list(x), list(y), query, 0.0
        for rate, gamma in zip(rates, corrections, strict=True):
            step = rate * sum(r * v for r, v in zip(left, x, strict=True)) / len(x)
            second = sum(np.outer(v, v) for v in x) / len(x)
            predicted += step @ q
            left = [r - step @ v for r, v in zip(left, x, strict=True)]
            x, q = [v - gamma * second @ v for v in x], q - gamma * second @ q
        predictions.append(predicted)
    return np.array(predictions)


def test_tasks_are_linear(tasks):
    """With more examples than dimensions, least squares finds w, and w gives the target."""
    w = [np.linalg.lstsq(x, y)[0] for x, y in zip(tasks.x, tasks.y, strict=True)]
    np.testing.assert_allclose(np.sum(w * np.asarray(tasks.query), -1), tasks.target, atol=1e-4)
    assert float(jnp.abs(tasks.x).max()) <= 1
    many = models.draw_tasks(jax.random.key(0), 4000, 1, 3)
    assert float(jnp.var(many.target)) == pytest.approx(3 / 3, rel=0.1)  # X E[x^2] E[w^2]


@pytest.mark.parametrize("layers", [1, 3])
def test_constructed_layers_are_steps_of_gradient_descent(tasks, layers):
    def loss(w, x, y):
        return jnp.mean((x @ w - y) ** 2) / 2

    rates = jnp.array(RATES)
    optimizer = optax.sgd(lambda step: rates[step])
    wanted = by_optax(tasks, optimizer, loss, [np.arange(6)] * layers)
    gates = (jnp.arange(3) < layers).astype(jnp.float32)
    params = models.construct(rates, jnp.zeros(3), 4)
    got = models.predict_deep("linear", params, gates, tasks)
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    autodiff = regression.autodiff_descent(rates * gates, tasks)
    np.testing.assert_allclose(autodiff, wanted, atol=1e-5)
    other = models.construct(1.01 * rates, jnp.zeros(3), 4)
    off = models.predict_deep("linear", other, gates, tasks) - wanted
    assert float(jnp.abs(off).max()) > 1e-3


def test_gd_plus_plus_is_its_formula(tasks):
    rates, corrections, gates = jnp.array(RATES), jnp.array(CORRECTIONS), jnp.ones(3)
    wanted = gd_plus_plus(tasks, RATES, CORRECTIONS)
    params = {"rate": rates, "correction": corrections}
    got = models.predict_descent(True, params, gates, tasks)
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    constructed = models.construct(rates, corrections, 4)
    layers = models.predict_deep("linear", constructed, gates, tasks)
    np.testing.assert_allclose(layers, wanted, atol=1e-5)
    plain = models.predict_descent(False, {"rate": rates}, gates, tasks)
    np.testing.assert_allclose(plain, gd_plus_plus(tasks, RATES, (0, 0, 0)), atol=1e-5)
    assert np.abs(plain - wanted).max() > 1e-2


@pytest.mark.parametrize("name", KINDS)
def test_constructed_kinds_are_their_optimizers(tasks, name):
    kind = attention.KINDS[name]

    def loss(w, x, y):
        (predicted,), (y,) = x @ w, y
        return -predicted * y if kind.loss == "dot" else (predicted - y) ** 2 / 2

    decay = optax.add_decayed_weights(kind.alpha - 1)
    optimizer = optax.chain(optax.sgd(0.2, momentum=kind.eta), decay)
    wanted = by_optax(tasks, optimizer, loss, [np.array([i]) for i in range(6)])
    numbers = (jnp.float32(x) for x in (kind.eta, kind.alpha, 0.2))
    params = models.construct_online(4, *numbers)
    start = models.Start(params["eta"], params["alpha"])
    got = models.predict_online(kind.loss, params, start, tasks)
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    tuned = models.optax_predict(kind.loss, params, start, tasks)
    np.testing.assert_allclose(tuned, wanted, atol=1e-5)
    np.testing.assert_allclose(recurrent(kind, tasks, 0.2), wanted, atol=1e-5)


def recurrent(kind, tasks, beta):
    """The same with attention.recurrent: keys x, values y, read at the query."""
    rates = attention.Rates(
        jnp.array([kind.eta]), jnp.array([kind.alpha]), jnp.full((16, 6, 1), beta), jnp.zeros(1)
    )
    zero = jnp.zeros((1, 1, 4))
    memory = attention.Memory(zero, zero, jnp.zeros((1, 1)))
    k, v = tasks.x[:, :, None], tasks.y[:, :, None, None]
    _, after = attention.recurrent(kind, k[:, :, :, None], k, v, rates, None, memory)
    return jnp.einsum("BK,BK->B", after.s[:, 0, 0], tasks.query)


def test_moattn_adds_the_strict_past_to_softmax(tasks):
    """One layer against its formula in NumPy."""
    params = models.init_deep("moattn", 4, 1.0, jax.random.key(0), jnp.ones(1))
    params["ema"] = jnp.array([0.6])
    got = models.predict_deep("moattn", params, jnp.ones(1), tasks)
    tokens = np.asarray(models.as_tokens(tasks), np.float64)
    for row, prediction in zip(tokens, got, strict=True):
        scores = np.exp(row[:-1] @ (row[-1] @ params["query"][0]) / np.sqrt(5))
        ema = sum(0.6 ** (6 - i) * row[i] for i in range(6))
        read = (scores / scores.sum()) @ row[:-1] + ema
        assert -(row[-1] + read @ params["out"][0])[-1] == pytest.approx(
            float(prediction), abs=1e-4
        )


@pytest.mark.parametrize("name", ["linear", "softmax", "moattn", "gd++", "dot", "square"])
def test_left_out_examples_do_not_count(tasks, name):
    """A prompt with its first examples left out is the shorter prompt."""
    config = tiny_config(families=regression.DEEP, online=("retention", "delta_momentum"), dims=4)
    families = training.make_families(config)
    short = tasks._replace(x=tasks.x[:, 2:], y=tasks.y[:, 2:], seen=tasks.seen[2:])
    for family in (n for n in families if n == name or n.endswith(f"_{name}")):
        predict, init = families[family].predict, families[family].init
        switch = jax.tree.map(lambda x: x[-1], families[family].switches)
        params = init(jax.random.key(0), switch)
        got = predict(params, switch, models.keep_last(tasks, 4))
        np.testing.assert_allclose(got, predict(params, switch, short), atol=1e-5)


def tiny_config(**changes) -> ConfigDict:
    config = regression.default()
    small = {"seeds": (1, 2), "dims": 3, "layers": 2, "steps": 120, "batch": 32}
    small |= {"families": ("linear",), "online": ("linear_momentum",), "num_examples": 8}
    small |= {"eval": {"tasks": 256, "examples": (8, 4)}}
    config.update(small | changes)
    return config


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    path = tmp_path_factory.mktemp("work") / "job"
    console = Console(file=io.StringIO(), width=100)
    results = regression.run(tiny_config(), path, console)
    regression.show(results, path, console)
    return path, results, console.file.getvalue()


def test_training_learns(done):
    """One layer and one tuned step predict far better than 0; two layers not worse than one."""
    models = done[1]["models"]
    zero = done[1]["zero_loss"]
    for name in ("linear", "gd", "optax_dot", "online_dot"):
        assert models[name][0]["loss"]["mean"] < zero / 2, name
    losses = [model["loss"]["mean"] for model in models["gd++"]]
    assert losses[1] < losses[0]


def test_seeds_differ_in_models_and_agree_with_the_curve(done):
    for family in done[1]["models"].values():
        for model in family:
            first, second = model["loss"]["per_seed"]
            assert first != second
            assert len(model["curve"]) == 20
            assert [len(s["per_seed"]) for s in model["by_examples"]] == [2, 2]


def test_files_and_rerun(done):
    path, results, text = done
    assert json.loads((path / "results.json").read_text()) == results
    figures = {f"{name}.png" for name in FIGURES}
    assert {p.name for p in (path / "figures").iterdir()} == figures
    for figure in (path / "figures").iterdir():
        assert figure.read_bytes().startswith(b"\x89PNG")
    report = (path / "report.md").read_text()
    for name in figures:
        assert f"(figures/{name})" in report
    assert "## In short" in report
    assert "In-context regression" in (path / "report.html").read_text()
    assert str(path / "report.md") in text
    before = (path / "report.md").stat().st_mtime_ns
    again = regression.run(tiny_config(), path, Console(file=io.StringIO()))
    assert again == results
    assert (path / "report.md").stat().st_mtime_ns == before


def test_constructions_are_below_the_bar(done):
    errors = [c["error"] for c in done[1]["constructions"]]
    assert len(errors) == 2 + 2 + 1
    assert 0 < max(errors) < regression_report.BAR_ERROR


def held(results):
    return [b[2] for b in regression_report.bars(msgspec.convert(results, Regression))]


def test_bars_say_what_the_numbers_say(done):
    results = json.loads(json.dumps(done[1]))
    ratio = results["models"]["linear"][0]["against"]["gd"]["ratio"]
    ratio["mean"] = 1.03
    results["constructions"][0]["error"] = 2e-5
    assert held(results) == ["does not hold"] * 2
    ratio["mean"] = 0.99
    results["constructions"][0]["error"] = 9e-6
    assert held(results) == ["holds"] * 2


@pytest.mark.parametrize(
    ("interval", "said"),
    [([0.8, 0.9], "lower"), ([1.1, 1.2], "higher"), ([0.9, 1.1], "no clear"), ([None, 1], "unkn")],
)
def test_verdict(interval, said):
    assert regression_report.verdict(Estimate(interval=tuple(interval))).startswith(said)


def test_series_is_students_interval():
    """t(0.975, 2 degrees) = 4.30265 (any table), s = 1, so the half width is 4.30265 / sqrt 3."""
    got = regression.series(np.array([1.0, 2.0, 3.0]))
    assert got["mean"] == 2
    np.testing.assert_allclose(got["interval"], [2 - 2.48414, 2 + 2.48414], atol=1e-5)
    assert regression.series(np.array([1.0, np.inf]))["interval"] == [None, None]


def test_compare_by_hand():
    """Errors 1, 1 against 2, 2; cosine of (1, 0) with (1, 1) and of (0, 2) with (0, -1)."""

    def measured(predictions, sensitivities):
        twice = [
            np.stack([np.array(a, np.float32)[None]] * 2) for a in (predictions, sensitivities)
        ]
        return training.Measured(np.zeros((2, 1, 1)), *twice)

    ours = measured([1, -1], [[1, 0], [0, 2]])
    other = measured([2, 2], [[1, 1], [0, -1]])
    got = regression.compare(ours, other, 0, np.zeros(2))
    assert {k: v["mean"] for k, v in got.items()} == {
        "ratio": 0.25,
        "difference": 2.0,
        "cosine": pytest.approx((np.sqrt(0.5) - 1) / 2),
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seeds", (1,)),
        ("seeds", (1, 1)),
        ("steps", 0),
        ("layers", -1),
        ("learning_rate", 0.0),
        ("clip", float("nan")),
        ("families", ("linear", "mamba")),
        ("online", ("softmax",)),
        ("online", ("delta", "delta")),
        ("eval.examples", (0, 4)),
        ("eval.tasks", 0),
    ],
)
def test_bad_values_are_refused(field, value):
    config = regression.default()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=f"config.{field} is .*expected"):
        regression.validate(config)


def test_default_is_valid():
    regression.validate(regression.default())
    regression.validate(tiny_config(online=(), families=()))
