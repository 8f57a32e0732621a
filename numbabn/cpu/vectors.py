"""Vectors of a cache line each, for loops that LLVM does not vectorize as they should be.

LLVM gives up nontemporal stores where it vectorizes a loop, and cannot put a prefetch into one.
So these vectors are written by hand. They have the operators `-`, `*` and `+`, with numbers too.
Where the processor's vectors are shorter, LLVM takes several of them for one of these.

`like` is the array that a line's length goes by: as many elements as a cache line has of it. What
is loaded, what is stored and what is read are apart, as in `elements`.

The Python bodies say what the compiled ones do, and serve where the JIT is off.
"""

import operator

import numpy as np
from llvmlite import ir
from numba import config, types
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

from .elements import cell_pointer, element_pointer, load, mark, narrow, store, widen

LINE_BYTES = 64


def lanes(like):
    """Elements of a line."""
    return LINE_BYTES // like.itemsize


def to_line(array, index):
    """How many elements from ``array[index]`` on lie before memory's next line."""
    return -(array.ctypes.data // array.itemsize + index) % lanes(array)


def zero_line(like):
    """Zeros, as many and as wide as `load_line` gives of `like`."""
    return np.zeros(lanes(like), np.float64 if like.itemsize == 8 else np.float32)


def full_line(value, like):
    """`value`, as often as `like` has elements in a line."""
    return np.full(lanes(like), value)


def load_line(array, index):
    """The elements from ``array[index]`` on, as `load` has each: a line of the array."""
    return np.array([load(array, i) for i in range(index, index + lanes(array))])


def read_line(array, index, like):
    """The elements from ``array[index]`` on, as `read` has each."""
    return array[index : index + lanes(like)]


def write_line(array, index, line):
    """`write` each element."""
    array[index : index + line.size] = line


def read_row_line(table, row, index, like):
    """The elements from ``table[row, index]`` on, as `read_row` has each."""
    return table[row, index : index + lanes(like)]


def write_row_line(table, row, index, line):
    """`write_row` each element."""
    table[row, index : index + line.size] = line


def read_column_line(table, index, kind, like):
    """The elements from an index on of a table's first rows, as `read_column` has each."""
    return kind(*table[: len(kind._fields), index : index + lanes(like)])


def stream_line(array, index, line):
    """`store` each element, past the cache, where ``to_line(array, index)`` is 0."""
    for i in range(line.size):
        store(array, index + i, line[i])


def where(condition, value, other):
    """`value` where `condition` is not 0, `other` elsewhere; numbers, or lines and numbers."""
    if np.ndim(condition) == 0:
        return value if condition != 0 else value.dtype.type(0) + other
    return np.where(condition != 0, value, other).astype(value.dtype)


def total(line):
    """The sum of the elements."""
    return line.sum()


def fence():
    """Let every thread see what was streamed before it sees what is stored after."""


class Line(types.Type):  # type: ignore[misc]
    """A vector of `lanes` numbers of `dtype`."""

    def __init__(self, dtype, lanes):
        self.dtype, self.lanes = dtype, lanes
        super().__init__(f"Line({dtype}, {lanes})")


@register_model(Line)
class _LineModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, dmm, fe_type):
        element = dmm.lookup(fe_type.dtype).get_value_type()
        super().__init__(dmm, fe_type, ir.VectorType(element, fe_type.lanes))


_WORD = ir.IntType(32)
_LONG = ir.IntType(64)


def _in_every_lane(builder, value, vector):
    """`value` in a vector, unless it is one."""
    if isinstance(value.type, ir.VectorType):
        return value
    start = builder.insert_element(ir.Constant(vector, ir.Undefined), value, _WORD(0))
    return builder.shuffle_vector(start, start, ir.VectorType(_WORD, vector.count)(0))


def _type_operator(context):
    def typer(left, right):
        line = left if isinstance(left, Line) else right
        if isinstance(line, Line) and all(each in (line, line.dtype) for each in (left, right)):
            return line
        return None

    return typer


def _lower_operator(instruction):
    def generate(context, builder, signature, arguments):
        vector = context.get_value_type(signature.return_type)
        operands = (_in_every_lane(builder, value, vector) for value in arguments)
        return getattr(builder, instruction)(*operands)

    return generate


for _operator, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
):
    type_callable(_operator)(_type_operator)
    for _operands in ((Line, Line), (Line, types.Float), (types.Float, Line)):
        lower_builtin(_operator, *_operands)(_lower_operator(_instruction))


def _line_of(dtype, like):
    """The line of an array of `dtype`, as long as one of `like`."""
    half = dtype in (types.uint16, types.int16)
    return Line(types.float32 if half else dtype, LINE_BYTES * 8 // like.dtype.bitwidth)


def _lanes(typing_context, like):
    def generate(context, builder, signature, arguments):
        return _LONG(_line_of(like.dtype, like).lanes)

    return types.int64(like), generate


def _to_line(typing_context, array, index):
    def generate(context, builder, signature, arguments):
        address = builder.ptrtoint(element_pointer(context, builder, signature, arguments), _LONG)
        missing = builder.and_(builder.neg(address), _LONG(LINE_BYTES - 1))
        return builder.udiv(missing, _LONG(array.dtype.bitwidth // 8))

    return types.int64(array, index), generate


def _zero_line(typing_context, like):
    line = _line_of(like.dtype, like)

    def generate(context, builder, signature, arguments):
        return context.get_value_type(line)(None)

    return line(like), generate


def _full_line(typing_context, value, like):
    line = Line(value, _line_of(like.dtype, like).lanes)

    def generate(context, builder, signature, arguments):
        return _in_every_lane(builder, arguments[0], context.get_value_type(line))

    return line(value, like), generate


def _pointer(context, builder, signature, arguments, lanes):
    pointer = element_pointer(context, builder, signature, arguments)
    return builder.bitcast(pointer, ir.VectorType(pointer.type.pointee, lanes).as_pointer())


def _load_line(typing_context, array, index):
    line = _line_of(array.dtype, array)

    def generate(context, builder, signature, arguments):
        pointer = _pointer(context, builder, signature, arguments, line.lanes)
        value = builder.load(pointer, align=array.dtype.bitwidth // 8)
        mark(builder, value, "input")
        return value if line.dtype == array.dtype else widen(builder, array.dtype, value)

    return line(array, index), generate


def _read_line(typing_context, array, index, like):
    line = _line_of(array.dtype, like)

    def generate(context, builder, signature, arguments):
        pointer = _pointer(context, builder, signature, arguments, line.lanes)
        value = builder.load(pointer, align=array.dtype.bitwidth // 8)
        return mark(builder, value, "column")

    return line(array, index, like), generate


def _write_line(typing_context, array, index, line):
    def generate(context, builder, signature, arguments):
        pointer = _pointer(context, builder, signature, arguments, line.lanes)
        size = array.dtype.bitwidth // 8
        mark(builder, builder.store(arguments[2], pointer, align=size), "column")
        return context.get_dummy_value()

    return types.void(array, index, line), generate


def _row_pointer(context, builder, table, row, index, line):
    pointer = cell_pointer(context, builder, table, row, index)
    return builder.bitcast(pointer, context.get_value_type(line).as_pointer())


def _read_row_line(typing_context, table, row, index, like):
    line = _line_of(table.dtype, like)

    def generate(context, builder, signature, arguments):
        number, place = signature.args[1].literal_value, (signature.args[2], arguments[2])
        pointer = _row_pointer(context, builder, (table, arguments[0]), number, place, line)
        value = builder.load(pointer, align=table.dtype.bitwidth // 8)
        return mark(builder, value, "column", number)

    return line(table, row, index, like), generate


def _write_row_line(typing_context, table, row, index, line):
    def generate(context, builder, signature, arguments):
        number, place = signature.args[1].literal_value, (signature.args[2], arguments[2])
        pointer = _row_pointer(context, builder, (table, arguments[0]), number, place, line)
        stored = builder.store(arguments[3], pointer, align=table.dtype.bitwidth // 8)
        mark(builder, stored, "column", number)
        return context.get_dummy_value()

    return types.void(table, row, index, line), generate


def _read_column_line(typing_context, table, index, kind, like):
    line = _line_of(table.dtype, like)
    column = types.NamedUniTuple(line, len(kind.instance_class._fields), kind.instance_class)

    def generate(context, builder, signature, arguments):
        values = []
        for row in range(column.count):
            place = (signature.args[1], arguments[1])
            pointer = _row_pointer(context, builder, (table, arguments[0]), row, place, line)
            value = builder.load(pointer, align=table.dtype.bitwidth // 8)
            values.append(mark(builder, value, "column", row))
        return context.make_tuple(builder, column, values)

    return column(table, index, kind, like), generate


def _stream_line(typing_context, array, index, line):
    def generate(context, builder, signature, arguments):
        pointer = _pointer(context, builder, signature, arguments, line.lanes)
        value = arguments[2]
        if line.dtype != array.dtype:
            value = narrow(builder, array.dtype, value)
        stored = mark(builder, builder.store(value, pointer, align=LINE_BYTES), "output")
        stored.set_metadata("nontemporal", builder.module.add_metadata([_WORD(1)]))
        return context.get_dummy_value()

    return types.void(array, index, _line_of(array.dtype, array)), generate


def _where(typing_context, condition, value, other):
    def generate(context, builder, signature, arguments):
        chooser, chosen, otherwise = arguments
        element = getattr(condition, "dtype", condition)
        if isinstance(element, (types.Integer, types.Boolean)):
            chooses = builder.icmp_unsigned("!=", chooser, chooser.type(None))
        else:
            chooses = builder.fcmp_unordered("!=", chooser, chooser.type(None))
        if other != value:
            otherwise = context.cast(builder, otherwise, other, getattr(value, "dtype", value))
        if isinstance(value, Line):
            otherwise = _in_every_lane(builder, otherwise, context.get_value_type(value))
        return builder.select(chooses, chosen, otherwise)

    return value(condition, value, other), generate


def _total(typing_context, line):
    def generate(context, builder, signature, arguments):
        (value,) = arguments
        while value.type.count > 1:
            half = value.type.count // 2
            low, high = (
                ir.Constant(ir.VectorType(_WORD, half), [_WORD(begin + i) for i in range(half)])
                for begin in (0, half)
            )
            value = builder.fadd(
                builder.shuffle_vector(value, value, low),
                builder.shuffle_vector(value, value, high),
            )
        return builder.extract_element(value, _WORD(0))

    return line.dtype(line), generate


def _fence(typing_context):
    def generate(context, builder, signature, arguments):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


if not config.DISABLE_JIT:
    lanes = intrinsic(_lanes)
    to_line = intrinsic(_to_line)
    zero_line = intrinsic(_zero_line)
    full_line = intrinsic(_full_line)
    load_line = intrinsic(_load_line)
    read_line = intrinsic(_read_line)
    write_line = intrinsic(_write_line)
    read_row_line = intrinsic(prefer_literal=True)(_read_row_line)
    write_row_line = intrinsic(prefer_literal=True)(_write_row_line)
    read_column_line = intrinsic(_read_column_line)
    stream_line = intrinsic(_stream_line)
    where = intrinsic(_where)
    total = intrinsic(_total)
    fence = intrinsic(_fence)
