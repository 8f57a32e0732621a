"""XLA's C API for compiled code: its structs, read and written as words.

The structs are those of `xla/ffi/api/c_api.h`, which jaxlib installs.
"""

import numpy as np

from ...cpu.addresses import call, words
from ...cpu.compile import exact
from ..memory import BUFFER, DATA, DTYPE, ELEMENTS, OTHER, int32

_API_VERSION = 3 << 32  # 0.3: int32 major, int32 minor

# Offsets in words of 8 bytes, and after those of a struct how many words it has.
_FRAME_EXTENSION, _FRAME_API, FRAME_CONTEXT = 1, 2, 3
_FRAME_OPERANDS_SIZE, _FRAME_OPERANDS, _FRAME_RESULTS_SIZE, _FRAME_RESULTS = 7, 9, 12, 14
_FRAME_ATTRIBUTES, FRAME = 20, 21
_BUFFER_DTYPE, _BUFFER_DATA, _BUFFER_RANK, _BUFFER_DIMENSIONS, _BUFFER = 2, 3, 4, 5, 6
_ARRAY_SIZE, _ARRAY_DATA, _ARRAY = 1, 2, 3
_EXTENSION_TYPE, _EXTENSION_NEXT, _EXTENSION_METADATA, _EXTENSION = 1, 2, 3, 4
_METADATA_VERSION, _METADATA = 3, 4
_API_ERROR_CREATE, _API_ERROR_DESTROY, _API_SCHEDULE, _API_THREADS, _API = 6, 8, 17, 18, 19

_METADATA_TYPE = 1
# XLA's numbers of dtypes: those of `memory.DTYPES`, in their order, and uint32.
_F64, _U32 = 12, 8
_NUMBERS = (10, 16, 11, _F64)


# The call frame


@exact
def answers_metadata(frame):
    """Whether XLA only asks which version of the interface the handler is of; it is told."""
    extension = frame[_FRAME_EXTENSION]
    if extension == 0:
        return False
    while extension != 0:
        fields = words(extension, _EXTENSION)
        if int32(extension + 8 * _EXTENSION_TYPE) == _METADATA_TYPE:
            words(fields[_EXTENSION_METADATA], _METADATA)[_METADATA_VERSION] = _API_VERSION
        extension = fields[_EXTENSION_NEXT]
    return True


@exact
def api_of(frame):
    """The functions of XLA, which the functions below take."""
    return words(frame[_FRAME_API], _API)


@exact
def operands_of(frame):
    """The operands, as `memory` has buffers."""
    return buffers(words(frame[_FRAME_OPERANDS], frame[_FRAME_OPERANDS_SIZE]))


@exact
def results_of(frame):
    """The results, as `memory` has buffers."""
    return buffers(words(frame[_FRAME_RESULTS], frame[_FRAME_RESULTS_SIZE]))


@exact
def attribute_of(frame):
    """The address and the size of the call's only attribute, an array of words."""
    array = words(words(frame[_FRAME_ATTRIBUTES], 1)[0], _ARRAY)
    return array[_ARRAY_DATA], array[_ARRAY_SIZE]


# Buffers


@exact
def buffers(addresses):
    """The buffers at these addresses, as `memory` has them: (n, BUFFER) words."""
    found = np.empty((addresses.size, BUFFER), np.int64)
    for k in range(addresses.size):
        fields = words(addresses[k], _BUFFER)
        number = 1
        for size in words(fields[_BUFFER_DIMENSIONS], fields[_BUFFER_RANK]):
            number *= size
        dtype = int32(addresses[k] + 8 * _BUFFER_DTYPE)
        if dtype == _U32:
            # Float64 as its bits, in pairs.
            number //= 2
            dtype = _F64
        found[k, DATA] = fields[_BUFFER_DATA]
        found[k, ELEMENTS] = number
        found[k, DTYPE] = OTHER
        for place in range(len(_NUMBERS)):
            if _NUMBERS[place] == dtype:
                found[k, DTYPE] = place
    return found


# Functions of XLA. Each takes a struct that begins with its size in bytes.


@exact
def error(api, code, message):
    """The address of a new error; `message` is that of a C string."""
    request = np.zeros(4, np.int64)
    # 28: the last field is an int32.
    request[0], request[2], request[3] = 28, message, code
    return call(api[_API_ERROR_CREATE], (request,))


@exact
def thread_count(api, context):
    """How many threads XLA's pool has; 0 where there is no pool."""
    number = np.zeros(1, np.int64)
    request = np.zeros(4, np.int64)
    request[0], request[2], request[3] = 32, context, number.ctypes.data
    _succeeds(api, _API_THREADS, request)
    return number[0]


@exact
def schedule(api, context, function, argument):
    """Have a thread of XLA's pool call a C function, some time; whether it will."""
    request = np.zeros(5, np.int64)
    request[0], request[2], request[3], request[4] = 40, context, function, argument
    return _succeeds(api, _API_SCHEDULE, request)


@exact
def _succeeds(api, function, request):
    """Whether a function of XLA did what it was asked for."""
    failure = call(api[function], (request,))
    if failure == 0:
        return True
    request = np.zeros(3, np.int64)
    request[0], request[2] = 24, failure
    call(api[_API_ERROR_DESTROY], (request,))
    return False
