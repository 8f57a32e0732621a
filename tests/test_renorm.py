import dataclasses

import numpy as np
import pytest

import numbabn
import reference
from arrays import assert_close, make_case

INF = float("inf")
CLIPPINGS = [
    {},
    {"rmin": 0.9},
    {"rmax": 1.1},
    {"dmax": 0.2},
    {"rmin": 0.5, "rmax": 2.0, "dmax": 1.0},
    {"rmin": 1.0, "rmax": 1.0, "dmax": 0.0},  # the paper's start: plain batch normalization
]


@pytest.fixture
def values(rng):
    """mean, variance and reference of 200 channels: with these, every limit is met."""
    return (
        rng.normal(size=200),
        rng.uniform(0.0, 4.0, 200),
        rng.normal(size=200),
        rng.uniform(0.0, 2.0, 200),
    )


@pytest.mark.parametrize("clipping", CLIPPINGS, ids=str)
@pytest.mark.parametrize("epsilon", [1e-3, 0.1])
def test_correction_agrees_with_the_oracle(values, clipping, epsilon):
    r, d = numbabn.renorm_correction(*values, epsilon=epsilon, clipping=clipping)
    expected = reference.renorm_correction(*values, epsilon=epsilon, **clipping)
    assert r.dtype == d.dtype == np.float64
    np.testing.assert_allclose(r, expected[0], rtol=1e-14)
    np.testing.assert_allclose(d, expected[1], rtol=1e-14, atol=1e-15)
    as_object = numbabn.RenormClipping(**clipping)
    for given, wanted in zip(
        numbabn.renorm_correction(*values, epsilon=epsilon, clipping=as_object), (r, d), strict=True
    ):
        np.testing.assert_array_equal(given, wanted)


def test_no_clipping_is_no_limit(values):
    r, d = numbabn.renorm_correction(*values)
    expected = reference.renorm_correction(*values)
    np.testing.assert_allclose(r, expected[0], rtol=1e-14)
    np.testing.assert_allclose(d, expected[1], rtol=1e-14)


def test_the_reference_is_floored_at_the_root_of_epsilon():
    r, d = numbabn.renorm_correction([0.5], [0.0], [0.0], [0.0], epsilon=0.25)
    np.testing.assert_array_equal(r, [1.0])
    np.testing.assert_array_equal(d, [1.0])


def test_clipping_defaults_and_fields():
    clipping = numbabn.RenormClipping()
    assert (clipping.rmin, clipping.rmax, clipping.dmax) == (0.0, INF, INF)
    assert numbabn.RenormClipping(0.5, 2.0, 1.0) == numbabn.RenormClipping(
        rmin=0.5, rmax=2.0, dmax=1.0
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        clipping.rmin = 0.5


@pytest.mark.parametrize("axis", [0, -1, [0, 2]], ids=str)
def test_correction_keeps_the_shape_of_its_arguments(axis):
    shape = reference.parameter_shape((3, 4, 5), axis)
    r, d = numbabn.renorm_correction(*(np.ones(shape) for _ in range(4)))
    assert r.shape == d.shape == shape


def test_a_reference_equal_to_the_batch_is_plain_batch_normalization():
    case = make_case((8, 3, 5), 1, np.float32)
    plain, saved = numbabn.batch_norm_forward(case.x, case.gamma, case.beta, axis=1)
    mean, variance = saved.statistics.mean, saved.statistics.variance
    renorm = numbabn.Renorm(mean, np.sqrt(variance + 1e-3))
    y, saved = numbabn.batch_norm_forward(case.x, case.gamma, case.beta, axis=1, renorm=renorm)
    np.testing.assert_allclose(saved.r, np.ones(3), rtol=1e-7)
    np.testing.assert_allclose(saved.d, np.zeros(3), atol=1e-7)
    assert_close(y, plain.astype(np.float64), scale=4)


def test_unclipped_renorm_normalizes_with_the_reference():
    """With no limit, xhat * r + d = (x - m_ref) / s_ref: training equals inference."""
    case = make_case((8, 3, 5), 1, np.float64, renorm=True)
    mean, stddev, _ = case.renorm
    y, _ = numbabn.batch_norm_forward(case.x, axis=1, renorm=numbabn.Renorm(mean, stddev))
    expected = reference.normalize(case.x, mean, stddev**2 - 1e-3, axis=1)
    assert_close(y, expected, scale=np.max(np.abs(expected)))


def test_renorm_takes_a_dict_of_limits():
    case = make_case((8, 3, 5), 1, np.float32, renorm=True)
    mean, stddev, limits = case.renorm
    by_dict, by_object = (
        numbabn.batch_norm_forward(case.x, axis=1, renorm=numbabn.Renorm(mean, stddev, clipping))[0]
        for clipping in (limits, numbabn.RenormClipping(**limits))
    )
    np.testing.assert_array_equal(by_dict, by_object)
