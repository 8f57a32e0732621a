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

import numpy as np
from llvmlite import ir
from numba import config, types
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


def prefetch(array, index):
    """Bring the cache line of ``array[index]`` near; `index` may lie beyond the end."""


def borrowed(array):
    """`array`, uncounted: it lives until the original is given to `keep`.

    Whoever passes on an array that was made in a kernel counts its references, atomically,
    and that takes longer than a short loop, most of all while streamed stores are under way.
    """
    return array


def keep(array):
    """What `array` holds is needed until here."""


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


def _kinds(module):
    """LLVM's alias scopes, a list of one for each kind of array."""
    domain = module.add_metadata(["numbabn"])
    return {
        kind: module.add_metadata([module.add_metadata([f"numbabn {kind}", domain])])
        for kind in ("input", "output", "column")
    }


def mark(builder, instruction, kind):
    """Tell LLVM that `instruction` touches arrays of `kind` only."""
    kinds = _kinds(builder.module)
    scopes = [
        scope for other, scopes in kinds.items() if other != kind for scope in scopes.operands
    ]
    instruction.set_metadata("alias.scope", kinds[kind])
    instruction.set_metadata("noalias", builder.module.add_metadata(scopes))
    return instruction


# The most rows that a table has.
_ROWS = 16


def _cell_pointer(context, builder, signature, arguments):
    """A cell of a table, (rows, n), whose rows are contiguous; and the row's number."""
    struct = context.make_array(signature.args[0])(context, builder, arguments[0])
    row = signature.args[1].literal_value
    stride = builder.extract_value(struct.strides, 0)
    offset = builder.mul(stride, ir.Constant(stride.type, row))
    memory = builder.gep(builder.bitcast(struct.data, ir.IntType(8).as_pointer()), [offset])
    index = context.cast(builder, arguments[2], signature.args[2], types.intp)
    start = builder.bitcast(memory, struct.data.type)
    return builder.gep(start, [index], inbounds=True), row


def _mark_row(builder, instruction, row):
    """Tell LLVM that `instruction` touches rows of this number only."""
    module = builder.module
    domain = module.add_metadata(["numbabn rows"])
    scopes = [module.add_metadata([f"numbabn row {k}", domain]) for k in range(_ROWS)]
    instruction.set_metadata("alias.scope", module.add_metadata([scopes[row]]))
    others = [scope for k, scope in enumerate(scopes) if k != row]
    instruction.set_metadata("noalias", module.add_metadata(others))
    return instruction


def _row_reader(typing_context, table, row, index):
    def generate(context, builder, signature, arguments):
        pointer, number = _cell_pointer(context, builder, signature, arguments)
        return _mark_row(builder, builder.load(pointer), number)

    return table.dtype(table, row, index), generate


def _row_writer(typing_context, table, row, index, value):
    def generate(context, builder, signature, arguments):
        pointer, number = _cell_pointer(context, builder, signature, arguments)
        _mark_row(builder, builder.store(arguments[3], pointer), number)
        return context.get_dummy_value()

    return types.void(table, row, index, table.dtype), generate


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


def _borrowed(typing_context, array):
    def generate(context, builder, signature, arguments):
        struct = context.make_array(array)(context, builder, arguments[0])
        struct.meminfo = struct.meminfo.type(None)
        return struct._getvalue()

    return array(array), generate


def _keep(typing_context, array):
    def generate(context, builder, signature, arguments):
        return context.get_dummy_value()

    return types.void(array), generate


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
    borrowed = intrinsic(_borrowed)
    keep = intrinsic(_keep)
    read_row = intrinsic(prefer_literal=True)(_row_reader)
    write_row = intrinsic(prefer_literal=True)(_row_writer)
