"""Reading and writing elements, 16-bit floats included, one at a time or 16 bytes at once.

16-bit floats travel as integers, as on the CPU: float16 as uint16, bfloat16 as int16. They are
converted in registers. `memory` is a pointer in compiled kernels and a flat array in the
simulator, where the plain Python functions serve that say what the compiled ones do.
"""

from typing import Any, NamedTuple

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


class Access(NamedTuple):
    """How a thread reads and writes at a time: one element, or a vector of neighbours.

    load(memory, address, values, first)
        values[first:] = what is at `address`, as float32, or float64 where the memory is
    fetch(memory, address, words, first)
        the same as it is, in words[first:] of 32 bits. What is fetched is not touched before it is
        widened: several fetches are under way only where nothing in between waits for one of them.
    widen(memory, words, first, values, place)
        values[place:] = what was fetched from `memory` to words[first:]
    store(memory, address, values, first)
        what is at `address` = values[first:], rounded once, to nearest even; not kept in the caches

    memory          float32 | float64 | uint16 (float16 bits) | int16 (bfloat16 bits)
    address         an index; a multiple of a vector's elements
    values, words   float32 | float64, and uint32, in registers
    """

    load: Any
    fetch: Any
    widen: Any
    store: Any


def words_of(size, itemsize):
    """Words of what a thread reads at a time: `size` bytes, or 0 for one element."""
    return max(1, (size or itemsize) // 4)


def _plain(size):
    """An `Access` in plain Python; size: bytes of a vector, 0 for one element."""

    def lanes(memory):
        return size // memory.dtype.itemsize or 1

    def load(memory, address, values, first):
        for lane in range(lanes(memory)):
            values[first + lane] = _widened(memory[address + lane])

    def fetch(memory, address, words, first):
        found = np.array([memory[address + lane] for lane in range(lanes(memory))])
        bits = found if found.nbytes % 4 == 0 else found.astype(np.uint32)
        for place, word in enumerate(bits.view(np.uint32)):
            words[first + place] = word

    def widen(memory, words, first, values, place):
        count = words_of(size, memory.dtype.itemsize)
        bits = np.array(words[first : first + count], np.uint32).view(memory.dtype)
        for lane in range(lanes(memory)):
            values[place + lane] = _widened(bits[lane])

    def store(memory, address, values, first):
        for lane in range(lanes(memory)):
            memory[address + lane] = _narrowed(values[first + lane], memory.dtype)

    return Access(load, fetch, widen, store)


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


def _lanes(kind, size):
    return size * 8 // kind.bitwidth or 1


def _unit(kind, size):
    """What one instruction moves: words, whatever they hold (LLVM would cut a vector of small
    integers in two), or an element."""
    return ir.VectorType(_WORD, size // 4) if size else ir.IntType(kind.bitwidth)


def _split(builder, kind, words, count):
    """The values of the elements in a vector of `count` words."""
    if kind == types.float64:
        pair = builder.bitcast(words, ir.VectorType(_DOUBLE, count // 2))
        return [builder.extract_element(pair, _WORD(place)) for place in range(count // 2)]
    values = []
    for place in range(count):
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


def _together(builder, parts):
    """A vector of these values."""
    vector = ir.Constant(ir.VectorType(parts[0].type, len(parts)), ir.Undefined)
    for place, part in enumerate(parts):
        vector = builder.insert_element(vector, part, _WORD(place))
    return vector


def _read(context, builder, signature, arguments, size):
    """What is at `address`, by one instruction, since the alignment says that it is one unit."""
    kind = signature.args[0].dtype
    pointer = _element(context, builder, signature, arguments, _unit(kind, size))
    return builder.load(pointer, align=size or kind.bitwidth // 8)


def _loader(size):
    def load(typing_context, memory, address, values, first):
        kind = memory.dtype

        def generate(context, builder, signature, arguments):
            loaded = _read(context, builder, signature, arguments, size)
            if size:
                found = _split(builder, kind, loaded, size // 4)
            else:
                found = [_widen(builder, kind, loaded)]
            places = _registers(context, builder, signature, arguments, len(found))
            for value, place in zip(found, places, strict=True):
                builder.store(value, place)
            return context.get_dummy_value()

        return types.void(memory, address, values, first), generate

    return load


def _fetcher(size):
    def fetch(typing_context, memory, address, words, first):
        kind = memory.dtype
        count = words_of(size, kind.bitwidth // 8)

        def generate(context, builder, signature, arguments):
            loaded = _read(context, builder, signature, arguments, size)
            if size or kind.bitwidth > 32:
                vector = builder.bitcast(loaded, ir.VectorType(_WORD, count))
                found = [builder.extract_element(vector, _WORD(place)) for place in range(count)]
            else:
                found = [builder.zext(loaded, _WORD) if kind.bitwidth < 32 else loaded]
                found = [builder.bitcast(each, _WORD) for each in found]
            places = _registers(context, builder, signature, arguments, count)
            for word, place in zip(found, places, strict=True):
                builder.store(word, place)
            return context.get_dummy_value()

        return types.void(memory, address, words, first), generate

    return fetch


def _widener(size):
    def widen(typing_context, memory, words, first, values, place):
        kind = memory.dtype
        count = words_of(size, kind.bitwidth // 8)

        def generate(context, builder, signature, arguments):
            places = _registers(context, builder, signature, arguments, count, at=1)
            found = [builder.load(each) for each in places]
            if size or kind == types.float64:
                values = _split(builder, kind, _together(builder, found), count)
            else:
                bits = found[0] if kind.bitwidth == 32 else builder.trunc(found[0], _HALF)
                values = [_widen(builder, kind, bits)]
            targets = _registers(context, builder, signature, arguments, len(values), at=3)
            for value, target in zip(values, targets, strict=True):
                builder.store(value, target)
            return context.get_dummy_value()

        return types.void(memory, words, first, values, place), generate

    return widen


def _storer(size):
    def store(typing_context, memory, address, values, first):
        kind = memory.dtype
        lanes = _lanes(kind, size)
        # A vector goes as words: two 16-bit floats in one, or half of a float64.
        count = size // 4 or 1
        width = 32 if size else kind.bitwidth
        letter = {16: "h", 32: "r", 64: "l"}[width]
        names = ", ".join(f"${place + 1}" for place in range(count))
        names = f"{{{names}}}" if size else names
        # .cs: what is written here is not read again soon, and x is; so it is evicted first.
        text = f"st.global.cs{f'.v{count}' if size else ''}.b{width} [$0], {names};"
        constraints = ",".join(["l", *([letter] * count), "~{memory}"])

        def generate(context, builder, signature, arguments):
            places = _registers(context, builder, signature, arguments, lanes)
            bits = [_narrow(builder, kind, builder.load(place)) for place in places]
            if size:
                words = builder.bitcast(_together(builder, bits), ir.VectorType(_WORD, count))
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


# By the bytes of a vector, 0 for one element. Eight are for rows that 16 do not fit.
SIZES = (0, VECTOR_BYTES // 2, VECTOR_BYTES)
if SIMULATED:
    ACCESS = {size: _plain(size) for size in SIZES}
else:
    from numba.cuda.extending import intrinsic

    ACCESS = {
        size: Access(*(intrinsic(make(size)) for make in (_loader, _fetcher, _widener, _storer)))
        for size in SIZES
    }
    parameter = intrinsic(_reader_of_parameters(True))
    narrow_parameter = intrinsic(_reader_of_parameters(False))
    store_parameter = intrinsic(_store_parameter)
