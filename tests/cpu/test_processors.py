"""Processors of other kinds than this one, each in a process that takes this one for such."""

from pathlib import Path

import pytest

from processes import run_python

pytestmark = [pytest.mark.jit, pytest.mark.heavy]

OLD_PROCESSOR = """
import sys
sys.path.insert(0, sys.argv[1])
import ml_dtypes, numpy as np
import numbabn, reference

rng = np.random.default_rng(18)
for shape, axis in [((32, 3, 64, 64), 1), ((32, 64, 64, 3), -1)]:
    for dtype, offset, rounding in [
        (np.float32, 1e6, 0.0), (np.float16, 4.0, 2.0**-11), (ml_dtypes.bfloat16, 4.0, 2.0**-8)
    ]:
        x = rng.normal(offset, 1.0, shape).astype(dtype)
        x[0, :1, :1, :1] = 0
        y, _ = numbabn.batch_norm_forward(x, axis=axis)
        expected = reference.forward(x, axis=axis).y
        error = np.abs(y.astype(np.float64) - expected) - rounding * np.abs(expected)
        worst = np.max(error / np.maximum(1, np.abs(expected)))
        assert worst <= 2e-6, (shape, dtype, worst)
"""


def test_a_processor_without_wide_vectors_or_float16():
    """Narrow vectors sum more terms a lane, and not every processor knows float16."""
    run_python(OLD_PROCESSOR, str(Path(__file__).parents[1]), NUMBA_CPU_NAME="generic")
