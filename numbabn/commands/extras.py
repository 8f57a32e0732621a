"""Packages that a command needs and the library does not."""

import importlib
from types import ModuleType


def load(module: str, extra: str) -> ModuleType:
    """Import `module`, or end the program with the sentence that says how to install it.

    extra: the extra of numbabn that brings the module, e.g. "bench"
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # A module that is there and lacks one of its own is another trouble, not ours to name.
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        raise SystemExit(
            f"This command needs {error.name}, which is not installed: "
            f"python -m pip install '.[{extra}]' in a checkout of numbabn brings it"
        ) from None
