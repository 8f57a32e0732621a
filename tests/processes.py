"""Programs in a process of their own, for what one process cannot try twice."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import numbabn


def environment_of(**changes):
    """This process's environment, in which a program finds the numbabn that is tested.

    It may be that of a checkout, found by a relative path, or by the folder that tests began in.
    """
    here = str(Path(numbabn.__file__).parents[1])
    others = [os.path.abspath(each) for each in os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    path = [here, *others] if os.environ.get("PYTHONPATH") else [here]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), **changes}


def run_python(program, *arguments, timeout=240, **environment):
    """The standard output of a Python program; the test fails if it fails."""
    # Python looks for modules in the folder that it starts in; nothing is to be found in this.
    with tempfile.TemporaryDirectory() as folder:
        finished = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            cwd=folder,
            env=environment_of(**environment),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    if finished.returncode != 0:
        pytest.fail(f"exit status {finished.returncode}\n{finished.stdout}\n{finished.stderr}")
    return finished.stdout
