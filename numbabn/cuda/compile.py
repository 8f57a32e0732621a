"""Every kernel in every form that is ever launched, and how each is compiled.

A `Variant` is one kernel for one dtype, one width of reads, one layout and one kind of mask. It
says all that compiling needs, so that a variant can be compiled for the device that is there,
when it is first launched, or for any compute capability where there is none:

    for variant in variants():
        cuda.compile(variant.function, variant.signature, device=False, output="ptx",
                     cc=(9, 0), abi="numba", **variant.options)

What was compiled is kept on disk, see `cubins`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from numba import types

from . import copies, cubins, elements, folds, kernels, masks, moments, partition
from .arithmetic import element_functions
from .runtime import SIMULATED, bound, cuda, device_function

DTYPES = ("float16", "bfloat16", "float32", "float64")
MASKS = {"": masks.NONE, "rows": masks.ROW, "elements": masks.ELEMENT}
# Bytes that are read at once in each layout. "narrow": rows that vectors of 16 do not fit, and that
# are not joined since each has its own mask; "scalar": one element, by rows or by runs.
LAYOUTS = {"rows": 16, "runs": 16, "narrow": 8, "scalar": 0}

_ELEMENTS = {
    "float16": types.uint16,
    "bfloat16": types.int16,
    "float32": types.float32,
    "float64": types.float64,
}
_WORDS = {1: types.int8, 2: types.int16, 4: types.int32, 8: types.int64}

# In simulation a block's threads are threads of the process, which take a while to start.
THREADS = 32 if SIMULATED else partition.THREADS
CHANNEL_THREADS = 32 if SIMULATED else 128
# Of the folds: eight channels of a block, and some thirty results to a thread where there are most.
FOLD_THREADS = 32 if SIMULATED else 512
# Blocks that should fit on a multiprocessor together: 64 bytes in flight in each thread of two
# are 32 KB, and 25 KB cover the latency of an H200's memory (36 bytes a ns, 700 ns).
RESIDENT = 2
# Registers of a multiprocessor, on every device since 2014.
REGISTERS = 65536


class Variant(NamedTuple):
    """A kernel as it is compiled."""

    name: str
    function: Any  # the Python function, with its constants bound: `cuda.jit` was not applied
    signature: Any  # numba types; memory is a types.CPointer
    dtype: str  # of x; "" for kernels that no dtype of x has a part in
    size: int  # bytes of elements that are read and written at once; 0 for one element
    threads: int  # of a block
    max_registers: int  # that a thread may have
    doubles: int  # float64 instructions of arithmetic that there may be at most; -1: any number

    @property
    def options(self) -> dict[str, Any]:
        """The options of `cuda.jit` and of `cuda.compile`."""
        return {"fastmath": False, "launch_bounds": (self.threads, self._resident)}

    @property
    def _resident(self) -> int:
        return REGISTERS // (self.max_registers * self.threads)


def vector_of(dtype: str, size: int = elements.VECTOR_BYTES) -> int:
    """Elements in so many bytes; 1 for 0."""
    return size // np.dtype(_ELEMENTS[dtype].name).itemsize or 1


def _integers(count: int) -> Any:
    return types.UniTuple(types.int64, count)


_BYTES = types.CPointer(types.uint8)
_DOUBLES = types.CPointer(types.float64)
_INT, _DOUBLE = types.int64, types.float64
_STEPS = _integers(masks.STEPS)
_CUT, _FOLD = (
    types.NamedUniTuple(types.int64, len(each._fields), each)
    for each in (partition.Partition, folds.Fold)
)

_CORRECTION = types.NamedTuple(
    tuple(_INT if name == "way" else _DOUBLE for name in folds.Correction._fields),
    folds.Correction,
)


def _parameters(count: int) -> tuple[Any, Any]:
    """The types of parameters and of their kinds."""
    return types.UniTuple(_BYTES, count), _integers(count)


def _compute(dtype: str) -> Any:
    return types.float64 if dtype == "float64" else types.float32


def _chunk(kernel: str, size: int, vector: int, mask: str) -> int:
    """Positions that a thread reads before it computes: 64 bytes in flight, or 8 scalars."""
    arrays = 2 if kernel.startswith("gradient") else 1
    if vector == 1:
        return 8 // arrays
    if mask == "elements":
        # Each element has a place in the mask to be found: more would not fit in registers.
        return max(1, 8 // (vector * arrays))
    return 64 // size // arrays


@cache
def element_kernel(kernel: str, dtype: str, layout: str, mask: str = "") -> Variant:
    """A kernel over elements: statistics, normalize, normalize_given, gradient_sums or gradient."""
    element, compute = types.CPointer(_ELEMENTS[dtype]), types.CPointer(_compute(dtype))
    signature = {
        "statistics": (element, _BYTES, compute, _STEPS, _CUT),
        "normalize": (element, compute, element, _CUT),
        "normalize_given": (element, element, _DOUBLE, *_parameters(4), _CUT),
        "gradient_sums": (element, element, _DOUBLES, compute, _CUT),
        "gradient": (element, element, _BYTES, compute, element, _STEPS, _CUT),
    }[kernel]
    size = LAYOUTS[layout]
    vector, access = vector_of(dtype, size), elements.ACCESS[size]
    lanes = 1 if layout == "runs" else vector
    name = "_".join(part for part in (kernel, layout, mask and f"masked_{mask}", dtype) if part)
    chunk = _chunk(kernel, size, vector, mask)
    compute_type = np.float64 if dtype == "float64" else np.float32
    words = elements.words_of(size, np.dtype(_ELEMENTS[dtype].name).itemsize)
    constants = {
        **element_functions(compute_type),
        "THREADS": THREADS,
        "COMPUTE": compute_type,
        "VECTOR": vector,
        "LANES": lanes,
        "CHUNK": chunk,
        "VALUES": chunk * vector,
        "SHARED": lanes * THREADS,
        "OWN": 3 * lanes,
        "WORDS": words,
        "IN_RUNS": layout in ("runs", "scalar"),
        "FETCHED": chunk * words,
        # Without a mask of their own, a thread's columns have the same number of elements.
        "NUMBERS": lanes if mask == "elements" else 1,
        "MASK": MASKS[mask],
        **access._asdict(),
        "read": elements.parameter if dtype == "float64" else elements.narrow_parameter,
    }
    constants |= {
        each.__name__: device_function(bound(each, f"{each.__name__}_{name}", **constants))
        for each in (moments.absorb, kernels.apply)
    }
    module = moments if kernel == "statistics" else kernels
    function = bound(getattr(module, kernel), name, **constants)
    doubles = -1 if dtype == "float64" else 0
    return Variant(
        name, function, types.void(*signature), dtype, size, THREADS,
        REGISTERS // (RESIDENT * THREADS), doubles,
    )  # fmt: skip


@cache
def channel_kernel(kernel: str, dtype: str) -> Variant:
    """A kernel over channels; dtype: float64 for float64 data, float32 for all other."""
    compute = types.CPointer(_compute(dtype))
    signature = {
        "fold_forward": (
            compute, _DOUBLES, compute, types.UniTuple(_BYTES, 4), types.UniTuple(_BYTES, 10),
            _CORRECTION, _integers(5), _FOLD,
        ),
        "fold_backward": (
            compute, _DOUBLES, compute, compute, _DOUBLES, _DOUBLE, _INT, _FOLD,
        ),
        "given_forward": (
            _DOUBLES, compute, types.UniTuple(_BYTES, 7), types.UniTuple(_BYTES, 10), _CORRECTION,
            _integers(8), _INT,
        ),
        "given_sums": (_DOUBLES, _DOUBLES, compute, compute, _DOUBLE, _INT),
        "given_coefficients": (compute, _DOUBLE, *_parameters(4), _INT),
        "given_statistics": (_DOUBLES, *_parameters(3), _INT),
        "merge_statistics": (_DOUBLES, *_parameters(6), _INT),
        "renorm_corrections": (
            _DOUBLES, types.UniTuple(_BYTES, 4), _CORRECTION, _integers(4), _INT,
        ),
    }[kernel]  # fmt: skip
    name = f"{kernel}_{dtype}"
    threads = FOLD_THREADS if kernel.startswith("fold") else CHANNEL_THREADS
    constants: dict[str, Any] = {
        "THREADS": threads,
        "COMPUTE": np.float64 if dtype == "float64" else np.float32,
    }
    constants |= {
        each.__name__: device_function(bound(each, f"{each.__name__}_{name}", **constants))
        for each in (folds.write_forward, folds.write_backward)
    }
    function = bound(getattr(folds, kernel), name, **constants)
    return _simple(name, function, signature, threads)


@cache
def word_kernel(kernel: str, size: int) -> Variant:
    """A kernel over words of `size` bytes: copy or bytes_on."""
    word, axes = types.CPointer(_WORDS[size]), _integers(copies.AXES)
    signature = {
        "copy": (word, word, _integers(2), axes, axes, axes, _INT),
        "bytes_on": (word, _BYTES, _INT, _integers(2), axes, axes, axes, _INT),
    }[kernel]
    name = f"{kernel}_{8 * size}"
    return _simple(name, bound(getattr(copies, kernel), name), signature, CHANNEL_THREADS)


def _simple(name: str, function: Any, signature: tuple[Any, ...], threads: int) -> Variant:
    registers = min(128, REGISTERS // (RESIDENT * threads))
    return Variant(name, function, types.void(*signature), "", False, threads, registers, -1)


def variants() -> Iterator[Variant]:
    """All of them."""
    for dtype in DTYPES:
        for layout in LAYOUTS:
            if layout == "narrow":
                continue
            for kernel in (
                "statistics", "normalize", "normalize_given", "gradient_sums", "gradient",
            ):  # fmt: skip
                yield element_kernel(kernel, dtype, layout)
            for kernel in ("statistics", "gradient"):
                if layout != "runs":
                    yield element_kernel(kernel, dtype, layout, "rows")
                yield element_kernel(kernel, dtype, layout, "elements")
    for dtype in DTYPES:
        if vector_of(dtype, LAYOUTS["narrow"]) > 1:
            for kernel in ("statistics", "gradient"):
                for mask in ("rows", "elements"):
                    yield element_kernel(kernel, dtype, "narrow", mask)
    for dtype in ("float32", "float64"):
        for kernel in (
            "fold_forward", "fold_backward", "given_forward", "given_sums", "given_coefficients",
        ):  # fmt: skip
            yield channel_kernel(kernel, dtype)
    for kernel in ("given_statistics", "merge_statistics", "renorm_corrections"):
        yield channel_kernel(kernel, "float64")
    for size in _WORDS:
        yield word_kernel("copy", size)
        yield word_kernel("bytes_on", size)


_compiled: dict[tuple[str, int], Any] = {}


def is_loaded(variant: Variant, device: int) -> bool:
    """Whether `compiled` has nothing left to do."""
    return (variant.name, device) in _compiled


def compiled(variant: Variant, device: int) -> Any:
    """The variant for a device, which has to be the current one.

    Its first use in a process loads it; the first of all takes seconds.
    """
    kernel = _compiled.get((variant.name, device))
    if kernel is None:
        kernel = _compiled[variant.name, device] = _load(variant)
    return kernel


def _load(variant: Variant) -> Any:
    if SIMULATED:
        return cuda.jit(variant.function)
    from cuda.core import ObjectCode

    capability = tuple(cuda.get_current_device().compute_capability)
    name, code = kept(variant, capability)
    return ObjectCode.from_cubin(code, name=variant.name).get_kernel(name)


def kept(variant: Variant, capability: tuple[int, int]) -> tuple[str, bytes]:
    """The variant's name in its machine code, and that, from the cache or compiled into it."""
    architecture = f"sm_{capability[0]}{capability[1]}"
    found = cubins.load(variant.name, architecture)
    if found is None:
        found = build(variant, capability)
        cubins.keep(variant.name, architecture, *found)
    return found


def keep_named(name: str, capability: tuple[int, int]) -> None:
    """`kept` of the variant of this name, for processes that a variant does not go to."""
    for variant in variants():
        if variant.name == name:
            kept(variant, capability)


def capability_of(architecture: str) -> tuple[int, int]:
    """The compute capability of "sm_90", (9, 0); ValueError where it is no such name."""
    found = re.fullmatch(r"sm_(\d+)(\d)", architecture)
    if found is None:
        raise ValueError(f"--arch must be like sm_90, got {architecture}")
    return int(found[1]), int(found[2])


def architectures_here() -> list[str]:
    """Of the devices that are here, each once."""
    capabilities = {tuple(device.compute_capability) for device in cuda.list_devices()}
    return [f"sm_{major}{minor}" for major, minor in sorted(capabilities)]


def build(variant: Variant, capability: tuple[int, int]) -> tuple[str, bytes]:
    """Compile a variant; no device is needed."""
    from cuda.core import Linker, LinkerOptions, ObjectCode

    with _as_if_on(capability):
        ptx, _ = cuda.compile(
            variant.function, variant.signature, device=False, output="ptx", cc=capability,
            abi="numba", **variant.options,
        )  # fmt: skip
    (name,) = _ENTRY.findall(ptx)
    options = LinkerOptions(arch=f"sm_{capability[0]}{capability[1]}")
    linker = Linker(ObjectCode.from_ptx(ptx.encode()), options=options)
    return name, bytes(linker.link("cubin").code)


_ENTRY = re.compile(r"^\s*\.visible \.entry (\w+)\(", re.MULTILINE)


@contextmanager
def _as_if_on(capability: tuple[int, int]) -> Iterator[None]:
    """As if the current device were of this capability: numba-cuda asks it when it compiles a
    device function, whatever capability was asked for."""
    from numba.cuda import dispatcher

    device = SimpleNamespace(compute_capability=capability)
    before, dispatcher.get_current_device = dispatcher.get_current_device, lambda: device
    try:
        yield
    finally:
        dispatcher.get_current_device = before
