"""What the README shows runs as shown."""

import re
from pathlib import Path

import pytest

from icljax.experiments import config as config_lib

README = (Path(__file__).parents[1] / "README.md").read_text()


def examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, re.S)


def test_attention_example_prints_what_its_comment_says(capsys):
    exec(examples()[0], {})
    assert capsys.readouterr().out == "(1, 100, 2, 1, 16) (1, 2, 16, 16)\n"


def test_metrics_example_prints_what_its_comments_say(capsys):
    exec(examples()[1], {})
    similarity, shape, recalled = capsys.readouterr().out.splitlines()
    assert float(similarity) == pytest.approx(0.7, abs=0.05)
    assert shape == "(8,)"
    assert float(recalled) == 50.0


def test_every_config_field_is_in_the_table():
    table = README.split("## Configuration")[1].split("### Another task")[0]
    for key in config_lib.default().to_dict():
        assert re.search(rf"`{key}[`.]", table), key


def test_ci_runs_commands_that_are_there():
    (commands,) = re.findall(r"<!-- tests -->\n```bash\n(.*?)```\n<!-- /tests -->", README, re.S)
    assert "ruff check" in commands
    assert "mypy" in commands
    assert "pytest" in commands
