"""The operations, as functions of TensorFlow's tensors."""

from __future__ import annotations

import logging
from functools import lru_cache

import tensorflow as tf

from .. import callbacks
from ..operations import MASK, NORMALIZE, OPERANDS, read_dtype, result_dtype, run_of
from ..process import calls_kernels, why_not
from . import operator, records

logger = logging.getLogger("numbabn")
_FRAMEWORK = "TensorFlow"


def call(operation, inputs, readers, attributes, wanted, context=None):
    """Run an operation, eagerly or as a node of the graph: its outputs that are wanted, by name.

    operation: a name of `embedded.operations`
    inputs: tensors by name, in an order that is kept
    readers: by name the functions without arguments that return the numbers among the inputs
        that are read whenever the operation runs
    context: hashable; `context_of` gives it back to the gradient
    """
    run, given = run_of(operation, inputs, attributes, wanted)
    results = tuple(wanted)
    tensors = {name: _operand(name, value) for name, value in given.items()}
    operands = tuple((name, tensor.dtype.name) for name, tensor in tensors.items())
    late = tuple((name, callbacks.index_of(read)) for name, read in readers.items())
    if not tf.executing_eagerly():
        # A graph may outlive everything in Python.
        callbacks.keep(readers.values())
    spec = records.Spec(run, attributes, operands, late, results, context)
    label = f"numbabn_{operation}_is_not_for_XLA_so_use_jit_compile_False"
    outputs = _run(spec, list(tensors.values()), label)
    return {
        name: tf.cast(output, inputs[name].dtype) if name in inputs else output
        for name, output in zip(results, outputs, strict=True)
    }


def context_of(operator):
    """What a gradient gets an operator for: its spec's context, inputs and outputs by name."""
    spec = records.spec_of(operator.get_attr("spec"))
    inputs = dict(zip((name for name, _ in spec.operands), operator.inputs, strict=True))
    return spec.context, inputs, dict(zip(spec.results, operator.outputs, strict=True))


def serves(operation, inputs, attributes):
    """Whether the kernels take channels along the axes of a tensor as it lies in memory."""
    if isinstance(attributes.axis, int):
        return True
    rank = inputs[operation.operands[0]].shape.rank
    axes = sorted(each % rank for each in attributes.axis)
    adjacent = axes == list(range(axes[0], axes[0] + len(axes)))
    if not adjacent:
        _tell_of_axes(attributes.axis)
    return adjacent


# Once for a list of axes, of which there are few.
@lru_cache(maxsize=64)
def _tell_of_axes(axis):
    logger.info(
        "TensorFlow does not call the kernels for axis=%s, so Python computes: other axes lie "
        "between those of the channels",
        list(axis),
    )


@lru_cache(maxsize=1)
def is_available():
    """Whether TensorFlow calls the kernels, eagerly and in graphs."""
    # AttributeError, OSError: another TensorFlow, without that C API. The others: it has the API,
    # and refuses.
    refusals = (AttributeError, ImportError, OSError, RuntimeError, tf.errors.OpError)
    return calls_kernels(_FRAMEWORK, _try, refusals)


def why_unavailable():
    """Why TensorFlow does not call the kernels; None where it does."""
    return None if is_available() else why_not(_FRAMEWORK)


def _try(inputs, attributes):
    operator.register()
    with tf.init_scope(), tf.device("CPU:0"):
        tensors = {name: tf.constant(value) for name, value in inputs.items()}

        def identity(x):
            return call(NORMALIZE.name, {**tensors, "x": x}, {}, attributes, ("y",))["y"]

        return [run(tensors["x"]) for run in (identity, tf.function(identity))]


def _operand(name, value):
    """An input as the kernel reads it."""
    if OPERANDS[name] == MASK and value.dtype != tf.bool:
        return tf.not_equal(value, tf.zeros((), value.dtype))
    given = value.dtype.name
    dtype = read_dtype(name, given)
    return value if dtype == given else tf.cast(value, dtype)


def _run(spec, inputs, label):
    """The operator, eagerly or as a node, on the tape where there is one."""
    # What TensorFlow's own generated wrappers of operators are made of.
    from tensorflow.python.eager import context, execute

    # Until the call is over: of an eager call nothing else may hold on to the spec.
    index = records.index_of(spec, keep=not tf.executing_eagerly())
    operands = dict(spec.operands)
    dtypes = [tf.as_dtype(result_dtype(name, operands)) for name in spec.results]
    types = [tensor.dtype.as_datatype_enum for tensor in inputs]
    output_types = [dtype.as_datatype_enum for dtype in dtypes]
    attributes = ("Tin", types, "Tout", output_types, "spec", index)
    name = operator.OPERATOR
    if tf.executing_eagerly():
        eager = context.context()
        with callbacks.originals(tf.errors.OpError):
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
