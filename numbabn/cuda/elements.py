"""Reading and writing elements, 16-bit floats included, one at a time or 16 bytes at once.

16-bit floats travel as integers, as on the CPU: float16 as uint16, bfloat16 as int16. They are
converted in registers. `memory` is a pointer in compiled kernels and a flat array in the
simulator, where the plain Python functions serve that say what the compiled ones do.
"""

import numpy as np
from llvmlite import ir
from numba import types

from .runtime import SIMULATED

# What one load or store instruction moves at most.
VECTOR_BYTES = 16

# Kinds of per-channel parameters, which kernels read whatever their dtype.
ABSENT, FLOAT16, BFLOAT16, FLOAT32, FLOAT64 = range(5)
KINDS = {"float16": FLOAT16, "bfloat16": BFLOAT16, "float32": FLOAT32, "float64": FLOAT64}


def _widened(value):
    if value.dtype == np.uint16:
        return np.float32(value.view(np.float16))
    if value.dtype == np.int16:
        return (np.uint32(value.view(np.uint16)) << np.uint32(16)).view(np.float32)
    return value


def _narrowed(value, dtype):
    if dtype == np.uint16:
        return np.float16(value).view(np.uint16)
    if dtype == np.int16:
        bits = np.float32(value).view(np.uint32)
        if value != value:
            high = (bits >> np.uint32(16)) | np.uint32(0x40)
        else:
            odd = (bits >> np.uint32(16)) & np.uint32(1)
            high = (np.uint64(bits) + np.uint64(0x7FFF) + odd) >> np.uint64(16)
        return np.uint16(high).view(np.int16)
    return dtype.type(value)


def load_scalar(memory, address, values, first):
    """values[first] = memory[address], as float32, or float64 where the memory is.

    memory: float32 | float64 | uint16 (float16 bits) | int16 (bfloat16 bits)
    values: (n,) float32 | float64, in registers
    """
    values[first] = _widened(memory[address])


def load_vector(memory, address, values, first):
    """`load_scalar` of the 16 bytes at `address`, which is a multiple of them."""
    for lane in range(VECTOR_BYTES // memory.dtype.itemsize):
        load_scalar(memory, address + lane, values, first + lane)


def fetch_scalar(memory, address, words, first):
    """The element at `address` as it is, in one word of `words` or, of 8 bytes, two.

    What is fetched is not touched before `widen`: several fetches are under way at a time only
    where nothing in between waits for one of them.

    words: (n,) uint32, in registers
    """
    _put(words, first, np.array([memory[address]]))


def fetch_vector(memory, address, words, first):
    """`fetch_scalar` of the 16 bytes at `address`, which is a multiple of them: four words."""
    _put(words, first, np.array([memory[address + i] for i in range(_in_vector(memory))]))


def widen_scalar(memory, words, first, values, place):
    """values[place] from what was fetched from `memory` to words[first]."""
    _take(memory, words[first : first + max(1, memory.dtype.itemsize // 4)], 1, values, place)


def widen_vector(memory, words, first, values, place):
    """The same of the elements in four words."""
    _take(memory, words[first : first + 4], _in_vector(memory), values, place)


def _in_vector(memory):
    return VECTOR_BYTES // memory.dtype.itemsize


def _put(words, first, elements):
    bits = elements if elements.nbytes % 4 == 0 else elements.astype(np.uint32)
    for i, word in enumerate(bits.view(np.uint32)):
        words[first + i] = word


def _take(memory, words, count, values, place):
    elements = np.asarray(words, np.uint32).view(memory.dtype)[:count]
    for i, element in enumerate(elements):
        values[place + i] = _widened(element)


def store_scalar(memory, address, values, first):
    """memory[address] = values[first], rounded once, to nearest even; not kept in the caches."""
    memory[address] = _narrowed(values[first], memory.dtype)


def store_vector(memory, address, values, first):
    """`store_scalar` of the 16 bytes at `address`, which is a multiple of them."""
    for lane in range(VECTOR_BYTES // memory.dtype.itemsize):
        store_scalar(memory, address + lane, values, first + lane)


def parameter(memory, kind, index):
    """memory[index] as float64, of the dtype that `kind` says."""
    return np.float64(_widened(memory[index]))


def narrow_parameter(memory, kind, index):
    """The same as float32, for kinds that are no wider."""
    return np.float32(_widened(memory[index]))


def store_parameter(memory, kind, index, value):
    """memory[index] = value, a float64, of the dtype that `kind` says: float32 or float64."""
    memory[index] = value


_BYTE, _HALF, _WORD = ir.IntType(8), ir.IntType(16), ir.IntType(32)
_FLOAT, _DOUBLE = ir.FloatType(), ir.DoubleType()


def _widen(builder, kind, bits):
    """An element's value from its bits, an integer of its size."""
    if kind == types.int16:
        return builder.bitcast(builder.shl(builder.zext(bits, _WORD), _WORD(16)), _FLOAT)
    if kind == types.uint16:
        return builder.fpext(builder.bitcast(bits, ir.HalfType()), _FLOAT)
    return builder.bitcast(bits, _FLOAT if kind == types.float32 else _DOUBLE)


def _narrow(builder, kind, value):
    """An element's bits from its value."""
    if kind == types.uint16:
        return builder.bitcast(builder.fptrunc(value, ir.HalfType()), _HALF)
    if kind == types.int16:
        bits = builder.bitcast(value, _WORD)
        odd = builder.and_(builder.lshr(bits, _WORD(16)), _WORD(1))
        even = builder.lshr(builder.add(builder.add(bits, _WORD(0x7FFF)), odd), _WORD(16))
        # Rounding a NaN's bits up could carry it over to infinity or zero.
        quiet = builder.or_(builder.lshr(bits, _WORD(16)), _WORD(0x40))
        is_nan = builder.fcmp_unordered("uno", value, value)
        return builder.trunc(builder.select(is_nan, quiet, even), _HALF)
    return builder.bitcast(value, ir.IntType(kind.bitwidth))


def _registers(context, builder, signature, arguments, lanes, at=2):
    """Pointers to `lanes` places of the array that is argument `at`, from the next one on."""
    array_type, index_type = signature.args[at : at + 2]
    struct = context.make_array(array_type)(context, builder, arguments[at])
    first = context.cast(builder, arguments[at + 1], index_type, types.intp)
    return [
        builder.gep(struct.data, [builder.add(first, first.type(lane))]) for lane in range(lanes)
    ]


def _element(context, builder, signature, arguments, unit):
    """A pointer to the element at `address`, as one to `unit`."""
    index = context.cast(builder, arguments[1], signature.args[1], types.int64)
    return builder.bitcast(builder.gep(arguments[0], [index]), unit.as_pointer())


def _lanes(kind, vector):
    return VECTOR_BYTES * 8 // kind.bitwidth if vector else 1


def _split(builder, kind, words):
    """The values of the elements in 16 bytes, four words."""
    if kind == types.float64:
        pair = builder.bitcast(words, ir.VectorType(_DOUBLE, 2))
        return [builder.extract_element(pair, _WORD(place)) for place in range(2)]
    values = []
    for place in range(4):
        word = builder.extract_element(words, _WORD(place))
        if kind == types.float32:
            values.append(builder.bitcast(word, _FLOAT))
        elif kind == types.int16:
            # Two bfloat16: each is the upper half of a float32.
            values.append(builder.bitcast(builder.shl(word, _WORD(16)), _FLOAT))
            values.append(builder.bitcast(builder.and_(word, _WORD(0xFFFF0000)), _FLOAT))
        else:
            halves = (word, builder.lshr(word, _WORD(16)))
            values += [_widen(builder, kind, builder.trunc(half, _HALF)) for half in halves]
    return values


def _loader(vector):
    def load(typing_context, memory, address, values, first):
        kind = memory.dtype
        lanes = _lanes(kind, vector)
        # Words, whatever they hold: LLVM would cut a vector of small integers in two.
        unit = ir.VectorType(_WORD, 4) if vector else ir.IntType(kind.bitwidth)

        def generate(context, builder, signature, arguments):
            pointer = _element(context, builder, signature, arguments, unit)
            # One instruction, since the alignment says that the whole unit is one.
            loaded = builder.load(pointer, align=lanes * kind.bitwidth // 8)
            values = _split(builder, kind, loaded) if vector else [_widen(builder, kind, loaded)]
            places = _registers(context, builder, signature, arguments, lanes)
            for value, place in zip(values, places, strict=True):
                builder.store(value, place)
            return context.get_dummy_value()

        return types.void(memory, address, values, first), generate

    return load


def _fetcher(vector):
    def fetch(typing_context, memory, address, words, first):
        kind = memory.dtype
        count = 4 if vector else max(1, kind.bitwidth // 32)
        width = 128 if vector else kind.bitwidth
        unit = ir.VectorType(_WORD, 4) if vector else ir.IntType(width)

        def generate(context, builder, signature, arguments):
            pointer = _element(context, builder, signature, arguments, unit)
            loaded = builder.load(pointer, align=width // 8)
            if width > 32:
                pair = builder.bitcast(loaded, ir.VectorType(_WORD, count))
                found = [builder.extract_element(pair, _WORD(place)) for place in range(count)]
            else:
                found = [loaded if width == 32 else builder.zext(loaded, _WORD)]
            places = _registers(context, builder, signature, arguments, count)
            for word, place in zip(found, places, strict=True):
                builder.store(word, place)
            return context.get_dummy_value()

        return types.void(memory, address, words, first), generate

    return fetch


def _widener(vector):
    def widen(typing_context, memory, words, first, values, place):
        kind = memory.dtype
        count = 4 if vector else max(1, kind.bitwidth // 32)

        def generate(context, builder, signature, arguments):
            places = _registers(context, builder, signature, arguments, count, at=1)
            found = [builder.load(each) for each in places]
            if vector:
                together = ir.Constant(ir.VectorType(_WORD, 4), ir.Undefined)
                for at, each in enumerate(found):
                    together = builder.insert_element(together, each, _WORD(at))
                values = _split(builder, kind, together)
            elif kind == types.float64:
                together = ir.Constant(ir.VectorType(_WORD, 2), ir.Undefined)
                for at, each in enumerate(found):
                    together = builder.insert_element(together, each, _WORD(at))
                values = [builder.bitcast(together, _DOUBLE)]
            else:
                bits = found[0] if kind.bitwidth == 32 else builder.trunc(found[0], _HALF)
                values = [_widen(builder, kind, bits)]
            targets = _registers(context, builder, signature, arguments, len(values), at=3)
            for value, target in zip(values, targets, strict=True):
                builder.store(value, target)
            return context.get_dummy_value()

        return types.void(memory, words, first, values, place), generate

    return widen


def _storer(vector):
    def store(typing_context, memory, address, values, first):
        kind = memory.dtype
        lanes = _lanes(kind, vector)
        # A vector goes as words: two 16-bit floats in one, or half of a float64.
        count = 4 if vector else 1
        width = 32 if vector else kind.bitwidth
        letter = {16: "h", 32: "r", 64: "l"}[width]
        names = ", ".join(f"${place + 1}" for place in range(count))
        names = f"{{{names}}}" if vector else names
        # .cs: what is written here is not read again soon, and x is; so it is evicted first.
        text = f"st.global.cs{'.v4' if vector else ''}.b{width} [$0], {names};"
        constraints = ",".join(["l", *([letter] * count), "~{memory}"])

        def generate(context, builder, signature, arguments):
            places = _registers(context, builder, signature, arguments, lanes)
            bits = [_narrow(builder, kind, builder.load(place)) for place in places]
            if vector:
                packed = ir.Constant(ir.VectorType(ir.IntType(kind.bitwidth), lanes), ir.Undefined)
                for lane, each in enumerate(bits):
                    packed = builder.insert_element(packed, each, _WORD(lane))
                words = builder.bitcast(packed, ir.VectorType(_WORD, count))
                bits = [builder.extract_element(words, _WORD(place)) for place in range(count)]
            pointer = _element(context, builder, signature, arguments, _BYTE)
            function = ir.FunctionType(ir.VoidType(), [pointer.type, *(each.type for each in bits)])
            asm = ir.InlineAsm(function, text, constraints, side_effect=True)
            builder.call(asm, [pointer, *bits])
            return context.get_dummy_value()

        return types.void(memory, address, values, first), generate

    return store


_OF_KIND = {
    FLOAT16: types.uint16,
    BFLOAT16: types.int16,
    FLOAT32: types.float32,
    FLOAT64: types.float64,
}


def _integer(context, builder, signature, arguments, place):
    return context.cast(builder, arguments[place], signature.args[place], types.int64)


def _places_of_kinds(context, builder, signature, arguments, kinds):
    """For each kind a pointer to the element at `index`, within a branch for that kind.

    A branch, not a selection: only memory of the right kind may be touched.
    """
    kind = _integer(context, builder, signature, arguments, 1)
    index = _integer(context, builder, signature, arguments, 2)
    for code in kinds:
        element = _OF_KIND[code]
        with builder.if_then(builder.icmp_signed("==", kind, kind.type(code))):
            bits = ir.IntType(element.bitwidth).as_pointer()
            yield element, builder.gep(builder.bitcast(arguments[0], bits), [index])


def _reader_of_parameters(wide):
    result_type = _DOUBLE if wide else _FLOAT
    kinds = (FLOAT16, BFLOAT16, FLOAT32, FLOAT64) if wide else (FLOAT16, BFLOAT16, FLOAT32)

    def parameter(typing_context, memory, kind, index):
        def generate(context, builder, signature, arguments):
            result = builder.alloca(result_type)
            builder.store(result_type(0.0), result)
            places = _places_of_kinds(context, builder, signature, arguments, kinds)
            for element, place in places:
                value = _widen(builder, element, builder.load(place))
                same = value.type == result_type
                builder.store(value if same else builder.fpext(value, result_type), result)
            return builder.load(result)

        return (types.float64 if wide else types.float32)(memory, kind, index), generate

    return parameter


def _store_parameter(typing_context, memory, kind, index, value):
    def generate(context, builder, signature, arguments):
        wide = context.cast(builder, arguments[3], signature.args[3], types.float64)
        places = _places_of_kinds(context, builder, signature, arguments, (FLOAT32, FLOAT64))
        for element, place in places:
            rounded = wide if element == types.float64 else builder.fptrunc(wide, _FLOAT)
            builder.store(_narrow(builder, element, rounded), place)
        return context.get_dummy_value()

    return types.void(memory, kind, index, value), generate


if not SIMULATED:
    from numba.cuda.extending import intrinsic

    load_scalar, load_vector = intrinsic(_loader(False)), intrinsic(_loader(True))
    fetch_scalar, fetch_vector = intrinsic(_fetcher(False)), intrinsic(_fetcher(True))
    widen_scalar, widen_vector = intrinsic(_widener(False)), intrinsic(_widener(True))
    store_scalar, store_vector = intrinsic(_storer(False)), intrinsic(_storer(True))
    parameter = intrinsic(_reader_of_parameters(True))
    narrow_parameter = intrinsic(_reader_of_parameters(False))
    store_parameter = intrinsic(_store_parameter)
