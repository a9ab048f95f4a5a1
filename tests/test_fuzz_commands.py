"""Whatever a user types ends in a result or in one line with exit code 2, never in a traceback.

Every field of every config with odd values, and odd flags, for the three command lines.
"""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st
from ml_collections import ConfigDict

from icljax.errors import UserError
from icljax.experiments import config as config_lib
from tests.conftest import bounded

ROOT = Path(__file__).parents[1]
ODD = [
    *("", " ", "x", ",", ";", "=", "a=b", "'", '"', "*", "\n", "\x01", "%s%n", "a" * 5000),
    *("0", "-1", "1", "2", "1e400", "-1e400", "nan", "inf", "1e-400", "0.5", "1_000", "0x10"),
    *("99999999999999999999", "2147483648", "4294967296", "None", "True", "false"),
    *("[]", "()", "(1,)", "('a',)", "1,2", "1,x", "[1,[2]]", "(None,)", "{}", "{'a': 1}"),
    *("{", "{text}", "{0}", "{text!r}", "{a.b}", "<bos>", "é\u2028\u0661", "../..", "/", "~"),
    *("~nobody/x", "/dev/null", "/dev/null/x", "jsonl:", "jsonl:/", "tfds:", "package:", "text:/"),
    *("all", "gd;x", "softmax,,", "momentum+momentum", "v5e:0x0", "train[", "train[:0]", "a[b:c]"),
]
FLAGS = ["workdir", "config", "topology", "json", "demonstration_tokens", "query_tokens"]
FLAGS += ["examples", "effort", "seconds", "compile", "collectives", "distributed", "coordinator"]
FLAGS += ["num_processes", "process_id", "nothing"]
COMMANDS = {"compare": "task.py:mr", "dual": "dual.py", "regression": "regression.py"}
COMMANDS |= {"pretrain": "pretrain.py", "sweep": "paper.py"}


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """Runs a command line up to where it would compute: (exit code, output, errors)."""
    env = {"ICLJAX_CACHE": str(tmp_path_factory.mktemp("cache")), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("command_server.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=tmp_path_factory.mktemp("empty"),  # where a report may be written
        env=os.environ | env,
    ) as server:

        def ask(module, *arguments):
            print(json.dumps([f"icljax.{module}", *arguments]), file=server.stdin, flush=True)
            return json.loads(server.stdout.readline())

        yield ask
        server.stdin.close()


def flat(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def fields(name):
    """The fields of a config in configs/."""
    file, _, argument = COMMANDS[name].partition(":")
    spec = importlib.util.spec_from_file_location("config_file", ROOT / "configs" / file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(flat(module.get_config(*filter(None, [argument])).to_dict()))


def one_line_or_fine(answer, fine=(0,)):
    code, out, err = answer
    assert "Traceback" not in out + err, err
    if code in fine:
        return
    assert code == 2, (code, err)
    assert err.startswith("icljax: error: "), err
    assert err.count("\n") == 1, err
    assert len(err) < 1300, err


@pytest.mark.fuzz
@pytest.mark.parametrize("name", COMMANDS)
def test_every_field(ask, name, tiny_folder, reviews):
    change = st.tuples(st.sampled_from(fields(name)), st.sampled_from(ODD))

    @bounded(12 if name == "compare" else 6)
    @hypothesis.given(st.lists(change, min_size=1, max_size=2))
    def run(changes):
        given = {"model": str(tiny_folder), "data.source": f"jsonl:{reviews}", "seeds": "1,2"}
        given |= {"num_demonstrations": "4", "eval.num_examples": "10"}
        given = (given if name == "compare" else {}) | dict(changes)
        flags = [f"--config.{key}={value}" for key, value in given.items()]
        with tempfile.TemporaryDirectory() as folder:
            config = f"--config={ROOT / 'configs' / COMMANDS[name]}"
            one_line_or_fine(ask("main", config, f"--workdir={folder}/job", *flags))
            if name in ("compare", "pretrain"):
                one_line_or_fine(ask("preflight", config, "--topology=gpu:1xh100", *flags))

    run()


@pytest.mark.fuzz
@bounded(6)
@hypothesis.given(
    flag=st.sampled_from(FLAGS),
    value=st.sampled_from(ODD),
)
def test_every_flag(ask, flag, value):
    hypothesis.assume((flag, value) not in {("distributed", "True"), ("coordinator", "x")})
    hypothesis.assume(flag not in ("coordinator", "distributed") or value in ("", " ", "None"))
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        config = f"--config={ROOT / 'configs/mr.py'}"
        preflight = (config, "--topology=gpu:1xh100", "--config.model=fairseq-125m")
        one_line_or_fine(ask("preflight", *preflight, f"--{flag}={value}"))
        if flag in ("config", "coordinator", "num_processes", "nothing"):
            one_line_or_fine(ask("main", config, f"--workdir={folder}/job", f"--{flag}={value}"))
        if flag in ("workdir", "nothing"):
            one_line_or_fine(ask("report", value))
            one_line_or_fine(ask("report", folder, f"--out={value}"))
            one_line_or_fine(ask("report", f"--{flag}", value))


SAID = {
    "negative": (["--demonstration_tokens=-5"], "demonstration_tokens"),
    "too many": (["--examples=99999999"], "examples"),
    "too many chips": (["--topology=gpu:99999999999xh100"], "topology"),
    "no tiles": (["--topology=v5e:99999x99999"], "topology"),
    "not UTF-8": (["--config.prompt.separator=\udca7"], "which is not UTF-8"),
    "not UTF-8 in a tuple": (["--config.answers=('sch\udcf6n','bad')"], "which is not UTF-8"),
    "a rate twice": (["--config.finetune.learning_rates=0.1,0.1"], "different numbers above 0"),
    "one number as answers": (["--config.answers=5"], "expected at least two"),
}


@pytest.mark.parametrize(("flags", "message"), SAID.values(), ids=SAID)
def test_what_is_wrong_is_said(ask, flags, message):
    config = (f"--config={ROOT / 'configs/task.py'}:mr", "--config.model=fairseq-125m")
    code, _, err = ask("preflight", *config, "--topology=gpu:1xh100", *flags)
    assert code == 2
    assert message in err
    one_line_or_fine((code, "", err))


@pytest.mark.fuzz
@bounded(100)
@hypothesis.given(
    key=st.sampled_from(list(flat(config_lib.default().to_dict()))),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3).map(tuple),
        max_leaves=6,
    ),
)
def test_values_that_a_configs_file_may_give(key, value):
    """ml_collections refuses other types than the default's; what it lets through is validated."""
    config = config_lib.default()
    node: ConfigDict = config
    *parents, name = key.split(".")
    for part in parents:
        node = node[part]
    try:
        node[name] = value
    except (TypeError, ValueError):
        return
    with contextlib.suppress(UserError):
        config_lib.validate(config)
