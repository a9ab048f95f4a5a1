"""What the command lines share: any terminal, and one line and an exit code for what ends them.

Exit codes: 2 a mistake, told in one line; 130 interrupted by Ctrl-C. `icljax.main` has more.
"""

import codecs
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import rich.console

from icljax.errors import UserError

# What stands for a character that a terminal's encoding lacks; "?" for all others.
_PLAIN = str.maketrans({"±": "+/-", "…": "...", "→": "->", "≥": ">=", "≤": "<="})


def set_up() -> None:
    """Lets standard output and errors take any text, whatever their encoding."""
    codecs.register_error("plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="plain")


def _plain(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end].translate(_PLAIN)
    return text.encode("ascii", "replace").decode(), error.end


class Console(rich.console.Console):
    """A console whose reader may go away (`| head`): the job goes on, and keeps its results."""

    def on_broken_pipe(self) -> None:
        """Prints nothing more, here or at the interpreter's end."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(main: Callable[[], Any], other: Callable[[Exception], None] = lambda _: None) -> None:
    """Runs a command line to its exit.

    Args:
        main: its exit code is what this returns or exits with.
        other: may end the process for an exception that is neither a UserError nor an interrupt.
    """
    set_up()
    try:
        sys.exit(main())
    except UserError as e:
        end(2, f"error: {one_line(e)}")
    except KeyboardInterrupt:
        end(130, "interrupted; what is committed is kept, and the same command continues")
    except Exception as e:
        other(e)
        raise


def end(code: int, line: str) -> NoReturn:
    """Ends at once, with one line: a process of several must not wait for one that is gone."""
    for stream, text in ((sys.stdout, ""), (sys.stderr, f"icljax: {line}\n")):
        try:
            if stream is not None:
                stream.write(text)
                stream.flush()
        except OSError:  # nobody reads it any more
            pass
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
    return " ".join(text.split())
