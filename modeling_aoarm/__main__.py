# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""`python -m modeling_aoarm COMMAND ...`; see `python -m modeling_aoarm --help`."""

import argparse
import sys
from collections.abc import Sequence

from .cli.commands import COMMANDS


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. Returns the exit status: 0, or 2 after wrong input, which one line on stderr names."""
    parser = argparse.ArgumentParser(
        prog="python -m modeling_aoarm", description="Any-order autoregressive language models, from the command line."
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add_command in COMMANDS:
        add_command(subparsers)
    parsed = parser.parse_args(arguments)
    try:
        parsed.run(parsed)
    except (OSError, ValueError) as error:
        print(f"{parser.prog} {parsed.command}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
