"""The arrays of one call: checked, and brought to the canonical form that launchers take.

Nothing here waits for a device, or copies an array there or back.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from . import checks
from .arrays import Array, Described, Library
from .channels import SAVED, SUMS, Parameters, Reference
from .layout import Axis, Layout, layout_of
from .renorm import Renorm
from .targets import launchers_of, library_of

Check = Callable[[Described, str], None]

# As they are, for NumPy to make no dtype of a class at each call.
_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)


class Mask(NamedTuple):
    """A mask that fits x."""

    on: Described  # of bools or bytes, of x's rank; each size x's, or 1
    canonical: Any  # as the launchers of the target have it


# Where a result goes: memory in the caller's order, what launchers write, and whether that is other
# memory. A plain tuple, since a small call takes as long as the structures that it makes.
Output = tuple[Described, Described, bool]


class Operands:
    """The arrays of a call, all of one library."""

    __slots__ = ("canonical_x", "channels", "launch", "layout", "library", "x")

    def __init__(self, x: Array, axis: Axis, check: Check = checks.check_floats) -> None:
        """
        Args:
            check: raises unless an array of this name can be `x`.

        Raises:
            TypeError: `x` is not an array of floats; `axis` has a wrong type.
            ValueError: `axis` does not fit.
            RuntimeError: `x` is on a device, and nothing can run there.
        """
        self.library = library_of(x)
        self.launch = launchers_of(self.library)
        self.x = self.library.describe(x, "x")
        check(self.x, "x")
        self.layout: Layout = layout_of(self.x, axis)
        self.channels = self.layout.canonical_shape[1]
        self.canonical_x = self.canonical(self.x)

    # Inputs

    def canonical(self, array: Described) -> Described:
        """`array` as (outer, channels, inner): a view where its memory allows, else a copy."""
        layout = self.layout
        # A small call takes as long as its calls to NumPy: one less here.
        ordered = array if layout.plain else array.transpose(layout.order)
        if not self.library.is_dense(ordered):
            ordered = self._dense(ordered)
        return ordered.reshape(layout.canonical_shape)

    def _dense(self, array: Described) -> Described:
        return dense(self.library, array)

    def like_x(self, array: Array, name: str) -> Described:
        """An array of the shape and dtype of `x`."""
        described = self.library.describe(array, name, self.x)
        checks.check_like(described, name, self.x)
        return described

    def parameter(self, values: Any, name: str) -> Described:
        """Per-channel values as (channels,), in the order that kernels have the channels."""
        described = self.library.parameter(values, name, self.x)
        if described.shape == () and isinstance(described, np.ndarray):
            return np.full((self.channels,), described)
        if described.shape != self.layout.channel_shape:
            raise checks.channel_shape(name, self.layout.channel_shape, described.shape)
        if described.ndim == 1:
            return described if self.library.parameters_are_dense else self._dense(described)
        return self._dense(self._ordered(described)).reshape((self.channels,))

    def parameters(self, gamma: Any, beta: Any) -> Parameters:
        """The affine parameters; None stays None."""
        return Parameters(
            None if gamma is None else self.parameter(gamma, "gamma"),
            None if beta is None else self.parameter(beta, "beta"),
        )

    def reference(self, renorm: Any) -> Reference | None:
        """What a forward corrects against; None stays None."""
        if renorm is None:
            return None
        if not isinstance(renorm, Renorm):
            raise TypeError(f"renorm must be a Renorm, got {type(renorm).__name__}")
        return Reference(
            self.parameter(renorm.mean, "renorm.mean"),
            self.parameter(renorm.stddev, "renorm.stddev"),
            False,
            renorm.clipping.limits,
        )

    def mask(self, mask: Array | None) -> Mask | None:
        """`mask` where it is on; None stays None.

        Two forms are accepted: the rank of `x`, or one less; then a last axis is added.

        Raises:
            TypeError: its dtype is neither bool nor a real number.
            ValueError: its shape fits in neither form.
        """
        if mask is None:
            return None
        on = fitting_mask(self.library, mask, self.x)
        if on.dtype.kind != "b":
            marked = self.library.empty(on.shape, np.uint8, self.x)
            self.launch.mark(on, marked)
            on = marked
        return Mask(on, self.launch.mask_of(on, self.layout))

    def saved(self, values: Array) -> Described:
        """What a forward saved, its channels in C order, as (SAVED, channels) for launchers."""
        return self._rows(values, "values", "a forward pass saved", SAVED)

    def sums(self, sums: Array) -> Described:
        """Sums of a gradient, their channels in C order, as (SUMS, channels) for launchers."""
        return self._rows(sums, "sums", "gradient_sums returned", SUMS)

    def _rows(self, values: Array, name: str, origin: str, rows: int) -> Described:
        described = self.library.describe(values, name, self.x)
        checks.check_rows(described, name, origin, (rows, self.channels))
        return self._dense(from_c_order(self.library, described, self.layout))

    # Outputs

    def output(self, out: Described | None) -> Output:
        """Memory for a result like `x`: new, or `out`, which was checked."""
        layout, library = self.layout, self.library
        if out is None and layout.plain:
            array = library.empty(layout.shape, self.x.dtype, self.x)
            return array, array.reshape(layout.canonical_shape), False
        if out is None:
            out = library.empty(layout.shape, self.x.dtype, self.x, layout.memory)
        ordered = out.transpose(layout.order)
        if library.is_dense(ordered):
            return out, ordered.reshape(layout.canonical_shape), False
        # Memory that is not of x's order is written by way of a copy.
        return out, library.empty(layout.canonical_shape, self.x.dtype, self.x), True

    def checked_out(
        self, out: Array, inputs: dict[str, Any], over: tuple[str, ...] = ()
    ) -> Described:
        """`out`, unless the result cannot be written there while `inputs` are read.

        over: names of the inputs that `out` may be, element for element
        """
        described = self.library.out(out, self.x)
        checks.check_like(described, "out", self.x)
        if not self.library.is_writable(described):
            raise ValueError("out must be writable, got a read-only array")
        checks.check_own_memory(described)
        for name, array in inputs.items():
            if array is None or not self.library.overlaps(described, array, name):
                continue
            if name not in over or not self.library.is_same(described, array, name):
                raise checks.overlap(name, over)
        return described

    def channels_output(
        self, like: Array, dtype: Any, given: dict[str, Array] | None, name: str
    ) -> Output:
        """Memory for per-channel values that launchers write in `dtype`: new, or what is given.

        like: the same values before, whose dtype the caller sees
        """
        if given is None:
            before = self.library.describe(like, name, self.x)
            array = self.library.empty(before.shape, before.dtype, self.x)
        else:
            array = self.library.describe(given[name], name, self.x)
        ordered = self._ordered(array)
        if array.dtype == dtype and self.library.is_dense(ordered):
            return array, ordered.reshape((self.channels,)), False
        return array, self.library.empty((self.channels,), dtype, self.x), True

    def finish(self, output: Output) -> Array:
        """The result, written, as the caller gets it."""
        array, canonical, apart = output
        if apart:
            ordered = self._ordered(array)
            self.launch.copy(canonical.reshape(ordered.shape), ordered)
        return self.library.array(array)

    def _ordered(self, array: Described) -> Described:
        """The axes of an array as kernels take them; those of a single channel axis are."""
        return array if array.ndim == 1 else array.transpose(self.layout.order)

    def table(self, rows: int, dtype: Any = _FLOAT64) -> Described:
        """New memory for `rows` rows of channels."""
        return self.library.empty((rows, self.channels), dtype, self.x)

    def rows(self, table: Described) -> tuple[Array, ...]:
        """The rows of such memory, as the caller has per-channel values."""
        return self.library.rows(table, self.layout.channel_shape, self.layout.channel_steps)


def fitting_mask(library: Library, mask: Array, x: Described) -> Described:
    """`mask` as it came, described, with the rank of `x`; raises unless it fits."""
    given = library.mask(mask, x)
    checks.check_mask_dtype(given.dtype)
    on = library.with_last_axis(given) if given.ndim == x.ndim - 1 else given
    checks.check_mask_shape(given.shape, on.shape, x.shape)
    return on


@lru_cache(maxsize=64)
def parameter_dtype(dtype: Any) -> Any:
    """The dtype of per-channel results beside an array of `dtype`."""
    return _FLOAT64 if dtype.name == "float64" else _FLOAT32


def dense(library: Library, array: Described) -> Described:
    """`array`, or a copy of it, in C order."""
    if library.is_dense(array):
        return array
    copy = library.empty(array.shape, array.dtype, array)
    launchers_of(library).copy(array, copy)
    return copy


def to_c_order(library: Library, table: Described, layout: Layout) -> Described:
    """Rows of channels in the order of memory, as rows of channels in C order of their axes."""
    if len(layout.axes) == 1:
        return table
    rows, channels = table.shape
    sizes = [layout.channel_shape[axis] for axis in layout.order]
    ordered = table.reshape((rows, *sizes))
    back = [layout.order.index(axis) + 1 for axis in range(len(sizes))]
    logical = ordered.transpose((0, *back))
    if library.is_dense(logical):
        return table
    # The caller may get this array: it has its own shape, and no description alone.
    copy = library.empty((rows, channels), table.dtype, table)
    launchers_of(library).copy(logical, copy.reshape(logical.shape))
    return copy


def from_c_order(library: Library, table: Described, layout: Layout) -> Described:
    """The other way round."""
    if len(layout.axes) == 1:
        return table
    rows, channels = table.shape
    logical = dense(library, table).reshape((rows, *layout.channel_shape))
    order = (0, *(axis + 1 for axis in layout.order))
    return dense(library, logical.transpose(order)).reshape((rows, channels))
