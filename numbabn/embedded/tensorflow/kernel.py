"""The kernel: the C functions that TensorFlow calls for the operator."""

import numpy as np

from ...cpu import pool
from ...cpu.addresses import Table, add, call, load, words
from ...cpu.compile import exact
from .. import callbacks, execution, table
from ..memory import (
    BUFFER,
    DATA,
    DTYPE,
    DTYPES,
    ELEMENTS,
    FAILED_PRECONDITION,
    INVALID_ARGUMENT,
    RESOURCE_EXHAUSTED,
)
from . import c_api

# Python's functions, the name of the operator's attribute, and what `execution` calls back.
TABLE = Table(
    "tensorflow",
    ("find_state", "make_record", "attribute", "most_others", "count_others", "schedule", "fail"),
)
_AT, _entry = TABLE.at, TABLE.entry

# The state of a kernel is that of its spec, in words: the newest of its records, or 0, which spec
# it is, and how many calls there are at this moment, which may be reading records.
NEWEST, INDEX, CALLS, STATE = range(4)

# A record, in words: the record before, or 0; whether it was made for one call, which frees it;
# then how many words each of its parts has: the shapes of the inputs, the indices of numbers that
# are read late, the outputs, and the plan. The parts follow, without gaps.
BEFORE, ONCE, SIGNATURE, LATE, OUTPUTS, PLAN, HEAD = range(7)
# Of an output: TensorFlow's number of its dtype, its size in bytes and its rank; then its sizes.
_DTYPE, _BYTES, _RANK, OUTPUT = range(4)

_FLOAT32 = DTYPES.index("float32")


def create(construction):
    """The state of a new kernel, which is shared."""
    index = c_api.attribute_of(construction, _entry(_AT.attribute))
    request = callbacks.ask(_entry(_AT.find_state), index, 0, 0)
    if request == 0:
        message = table.entry(table.AT.no_memory)
        c_api.fail_construction(construction, RESOURCE_EXHAUSTED, message)
        return 0
    answer = words(request, callbacks.REQUEST)
    state = answer[callbacks.ANSWER] if answer[callbacks.STATUS] == callbacks.ANSWERED else 0
    if answer[callbacks.STATUS] != callbacks.ANSWERED:
        reason = request + 8 * callbacks.REASON
        c_api.fail_construction(construction, INVALID_ARGUMENT, reason)
    elif state == 0:
        message = table.entry(table.AT.not_loaded)
        c_api.fail_construction(construction, FAILED_PRECONDITION, message)
    callbacks.free(request)
    return state


def delete(state):
    """Nothing belongs to a kernel alone."""


def infer_shapes(inference, status):
    """Leave shapes to Python, which sets them as it traces."""
    c_api.set_unknown_shape(inference, status)


def compute(state, context):
    """Run a call."""
    if state == 0:
        # Its construction has failed, and TensorFlow was told.
        c_api.fail_call(context, FAILED_PRECONDITION, table.entry(table.AT.not_loaded))
        return
    inputs = c_api.inputs_of(context)
    # From before records are looked at until after: nobody frees them meanwhile.
    add(state + 8 * CALLS, 1)
    record = _record_of(state, context, c_api.signature_of(inputs))
    if record != 0:
        _run(record, context, inputs)
        if words(record, HEAD)[ONCE] != 0:
            call(table.entry(table.AT.free), (record,))
    add(state + 8 * CALLS, -1)
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
    index = words(state, STATE)[INDEX]
    request = callbacks.ask(_entry(_AT.make_record), index, signature.size, signature.ctypes.data)
    if request == 0:
        c_api.fail_call(context, RESOURCE_EXHAUSTED, table.entry(table.AT.no_memory))
        return 0
    answer = words(request, callbacks.REQUEST)
    record = answer[callbacks.ANSWER]
    if answer[callbacks.STATUS] != callbacks.ANSWERED or record == 0:
        c_api.fail_call(context, INVALID_ARGUMENT, request + 8 * callbacks.REASON)
        record = 0
    callbacks.free(request)
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
    fail = _entry(_AT.fail)
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
        dtype, size, rank = outputs[place + _DTYPE], outputs[place + _BYTES], outputs[place + _RANK]
        sizes = outputs_address + 8 * (place + OUTPUT)
        tensors[k] = c_api.allocate_output(context, k, dtype, sizes, rank, size)
        if tensors[k] == 0:
            c_api.delete_tensors(tensors)
            return
        c_api.describe(tensors[k], results[k])
        place += OUTPUT + rank
    count, schedule = _entry(_AT.count_others), _entry(_AT.schedule)
    execution.execute(plan_address, head[PLAN], operands, results, context, count, schedule, fail)
    c_api.delete_tensors(tensors)


# What `execution` calls back; the source is the context of the call.


def count_others(source):
    """How many threads there are to lend a hand."""
    return min(pool.count(), _entry(_AT.most_others))


def schedule(source, function, argument):
    """Have one of them call a C function, which is `jobs.help`."""
    return pool.schedule(argument)


def fail(source, code, message):
    """End the call with an error."""
    return c_api.fail_call(source, code, message)
