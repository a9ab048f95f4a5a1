"""The dual form as an experiment: equalities hold, and would be seen if they did not."""

import io
import json

import jax
import numpy as np
import optax
import pytest
from rich.console import Console

from icljax.attention import KINDS, Kind
from icljax.errors import UserError
from icljax.experiments import dual, dual_measure
from icljax.runtime.progress import Stages


def small(**changes):
    config = dual.default()
    config.source = "random"
    config.random = {"layers": 2, "tokens": 11, "heads": 2, "width": 4}
    config.attention.kind = "delta_momentum"
    config.forms.tokens, config.forms.chunk, config.forms.kernels = 11, 4, ()
    config.chunk = 4
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    return config


def printed(results, path):
    console = Console(file=io.StringIO(), width=120)
    dual.show(results, path, console)
    return console.file.getvalue()


@pytest.mark.parametrize(
    "kind",
    [Kind("linear", loss, 0.3, 0.9, 0.5) for loss in ("dot", "square")],
    ids=lambda k: k.loss,
)
def test_optax_takes_the_steps_of_the_definition(kind):
    """M = eta M - beta_t dl/dS and S = alpha S + M, in a plain loop with the gradient by hand."""
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 1, 6, 1, 3))
    beta = rng.uniform(0.2, 0.5, (1, 6, 1))
    s = m = np.zeros((3, 3))
    expected = []
    for t in range(6):
        error = v[0, t, 0] - (s @ k[0, t, 0] if kind.loss == "square" else 0)
        m = kind.eta * m + beta[0, t, 0] * np.outer(error, k[0, t, 0])
        s = kind.alpha * s + m
        expected.append(s @ q[0, t, 0])
    with jax.enable_x64(True):
        trained = dual_measure.train(dual_measure.matching_optimizer, kind, q, k, v, beta)
    np.testing.assert_allclose(trained.out[0, :, 0], expected, rtol=1e-12)
    np.testing.assert_allclose(trained.s[0, 0], s, rtol=1e-12)


def test_the_state_of_linear_attention_is_the_update_of_the_paper():
    """dW_ICL = sum_i v_i k_i^T (Dai et al. 2023, section 3.1)."""
    config = small()
    examples = dual.random_examples(config)
    with jax.enable_x64(True):
        arrays = dual_measure.prepared(KINDS["linear"], "as named", examples, "float64")
        result = dual_measure.attend(
            "chunked", KINDS["linear"], 4, dual_measure.inputs(KINDS["linear"], *arrays)
        )
    expected = np.einsum("LTGV,LTGK->LGVK", examples.v, examples.k)
    np.testing.assert_allclose(result.s, expected, rtol=1e-10)


@pytest.mark.parametrize("change", [{"eta": 0.31}, {"alpha": 0.999}, {"loss": "dot"}])
def test_another_optimizer_is_told_apart(change):
    kind = KINDS["delta_momentum"]
    numbers = {"loss": kind.loss, "eta": kind.eta, "alpha": kind.alpha, **change}
    examples = dual.random_examples(small())
    arrays = dual_measure.prepared(kind, "as named", examples, "float32")
    form = dual_measure.attend(
        "recurrent", dual_measure.structure(kind), 4, dual_measure.inputs(kind, *arrays)
    )
    trained = dual_measure.train(
        dual_measure.matching_optimizer, Kind("linear", **numbers), *arrays
    )
    apart = dual_measure.difference(form.out, trained.out, (1, 3))
    assert apart > 100 * dual_measure.BARS["float32"]


def test_decay_is_of_the_weights_alone():
    """The other order of optax's parts is another optimizer, which the report must not name."""
    kind = Kind("linear", eta=0.5, alpha=0.9)

    def decay_first(kind, beta):
        parts = (optax.scale(-1.0), optax.add_decayed_weights(-0.1), optax.trace(kind.eta))
        return optax.chain(*parts)

    arrays = dual_measure.prepared(kind, "as named", dual.random_examples(small()), "float32")
    ours = dual_measure.train(dual_measure.matching_optimizer, kind, *arrays)
    other = dual_measure.train(decay_first, kind, *arrays)
    assert dual_measure.difference(other.out, ours.out) > 1e-2
    assert dual.describe(kind)["optax"] == "chain(scale(-1), trace(0.5), add_decayed_weights(-0.1))"


def test_runs_and_a_rerun_shows_the_same(tmp_path):
    config, console = small(), Console(file=io.StringIO())
    dual.validate(config)
    results = dual.run(config, tmp_path, console)
    assert results["holds"] is True
    assert [row["variant"] for row in results["dual"]] == list(dual_measure.VARIANTS)
    for row in results["dual"]:
        for dtype, bar in dual_measure.BARS.items():
            assert 0 < row[dtype]["largest"] < bar  # exactly 0 would compare a thing with itself
    assert set(results["dual"][0]["float64"]["differences"]) == {
        f"{form} to optax.{name}"
        for form in ("recurrent", "chunked", "parallel")
        for name in ("chain", "sgd")
    }
    assert {"recurrent to optax.chain"} < set(results["dual"][1]["float64"]["differences"])
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(results))
    report = (tmp_path / "report.md").read_text()
    assert "`sgd(0.5, momentum=0.3)`" in report
    assert "FAILS" not in report
    assert "sgd(0.5, momentum=0.3)" in (tmp_path / "report.html").read_text()
    before = (tmp_path / "results.json").stat().st_mtime_ns
    again = dual.run(config, tmp_path, console)
    assert (tmp_path / "results.json").stat().st_mtime_ns == before
    assert printed(again, tmp_path) == printed(results, tmp_path)
    assert "online least squares, momentum 0.3" in printed(again, tmp_path)


def test_a_failure_is_a_result_that_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(dual_measure, "BARS", {"float64": 0.0, "float32": 1e-5})
    config = small(variants=("beta varies",))
    results = dual.run(config, tmp_path, Console(file=io.StringIO()))
    assert results["holds"] is False
    assert results["dual"][0]["float64"]["holds"] is False
    assert results["dual"][0]["float32"]["holds"] is True
    assert "FAILS" in printed(results, tmp_path)
    assert (
        "**FAILS: Attention is the optimizer in 0 of 1 rows" in (tmp_path / "report.md").read_text()
    )


def test_not_a_number_fails():
    examples = dual.random_examples(small())
    examples.v[0, 3, 1, 2] = np.nan
    measured = dual_measure.measure_dual(KINDS["delta_momentum"], "beta varies", examples, small())
    assert measured["float64"]["largest"] is None
    assert not measured["float64"]["holds"]
    json.dumps(measured, allow_nan=False)


def test_the_demonstrations_of_a_model(tiny_folder, reviews):
    config = dual.default()
    config.model, config.data.source = str(tiny_folder), f"jsonl:{reviews}"
    config.num_demonstrations = 3
    dual.validate(config)
    with Stages(Console(file=io.StringIO())) as stages:
        examples, model = dual.demonstration_examples(config, stages)
    layers, tokens, groups, width = examples.k.shape
    assert (layers, groups, width) == (3, 2, 8)
    assert tokens > 3 * 5
    assert (model.quantisation, model.dtype) == ("none: F32 100 %", "float32")
    np.testing.assert_array_equal(examples.q[:, :-1], examples.k[:, 1:])
    assert len(np.unique(examples.v[:, :, 0, 0])) > layers * tokens / 2  # not padding


MISTAKES = {
    "source": ({"source": "rnd"}, "config.source is 'rnd'; expected demonstrations or random"),
    "softmax": ({"attention.kind": "linear,softmax"}, "exact for some of linear, linear_momentum"),
    "EMA": ({"attention.kind": "delta+momentum"}, "exact for some of linear, linear_momentum"),
    "none": ({"attention.kind": ""}, "exact for some of linear, linear_momentum"),
    "unknown": ({"attention.kind": "lineer"}, "'lineer' is unknown"),
    "eta": ({"attention.eta": 1.5}, "attention.eta is 1.5; expected at least 0 and below 1"),
    "chunk": ({"chunk": 48}, "config.chunk is 48; expected a power of 2"),
    "variant": ({"variants": ("elu",)}, "some of as named, beta varies, elu+1"),
    "kernels": ({"forms.kernels": ("momentum",)}, "config.forms.kernels is"),
    "width": ({"random.width": 0}, "config.random.width is 0; expected a whole number above 0"),
    "job": ({"num_demonstrations": 0}, "config.num_demonstrations is 0"),
}


@pytest.mark.parametrize(("changes", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_clear_line(changes, message):
    with pytest.raises(UserError, match=message.replace("+", r"\+")):
        dual.validate(small(**changes))
