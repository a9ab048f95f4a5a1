"""How JAX is set up for a job: the compilation cache, several processes, being asked to stop."""

import contextlib
import ctypes
import functools
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from icljax.errors import UserError
from icljax.runtime import downloads

STOPPED, LOST = 75, 76  # exit codes; 75 is EX_TEMPFAIL: the same command continues
_HEARTBEAT_SECONDS = 30
_COMPILED = "/jax/core/compile/backend_compile_duration"  # JAX's name for the event
_NEVER = 1e9  # seconds of compilation above which a program is written to the cache
_REPORT_SECONDS = 300  # that the others wait while process 0 writes the report
# In what collectives and the coordination service say when a process is gone.
SIGNS_OF_LOSS = ("Gloo", "by peer", "heartbeat", "UNAVAILABLE", "CoordinationService", "Barrier")

T = TypeVar("T")

_asked: list[int] = []  # signals that asked this process to end


class Stopped(Exception):  # noqa: N818 - it is no error
    """The job was asked to end (SIGTERM), and has: what it had done is committed."""


def set_up() -> None:
    """Turns on the persistent compilation cache, so that a second job starts at once.

    What compiling leaves in memory is given back.

    In JAX_COMPILATION_CACHE_DIR, or beside the models; one that cannot be written is read.
    """
    if not os.access(os.path.expanduser("~"), os.W_OK):
        os.environ.setdefault("MPLCONFIGDIR", str(downloads.cache_dir() / "matplotlib"))
    given = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    folder = Path(given) if given else downloads.cache_dir() / "xla"
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    least = 0.0 if os.access(folder, os.W_OK) else _NEVER
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    _listen_to_compiler()


@functools.cache  # once a process
def _listen_to_compiler() -> None:
    jax.monitoring.register_event_duration_secs_listener(_after_compiling)


def _after_compiling(event: str, duration_secs: float, **_: str | int) -> None:
    if event == _COMPILED and duration_secs > 1:
        give_back_memory()


def give_back_memory() -> None:
    """Gives freed memory to the system: of a large compilation, the C library keeps some 500 MB."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library than GNU's
            ctypes.CDLL("libc.so.6").malloc_trim(0)


@contextlib.contextmanager
def ending_after_commits() -> Iterator[None]:
    """Inside, SIGTERM ends nothing at once: `stop_if_asked` does, after a commit."""
    if threading.current_thread() is not threading.main_thread():  # signals cannot be handled
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: _asked.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins the processes of one job, on all hosts; before anything else touches a device.

    Args:
        coordinator: HOST:PORT of process 0; with None, all three are detected (Cloud TPU, Slurm,
            Kubernetes, Open MPI).

    Raises:
        UserError: where nothing can be detected, or the others do not answer.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_REPORT_SECONDS,
        )
    except (RuntimeError, ValueError) as e:
        raise UserError(
            f"the processes of this job cannot join: {e}; on Cloud TPU, Slurm and Kubernetes give "
            "--distributed alone, elsewhere --coordinator=HOST:PORT --num_processes=N "
            "--process_id=I in each"
        ) from e


def several() -> bool:
    """Whether this process is one of several."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this is process 0, which alone writes and prints."""
    return jax.process_index() == 0


def from_first(compute: Callable[[], T]) -> T:
    """What process 0 computes (anything JSON holds), in every process; its UserError too."""
    if not several():
        return compute()
    message: dict[str, Any] = {}
    if is_first():
        try:
            message = {"value": compute()}
        except UserError as e:
            message = {"error": str(e)}
    content = np.frombuffer(json.dumps(message).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    buffer = content if is_first() else np.zeros(size, np.uint8)
    message = json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(buffer))))
    if "error" in message:
        raise UserError(message["error"])
    return message["value"]


def check_same(what: str, value: str) -> None:
    """Raises a UserError in every process whose `value` is not process 0's."""
    first = from_first(lambda: value)
    if value != first:
        raise UserError(
            f"process {jax.process_index()} has another {what} than process 0 ({value} and "
            f"{first}); give every host the same files"
        )


def all_true(value: bool) -> bool:
    """Whether `value` holds in every process."""
    if not several():
        return value
    return bool(np.all(multihost_utils.process_allgather(np.asarray(value))))


def stop_if_asked() -> None:
    """Raises Stopped in every process where any was asked to end; call it after a commit."""
    if not all_true(not _asked):
        raise Stopped("stopped by SIGTERM after a committed chunk; the same command continues")
