"""Rows that a mask leaves, closed up by each thread, whatever lies between them."""

import numpy as np
import pytest

from arrays import DTYPES, make_case
from devices import assert_agrees

FLOAT16, BFLOAT16, FLOAT32, _ = DTYPES


def on(rows, rng):
    """Masks over rows by what they try."""
    alone = np.zeros(rows, bool)
    alone[:: rows // 8] = True
    return {
        "half of them": rng.random(rows) < 0.5,
        "few": rng.random(rows) < 0.03,
        "most": rng.random(rows) < 0.95,
        "one after the other far away": alone,
        "a padded end": np.arange(rows) < rows // 3,
        "a padded start": np.arange(rows) > rows // 3,
        "none": np.zeros(rows, bool),
    }


@pytest.mark.parametrize("which", on(8, np.random.default_rng()))
@pytest.mark.parametrize(
    ("dtype", "width"),
    # Vectors of 16 bytes, of 8 (rows of 20 elements), and single elements.
    [(FLOAT16, 8), (BFLOAT16, 20), (FLOAT32, 5)],
    ids=str,
)
def test_masked_rows(dtype, width, which, rng):
    rows = 260
    mask = on(rows, rng)[which].reshape(rows, 1)
    assert_agrees(make_case((rows, width), -1, dtype, mask=mask))


def test_rows_whose_mask_has_two_axes_of_three(rng):
    """The byte of a row is found by a division."""
    mask = rng.random((6, 1, 9)) < 0.5
    assert_agrees(make_case((6, 11, 9, 8), -1, FLOAT32, mask=mask))
