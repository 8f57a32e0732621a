"""Arrays of the libraries that this environment tests: from NumPy arrays and back.

The variable NUMBABN_CUDA names it: none for NumPy's arrays on the CPU, "simulator" or "device" for
arrays on a CUDA device.
"""

import ctypes
import os

import ml_dtypes
import numpy as np

import numbabn
from arrays import DTYPES, assert_results
from numbabn.targets import library_of

WHERE = os.environ.get("NUMBABN_CUDA")
ON_CPU, SIMULATED, ON_HARDWARE = (each == WHERE for each in (None, "simulator", "device"))
# "plain" has nothing but the array interface. In simulation there are no other libraries.
LIBRARIES = {
    None: ["numpy"],
    "simulator": ["numba", "plain"],
    "device": ["numba", "plain", "cupy", "torch"],
}[WHERE]
# What results are of, and weights.
OWNERS = [library for library in LIBRARIES if library != "plain"]
# Where one will do.
LIBRARY = OWNERS[0]
# Whose arrays say most of themselves: whether they are read-only, for one.
TELLING = "numpy" if ON_CPU else "plain"

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# Each library with what it knows: CuPy has no bfloat16.
PAIRS = [
    (library, dtype)
    for library in LIBRARIES
    for dtype in DTYPES
    if (library, dtype) != ("cupy", BFLOAT16)
]


def describe(array, name="array"):
    """What is known of an array; one in NumPy is its own description."""
    return library_of(array).describe(array, name)


class Plain:
    """Some library's array: it knows its interface, and nothing else."""

    def __init__(self, owner, interface):
        self.owner = owner
        self.__cuda_array_interface__ = interface


def memory_of(values):
    """The bytes that a NumPy array's elements lie in, copied, and where its first one is."""
    ends = [(size - 1) * step for size, step in zip(values.shape, values.strides, strict=True)]
    if values.size == 0:
        return np.zeros(1, np.uint8), 0
    first = values.__array_interface__["data"][0]
    low = first + sum(end for end in ends if end < 0)
    high = first + sum(end for end in ends if end > 0) + values.itemsize
    raw = (ctypes.c_uint8 * (high - low)).from_address(low)
    return np.frombuffer(raw, np.uint8).copy(), first - low


def put(values, library=LIBRARY):
    """A copy of a NumPy array on the device, of the same strides; for "numpy" the array itself.

    None stays None.
    """
    if values is None or library == "numpy":
        return values
    from numba import cuda

    values = np.asarray(values)
    raw, first = memory_of(values)
    if library == "torch":
        return _torch(values, raw, first)
    if library == "cupy":
        import cupy

        memory = cupy.asarray(raw)
        return cupy.ndarray(values.shape, values.dtype, memory.data + first, values.strides)
    memory = cuda.to_device(raw)
    if library == "plain":
        interface = {
            "shape": values.shape,
            "strides": values.strides,
            "typestr": values.dtype.str,
            "data": (describe(memory).address + first, not values.flags.writeable),
            "version": 3,
        }
        return Plain(memory, interface)
    if ON_HARDWARE:
        data = memory.gpu_data.view(first)
        return type(memory)(values.shape, values.strides, values.dtype, gpu_data=data)
    return type(memory)(np.ndarray(values.shape, values.dtype, memory._ary, first, values.strides))


def _torch(values, raw, first):
    import torch

    names = {BFLOAT16: "bfloat16"}
    dtype = getattr(torch, names.get(values.dtype, values.dtype.name))
    size = values.itemsize
    whole = raw[first % size :][: (raw.size - first % size) // size * size]
    flat = torch.from_numpy(whole).cuda().view(dtype) if values.size else torch.empty(0)
    steps = [step // size for step in values.strides]
    if values.size == 0:
        return torch.empty(values.shape, dtype=dtype, device="cuda")
    return flat.as_strided(values.shape, steps, first // size)


def get(array):
    """A NumPy copy of an array on a device; one in NumPy itself, or a list of numbers as one."""
    if isinstance(array, (np.ndarray, list)):
        return np.asarray(array)
    if isinstance(array, Plain):
        array = numba_array(describe(array))
    if hasattr(array, "detach"):
        array = array.detach().cpu()
        if str(array.dtype) == "torch.bfloat16":
            import torch

            return array.view(torch.int16).numpy().view(BFLOAT16)
        return array.numpy()
    if hasattr(array, "get"):
        return array.get()
    host = array.copy_to_host()
    return host.view(BFLOAT16) if host.dtype.kind == "V" else host


def numba_array(described):
    """A described array on a device as one of Numba's."""
    from numba import cuda

    if ON_HARDWARE:
        return cuda.as_cuda_array(described.owner)
    interface = {**described.owner.__cuda_array_interface__, "data": (described.address, False)}
    view = np.asarray(type("Interface", (), {"__array_interface__": interface})())
    return type(cuda.device_array(0, np.uint8))(view)


def copies(arrays):
    """NumPy copies that no later call can reach."""
    return [np.array(get(each)) for each in arrays]


def type_of(library):
    """The type of the library's arrays, which results have too."""
    return type(put(np.zeros(1, np.float32), library))


def not_an_array(name, got):
    """What is said of something else than an array beside x, by the name of its type."""
    wanted = (
        "a NumPy array or an array on a CUDA device"
        if ON_CPU
        else "an array with the CUDA array interface, as x is"
    )
    return f"{name} must be {wanted}, got {got}"


def write(array, values):
    """Write values into an array of `LIBRARY`, but for torch's and CuPy's."""
    if isinstance(array, np.ndarray):
        array[...] = values
    else:
        array.copy_to_device(np.asarray(values))


def strides_of(array):
    """Bytes between neighbours along each axis."""
    return describe(array).strides


def address(array):
    """Where its first element is."""
    described = describe(array)
    if isinstance(described, np.ndarray):
        return described.__array_interface__["data"][0]
    return described.address


def on_target(case, library=LIBRARY):
    """The arguments of a forward, as keywords."""
    renorm = None
    if case.renorm is not None:
        mean, stddev, clipping = case.renorm
        renorm = numbabn.Renorm(put(mean, library), put(stddev, library), clipping)
    return {
        "x": put(case.x, library),
        "gamma": put(case.gamma, library),
        "beta": put(case.beta, library),
        "axis": case.axis,
        "mask": put(case.mask, library),
        "renorm": renorm,
    }


def forward(case, library=LIBRARY, **options):
    """The output and what the backward needs."""
    return numbabn.batch_norm_forward(**on_target(case, library), **options)


def backward(case, saved, library=LIBRARY, **options):
    """dx, dgamma and dbeta."""
    x, dy = put(case.x, library), put(case.dy, library)
    return numbabn.batch_norm_backward(dy, x, saved, **options)


def assert_same(actual, expected):
    """The same values in each array of both, of whatever libraries."""
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(get(one), get(other))


def assert_same_bits(actual, expected):
    """The same, of zeros their signs too."""
    for one, other in zip(actual, expected, strict=True):
        assert get(one).tobytes() == get(other).tobytes()


def assert_agrees(case, library=LIBRARY):
    """Every result of a forward and a backward call is the oracle's, and no argument changed."""
    before = [case.x.copy(), case.dy.copy()]
    arguments, dy = on_target(case, library), put(case.dy, library)
    y, saved = numbabn.batch_norm_forward(**arguments)
    dx, dgamma, dbeta = (
        get(each) for each in numbabn.batch_norm_backward(dy, arguments["x"], saved)
    )
    assert_same((arguments["x"], dy), before)
    assert_results(
        case,
        y=get(y),
        statistics=saved.statistics.to_host(),
        r=get(saved.r),
        d=get(saved.d),
        dx=dx,
        dgamma=dgamma,
        dbeta=dbeta,
    )
