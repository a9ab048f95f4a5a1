"""Any terminal, any user: encodings, widths, closed pipes, Ctrl-C."""

import io
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console

from icljax.reports import summary
from icljax.runtime import chunks, terminal, workdir
from icljax.runtime.progress import Stages
from tests.reports.test_tables import job, real  # noqa: F401
from tests.test_main import ROOT, tiny_flags


def python(code, **options):
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | options.pop("env", {}),
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


PRINTS = r"""
from icljax.runtime import terminal
def main():
    console = terminal.Console()
    console.print("57.9 \N{PLUS-MINUS SIGN} 8.1 \N{RIGHTWARDS ARROW} \u2588 \udcff")
    print("caf\u00e9 \N{PLUS-MINUS SIGN}")
    raise terminal.UserError("not \N{PLUS-MINUS SIGN} \u2588 \udcff")
terminal.run(main)
"""


@pytest.mark.parametrize(
    ("encoding", "out"),
    [
        ("ascii", "57.9 +/- 8.1 -> ? ?\ncaf? +/-\n"),
        ("latin-1", "57.9 ± 8.1 -> ? ?\ncafé ±\n"),
        ("utf-8", "57.9 ± 8.1 → █ ?\ncafé ±\n"),
    ],
)
def test_any_encoding(encoding, out):
    """ascii_terminal: the last table ended a finished job with a traceback."""
    done = python(PRINTS, env={"PYTHONIOENCODING": encoding}, encoding=encoding)
    assert (done.returncode, done.stdout) == (2, out)
    assert done.stderr.startswith("icljax: error: not ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("columns", [1, 20, 59, 200])
@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_the_last_table_is_whole_on_any_terminal(
    real,  # noqa: F811
    tmp_path,
    monkeypatch,
    columns,
    encoding,
):
    monkeypatch.setenv("COLUMNS", str(columns))
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="plain")
    terminal.set_up()
    summary.show(job(real, "mr"), tmp_path, terminal.Console(file=file))
    file.flush()
    shown = file.buffer.getvalue().decode(encoding)
    assert re.search(r"raw +\d+\.\d .*\d+\.\d", shown)
    assert "\u2026" not in shown
    assert "..." not in shown


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        ("UserError('two\\nlines')", 2, "icljax: error: two lines"),
        ("UserError('x' * 10**6)", 2, "icljax: error: xxx"),
        ("MemoryError('of 3 TB')", 2, "icljax: error: this machine's memory is full (of 3 TB)"),
    ],
)
def test_one_line_and_a_code(error, code, line):
    done = python(
        "from icljax.runtime import terminal\nfrom icljax.errors import UserError\n"
        f"def main(): raise {error}\nterminal.run(main)"
    )
    assert done.returncode == code
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1
    assert len(done.stderr) < 1300


def test_a_mistake_of_ours_keeps_its_traceback():
    done = python("from icljax.runtime import terminal\nterminal.run(lambda: 1 / 0)")
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr


def test_whoever_reads_the_output_may_go_away(tmp_path):
    """`| head -1`: nothing more is shown, and the job goes on to its end."""
    code = (
        "import sys; from icljax.runtime import terminal\n"
        "def main():\n"
        "    console = terminal.Console()\n"
        "    for i in range(100_000): console.print(i)\n"
        f"    open({str(tmp_path / 'done')!r}, 'w')\n"
        "terminal.run(main)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout.readline() == b"0\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
    assert (tmp_path / "done").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
def test_a_full_disk_under_the_output(tmp_path):
    code = (
        "from icljax.runtime import terminal\n"
        f"def main(): terminal.Console().print('x'); open({str(tmp_path / 'done')!r}, 'w')\n"
        "terminal.run(main)"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "done").exists()


INTERRUPTED = """
import os, signal, sys
from icljax.runtime import terminal
def main():
    class Lost:
        def __del__(self): os.kill(os.getpid(), signal.SIGINT)
    with terminal.before_exit(lambda: print("cleaned")):
        Lost()  # an exception raised in there is ignored
        print("not reached")
terminal.run(main)
"""


def test_ctrl_c_is_not_lost_in_a_finalizer():
    done = python(INTERRUPTED)
    line = "icljax: interrupted; what is committed is kept, and the same command continues\n"
    assert (done.returncode, done.stdout, done.stderr) == (130, "cleaned\n", line)


@pytest.mark.parametrize("module", ["main", "preflight", "report"])
def test_ctrl_c_while_modules_are_imported(module):
    """What is imported sends it; the module runs as `python -m` runs it."""
    code = (
        "import os, runpy, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name in ('logging', 'argparse', 'dataclasses') or 'absl' in name:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "import icljax.runtime.terminal\n"
        "for name in ('logging', 'argparse', 'dataclasses'): sys.modules.pop(name, None)\n"
        "sys.meta_path.insert(0, Finder())\n"
        f"runpy.run_module('icljax.{module}', run_name='__main__')"
    )
    done = python(code)
    assert done.returncode == 130, done.stderr
    assert done.stderr.startswith("icljax: interrupted")
    assert done.stderr.count("\n") == 1


def test_ctrl_c_keeps_what_is_committed(tiny_folder, reviews, tmp_path):
    path = tmp_path / "job"
    command = [sys.executable, "-m", "icljax.main", *tiny_flags(tiny_folder, reviews, path)]
    with subprocess.Popen(
        command,
        env=os.environ | {"ICLJAX_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while not list((path / chunks.FOLDER).glob("select-0*.npz")):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130, said
    assert said.startswith("icljax: interrupted; what is committed is kept")
    assert said.count("\n") == 1
    assert list((path / chunks.FOLDER).glob("*.npz"))
    assert not (path / workdir.LOCK).exists()


def test_a_bar_of_bytes_fits_a_terminal():
    """Bytes as megabytes, anything else in percent, and the time left beside both."""
    console = Console(width=80, force_terminal=True, file=io.StringIO())
    with Stages(console) as stages, stages.stage("a", "model (fetched and converted once)", 1) as b:
        b.at(200_000_000, 1_092_845_809, "bytes")
        stages._progress.refresh()
        b.at(3, 10)
        stages._progress.refresh()
    shown = console.file.getvalue()
    assert re.search(r"200/1093 MB.*left.*-:--:--", shown)
    assert " 30%" in shown
    assert "…" not in shown
