"""Programs in a process of their own, for what one process cannot try twice."""

import os
import subprocess
import sys
import tempfile

import pytest


def run_python(program, *arguments, timeout=240, **environment):
    """The standard output of a Python program; the test fails if it fails."""
    # Python looks for modules in the folder that it starts in; nothing is to be found in this.
    with tempfile.TemporaryDirectory() as folder:
        finished = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            cwd=folder,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    if finished.returncode != 0:
        pytest.fail(f"exit status {finished.returncode}\n{finished.stdout}\n{finished.stderr}")
    return finished.stdout
