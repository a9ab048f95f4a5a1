"""The one reader of results: typed scalars, labelled arrays, the layout of version 0.1.0."""

import json
from pathlib import Path

import numpy as np
import pytest

from icljax import results
from icljax.catalog import SIMILARITIES
from icljax.comparison import statistics
from icljax.errors import UserError
from icljax.runtime import workdir
from tests.reports.test_report import LAYERS, SEEDS, make_comparison, make_job, make_results

VERSION_0_1_0 = Path(__file__).parent / "results_0_1_0.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished job's folder."""
    path = tmp_path_factory.mktemp("job")
    arrays = statistics.example_arrays(make_job(), make_comparison())
    arrays["step_answers"] = arrays["step_answers"][..., :1]  # as a job has it
    workdir.save_results(path, make_results(tmp_path_factory.mktemp("model"), arrays))
    workdir.save_examples(path, arrays)
    return path


def test_arrays_stand_on_named_axes(folder):
    job = results.open_job(folder)
    examples, own = job.examples, job.results.similarities["sim_aou"]
    assert examples["sim_aou"].dims == ("seed", "example", "layer")
    assert examples["sim_update"].dims == ("seed", "example", "layer", "head")
    assert examples["logprob_zsl"].dims == ("example", "answer")
    assert examples["label"].dims == ("example",)
    assert examples["step_answers"].dims == ("seed", "example")
    assert examples["seed"].values.tolist() == list(SEEDS)
    assert examples["layer"].values.tolist() == list(range(1, LAYERS + 1))
    of_seed = examples["sim_aou"].sel(seed=SEEDS[1]).mean()
    assert own.per_seed[1] == pytest.approx(float(of_seed), abs=1e-5)
    by_layer = examples["sim_aou"].mean(("seed", "example"))
    np.testing.assert_allclose(own.per_layer, by_layer, atol=1e-5)


def test_a_model_of_one_layer_keeps_its_axis(folder):
    with np.load(folder / "examples.npz") as f:
        arrays = {n: x[:, :, :1] if n.startswith("sim") else x for n, x in f.items()}
    kept = {n: x for n, x in arrays.items() if n in results.WITHOUT_SEEDS or n.startswith("sim")}
    examples = results.labelled(kept, SEEDS)
    assert examples["sim_aou"].dims == ("seed", "example", "layer")


def test_what_is_read_is_what_was_written(folder):
    written = json.loads((folder / "results.json").read_text())
    typed = results.read(folder / "results.json")
    assert results.to_plain(typed) == written
    assert written["schema"] == results.SCHEMA


def test_results_of_version_0_1_0_are_read():
    """What they hold of controls is passed over."""
    found, typed = json.loads(VERSION_0_1_0.read_text()), results.read(VERSION_0_1_0)
    assert "schema" not in found
    assert typed.data.duplicates is None  # they were not counted then
    for name in SIMILARITIES:
        assert typed.similarities[name].mean == found[name]["mean"]
    again = results.from_plain(json.loads(json.dumps(results.to_plain(typed))))
    assert again == typed


def test_a_folder_without_results_is_named(tmp_path):
    with pytest.raises(UserError, match=r"holds no results.json; give the --workdir"):
        results.open_job(tmp_path)


def test_another_experiments_results_are_named(tmp_path):
    (tmp_path / "results.json").write_text('{"models": {}}')
    with pytest.raises(UserError, match="is not of a comparison in paper mode"):
        results.open_job(tmp_path)


def test_arrays_that_cannot_be_read_are_named(folder, tmp_path):
    (tmp_path / "results.json").write_bytes((folder / "results.json").read_bytes())
    (tmp_path / "examples.npz").write_bytes(b"PK damaged")
    with pytest.raises(UserError, match=r"examples.npz cannot be read .*; run the job again"):
        results.open_job(tmp_path)
