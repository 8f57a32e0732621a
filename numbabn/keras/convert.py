"""Models with every BatchNormalization exchanged: Keras's for numbabn's, and back."""

from __future__ import annotations

import inspect
from typing import Any

import keras
from keras import ops

from ..channels import STATISTICS
from .layer import BatchNormalization

_KERAS = keras.layers.BatchNormalization
_BOTH = (_KERAS, BatchNormalization)
# What `convert` may change.
_CHANGES = ("renorm", "renorm_clipping", "renorm_momentum", "momentum", "epsilon")
# What differs between two layers of which one becomes the other, and what numbabn's has alone.
_SETTINGS = ("axis", *_CHANGES, "supports_jit")
_OWN = ("skip_nonfinite", "_bridge_name", "_clipping", "_reference")


def convert(
    model: Any,
    *,
    to_keras: bool = False,
    in_place: bool = False,
    custom_objects: dict[str, Any] | None = None,
    **changes: Any,
) -> Any:
    """A copy of a model in which every `keras.layers.BatchNormalization` is numbabn's.

    The copy is made from the model's configuration: by the constructors of classes of your own,
    with the arguments that they had. With `in_place` there is none: the layers of `model` itself
    become numbabn's, wherever they hang, and keep their weights; so any model can be converted.
    Names, weights, and the compile state with the optimizer's are kept. Subclasses of Keras's
    layer stay what they are, as their computation is their own.

    Renorm's statistics are seeded where the old layer has none: `renorm_mean` from
    `moving_mean`, `renorm_stddev` and `moving_stddev` from ``sqrt(moving_variance + epsilon)``.
    Limits that are Variables or functions are numbers in a copy, unless they are given anew.

    Args:
        model: a `keras.Model` or `keras.Layer`.
        to_keras: the way back: numbabn's layers become Keras's.
        in_place: to exchange the layers of `model` itself. What was compiled around it before
            (by `jax.jit`, `tf.function`, or another model's `fit`) does not notice.
        custom_objects: classes and functions, by name, that the configuration names and Keras
            does not know. The model's own layers, loss and metrics are known.
        **changes: arguments for the new layers: `renorm`, `renorm_clipping`,
            `renorm_momentum`, `momentum`, `epsilon`.

    Returns:
        The copy, of the class of `model`; with `in_place`, `model`.

    Raises:
        TypeError: `model` is not a Keras layer, or there is no such change.
        ValueError: a layer that Keras has no equal of (a list of axes, or the shared reference
            of ``renorm_momentum=None``), or a model that its configuration does not make again.
            `model` stays as it was.

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
    exchange = _Exchange(to_keras, changes)
    objects = {**_objects_of(model), **(custom_objects or {})}
    converted = model if in_place else _copied(model, objects)
    # All of them are found out before any is changed.
    found = [(layer, exchange.pattern(layer)) for layer in exchange.taken(converted)]
    for layer, pattern in found:
        _become(layer, pattern)
    if in_place:
        _forget_compiled(model)
    elif isinstance(model, keras.Model) and model.compiled:
        _copy_compiled(model, converted, objects)
    return converted


class _Exchange:
    """Which layers are exchanged, and what they become."""

    def __init__(self, to_keras: bool, changes: dict[str, Any]) -> None:
        self.sources = (BatchNormalization,) if to_keras else _BOTH
        self.target = _KERAS if to_keras else BatchNormalization
        self.changes = changes

    def taken(self, model: Any) -> list[Any]:
        """The layers of `model` to be exchanged; none of a subclass."""
        return [layer for layer in model._flatten_layers() if type(layer) in self.sources]

    def pattern(self, layer: Any) -> Any:
        """A new layer, without weights, like that which `layer` is to become."""
        # Limits that are Variables or functions are not for a configuration.
        changes = {name: each for name, each in self.changes.items() if name != "renorm_clipping"}
        config = {**layer.get_config(), **changes}
        if self.target is _KERAS:
            self._check_keras(config)
        pattern = self.target.from_config(config)
        if "renorm_clipping" in self.changes:
            pattern.renorm_clipping = self.changes["renorm_clipping"]
        elif self.target is type(layer):
            pattern.renorm_clipping = layer.renorm_clipping
        return pattern

    def _check_keras(self, config: dict[str, Any]) -> None:
        """Bring a configuration to what Keras's layer has; ValueError where it has not."""
        if isinstance(config["axis"], (list, tuple)):
            if len(config["axis"]) > 1:
                raise ValueError(
                    f"{config['name']} cannot become Keras's: it has axis={config['axis']}, "
                    "and keras.layers.BatchNormalization takes one axis"
                )
            config["axis"] = config["axis"][0]
        config.pop("skip_nonfinite", None)
        if config["renorm_momentum"] is None:
            if config["renorm"]:
                raise ValueError(
                    f"{config['name']} cannot become Keras's: it has renorm_momentum=None, "
                    "which keras.layers.BatchNormalization lacks; pass renorm_momentum=0.99 "
                    "for statistics of renorm's own, or renorm=False"
                )
            config["renorm_momentum"] = 0.99


def _become(layer: Any, pattern: Any) -> None:
    """Make of `layer` one of the class and the settings of `pattern`; its weights stay.

    The object stays too, and so does all that holds on to it: attributes, lists and tuples, the
    nodes of functional models, optimizers.
    """
    for name in ("renorm_clipping", *_OWN):
        vars(layer).pop(name, None)
    layer.__class__ = type(pattern)
    for name in (*_SETTINGS, *_OWN):
        if hasattr(pattern, name):
            setattr(layer, name, getattr(pattern, name))
    if layer.built:
        _match_renorm_statistics(layer)
    else:
        _build_by_class(layer)


def _match_renorm_statistics(layer: Any) -> None:
    """Have a built layer hold statistics of renorm's own, if it has such."""
    wanted = layer.renorm and layer.renorm_momentum is not None
    held = getattr(layer, "renorm_mean", None) is not None
    if held and not wanted:
        for name in STATISTICS[2:]:
            delattr(layer, name)
    if wanted and not held:
        stddev = ops.sqrt(layer.moving_variance.value + layer.epsilon)
        seeds = (stddev, layer.moving_mean.value, stddev)
        # A layer that is built takes no new weights otherwise.
        layer._tracker.unlock()
        with layer._open_name_scope():
            for name, seed in zip(STATISTICS[2:], seeds, strict=True):
                weight = layer.add_weight(
                    shape=seed.shape, name=name, initializer="zeros", trainable=False,
                    autocast=False,
                )  # fmt: skip
                weight.assign(ops.copy(seed))
                setattr(layer, name, weight)
        layer._tracker.lock()


def _build_by_class(layer: Any) -> None:
    """Have a layer that is not built yet be built by the class that it has now."""
    # Keras wraps the method when it makes a layer, and the wrapper holds on to the first one.
    wrapper = layer.build
    place = wrapper.__code__.co_freevars.index("original_build_method")
    wrapper.__closure__[place].cell_contents = type(layer).build.__get__(layer)


def _forget_compiled(model: Any) -> None:
    """Have models compile their steps anew."""
    for each in model._flatten_layers():
        if isinstance(each, keras.Model) and each.compiled:
            each.train_function = each.test_function = each.predict_function = None
            if each._compile_config.config["jit_compile"] == "auto":
                each.jit_compile = each._resolve_auto_jit_compile()
            else:
                each.jit_compile = each.jit_compile  # Keras warns where it cannot be.


def _copied(model: Any, objects: dict[str, Any]) -> Any:
    """`model` made again from its configuration, with its weights, and not compiled."""
    without_build = _without_build(model)
    try:
        serialized = keras.saving.serialize_keras_object(model)
        # Compiled at the end: the optimizer asks for the final variables.
        serialized.pop("compile_config", None)
        copy = keras.saving.deserialize_keras_object(
            _for_constructors(serialized, objects, without_build),
            custom_objects=objects,
            # Code in a configuration is executed where the layer has that code already.
            safe_mode=not any(
                isinstance(each, keras.layers.Lambda) for each in model._flatten_layers()
            ),
        )
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(
            f"{type(model).__name__} {model.name!r} cannot be made again from its configuration "
            "(a get_config of its own may help); numbabn.keras.convert(model, in_place=True) "
            f"exchanges the layers of the model itself. Keras says: {error}"
        ) from error
    _match(model, copy)
    _copy_weights(model, copy)
    return copy


def _for_constructors(serialized: Any, objects: dict[str, Any], without_build: set[str]) -> Any:
    """A configuration without what Keras adds to it and constructors do not take."""
    if isinstance(serialized, (list, tuple)):
        return type(serialized)(
            _for_constructors(each, objects, without_build) for each in serialized
        )
    if not isinstance(serialized, dict):
        return serialized
    name = serialized.get("registered_name")
    left_out = {"build_config"} if name in without_build else set()
    found = {
        key: _for_constructors(each, objects, without_build)
        for key, each in serialized.items()
        if key not in left_out
    }
    taken = _arguments(objects.get(name)) if isinstance(name, str) else None
    if taken is not None and isinstance(found.get("config"), dict):
        found["config"] = {
            key: each
            for key, each in found["config"].items()
            if key in taken or key not in ("name", "trainable", "dtype")
        }
    return found


def _arguments(made: Any) -> set[str] | None:
    """What a layer's constructor takes; None where it takes anything, or Keras does not call it."""
    if not (inspect.isclass(made) and issubclass(made, keras.Layer)):
        return None
    layer: Any = made
    if layer.from_config.__module__.split(".")[0] != "keras":
        return None
    taken = inspect.signature(made).parameters.values()
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in taken):
        return None
    return {each.name for each in taken}


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
        if not _builds(layer)
    }


def _builds(layer: Any) -> bool:
    """Whether `layer` makes weights when it is built, and not only when it is called."""
    return not layer._layers or type(layer).build is not keras.Layer.build


def _match(model: Any, copy: Any) -> None:
    """Build, name and freeze the layers of `copy` as those of `model`; they must correspond."""
    pairs = [(model, copy)]
    while pairs:
        old, new = pairs.pop()
        # Constructors number the layers that they make anew, and what was frozen later is not.
        if new.name != old.name:
            new.name = old.name
        if new.trainable != old.trainable:
            new.trainable = old.trainable
        # A constructor does not know what was converted before.
        if type(old) in _BOTH and (type(new), new.get_config()) != (type(old), old.get_config()):
            _become(new, type(old).from_config(old.get_config()))
        if old.built and not new.built and _builds(old) and old.get_build_config():
            new.build_from_config(old.get_build_config())
        kinds = [[type(layer).__name__ for layer in each._layers] for each in (old, new)]
        if kinds[0] != kinds[1]:
            raise ValueError(
                f"{type(old).__name__} {old.name!r} is not made again by its configuration: it "
                f"has the layers {kinds[0]}, its copy {kinds[1]}; numbabn.keras.convert(model, "
                "in_place=True) exchanges the layers of the model itself"
            )
        pairs += zip(old._layers, new._layers, strict=True)


def _copy_weights(model: Any, copy: Any) -> None:
    """Give `copy` the weights and the states of random generators of `model`."""
    shapes = [[tuple(each.shape) for each in layer.variables] for layer in (model, copy)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"the weights of {type(model).__name__} {model.name!r} cannot be copied: it has "
            f"{len(shapes[0])}, its copy {len(shapes[1])}; numbabn.keras.convert(model, "
            "in_place=True) exchanges the layers of the model itself"
        )
    for source, target in zip(model.variables, copy.variables, strict=True):
        # Copies: JAX gives the memory of what it trains away.
        target.assign(ops.copy(source.value))


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
