"""The layer over arrays: parameters, moving statistics, and which mode a call runs in."""

from __future__ import annotations

import os
from math import isfinite
from typing import Any

import numpy as np

from .arrays import Array, Described
from .arrays.numpy import HOST
from .checks import check_floats, checked_setting
from .files import read_weights, write_weights
from .functional import Saved, batch_norm_backward, normalize_backward, normalized, train
from .layout import Axis, layout_of, plain_axis
from .outputs import KeptOutputs
from .renorm import RenormClipping
from .statistics import MovingStatistics
from .targets import device_place, launchers_of, library_of, to_host

_TRAINABLE = ("gamma", "beta")
_ONES = ("gamma", "moving_variance", "moving_stddev", "renorm_stddev")


def _parameter_dtype(dtype: Any) -> np.dtype[Any]:
    resolved = np.dtype(dtype)
    if resolved not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise TypeError(f"dtype must be float32 or float64, got {resolved.name}")
    return resolved


def _weight(name: str) -> property:
    def get(self: BatchNormalization) -> Array | None:
        return self._weights.get(name)

    def set(self: BatchNormalization, values: Any) -> None:
        if name not in self._weights:
            reason = "has none" if name not in self._names() else "is not built yet"
            raise AttributeError(f"{name} cannot be set: the layer {reason}")
        library = self._place.library
        given = to_host(values) if library is HOST.library else values
        source = library.assignable(given, name, self._weights[name])
        new = library.empty(source.shape, source.dtype, source)
        launchers_of(library).copy(source, new)
        self._weights = {**self._weights, name: library.array(new)}

    return property(get, set, doc=f"{name}, one value a channel; None where there is none.")


class BatchNormalization:
    """Batch normalization over arrays, with parameters and moving statistics of its own.

    In training, ``y = gamma · (x̂ · r + d) + beta`` as :func:`numbabn.batch_norm_forward`,
    and the moving statistics move: ``moving · momentum + batch · (1 − momentum)``. A channel
    whose mask is off everywhere keeps its moving statistics. In inference the moving
    statistics normalize, as :func:`numbabn.normalize`.

    With `renorm`, the batch is corrected against a reference (Ioffe 2017, arXiv 1702.03275):

    - `renorm_momentum` a number: against `renorm_mean` and `renorm_stddev`, which move by
      it; `moving_mean` and `moving_stddev` move by `momentum`, and ``moving_variance =
      max(moving_stddev² − epsilon, 0)``. This is how Keras 3 does it.
    - `renorm_momentum` None: against `moving_mean` and ``sqrt(moving_variance + epsilon)``;
      no other statistics exist.

    Args:
        axis: the channel axis, or a list of them; negative ones count from the last.
        momentum: of the moving statistics, in [0, 1].
        epsilon: added to the variance, at least 0. With 0, a variance of 0 divides by zero.
        center, scale: whether there is a `beta`, a `gamma`.
        renorm: whether to correct the batch's statistics against moving ones.
        renorm_clipping: a :class:`numbabn.RenormClipping`, a dictionary with keys among
            rmin, rmax and dmax, or None for no limits. May be replaced between steps.
        renorm_momentum: of the reference, in [0, 1]; None to share the moving statistics.
        dtype: of the parameters, "float32" or "float64"; None follows the first input:
            float64 for float64, float32 for all others.
        reuse_outputs: whether y and dx are written into arrays that the layer keeps; see below.
        skip_nonfinite: whether a channel's moving statistics stay as they were where the batch's
            are infinite or NaN, as after a NaN in x that no mask hides. y is NaN there anyway.

    Attributes:
        gamma, beta, moving_mean, moving_variance, moving_stddev, renorm_mean,
        renorm_stddev: arrays, one value a channel; None where the layer has none, and
            before the first call or :meth:`build`.
        weights: all of them that exist, name to array, in Keras's order. On a device, training
            changes the moving statistics in place, so that a CUDA graph can be captured.
        gradients: what the last :meth:`backward` found for gamma and beta, by name.
        trainable: False to run in inference mode whatever `training` says.

    The layer computes where its weights are: where its first input was, or where :meth:`to`
    moved them. On a device nothing that it does waits for the device, apart from moving,
    saving and pickling; a copy or a pickle of the layer has its weights in NumPy.

    Making a large array takes up to as long as computing what goes into it. With
    `reuse_outputs` the last y and the last dx are written again, where x has the shape, dtype
    and memory order that it had for them (and on a device the stream):

    - y is the layer's own memory until its next call, and dx until its next :meth:`backward`.
      Copy what is to live longer.
    - A layer that was given y reads it again in its own `backward`: call that before this
      layer is called again, in inference too.
    - Threads are not to call such a layer at the same time. A CUDA graph writes where it was
      captured to: hold on to y and dx for as long as it is replayed.

    Raises:
        TypeError: an argument of a wrong type.
        ValueError: an argument out of range.

    >>> import numpy as np
    >>> layer = BatchNormalization(momentum=0.9, renorm=True, renorm_clipping={"rmax": 3})
    >>> x = np.random.default_rng(0).normal(5.0, 2.0, (32, 4)).astype(np.float32)
    >>> y = layer(x, training=True)
    >>> dx = layer.backward(np.ones_like(y))
    >>> sorted(layer.gradients), layer.moving_mean.dtype, list(layer.weights)[:2]
    (['beta', 'gamma'], dtype('float32'), ['gamma', 'beta'])
    """

    gamma = _weight("gamma")
    beta = _weight("beta")
    moving_mean = _weight("moving_mean")
    moving_variance = _weight("moving_variance")
    moving_stddev = _weight("moving_stddev")
    renorm_mean = _weight("renorm_mean")
    renorm_stddev = _weight("renorm_stddev")

    def __init__(
        self,
        axis: Axis = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        *,
        renorm: bool = False,
        renorm_clipping: RenormClipping | dict[str, float] | None = None,
        renorm_momentum: float | None = 0.99,
        dtype: Any = None,
        reuse_outputs: bool = False,
        skip_nonfinite: bool = False,
    ) -> None:
        plain = plain_axis(axis)
        self.axis = plain if isinstance(plain, int) else list(plain)
        self.momentum = momentum
        self.epsilon = epsilon
        self.center = bool(center)
        self.scale = bool(scale)
        self.renorm = bool(renorm)
        self.renorm_clipping = renorm_clipping
        self.renorm_momentum = renorm_momentum
        self.dtype = None if dtype is None else _parameter_dtype(dtype)
        self.reuse_outputs = bool(reuse_outputs)
        self.skip_nonfinite = bool(skip_nonfinite)
        self.trainable = True
        self.gradients: dict[str, Array] = {}
        self._weights: dict[str, Array] = {}
        self._place = HOST  # where they are
        # The last training call: its input, and what its backward needs.
        self._taped: tuple[Array, Saved | None] | None = None
        # With `reuse_outputs`, "y" and "dx".
        self._outputs = KeptOutputs()

    def __setattr__(self, name: str, value: Any) -> None:
        # As in the constructor, whenever one is changed.
        super().__setattr__(name, checked_setting(name, value))

    @property
    def renorm_clipping(self) -> RenormClipping:
        """The limits of the correction."""
        return self._renorm_clipping

    @renorm_clipping.setter
    def renorm_clipping(self, clipping: RenormClipping | dict[str, float] | None) -> None:
        self._renorm_clipping = RenormClipping.of(clipping)

    @property
    def weights(self) -> dict[str, Array]:
        """The parameters and moving statistics that exist, by name, in Keras's order."""
        return dict(self._weights)

    def _names(self) -> list[str]:
        names = [name for name, exists in (("gamma", self.scale), ("beta", self.center)) if exists]
        return [*names, *self._moving({}).names]

    def _moving(self, arrays: dict[str, Array]) -> MovingStatistics:
        """What a training step moves."""
        return MovingStatistics(
            arrays, self.momentum, self.renorm, self.renorm_momentum, self.renorm_clipping,
            self.skip_nonfinite,
            moved=arrays if self._place.library.moves_in_place else None,
        )  # fmt: skip

    def build(self, shape: int | tuple[int, ...], dtype: Any = None) -> None:
        """Make the parameters, fresh: ones for gamma and what is a spread, zeros else.

        Args:
            shape: the number of channels; for a list of several axes, the shape of an
                input with 1 on every reduced axis.
            dtype: the parameters' dtype where the layer was made without one.
        """
        dtype = self.dtype or _parameter_dtype(dtype or np.float32)
        self._weights = {
            name: self._place.array(np.full(shape, 1.0 if name in _ONES else 0.0, dtype))
            for name in self._names()
        }

    def to(self, device: str | int, library: str | None = None) -> BatchNormalization:
        """Move the weights, or say where they are to be made; returns the layer.

        Args:
            device: "cpu", or "cuda", "cuda:1" or the device's number.
            library: whose arrays they are to be there: "torch", "cupy" or "numba". None for
                that of the weights if they are on a device, or else the first of these that
                has been imported.

        Raises:
            TypeError, ValueError: there is no such device or library.
            RuntimeError: nothing can run on a device here; it says what to install.
        """
        place = HOST if device == "cpu" else device_place(device, library, self._place)
        # All of them before any is put in place.
        weights = {name: place.array(to_host(values)) for name, values in self._weights.items()}
        self.__dict__.update(
            _weights=weights, _place=place, gradients={}, _taped=None, _outputs=KeptOutputs()
        )
        return self

    def __call__(self, x: Array, training: bool = False, mask: Array | None = None) -> Array:
        """Normalize `x`; with `training`, by its own statistics, which the moving ones follow.

        Args:
            x: float16, bfloat16, float32 or float64, in any memory order; where the weights are.
            training: whether this is a training step. A layer that is not `trainable` runs
                in inference mode all the same.
            mask: as for :func:`numbabn.batch_statistics`; used in training only.

        Returns:
            y, of the shape, dtype and memory order of `x`; with `reuse_outputs` in memory that
            the next call may write again.

        Raises:
            TypeError: a wrong type or dtype.
            ValueError: a shape that does not fit. The layer stays as it was.
        """
        if not self._weights:
            return self._first_call(x, training, mask)
        described = self._checked(x)
        inputs = {"x": x, "mask": mask}
        if not (training and self.trainable):
            y = normalized(
                x, self.moving_mean, self.moving_variance, self.gamma, self.beta,
                axis=self.axis, epsilon=self.epsilon,
                out=self._reusable("y", described, {"x": x}),
            )  # fmt: skip
            y = self._kept("y", described, y)
            if training:
                self._taped = (x, None)
            return y
        y, saved, moved = train(
            x, self.gamma, self.beta, self._moving(self._weights),
            axis=self.axis, mask=mask, epsilon=self.epsilon,
            out=self._reusable("y", described, inputs),
        )  # fmt: skip
        y = self._kept("y", described, y)
        # In one call: an interrupt leaves all of the layer's state as it was, or none.
        self.__dict__.update(_weights={**self._weights, **moved}, _taped=(x, saved))
        return y

    def _first_call(self, x: Array, training: bool, mask: Array | None) -> Array:
        """Make the parameters after `x`, and keep them if the call succeeds."""
        described = self._described(x)
        names = ("_weights", "_place", "_outputs", "_taped")
        before = {name: getattr(self, name) for name in names} | {"_outputs": KeptOutputs()}
        if self._place == HOST:
            self._place = library_of(x).place(described)
        wide = np.float64 if described.dtype.name == "float64" else np.float32
        try:
            self.build(layout_of(described, self.axis).channel_shape, wide)
            return self(x, training, mask)
        except BaseException:
            # An interrupt too: a layer that has not run is not built. It goes on to the caller.
            self.__dict__.update(before)
            raise

    def _described(self, x: Array) -> Described:
        """What is known of `x`; raises if it cannot be read."""
        described = library_of(x).describe(x, "x")
        check_floats(described, "x")
        return described

    def _checked(self, x: Array) -> Described:
        """The same; raises what is wrong with `x`, before an operation blames a weight for it."""
        described = self._described(x)
        if library_of(x).place(described) != self._place:
            raise TypeError(
                f"the layer's weights are {self._place} and x is elsewhere ({type(x).__name__}): "
                "move the layer with to()"
            )
        found = layout_of(described, self.axis).channel_shape
        built = tuple(self._weights["moving_mean"].shape)
        if found != built:
            raise ValueError(
                f"x must have channels of shape {built} along axis={self.axis}, as the layer "
                f"was built for, got x of shape {described.shape}"
            )
        return described

    def _reusable(self, name: str, x: Described, inputs: dict[str, Array | None]) -> Array | None:
        """Where to write an output: with `reuse_outputs` over an earlier one, where it fits."""
        if not self.reuse_outputs:
            return None
        return self._outputs.fitting(name, self._form(x), inputs)

    def _kept(self, name: str, x: Described, output: Array) -> Array:
        """`output`; with `reuse_outputs` it is kept, for the next input like `x`."""
        if not self.reuse_outputs:
            return output
        return self._outputs.keep(name, self._form(x), output)

    def _form(self, x: Described) -> tuple[Any, ...]:
        """What inputs have in common whose outputs can be of the same memory."""
        # Libraries free memory, and name it to others, by the stream that it was made on.
        return layout_of(x, self.axis), x.dtype, self._place.library.stream(x)

    def backward(self, dy: Array) -> Array:
        """The gradient of the last training call; fills `gradients` for gamma and beta.

        Args:
            dy: the gradient with respect to that call's result, of its shape and dtype.

        Returns:
            dx, as :func:`numbabn.batch_norm_backward`; where the layer was not `trainable`,
            as :func:`numbabn.normalize_backward`, and `gradients` is empty. With
            `reuse_outputs` in memory that the next backward may write again.

        Raises:
            RuntimeError: there was no training call.
            TypeError, ValueError: `dy` does not fit.
        """
        if self._taped is None:
            raise RuntimeError("backward needs a training call before it: layer(x, training=True)")
        x, saved = self._taped
        described = self._described(x)
        inputs = {"x": x, "dy": dy, "mask": saved and saved.mask}
        out = self._reusable("dx", described, inputs)
        gradients = {}
        if saved is None:
            dx, _, _ = normalize_backward(
                dy, x, self.moving_mean, self.moving_variance, self.gamma,
                axis=self.axis, epsilon=self.epsilon, out=out,
            )  # fmt: skip
        else:
            dx, dgamma, dbeta = batch_norm_backward(dy, x, saved, out=out)
            found = {"gamma": dgamma, "beta": dbeta}
            gradients = {name: found[name] for name in _TRAINABLE if name in self._weights}
        dx = self._kept("dx", described, dx)
        self.gradients = gradients
        return dx

    def get_config(self) -> dict[str, Any]:
        """The arguments that make such a layer again; JSON-able (infinite limits are left out)."""
        clipping = self.renorm_clipping
        limits = zip(("rmin", "rmax", "dmax"), clipping.limits, strict=True)
        return {
            "axis": self.axis,
            "momentum": self.momentum,
            "epsilon": self.epsilon,
            "center": self.center,
            "scale": self.scale,
            "renorm": self.renorm,
            "renorm_clipping": {name: limit for name, limit in limits if isfinite(limit)},
            "renorm_momentum": self.renorm_momentum,
            "dtype": None if self.dtype is None else self.dtype.name,
            "reuse_outputs": self.reuse_outputs,
            "skip_nonfinite": self.skip_nonfinite,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> BatchNormalization:
        """A new layer, without weights, from what `get_config` gave."""
        return cls(**config)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the weights to an npz file, under their names.

        The file is there whole or not at all: one that was there before stays where writing fails.

        Raises:
            RuntimeError: there are none yet.
            OSError: the file cannot be written.
        """
        if not self._weights:
            raise RuntimeError("the layer has no weights to save: call it or build it first")
        write_weights(path, {name: to_host(each) for name, each in self._weights.items()})

    def load(self, path: str | os.PathLike[str]) -> BatchNormalization:
        """Take the weights from an npz file that `save` wrote; returns the layer.

        The file may come from anyone: nothing in it is executed, and one that is of something else,
        cut off, or of other sizes than it says is refused before it is read whole.

        Raises:
            OSError: the file cannot be read.
            ValueError: the file holds other weights, or of other shapes, than the layer; or it is
                no file of weights. The layer stays as it was.
        """
        names = self._names()
        shapes = {name: tuple(weight.shape) for name, weight in self._weights.items()}
        loaded = read_weights(path, names, shapes)
        self._weights = {
            name: self._place.array(loaded[name].astype(self.dtype or loaded[name].dtype))
            for name in names
        }
        return self

    def __getstate__(self) -> dict[str, Any]:
        # The input of the last call can be large, and belongs to the caller; the kept outputs
        # are as large. A device may not be there where the layer comes back.
        arrays = {
            attribute: {name: to_host(each) for name, each in getattr(self, attribute).items()}
            for attribute in ("_weights", "gradients")
        }
        return {
            **self.__dict__,
            **arrays,
            "_taped": None,
            "_outputs": KeptOutputs(),
            "_place": HOST,
        }

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.get_config().items())
        return f"BatchNormalization({arguments})"
