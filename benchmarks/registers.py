"""How many registers do the CUDA kernels take, and which instructions are they made of?

    python -m benchmarks.registers

No device is needed: every kernel is compiled for each kind of GPU that is named below, and its
machine code is read. `tests/cuda_compile` holds these numbers to their limits.
"""

import argparse
from importlib.metadata import version
from typing import Any

from tqdm import tqdm

from numbabn.commands.table import table
from numbabn.cuda.compile import Variant, variants
from tests.cuda_compile import offline
from tests.cuda_compile.offline import CAPABILITIES, Compiled

from . import common

OUTPUT = common.RESULTS / "cuda-compile" / "registers.md"
PACKAGES = ("numba-cuda", "numba", "nvidia-nvvm", "nvidia-nvjitlink")
# The kind that the columns on instructions are about.
SHOWN = (9, 0)

Kernels = dict[tuple[int, int], Compiled]


def architecture(capability: tuple[int, int]) -> str:
    return "sm_" + "".join(map(str, capability))


def row(variant: Variant, kernels: Kernels) -> list[str]:
    shown = kernels[SHOWN]
    return [
        f"`{variant.name}`",
        *(str(kernels[capability].registers) for capability in CAPABILITIES),
        str(max(kernel.spilled for kernel in kernels.values())),
        str(max(kernel.stack for kernel in kernels.values())),
        str(shown.shared),
        str(shown.resident(variant.threads, SHOWN)),
        str(shown.instructions.total()),
        str(shown.loop or ""),
        str(shown.loads),
        str(shown.in_flight),
        str(shown.stores),
        str(shown.doubles),
    ]


def report(found: list[tuple[Variant, Kernels]]) -> str:
    header = [
        "",
        *map(architecture, CAPABILITIES),
        "spilled",
        "stack",
        "shared",
        "blocks",
        "instructions",
        "loop",
        "LDG.128",
        "in flight",
        "STG.128",
        "float64",
    ]
    shown = architecture(SHOWN)
    return "\n\n".join(
        [
            "`python -m benchmarks.registers`",
            ", ".join(f"{package} {version(package)}" for package in PACKAGES) + ".",
            "Registers of a thread on each kind of GPU; bytes that it keeps in memory for want of "
            "registers, and for arrays, the most of all four. Then "
            f"for {shown}: bytes of shared memory of a block, blocks that fit on a multiprocessor, "
            "instructions in the code, and in the shortest loop that loads 16 bytes, loads of 16 "
            "bytes, how many of those are under way at most before one of them is used, stores of "
            "16 bytes, and arithmetic in float64.",
            table(header, [row(variant, kernels) for variant, kernels in found]),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "part",
        nargs="*",
        help="a part of a kernel's name, e.g. normalize_rows: only such kernels, which are printed "
        "and not written",
    )
    parts = parser.parse_args().part
    names = [v.name for v in variants() if not parts or any(part in v.name for part in parts)]
    compiled: Any = tqdm(offline.all_compiled(names), total=len(names), unit="kernel")
    text = report(list(compiled))
    print(text)
    if not parts:
        OUTPUT.parent.mkdir(parents=True, exist_ok=True)
        OUTPUT.write_text(text + "\n")
        print(f"\nWritten to {OUTPUT}")


if __name__ == "__main__":
    main()
