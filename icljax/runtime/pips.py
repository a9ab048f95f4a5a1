"""Wheels downloaded with the user's own pip, several side by side.

pip knows the user's index, mirror, proxy and credentials, so nothing here has to.
"""

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

# One downloads while the other starts. More were not faster (1 to 8 measured on 2 cores), and what
# is half there is lost when a fetch is killed.
AT_ONCE = 2
_POLL_SECONDS = 0.2

# pip, ended together with the process that started it, however that one ends: the pipe that is its
# standard input closes then. An orphan would go on fetching what the next process fetches too.
_PIP = """
import os, runpy, sys, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
sys.argv[0] = "pip"
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""
_COMMAND = [
    sys.executable,
    "-c",
    _PIP,
    "download",
    "--no-deps",
    "--only-binary=:all:",
    "--no-input",
]
# The cache here is the one that is wanted: pip's would hold every wheel a second time.
_COMMAND += ["--disable-pip-version-check", "--no-cache-dir", "-d"]


class Failed(Exception):  # noqa: N818 - it reads as the state it is
    """pip ended without a wheel.

    Attributes:
        requirement: what it could not download.
        said: the last line of its errors, shortened.
    """

    def __init__(self, requirement: str, said: str):
        super().__init__(f"{requirement}: {said}")
        self.requirement, self.said = requirement, said


@dataclasses.dataclass(frozen=True)
class _Pip:
    """One pip at work in a folder of its own."""

    process: subprocess.Popen[bytes]
    folder: Path

    def end(self) -> None:
        """Stops it, where it has not ended."""
        self.process.kill()  # does nothing to one that has ended
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()

    def bytes_so_far(self) -> int:
        """The size of the largest file under the folder: what is there of the wheel."""
        largest = 0
        for folder, _, names in os.walk(self.folder):  # unlike rglob, at ease where folders vanish
            for name in names:
                with contextlib.suppress(OSError):  # pip may have removed it since it was listed
                    largest = max(largest, os.path.getsize(os.path.join(folder, name)))
        return largest


def download(
    requirements: Sequence[str],
    scratch: Path,
    keep: Callable[[str, Path], None],
    progress: Callable[[int], None],
) -> None:
    """Downloads a wheel for each requirement, without dependencies.

    Args:
        requirements: as pip takes them.
        scratch: a folder for what is not whole yet.
        keep: called with a requirement and its whole wheel as soon as that is there; moves it away.
        progress: called now and then with the bytes that are there of all; never fewer than before.

    Raises:
        Failed: for the first that cannot be had; the others are stopped.
    """
    waiting = list(requirements)
    running: dict[str, _Pip] = {}
    so_far = dict.fromkeys(requirements, 0)
    try:
        while waiting or running:
            while waiting and len(running) < AT_ONCE:
                running[waiting[0]] = _start(waiting[0], Path(tempfile.mkdtemp(dir=scratch)))
                del waiting[0]
            with contextlib.suppress(subprocess.TimeoutExpired):
                next(iter(running.values())).process.wait(_POLL_SECONDS)
            for requirement, pip in list(running.items()):
                if pip.process.poll() is None:
                    so_far[requirement] = max(so_far[requirement], pip.bytes_so_far())
                    continue
                pip.end()
                wheel = _wheel(requirement, pip)
                so_far[requirement] = wheel.stat().st_size
                keep(requirement, wheel)
                shutil.rmtree(pip.folder, ignore_errors=True)
                del running[requirement]
            progress(sum(so_far.values()))
    finally:
        for pip in running.values():
            pip.end()


def _start(requirement: str, folder: Path) -> _Pip:
    temporary = folder / "pip"  # its own temporary files: where a download can be seen to grow
    temporary.mkdir()
    with _errors(folder).open("wb") as errors:
        return _Pip(_popen([*_COMMAND, str(folder), requirement], temporary, errors), folder)


def _popen(command: list[str], temporary: Path, errors: BinaryIO) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        env={**os.environ, "TMPDIR": str(temporary)},
    )


def _wheel(requirement: str, pip: _Pip) -> Path:
    """What a pip that has ended leaves in its folder."""
    wheel = next(pip.folder.glob("*.whl"), None)
    if wheel is None or pip.process.returncode != 0:
        lines = _errors(pip.folder).read_text(errors="replace").strip().splitlines()
        raise Failed(requirement, (lines or ["no message"])[-1][:200])
    return wheel


def _errors(folder: Path) -> Path:
    return folder / "pip.err"
