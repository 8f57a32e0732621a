"""The command line: ``python -m numbabn COMMAND``."""

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence

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
        prog=f"{parser.prog} {chosen.command}",
        description=command.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_options(options)
    return _ended(command.run, options.parse_args(chosen.options))


def _ended(run: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    """The exit status of a command; whatever ends one from outside is a sentence, or silence."""
    try:
        status = run(options)
        # Here, where a pipe that was closed is noticed, and not when Python exits.
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130  # as shells have it: 128 and the signal's number
    except BrokenPipeError:
        # Whoever read has seen enough, as `head` has. What is still buffered goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except MemoryError as error:
        reason = str(error) or "an array is too large"
        print(f"There is not enough memory: {reason}", file=sys.stderr)
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
