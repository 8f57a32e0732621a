"""Whether there is a Keras that the layer can be a layer of."""

from __future__ import annotations

import importlib
import re

# The first that has renorm.
LEAST = (3, 14)
_INSTALL = "python -m pip install '.[keras]' in a checkout of numbabn brings it"


def check_keras() -> None:
    """Import Keras; raise ImportError, in one sentence, where that does not go.

    Raises:
        ImportError: it is not installed, too old, or its backend is not installed.
    """
    least = ".".join(map(str, LEAST))
    missing = f"numbabn.keras needs Keras {least} or later, which is not installed: {_INSTALL}"
    try:
        keras = importlib.import_module("keras")
    except ModuleNotFoundError as error:
        if error.name == "keras":
            raise ImportError(missing) from error
        raise ImportError(
            f"numbabn.keras needs a Keras that can be imported, and {error.name} is missing, which "
            "its backend may be: install that, or set the environment variable KERAS_BACKEND to "
            "one that is installed, of torch, tensorflow, jax and numpy"
        ) from error
    version = getattr(keras, "__version__", None)
    if version is None:
        # A folder of that name, which Python takes for a package.
        raise ImportError(missing)
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < LEAST:
        raise ImportError(
            f"numbabn.keras needs Keras {least} or later, and {version} is installed: {_INSTALL}"
        )
