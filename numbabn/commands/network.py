"""A small classifier in NumPy around `numbabn.BatchNormalization`: what `demo` trains.

Two hidden layers, each dense -> batch norm -> ReLU, then a dense layer to the classes. Rows may be
padding: they hold anything, NaN too, and a mask says which rows count. Batch norm takes the mask
itself; a dense layer only has to select the rows that count for the gradient of its weights, since
in NumPy a NaN times a gradient of zero is NaN.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

import numbabn

Array = NDArray[Any]


class Dense:
    """``y = x · weights + bias``, with He initialization.

    weights: (inputs, outputs) float32
    bias: (outputs,) float32
    """

    def __init__(self, inputs: int, outputs: int, generator: np.random.Generator) -> None:
        scale = np.float32(np.sqrt(2 / inputs))
        self.weights = scale * generator.standard_normal((inputs, outputs), dtype=np.float32)
        self.bias = np.zeros(outputs, np.float32)
        self.gradients: list[Array] = []
        self._x: Array = self.weights[:0]

    @property
    def parameters(self) -> list[Array]:
        return [self.weights, self.bias]

    def __call__(self, x: Array) -> Array:
        self._x = x
        return x @ self.weights + self.bias

    def backward(self, dy: Array, rows: Array) -> Array:
        """dx; fills `gradients` with the sums over the rows that count.

        dy: (batch, outputs), zero in the rows that do not count
        rows: (batch,) bool
        """
        counted = dy[rows]
        self.gradients = [self._x[rows].T @ counted, counted.sum(axis=0)]
        return dy @ self.weights.T


class Classifier:
    """The network; the parameters are arrays that `descend` changes in place.

    features: length of an input row
    hidden: width of both hidden layers
    classes: number of outputs
    renorm: whether the batch norms correct by their moving statistics (Ioffe 2017)
    """

    def __init__(
        self, features: int, hidden: int, classes: int, *, renorm: bool, seed: int
    ) -> None:
        generator = np.random.default_rng(seed)
        self.dense = [
            Dense(inputs, outputs, generator)
            for inputs, outputs in [(features, hidden), (hidden, hidden), (hidden, classes)]
        ]
        self.norms = [numbabn.BatchNormalization(renorm=renorm) for _ in range(2)]
        self._active: list[Array] = []
        self._velocity: list[Array] = []

    def limit(self, clipping: numbabn.RenormClipping) -> None:
        """Set the limits of `r` and `d` from the next step on."""
        for norm in self.norms:
            norm.renorm_clipping = clipping

    def logits(self, x: Array, *, training: bool = False, mask: Array | None = None) -> Array:
        """(batch, classes) scores of (batch, features) images."""
        self._active = []
        for dense, norm in zip(self.dense, self.norms, strict=False):
            x = norm(dense(x), training=training, mask=mask)
            # A NaN is neither above zero nor counted: False, and ReLU's gradient there is zero.
            self._active.append(x > 0)
            x = np.maximum(x, 0)
        return self.dense[-1](x)

    def gradients(self, x: Array, labels: Array, mask: Array | None = None) -> list[Array]:
        """The gradient of the summed cross-entropy by every parameter, from one training pass.

        x: (batch, features), the rows that `mask` turns off may hold anything
        labels: (batch,) integers; those of the rows that are off are not read
        mask: (batch,) bool, or None where every row counts
        """
        rows = np.ones(len(x), bool) if mask is None else mask
        scores = self.logits(x, training=True, mask=mask)[rows]
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        shares[np.arange(len(shares)), labels[rows]] -= 1
        dy = np.zeros((len(x), shares.shape[1]), shares.dtype)
        dy[rows] = shares

        dy = self.dense[-1].backward(dy, rows)
        hidden = zip(self.dense, self.norms, self._active, strict=False)
        for dense, norm, active in reversed(list(hidden)):
            dy = dense.backward(norm.backward(np.where(active, dy, 0)), rows)

        gradients = [gradient for dense in self.dense for gradient in dense.gradients]
        for norm in self.norms:
            gradients += [norm.gradients["gamma"], norm.gradients["beta"]]
        return gradients

    @property
    def parameters(self) -> list[Array]:
        """The arrays that `gradients` answers to, in its order."""
        parameters = [parameter for dense in self.dense for parameter in dense.parameters]
        for norm in self.norms:
            parameters += [norm.weights["gamma"], norm.weights["beta"]]
        return parameters

    def descend(self, gradients: list[Array], rate: float, momentum: float = 0.9) -> None:
        """One step of gradient descent with momentum."""
        if not self._velocity:
            self._velocity = [np.zeros_like(gradient) for gradient in gradients]
        for parameter, velocity, gradient in zip(
            self.parameters, self._velocity, gradients, strict=True
        ):
            velocity *= momentum
            velocity += gradient
            parameter -= rate * velocity

    def accuracy(self, x: Array, labels: Array) -> float:
        """Share of images that are classified rightly, by the moving statistics."""
        return float(np.mean(self.logits(x).argmax(axis=1) == labels))
