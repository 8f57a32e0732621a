"""TensorFlow: kernels that it calls, eagerly and in graphs.

Where it cannot (see `embedded.tensorflow`), and for channel axes that are not adjacent, Python
does: on eager tensors' memory as it is, and through `tf.numpy_function` in graphs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from ...embedded import tensorflow as compiled
from ...embedded.operations import Operation, Shaped
from ..operations import COMPUTE, Function
from . import SECOND_DERIVATIVE, Late, read_late

SUPPORTS_JIT = False  # XLA knows neither the kernels' operator nor Python.

Tensors = dict[str, Any]

# TensorFlow can take over the memory of a NumPy array that is aligned so, and copies any other.
_ALIGNMENT = 64


class _Forward(NamedTuple):
    """What the gradient has to know of a forward."""

    function: Function
    attributes: Any


def apply(function: Function, inputs: Mapping[str, Any], attributes: Any) -> Tensors:
    """Run `function`, differentiably; see the package's docstring."""
    given = {
        name: value if isinstance(value, Late) else tf.convert_to_tensor(value)
        for name, value in inputs.items()
    }
    if compiled.serves(function.forward, given, attributes) and compiled.is_available():
        wanted = function.forward.results_beside(given)
        results = _call(function.forward, given, attributes, wanted, _Forward(function, attributes))
    else:
        results = _apply_in_python(function, given, attributes)
    return {name: value for name, value in results.items() if name not in function.residuals}


def in_graph(tensor: Any) -> bool:
    """Whether a graph is being traced that may change what `tensor` holds."""
    return not tf.executing_eagerly()


def is_traced(tensor: Any) -> bool:
    """Whether `tensor` stands in a computation that is traced."""
    return not tf.executing_eagerly()


def paths() -> dict[str, str]:
    """What computes, and why, by the place that tensors are in."""
    reason = compiled.why_unavailable()
    python = "Python, over tensors' own memory, and in graphs by tf.numpy_function"
    return {
        "CPU": f"{python}: {reason}"
        if reason is not None
        else "TensorFlow calls the kernels, by an operator; for channel axes with others between "
        f"them {python}",
        "CUDA": "the same, over copies on the host: there is no operator for that device",
        "other devices": "the same, over copies on the host: there is no operator for them",
    }


# By kernels that TensorFlow calls


def _call(
    operation: Operation,
    inputs: Tensors,
    attributes: Any,
    wanted: tuple[str, ...],
    context: Any,
) -> Tensors:
    readers = {name: value.read for name, value in inputs.items() if isinstance(value, Late)}
    tensors = {name: value for name, value in inputs.items() if name not in readers}
    results = compiled.call(operation.name, tensors, readers, attributes, wanted, context)
    if not tf.executing_eagerly():
        shapes = operation.results_of(_known(tensors), attributes)
        for name, tensor in results.items():
            tensor.set_shape(shapes[name].shape)
    return results


def _gradient(operator: Any, *gradients: Any) -> list[Any]:
    """The gradients of a call's inputs, None for those that have none or are not asked for."""
    context, inputs, outputs = compiled.context_of(operator)
    if not isinstance(context, _Forward):
        raise NotImplementedError(SECOND_DERIVATIVE.format(context))
    function, attributes = context
    dy = dict(zip(outputs, gradients, strict=True))[function.result]
    # A tape says what it does not ask for. A graph that is differentiated as a whole does not.
    skipped = getattr(operator, "skip_input_indices", None) or ()
    names = [
        name for i, name in enumerate(inputs) if name in function.arguments and i not in skipped
    ]
    if dy is None or not names:
        return [None] * len(inputs)
    everything = {**inputs, **outputs, "d" + function.result: tf.convert_to_tensor(dy)}
    given = {name: everything[name] for name in function.backward.operands if name in everything}
    wanted = tuple("d" + name for name in names)
    groups = [wanted]
    if function.apart and not tf.executing_eagerly():
        groups = [tuple(each for each in group if each in wanted) for group in function.apart]
    found: Tensors = {}
    for group in filter(None, groups):
        found |= _call(function.backward, given, attributes, group, function.forward.name)
    return [
        tf.cast(found["d" + name], tensor.dtype) if name in names else None
        for name, tensor in inputs.items()
    ]


tf.RegisterGradient(compiled.OPERATOR)(_gradient)


# By Python


def _apply_in_python(function: Function, given: Tensors, attributes: Any) -> Tensors:
    # Outside of custom_gradient, which would ask what to do with the Variables that are read.
    fixed = {
        name: tf.stop_gradient(value) if tf.is_tensor(value) else value
        for name, value in given.items()
    }
    results = _run(function.forward, fixed, attributes, function.forward.results_beside(given))
    everything = {**fixed, **results}
    kept = {name: everything[name] for name in function.kept if name in everything}
    names = tuple(name for name in function.arguments if name in given)
    result = results[function.result]

    @tf.custom_gradient
    def differentiable(*arguments: Any) -> Any:
        def gradient(dy: Any) -> Any:
            inputs = {**kept, "d" + function.result: dy}
            wanted = {"d" + name: given[name].dtype for name in names}
            return _gradient_in_python(function, inputs, attributes, wanted)

        return result, gradient

    results[function.result] = differentiable(*(given[name] for name in names))
    return results


def _gradient_in_python(
    function: Function, inputs: Tensors, attributes: Any, wanted: Mapping[str, Any]
) -> Any:
    """wanted: the dtypes of the gradients, by name"""

    @tf.custom_gradient
    def undifferentiable(*values: Any) -> Any:
        def gradient(*_: Any) -> Any:
            raise NotImplementedError(SECOND_DERIVATIVE.format(function.forward.name))

        given = dict(zip(inputs, values, strict=True))
        found = _run(function.backward, given, attributes, tuple(wanted))
        return tuple(tf.cast(found[name], dtype) for name, dtype in wanted.items()), gradient

    return undifferentiable(*inputs.values())


def _run(
    operation: Operation, inputs: Tensors, attributes: Any, wanted: tuple[str, ...]
) -> Tensors:
    if tf.executing_eagerly():
        arrays = {name: np.asarray(value) for name, value in read_late(inputs).items()}
        results = _host(operation, arrays, attributes, wanted)
        return {name: _tensor(results[name]) for name in wanted}
    tensors = {name: value for name, value in inputs.items() if tf.is_tensor(value)}
    late = {name: value for name, value in inputs.items() if name not in tensors}
    shapes = operation.results_of(_known(tensors), attributes)

    def host(*arrays: NDArray[Any]) -> list[NDArray[Any]]:
        given = {**dict(zip(tensors, arrays, strict=True)), **read_late(late)}
        results = _host(operation, given, attributes, wanted)
        return [results[name] for name in wanted]

    found = tf.numpy_function(
        host,
        list(tensors.values()),
        [tf.as_dtype(shapes[name].dtype) for name in wanted],
        # Nothing but its results: TensorFlow may leave it out where nobody reads those.
        stateful=False,
        # XLA names the operation that it cannot compile.
        name=f"numbabn_{operation.name}_is_not_for_XLA_so_use_jit_compile_False",
    )
    for name, tensor in zip(wanted, found, strict=True):
        tensor.set_shape(shapes[name].shape)
    return dict(zip(wanted, found, strict=True))


def _host(
    operation: Operation, arrays: Tensors, attributes: Any, wanted: tuple[str, ...]
) -> Tensors:
    """Run `operation`, its first result in memory that TensorFlow takes over."""
    first = arrays[operation.operands[0]]
    outputs = {operation.results[0]: _aligned(first.shape, first.dtype)}
    return COMPUTE[operation.name](arrays, attributes, wanted, outputs)


def _aligned(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """A new array at a multiple of `_ALIGNMENT` bytes."""
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.__array_interface__["data"][0] % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def _tensor(array: NDArray[Any]) -> Any:
    """A tensor in the memory of a new NumPy array, or a copy where TensorFlow needs one."""
    # Its kernels end the process on memory of another alignment, and DLPack does not check.
    aligned = array.__array_interface__["data"][0] % _ALIGNMENT == 0
    # DLPack has no word for memory that may only be read.
    if not (aligned and array.flags.c_contiguous and array.flags.writeable):
        return tf.convert_to_tensor(array)
    if array.dtype == tf.bfloat16.as_numpy_dtype:
        bits = tf.experimental.dlpack.from_dlpack(array.view(np.uint16).__dlpack__())
        return tf.bitcast(bits, tf.bfloat16)
    return tf.experimental.dlpack.from_dlpack(array.__dlpack__())


def _known(tensors: Tensors) -> dict[str, Shaped]:
    """What is known of tensors in a graph."""
    return {
        name: Shaped(tuple(each.shape) if each.shape.rank is not None else (), each.dtype.name)
        for name, each in tensors.items()
    }
