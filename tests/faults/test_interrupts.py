"""SIGINT at random moments; `soak.py` says what is held."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.jit,
    pytest.mark.timeout(40000),
    pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals"),
]


def test_interrupts_at_random_moments(framework, soak, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", framework)
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("soak.py")), str(soak)],
        capture_output=True,
        text=True,
        timeout=soak + 300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    last = done.stdout.splitlines()[-1]
    assert last.startswith("held for "), done.stdout
    print(framework, last)
