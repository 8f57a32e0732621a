"""Kernels that XLA calls: the same bits as on NumPy arrays, under every transformation of JAX."""

import os
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numba
import numpy as np
import pytest

from processes import run_python

if os.environ.get("KERAS_BACKEND") != "jax":
    pytest.skip("needs KERAS_BACKEND=jax", allow_module_level=True)

import jax
import jax.numpy as jnp
from jax import export
from operands import PLAIN, make_inputs, training_outputs

from numbabn import layout
from numbabn.embedded import table
from numbabn.embedded import xla as xla_ffi
from numbabn.embedded.xla import calls as operations
from numbabn.keras.bridges import Late
from numbabn.keras.bridges import jax as bridge
from numbabn.keras.operations import INFERENCE, TRAINING, Attributes

pytestmark = pytest.mark.jit

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
# jaxlib raises ValueError where the caller's own thread ran the program, else JaxRuntimeError.
XLA_ERRORS = (ValueError, jax.errors.JaxRuntimeError)


def on_host(operation, inputs, attributes, wanted):
    """An operation on NumPy arrays, `values` as bits there too."""
    inputs = {name: np.asarray(value) for name, value in inputs.items()}
    if "values" in inputs:
        inputs["values"] = inputs["values"].view(np.float64)[..., 0]
    results = operation.host(inputs, attributes, wanted, None)
    if "values" in results:
        values = np.ascontiguousarray(results["values"])
        results["values"] = values.view(np.uint32).reshape(*values.shape, 2)
    return results


def check_operation(operation, inputs, attributes, wanted):
    """Check that compiled and eager calls have the bits of the host's; returns JAX's outputs."""

    def run(inputs):
        return xla_ffi.OPERATIONS[operation.name](inputs, attributes, wanted)

    expected = on_host(operation, inputs, attributes, wanted)
    inputs = {name: jnp.asarray(value) for name, value in inputs.items()}
    for results in (jax.jit(run)(inputs), run(inputs)):
        assert set(results) == set(wanted)
        # `values` of several channel axes are in the order of each side's own.
        compared = [each for each in wanted if each != "values" or isinstance(attributes.axis, int)]
        for name in compared:
            actual = np.asarray(results[name])
            assert (actual.dtype, actual.shape) == (expected[name].dtype, expected[name].shape)
            assert actual.tobytes() == expected[name].tobytes(), name
    return results


def train(x, gamma, beta, mask=None, attributes=PLAIN, **limits):
    """The results of a training call through the bridge, from moving statistics of 0 and 1."""
    moving = {"moving_mean": jnp.zeros_like(gamma), "moving_variance": jnp.ones_like(gamma)}
    given = {"x": x, "gamma": gamma, "beta": beta, "mask": mask, **moving, **limits}
    return bridge.apply(TRAINING, given, attributes)


def loss(x, gamma, beta):
    return jnp.sum(train(x, gamma, beta)["y"] ** 3)


@pytest.fixture
def batch():
    """x, gamma and beta, of a size that goes to several threads."""
    inputs = make_inputs((16, 8, 16, 32), -1)
    return tuple(jnp.asarray(inputs[name]) for name in ("x", "gamma", "beta"))


def test_available():
    assert xla_ffi.is_available()


def test_not_available_without_the_jit(monkeypatch):
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    assert xla_ffi.is_available.__wrapped__() is False


def test_not_available_where_xla_refuses(monkeypatch):
    def refuse(*arguments, **options):
        raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: unsupported API version")

    monkeypatch.setattr(jax.ffi, "ffi_call", refuse)
    assert xla_ffi.is_available.__wrapped__() is False


def test_callback_where_it_is_not_available(monkeypatch, batch):
    expected = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*batch)
    monkeypatch.setattr(xla_ffi, "is_available", lambda: False)
    monkeypatch.setattr(xla_ffi, "OPERATIONS", {})
    actual = jax.jit(jax.value_and_grad(lambda *arguments: loss(*arguments), (0, 1, 2)))(*batch)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_beside_an_accelerator(monkeypatch, batch):
    # Where there is one, a program is lowered for the platform that it runs on: the CPU here.
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    run = jax.jit(jax.vmap(jax.value_and_grad(loss, (0, 1)), in_axes=(0, None, None)))
    arguments = (batch[0][None], *batch[1:])
    assert "callback" not in run.lower(*arguments).as_text()
    expected = jax.value_and_grad(loss, (0, 1))(*batch)
    jax.tree.map(
        lambda actual, wanted: np.testing.assert_array_equal(actual[0], wanted),
        run(*arguments),
        expected,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((64, 32), -1),
        ((4, 8, 9, 9), 1),  # rows: an inner run shorter than a vector's
        ((8, 16, 28, 28), 1),  # several threads
        ((32, 14, 14, 64), -1),
        ((4, 5, 6), (0, 1)),
        ((4, 5, 6), (0, 2)),  # permuted: an axis lies between
        ((5, 1, 7), -1),
        ((0, 3), -1),
    ],
)
def test_training(shape, axis, dtype):
    attributes = Attributes(axis, 1e-3, 0.9, renorm=False, renorm_momentum=None)
    inputs = make_inputs(shape, axis, dtype)
    outputs = check_operation(TRAINING.forward, inputs, attributes, training_outputs(inputs))
    gradient = {"x": inputs["x"], "dy": inputs["x"][::-1].copy(), "values": outputs["values"]}
    if isinstance(axis, int):
        for wanted in (("dx", "dgamma", "dbeta"), ("dgamma", "dbeta"), ("dx",)):
            check_operation(TRAINING.backward, gradient, attributes, wanted)


@pytest.mark.parametrize("renorm", [None, "separate", "shared"])
@pytest.mark.parametrize("mask", [None, (6, 1, 20, 1), (6, 4, 20), (6, 4, 20, 3), (1, 4, 1, 3)])
@pytest.mark.parametrize("axis", [-1, 1])
def test_masks_and_renorm(axis, mask, renorm):
    momentum = 0.8 if renorm == "separate" else None
    attributes = Attributes(axis, 1e-3, 0.9, renorm=bool(renorm), renorm_momentum=momentum)
    inputs = make_inputs((6, 4, 20, 3), axis, renorm=renorm, mask=mask)
    outputs = check_operation(TRAINING.forward, inputs, attributes, training_outputs(inputs))
    gradient = {name: inputs[name] for name in ("x", "mask") if name in inputs}
    gradient |= {"dy": inputs["x"][::-1].copy(), "values": outputs["values"]}
    check_operation(TRAINING.backward, gradient, attributes, ("dx", "dgamma", "dbeta"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "axis"), [((64, 32), -1), ((4, 8, 9, 9), 1), ((4, 5, 6), (0, 2))]
)
def test_inference(shape, axis, dtype):
    attributes = Attributes(axis, 1e-3, 0.9, renorm=False, renorm_momentum=None)
    inputs = make_inputs(shape, axis, dtype)
    check_operation(INFERENCE.forward, inputs, attributes, ("y",))
    gradient = {**inputs, "dy": inputs["x"][::-1].copy()}
    del gradient["beta"]
    for wanted in (("dx", "dgamma", "dbeta"), ("dgamma",), ("dx",)):
        check_operation(INFERENCE.backward, gradient, attributes, wanted)


def test_without_float64():
    inputs = make_inputs((64, 32), -1)
    wanted = training_outputs(inputs)
    expected = on_host(TRAINING.forward, inputs, PLAIN, wanted)
    with jax.enable_x64(False):
        results = jax.jit(lambda inputs: xla_ffi.forward(inputs, PLAIN, wanted))(inputs)
    for name in wanted:
        np.testing.assert_array_equal(np.asarray(results[name]), expected[name])


def test_in_place(monkeypatch):
    inputs = make_inputs((64, 32), -1)
    expected = on_host(INFERENCE.forward, inputs, PLAIN, ("y",))["y"]
    monkeypatch.setattr(operations, "LEAST_ALIASED", 0)
    x = jnp.asarray(inputs["x"])
    run = jax.jit(lambda x: xla_ffi.normalize({**inputs, "x": x}, PLAIN, ("y",))["y"])
    assert "output_operand_alias" in run.lower(x).as_text()
    np.testing.assert_array_equal(np.asarray(run(x)), expected)
    # XLA copies an input that the caller still has.
    np.testing.assert_array_equal(np.asarray(x), inputs["x"])
    gradient = {"x": inputs["x"], "dy": inputs["x"][::-1].copy()}
    gradient["values"] = on_host(TRAINING.forward, inputs, PLAIN, ("y", "values"))["values"]
    check_operation(TRAINING.backward, gradient, PLAIN, ("dx", "dgamma", "dbeta"))


def test_no_callback_in_the_program(batch):
    program = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*batch).as_text()
    assert "callback" not in program
    assert program.count("custom_call @numbabn_execute") == 2


def test_program_holds_no_address(batch):
    program = jax.jit(lambda *arguments: train(*arguments)["y"]).lower(*batch).as_text()
    addresses = {int(each) for each in table.entries if each > 1}
    assert addresses
    assert not any(str(address) in program for address in addresses)


# Transformations


def test_grad_of_a_composition(batch):
    def by_hand(x, gamma, beta):
        axes = (0, 1, 2)
        xhat = (x - x.mean(axes)) / jnp.sqrt(x.var(axes) + 1e-3)
        return jnp.sum((gamma * xhat + beta) ** 3)

    expected = jax.grad(by_hand, (0, 1, 2))(*(each.astype(jnp.float64) for each in batch))
    for actual, wanted in zip(jax.grad(loss, (0, 1, 2))(*batch), expected, strict=True):
        scale = float(jnp.abs(wanted).max())
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=5e-6 * scale)


def test_vmap(batch):
    x, gamma, beta = batch
    parts = x.reshape(4, 4, 8, 16, 32)
    run = jax.jit(jax.vmap(jax.value_and_grad(loss, (0, 1)), in_axes=(0, None, None)))
    expected = [jax.value_and_grad(loss, (0, 1))(part, gamma, beta) for part in parts]
    jax.tree.map(np.testing.assert_array_equal, run(parts, gamma, beta), _stacked(expected))


def test_vmap_over_a_middle_axis_and_a_mask(batch):
    x, gamma, beta = batch
    on = x[..., 0] > 3

    def run(x, on):
        return train(x, gamma, beta, on)["y"]

    actual = jax.vmap(run, in_axes=(1, 1), out_axes=1)(x, on)
    expected = jnp.stack([run(x[:, i], on[:, i]) for i in range(x.shape[1])], 1)
    np.testing.assert_array_equal(actual, expected)


def test_vmap_over_parameters(batch):
    x, gamma, beta = batch
    gammas = jnp.stack([gamma, 2 * gamma])
    actual = jax.vmap(lambda gamma: train(x, gamma, beta)["y"])(gammas)
    np.testing.assert_array_equal(actual, jnp.stack([train(x, g, beta)["y"] for g in gammas]))


def _stacked(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def test_scan_and_checkpoint(batch):
    x, gamma, beta = batch

    def chain(x):
        def layer(carry, _):
            return train(carry, gamma, beta)["y"], None

        return jnp.sum(jax.lax.scan(jax.checkpoint(layer), x, None, length=3)[0] ** 3)

    def unrolled(x):
        for _ in range(3):
            x = train(x, gamma, beta)["y"]
        return jnp.sum(x**3)

    np.testing.assert_allclose(
        jax.jit(jax.grad(chain))(x), jax.jit(jax.grad(unrolled))(x), rtol=1e-5, atol=1e-5
    )


def test_devices():
    # Devices are made when JAX starts.
    output = run_python(
        _DEVICES, XLA_FLAGS="--xla_force_host_platform_device_count=2", KERAS_BACKEND="jax"
    )
    assert output.split() == ["sharded", "shard_map", "shard_map-grad", "pmap"]


_DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from numbabn.keras.bridges import jax as bridge
from numbabn.keras.operations import TRAINING, Attributes

attributes = Attributes(-1, 1e-3, 0.9, renorm=False, renorm_momentum=None)
x = jnp.asarray(np.random.default_rng(0).normal(3, 1, (64, 32, 32)).astype(np.float32))
gamma = jnp.full(32, 1.5)

def layer(x, gamma):
    moving = {"moving_mean": jnp.zeros(32), "moving_variance": jnp.ones(32)}
    return bridge.apply(TRAINING, {"x": x, "gamma": gamma, **moving}, attributes)["y"]

def loss(x, gamma):
    return jnp.sum(layer(x, gamma) ** 3)

mesh = Mesh(np.array(jax.devices()), ("batch",))
sharded = jax.device_put(x, NamedSharding(mesh, P("batch")))

# Sharded by the compiler: the statistics are those of the whole batch.
actual = jax.jit(jax.value_and_grad(loss, (0, 1)))(sharded, gamma)
expected = jax.jit(jax.value_and_grad(loss, (0, 1)))(x, gamma)
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-3), actual, expected)
print("sharded")

# By hand: each device has its own statistics, as in Keras.
halves = [x[:32], x[32:]]
expected = jnp.concatenate([layer(half, gamma) for half in halves])
mapped = jax.shard_map(
    lambda x: layer(x, gamma), mesh=mesh, in_specs=P("batch"), out_specs=P("batch")
)
np.testing.assert_array_equal(jax.jit(mapped)(sharded), expected)
print("shard_map")

def summed(x, gamma):
    return jax.lax.psum(loss(x, gamma), "batch")

mapped = jax.shard_map(summed, mesh=mesh, in_specs=(P("batch"), P()), out_specs=P())
actual = jax.jit(jax.grad(mapped, (0, 1)))(sharded, gamma)
parts = [jax.grad(loss, (0, 1))(half, gamma) for half in halves]
np.testing.assert_allclose(actual[0], jnp.concatenate([dx for dx, _ in parts]), rtol=1e-6)
np.testing.assert_allclose(actual[1], sum(dgamma for _, dgamma in parts), rtol=1e-6)
print("shard_map-grad")

actual = jax.pmap(layer, in_axes=(0, None))(x.reshape(2, 32, 32, 32), gamma)
np.testing.assert_array_equal(actual.reshape(x.shape), expected)
print("pmap")
"""


# Errors


def test_second_derivative(batch):
    x, gamma, beta = batch
    with pytest.raises(NotImplementedError, match="second derivatives"):
        jax.grad(lambda x: jnp.sum(jax.grad(loss)(x, gamma, beta)))(x)


def test_limits_are_read_when_the_program_runs(batch):
    limits = {"rmin": 0.0, "rmax": 1.0, "dmax": 0.5}
    late = {name: Late(lambda name=name: limits[name]) for name in limits}
    attributes = Attributes(-1, 1e-3, 0.9, renorm=True, renorm_momentum=None)
    run = jax.jit(lambda *arguments: train(*arguments, attributes=attributes, **late)["y"])
    assert "callback" not in run.lower(*batch).as_text()

    def given(*arguments):
        constants = {name: np.float32(limit) for name, limit in limits.items()}
        return train(*arguments, attributes=attributes, **constants)["y"]

    first = run(*batch)
    np.testing.assert_array_equal(first, given(*batch))
    limits["dmax"] = 0.25
    np.testing.assert_array_equal(run(*batch), given(*batch))
    assert not np.array_equal(run(*batch), first)
    limits["dmax"] = -1.0
    with pytest.raises(
        XLA_ERRORS,
        match=r"^INVALID_ARGUMENT: renorm clipping: dmax must not be negative, got -1\.0$",
    ):
        run(*batch).block_until_ready()
    limits["dmax"] = float("nan")
    with pytest.raises(XLA_ERRORS, match="dmax must be a number, got nan"):
        run(*batch).block_until_ready()


def test_limit_that_cannot_be_read(batch, caplog):
    def read():
        raise KeyError("lost")

    attributes = Attributes(-1, 1e-3, 0.9, renorm=True, renorm_momentum=None)
    limits = {"rmin": np.float32(0), "rmax": Late(read), "dmax": np.float32(1)}
    run = jax.jit(lambda *arguments: train(*arguments, attributes=attributes, **limits)["y"])
    with pytest.raises(XLA_ERRORS, match="KeyError: 'lost'"):
        run(*batch).block_until_ready()
    assert "cannot be read" in caplog.text


def test_kernels_that_are_not_loaded(batch):
    x, gamma, beta = batch
    run = jax.jit(lambda x: train(x, gamma, beta)["y"]).lower(x).compile()
    run(x).block_until_ready()
    steps = table.entries[table.STEPS :].copy()
    table.entries[table.STEPS :] = 0
    try:
        with pytest.raises(XLA_ERRORS, match="it was not traced in this process"):
            run(x).block_until_ready()
    finally:
        table.entries[table.STEPS :] = steps


def test_buffers_that_do_not_fit(monkeypatch):
    inputs = {name: jnp.asarray(value) for name, value in make_inputs((8, 3), -1).items()}
    real = layout.layout_of

    def wrong(x, axis):
        return real(np.zeros((16, 3)), axis)

    monkeypatch.setattr(layout, "layout_of", wrong)
    with pytest.raises(XLA_ERRORS, match="is not what this program was traced for"):
        jax.block_until_ready(xla_ffi.normalize(inputs, PLAIN, ("y",)))


def test_unknown_sizes():
    inputs = make_inputs((8, 3), -1)
    (size,) = export.symbolic_shape("n")
    x = jax.ShapeDtypeStruct((size, 3), np.float32)
    run = jax.jit(lambda x: xla_ffi.normalize({**inputs, "x": x}, PLAIN, ("y",))["y"])
    with pytest.raises(ValueError, match=r"x must have known sizes, got \(n, 3\)"):
        export.export(run)(x)


def test_mask_that_does_not_fit(batch):
    with pytest.raises(ValueError, match=r"mask of shape \(3,\) does not fit x of shape"):
        jax.jit(train)(*batch, jnp.ones(3, bool))


# Processes and threads


def test_compilation_cache_of_another_process(tmp_path):
    outputs = [run_python(_CACHED, str(tmp_path), KERAS_BACKEND="jax") for _ in range(2)]
    assert [output.split()[0] for output in outputs] == ["miss", "hit"]
    assert outputs[0].split()[1:] == outputs[1].split()[1:]


_CACHED = """
import sys
import zlib
import jax, jax.numpy as jnp, numpy as np
from jax import monitoring

hits = []
monitoring.register_event_listener(
    lambda event, **_: hits.append(event) if event == "/jax/compilation_cache/cache_hits" else None
)
from numbabn.keras.bridges import jax as bridge
from numbabn.keras.operations import TRAINING, Attributes

x = jnp.asarray(np.random.default_rng(0).normal(3, 1, (64, 32)).astype(np.float32))
moving = {"moving_mean": jnp.zeros(32), "moving_variance": jnp.ones(32)}
attributes = Attributes(-1, 1e-3, 0.9, renorm=False, renorm_momentum=None)
run = jax.jit(lambda x: bridge.apply(TRAINING, {"x": x, **moving}, attributes)["y"])
traced = run.lower(x)
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
y = traced.compile()(x)
print("hit" if hits else "miss", zlib.crc32(np.asarray(y).tobytes()))
"""


def test_concurrent_calls(batch):
    x, gamma, beta = batch
    run = jax.jit(lambda x: train(x, gamma, beta)["y"])
    inputs = [x + i for i in range(4)]
    expected = [np.asarray(run(each)) for each in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            for actual, wanted in zip(pool.map(run, inputs), expected, strict=True):
                np.testing.assert_array_equal(actual, wanted)


def test_bits_do_not_depend_on_threads(batch):
    expected = np.asarray(train(*batch)["y"])
    table.entries[table.PARALLEL] = 0
    try:
        actual = np.asarray(train(*batch)["y"])
    finally:
        table.entries[table.PARALLEL] = 1
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_serial_in_a_forked_child():
    output = run_python(_FORKED, KERAS_BACKEND="jax", PYTHONWARNINGS="ignore")
    assert output.split() == ["1", "0"]


_FORKED = """
import os
from numbabn.embedded import xla as xla_ffi
from numbabn.embedded import table

assert xla_ffi.is_available()
print(table.entries[table.PARALLEL], flush=True)
child = os.fork()
if child == 0:
    print(table.entries[table.PARALLEL], flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""
