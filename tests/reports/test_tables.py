"""Many results as tables: which cells there are, and the paper's numbers."""

import copy
import json

import numpy as np
import pytest

from icljax.comparison import statistics
from icljax.errors import UserError
from icljax.reports import baselines, merged, paper, study, tables
from tests.reports.test_report import make_comparison, make_job, make_results, typed


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Results of one job, made by comparison.statistics itself."""
    folder = tmp_path_factory.mktemp("model")
    arrays = statistics.example_arrays(make_job(), make_comparison())
    return make_results(folder, arrays)


def job(real, task, model="smollm2-135m", method="gd", **changes):
    """The same with another task, as JSON."""
    out = copy.deepcopy(real) | {"task": task} | changes
    out["model"]["name"] = model
    out["finetune"]["method"] = method
    return out


def entry(result, task, model="m", setting="gd"):
    """A cell of a study with such results."""
    return study.Entry(task, model, setting, typed(result), "", None)


def save(folder, name, content):
    path = folder / name / "results.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))
    return path


def row(table, label, group=""):
    """Texts of the row with this label, in this group where one is named."""
    found, inside = [], not group
    for r in table.rows:
        if r.kind == "group":
            inside = group in ("", r.cells[0].text.split(" (")[0])
        elif inside and r.cells[0].text == label:
            found.append([cell.text for cell in r.cells[1:]])
    assert len(found) == 1, (label, found)
    return found[0]


def named(groups, key):
    (table,) = (t for t in merged.report(groups).tables() if t.key == key)
    return table


# --------------------------------------------------------------------------------- the paper's data


@pytest.mark.parametrize(
    ("field", "size", "average"),
    [
        # The averages that the paper prints beside its columns.
        ("rec2ftp", "1.3b", 85.56),
        ("rec2ftp", "2.7b", 89.39),
        ("sim_aou", "1.3b", 0.186),
        ("sim_aou", "2.7b", 0.225),
        ("sim_am_before", "1.3b", 0.338),
        ("sim_am_before", "2.7b", 0.355),
        ("sim_am", "1.3b", 0.442),
        ("sim_am", "2.7b", 0.434),
        ("kendall", "1.3b", 0.193),
        ("kendall", "2.7b", 0.214),
    ],
)
def test_the_papers_columns_have_its_averages(field, size, average):
    values = [getattr(paper.CELLS[task, size], field) for task in paper.TASKS]
    # Of rounded numbers, so that the last digit may differ by one.
    assert np.mean(values) == pytest.approx(average, abs=0.01 if field == "rec2ftp" else 0.00101)


def test_the_papers_search_is_its_grid():
    assert len(paper.SEARCHED_RATES) == 36
    assert {0.9, 0.05, 0.003, 0.0001} <= set(paper.SEARCHED_RATES)
    # SST-5's rate at 1.3B is no point of the grid that the paper states.
    rates = {cell.learning_rate for cell in paper.CELLS.values()}
    assert rates - set(paper.SEARCHED_RATES) == {0.00016}
    assert {cell.seed for cell in paper.CELLS.values()} <= set(paper.SEARCHED_SEEDS)


@pytest.mark.parametrize(
    ("model", "size"),
    [
        ("KoboldAI/fairseq-dense-1.3B", "1.3b"),
        ("/models/fairseq-2.7b", "2.7b"),
        ("fairseq-13b", ""),
        ("fairseq-125m", ""),
        ("EleutherAI/gpt-neo-1.3B", ""),  # as large, but not the paper's
    ],
)
def test_which_models_are_the_papers(model, size):
    assert paper.size_of(model) == size


# --------------------------------------------------------------------------------------- the reader


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("smollm2-135m", "smollm2-135m"),
        ("org/name", "name"),
        ("/a/b/fairseq-1.3b/", "fairseq-1.3b"),
        ("/a/fairseq-1.3b/model.pt", "fairseq-1.3b"),
        ("/a/tiny.gguf", "tiny"),
    ],
)
def test_model_names_are_short(model, name):
    assert study.model_name(model) == name


def test_results_are_found_wherever_they_lie(real, tmp_path):
    save(tmp_path, "deep/er/sst2", job(real, "sst2"))
    flat = tmp_path / "flat"
    flat.mkdir()
    (flat / "cb_smollm2-135m_k8.json").write_text(json.dumps(job(real, "cb")))
    (flat / "config.json").write_text("{}")  # no result
    groups = study.read([tmp_path / "deep", flat, tmp_path])
    assert [(g.setting, list(g.cells)) for g in groups] == [("gd", ["sst2"]), ("k8", ["cb"])]


def test_what_a_sweep_has_not_done_is_missing_and_what_failed_says_why(real, tmp_path):
    plan = {
        f"{task}_m": {"task": task, "model": "m", "setting": "base", "error": error}
        for task, error in (("cb", ""), ("mr", ""), ("zoo", "no such data"))
    }
    save(tmp_path, "cb_m", job(real, "cb", "m"))
    (tmp_path / "sweep.json").write_text(json.dumps(plan))
    (group,) = study.read([tmp_path])
    assert group.setting == "base"
    assert list(group.cells) == ["mr", "cb", "zoo"]  # the paper's order first
    assert [bool(e.results) for e in group.cells.values()] == [False, True, False]
    accuracy = named([group], "accuracy")
    cells = dict(zip(accuracy.header[1:], row(accuracy, "ICL", "m, base"), strict=True))
    assert cells["MR"] == cells["SST2"] == tables.MISSING
    assert cells["zoo"] == tables.FAILED
    assert cells["CB"] == f"{100 * real['accuracy']['icl']['mean']:.1f}"
    why = [[cell.text for cell in r.cells] for r in named([group], "missing").rows]
    assert why == [
        ["mr", "m", "base", "missing", "not run yet"],
        ["zoo", "m", "base", "failed", "no such data"],
    ]


def test_two_results_for_one_cell_are_refused_and_both_named(real, tmp_path):
    first = save(tmp_path, "a", job(real, "cb"))
    second = save(tmp_path, "b", job(real, "cb"))
    assert len(study.read([tmp_path])) == 1  # equal: a copy
    second.write_text(json.dumps(job(real, "cb", seconds={})))
    with pytest.raises(UserError, match="two results") as error:
        study.read([tmp_path])
    assert str(first) in str(error.value)
    assert str(second) in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"), [("{", "cannot be read"), ('{"loss": 1}', "no results of a comparison")]
)
def test_what_is_no_result(content, message, tmp_path):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError, match=message):
        study.read([tmp_path])


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="is no folder"):
        study.read([tmp_path / "no"])


# ------------------------------------------------------------------------------------- the verdicts


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((0.01, 0.2), "above"),
        ((0.0, 0.2), "level"),
        ((-0.1, 0.2), "level"),
        ((-0.2, -0.1), "below"),
        ((None, 0.1), "unknown"),
    ],
)
def test_outcome(interval, expected):
    assert baselines.outcome(interval) == expected


@pytest.fixture
def group(real):
    """Three tasks."""
    cells = {task: entry(job(real, task), task) for task in ("sst2", "mr", "cb")}
    return study.Group("m", "gd", cells)


def test_icls_rate_on_what_finetuning_leaves_wrong(real):
    patterns = dict.fromkeys(real["agreement"]["patterns"], 0.0) | {"zIf": 0.1, "zif": 0.3}
    changed = real | {"agreement": {"patterns": patterns}}
    assert baselines.rate_unlike(typed(changed)) == pytest.approx(25)


# -------------------------------------------------------------------------------------- the tables


def test_another_model_stands_above_the_papers_numbers(group):
    accuracy = named([group], "accuracy")
    ours = row(accuracy, "FT", "m, gd")
    share = 100 * group.cells["mr"].results.accuracy.ft.mean
    assert ours[accuracy.header.index("MR") - 1] == f"{share:.1f}"
    assert row(accuracy, "FT, GPT 1.3B")[:3] == ["73.9", "39.5", "73.0"]
    assert not any("minus the paper's" in r.cells[0].text for r in accuracy.rows)
    assert any("another model" in r.cells[0].text for r in accuracy.rows)


def test_the_papers_model_stands_beside_the_papers_numbers(real):
    result = job(real, "mr", "x/fairseq-dense-1.3B")
    result["similarities"]["sim_aou"] |= {"mean": 0.2}
    cells = {"mr": entry(result, "mr", "fairseq-dense-1.3B")}
    table = named([study.Group("fairseq-dense-1.3B", "gd", cells)], "sim_aou")
    assert row(table, "ours minus the paper's")[2] == "-0.022"  # .200 - .222
    assert not any("GPT 1.3B, from the paper" in r.cells[0].text for r in table.rows)
    assert any("GPT 2.7B, from the paper" in r.cells[0].text for r in table.rows)


def test_every_row_is_as_wide_as_its_table(group):
    made = merged.report([group]).tables()
    assert len({t.key for t in made}) == len(made) > 5
    for table in made:
        for r in table.rows:
            assert len(r.cells) == (1 if r.kind == "group" else len(table.header)), table.title


def test_every_learning_rate_has_its_row(group):
    table = named([group], "dose-m_gd")
    dose = group.cells["mr"].results.dose_response
    for i, lr in enumerate(dose.learning_rates):
        expected = dose.similarity["sim_aou"][i].mean
        text = row(table, f"{lr:g}", "SimAOU")[table.header.index("MR") - 1]
        assert text == ("-" if expected is None else f"{expected:.3f}")


def test_layer_causal_beside_the_revisit(group, real):
    results = {t: job(real, t, method="lcgd") for t in ("sst2", "mr")}
    for task, result in results.items():
        gd = group.cells[task].results.similarities["sim_aou"].mean
        result["similarities"]["sim_aou"]["mean"] = gd + 0.25
    cells = {t: entry(r, t, setting="lcgd") for t, r in results.items()}
    table = named([group, study.Group("m", "lcgd", cells)], "lcgd")
    gd, lcgd, gap, higher, *theirs = row(table, "SimAOU")
    assert float(lcgd) - float(gd) == pytest.approx(0.25, abs=0.0011)
    assert (gap, higher) == ("+0.250", "2 of 2")
    assert theirs == ["0.187", "0.279"]
