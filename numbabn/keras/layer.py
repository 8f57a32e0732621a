"""Keras's BatchNormalization layer, computed by numbabn."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from ..channels import STATISTICS
from ..checks import FLOATS, checked_setting
from ..embedded.operations import Attributes
from ..layout import Axis, channel_axes, plain_axis
from .assignment import assign_all, value_of
from .bridges import bridge_of
from .clipping import Clipping
from .functions import INFERENCE, TRAINING
from .gradient import apply


@keras.saving.register_keras_serializable(package="numbabn")
class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization`, computed by Numba kernels.

    In training, per channel, over the positions S whose mask is on (all without a mask):

        y = gamma · (x̂ · r + d) + beta          x̂ = (x − mean) / sqrt(variance + epsilon)
        mean = Σ_S x / n       variance = Σ_S (x − mean)² / n       n = |S|
        moving = moving · momentum + batch · (1 − momentum)         r = 1, d = 0 without renorm

    and in inference (``training=False``, or a layer that is not `trainable`) the moving
    statistics take the place of mean and variance. With `renorm`,

        r = clip(s / s_ref, rmin, rmax)         s = sqrt(variance + epsilon)
        d = clip((mean − m_ref) / s_ref, −dmax, dmax)

    where the reference is `renorm_mean` and `renorm_stddev`, or with ``renorm_momentum=None``
    `moving_mean` and ``sqrt(moving_variance + epsilon)``. Weights, their order and the saved
    files are those of Keras's layer, so either loads what the other saved.

    Different on purpose: a channel whose mask is off everywhere keeps its moving statistics;
    padding may hold NaN; data far from 0 lose nothing; a single channel may be masked. See Ioffe
    and Szegedy 2015 (arXiv 1502.03167), section 3, and Ioffe 2017 (arXiv 1702.03275), section 3.

    Args:
        axis: the channel axis, or a list of them; then every weight has the rank of the
            input, with 1 on each reduced axis.
        momentum: of the moving statistics, in [0, 1].
        epsilon: added to the variance, at least 0. With 0, a variance of 0 divides by zero.
        center, scale: whether there is a `beta`, a `gamma`.
        beta_initializer, gamma_initializer, moving_mean_initializer,
        moving_variance_initializer, beta_regularizer, gamma_regularizer, beta_constraint,
        gamma_constraint: as in Keras.
        renorm: whether to correct the batch's statistics against a reference.
        renorm_clipping: a dictionary with keys among rmin, rmax and dmax, or a
            :class:`numbabn.RenormClipping`; None for no limits. Each limit is a number, a
            `keras.Variable` or a function without arguments that returns a number. All are
            read anew at every step, compiled or not; the whole can be replaced between steps.
            (JAX may still be computing a step when Python goes on: wait for its results.)
        renorm_momentum: of the reference, in [0, 1]; None to share the moving statistics.
        synchronized: as in Keras, with TensorFlow only; several replicas are refused.
        skip_nonfinite: whether a channel's moving statistics stay as they were where the batch's
            are infinite or NaN, as after a NaN in `inputs` that no mask hides. The output is NaN
            there all the same.
        **kwargs: of `keras.layers.Layer`: `name`, `dtype`, `trainable`.

    Call arguments:
        inputs: float16, bfloat16, float32 or float64 of rank 2 or more; other dtypes are cast
            to the layer's compute dtype.
        training: True for a training step.
        mask: bool, integer or float, nonzero is on; of the rank of `inputs`, or one less
            (then a last axis is added). Sizes are those of `inputs`, or 1. Comes by itself
            from `Masking` and `Embedding(mask_zero=True)`.

    Raises:
        TypeError, ValueError: an argument of a wrong type, or out of range.

    >>> import keras
    >>> layer = BatchNormalization(momentum=0.9, renorm=True, renorm_clipping={"rmax": 3.0})
    >>> y = layer(keras.ops.ones((8, 4)), training=True)
    >>> tuple(y.shape), [weight.name for weight in layer.weights][:3]
    ((8, 4), ['gamma', 'beta', 'moving_mean'])
    """

    renorm: bool

    def __init__(
        self,
        axis: Axis = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        moving_mean_initializer: Any = "zeros",
        moving_variance_initializer: Any = "ones",
        beta_regularizer: Any = None,
        gamma_regularizer: Any = None,
        beta_constraint: Any = None,
        gamma_constraint: Any = None,
        renorm: bool = False,
        renorm_clipping: Any = None,
        renorm_momentum: float | None = 0.99,
        synchronized: bool = False,
        *,
        skip_nonfinite: bool = False,
        **kwargs: Any,
    ) -> None:
        plain = plain_axis(axis)
        super().__init__(
            # Keras's constructor takes a number only; a list takes its place below.
            axis=plain if isinstance(plain, int) else -1,
            momentum=checked_setting("momentum", momentum),
            epsilon=checked_setting("epsilon", epsilon),
            center=center,
            scale=scale,
            beta_initializer=beta_initializer,
            gamma_initializer=gamma_initializer,
            moving_mean_initializer=moving_mean_initializer,
            moving_variance_initializer=moving_variance_initializer,
            beta_regularizer=beta_regularizer,
            gamma_regularizer=gamma_regularizer,
            beta_constraint=beta_constraint,
            gamma_constraint=gamma_constraint,
            renorm=renorm,
            renorm_momentum=checked_setting("renorm_momentum", renorm_momentum),
            synchronized=synchronized,
            **kwargs,
        )
        self.axis = plain
        self.skip_nonfinite = bool(skip_nonfinite)
        self.renorm_clipping = renorm_clipping
        self._bridge_name = keras.backend.backend()
        self.supports_jit = bridge_of(self._bridge_name).SUPPORTS_JIT
        # What the last training step corrected against, for one that is run once more.
        self._reference: list[Any] | None = None

    @property
    def renorm_clipping(self) -> Any:
        """The limits of the correction, as they were given; may be replaced at any time."""
        return self._clipping.given

    @renorm_clipping.setter
    def renorm_clipping(self, clipping: Any) -> None:
        if "_clipping" not in self.__dict__:
            self._clipping = Clipping()
        self._clipping.set(clipping)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "renorm_clipping":
            # Past Keras's tracking of attributes, see `Clipping`.
            object.__setattr__(self, name, value)
        else:
            # As in the constructor, whenever one is changed.
            super().__setattr__(name, checked_setting(name, value))

    @property
    def _separate(self) -> bool:
        """Whether renorm has statistics of its own."""
        return self.renorm and self.renorm_momentum is not None

    def build(self, input_shape: Any) -> None:
        """Make the weights, as Keras does."""
        given = tuple(input_shape)
        named = [self.axis] if isinstance(self.axis, int) else list(self.axis)
        axes = channel_axes(given, self.axis)
        shape = tuple(given[axis] for axis in axes)
        if None in shape:
            raise ValueError(
                f"the channels must be known when the layer is built, got an input of shape "
                f"{given} with axis={self.get_config()['axis']}"
            )
        if len(axes) > 1:
            shape = tuple(size if axis in axes else 1 for axis, size in enumerate(given))

        def add(name: str, initializer: Any, **options: Any) -> None:
            weight = self.add_weight(
                shape=shape, name=name, initializer=initializer, autocast=False, **options
            )
            setattr(self, name, weight)

        # In Keras's order, by which weights are saved.
        if self.scale:
            own = {"regularizer": self.gamma_regularizer, "constraint": self.gamma_constraint}
            add("gamma", self.gamma_initializer, **own)
        if self.center:
            own = {"regularizer": self.beta_regularizer, "constraint": self.beta_constraint}
            add("beta", self.beta_initializer, **own)
        mean, variance = self.moving_mean_initializer, self.moving_variance_initializer
        add("moving_mean", mean, trainable=False)
        add("moving_variance", variance, trainable=False)
        if self._separate:

            def stddev(shape: Any, dtype: Any = None) -> Any:
                return ops.sqrt(_cloned(variance)(shape, dtype=dtype))

            add("moving_stddev", stddev, trainable=False)
            add("renorm_mean", _cloned(mean), trainable=False)
            add("renorm_stddev", stddev, trainable=False)
        self._reduction_axes = [axis for axis in range(len(given)) if axis not in axes]
        self.input_spec = keras.layers.InputSpec(
            ndim=len(given), axes={axis: given[axis] for axis in named}
        )

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Normalize `inputs`; in training by their own statistics, which the weights follow."""
        bridge = bridge_of(self._bridge_name)
        dtype = keras.backend.standardize_dtype(inputs.dtype)
        given = {"x": inputs if dtype in FLOATS else ops.cast(inputs, self.compute_dtype)}
        if self.gamma is not None:
            given["gamma"] = self.gamma.value
        if self.beta is not None:
            given["beta"] = self.beta.value
        attributes = Attributes(
            self.axis if isinstance(self.axis, int) else tuple(self.axis),
            self.epsilon,
            self.momentum,
            self.renorm,
            self.renorm_momentum,
            self.skip_nonfinite,
        )
        if training and self.trainable:
            if self.synchronized:
                _check_single_replica()
            names = STATISTICS if self._separate else STATISTICS[:2]
            variables = [getattr(self, name) for name in names]
            recomputed = bridge.is_recomputed()
            if recomputed and self._reference is not None:
                # The statistics have moved since, and were corrected against as they were.
                before = self._reference
            elif self.renorm:
                before = list(map(value_of, variables))
            else:
                # The last one that is assigned is never to be put back.
                before = [*map(value_of, variables[:-1]), variables[-1].value]
            given |= dict(zip(names, before, strict=True))
            if mask is not None:
                given["mask"] = mask
            if self.renorm:
                given |= self._clipping.inputs(bridge.in_graph)
            results = apply(bridge, TRAINING, given, attributes)
            traced = bridge.is_traced(results[names[0]])
            if not recomputed:
                assign_all(variables, before, [results[name] for name in names], traced)
                if self.renorm and not traced:
                    # Past Keras's tracking of attributes.
                    self.__dict__["_reference"] = before
        else:
            given |= {name: getattr(self, name).value for name in STATISTICS[:2]}
            results = apply(bridge, INFERENCE, given, attributes)
        # The same dtype unless the caller switched Keras's autocasting off.
        return results["y"] if dtype == self.compute_dtype else ops.cast(
            results["y"], self.compute_dtype
        )  # fmt: skip

    def rematerialized_call(self, layer_call: Any, *args: Any, **kwargs: Any) -> Any:
        """The call itself, in a `keras.RematScope` too: it keeps nothing of x's size but x."""
        return layer_call

    def _trackable_children(self, save_type: str = "checkpoint", **kwargs: Any) -> Any:
        # TensorFlow asks for what a layer consists of, when it saves.
        if save_type == "savedmodel":
            raise NotImplementedError(
                f"{self.name} cannot go into a SavedModel: a graph refers to numbabn's kernels in "
                "the process that traced it. Export numbabn.keras.convert(model, to_keras=True), "
                "which predicts the same"
            )
        return super()._trackable_children(save_type, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor, JSON-able; limits as they are at this moment."""
        axis = self.axis if isinstance(self.axis, int) else [int(each) for each in self.axis]
        clipping = self._clipping.values() if self._clipping.given else None
        own = {
            "axis": axis, "renorm_clipping": clipping, "skip_nonfinite": self.skip_nonfinite,
        }  # fmt: skip
        return {**super().get_config(), **own}


def _cloned(initializer: Any) -> Any:
    """The same once more, which gives the same numbers: Keras warns where one is used twice."""
    return initializer.clone() if hasattr(initializer, "clone") else initializer


def _check_single_replica() -> None:
    """Raise where the batch is spread over replicas: the kernels see a part of it only."""
    import tensorflow as tf  # Keras runs on it: it has refused synchronized=True elsewhere.

    context = tf.distribute.get_replica_context()
    if context is not None and context.num_replicas_in_sync > 1:
        raise NotImplementedError(
            f"synchronized=True over {context.num_replicas_in_sync} replicas is not supported by "
            "numbabn.keras.BatchNormalization: use keras.layers.BatchNormalization (without a "
            "mask, with which it does not synchronize), or synchronized=False"
        )
