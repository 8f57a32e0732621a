"""What compiled code knows by its address alone: words, C functions, and tables of both.

Compiled code is cached, and each process has things elsewhere. So it holds places in tables, whose
own addresses it finds by their names. A table belongs to one module, which says what is in it, and
no place depends on what else is loaded.
"""

import ctypes
import platform
from collections import namedtuple
from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from .compile import exact
from .elements import pointer


def address_of(function):
    """The address of a C function that ctypes has found or made; 0 of None."""
    return ctypes.cast(function, ctypes.c_void_p).value or 0


@intrinsic
def call(typing_context, function, arguments):
    """Call a C function of pointers and integers: the word that it returns.

    arguments: tuple of words and arrays; an array goes as its address, alive during the call
    """

    def generate(context, builder, signature, values):
        word = ir.IntType(64)
        words = []
        for i, argument in enumerate(signature.args[1].types):
            value = builder.extract_value(values[1], i)
            if isinstance(argument, types.Array):
                array = context.make_array(argument)(context, builder, value)
                value = builder.ptrtoint(array.data, word)
            words.append(value)
        function_type = ir.FunctionType(word, [word] * len(words))
        return builder.call(builder.inttoptr(values[0], function_type.as_pointer()), words)

    kept = [each if isinstance(each, types.Array) else types.int64 for each in arguments]
    return types.int64(types.int64, types.Tuple(kept)), generate


@exact
def words(address, size):
    """The `size` words at an address."""
    return carray(pointer(address), (size,), np.int64)


# Words that several threads use at once. All of these have one order, which all threads see.


@intrinsic
def add(typing_context, address, amount):
    """Add to the word at an address; what it was."""

    def generate(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def swap(typing_context, address, word):
    """Put a word at an address; what was there."""

    def generate(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("xchg", pointer, arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def load(typing_context, address):
    """The word at an address, after all that was written before it was."""

    def generate(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.load_atomic(pointer, "seq_cst", 8)

    return types.int64(types.int64), generate


# LLVM's names of what tells a processor that a thread waits, and the operands; none of others.
_PAUSES = {"x86_64": ("llvm.x86.sse2.pause", ()), "aarch64": ("llvm.aarch64.isb", (15,))}
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


@intrinsic
def pause(typing_context):
    """Wait for 10 to 50 ns, on the processor."""

    def generate(context, builder, signature, arguments):
        machine = platform.machine().lower()
        name, operands = _PAUSES.get(_MACHINES.get(machine, machine), (None, ()))
        if name is not None:
            number = ir.IntType(32)
            function_type = ir.FunctionType(ir.VoidType(), [number] * len(operands))
            function = builder.module.declare_intrinsic(name, (), function_type)
            builder.call(function, [number(each) for each in operands])
        return context.get_dummy_value()

    return types.void(), generate


class Table:
    """Words that have a place by their name, and then as many more as there are to be.

    at: the places, as a named tuple
    entry: a function for compiled code, of a place
    """

    def __init__(self, owner, names, more=0):
        self.at: Any = namedtuple("Places", names)(*range(len(names)))
        self.entries = np.zeros(len(names) + more, np.int64)
        # Never freed: threads read it until the process ends, and Python ends before.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.entries))
        symbol = f"numbabn_{owner}"
        llvmlite.binding.add_symbol(symbol, self.entries.ctypes.data)
        self.entry = _reader_of(symbol)

    def fill(self, **entries):
        """Put words in their places."""
        for name, word in entries.items():
            self.entries[getattr(self.at, name)] = word


def _reader_of(symbol):
    @intrinsic
    def entry(typing_context, place):
        """The entry at a place."""

        def generate(context, builder, signature, arguments):
            first = context.get_c_value(builder, ir.IntType(64), symbol)
            return builder.load(builder.gep(first, [arguments[0]]))

        return types.int64(types.int64), generate

    return entry
