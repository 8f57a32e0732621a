"""Outputs that a layer keeps, to write the next ones into the same memory."""

from __future__ import annotations

from typing import Any

from .arrays import Array
from .targets import library_of


class KeptOutputs:
    """One array a name, each for inputs of one form: all that decides whether it fits."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Any, Array]] = {}

    def fitting(self, name: str, form: Any, inputs: dict[str, Array]) -> Array | None:
        """The array to write an output into, or None where there has to be a new one.

        inputs: what is not to be overwritten; for a backward may read it again
        """
        kept_form, kept = self._kept.get(name, (None, None))
        if kept_form != form:
            return None
        library = library_of(kept)
        described = library.describe(kept, "out")
        overlaps = any(library.overlaps(described, each, of) for of, each in inputs.items())
        return None if overlaps else kept

    def keep(self, name: str, form: Any, output: Array) -> Array:
        """Keep an output for the next input of that form; what the caller gets."""
        self._kept[name] = (form, output)
        # The shape and the flags of what the caller gets may change, and these may not.
        return library_of(output).alias(output)
