"""What carries out the layer's calls on the backend that Keras runs on, and why."""

from __future__ import annotations

import keras

from .bridges import bridge_of


def backend_details() -> dict[str, str]:
    """Which way tensors take to the kernels, on the backend that Keras runs on, and why.

    Where a framework cannot call the kernels itself, Python does, which takes longer; results are
    the same. The same is logged at level INFO by the logger "numbabn", once, when it turns out.

    Returns:
        "backend", the name of Keras's backend; and for each place that tensors can be in
        ("CPU", "CUDA", "other devices") what computes there, and why it is not the fastest way
        where it is not.

    Raises:
        ValueError: Keras runs on a backend that there is no way for.

    >>> sorted(backend_details())
    ['CPU', 'CUDA', 'backend', 'other devices']
    """
    backend = keras.backend.backend()
    return {"backend": backend, **bridge_of(backend).paths()}
