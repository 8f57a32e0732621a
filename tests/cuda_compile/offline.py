"""Kernels compiled for GPUs that are not there, and what their machine code is made of.

numba-cuda asks the current device for its compute capability when it compiles a kernel, and for
the rest when it loads one. Here :func:`device` answers for the device, and nothing is loaded. A
kernel is compiled once for all capabilities, which is why `compile.build` is not what compiles it:
a test holds that both give the same code.
"""

import os
import re
from collections import Counter
from collections.abc import Container, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

from numbabn.cuda import compile
from numbabn.cuda.compile import Variant, variants
from numbabn.cuda.runtime import cuda

# By way of the door: numba-cuda cannot be imported just so where warnings are errors.
codegen, driver = cuda.codegen, cuda.cudadrv.driver

# The oldest that the newest CUDA compiles for, and those of A100, H100 and B200.
CAPABILITIES = ((7, 5), (8, 0), (9, 0), (10, 0))
# KiB of shared memory of a multiprocessor, and its threads, by capability.
SHARED = {(7, 5): 64, (8, 0): 164, (9, 0): 228, (10, 0): 228}
THREADS = {(7, 5): 1024, (8, 0): 2048, (9, 0): 2048, (10, 0): 2048}
# Bytes of it that the device keeps for itself in each block, since 8.0.
RESERVED = 1024

_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.MULTILINE)
_WITH_OPERANDS = re.compile(_INSTRUCTION.pattern + r"\s*([^;]*);", re.MULTILINE)
_LABELLED = re.compile(rf"^(\.L_x_\d+):|{_WITH_OPERANDS.pattern}", re.MULTILINE)
_REGISTER = re.compile(r"(?<![A-Z])R(\d+)(?:\.\w+)*")
_LOAD_128 = re.compile(r"LDG\.(\w+\.)*128\b")
_STORE_128 = re.compile(r"STG\.(\w+\.)*128\b")
# Arithmetic only: a conversion or a comparison now and then costs nothing that shows.
_DOUBLE = re.compile(r"D(ADD|MUL|FMA)\b|MUFU\.(RCP|RSQ)64H")
_PTX_DOUBLE = re.compile(
    r"^\s+(?:@!?%p\d+\s+)?((?:add|sub|mul|fma|mad|div|rcp|sqrt|rsqrt)\.[\w.]*f64)\b", re.MULTILINE
)


class Compiled(NamedTuple):
    """A kernel for one compute capability.

    registers: of a thread
    spilled: bytes that a thread writes to memory and reads again for want of registers
    stack: bytes of memory that a thread has for arrays that are not in registers
    shared: bytes of shared memory of a block
    instructions: how often each one is in the code, by its name with modifiers
    loads, stores: global ones of 16 bytes
    in_flight: loads of 16 bytes at most, of which nothing was read yet
    loop: instructions of the shortest loop that loads 16 bytes at once; 0 without one
    doubles: float64 instructions of arithmetic
    ptx_doubles: the same in PTX, one for each
    """

    registers: int
    spilled: int
    stack: int
    shared: int
    instructions: Counter[str]
    loads: int
    stores: int
    in_flight: int
    loop: int
    doubles: int
    ptx_doubles: list[str]

    def resident(self, threads: int, capability: tuple[int, int]) -> int:
        """How many blocks of so many threads fit on a multiprocessor together."""
        # Registers are handed out to warps, 256 at a time.
        warp = -(-self.registers * 32 // 256) * 256
        limits = [compile.REGISTERS // (warp * threads // 32), THREADS[capability] // threads]
        if self.shared:
            reserved = RESERVED if capability >= (8, 0) else 0
            limits.append((SHARED[capability] << 10) // (self.shared + reserved))
        return min(limits)


class _TalkingLinker(driver._Linker):
    """numba-cuda's linker, with the assembler's account of registers in its log."""

    def _get_linker_options(self, ptx: bool) -> Any:
        options = super()._get_linker_options(ptx)
        options.verbose = True
        return options


@contextmanager
def device(capability: tuple[int, int]) -> Iterator[None]:
    """As if the current device were of this compute capability, for compiling only."""
    current = SimpleNamespace(compute_capability=capability)
    context = SimpleNamespace(device=current)
    with (
        mock.patch("numba.cuda.dispatcher.get_current_device", return_value=current),
        mock.patch("numba.cuda.cudadrv.devices.get_context", return_value=context),
        mock.patch("numba.cuda.dispatcher._Kernel.bind"),
        mock.patch("numba.cuda.codegen.CUDACodeLibrary.get_cufunc"),
        mock.patch("numba.cuda.cudadrv.driver._Linker", _TalkingLinker),
    ):
        yield


def compiled(variant: Variant) -> dict[tuple[int, int], Compiled]:
    """A kernel for each compute capability."""
    with device(CAPABILITIES[0]):
        # What goes to the compiler, LLVM's IR, is the same for all.
        dispatcher = cuda.jit(variant.signature, lto=False, **variant.options)(variant.function)
        (translated,) = dispatcher.overloads.values()
        library = translated.library
    found = {}
    for capability in CAPABILITIES:
        with device(capability):
            found[capability] = _assembled(library, capability)
    return found


def all_compiled(names: Container[str]) -> Iterator[tuple[Variant, Any]]:
    """The variants of these names, and what `compiled` makes of each; on all cores."""
    chosen = [variant for variant in variants() if variant.name in names]
    # Forked processes would share locks that threads of this one may hold.
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("spawn")) as pool:
        yield from zip(chosen, pool.map(_compiled, [v.name for v in chosen]), strict=True)


def _compiled(name: str) -> dict[tuple[int, int], Compiled]:
    # A function that was made on the way, as a variant's is, does not go to another process.
    (variant,) = (each for each in variants() if each.name == name)
    return compiled(variant)


def _assembled(library: Any, capability: tuple[int, int]) -> Compiled:
    ptx, cubin = library.get_asm_str(), library.get_cubin()
    log = library.get_linkerinfo(library._ensure_cc(None))
    code = codegen.run_nvdisasm(cubin, ["-c", "-ndf"])
    instructions = _INSTRUCTION.findall(code)
    # The log of 9.0 alone counts what the device keeps for itself.
    reserved = RESERVED if capability == (9, 0) else 0
    return Compiled(
        registers=max(_numbers(r"[Uu]sed (\d+) registers", log)),
        spilled=sum(_numbers(r"(\d+) bytes spill (?:stores|loads)", log)),
        stack=max(_numbers(r"(\d+) bytes stack frame", log)),
        shared=max(0, max(_numbers(r"(\d+) bytes smem", log), default=0) - reserved),
        instructions=instructions_of(code),
        loads=sum(map(bool, map(_LOAD_128.match, instructions))),
        stores=sum(map(bool, map(_STORE_128.match, instructions))),
        in_flight=in_flight(code),
        loop=shortest_loop(code),
        doubles=sum(map(bool, map(_DOUBLE.match, instructions))),
        ptx_doubles=_PTX_DOUBLE.findall(ptx),
    )


def instructions_of(code: str) -> Counter[str]:
    """How often each instruction is in a kernel's code."""
    return Counter(_INSTRUCTION.findall(code))


def _numbers(pattern: str, text: str) -> list[int]:
    return [int(found) for found in re.findall(pattern, text)]


def shortest_loop(code: str) -> int:
    """Instructions of the shortest loop that loads 16 bytes at once: of what it leads back to."""
    labels: dict[str, int] = {}
    names: list[str] = []
    lengths: list[int] = []
    for label, name, operands in _LABELLED.findall(code):
        if label:
            labels[label] = len(names)
            continue
        names.append(name)
        back = labels.get(operands.rpartition("`(")[2].rstrip(") ")) if name == "BRA" else None
        if back is not None and any(map(_LOAD_128.match, names[back:])):
            lengths.append(len(names) - back)
    return min(lengths, default=0)


def in_flight(code: str) -> int:
    """How many loads of 16 bytes there are at most of which nothing was read yet."""
    most = 0
    # The load that a register waits for, by the number of the register.
    waits: dict[int, int] = {}
    for number, (name, operands) in enumerate(_WITH_OPERANDS.findall(code)):
        first, _, others = operands.partition(",")
        target = _REGISTER.fullmatch(first.strip())
        touched = set(map(int, _REGISTER.findall(others if target else operands)))
        if target:
            touched.add(int(target[1]))
        arrived = {waits[register] for register in touched & waits.keys()}
        waits = {register: load for register, load in waits.items() if load not in arrived}
        if target and _LOAD_128.match(name):
            waits |= dict.fromkeys(range(int(target[1]), int(target[1]) + 4), number)
            most = max(most, len(set(waits.values())))
    return most
