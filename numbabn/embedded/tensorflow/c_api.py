"""TensorFlow's C API for compiled code: `tensorflow/c/{kernels,ops,tf_tensor,tf_status}.h`."""

import numpy as np

from ...cpu.addresses import Table, call
from ...cpu.compile import exact
from .. import table
from ..memory import BUFFER, DATA, DTYPE, ELEMENTS, OTHER

# The functions that are called here.
TABLE = Table(
    "tensorflow_api",
    (
        "TF_NewStatus",
        "TF_SetStatus",
        "TF_DeleteStatus",
        "TF_NumInputs",
        "TF_GetInput",
        "TF_AllocateOutput",
        "TF_OpKernelContext_Failure",
        "TF_TensorType",
        "TF_NumDims",
        "TF_Dim",
        "TF_TensorElementCount",
        "TF_TensorData",
        "TF_DeleteTensor",
        "TF_OpKernelConstruction_GetAttrInt64",
        "TF_OpKernelConstruction_Failure",
        "TF_ShapeInferenceContextSetUnknownShape",
    ),
)
_AT, _entry = TABLE.at, TABLE.entry

# TensorFlow's numbers of dtypes: those of `memory.DTYPES`, in their order.
NUMBERS = (19, 14, 1, 2)
# New memory of this size, and the address of a page. In huge pages, where Linux takes the hint, it
# costs a fraction of the page faults: NumPy gives its own arrays the same hint, from 4 MB on.
_LEAST_HUGE, _PAGE, _MADV_HUGEPAGE = 1 << 22, 4096, 14
# Functions that return an int leave the upper half of the word as it was.
_INT = 0xFFFFFFFF


@exact
def _api(place, arguments):
    return call(_entry(place), arguments)


@exact
def new_status():
    """A status, which says nothing yet."""
    return _api(_AT.TF_NewStatus, ())


@exact
def delete_status(status):
    """Free a status."""
    _api(_AT.TF_DeleteStatus, (status,))


@exact
def fail_call(context, code, message):
    """End a call of a kernel with an error; `message` is the address of a C string."""
    status = new_status()
    _api(_AT.TF_SetStatus, (status, code, message))
    _api(_AT.TF_OpKernelContext_Failure, (context, status))
    delete_status(status)
    return 1


@exact
def fail_construction(construction, code, message):
    """End the construction of a kernel with an error."""
    status = new_status()
    _api(_AT.TF_SetStatus, (status, code, message))
    _api(_AT.TF_OpKernelConstruction_Failure, (construction, status))
    delete_status(status)


@exact
def attribute_of(construction, name):
    """An attribute of a kernel that is constructed, an int; `name` is the address of a C string."""
    status, value = new_status(), np.zeros(1, np.int64)
    _api(_AT.TF_OpKernelConstruction_GetAttrInt64, (construction, name, value, status))
    delete_status(status)
    return value[0]


@exact
def set_unknown_shape(inference, status):
    """Leave the shapes of all outputs open."""
    _api(_AT.TF_ShapeInferenceContextSetUnknownShape, (inference, status))


@exact
def inputs_of(context):
    """The input tensors of a call; to be deleted."""
    tensors = np.zeros(_api(_AT.TF_NumInputs, (context,)) & _INT, np.int64)
    status = new_status()
    for i in range(tensors.size):
        _api(_AT.TF_GetInput, (context, i, tensors[i:], status))
    delete_status(status)
    return tensors


@exact
def allocate_output(context, index, dtype, dimensions, rank, size):
    """A new output tensor, to be deleted; 0 if there is none, and then the call has failed.

    dimensions: the address of `rank` words
    size: in bytes
    """
    status = new_status()
    tensor = _api(_AT.TF_AllocateOutput, (context, index, dtype, dimensions, rank, size, status))
    if tensor == 0:
        _api(_AT.TF_OpKernelContext_Failure, (context, status))
    elif size >= _LEAST_HUGE and table.entry(table.AT.advise) != 0:
        address = _api(_AT.TF_TensorData, (tensor,))
        start = (address + _PAGE - 1) // _PAGE * _PAGE
        call(table.entry(table.AT.advise), (start, address + size - start, _MADV_HUGEPAGE))
    delete_status(status)
    return tensor


@exact
def delete_tensors(tensors):
    """Let go of tensors; 0 is none."""
    for tensor in tensors:
        if tensor != 0:
            _api(_AT.TF_DeleteTensor, (tensor,))


@exact
def signature_of(tensors):
    """The shapes of tensors: the rank and the sizes of each."""
    length = 0
    for tensor in tensors:
        length += 1 + (_api(_AT.TF_NumDims, (tensor,)) & _INT)
    signature = np.empty(length, np.int64)
    place = 0
    for tensor in tensors:
        rank = _api(_AT.TF_NumDims, (tensor,)) & _INT
        signature[place] = rank
        for axis in range(rank):
            signature[place + 1 + axis] = _api(_AT.TF_Dim, (tensor, axis))
        place += 1 + rank
    return signature


@exact
def describe(tensor, buffer):
    """Fill in the buffer, as `memory` has it, of a tensor."""
    dtype = _api(_AT.TF_TensorType, (tensor,)) & _INT
    buffer[DATA] = _api(_AT.TF_TensorData, (tensor,))
    buffer[ELEMENTS] = _api(_AT.TF_TensorElementCount, (tensor,))
    buffer[DTYPE] = OTHER
    for place in range(len(NUMBERS)):
        if NUMBERS[place] == dtype:
            buffer[DTYPE] = place


@exact
def new_buffers(number):
    """Room for buffers."""
    return np.zeros((number, BUFFER), np.int64)
