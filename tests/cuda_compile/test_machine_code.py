"""What the compiler makes of every kernel, for every kind of GPU: no device is needed."""

import re
from collections import Counter

import offline
import pytest
from offline import CAPABILITIES

from numbabn.cuda import compile
from numbabn.cuda.compile import variants

# The first test waits for all kernels: some two minutes of two cores.
pytestmark = pytest.mark.timeout(1200)

VARIANTS = {variant.name: variant for variant in variants()}
OVER_ELEMENTS = [name for name, variant in VARIANTS.items() if variant.dtype]
VECTORIZED = [name for name, variant in VARIANTS.items() if variant.size == 16]
NARROW = [name for name, variant in VARIANTS.items() if variant.size == 8]
SHORT = ("float16", "bfloat16")
# Kernels that write an array; the others write sums of 4 or 8 bytes.
WRITING = [name for name in VECTORIZED if name.startswith(("normalize", "gradient_r"))]


@pytest.fixture(scope="session")
def kernels(request):
    """What was compiled of each variant that a test asks for, by name and capability."""
    asked = {item.callspec.params["name"] for item in request.session.items if _asks(item)}
    return {variant.name: found for variant, found in offline.all_compiled(asked)}


def _asks(item):
    return "kernels" in item.fixturenames


def of_each(names):
    return pytest.mark.parametrize("name", names)


def test_every_variant_has_a_name_of_its_own():
    assert len(VARIANTS) == len(list(variants()))
    assert VECTORIZED
    assert WRITING


@of_each(VARIANTS)
def test_registers(kernels, name):
    """As many as leave room for the blocks that hide the latency of memory, and no spills.

    A multiprocessor has 65536 registers. `max_registers` is what a thread may have of them for
    RESIDENT blocks to fit; a compiler that is held to it spills, if it must, and then every
    element is paid for with more traffic than it brings.
    """
    variant = VARIANTS[name]
    for capability, kernel in kernels[name].items():
        assert kernel.registers <= variant.max_registers, capability
        assert kernel.spilled == 0, capability


@of_each(OVER_ELEMENTS)
def test_arrays_of_a_thread_are_registers(kernels, name):
    """An array that is indexed by what is known only later lies in memory, as spills do.

    Loops over it have to be unrolled. The compiler for sm_100 finds no trip count where the index
    is multiplied, as in `values[k * VECTOR]` for k in range(CHUNK): the product moves into the
    step of the loop. `values[first]` for first in range(0, VALUES, VECTOR) is unrolled by all.
    """
    stacks = {capability: kernel.stack for capability, kernel in kernels[name].items()}
    assert stacks == dict.fromkeys(CAPABILITIES, 0), "see this test's docstring for a cure"


@of_each(OVER_ELEMENTS)
def test_blocks_that_fit_on_a_multiprocessor(kernels, name):
    """By their shared memory too; Turing has half the threads and a third of the memory."""
    for capability, kernel in kernels[name].items():
        least = compile.RESIDENT if capability >= (8, 0) else 1
        assert kernel.resident(VARIANTS[name].threads, capability) >= least, capability


@of_each([name for name in OVER_ELEMENTS if VARIANTS[name].dtype != "float64"])
def test_no_float64_arithmetic_over_elements(kernels, name):
    """It costs 32 to 64 times as much as float32's on most GPUs; folds are kernels of their own."""
    allowed = VARIANTS[name].doubles
    assert allowed >= 0  # below: any number
    for capability, kernel in kernels[name].items():
        assert len(kernel.ptx_doubles) <= allowed, (capability, Counter(kernel.ptx_doubles))
        assert kernel.doubles <= allowed, capability


@of_each(VECTORIZED)
def test_elements_are_read_16_bytes_at_once(kernels, name):
    for capability, kernel in kernels[name].items():
        assert kernel.loads > 0, capability
        # Parameters that are given may be of 16 bits too.
        if VARIANTS[name].dtype in SHORT and not name.startswith("normalize_given"):
            # Nothing but elements is as wide as they are.
            assert not [each for each in kernel.instructions if each.startswith("LDG.E.U16")]


# With a mask of elements the places in the mask take the registers.
@of_each([name for name in VECTORIZED if "masked_elements" not in name])
def test_four_reads_are_under_way_at_a_time(kernels, name):
    """64 bytes of each thread cover the latency of memory, see `compile.RESIDENT`."""
    for capability, kernel in kernels[name].items():
        # For 10.0 the compiler widens the first of the rows that are on before it finds the fourth.
        searched = name.startswith("statistics_rows_masked_rows") and capability == (10, 0)
        assert kernel.in_flight >= 4 - searched, capability


@of_each([f"statistics_{layout}_{dtype}" for layout in ("rows", "runs") for dtype in SHORT])
def test_statistics_of_16_bits_leave_issue_slots_to_memory(kernels, name):
    """At 4.5 TB/s an H200 issues some 14 instructions for each 16-bit element."""
    elements = 4 * 8  # of four loads
    assert 0 < kernels[name][9, 0].loop <= 9.5 * elements


@of_each(NARROW)
def test_rows_that_vectors_do_not_fit_are_read_8_bytes_at_once(kernels, name):
    for capability, kernel in kernels[name].items():
        assert any(re.match(r"LDG\.(\w+\.)*64\b", each) for each in kernel.instructions), capability
        assert not [each for each in kernel.instructions if each.startswith("LDG.E.U16")]


@of_each(WRITING)
def test_elements_are_written_16_bytes_at_once(kernels, name):
    for capability, kernel in kernels[name].items():
        stores = sum(n for each, n in kernel.instructions.items() if each.startswith("STG"))
        assert kernel.stores == stores > 0, capability


PAIR = """
        /*0d20*/                   LDG.E.128 R4, desc[UR4][R12.64] ;
        /*0d30*/              @!P0 LDG.E.128 R8, desc[UR4][R14.64] ;
        /*0d40*/                   {} ;
        /*0d50*/                   LDG.E.128 R16, desc[UR4][R12.64] ;
        /*0d60*/                   FADD R20, R16.reuse, R5 ;
"""


@pytest.mark.parametrize(
    ("between", "expected"),
    [
        ("IADD3 R12, R12, 0x10, RZ", 3),
        ("IMAD.U32 R24, R7, 0x10000, RZ", 2),  # the upper half of what was loaded
        ("LOP3.LUT R24, R8.reuse, 0xffff0000, RZ, 0xc0, !PT", 2),
        ("STG.E.128 desc[UR4][R30.64], R8", 2),
        ("MOV R4, RZ", 2),
        ("MOV R40, UR4", 3),
    ],
)
def test_loads_in_flight(between, expected):
    """A load is in flight until an instruction, whichever, touches what it loads."""
    assert offline.in_flight(PAIR.format(between)) == expected


def test_the_shortest_loop():
    code = """
.L_x_1:
        /*0010*/                   LDG.E.128 R4, desc[UR4][R12.64] ;
.L_x_2:
        /*0020*/                   FADD R20, R16, R5 ;
        /*0030*/              @!P0 BRA `(.L_x_2) ;
        /*0040*/               @P1 BRA `(.L_x_3) ;
        /*0050*/                   BRA `(.L_x_1) ;
.L_x_3:
"""
    assert offline.shortest_loop(code) == 5
    assert offline.shortest_loop(code.replace("LDG.E.128", "LDG.E")) == 0


def test_the_checks_see_what_they_look_for():
    """Float64 and shared memory in a fold, spills where registers are short."""
    fold = VARIANTS["fold_forward_float64"]
    for kernel in offline.compiled(fold).values():
        assert kernel.doubles > 0
        assert "div.rn.f64" in kernel.ptx_doubles
        assert kernel.loads == kernel.stores == kernel.in_flight == 0
        assert kernel.shared == 3 * 8 * fold.threads
    tight = VARIANTS["gradient_rows_float32"]._replace(name="tight", max_registers=32)
    kernel = offline.compiled(tight)[9, 0]
    assert kernel.registers <= 32
    assert kernel.spilled > 0


def test_blocks_are_limited_by_registers_threads_and_shared_memory():
    kernel = offline.Compiled(64, 0, 0, 0, Counter(), 0, 0, 0, 0, 0, [])
    assert kernel.resident(256, (9, 0)) == 4  # 65536 / (64 · 256)
    assert kernel._replace(registers=65).resident(256, (9, 0)) == 3  # 72: eight at a time
    assert kernel._replace(registers=16).resident(256, (9, 0)) == 8
    assert kernel._replace(registers=16).resident(256, (7, 5)) == 4
    assert kernel._replace(shared=32 << 10).resident(256, (7, 5)) == 2
    assert kernel._replace(shared=63 << 10).resident(256, (9, 0)) == 3  # 64 with the device's own
