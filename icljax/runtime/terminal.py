"""What the command lines share: any terminal, and one line and an exit code for what ends them.

Exit codes: 2 a mistake, told in one line; 130 interrupted by Ctrl-C. `icljax.main` has more.
"""

import codecs
import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TextIO

import rich.console

from icljax.errors import UserError

# What stands for a character that a terminal's encoding lacks; "?" for all others.
_PLAIN = str.maketrans({"±": "+/-", "…": "...", "→": "->", "≥": ">=", "≤": "<="})

_LEAST = 60  # columns of a table
_LONGEST = 1200  # characters of a line that ends a command


def set_up() -> None:
    """Lets standard output and errors take any text, whatever their encoding and reader."""
    codecs.register_error("plain", _plain)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain")
            setattr(sys, name, _Lenient(stream))


def _plain(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end].translate(_PLAIN)
    return text.encode("ascii", "replace").decode(), error.end


class _Lenient(io.TextIOBase):
    """A stream whose reader may go away (`| head`, a full disk): the job keeps its results."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes, or lets go of what nobody takes."""
        self._tried(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """As `write`."""
        self._tried(self._stream.flush)

    def _tried(self, act: Callable[[], object]) -> None:
        try:
            act()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    # TextIOBase has these, so that they do not reach __getattr__.
    def fileno(self) -> int:
        """The stream's."""
        return self._stream.fileno()

    def isatty(self) -> bool:
        """The stream's."""
        return self._stream.isatty()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The stream's."""
        return self._stream.encoding


class Console(rich.console.Console):
    """A console whose tables keep their numbers whole: a narrow terminal breaks their lines."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.width = max(self.width, _LEAST)


_cleanups: list[Callable[[], None]] = []


@contextlib.contextmanager
def before_exit(cleanup: Callable[[], None]) -> Iterator[None]:
    """Inside, Ctrl-C calls `cleanup` before it ends the process."""
    _cleanups.append(cleanup)
    try:
        yield
    finally:
        _cleanups.remove(cleanup)


def end_on_interrupt() -> None:
    """Lets Ctrl-C end the process at once, with one line.

    As a kill would: what is committed is whole at any moment. An exception instead would be lost
    where nobody passes it on, in callbacks of the garbage collector and half-done imports.
    """

    def stop(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for cleanup in reversed(_cleanups):
            with contextlib.suppress(Exception):
                cleanup()
        if sys.stdout is not None and sys.stdout.isatty():
            sys.stdout.write("\x1b[?25h\n")  # a live display hides the cursor
        end(130, "interrupted; what is committed is kept, and the same command continues")

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, stop)


def run(
    main: Callable[[], int | None], other: Callable[[Exception], None] = lambda _: None
) -> None:
    """Runs a command line to its exit.

    Args:
        main: its exit code is what this returns or exits with.
        other: may end the process for an exception that is neither a UserError nor an interrupt.
    """
    set_up()
    end_on_interrupt()
    try:
        sys.exit(main())
    except UserError as e:
        end(2, f"error: {one_line(e)}")
    except MemoryError as e:
        end(2, f"error: this machine's memory is full ({one_line(e)}); give smaller numbers")
    except Exception as e:
        other(e)
        raise


def end(code: int, line: str) -> NoReturn:
    """Ends at once, with one line: a process of several must not wait for one that is gone."""
    for stream, text in ((sys.stdout, ""), (sys.stderr, f"icljax: {line}\n")):
        if stream is not None:
            stream.write(text)
            stream.flush()
    os._exit(code)


def one_line(error: BaseException) -> str:
    """The error's message without line breaks; of a traceback in it, the last line alone."""
    text = (str(error.args[0]) if error.args else str(error)).replace("\\n", "\n")
    before, mark, trace = text.partition("Traceback (most recent call last):")
    if mark:  # of a config's file, by ml_collections
        *frames, last = trace.strip().splitlines()
        where = [line.strip() for line in frames if "in get_config" in line]
        text = " ".join([before, last, *(f"({line})" for line in where[-1:])])
        text = text.replace("icljax.errors.UserError: ", "")
    text = " ".join(text.split())
    # A value of a megabyte is not repeated; what was expected stands at the end.
    return text if len(text) <= _LONGEST else f"{text[:400]} ... {text[-600:]}"
