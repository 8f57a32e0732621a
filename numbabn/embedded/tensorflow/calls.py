"""The operations, as functions of TensorFlow's tensors."""

from __future__ import annotations

import ctypes
import logging
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numba import config

from ...cpu import launch
from .. import callbacks, plans
from . import operator
from . import records as specs
from .records import Spec

logger = logging.getLogger("numbabn")

# By the names of the operations of `numbabn.keras`: mode and steps.
_RUNS: dict[str, tuple[int, tuple[Any, ...]]] = {
    "batch_norm_forward": (plans.FORWARD, launch.FORWARD),
    "batch_norm_backward": (plans.BACKWARD, launch.BACKWARD),
    "normalize": (plans.NORMALIZE, launch.NORMALIZE),
    "normalize_backward": (plans.BACKWARD, launch.BACKWARD),
}


def call(operation, inputs, readers, attributes, wanted, context=None):
    """Run an operation, eagerly or as a node of the graph: its outputs that are wanted, by name.

    operation: a name of `numbabn.keras.operations`
    inputs: tensors by name, in an order that is kept
    readers: by name the functions without arguments that return the numbers among the inputs
        that are read whenever the operation runs
    context: hashable; `context_of` gives it back to the gradient
    """
    mode, steps = _RUNS[operation]
    results = tuple(wanted)
    if operation == "normalize_backward" and results == ("dx",):
        # dx = gamma · rstd · dy: no sum over the batch, and x is not read.
        mode, steps = _RUNS["normalize"]
        inputs = {**inputs, "x": inputs["dy"]}
        for name in ("dy", "moving_mean"):
            del inputs[name]
    elif mode == plans.BACKWARD and "dx" not in results:
        steps = launch.SUMS
    elif mode == plans.FORWARD and attributes.renorm:
        mode = plans.RENORM_FORWARD
    tensors = {name: _operand(name, value) for name, value in inputs.items()}
    operands = tuple((name, tensor.dtype.name) for name, tensor in tensors.items())
    late = tuple((name, callbacks.index_of(read)) for name, read in readers.items())
    spec = Spec(mode, steps, attributes, operands, late, results, context)
    label = f"numbabn_{operation}_is_not_for_XLA_so_use_jit_compile_False"
    outputs = _run(specs.index_of(spec), list(tensors.values()), _dtypes(spec), label)
    return {
        name: tf.cast(output, inputs[name].dtype) if name in inputs else output
        for name, output in zip(results, outputs, strict=True)
    }


def context_of(operator):
    """What a gradient gets an operator for: its spec's context, inputs and outputs by name."""
    spec = specs.spec_of(operator.get_attr("spec"))
    inputs = dict(zip((name for name, _ in spec.operands), operator.inputs, strict=True))
    return spec.context, inputs, dict(zip(spec.results, operator.outputs, strict=True))


def serves(axis, rank):
    """Whether the kernels take channels along `axis` of a tensor as it lies in memory."""
    if isinstance(axis, int):
        return True
    axes = sorted(each % rank for each in axis)
    return axes == list(range(axes[0], axes[0] + len(axes)))


class _Identity(NamedTuple):
    """Attributes."""

    axis: int = -1
    epsilon: float = 1.0
    momentum: float = 0.0
    renorm_momentum: float | None = None


@lru_cache(maxsize=1)
def is_available():
    """Whether TensorFlow calls the kernels, eagerly and in graphs."""
    if config.DISABLE_JIT or ctypes.sizeof(ctypes.c_void_p) != 8:
        return False

    def identity(x):
        zeros = tf.zeros(1)
        inputs = {"x": x, "moving_mean": zeros, "moving_variance": zeros}
        return call("normalize", inputs, {}, _Identity(), ("y",))["y"]

    try:
        operator.register()
        with tf.init_scope(), tf.device("CPU:0"):
            x = tf.constant([[1.0], [3.0]])
            return all(np.array_equal(run(x), x) for run in (identity, tf.function(identity)))
    except (AttributeError, ImportError, OSError, RuntimeError, tf.errors.OpError) as error:
        # AttributeError, OSError: another TensorFlow, without that C API. The others: it has
        # the API, and refuses.
        logger.info("TensorFlow cannot call the kernels: %s", error)
        return False


def _operand(name, value):
    """An input as the kernel reads it."""
    if name == "mask":
        return value if value.dtype == tf.bool else tf.not_equal(value, tf.zeros((), value.dtype))
    if name in ("x", "dy", "values") or value.dtype in (tf.float32, tf.float64):
        return value
    return tf.cast(value, tf.float32)


def _dtypes(spec):
    dtypes = dict(spec.operands)
    rows = specs.rows_dtype(dtypes["x"])
    own = {"y": dtypes["x"], "dx": dtypes["x"], "values": "float64"}
    return [tf.as_dtype(own.get(name, dtypes.get(name, rows))) for name in spec.results]


def _run(index, inputs, dtypes, label):
    """The operator, eagerly or as a node, on the tape where there is one."""
    # What TensorFlow's own generated wrappers of operators are made of.
    from tensorflow.python.eager import context, execute

    types = [tensor.dtype.as_datatype_enum for tensor in inputs]
    output_types = [dtype.as_datatype_enum for dtype in dtypes]
    attributes = ("Tin", types, "Tout", output_types, "spec", index)
    name = operator.OPERATOR
    if tf.executing_eagerly():
        eager = context.context()
        outputs = execute.execute(name.encode(), len(dtypes), inputs, attributes, eager)
    else:
        value, listed = tf.compat.v1.AttrValue, tf.compat.v1.AttrValue.ListValue
        node = tf.compat.v1.get_default_graph().create_op(
            name,
            inputs,
            dtypes,
            attrs={
                "Tin": value(list=listed(type=types)),
                "Tout": value(list=listed(type=output_types)),
                "spec": value(i=index),
            },
            name=label,
        )
        outputs = node.outputs
        inputs = list(node.inputs)
    if execute.must_record_gradient():
        execute.record_gradient(name, inputs, attributes, outputs)
    return outputs
