"""All fuzz tests with new inputs, round after round.

pytest -n 0 -rP -m slow tests/test_fuzz_hour.py        # FUZZ_SECONDS=60: a minute
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest


@pytest.mark.slow
def test_an_hour_of_fuzzing_finds_nothing():
    end, rounds = time.monotonic() + float(os.environ.get("FUZZ_SECONDS", "3600")), 0
    while time.monotonic() < end:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-m", "fuzz", str(Path(__file__).parent)],
            cwd=Path(__file__).parents[1],
            env=os.environ | {"FUZZ": "4"},
            capture_output=True,
            text=True,
            check=False,
        )
        rounds += 1
        assert done.returncode == 0, done.stdout[-5000:]
        print(f"round {rounds}: {done.stdout.strip().splitlines()[-1]}")
