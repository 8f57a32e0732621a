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


def _element_pointer(context, builder, signature, arguments):
    array_type, index_type = signature.args[:2]
    struct = context.make_array(array_type)(context, builder, arguments[0])
    offset = context.cast(builder, arguments[1], index_type, types.intp)
    return builder.gep(struct.data, [offset], inbounds=True)


def _widen(builder, dtype, value):
    if dtype == types.uint16:
        return builder.fpext(builder.bitcast(value, ir.HalfType()), ir.FloatType())
    if dtype == types.int16:
        word = builder.zext(value, ir.IntType(32))
        return builder.bitcast(builder.shl(word, ir.Constant(word.type, 16)), ir.FloatType())
    return value


def _narrow(builder, dtype, value):
    if dtype == types.uint16:
        return builder.bitcast(builder.fptrunc(value, ir.HalfType()), ir.IntType(16))
    if dtype == types.int16:
        word = ir.IntType(32)
        bits = builder.bitcast(value, word)
        high = builder.lshr(bits, word(16))
        odd = builder.and_(high, word(1))
        even = builder.lshr(builder.add(builder.add(bits, word(0x7FFF)), odd), word(16))
        # Adding to a NaN's bits could carry it over to infinity or zero.
        quiet = builder.or_(high, word(0x40))
        is_nan = builder.fcmp_unordered("uno", value, value)
        return builder.trunc(builder.select(is_nan, quiet, even), ir.IntType(16))
    return value


def _kinds(module):
    """LLVM's alias scopes, a list of one for each kind of array."""
    domain = module.add_metadata(["numbabn"])
    return {
        kind: module.add_metadata([module.add_metadata([f"numbabn {kind}", domain])])
        for kind in ("input", "output", "column")
    }


def _mark(builder, instruction, kind):
    """Tell LLVM that `instruction` touches arrays of `kind` only."""
    kinds = _kinds(builder.module)
    scopes = [
        scope for other, scopes in kinds.items() if other != kind for scope in scopes.operands
    ]
    instruction.set_metadata("alias.scope", kinds[kind])
    instruction.set_metadata("noalias", builder.module.add_metadata(scopes))
    return instruction


def _loader(kind, compute_type):
    def load_element(typing_context, array, index):
        def generate(context, builder, signature, arguments):
            pointer = _element_pointer(context, builder, signature, arguments)
            value = _mark(builder, builder.load(pointer), kind)
            dtype = signature.args[0].dtype
            return value if signature.return_type == dtype else _widen(builder, dtype, value)

        return compute_type(array.dtype)(array, index), generate

    return load_element


def _storer(kind, compute_type):
    def store_element(typing_context, array, index, value):
        def generate(context, builder, signature, arguments):
            pointer = _element_pointer(context, builder, signature, arguments)
            dtype, value = signature.args[0].dtype, arguments[2]
            if signature.args[2] != dtype:
                value = _narrow(builder, dtype, value)
            _mark(builder, builder.store(value, pointer), kind)
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
