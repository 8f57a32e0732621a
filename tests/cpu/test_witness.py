"""An outside witness: torch's autograd, and its own batch normalization."""

import importlib.util

import numpy as np
import pytest

import numbabn
import reference
from arrays import make_case, raises
from devices import backward, forward

if importlib.util.find_spec("torch") is None:
    pytest.skip(
        "torch is not installed (the test environment for Python 3.11 has it)",
        allow_module_level=True,
    )

import torch


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("renorm", [False, True], ids=["plain", "renorm"])
def test_torch_autograd_gives_the_same_gradients(masked, renorm):
    """The forward formula in torch, differentiated by torch, with r and d detached."""
    mask = np.random.default_rng(2).random((8, 1, 5)) < 0.6 if masked else None
    case = make_case((8, 3, 5), 1, np.float64, renorm=renorm, mask=mask)
    y, saved = forward(case)
    results = (y, *backward(case, saved))

    x, gamma, beta = (
        torch.tensor(each, requires_grad=True)
        for each in (case.x, case.gamma[:, None], case.beta[:, None])
    )
    on = torch.tensor(reference.mask_on(mask, case.x.shape).copy())
    n = on.sum((0, 2), keepdim=True)
    mean = torch.where(on, x, 0.0).sum((0, 2), keepdim=True) / n
    variance = torch.where(on, (x - mean) ** 2, 0.0).sum((0, 2), keepdim=True) / n
    stddev = torch.sqrt(variance + 1e-3)
    r, d = 1.0, 0.0
    if renorm:
        m_ref, s_ref = (torch.tensor(each[:, None]) for each in case.renorm[:2])
        limits = case.renorm[2]
        r = (stddev / s_ref).clip(limits["rmin"], limits["rmax"]).detach()
        d = ((mean - m_ref) / s_ref).clip(-limits["dmax"], limits["dmax"]).detach()
    witness = gamma * ((x - mean) / stddev * r + d) + beta
    witness.backward(torch.tensor(case.dy))
    expected = (witness, x.grad, gamma.grad[:, 0], beta.grad[:, 0])
    for actual, wanted in zip(results, expected, strict=True):
        np.testing.assert_allclose(actual, wanted.detach().numpy(), rtol=1e-11, atol=1e-12)


def test_torch_batch_norm_gives_the_same():
    case = make_case((8, 3, 5), 1, np.float32)
    y, saved = forward(case)
    results = (y, *backward(case, saved))
    x, gamma, beta = (
        torch.tensor(each, requires_grad=True) for each in (case.x, case.gamma, case.beta)
    )
    witness = torch.nn.functional.batch_norm(x, None, None, gamma, beta, training=True, eps=1e-3)
    witness.backward(torch.tensor(case.dy))
    for actual, wanted in zip(results, (witness, x.grad, gamma.grad, beta.grad), strict=True):
        # Both sides are rounded to float32, of terms up to 10.
        np.testing.assert_allclose(actual, wanted.detach().numpy(), rtol=1e-5, atol=1e-5)


def test_a_tensor_is_refused_with_the_call_that_makes_an_array():
    x, gamma = torch.ones(4, 3), torch.ones(3, requires_grad=True)
    refused = "x must be a NumPy array or an array on a CUDA device, got Tensor: pass x"
    with raises(TypeError, f"{refused}.numpy()"):
        numbabn.batch_statistics(x)
    with raises(TypeError, f"{refused}.float().numpy()"):
        numbabn.batch_statistics(x.bfloat16())
    with raises(TypeError, f"{refused}.detach().numpy()"):
        numbabn.batch_statistics(x.requires_grad_())
    with raises(
        TypeError,
        "gamma requires a gradient, which nothing here passes on to it: pass gamma.detach()",
    ):
        numbabn.batch_norm_forward(x.detach().numpy(), gamma)
    y, _ = numbabn.batch_norm_forward(x.detach().numpy(), gamma.detach())
    assert y.shape == (4, 3)
