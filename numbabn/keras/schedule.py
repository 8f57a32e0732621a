"""The ramp of renorm's limits over the steps of a training."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from ..renorm import RenormClipping
from .layer import BatchNormalization


class RenormClippingSchedule(keras.callbacks.Callback):
    """Relaxes the limits of every renorm layer of a model, step by step.

    At optimizer step t, with each ramp linear between its two steps and flat outside of them:

        rmax(t) = 1 → rmax over rmax_steps      rmin(t) = 1 / rmax(t)
        dmax(t) = 0 → dmax over dmax_steps

    so that training starts as plain batch normalization. The defaults are those of Ioffe 2017
    (arXiv 1702.03275), section 4.2: rmax from 1 to 3 over the steps 5000 to 40000, dmax from 0
    to 5 over 5000 to 25000. The step is that of the model's optimizer: a training that is saved and
    resumed goes on where it was, microbatches of ``gradient_accumulation_steps`` are one step
    together, and a step that a `LossScaleOptimizer` leaves out is none. With
    ``steps_per_execution`` the steps of an execution have the limits of its first.

    Args:
        rmax: where rmax ends, at least 1.
        dmax: where dmax ends, at least 0.
        rmax_steps, dmax_steps: the first and the last step of the ramp.

    Raises:
        TypeError, ValueError: an argument that is none of these.
        ValueError, in `fit`: the model has no numbabn layer with ``renorm=True``, or no optimizer.

    >>> schedule = RenormClippingSchedule(rmax_steps=(0, 100), dmax_steps=(50, 100))
    >>> schedule.limits(50)
    {'rmin': 0.5, 'rmax': 2.0, 'dmax': 0.0}
    """

    def __init__(
        self,
        rmax: float = 3.0,
        dmax: float = 5.0,
        rmax_steps: tuple[int, int] = (5000, 40000),
        dmax_steps: tuple[int, int] = (5000, 25000),
    ) -> None:
        super().__init__()
        self.rmax = _number(rmax, "rmax", 1.0)
        self.dmax = _number(dmax, "dmax", 0.0)
        self.rmax_steps = _steps(rmax_steps, "rmax_steps")
        self.dmax_steps = _steps(dmax_steps, "dmax_steps")
        self._layers: list[BatchNormalization] = []
        self._is_over = False

    def limits(self, step: int) -> dict[str, float]:
        """rmin, rmax and dmax at a step of the optimizer."""
        of_r = RenormClipping.ramp(_progress(step, self.rmax_steps), rmax=self.rmax)
        of_d = RenormClipping.ramp(_progress(step, self.dmax_steps), dmax=self.dmax)
        return {"rmin": of_r.rmin, "rmax": of_r.rmax, "dmax": of_d.dmax}

    def on_train_begin(self, logs: Any = None) -> None:
        """Find the layers."""
        self._layers = [
            layer
            for layer in self.model._flatten_layers()
            if isinstance(layer, BatchNormalization) and layer.renorm
        ]
        if not self._layers:
            raise ValueError(
                "RenormClippingSchedule needs a model with a numbabn.keras.BatchNormalization "
                f"with renorm=True, and {self.model.name!r} has none: see numbabn.keras.convert"
            )
        if self.model.optimizer is None:
            raise ValueError(
                "RenormClippingSchedule needs a model whose optimizer counts its steps, and "
                f"{self.model.name!r} is compiled without one"
            )

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Look at the step anew, which may have come with a checkpoint."""
        self._is_over = False

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Set the limits of the step."""
        # Beyond the ramps no step changes anything: none is waited for.
        if self._is_over:
            return
        step = self._step()
        self._is_over = step >= max(self.rmax_steps[1], self.dmax_steps[1])
        limits = self.limits(step)
        for layer in self._layers:
            layer.renorm_clipping = limits

    def _step(self) -> int:
        """How many steps the optimizer has taken."""
        optimizer = self.model.optimizer
        with keras.StatelessScope(_scalars_apart(self.model, optimizer)):
            # A Variable, or with gradient accumulation a tensor.
            return int(ops.convert_to_numpy(optimizer.iterations))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Nothing; but for a callback that has this, Keras waits for the results of the step.

        JAX would go on with the step while its limits are already those of the next.
        """


def _scalars_apart(model: Any, optimizer: Any) -> list[tuple[Any, Any]]:
    """The optimizer's numbers that are not in its Variables, where within an epoch JAX has them."""
    # `jax_state_sync` would assign all variables of the model, which takes long at every step.
    state = getattr(model, "_jax_state", None)
    if not state or model._jax_state_synced:
        return []
    pairs = zip(optimizer.variables, state["optimizer_variables"], strict=True)
    return [(variable, value) for variable, value in pairs if variable.shape == ()]


def _progress(step: int, steps: tuple[int, int]) -> float:
    first, last = steps
    if step >= last:
        return 1.0
    return (step - first) / (last - first) if step > first else 0.0


def _number(value: Any, name: str, least: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not least <= value < float("inf"):
        raise ValueError(f"{name} must be a finite number of at least {least}, got {value}")
    return float(value)


def _steps(value: Any, name: str) -> tuple[int, int]:
    try:
        first, last = value
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be two steps, first and last, got {value!r}") from error
    if not (isinstance(first, int) and isinstance(last, int) and 0 <= first <= last):
        raise ValueError(
            f"{name} must be two whole numbers, 0 <= first <= last, got ({first!r}, {last!r})"
        )
    return first, last
