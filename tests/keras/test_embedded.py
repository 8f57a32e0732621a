"""Compiled programs that call the kernels: the same bits as on NumPy arrays, without Python."""

import os
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numba
import numpy as np
import pytest
from backends import BACKEND
from callers import attributes_of, caller_of
from operands import make_inputs, training_outputs

import reference
from numbabn.embedded.operations import BACKWARD, FORWARD, NORMALIZE, NORMALIZE_BACKWARD
from numbabn.embedded.table import STEPS, TABLE
from numbabn.tensors.late import Late
from processes import run_python

pytestmark = pytest.mark.jit

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
GRADIENTS = ("dx", "dgamma", "dbeta")
WEIGHTS = np.random.default_rng(1).normal(size=(16, 8, 16, 32))
RENORM = attributes_of(renorm="shared")


@pytest.fixture(scope="module")
def caller():
    return caller_of(BACKEND)


@pytest.fixture
def batch(caller):
    """x, gamma and beta, of a size that goes to several threads."""
    inputs = make_inputs((16, 8, 16, 32), -1)
    return tuple(caller.tensor(inputs[name]) for name in ("x", "gamma", "beta"))


def gradients(caller, *tensors):
    """Of a loss with respect to x, gamma and beta."""
    return caller.gradients(
        lambda *each: caller.total(caller.train(*each)["y"], WEIGHTS), list(tensors)
    )


def check_operation(caller, operation, inputs, attributes, wanted):
    """Check that eager and compiled calls have the bits of the host's; returns those."""

    def run(tensors):
        return caller.call(operation, tensors, attributes, wanted)

    expected = caller.on_host(operation, inputs, attributes, wanted)
    tensors = {name: caller.operand(value, name) for name, value in inputs.items()}
    broadcast = "mask" in inputs and 1 in inputs["mask"].shape[: inputs["x"].ndim - 1]
    for each in caller.runs(run, tensors):
        results = each(tensors)
        assert set(results) == set(wanted)
        for name, value in expected.items():
            actual = caller.array(results[name], name)
            assert (actual.dtype, actual.shape) == (value.dtype, value.shape)
            if broadcast and not caller.expands_masks:
                # The kernels read such a mask through its strides, in steps of other lengths.
                np.testing.assert_allclose(actual, value, 1e-5, 1e-6, err_msg=name)
            else:
                assert actual.tobytes() == value.tobytes(), name
    return expected


# Whether it is there


def test_available(caller):
    assert caller.package.is_available()


def test_not_available_without_the_jit(caller, monkeypatch):
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    assert caller.package.is_available.__wrapped__() is False


def test_not_available_where_the_framework_refuses(caller, monkeypatch):
    caller.refuse(monkeypatch)
    assert caller.package.is_available.__wrapped__() is False


@pytest.mark.parametrize("available", [True, False])
def test_python_only_where_it_is_not_available(available, caller, batch, monkeypatch):
    expected = gradients(caller, *batch)
    monkeypatch.setattr(caller.package, "is_available", lambda: available)

    def run(*tensors):
        return gradients(caller, *tensors)

    for found in (run(*batch), caller.compiled(run)(*batch)):
        for actual, wanted in zip(found, expected, strict=True):
            np.testing.assert_array_equal(actual, wanted)
    nodes = caller.nodes(run, *batch)
    kernels, python = (
        sum(name in node for node in nodes) for name in (caller.kernel, caller.python)
    )
    assert (kernels, python) == ((caller.of_a_step, 0) if available else (0, 2))


# The operations


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
def test_training(shape, axis, dtype, caller):
    if not caller.serves(axis, len(shape)):
        pytest.skip("a copy that this framework leaves to Python")
    attributes = attributes_of(axis)
    inputs = make_inputs(shape, axis, dtype)
    found = check_operation(caller, FORWARD, inputs, attributes, training_outputs(inputs))
    given = {"x": inputs["x"], "dy": inputs["x"][::-1].copy(), "saved": found["saved"]}
    for wanted in (GRADIENTS, ("dgamma", "dbeta"), ("dx",)):
        check_operation(caller, BACKWARD, given, attributes, wanted)


@pytest.mark.parametrize("renorm", [None, "separate", "shared"])
@pytest.mark.parametrize("mask", [None, (6, 1, 20, 1), (6, 4, 20), (6, 4, 20, 3), (1, 4, 1, 3)])
@pytest.mark.parametrize("axis", [-1, 1])
def test_masks_and_renorm(axis, mask, renorm, caller):
    attributes = attributes_of(axis, renorm)
    inputs = make_inputs((6, 4, 20, 3), axis, renorm=renorm, mask=mask)
    found = check_operation(caller, FORWARD, inputs, attributes, training_outputs(inputs))
    given = {name: inputs[name] for name in ("x", "mask") if name in inputs}
    given |= {"dy": inputs["x"][::-1].copy(), "saved": found["saved"]}
    check_operation(caller, BACKWARD, given, attributes, GRADIENTS)


@pytest.mark.parametrize("shape", [(6, 1), (1, 20), (6, 20), (1, 1)])
def test_mask_of_a_single_channel(shape, caller):
    inputs = make_inputs((6, 20, 1), -1, mask=shape)
    check_operation(caller, FORWARD, inputs, attributes_of(), training_outputs(inputs))


@pytest.mark.parametrize("dtype", [np.int32, np.float16, ml_dtypes.bfloat16, np.float64])
def test_dtypes_of_masks(dtype, caller, batch):
    on = np.random.default_rng(0).random((16, 8, 16)) < 0.7
    expected = caller.train(*batch, mask=caller.tensor(on))["y"]
    actual = caller.train(*batch, mask=caller.tensor((3 * on).astype(dtype)))["y"]
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((64, 32), -1), ((4, 8, 9, 9), 1), ((64, 64, 16), -1), ((4, 5, 6), (0, 2))],
)
def test_inference(shape, axis, dtype, caller):
    if not caller.serves(axis, len(shape)):
        pytest.skip("a copy that this framework leaves to Python")
    attributes = attributes_of(axis)
    inputs = make_inputs(shape, axis, dtype)
    check_operation(caller, NORMALIZE, inputs, attributes, ("y",))
    given = {**inputs, "dy": inputs["x"][::-1].copy()}
    del given["beta"]
    for wanted in (GRADIENTS, ("dgamma",), ("dx",)):
        check_operation(caller, NORMALIZE_BACKWARD, given, attributes, wanted)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_parameters_of_another_dtype(dtype, caller, batch):
    """They are rounded on their way in and out only."""
    x, *parameters = (caller.array(each) for each in batch)
    others = [each.astype(dtype) for each in parameters]
    found = gradients(caller, *map(caller.tensor, (x, *others)))
    rounded = [each.astype(np.float32) for each in others]
    expected = gradients(caller, *map(caller.tensor, (x, *rounded)))
    for actual, wanted in zip(found[1:], expected[1:], strict=True):
        np.testing.assert_array_equal(actual, caller.array(wanted).astype(dtype))
    np.testing.assert_array_equal(found[0], expected[0])


def test_gradient_of_a_composition(caller, batch):
    x, gamma, _ = (caller.array(each).astype(np.float64) for each in batch)
    expected = reference.backward(WEIGHTS, x, gamma)
    for actual, wanted in zip(gradients(caller, *batch), expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=5e-6 * np.abs(wanted).max())


# Errors. A framework says more than the text that it was given.


def test_limits_are_read_when_the_program_runs(caller, batch):
    limits = {"rmin": 0.0, "rmax": 1.0, "dmax": 0.5}
    late = {name: Late(lambda name=name: limits[name]) for name in limits}

    def run(*tensors):
        return caller.train(*tensors, attributes=RENORM, **late)["y"]

    def given(*tensors):
        constants = {name: caller.tensor(np.float32(limit)) for name, limit in limits.items()}
        return caller.train(*tensors, attributes=RENORM, **constants)["y"]

    assert not any(caller.python in node for node in caller.nodes(run, *batch))
    compiled = caller.compiled(run)
    first = compiled(*batch)
    np.testing.assert_array_equal(first, given(*batch))
    limits["dmax"] = 0.25
    np.testing.assert_array_equal(compiled(*batch), given(*batch))
    assert not np.array_equal(compiled(*batch), first)
    for limit, reason in (
        (-1.0, "should be non-negative, got -1.0"),
        (np.nan, "must be a number, got nan"),
    ):
        limits["dmax"] = limit
        with pytest.raises(caller.errors) as caught:
            caller.wait(compiled(*batch))
        assert f"renorm clipping: dmax {reason}" in str(caught.value)


def test_limit_that_cannot_be_read(caller, batch, caplog):
    def read():
        raise KeyError("lost")

    given = {"rmin": caller.tensor(np.float32(0)), "dmax": caller.tensor(np.float32(1))}
    # The error itself, where a call in Python is there to raise it; else one with its text.
    with pytest.raises((KeyError, *caller.errors), match="'lost'"):
        caller.wait(caller.train(*batch, attributes=RENORM, rmax=Late(read), **given))
    assert "a compiled program cannot go on" in caplog.text


def test_kernels_that_are_not_loaded(caller, batch):
    x, *parameters = batch
    run = caller.compiled(lambda x: caller.train(x, *parameters)["y"])
    caller.wait(run(x))
    steps = STEPS.entries.copy()
    STEPS.entries[:] = 0
    try:
        with pytest.raises(
            caller.errors,
            match="numbabn: the kernels of this program are not loaded: it was not traced in this "
            "process",
        ):
            caller.wait(run(x))
    finally:
        STEPS.entries[:] = steps


def test_mask_that_does_not_fit(caller, batch):
    with pytest.raises(
        caller.errors,
        match=r"mask of shape \(3,\) does not fit x of shape \(16, 8, 16, 32\): expected the rank "
        r"of x, or one less \(then a last axis is added\), and each size to be that of x or 1",
    ):
        caller.train(*batch, caller.tensor(np.ones(3, bool)))


# Threads and processes


def test_calls_in_flight(caller, batch):
    x, *parameters = batch
    run = caller.compiled(lambda x: caller.train(x, *parameters)["y"])
    inputs = [x + i for i in range(4)]
    expected = [np.asarray(run(each)) for each in inputs]
    at_once = caller.compiled(lambda *each: [caller.train(x, *parameters)["y"] for x in each])
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            for found in (pool.map(run, inputs), at_once(*inputs)):
                for actual, wanted in zip(found, expected, strict=True):
                    np.testing.assert_array_equal(actual, wanted)


def test_bits_do_not_depend_on_threads(caller, batch):
    expected = np.asarray(caller.train(*batch)["y"])
    TABLE.fill(is_parallel=False)
    try:
        actual = np.asarray(caller.train(*batch)["y"])
    finally:
        TABLE.fill(is_parallel=True)
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_serial_in_a_forked_child():
    output = run_python(_FORKED, BACKEND, KERAS_BACKEND=BACKEND, PYTHONWARNINGS="ignore")
    assert output.split() == ["1", "0"]


_FORKED = """
import importlib, os, sys
from numbabn.embedded.table import AT, TABLE

package = {"jax": "xla", "tensorflow": "tensorflow"}[sys.argv[1]]
assert importlib.import_module(f"numbabn.embedded.{package}").is_available()
print(TABLE.entries[AT.is_parallel], flush=True)
child = os.fork()
if child == 0:
    print(TABLE.entries[AT.is_parallel], flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""
