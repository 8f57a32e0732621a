"""Reading and writing array elements, 16-bit floats included.

Numba has no 16-bit float on the CPU, so the bits travel as integers: float16 as uint16,
bfloat16 as int16. `load` and `store` convert at the element, in registers: LLVM
vectorizes them to the machine's own conversions (vcvtph2ps, vcvtps2ph), and no float32
copy of an array ever exists.

All of these index the memory directly, without Python's negative indices, which would
keep LLVM from vectorizing a loop. And they tell LLVM what does not overlap, which it
would otherwise test at every row, or give up on: inputs (`load`), outputs (`store`) and
the values of columns (`read`, `write`) are apart. An output may be an input itself; then
each element is written after it was read, and no element is read later than its own write.

The Python bodies say what the compiled ones do, and serve where the JIT is off.
"""

from math import prod

import numpy as np
from llvmlite import ir
from numba import carray, config, njit, types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

HALF = np.dtype(np.uint16)
BFLOAT = np.dtype(np.int16)


def load(array, index):
    """``array[index]`` as float32, or float64 where the array is.

    array: (n,) float32 | float64 | uint16 (float16 bits) | int16 (bfloat16 bits)
    index: integer in [0, n)
    """
    value = array[index]
    if array.dtype == HALF:
        return np.float32(value.view(np.float16))
    if array.dtype == BFLOAT:
        return (np.uint32(value.view(np.uint16)) << np.uint32(16)).view(np.float32)
    return value


def store(array, index, value):
    """``array[index] = value``, rounded once, to nearest even.

    array: (n,) as for `load`
    index: integer in [0, n)
    value: float32, or float64 where the array is
    """
    if array.dtype == HALF:
        array[index] = np.float16(value).view(np.uint16)
    elif array.dtype == BFLOAT:
        bits = np.float32(value).view(np.uint32)
        if value != value:
            high = (bits >> np.uint32(16)) | np.uint32(0x40)
        else:
            odd = (bits >> np.uint32(16)) & np.uint32(1)
            high = (np.uint64(bits) + np.uint64(0x7FFF) + odd) >> np.uint64(16)
        array[index] = np.uint16(high).view(np.int16)
    else:
        array[index] = value


def read(array, index):
    """``array[index]`` of an array that is neither `load`ed nor `store`d."""
    return array[index]


def write(array, index, value):
    """``array[index] = value`` in an array that is neither `load`ed nor `store`d."""
    array[index] = value


def read_row(table, row, index):
    """``table[row, index]``, `row` a constant: rows of different numbers are apart."""
    return table[row, index]


def write_row(table, row, index, value):
    """``table[row, index] = value``, `row` a constant: rows of different numbers are apart."""
    table[row, index] = value


def read_column(table, index, kind):
    """The first rows of a table at an index, as a NamedTuple of this class."""
    return kind(*table[: len(kind._fields), index])


def write_column(table, index, values):
    """Write the fields of a NamedTuple to the first rows of a table at an index."""
    table[: len(values), index] = values


def read_fields(array, start, kind):
    """The elements from ``array[start]`` on, as a NamedTuple of this class."""
    return kind(*array[start : start + len(kind._fields)])


def array_at(memory, start, shape, dtype):
    """What lies so many words (of 8 bytes) from the beginning of memory, as an array.

    memory: an address; where the JIT is off, an array
    """
    part = memory.reshape(-1)[start:].view(dtype)[: prod(shape)]
    # Where there is less, a mask has no element to be read for.
    return part if len(shape) == 1 else part.reshape(shape)


def prefetch(array, index):
    """Bring the cache line of ``array[index]`` near; `index` may lie beyond the end."""


def element_pointer(context, builder, signature, arguments, inbounds=True):
    array_type, index_type = signature.args[:2]
    struct = context.make_array(array_type)(context, builder, arguments[0])
    offset = context.cast(builder, arguments[1], index_type, types.intp)
    return builder.gep(struct.data, [offset], inbounds=inbounds)


_WORD = ir.IntType(32)


def _converts_float16():
    """Whether the processor that Numba compiles for converts float16 by itself.

    Every 64-bit Arm does, and x86 with F16C. Elsewhere LLVM calls functions of the C
    runtime for it, which the process need not have.
    """
    triple, _, features = cpu_target.target_context.codegen().magic_tuple()
    return triple.startswith(("aarch64", "arm64")) or "+f16c" in features


def _like(value, element):
    """`element`, or a vector of as many as `value` has."""
    if isinstance(value.type, ir.VectorType):
        return ir.VectorType(element, value.type.count)
    return element


def widen(builder, dtype, value):
    """16 bits of `dtype`, or a vector of them, as float32."""
    word, single = _like(value, _WORD), _like(value, ir.FloatType())
    bits = builder.zext(value, word)
    if dtype == types.int16:
        return builder.bitcast(builder.shl(bits, word(16)), single)
    if _converts_float16():
        return builder.fpext(builder.bitcast(value, _like(value, ir.HalfType())), single)
    sign = builder.shl(builder.and_(bits, word(0x8000)), word(16))
    # The exponent's bias differs by 112. Multiplying is exact, and right for subnormals too.
    magnitude = builder.shl(builder.and_(bits, word(0x7FFF)), word(13))
    scaled = builder.fmul(builder.bitcast(magnitude, single), single(2.0**112))
    bits = builder.bitcast(scaled, word)
    special = builder.icmp_unsigned(">=", magnitude, word(0x7C00 << 13))
    bits = builder.select(special, builder.or_(magnitude, word(0x7F800000)), bits)
    return builder.bitcast(builder.or_(bits, sign), single)


def narrow(builder, dtype, value):
    """A float32, or a vector of them, as 16 bits of `dtype`, rounded to nearest even."""
    word, half = _like(value, _WORD), _like(value, ir.IntType(16))
    bits = builder.bitcast(value, word)
    is_nan = builder.fcmp_unordered("uno", value, value)
    if dtype == types.int16:
        # Rounding a NaN's bits up could carry it over to infinity or zero.
        quiet = builder.or_(builder.lshr(bits, word(16)), word(0x40))
        even = _round_shift(builder, bits, word(16))
        return builder.trunc(builder.select(is_nan, quiet, even), half)
    if _converts_float16():
        return builder.bitcast(builder.fptrunc(value, _like(value, ir.HalfType())), half)
    sign = builder.lshr(builder.and_(bits, word(0x80000000)), word(16))
    magnitude = builder.and_(bits, word(0x7FFFFFFF))
    normal = _round_shift(builder, builder.sub(magnitude, word(112 << 23)), word(13))
    # Below 2^-14 the significand, its leading 1 included, moves right by the exponent's lack.
    significand = builder.or_(builder.and_(magnitude, word(0x7FFFFF)), word(0x800000))
    shift = builder.sub(word(126), builder.lshr(magnitude, word(23)))
    shift = builder.select(builder.icmp_unsigned("<", shift, word(25)), shift, word(25))
    subnormal = _round_shift(builder, significand, shift)
    small = builder.icmp_unsigned("<", magnitude, word(113 << 23))
    result = builder.select(small, subnormal, normal)
    large = builder.icmp_unsigned(">=", magnitude, word(0x47800000))
    result = builder.select(large, word(0x7C00), result)
    result = builder.select(is_nan, word(0x7E00), result)
    return builder.trunc(builder.or_(result, sign), half)


def _round_shift(builder, bits, shift):
    """bits >> shift, rounded to nearest, ties to even."""
    one = bits.type(1)
    odd = builder.and_(builder.lshr(bits, shift), one)
    below_half = builder.sub(builder.shl(one, builder.sub(shift, one)), one)
    return builder.lshr(builder.add(builder.add(bits, below_half), odd), shift)


def _scopes(module, domain, names):
    """LLVM's alias scopes of a domain, by name."""
    domain = module.add_metadata([f"numbabn {domain}"])
    return {name: module.add_metadata([f"numbabn {name}", domain]) for name in names}


# The most rows that a table has.
_ROWS = 16


def mark(builder, instruction, kind, row=None):
    """Tell LLVM that `instruction` touches arrays of `kind` only, and of tables one row."""
    module = builder.module
    kinds = _scopes(module, "kinds", ("input", "output", "column"))
    own = [kinds.pop(kind)]
    others = list(kinds.values())
    if row is not None:
        rows = _scopes(module, "rows", range(_ROWS))
        own.append(rows.pop(row))
        others += rows.values()
    instruction.set_metadata("alias.scope", module.add_metadata(own))
    instruction.set_metadata("noalias", module.add_metadata(others))
    return instruction


def cell_pointer(context, builder, table, row, index):
    """A cell of a table, (rows, n), whose rows are contiguous.

    table, index: pairs of a type and a value
    row: a number
    """
    struct = context.make_array(table[0])(context, builder, table[1])
    stride = builder.extract_value(struct.strides, 0)
    offset = builder.mul(stride, ir.Constant(stride.type, row))
    memory = builder.gep(builder.bitcast(struct.data, ir.IntType(8).as_pointer()), [offset])
    place = context.cast(builder, index[1], index[0], types.intp)
    return builder.gep(builder.bitcast(memory, struct.data.type), [place], inbounds=True)


def _row_reader(typing_context, table, row, index):
    def generate(context, builder, signature, arguments):
        number = signature.args[1].literal_value
        place = (signature.args[2], arguments[2])
        pointer = cell_pointer(context, builder, (table, arguments[0]), number, place)
        return mark(builder, builder.load(pointer), "column", number)

    return table.dtype(table, row, index), generate


def _row_writer(typing_context, table, row, index, value):
    def generate(context, builder, signature, arguments):
        number = signature.args[1].literal_value
        place = (signature.args[2], arguments[2])
        pointer = cell_pointer(context, builder, (table, arguments[0]), number, place)
        mark(builder, builder.store(arguments[3], pointer), "column", number)
        return context.get_dummy_value()

    return types.void(table, row, index, table.dtype), generate


def _column_reader(typing_context, table, index, kind):
    column = types.NamedUniTuple(table.dtype, len(kind.instance_class._fields), kind.instance_class)

    def generate(context, builder, signature, arguments):
        values = []
        for row in range(column.count):
            place = (signature.args[1], arguments[1])
            pointer = cell_pointer(context, builder, (table, arguments[0]), row, place)
            values.append(mark(builder, builder.load(pointer), "column", row))
        return context.make_tuple(builder, column, values)

    return column(table, index, kind), generate


def _column_writer(typing_context, table, index, values):
    def generate(context, builder, signature, arguments):
        for row, given in enumerate(values.types):
            place = (signature.args[1], arguments[1])
            pointer = cell_pointer(context, builder, (table, arguments[0]), row, place)
            value = builder.extract_value(arguments[2], row)
            value = context.cast(builder, value, given, table.dtype)
            mark(builder, builder.store(value, pointer), "column", row)
        return context.get_dummy_value()

    return types.void(table, index, values), generate


def _field_reader(typing_context, array, start, kind):
    fields = types.NamedUniTuple(array.dtype, len(kind.instance_class._fields), kind.instance_class)

    def generate(context, builder, signature, arguments):
        first = element_pointer(context, builder, signature, arguments)
        values = [
            builder.load(builder.gep(first, [_WORD(i)], inbounds=True)) for i in range(fields.count)
        ]
        return context.make_tuple(builder, fields, values)

    return fields(array, start, kind), generate


@intrinsic
def pointer(typing_context, address):
    """An address as `carray` takes it."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), generate


def _array_at(memory, start, shape, dtype):
    return carray(pointer(memory + 8 * start), shape, dtype)


def _prefetcher(typing_context, array, index):
    def generate(context, builder, signature, arguments):
        byte = ir.IntType(8).as_pointer()
        # It may point beyond the array, which LLVM must not take for a promise.
        pointer = element_pointer(context, builder, signature, arguments, inbounds=False)
        pointer = builder.bitcast(pointer, byte)
        function_type = ir.FunctionType(ir.VoidType(), [byte, _WORD, _WORD, _WORD])
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte], function_type)
        # For reading; to every level of the cache; data.
        builder.call(function, [pointer, _WORD(0), _WORD(3), _WORD(1)])
        return context.get_dummy_value()

    return types.void(array, index), generate


def _loader(kind, compute_type):
    def load_element(typing_context, array, index):
        def generate(context, builder, signature, arguments):
            pointer = element_pointer(context, builder, signature, arguments)
            value = mark(builder, builder.load(pointer), kind)
            dtype = signature.args[0].dtype
            return value if signature.return_type == dtype else widen(builder, dtype, value)

        return compute_type(array.dtype)(array, index), generate

    return load_element


def _storer(kind, compute_type):
    def store_element(typing_context, array, index, value):
        def generate(context, builder, signature, arguments):
            pointer = element_pointer(context, builder, signature, arguments)
            dtype, value = signature.args[0].dtype, arguments[2]
            if signature.args[2] != dtype:
                value = narrow(builder, dtype, value)
            mark(builder, builder.store(value, pointer), kind)
            return context.get_dummy_value()

        return types.void(array, index, compute_type(array.dtype)), generate

    return store_element


def _compute_type(dtype):
    return types.float32 if dtype in (types.uint16, types.int16) else dtype


def _own_type(dtype):
    return dtype


if not config.DISABLE_JIT:
    load = intrinsic(_loader("input", _compute_type))
    store = intrinsic(_storer("output", _compute_type))
    read = intrinsic(_loader("column", _own_type))
    write = intrinsic(_storer("column", _own_type))
    prefetch = intrinsic(_prefetcher)
    read_column = intrinsic(_column_reader)
    write_column = intrinsic(_column_writer)
    read_fields = intrinsic(_field_reader)
    array_at = njit(_array_at, forceinline=True)
    read_row = intrinsic(prefer_literal=True)(_row_reader)
    write_row = intrinsic(prefer_literal=True)(_row_writer)
