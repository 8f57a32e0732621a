"""What is JAX's own on CUDA devices, as far as it shows without one: the program that it makes."""

import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from numbabn.keras import BatchNormalization
from numbabn.keras.bridges import jax as bridge

CALL = "xla_buffer_python_gpu_callback"


@pytest.fixture
def beside_a_gpu(monkeypatch):
    """As where JAX has a GPU, and there are kernels for it."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(bridge, "device_is_available", lambda: True)


def loss_of(dtype, training=True, **arguments):
    """A function of a layer's input and weights, the input's shape, and the weights."""
    layer = BatchNormalization(dtype=dtype, **arguments)
    layer.build((4, 3))
    trainable = [each.value for each in layer.trainable_variables]
    others = [each.value for each in layer.non_trainable_variables]

    def loss(x, trainable):
        y, moved = layer.stateless_call(trainable, others, x, training=training)
        return y.sum(), moved

    x = jax.ShapeDtypeStruct((4, 3), keras.backend.standardize_dtype(layer.compute_dtype))
    return jax.value_and_grad(loss, (0, 1), has_aux=True), x, trainable


def lowered(function, *arguments, platform="cuda"):
    traced = jax.jit(function).trace(*arguments)
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("training", [True, False])
def test_programs_for_cuda_call_the_kernels_of_devices(training, beside_a_gpu):
    program = lowered(*loss_of("float32", training))
    # A forward and its backward; in inference the sums apart, for a frozen layer to leave out.
    assert program.count(f"custom_call @{CALL}") == (2 if training else 3)
    assert "numbabn_execute" not in program


def test_bfloat16_goes_as_its_bits(beside_a_gpu):
    program = lowered(*loss_of("bfloat16"))
    calls = re.findall(rf"custom_call @{CALL}.*", program)
    assert len(calls) == 2
    for call in calls:
        assert "xui16" in call
        assert "bf16" not in call
    assert re.search(r"bitcast_convert .*tensor<4x3xbf16>\) -> tensor<4x3xui16>", program)
    # Moving statistics of 16 bits are moved in float32.
    assert "tensor<3xf32>" in calls[0]


def test_limits_are_not_in_the_program(beside_a_gpu):
    limits = {"renorm": True, "renorm_clipping": {"rmax": lambda: 1.25}}
    assert "1.25" not in lowered(*loss_of("float32", **limits))


def test_programs_for_the_cpu_are_what_they_were(beside_a_gpu):
    program = lowered(*loss_of("float32"), platform="cpu")
    assert "buffer_python" not in program
    assert "numbabn_execute" in program


@pytest.mark.parametrize(
    ("available", "calls"),
    [(False, {"pure_callback"}), (True, {"buffer_callback", "pure_callback"})],
)
def test_without_the_kernels_the_host_computes(available, calls, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(bridge, "device_is_available", lambda: available)
    function, *arguments = loss_of("float32")
    # With the kernels the host still serves what is neither a CPU nor a CUDA device.
    traced = str(jax.jit(function).trace(*arguments).jaxpr)
    assert set(re.findall(r"\b(\w+_callback)\[", traced)) == calls


def test_kernels_are_available_where_numba_cuda_is(monkeypatch):
    for spec in (object(), None):
        monkeypatch.setattr(bridge, "find_spec", lambda name, spec=spec: spec)
        assert bridge.device_is_available() == (spec is not None)


def test_a_program_for_the_cpu_runs_beside_a_gpu(beside_a_gpu):
    function, x, trainable = loss_of("float32")
    values = jnp.asarray(np.random.default_rng(0).normal(size=x.shape), x.dtype)
    (_, moved), (dx, _) = jax.jit(function)(values, trainable)
    np.testing.assert_allclose(dx, 0, atol=1e-5)
    np.testing.assert_allclose(moved[0], 0.01 * values.mean(0), atol=1e-6)


@pytest.mark.parametrize(
    ("typestr", "shape", "kind", "packed", "seen"),
    [
        ("<f4", (4, 3), "float32", False, ("<f4", (4, 3))),
        ("<u2", (4, 3), "bfloat16", False, ("<V2", (4, 3))),
        ("<u4", (6, 3, 2), "uint32", True, ("<f8", (6, 3))),
    ],
)
def test_what_the_kernels_see_of_a_buffer(typestr, shape, kind, packed, seen):
    """Its dtype, whatever its bits went as, and the stream that XLA computes on."""
    interface = {"shape": shape, "typestr": typestr, "data": (4096, False), "version": 3}
    buffer = SimpleNamespace(__cuda_array_interface__=interface)
    # The default stream is number 1 in the interface, which forbids 0.
    for stream, named in ((7, 7), (0, 1)):
        array = bridge._Buffer(buffer, kind, packed, SimpleNamespace(stream=stream))
        found = array.__cuda_array_interface__
        assert (found["typestr"], found["shape"]) == seen
        assert (found["stream"], found["strides"], found["data"]) == (named, None, (4096, False))
