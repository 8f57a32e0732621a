"""Models with every BatchNormalization exchanged: Keras's for numbabn's, and back."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from .layer import BatchNormalization

_KERAS = keras.layers.BatchNormalization
# What `convert` may change in the layers that it makes.
_CHANGES = ("renorm", "renorm_clipping", "renorm_momentum", "momentum", "epsilon")


def convert(
    model: Any,
    *,
    to_keras: bool = False,
    custom_objects: dict[str, Any] | None = None,
    **changes: Any,
) -> Any:
    """A copy of a model in which every `keras.layers.BatchNormalization` is numbabn's.

    Functional, sequential and nested models, and layers that wrap others, are made again from
    their configuration. In subclassed models and layers, what their constructors make is
    exchanged where it hangs on an attribute, or in a list or dictionary there. Names, weights,
    and the compile state with the optimizer's are kept; `model` stays as it is. Subclasses of
    Keras's layer stay too, as their computation is their own.

    Renorm's statistics are seeded where the old layer has none: `renorm_mean` from
    `moving_mean`, `renorm_stddev` and `moving_stddev` from ``sqrt(moving_variance + epsilon)``.

    Args:
        model: a `keras.Model` or `keras.Layer`.
        to_keras: the way back: numbabn's layers become Keras's.
        custom_objects: classes and functions, by name, that the configuration names and Keras
            does not know. The model's own layers, loss and metrics are known.
        **changes: arguments for the new layers: `renorm`, `renorm_clipping`,
            `renorm_momentum`, `momentum`, `epsilon`.

    Returns:
        The copy, of the class of `model`.

    Raises:
        TypeError: `model` is not a Keras layer, or there is no such change.
        ValueError: a layer that Keras has no equal of (a list of axes, or the shared reference
            of ``renorm_momentum=None``), or one that cannot be exchanged.

    >>> import keras
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization(name="bn")])
    >>> convert(model, renorm=True, renorm_clipping={"rmax": 3.0}).get_layer("bn").renorm
    True
    """
    if not isinstance(model, keras.Layer):
        raise TypeError(f"model must be a keras.Model or a Layer, got {type(model).__name__}")
    for name in changes:
        if name not in _CHANGES:
            raise TypeError(
                f"convert has no argument {name!r}; what it can change is {', '.join(_CHANGES)}"
            )
    exchange = _Exchange(
        to_keras, changes, {**_objects_of(model), **(custom_objects or {})}, _without_build(model)
    )
    copy = exchange.layer(model) if exchange.takes(model) else exchange.copy(model)
    exchange.inside(copy)
    _match_layers(model, copy)
    _build_unbuilt(model, copy)
    _copy_state(model, copy)
    if isinstance(model, keras.Model) and model.compiled:
        _copy_compiled(model, copy, exchange.custom_objects)
    return copy


class _Exchange:
    """Which layers are exchanged, and how one is made of another."""

    def __init__(
        self,
        to_keras: bool,
        changes: dict[str, Any],
        custom_objects: dict[str, Any],
        without_build: set[str],
    ) -> None:
        self.sources = (BatchNormalization,) if to_keras else (_KERAS, BatchNormalization)
        self.target = _KERAS if to_keras else BatchNormalization
        self.changes = changes
        self.custom_objects = custom_objects
        self.without_build = without_build

    def takes(self, layer: Any) -> bool:
        """Whether `layer` is one to be exchanged, and no subclass."""
        return type(layer) in self.sources

    def config(self, config: dict[str, Any]) -> dict[str, Any]:
        """The configuration of the new layer from that of the old one."""
        # Limits that are Variables or functions are not for a configuration: see `limits`.
        changes = {name: each for name, each in self.changes.items() if name != "renorm_clipping"}
        config = {**config, **changes}
        if self.target is _KERAS:
            if isinstance(config["axis"], (list, tuple)):
                if len(config["axis"]) > 1:
                    raise ValueError(
                        f"{config['name']} cannot become Keras's: it has axis={config['axis']}, "
                        "and keras.layers.BatchNormalization takes one axis"
                    )
                config["axis"] = config["axis"][0]
            if config["renorm_momentum"] is None:
                if config["renorm"]:
                    raise ValueError(
                        f"{config['name']} cannot become Keras's: it has renorm_momentum=None, "
                        "which keras.layers.BatchNormalization lacks; pass renorm_momentum=0.99 "
                        "for statistics of renorm's own, or renorm=False"
                    )
                config["renorm_momentum"] = 0.99
        return config

    def limits(self, layer: Any) -> None:
        """Put the limits that were asked for into a new layer."""
        if "renorm_clipping" in self.changes and type(layer) is self.target:
            layer.renorm_clipping = self.changes["renorm_clipping"]

    def layer(self, old: Any) -> Any:
        """A new layer in place of `old`, built if `old` is."""
        new = self.target.from_config(self.config(old.get_config()))
        if old.built:
            new.build_from_config(old.get_build_config())
        self.limits(new)
        return new

    def copy(self, layer: Any) -> Any:
        """`layer` made again from its configuration, with the exchanged ones in it."""
        serialized = keras.saving.serialize_keras_object(layer)
        # Compiled at the end: the optimizer asks for the final variables.
        serialized.pop("compile_config", None)
        copy = keras.saving.deserialize_keras_object(
            self._rewritten(serialized),
            custom_objects=self.custom_objects,
            # Code in a configuration is executed where the layer has that code already.
            safe_mode=not any(isinstance(each, keras.layers.Lambda) for each in _layers(layer)),
        )
        for each in copy._flatten_layers():
            self.limits(each)
        return copy

    def _rewritten(self, serialized: Any) -> Any:
        if isinstance(serialized, (list, tuple)):
            return type(serialized)(self._rewritten(each) for each in serialized)
        if not isinstance(serialized, dict):
            return serialized
        names = (serialized.get("module"), serialized.get("class_name"))
        if any(names == _names(source) for source in self.sources):
            new = self.target()
            wrapper = keras.saving.serialize_keras_object(new)
            wrapper.pop("build_config", None)
            wrapper["config"] = self.config(serialized["config"])
            return {**wrapper, **{
                name: each for name, each in serialized.items()
                if name not in ("module", "class_name", "registered_name", "config")
            }}  # fmt: skip
        if serialized.get("registered_name") in self.without_build:
            serialized = {name: each for name, each in serialized.items() if name != "build_config"}
        return {name: self._rewritten(each) for name, each in serialized.items()}

    def inside(self, parent: Any) -> None:
        """Exchange, in place, the layers that constructors have made inside `parent`."""
        for child in list(parent._layers):
            if self.takes(child) and type(child) is not self.target:
                _replace(parent, child, self.layer(child))
            elif _is_graph(child) and any(
                self.takes(each) and type(each) is not self.target
                for each in child._flatten_layers()
            ):
                # Its nodes hold on to its layers: the whole is made again.
                new = self.copy(child)
                self.inside(new)
                _replace(parent, child, new)
            else:
                self.inside(child)


def _names(layer: type) -> tuple[str, str]:
    """How a serialized configuration names a class."""
    if layer is _KERAS:
        return "keras.layers", "BatchNormalization"
    return layer.__module__, layer.__name__


def _layers(layer: Any) -> list[Any]:
    """A layer and all that are in it."""
    return list(layer._flatten_layers())


def _is_graph(layer: Any) -> bool:
    """Whether `layer` is a functional or sequential model."""
    return isinstance(layer, keras.Sequential) or hasattr(layer, "operations")


def _replace(parent: Any, old: Any, new: Any) -> None:
    """Put `new` where `parent` has `old`: on an attribute, or in a list or dictionary there."""
    found = False
    # Built layers take no new ones; the same number in the same order is no danger.
    parent._tracker.unlock()
    parent._tracker.replace_tracked_value("layers", old, new)
    for name, value in list(_attributes(parent)):
        if value is old:
            setattr(parent, name, new)
            found = True
        elif isinstance(value, (list, dict)) and name != "_layers":
            keys = range(len(value)) if isinstance(value, list) else list(value)
            for key in keys:
                if value[key] is old:
                    value[key] = new
                    found = True
    if parent.built:
        parent._tracker.lock()
    if not found:
        raise ValueError(
            f"{old.name} in {type(parent).__name__} {parent.name!r} cannot be exchanged: it is "
            "neither an attribute nor in a list or dictionary that is one"
        )


def _attributes(layer: Any) -> Iterator[tuple[str, Any]]:
    yield from vars(layer).items()
    # torch keeps modules in a place of their own.
    yield from vars(layer).get("_modules", {}).items()


def _objects_of(model: Any) -> dict[str, Any]:
    """The classes and functions that the configuration of `model` names, by name."""
    found: list[Any] = [type(layer) for layer in model._flatten_layers()]
    if isinstance(model, keras.Model) and model.compiled:
        for each in keras.tree.flatten(model._compile_config.config):
            if inspect.isfunction(each):
                found.append(each)
            elif hasattr(each, "get_config"):
                found.append(type(each))
    own = [each for each in found if each.__module__.split(".")[0] not in ("keras", "numbabn")]
    return {keras.saving.get_registered_name(each): each for each in own}


def _without_build(model: Any) -> set[str]:
    """The names of classes whose layers are built in their call: Keras warns of such a build."""
    return {
        keras.saving.get_registered_name(type(layer))
        for layer in model._flatten_layers()
        if layer._layers and type(layer).build is keras.Layer.build
    }


def _match_layers(model: Any, copy: Any) -> None:
    """Give the layers of `copy` the names of those of `model`; raise unless they correspond."""
    layers = [each._flatten_layers() for each in (model, copy)]
    kinds = [[type(layer).__name__ for layer in each] for each in layers]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"{type(model).__name__} {model.name!r} is not made again by its configuration: it "
            f"has the layers {kinds[0]}, its copy {kinds[1]} (a layer that two nested models "
            "share, or one made after the constructor?)"
        )
    for old, new in zip(*layers, strict=True):
        # Constructors number the layers that they make anew.
        if new.name != old.name:
            new.name = old.name


def _build_unbuilt(model: Any, copy: Any) -> None:
    """Make the weights of those layers that their parents do not make."""
    for old, new in zip(model._flatten_layers(), copy._flatten_layers(), strict=True):
        if old.built and not new.built and not new._layers:
            new.build_from_config(old.get_build_config())


def _normalizations(model: Any) -> list[Any]:
    return [each for each in model._flatten_layers() if type(each) in (_KERAS, BatchNormalization)]


def _copy_state(model: Any, copy: Any) -> None:
    """Give `copy` the weights and the states of random generators of `model`."""
    # Copies: JAX gives the memory of what it trains away.
    others: list[list[Any]] = []
    for each in (model, copy):
        own = {id(weight) for layer in _normalizations(each) for weight in layer.weights}
        others.append([each for each in each.variables if id(each) not in own])
    old, new = others
    if [tuple(each.shape) for each in old] != [tuple(each.shape) for each in new]:
        raise ValueError(
            f"the weights of {type(model).__name__} {model.name!r} cannot be copied: it has "
            f"{len(old)}, its copy {len(new)} (is it built in its call only?)"
        )
    for source, target in zip(old, new, strict=True):
        target.assign(ops.copy(source.value))
    for before, after in zip(_normalizations(model), _normalizations(copy), strict=True):
        if before.built:
            _copy_normalization(before, after)


def _copy_normalization(old: Any, new: Any) -> None:
    values = {weight.name: weight.value for weight in old.weights}
    stddev = ops.sqrt(values["moving_variance"] + old.epsilon)
    seeds = {
        "renorm_mean": values["moving_mean"],
        "renorm_stddev": stddev,
        "moving_stddev": stddev,
    }
    for weight in new.weights:
        weight.assign(ops.copy({**seeds, **values}[weight.name]))


def _copy_compiled(model: Any, copy: Any, custom_objects: dict[str, Any]) -> None:
    with keras.saving.custom_object_scope(custom_objects):
        copy.compile_from_config(model.get_compile_config())
    old, new = getattr(model, "optimizer", None), getattr(copy, "optimizer", None)
    if old is None or new is None or not old.built:
        return
    if not new.built:
        new.build(copy.trainable_variables)
    for source, target in zip(old.variables, new.variables, strict=True):
        target.assign(ops.copy(source.value))
