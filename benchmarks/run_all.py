"""Run every benchmark, and bring the figures of README.md and docs/performance.md up to date.

    python -m benchmarks.run_all

Each benchmark runs in a process of its own, one after the other. Their results lie in
benchmarks/results/HARDWARE. The two pages get their tables, and docs/performance.md its picture,
between the lines

    <!-- benchmarks -->
    <!-- end of benchmarks -->

With --quick or --output, both stay as they are, and what they would get is printed.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from numbabn.commands.table import table

from . import common, small, versus_torch

# startup first: it leaves nothing behind, and fails soonest where the installation is broken.
BENCHMARKS = ["startup", "small", "versus_copy", "versus_torch", "scaling", "memory"]
BEGIN, END = "<!-- benchmarks -->", "<!-- end of benchmarks -->"
README = common.ROOT / "README.md"
PERFORMANCE = common.ROOT / "docs" / "performance.md"


def latency(found: list[common.Record]) -> str:
    """A sentence on the least work."""
    layout, shape = small.SHAPES[1]
    times = {
        (r["contender"], r["operation"]): r["median"]
        for r in found
        if (r["layout"], r["shape"], r["output"]) == (layout, "x".join(map(str, shape)), "fresh")
    }
    calls = [
        f"{operation} {common.duration(times['numbabn', operation])}"
        + (
            f" (torch: {common.duration(times['torch', operation])})"
            if ("torch", operation) in times
            else ""
        )
        for operation in small.OPERATIONS
    ]
    return f"A call from Python on {shape}: {', '.join(calls)}."


def summary(folder: Path) -> str:
    """README.md's section, from the results in `folder`: one table."""
    parts = [common.machine(), *(against_others(folder) or against_copy(folder))]
    return "\n\n".join([*parts, latency(common.read(folder, "small"))])


def section(folder: Path) -> str:
    """docs/performance.md's section, from the results in `folder`."""
    results = _from_docs(folder)
    parts = [
        common.machine(),
        *against_copy(folder),
        f"![Time over size, and copies that a call takes]({results}/versus_copy.png)",
        *against_others(folder),
        latency(common.read(folder, "small"))
        + f" More in [{folder.name}]({results}): threads, memory, time to start; how each was "
        f"measured, in [benchmarks]({_from_docs(common.ROOT / 'benchmarks')}).",
    ]
    return "\n\n".join(parts)


def _from_docs(path: Path) -> str:
    return Path(os.path.relpath(path, PERFORMANCE.parent)).as_posix()


def against_copy(folder: Path) -> list[str]:
    """A sentence and a table."""
    copy = common.read(folder, "versus_copy")
    return [
        "Times as a multiple of a copy of the same array (`python -m benchmarks.versus_copy`), "
        "float32 and 16-bit arrays of "
        f"{common.size(max(r['bytes'] for r in copy if r['part'] == 'large'))}, `out=` given, "
        "masks off at half of the positions:",
        copies_table(copy),
    ]


def against_others(folder: Path) -> list[str]:
    """A sentence and a table; nothing where torch was not there to be measured."""
    if not (folder / "versus_torch.csv").exists():
        return []
    torch = common.read(folder, "versus_torch")
    shapes = len({(r["shape"], r["layout"]) for r in torch})
    sizes = [r["bytes"] for r in torch]
    return [
        f"Against others, over {shapes} float32 shapes of both layouts from "
        f"{common.size(min(sizes))} to {common.size(max(sizes))} "
        "(`python -m benchmarks.versus_torch`):",
        versus_torch.summary(torch),
    ]


def copies_table(found: list[common.Record]) -> str:
    """Copies by layout and dtype; columns are operation and mask."""
    copies = {
        (f"{r['layout']}, {r['dtype']}", r["operation"], r["mask"]): r["copies"]
        for r in found
        if (r["part"], r["output"]) == ("large", "given")
    }
    columns = [
        (operation, mask)
        for operation in ("forward", "backward")
        for mask in ("none", "padding", "random")
    ]
    header = [
        f"{operation}, {mask} mask" if mask != "none" else operation for operation, mask in columns
    ]
    rows = [
        [array, *(f"{copies[array, operation, mask]:.2f}" for operation, mask in columns)]
        for array in dict.fromkeys(array for array, operation, _ in copies)
    ]
    return table(["", *header], rows)


def main() -> None:
    options = common.options(__doc__)
    rewrites = options.output == common.RESULTS / common.hardware()
    for page in (README, PERFORMANCE):
        before = page.read_text(encoding="utf-8")
        if rewrites and not (BEGIN in before and END in before.partition(BEGIN)[2]):
            raise SystemExit(
                f"{page.name} lacks the lines {BEGIN} and {END}, between which figures go"
            )

    started = time.perf_counter()
    for name in BENCHMARKS:
        if name == "versus_torch" and not common.installed("torch"):
            print("versus_torch is left out: torch is not installed")
            continue
        print(f"\n{name}", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{name}", "--output", str(options.output)]
        if options.quick:
            command.append("--quick")
        subprocess.run(command, cwd=common.ROOT, check=True)

    for page, written in (
        (README, summary(options.output)),
        (PERFORMANCE, section(options.output)),
    ):
        if rewrites:
            # Read again: it may have been edited in the meantime.
            before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
            after = rest.partition(END)[2]
            page.write_text(f"{before}{BEGIN}\n\n{written}\n\n{END}{after}", encoding="utf-8")
        else:
            print(f"\n{page.name}:\n\n{written}")
    print(f"\nAll benchmarks took {(time.perf_counter() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
