"""Inside `jax.shard_map`: along which mesh axes tensors differ between devices."""

from typing import Any

import jax


def vary_alike(tensors, others):
    """Tensors, by name, as ones that differ between devices wherever any of them, or of
    `others`, does.

    A parameter that is the same everywhere has the sum of all devices' gradients: JAX takes it
    where the parameter begins to differ.
    """
    axes = _varying_axes((*tensors.values(), *others.values()))
    return {
        name: jax.lax.pcast(each, tuple(axes - _varying_axes((each,))), to="varying")
        for name, each in tensors.items()
    }


def varying(results, operands):
    """The types of results, which differ between devices wherever an operand does."""
    axes = _varying_axes(operands)
    if not axes:
        return list(results)
    sharding = jax.sharding.NamedSharding(
        jax.sharding.get_abstract_mesh(), jax.sharding.PartitionSpec()
    )
    varying = jax.sharding.ManualAxisType(varying=axes)
    return [
        jax.ShapeDtypeStruct(each.shape, each.dtype, sharding=sharding, manual_axis_type=varying)
        for each in results
    ]


def _varying_axes(operands):
    """The mesh axes that any operand differs along."""
    return frozenset[Any]().union(*(jax.typeof(each).manual_axis_type.varying for each in operands))
