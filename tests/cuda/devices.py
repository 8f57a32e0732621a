"""Arrays on a device, of every library that there is: from NumPy arrays and back."""

import ctypes
import os

import ml_dtypes
import numpy as np
from numba import cuda

import numbabn
from arrays import assert_results
from numbabn.targets import library_of

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
ON_HARDWARE = os.environ["NUMBABN_CUDA"] == "device"
# "plain" has nothing but the array interface. In simulation there are no other libraries.
LIBRARIES = ["numba", "plain", "cupy", "torch"] if ON_HARDWARE else ["numba", "plain"]


def describe(array, name):
    """What is known of an array on the device."""
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


def put(values, library):
    """A copy of a NumPy array on the device, of the same strides; None stays None."""
    if values is None:
        return None
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
        address = describe(memory, "memory").address + first
        interface = {
            "shape": values.shape,
            "strides": values.strides,
            "typestr": values.dtype.str,
            "data": (address, not values.flags.writeable),
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
    """A NumPy copy of an array on the device."""
    if isinstance(array, Plain):
        described = describe(array, "array")
        array = numba_array(described)
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
    """A described array as one of Numba's."""
    if ON_HARDWARE:
        return cuda.as_cuda_array(described.owner)
    interface = {**described.owner.__cuda_array_interface__, "data": (described.address, False)}
    view = np.asarray(type("Interface", (), {"__array_interface__": interface})())
    return type(cuda.device_array(0, np.uint8))(view)


def strides_of(array):
    """Bytes between neighbours along each axis."""
    return describe(array, "array").strides


def on_device(case, library):
    """The arguments of a forward on the device, as keywords."""
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


def assert_agrees(case, library="numba"):
    """Every result of a forward and a backward call is the oracle's, and no argument changed."""
    arguments = on_device(case, library)
    dy = put(case.dy, library)
    y, saved = numbabn.batch_norm_forward(**arguments)
    dx, dgamma, dbeta = (
        get(each) for each in numbabn.batch_norm_backward(dy, arguments["x"], saved)
    )
    for array, before in ((arguments["x"], case.x), (dy, case.dy)):
        np.testing.assert_array_equal(get(array), before)
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
