"""One folder, one job: who may use a folder, and when."""

import json
import os
import socket
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from icljax.errors import UserError
from icljax.runtime import workdir

CONFIG = ConfigDict({"a": 1, "b": {"c": (1, 2)}})


def test_a_folder_in_use_is_refused_and_then_free(tmp_path):
    with workdir.claimed(tmp_path / "job", CONFIG) as done:
        assert done is None
        message = rf"in use by process {os.getpid()} on host \S+ since \d.*remove .*running.lock"
        with (
            pytest.raises(UserError, match=message),
            workdir.claimed(tmp_path / "job", CONFIG),
        ):
            pass
    assert [p.name for p in (tmp_path / "job").iterdir()] == ["config.json"]
    with workdir.claimed(tmp_path / "job", CONFIG) as done:
        assert done is None


def test_another_process_names_the_one_that_runs(tmp_path):
    code = (
        "import sys; from pathlib import Path; from icljax.runtime import workdir\n"
        "with workdir.locked(Path(sys.argv[1])): print('holds', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"holds\n"
        with pytest.raises(UserError, match=f"process {other.pid} on"), workdir.locked(tmp_path):
            pass
        other.kill()  # it leaves its lock behind
    assert (tmp_path / workdir.LOCK).exists()
    with workdir.locked(tmp_path):
        assert str(os.getpid()) in (tmp_path / workdir.LOCK).read_text()
    assert not (tmp_path / workdir.LOCK).exists()


def test_a_lock_of_another_host_is_named_not_taken(tmp_path):
    (tmp_path / workdir.LOCK).write_text("4711\nworker-7\n1\n")
    with pytest.raises(UserError, match="process 4711 on host worker-7"), workdir.locked(tmp_path):
        pass


def test_a_process_number_that_is_used_again_does_not_hold_it(tmp_path):
    """The lock of a process of this host with another start, as after a reboot."""
    with workdir.locked(tmp_path):
        process, host, start = (tmp_path / workdir.LOCK).read_text().split()
    assert (process, host.startswith(socket.gethostname())) == (str(os.getpid()), True)
    (tmp_path / workdir.LOCK).write_text(f"{process}\n{host}\n{int(start) + 1}\n")
    with workdir.locked(tmp_path):
        pass


def finished(path, results='{"x": 1}'):
    with workdir.claimed(path, CONFIG):
        (path / workdir.RESULTS).write_text(results)


def test_a_finished_folder_is_read_without_a_lock(tmp_path, monkeypatch):
    """It may be on a disk that cannot be written."""
    finished(tmp_path / "job")
    monkeypatch.setattr(workdir, "locked", None)
    with workdir.claimed(tmp_path / "job", CONFIG) as done:
        assert done == {"x": 1}


@pytest.mark.parametrize("results", ["", "{", "[1]", '{"x": 1', "\ufffe"])
def test_a_damaged_result_is_told(tmp_path, results):
    finished(tmp_path / "job", results)
    message = "holds a damaged file"
    with pytest.raises(UserError, match=message), workdir.claimed(tmp_path / "job", CONFIG):
        pass


@pytest.mark.parametrize("config", ["", "[]", "3", '"a"'])
def test_a_damaged_config_is_told(tmp_path, config):
    finished(tmp_path / "job")
    (tmp_path / "job" / workdir.CONFIG).write_text(config)
    message = "holds a damaged file"
    with pytest.raises(UserError, match=message), workdir.claimed(tmp_path / "job", CONFIG):
        pass


def test_results_without_a_config_are_not_ours(tmp_path):
    (tmp_path / workdir.RESULTS).write_text(json.dumps({}))
    with pytest.raises(UserError, match=r"holds no config.json"), workdir.claimed(tmp_path, CONFIG):
        pass


def test_a_file_or_a_dangling_link_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for name, what in (("file", "is a file"), ("link", "is a link to nothing")):
        with (
            pytest.raises(UserError, match=f"{name} {what}; give a"),
            workdir.claimed(tmp_path / name, CONFIG),
        ):
            pass


def test_a_config_of_ten_thousand_brackets(tmp_path):
    finished(tmp_path / "job")
    (tmp_path / "job" / workdir.CONFIG).write_text("[" * 100_000)
    message = "holds a damaged file"
    with pytest.raises(UserError, match=message), workdir.claimed(tmp_path / "job", CONFIG):
        pass
