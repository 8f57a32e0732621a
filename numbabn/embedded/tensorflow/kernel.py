"""The kernel: the C functions that TensorFlow calls for the operator."""

import numpy as np

from ...cpu.compile import exact
from .. import callbacks, execution, pool, table
from ..jobs import load
from ..memory import (
    BUFFER,
    DATA,
    DTYPE,
    DTYPES,
    ELEMENTS,
    FAILED_PRECONDITION,
    INVALID_ARGUMENT,
    RESOURCE_EXHAUSTED,
    call,
    words,
)  # fmt: skip
from . import c_api

# In the table, after the functions of the C API: Python's `find_state` and `make_record`, the name
# of the attribute, and what `execution` calls back.
_FIRST = table.OF_TENSORFLOW + len(c_api.FUNCTIONS)
FIND_STATE, MAKE_RECORD, ATTRIBUTE, COUNT_OTHERS, SCHEDULE, FAIL = range(_FIRST, _FIRST + 6)

# The state of a kernel is that of its spec, in words: the newest of its records, or 0, and which
# spec it is.
NEWEST, INDEX, STATE = range(3)

# A record, in words: the record before, or 0; whether it was made for one call, which frees it;
# then how many words each of its parts has: the shapes of the inputs, the indices of numbers that
# are read late, the outputs, and the plan. The parts follow, without gaps.
BEFORE, ONCE, SIGNATURE, LATE, OUTPUTS, PLAN, HEAD = range(7)
# Of an output: TensorFlow's number of its dtype, its size in bytes and its rank; then its sizes.
_DTYPE, _BYTES, _RANK, OUTPUT = range(4)

_FLOAT32 = DTYPES.index("float32")


def create(construction):
    """The state of a new kernel, which is shared."""
    index = c_api.attribute_of(construction, table.entry(ATTRIBUTE))
    state = call(table.entry(FIND_STATE), (index,))
    if state == 0:
        message = table.entry(table.NOT_LOADED)
        c_api.fail_construction(construction, FAILED_PRECONDITION, message)
    return state


def delete(state):
    """Nothing belongs to a kernel alone."""


def infer_shapes(inference, status):
    """Leave shapes to Python, which sets them as it traces."""
    c_api.set_unknown_shape(inference, status)


def compute(state, context):
    """Run a call."""
    inputs = c_api.inputs_of(context)
    record = _record_of(state, context, c_api.signature_of(inputs))
    if record != 0:
        _run(record, context, inputs)
        if words(record, HEAD)[ONCE] != 0:
            call(table.entry(table.FREE), (record,))
    c_api.delete_tensors(inputs)


@exact
def _record_of(state, context, signature):
    """The record for these shapes; 0 if there can be none, and then the call has failed."""
    record = load(state + 8 * NEWEST)
    while record != 0:
        head = words(record, HEAD)
        if head[SIGNATURE] == signature.size:
            known = words(record + 8 * HEAD, signature.size)
            if (known == signature).all():
                return record
        record = head[BEFORE]
    address = call(table.entry(table.ALLOCATE), (8 * callbacks.REQUEST,))
    if address == 0:
        c_api.fail_call(context, RESOURCE_EXHAUSTED, table.entry(table.NO_MEMORY))
        return 0
    request = words(address, callbacks.REQUEST)
    request[0], request[1] = words(state, STATE)[INDEX], signature.size
    request[2] = signature.ctypes.data
    record = call(table.entry(MAKE_RECORD), (address, signature))
    if record == 0:
        c_api.fail_call(context, INVALID_ARGUMENT, address + 8 * callbacks.REASON)
    call(table.entry(table.FREE), (address,))
    return record


@exact
def _run(record, context, inputs):
    head = words(record, HEAD)
    late_address = record + 8 * (HEAD + head[SIGNATURE])
    outputs_address = late_address + 8 * head[LATE]
    plan_address = outputs_address + 8 * head[OUTPUTS]

    # The numbers follow the buffers: an array of their own would be freed before they are read.
    operands = c_api.new_buffers(inputs.size + 2 * head[LATE])
    numbers = operands.ctypes.data + 8 * BUFFER * (inputs.size + head[LATE])
    for i in range(inputs.size):
        c_api.describe(inputs[i], operands[i])
    fail = table.entry(FAIL)
    if callbacks.read_numbers(head[LATE], late_address, numbers, context, fail) != 0:
        return
    for k in range(head[LATE]):
        late = operands[inputs.size + k]
        late[DATA], late[ELEMENTS], late[DTYPE] = numbers + 4 * k, 1, _FLOAT32

    outputs = words(outputs_address, head[OUTPUTS])
    number, place = 0, 0
    while place < outputs.size:
        number += 1
        place += OUTPUT + outputs[place + _RANK]
    tensors = np.zeros(number, np.int64)
    results = c_api.new_buffers(number)
    place = 0
    for k in range(number):
        tensors[k] = c_api.allocate_output(
            context, k, outputs[place + _DTYPE], outputs_address + 8 * (place + OUTPUT),
            outputs[place + _RANK], outputs[place + _BYTES],
        )  # fmt: skip
        if tensors[k] == 0:
            c_api.delete_tensors(tensors)
            return
        c_api.describe(tensors[k], results[k])
        place += OUTPUT + outputs[place + _RANK]
    execution.execute(
        plan_address, head[PLAN], operands, results, context, table.entry(COUNT_OTHERS),
        table.entry(SCHEDULE), fail,
    )  # fmt: skip
    c_api.delete_tensors(tensors)


# What `execution` calls back; the source is the context of the call.


def count_others(source):
    """How many threads there are to lend a hand."""
    return pool.count()


def schedule(source, function, argument):
    """Have one of them call a C function, if one is idle."""
    return pool.schedule(function, argument)


def fail(source, code, message):
    """End the call with an error."""
    return c_api.fail_call(source, code, message)
