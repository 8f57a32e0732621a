"""The oracle itself: against finite differences, and against NumPy on the selected values."""

import numpy as np
import pytest

import reference

# shape, axis, shape of the mask (None: no mask), with the reason for each
CASES = [
    pytest.param((7, 3), -1, None, id="dense layer"),
    pytest.param((4, 3, 5), 1, None, id="channels-first"),
    pytest.param((4, 5, 3), -1, (4, 5), id="sequence with padding"),
    pytest.param((4, 3, 5), 1, (4, 1, 5), id="channels-first, mask of full rank"),
    pytest.param((3, 2, 4, 2), -1, (1, 2, 4, 1), id="mask broadcast over the batch"),
    pytest.param((5, 2, 2, 3), -1, (5, 1, 1, 3), id="mask a channel"),
    pytest.param((5, 4), -1, (5, 4), id="mask of every element"),
    pytest.param((3, 2, 4, 2), [1, 3], None, id="two axes apart"),
    pytest.param((3, 2, 4, 2), [-1, -2], (3, 2), id="two axes together; mask broadcast below"),
]


def case(shape, axis, mask_shape):
    rng = np.random.default_rng(20)
    channels = reference.parameter_shape(shape, axis)
    if mask_shape == (3, 2):
        mask_shape = (3, 2, 1)
    return {
        "x": rng.normal(3.0, 2.0, shape),
        "dy": rng.normal(size=shape),
        "gamma": rng.normal(size=channels),
        "beta": rng.normal(size=channels),
        "mask": None if mask_shape is None else rng.random(mask_shape) < 0.6,
        "renorm": (
            rng.normal(3.0, 1.0, channels),
            rng.uniform(1.0, 3.0, channels),
            {"rmin": 0.5, "rmax": 1.5, "dmax": 0.5},
        ),
    }


def numerical_gradient(loss, at):
    """Central differences; the step balances their error (h²) against rounding (1e-16 / h)."""
    step = 1e-5
    gradient = np.empty_like(at)
    for index in np.ndindex(at.shape):
        ahead, behind = at.copy(), at.copy()
        ahead[index] += step
        behind[index] -= step
        gradient[index] = (loss(ahead) - loss(behind)) / (2 * step)
    return gradient


@pytest.mark.parametrize("renorm", [False, True], ids=["plain", "renorm"])
@pytest.mark.parametrize(("shape", "axis", "mask_shape"), CASES)
def test_training_gradient_is_the_finite_difference(shape, axis, mask_shape, renorm):
    arrays = case(shape, axis, mask_shape)
    x, dy, gamma, beta, mask = (arrays[name] for name in ("x", "dy", "gamma", "beta", "mask"))
    reference_values = arrays["renorm"] if renorm else None
    result = reference.forward(x, gamma, beta, axis=axis, mask=mask, renorm=reference_values)
    # r and d are constants of the gradient: the loss takes them from the unchanged input.
    r, d = result.r, result.d

    def loss(x, gamma, beta):
        batch = reference.statistics(x, axis=axis, mask=mask)
        y = reference.normalize(x, batch.mean, batch.variance, gamma, beta, axis=axis, r=r, d=d)
        return np.sum(dy * y)

    dx, dgamma, dbeta = reference.backward(dy, x, gamma, axis=axis, mask=mask, r=r, d=d)
    close = {"rtol": 1e-6, "atol": 1e-8}  # what central differences give in float64
    np.testing.assert_allclose(
        dx, numerical_gradient(lambda value: loss(value, gamma, beta), x), **close
    )
    np.testing.assert_allclose(
        dgamma, numerical_gradient(lambda value: loss(x, value, beta), gamma), **close
    )
    np.testing.assert_allclose(
        dbeta, numerical_gradient(lambda value: loss(x, gamma, value), beta), **close
    )


@pytest.mark.parametrize(("shape", "axis", "mask_shape"), CASES)
def test_inference_gradient_is_the_finite_difference(shape, axis, mask_shape):
    arrays = case(shape, axis, mask_shape)
    x, dy, gamma, beta = (arrays[name] for name in ("x", "dy", "gamma", "beta"))
    mean, stddev, _ = arrays["renorm"]

    def loss(x, gamma, beta):
        return np.sum(dy * reference.normalize(x, mean, stddev**2, gamma, beta, axis=axis))

    dx, dgamma, dbeta = reference.normalize_backward(dy, x, mean, stddev**2, gamma, axis=axis)
    close = {"rtol": 1e-6, "atol": 1e-8}
    np.testing.assert_allclose(
        dx, numerical_gradient(lambda value: loss(value, gamma, beta), x), **close
    )
    np.testing.assert_allclose(
        dgamma, numerical_gradient(lambda value: loss(x, value, beta), gamma), **close
    )
    np.testing.assert_allclose(
        dbeta, numerical_gradient(lambda value: loss(x, gamma, value), beta), **close
    )


@pytest.mark.parametrize(("shape", "axis", "mask_shape"), CASES)
def test_statistics_are_those_of_the_selected_values(shape, axis, mask_shape):
    arrays = case(shape, axis, mask_shape)
    x, mask = arrays["x"], arrays["mask"]
    on = reference.mask_on(mask, shape)
    batch = reference.statistics(x, axis=axis, mask=mask)
    axes = reference.channel_axes(len(shape), axis)
    by_channel = zip(
        np.moveaxis(x, axes, range(len(axes))).reshape(batch.mean.size, -1),
        np.moveaxis(on, axes, range(len(axes))).reshape(batch.mean.size, -1),
        batch.count.ravel(),
        batch.mean.ravel(),
        batch.variance.ravel(),
        strict=True,
    )
    for values, selected, count, mean, variance in by_channel:
        assert count == selected.sum() > 0
        np.testing.assert_allclose(mean, values[selected].mean(), rtol=1e-14)
        np.testing.assert_allclose(variance, values[selected].var(), rtol=1e-13)


def test_nan_padding_reaches_nothing():
    x = np.array([[1.0, 2.0], [3.0, 5.0], [np.nan, np.inf]])
    mask = np.array([1, 1, 0])
    dy = np.array([[1.0, -1.0], [2.0, 1.0], [0.0, 0.0]])
    batch = reference.statistics(x, mask=mask)
    np.testing.assert_array_equal(batch.count, [2, 2])
    np.testing.assert_array_equal(batch.mean, [2.0, 3.5])
    np.testing.assert_array_equal(batch.variance, [1.0, 2.25])
    for padded, unpadded in zip(
        reference.backward(dy, x, mask=mask), reference.backward(dy[:2], x[:2]), strict=True
    ):
        np.testing.assert_allclose(padded[:2], unpadded, rtol=1e-15)
        assert np.all(np.isfinite(padded))


def test_moving_statistics_of_both_references_by_hand():
    x = np.array([[1.0], [3.0]])  # mean 2, variance 1
    weights = {"moving_mean": [1.0], "moving_variance": [3.0]}
    options = {"momentum": 0.75, "epsilon": 1.0}
    _, plain = reference.training_step(weights, x, **options)
    assert plain == {"moving_mean": 1.25, "moving_variance": 2.5}

    shared, after = reference.training_step(
        weights, x, renorm=True, renorm_momentum=None, **options
    )
    assert (shared.r, shared.d) == (np.sqrt(2.0) / 2.0, 0.5)
    assert after == plain

    weights |= {"moving_stddev": [2.0], "renorm_mean": [0.0], "renorm_stddev": [0.5]}
    separate, after = reference.training_step(
        weights, x, renorm=True, renorm_momentum=0.5, **options
    )
    assert (separate.r, separate.d) == (np.sqrt(2.0), 2.0)  # 0.5 is below sqrt(epsilon)
    stddev = 0.75 * 2.0 + 0.25 * np.sqrt(2.0)
    np.testing.assert_allclose(after.pop("moving_variance"), [stddev**2 - 1.0])
    assert after == {
        "moving_mean": 1.25,
        "moving_stddev": stddev,
        "renorm_mean": 1.0,
        "renorm_stddev": 0.25 + 0.5 * np.sqrt(2.0),
    }


def test_a_channel_without_positions_moves_nothing():
    weights = {
        "moving_mean": [1.0, 1.0],
        "moving_variance": [2.0, 2.0],
        "moving_stddev": [1.5, 1.5],
        "renorm_mean": [0.5, 0.5],
        "renorm_stddev": [2.5, 2.5],
    }
    x = np.array([[1.0, 7.0], [3.0, 8.0]])
    result, after = reference.training_step(
        weights, x, mask=[[1, 0], [1, 0]], renorm=True, renorm_momentum=0.9
    )
    assert np.all(np.isfinite(result.y))
    for name, before in weights.items():
        assert after[name][0] != before[0]
        assert after[name][1] == before[1]
