"""Any terminal, any user: encodings, widths, closed pipes, Ctrl-C."""

import io
import os
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console
from test_main import ROOT, tiny_flags
from test_tables import job, real  # noqa: F401

from icljax import chunks, report, terminal, workdir


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
from icljax import terminal
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


@pytest.mark.parametrize("width", [1, 2, 10, 40, 80])
@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_the_last_table_fits_any_terminal(real, tmp_path, width, encoding):  # noqa: F811
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="plain")
    terminal.set_up()
    report.show(job(real, "mr"), tmp_path, Console(file=file, width=width))
    file.flush()
    assert file.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        ("UserError('two\\nlines')", 2, "icljax: error: two lines"),
        ("UserError('x' * 10**6)", 2, "icljax: error: xxx"),
        ("KeyboardInterrupt", 130, "icljax: interrupted; what is committed is kept"),
        ("MemoryError('of 3 TB')", 2, "icljax: error: this machine's memory is full (of 3 TB)"),
    ],
)
def test_one_line_and_a_code(error, code, line):
    done = python(
        "from icljax import terminal\nfrom icljax.errors import UserError\n"
        f"def main(): raise {error}\nterminal.run(main)"
    )
    assert done.returncode == code
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1
    assert len(done.stderr) < 1300


def test_a_mistake_of_ours_keeps_its_traceback():
    done = python("from icljax import terminal\nterminal.run(lambda: 1 / 0)")
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr


def test_whoever_reads_the_output_may_go_away(tmp_path):
    """`| head -1`: nothing more is shown, and the job goes on to its end."""
    code = (
        "import sys; from icljax import terminal\n"
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
        while not list((path / chunks.FOLDER).glob("finetune-0*.npz")):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130, said
    assert said.startswith("icljax: interrupted; what is committed is kept")
    assert said.count("\n") == 1
    assert list((path / chunks.FOLDER).glob("*.npz"))
    assert not (path / workdir.LOCK).exists()
