"""TensorFlow: kernels that it calls, eagerly and in graphs.

Where it cannot (see `embedded.tensorflow`), and for channel axes that are not adjacent, Python
does: on eager tensors' memory as it is, and through `tf.numpy_function` in graphs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from ...channels import D, R
from ...embedded import tensorflow as compiled
from ...embedded.operations import Operation, Shaped
from ...tensors.compute import COMPUTE
from ...tensors.late import Late, read_late

SUPPORTS_JIT = False  # XLA knows neither the kernels' operator nor Python.
WIRING = "registered"

Tensors = dict[str, Any]

# TensorFlow can take over the memory of a NumPy array that is aligned so, and copies any other.
_ALIGNMENT = 64


def run(
    operation: Operation,
    inputs: Mapping[str, Any],
    attributes: Any,
    wanted: tuple[str, ...] | None = None,
    context: Any = None,
) -> Tensors:
    """Run an operation; see the package's docstring.

    context: what the gradient of the operator gets to know, see `register_gradient`
    """
    given = _converted(inputs)
    names = operation.results_beside(given) if wanted is None else wanted
    if is_operator(operation, given, attributes):
        return _call(operation, given, attributes, names, context)
    return _run(operation, given, attributes, names)


def _converted(inputs: Mapping[str, Any]) -> Tensors:
    return {
        name: value if isinstance(value, Late) else tf.convert_to_tensor(value)
        for name, value in inputs.items()
    }


def in_graph(tensor: Any) -> bool:
    """Whether a graph is being traced that may change what `tensor` holds."""
    return not tf.executing_eagerly()


is_traced = in_graph  # There, nothing has a value yet.


def is_recomputed() -> bool:
    """Whether a forward runs once more, for a backward: nothing tells here."""
    return False


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


# For gradients


def is_operator(operation: Operation, inputs: Mapping[str, Any], attributes: Any) -> bool:
    """Whether an operation is an operator of TensorFlow's, with a gradient that is registered."""
    return compiled.serves(operation, inputs, attributes) and compiled.is_available()


@lru_cache(maxsize=1)
def register_gradient(gradient_of: Callable[..., Tensors]) -> None:
    """Have `gradient_of` find the gradients of the operator; see `..gradient.gradient_of_node`."""

    def gradient(operator: Any, *gradients: Any) -> list[Any]:
        context, inputs, outputs = compiled.context_of(operator)
        # A tape says what it does not ask for. A graph that is differentiated as a whole does not.
        skipped = getattr(operator, "skip_input_indices", None) or ()
        wanted = tuple(name for i, name in enumerate(inputs) if i not in skipped)
        named = dict(zip(outputs, gradients, strict=True))
        found = gradient_of(sys.modules[__name__], context, inputs, outputs, named, wanted)
        return [found.get(name) for name in inputs]

    tf.RegisterGradient(compiled.OPERATOR)(gradient)


def prepared(tensors: Tensors, arguments: tuple[str, ...]) -> Tensors:
    """The tensors, of which `arguments` are to be differentiated with respect to."""
    return _converted(tensors)


def pulled_back(
    expression: Callable[[Tensors], Tensors],
    tensors: Tensors,
    names: tuple[str, ...],
    gradients: Tensors,
) -> Tensors:
    """The gradients of tensors of these names, by those of the expression's results."""
    with tf.GradientTape() as tape:
        tape.watch([tensors[name] for name in names])
        results = expression(tensors)
    found = tape.gradient(
        [results[name] for name in gradients],
        [tensors[name] for name in names],
        [tf.cast(value, results[name].dtype) for name, value in gradients.items()],
    )
    return dict(zip(names, found, strict=True))


def derived_as(kernel: Any, expression: Any, tensors: Tensors, names: tuple[str, ...]) -> Tensors:
    """See the package's docstring."""
    order: list[str] = []

    @tf.custom_gradient
    def derived(*values: Any) -> Any:
        given = dict(zip(tensors, values, strict=True))
        results = kernel(given)
        order[:] = results

        def gradient(*gradients: Any) -> list[Any]:
            cotangents = dict(zip(order, gradients, strict=True))
            found = pulled_back(
                lambda tensors: expression(tensors, results), given,
                tuple(name for name in names if name in given),
                cotangents,
            )  # fmt: skip
            return [found.get(name) for name in given]

        return tuple(results.values()), gradient

    found = derived(*tensors.values())
    return dict(zip(order, found, strict=True))


def leaves_out() -> bool:
    """Whether what nobody reads is not computed."""
    return not tf.executing_eagerly()


def corrections(saved: Any) -> tuple[Any, Any]:
    """See the package's docstring."""
    return saved[R], saved[D]


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


# By Python


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
