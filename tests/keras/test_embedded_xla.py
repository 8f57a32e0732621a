"""Programs of JAX that call the kernels: what is JAX's own, above all its transformations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from callers import attributes_of, caller_of
from jax import export
from operands import make_inputs, training_outputs

from numbabn import layout
from numbabn.embedded import xla
from numbabn.embedded.operations import BACKWARD, FORWARD, NORMALIZE
from numbabn.embedded.table import STEPS, TABLE
from numbabn.embedded.xla import calls
from numbabn.keras.bridges import jax as bridge
from processes import run_python

pytestmark = pytest.mark.jit

PLAIN = attributes_of()
caller = caller_of("jax")
train = caller.train


def loss(x, gamma, beta):
    return jnp.sum(train(x, gamma, beta)["y"] ** 3)


@pytest.fixture
def batch():
    """x, gamma and beta, of a size that goes to several threads."""
    inputs = make_inputs((16, 8, 16, 32), -1)
    return tuple(jnp.asarray(inputs[name]) for name in ("x", "gamma", "beta"))


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


def test_what_devices_do_without_is_logged(monkeypatch, batch, caplog):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(bridge, "device_is_available", lambda: False)
    for kept in (bridge._say_what_computes, bridge._traced):
        kept.cache_clear()
    with caplog.at_level("INFO", "numbabn"):
        for _ in range(2):
            jax.jit(lambda *arguments: train(*arguments)["y"]).lower(*batch)
    said = [record.getMessage() for record in caplog.records]
    assert [text for text in said if text.startswith("JAX")] == [
        "JAX beside the CPU: on CUDA devices Python, over copies on the host, by pure_callback: "
        "numba-cuda, or jax.experimental.buffer_callback, is not installed"
    ]


def test_without_float64():
    inputs = make_inputs((64, 32), -1)
    wanted = training_outputs(inputs)
    expected = caller.on_host(FORWARD, inputs, PLAIN, wanted)
    with jax.enable_x64(False):
        results = jax.jit(lambda inputs: caller.call(FORWARD, inputs, PLAIN, wanted))(inputs)
    for name in wanted:
        np.testing.assert_array_equal(caller.array(results[name], name), expected[name])


def test_in_place(monkeypatch):
    inputs = make_inputs((64, 32), -1)
    expected = caller.on_host(NORMALIZE, inputs, PLAIN, ("y",))["y"]
    monkeypatch.setattr(calls, "LEAST_ALIASED", 0)
    x = jnp.asarray(inputs["x"])
    run = jax.jit(lambda x: caller.call(NORMALIZE, {**inputs, "x": x}, PLAIN, ("y",))["y"])
    assert "output_operand_alias" in run.lower(x).as_text()
    np.testing.assert_array_equal(np.asarray(run(x)), expected)
    # XLA copies an input that the caller still has.
    np.testing.assert_array_equal(np.asarray(x), inputs["x"])
    saved = caller.on_host(FORWARD, inputs, PLAIN, ("saved",))["saved"]
    given = {"x": inputs["x"], "dy": inputs["x"][::-1].copy(), "saved": saved}
    wanted = ("dx", "dgamma", "dbeta")
    expected = caller.on_host(BACKWARD, given, PLAIN, wanted)
    tensors = {name: caller.operand(value, name) for name, value in given.items()}
    found = caller.call(BACKWARD, tensors, PLAIN, wanted)
    for name in wanted:
        np.testing.assert_array_equal(found[name], expected[name])


def test_dx_is_left_out_where_nobody_reads_it(batch):
    every, of_parameters = jax.grad(loss, (0, 1, 2)), jax.grad(loss, (1, 2))
    # The forward, the sums of the backward, and dx from these.
    assert len(caller.nodes(every, *batch)) == 3
    assert len(caller.nodes(of_parameters, *batch)) == 2
    found, expected = jax.jit(of_parameters)(*batch), jax.jit(every)(*batch)[1:]
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    # What a task goes over while it is in the cache is one call.
    x = batch[0][:1, :1]
    assert len(caller.nodes(every, x, *batch[1:])) == 2


def test_program_holds_no_address(batch):
    program = jax.jit(lambda *arguments: train(*arguments)["y"]).lower(*batch).as_text()
    addresses = {int(each) for each in (*TABLE.entries, *STEPS.entries) if each > 1}
    assert addresses
    assert not any(str(address) in program for address in addresses)


# Transformations


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
from numbabn.embedded.operations import Attributes
from numbabn.keras.functions import TRAINING
from numbabn.keras.gradient import apply

attributes = Attributes(-1, 1e-3, 0.9, renorm=False, renorm_momentum=None)
x = jnp.asarray(np.random.default_rng(0).normal(3, 1, (64, 32, 32)).astype(np.float32))
gamma = jnp.full(32, 1.5)

def layer(x, gamma):
    moving = {"moving_mean": jnp.zeros(32), "moving_variance": jnp.ones(32)}
    return apply(bridge, TRAINING, {"x": x, "gamma": gamma, **moving}, attributes)["y"]

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


def test_buffers_that_do_not_fit(monkeypatch):
    inputs = {name: jnp.asarray(value) for name, value in make_inputs((8, 3), -1).items()}
    real = layout.layout_of

    def wrong(x, axis):
        return real(np.zeros((16, 3)), axis)

    monkeypatch.setattr(layout, "layout_of", wrong)
    with pytest.raises(
        caller.errors,
        match=r"(?m)numbabn: the size or dtype of a buffer is not what this program was traced "
        r"for$",
    ):
        jax.block_until_ready(xla.call(NORMALIZE.name, inputs, PLAIN, ("y",)))


def test_unknown_sizes():
    inputs = make_inputs((8, 3), -1)
    (size,) = export.symbolic_shape("n")
    x = jax.ShapeDtypeStruct((size, 3), np.float32)
    run = jax.jit(lambda x: xla.call(NORMALIZE.name, {**inputs, "x": x}, PLAIN, ("y",))["y"])
    with pytest.raises(ValueError, match=r"(?m)^x must have known sizes, got \(n, 3\)$"):
        export.export(run)(x)


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
from numbabn.embedded.operations import Attributes
from numbabn.keras.functions import TRAINING
from numbabn.keras.gradient import apply

x = jnp.asarray(np.random.default_rng(0).normal(3, 1, (64, 32)).astype(np.float32))
moving = {"moving_mean": jnp.zeros(32), "moving_variance": jnp.ones(32)}
attributes = Attributes(-1, 1e-3, 0.9, renorm=False, renorm_momentum=None)
run = jax.jit(lambda x: apply(bridge, TRAINING, {"x": x, **moving}, attributes)["y"])
traced = run.lower(x)
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
y = traced.compile()(x)
print("hit" if hits else "miss", zlib.crc32(np.asarray(y).tobytes()))
"""
