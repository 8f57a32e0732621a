"""XLA's C API for compiled code: its structs, read and written as words.

The structs are those of `xla/ffi/api/c_api.h`, which jaxlib installs.
"""

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from ..compile import exact

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
INVALID_ARGUMENT, RESOURCE_EXHAUSTED, FAILED_PRECONDITION = 3, 8, 9
_F64 = 12
DTYPES = {"float16": 10, "bfloat16": 16, "float32": 11, "float64": _F64}


# Memory


@intrinsic
def pointer(typing_context, address):
    """An address as `carray` takes it."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), generate


@intrinsic
def double(typing_context, bits):
    """The float64 that has these bits."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.DoubleType())

    return types.float64(types.int64), generate


@intrinsic
def call(typing_context, function, argument):
    """Call a C function of one pointer or integer; an array stays alive during the call."""

    def generate(context, builder, signature, arguments):
        word = ir.IntType(64)
        value = arguments[1]
        if isinstance(signature.args[1], types.Array):
            array = context.make_array(signature.args[1])(context, builder, value)
            value = builder.ptrtoint(array.data, word)
        pointer = builder.inttoptr(arguments[0], ir.FunctionType(word, [word]).as_pointer())
        return builder.call(pointer, [value])

    kept = argument if isinstance(argument, types.Array) else types.int64
    return types.int64(types.int64, kept), generate


@exact
def words(address, size):
    """The `size` words at an address."""
    return carray(pointer(address), (size,), np.int64)


@exact
def _int32(address):
    return carray(pointer(address), (1,), np.int32)[0]


# The call frame


@exact
def answers_metadata(frame):
    """Whether XLA only asks which version of the interface the handler is of; it is told."""
    extension = frame[_FRAME_EXTENSION]
    if extension == 0:
        return False
    while extension != 0:
        fields = words(extension, _EXTENSION)
        if _int32(extension + 8 * _EXTENSION_TYPE) == _METADATA_TYPE:
            words(fields[_EXTENSION_METADATA], _METADATA)[_METADATA_VERSION] = _API_VERSION
        extension = fields[_EXTENSION_NEXT]
    return True


@exact
def api_of(frame):
    """The functions of XLA, which the functions below take."""
    return words(frame[_FRAME_API], _API)


@exact
def operands_of(frame):
    """The addresses of the operands' buffers."""
    return words(frame[_FRAME_OPERANDS], frame[_FRAME_OPERANDS_SIZE])


@exact
def results_of(frame):
    """The addresses of the results' buffers."""
    return words(frame[_FRAME_RESULTS], frame[_FRAME_RESULTS_SIZE])


@exact
def attribute_of(frame):
    """The address and the size of the call's only attribute, an array of words."""
    array = words(words(frame[_FRAME_ATTRIBUTES], 1)[0], _ARRAY)
    return array[_ARRAY_DATA], array[_ARRAY_SIZE]


# Buffers


@exact
def dtype_of(buffer):
    """XLA's number of a buffer's dtype."""
    return _int32(buffer + 8 * _BUFFER_DTYPE)


@exact
def elements(buffer):
    """How many elements a buffer has."""
    fields = words(buffer, _BUFFER)
    number = 1
    for size in words(fields[_BUFFER_DIMENSIONS], fields[_BUFFER_RANK]):
        number *= size
    return number


@exact
def data(buffer):
    """Where a buffer's elements are."""
    return words(buffer, _BUFFER)[_BUFFER_DATA]


@exact
def array_of(buffer, shape, dtype):
    """A buffer's elements as an array."""
    return carray(pointer(data(buffer)), shape, dtype)


@exact
def read_floats(buffer, values):
    """Copy a buffer of float32 or float64 to `values`."""
    if dtype_of(buffer) == _F64:
        values[:] = array_of(buffer, values.shape, np.float64)
    else:
        values[:] = array_of(buffer, values.shape, np.float32)


@exact
def write_floats(buffer, values):
    """Copy `values` to a buffer of float32 or float64."""
    if dtype_of(buffer) == _F64:
        array_of(buffer, values.shape, np.float64)[:] = values
    else:
        array_of(buffer, values.shape, np.float32)[:] = values


# Functions of XLA. Each takes a struct that begins with its size in bytes.


@exact
def error(api, code, message):
    """The address of a new error; `message` is that of a C string."""
    request = np.zeros(4, np.int64)
    # 28: the last field is an int32.
    request[0], request[2], request[3] = 28, message, code
    return call(api[_API_ERROR_CREATE], request)


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
    failure = call(api[function], request)
    if failure == 0:
        return True
    request = np.zeros(3, np.int64)
    request[0], request[2] = 24, failure
    call(api[_API_ERROR_DESTROY], request)
    return False
