import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from icljax.errors import UserError
from icljax.runtime import downloads

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


def write_wheel(folder, content=CONTENT):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny_wheel-1.0-py3-none-any.whl"
    info = "tiny_wheel-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny_wheel/__init__.py", "raise RuntimeError('imported')\n")
        archive.writestr("tiny_wheel/data.bin", content)
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-wheel\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


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


def files_under(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


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


def test_two_processes_at_once(cache, index):
    write_wheel(index)
    code = (
        "from tests.runtime.test_downloads import *; "
        "print(downloads.fetch(packaged()).read_bytes() == CONTENT)"
    )
    root = Path(__file__).parents[2]
    both = [
        subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate()[0] for process in both] == ["True\n", "True\n"]
    assert files_under(cache) == ["tiny-wheel-1.0/data.bin"]


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
    with pytest.raises(UserError, match=f"tiny_wheel/data.bin.*{SHA256}.*{got}") as caught:
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
    monkeypatch.setattr(downloads, "_POLL_SECONDS", 0.01)
    sizes = iter([5, 9, 0])
    monkeypatch.setattr(downloads, "_largest", lambda _: next(sizes, 0))
    write_wheel(index)
    seen = []
    downloads.fetch(packaged(), lambda done, total: seen.append((done, total)))
    assert seen[:4] == [(5, 700), (9, 700), (9, 700), (9, 700)]


def test_largest(tmp_path):
    assert downloads._largest(tmp_path) == 0
    (tmp_path / "sub").mkdir()
    (tmp_path / "small").write_bytes(b"1")
    (tmp_path / "sub" / "large").write_bytes(b"1" * 100_000)
    assert downloads._largest(tmp_path) == 100_000
