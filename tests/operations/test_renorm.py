import dataclasses

import numpy as np
import pytest

import numbabn
import reference
from arrays import assert_close, make_case
from devices import assert_same, forward, get, put

INF = float("inf")
CLIPPINGS = [
    None,
    {},
    {"rmin": 0.9},
    {"rmax": 1.1},
    {"dmax": 0.2},
    {"rmin": 0.5, "rmax": 2.0, "dmax": 1.0},
    {"rmin": 1.0, "rmax": 1.0, "dmax": 0.0},  # the paper's start: plain batch normalization
]


def values(rng, shape):
    """mean, variance and reference: of 200 channels, with these, every limit is met."""
    stddev = rng.uniform(0.0, 2.0, shape)
    stddev.reshape(-1)[:1] = 0.0
    return rng.normal(size=shape), rng.uniform(0.0, 4.0, shape), rng.normal(size=shape), stddev


@pytest.mark.parametrize("clipping", CLIPPINGS, ids=str)
@pytest.mark.parametrize("epsilon", [1e-3, 0.1])
@pytest.mark.parametrize("shape", [(200,), (1, 4, 3), (3, 1, 5), (0, 2, 1)], ids=str)
def test_correction_agrees_with_the_oracle(rng, shape, epsilon, clipping):
    given = values(rng, shape)
    expected = reference.renorm_correction(*given, epsilon=epsilon, **(clipping or {}))
    as_object = numbabn.RenormClipping(**(clipping or {}))
    for limits in (clipping, as_object):
        results = numbabn.renorm_correction(
            *(put(each) for each in given), epsilon=epsilon, clipping=limits
        )
        for actual, wanted in zip(map(get, results), expected, strict=True):
            assert actual.dtype == np.float64
            assert actual.shape == shape
            np.testing.assert_allclose(actual, wanted, rtol=1e-14, atol=1e-15)


def test_the_reference_is_floored_at_the_root_of_epsilon():
    given = (put(np.array([each])) for each in (0.5, 0.0, 0.0, 0.0))
    assert_same(numbabn.renorm_correction(*given, epsilon=0.25), ([1.0], [1.0]))


def test_clipping_defaults_and_fields():
    clipping = numbabn.RenormClipping()
    assert (clipping.rmin, clipping.rmax, clipping.dmax) == (0.0, INF, INF)
    assert numbabn.RenormClipping(0.5, 2.0, 1.0) == numbabn.RenormClipping(
        rmin=0.5, rmax=2.0, dmax=1.0
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        clipping.rmin = 0.5


def test_a_ramp_starts_as_plain_batch_normalization(rng):
    # A batch that is ten times narrower than the reference: where r may be below 1, y shrinks.
    x = put(rng.normal(1.0, 0.1, (64, 4)).astype(np.float32))
    layers = [
        numbabn.BatchNormalization(renorm=True, renorm_clipping=numbabn.RenormClipping.ramp(0)),
        numbabn.BatchNormalization(),
    ]
    y, plain = (get(layer(x, training=True)) for layer in layers)
    np.testing.assert_array_equal(y, plain)
    assert y.std() > 0.9


@pytest.mark.parametrize(
    ("progress", "limits"),
    [
        (-1, (1, 1, 0)),
        (0, (1, 1, 0)),
        (0.25, (0.625, 1.6, 2.0)),
        (1, (1 / 3.4, 3.4, 8.0)),
        (1e9, (1 / 3.4, 3.4, 8.0)),
        (float("inf"), (1 / 3.4, 3.4, 8.0)),
    ],
)
def test_a_ramp(progress, limits):
    ramp = numbabn.RenormClipping.ramp(progress, rmax=3.4, dmax=8)
    assert ramp.limits == pytest.approx(limits, rel=1e-15)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"progress": float("nan")}, ValueError, "progress must be a number, got nan"),
        ({"progress": "0.5"}, TypeError, "progress must be a number, got str"),
        ({"rmax": 0.5}, ValueError, "rmax must be a finite number of at least 1.0, got 0.5"),
        ({"dmax": -1}, ValueError, "dmax must be a finite number of at least 0.0, got -1"),
        (
            {"rmax": float("inf")},
            ValueError,
            "rmax must be a finite number of at least 1.0, got inf",
        ),
    ],
)
def test_errors_of_a_ramp(arguments, error, message):
    with pytest.raises(error) as caught:
        numbabn.RenormClipping.ramp(**{"progress": 0.5, **arguments})
    assert str(caught.value) == f"renorm clipping: {message}"


def test_a_reference_equal_to_the_batch_is_plain_batch_normalization():
    case = make_case((8, 3, 5), 1, np.float32)
    plain, saved = forward(case)
    batch = saved.statistics.to_host()
    case.renorm = (batch.mean, np.sqrt(batch.variance + 1e-3), None)
    y, saved = forward(case)
    np.testing.assert_allclose(get(saved.r), np.ones(3), rtol=1e-7)
    np.testing.assert_allclose(get(saved.d), np.zeros(3), atol=1e-7)
    assert_close(get(y), get(plain).astype(np.float64), scale=4)


def test_unclipped_renorm_normalizes_with_the_reference():
    """With no limit, xhat * r + d = (x - m_ref) / s_ref: training equals inference."""
    case = make_case((8, 3, 5), 1, np.float64, affine=False, renorm=True)
    mean, stddev, _ = case.renorm
    case.renorm = (mean, stddev, None)
    y, _ = forward(case)
    expected = reference.normalize(case.x, mean, stddev**2 - 1e-3, axis=1)
    assert_close(get(y), expected, scale=np.max(np.abs(expected)))


def test_renorm_takes_a_dict_of_limits():
    case = make_case((8, 3, 5), 1, np.float32, renorm=True)
    mean, stddev, limits = case.renorm
    by_dict, _ = forward(case)
    case.renorm = (mean, stddev, numbabn.RenormClipping(**limits))
    by_object, _ = forward(case)
    assert_same([by_dict], [by_object])
