"""The one wiring of gradients: `keras.ops.custom_gradient` around what bridges run.

`apply` runs a function of a layer and makes its result differentiable. How differs with what
frameworks make of `custom_gradient`:

- On JAX, and on TensorFlow where Python computes, the forward runs inside the decorated function,
  every tensor is an argument of it, and all results come out of it. One that ran outside would be
  closed over, and a tracer of the past in `jax.grad` of `jax.jit`, in `jax.checkpoint`, in `scan`.
- On torch it runs before. The decorator takes one result, saves every argument, and runs a function
  that raises a second time. So what changes between a forward and its backward goes in as a clone:
  an optimizer may step in between, as it does for GANs. In programs that torch makes kernels are
  an operator, which has its own gradient (`numbabn.tensors.operators`).
- On TensorFlow, kernels are an operator, whose gradient is registered once. `custom_gradient`
  registers one for each trace, for good, and with it keeps the graph that was traced.

A gradient is a kernel's too. Differentiated in turn it is the function's expression (`functions`).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

import keras
from keras import ops

from ..embedded.operations import OPERANDS, ROWS
from ..interrupts import Uninterrupted
from ..tensors.late import Late
from .functions import Function

Tensors = dict[str, Any]


def apply(
    bridge: ModuleType, function: Function, inputs: Mapping[str, Any], attributes: Any
) -> Tensors:
    """Run `function` differentiably.

    Args:
        inputs: the operands of `function.forward` that are there, by name: tensors, or `Late`.

    Returns:
        The results of `function.forward` by name, but for those that only the backward reads.
        That which is `function.result` is differentiable with respect to `function.arguments`.
    """
    results = _WIRINGS[bridge.WIRING](bridge, function, inputs, attributes)
    return {name: value for name, value in results.items() if name not in function.residuals}


def _none(
    bridge: ModuleType, function: Function, inputs: Mapping[str, Any], attributes: Any
) -> Tensors:
    """The forward alone, where Keras trains nothing."""
    results: Tensors = bridge.run(function.forward, inputs, attributes)
    return results


def _inside(
    bridge: ModuleType, function: Function, inputs: Mapping[str, Any], attributes: Any
) -> Tensors:
    """The forward inside the decorated function."""
    late = {name: value for name, value in inputs.items() if isinstance(value, Late)}
    tensors = bridge.prepared(
        {name: value for name, value in inputs.items() if name not in late}, function.arguments
    )
    wanted = tuple("d" + name for name in function.arguments if name in tensors)
    names: list[str] = []

    @ops.custom_gradient
    def differentiable(*values: Any) -> Any:
        given = dict(zip(tensors, values, strict=True))
        results = _forward(bridge, function, given, late, attributes)
        names[:] = results
        everything = {**given, **results}

        def gradient(*gradients: Any) -> Any:
            # JAX gives those of all results as one tuple.
            dy = keras.tree.flatten(gradients)[names.index(function.result)]
            kept = {**function.kept(everything), "d" + function.result: dy}
            found = _backward(bridge, function, kept, attributes, wanted)
            # As JAX has it: of the dtype of what it is the gradient of.
            return tuple(
                _as(given[name], found["d" + name]) if "d" + name in found else None
                for name in given
            )

        return tuple(results.values()), gradient

    return dict(zip(names, differentiable(*tensors.values()), strict=True))


def _before(
    bridge: ModuleType, function: Function, inputs: Mapping[str, Any], attributes: Any
) -> Tensors:
    """The forward before the decorated function."""
    if bridge.in_program():
        in_program: Tensors = bridge.call_in_program(function.forward, inputs, attributes)
        return in_program
    where = bridge.transform_of(inputs)
    if where and function.residuals:
        raise bridge.refusal(where)
    if where:
        # All of it is a result: an expression serves, which every transform knows.
        return {function.result: function.y(inputs, attributes, None)}
    results: Tensors = bridge.run(function.forward, inputs, attributes)
    arguments = {name: inputs[name] for name in function.arguments if name in inputs}
    wanted = tuple("d" + name for name in arguments if bridge.is_wanted(arguments[name]))
    if not wanted:
        return results
    kept = {**arguments, **function.kept({**inputs, **results})}
    # A change of what is large is noticed: all of these are saved.
    tensors = {
        name: bridge.cloned(value) if OPERANDS[name] == ROWS else value
        for name, value in kept.items()
        if bridge.is_tensor(value)
    }
    others = {name: value for name, value in kept.items() if name not in tensors}
    names = tuple(tensors)

    @ops.custom_gradient
    def differentiable(*_: Any) -> Any:
        def gradient(*saved: Any, upstream: Any) -> Any:
            named = dict(zip(names, saved, strict=True))
            inputs = {**function.kept({**named, **others}), "d" + function.result: upstream}
            found = _backward(bridge, function, inputs, attributes, wanted)
            return tuple(found.get("d" + name) for name in names)

        # Not held by the graph that it has: that would be a circle.
        return results.pop(function.result), gradient

    # Keras's decorator would take an interrupt in there for a function that returns no gradient.
    with Uninterrupted():
        y = differentiable(*tensors.values())
    return {function.result: y, **results}


class Node(NamedTuple):
    """What the gradient of an operator has to know of it.

    wanted: the results of the backward; None where the operator is the forward
    """

    function: Function
    attributes: Any
    wanted: tuple[str, ...] | None = None


def _registered(
    bridge: ModuleType, function: Function, inputs: Mapping[str, Any], attributes: Any
) -> Tensors:
    """The operator's own gradient, where it serves."""
    if not bridge.is_operator(function.forward, inputs, attributes):
        return _inside(bridge, function, inputs, attributes)
    bridge.register_gradient(gradient_of_node)
    results: Tensors = bridge.run(
        function.forward, inputs, attributes, context=Node(function, attributes)
    )
    return results


def gradient_of_node(
    bridge: ModuleType,
    node: Node,
    inputs: Tensors,
    results: Tensors,
    gradients: Tensors,
    wanted: tuple[str, ...],
) -> Tensors:
    """The gradients, by name, of an operator's inputs that are among `wanted`.

    gradients: with respect to `results`, None where there is none
    """
    function, attributes = node.function, node.attributes
    if node.wanted is not None:
        return _second_of_node(bridge, node, inputs, gradients)
    dy = gradients[function.result]
    names = tuple(name for name in function.arguments if name in wanted)
    if dy is None or not names:
        return {}
    kept = {**function.kept({**inputs, **results}), "d" + function.result: dy}
    found: Tensors = {}
    for group in _groups(bridge, function, tuple("d" + name for name in names)):
        of_group = Node(function, attributes, group)
        found |= bridge.run(function.backward, kept, attributes, group, context=of_group)
    return {name: _as(inputs[name], found["d" + name]) for name in names}


def _as(tensor: Any, gradient: Any) -> Any:
    """A gradient in the dtype of the tensor whose it is."""
    same = gradient.dtype == tensor.dtype
    return gradient if same else ops.cast(gradient, tensor.dtype)


def _second_of_node(bridge: ModuleType, node: Node, inputs: Tensors, gradients: Tensors) -> Tensors:
    """`gradient_of_node` of a backward."""
    # One that reads nothing else of the size of x has dy in its place.
    names = {name: "dy" if name == "x" and "dy" not in inputs else name for name in inputs}
    given = {names[name]: value for name, value in inputs.items()}
    found = bridge.pulled_back(
        _expression(bridge, node.function, node.attributes, node.wanted or ()),
        given,
        _differentiated(node.function, given),
        {name: value for name, value in gradients.items() if value is not None},
    )
    return {name: found[as_] for name, as_ in names.items() if as_ in found}


_WIRINGS = {"none": _none, "inside": _inside, "before": _before, "registered": _registered}


def _groups(
    bridge: ModuleType, function: Function, wanted: tuple[str, ...]
) -> list[tuple[str, ...]]:
    """The results that are computed together."""
    if not (function.apart and bridge.leaves_out()):
        return [wanted]
    groups = [tuple(name for name in group if name in wanted) for group in function.apart]
    return [group for group in groups if group]


def _forward(
    bridge: ModuleType,
    function: Function,
    tensors: Tensors,
    late: Mapping[str, Late],
    attributes: Any,
) -> Tensors:
    def kernel(tensors: Tensors) -> Tensors:
        results: Tensors = bridge.run(function.forward, {**tensors, **late}, attributes)
        return results

    def expression(tensors: Tensors, results: Tensors) -> Tensors:
        corrections = _corrections(bridge, results, attributes)
        return {function.result: function.y(tensors, attributes, corrections)}

    found: Tensors = bridge.derived_as(kernel, expression, tensors, function.arguments)
    return found


def _backward(
    bridge: ModuleType,
    function: Function,
    tensors: Tensors,
    attributes: Any,
    wanted: tuple[str, ...],
) -> Tensors:
    """The gradients that are wanted, by name."""

    def kernel(tensors: Tensors) -> Tensors:
        found: Tensors = {}
        for group in _groups(bridge, function, wanted):
            found |= bridge.run(function.backward, tensors, attributes, group)
        return found

    whole = _expression(bridge, function, attributes, wanted)
    found: Tensors = bridge.derived_as(
        kernel, lambda tensors, _: whole(tensors), tensors, _differentiated(function, tensors)
    )
    return found


def _differentiated(function: Function, tensors: Tensors) -> tuple[str, ...]:
    """The operands of a backward that it is differentiated with respect to."""
    names = ("d" + function.result, *function.arguments)
    return tuple(name for name in names if name in tensors)


def _expression(
    bridge: ModuleType, function: Function, attributes: Any, wanted: tuple[str, ...]
) -> Any:
    """The gradients that are wanted, as an expression of tensors by name."""

    def expression(tensors: Tensors) -> Tensors:
        found = function.gradients(tensors, attributes, _corrections(bridge, tensors, attributes))
        return {name: found[name] for name in wanted}

    return expression


def _corrections(bridge: ModuleType, tensors: Tensors, attributes: Any) -> tuple[Any, Any] | None:
    """r and d of what a forward saved."""
    if not attributes.renorm or "saved" not in tensors:
        return None
    r, d = bridge.corrections(tensors["saved"])
    return ops.stop_gradient(r), ops.stop_gradient(d)
