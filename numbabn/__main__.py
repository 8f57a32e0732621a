"""The command line: ``python -m numbabn COMMAND``."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from . import __version__

COMMANDS = {
    "info": "what numbabn runs on here: versions, threads, processor, CUDA, cache folder",
    "check": "compare every operation with a float64 computation on this machine",
    "bench": "time forward and backward against a memory copy, and against torch if installed",
    "warmup": "compile every kernel into the cache, so that no later process waits for it",
    "demo": "train a small network on handwritten digits in microbatches of four images",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status of the process.

    arguments: what stands after ``python -m numbabn``; by default, that of this process
    """
    parser = argparse.ArgumentParser(
        prog="python -m numbabn",
        description="\n".join(f"{name:<8}{summary}" for name, summary in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="python -m numbabn COMMAND --help lists the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"numbabn {__version__}")
    parser.add_argument("command", metavar="COMMAND", choices=COMMANDS)
    parser.add_argument("options", metavar="...", nargs=argparse.REMAINDER)
    chosen = parser.parse_args(arguments)

    # Only the command that runs is imported: each brings packages that the others need not have.
    command = importlib.import_module(f"{__package__}.commands.{chosen.command}")
    options = argparse.ArgumentParser(
        prog=f"{parser.prog} {chosen.command}", description=COMMANDS[chosen.command]
    )
    command.add_options(options)
    status: int = command.run(options.parse_args(chosen.options))
    return status


if __name__ == "__main__":
    sys.exit(main())
