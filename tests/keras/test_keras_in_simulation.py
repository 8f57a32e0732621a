"""The layer by the kernels for CUDA devices, which Numba's simulator runs on the host.

The bridges take tensors of the host for tensors of a device here. What they hand to the kernels,
and where results go, is so tested; streams, and memory that is on a device, are not.
"""

from types import SimpleNamespace

import keras
import ml_dtypes
import numpy as np
import pytest
from backends import BACKEND, step, weights_of

from numbabn.arrays.torch import Torch
from numbabn.cpu import launch
from numbabn.cuda.runtime import SIMULATED
from numbabn.keras import BatchNormalization
from numbabn.keras.bridges import bridge_of

bridge = bridge_of(BACKEND)


@pytest.fixture
def on_device(monkeypatch):
    {"torch": torch_on_device, "jax": jax_on_device}[BACKEND](monkeypatch)


def torch_on_device(monkeypatch):
    import torch

    stream = SimpleNamespace(cuda_stream=0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    monkeypatch.setattr(
        Torch, "from_host", lambda library, array, device: torch.from_numpy(array.copy())
    )


def jax_on_device(monkeypatch):
    buffer_of = bridge._Buffer

    class Host:
        """A buffer on the host, with the interface of one on a device."""

        def __init__(self, buffer):
            self.__cuda_array_interface__ = np.asarray(buffer).__array_interface__

    def on_host(buffer, kind, packed, context):
        array = buffer_of(Host(buffer), kind, packed, SimpleNamespace(stream=0))
        array.__cuda_array_interface__["stream"] = None  # the simulator has none
        return array

    monkeypatch.setattr(bridge, "_Buffer", on_host)
    monkeypatch.setattr(bridge, "_on_platform", lambda cpu, cuda, other, tensors: cuda(tensors))


def built(shape, **arguments):
    """A layer whose weights are not what a new one's are."""
    layer = BatchNormalization(**arguments)
    layer.build(shape)
    generator = np.random.default_rng(1)
    for weight in layer.weights:
        weight.assign(generator.uniform(0.5, 1.5, weight.shape))
    return layer


def outcomes(mask=None, training=True, kind=np.float32, **arguments):
    """Everything that a step gives, by name."""
    generator = np.random.default_rng(2)
    x, dy = (generator.normal(2, 3, SHAPE).astype(kind) for _ in range(2))
    layer = built(SHAPE, **arguments)
    found = step(layer, x, dy, mask=mask, training=training)
    gradients = {f"gradient of {name}": value for name, value in found.gradients.items()}
    return {"y": found.y, "dx": found.dx, **gradients, **weights_of(layer)}


def agree(actual, expected, dtype):
    """Equal within a rounding of the dtype: the same formulas in another order."""
    tolerance = {"bfloat16": 2.0**-7, "float16": 2.0**-10}.get(dtype, 1e-5)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, tolerance, tolerance, err_msg=name)


SHAPE = (4, 3, 5)
MASK = np.array([[True, True, False], [True] * 3, [False] * 3, [True, False, False]])
RENORM = {"renorm": True, "renorm_clipping": {"rmax": 1.2, "dmax": 0.3}}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("axis", "mask", "renorm"),
    [
        (-1, None, {}),
        (1, MASK, {}),
        (-1, MASK, RENORM),
        ([0, 2], None, RENORM),
        (-1, None, {**RENORM, "renorm_momentum": None}),
    ],
)
def test_agrees_with_the_host(axis, mask, renorm, training, request):
    expected = outcomes(mask, training, axis=axis, **renorm)
    request.getfixturevalue("on_device")
    agree(outcomes(mask, training, axis=axis, **renorm), expected, "float32")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "bfloat16", "float16"])
def test_16_bit_floats(policy, training, request):
    """Of the inputs, and, where a policy says so, of the weights and moving statistics."""
    name = policy.removeprefix("mixed_")
    kind = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}[name]
    expected = outcomes(training=training, kind=kind, dtype=policy)
    request.getfixturevalue("on_device")
    agree(outcomes(training=training, kind=kind, dtype=policy), expected, name)


def test_the_kernels_of_devices_run(on_device, monkeypatch):
    """And not those of the host, from which the others could hardly be told."""
    for name in ("forward", "backward", "normalize"):
        monkeypatch.delattr(launch, name)
    for training in (True, False):
        outcomes(MASK, training)


@pytest.mark.skipif(BACKEND != "torch", reason="JAX compiles every step")
@pytest.mark.parametrize("training", [True, False])
def test_in_programs(training, request, monkeypatch):
    """As torch's compiler calls them."""
    expected = outcomes(MASK, training, **RENORM)
    request.getfixturevalue("on_device")
    monkeypatch.setattr(bridge, "in_program", lambda: True)
    agree(outcomes(MASK, training, **RENORM), expected, "float32")


@pytest.mark.skipif(BACKEND != "torch", reason="torch's own modules")
@pytest.mark.parametrize("renorm", [False, True])
def test_modules_without_keras(renorm, request):
    import torch

    from numbabn.torch import BatchNorm

    x, dy = (torch.from_numpy(np.random.default_rng(4).normal(2, 3, SHAPE)) for _ in range(2))

    def outcome():
        module = BatchNorm(3, renorm=renorm, momentum=0.3)
        given = x.float().requires_grad_()
        y = module(given, torch.from_numpy(MASK[:, [0, 1, 2, 0, 1]]))
        gradients = torch.autograd.grad(y, [given, *module.parameters()], dy.float())
        results = [y.detach(), *gradients, module.running_mean, module.running_var]
        return {str(i): each.double().numpy() for i, each in enumerate(results)}

    expected = outcome()
    request.getfixturevalue("on_device")
    agree(outcome(), expected, "float32")


def test_a_frozen_layer_passes_the_gradient_on(request):
    """dx alone is asked for: no sums are taken, and x is not read."""
    x = np.full(SHAPE, np.nan, np.float32)
    dy = np.random.default_rng(3).normal(size=SHAPE).astype(np.float32)

    def dx():
        return step(built(SHAPE, trainable=False), x, dy).dx

    expected = dx()
    assert np.isfinite(expected).all()
    request.getfixturevalue("on_device")
    np.testing.assert_allclose(dx(), expected, 1e-6)


def test_keras_runs_in_simulation():
    assert SIMULATED
    assert keras.backend.backend() == BACKEND
