"""How many registers do the CUDA kernels take, and which instructions are they made of?

    python -m benchmarks.registers

No device is needed: every kernel is compiled for each kind of GPU that is named below, and its
machine code is read. `tests/cuda_compile` holds these numbers to their limits.
"""

from importlib.metadata import version
from pathlib import Path
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
            "instructions in the code, loads of 16 bytes, how many of those follow each other "
            "before anything is computed, stores of 16 bytes, and arithmetic in float64.",
            table(header, [row(variant, kernels) for variant, kernels in found]),
        ]
    )


def main(output: Path = OUTPUT) -> None:
    compiled: Any = tqdm(offline.all_compiled(), total=len(list(variants())), unit="kernel")
    text = report(list(compiled))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text + "\n")
    print(f"{text}\n\nWritten to {output}")


if __name__ == "__main__":
    main()
