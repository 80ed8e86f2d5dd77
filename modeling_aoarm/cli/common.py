# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""What the commands of `python -m modeling_aoarm` have in common: how they are declared and what they check first."""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from transformers.utils import logging


DTYPES = ("auto", "float32", "bfloat16", "float16")


def add_command(
    subparsers, name: str, run: Callable[[argparse.Namespace], None], summary: str, description: str, examples: str
) -> argparse.ArgumentParser:
    """A command's parser, whose arguments `run` takes; texts keep their line breaks."""
    parser = subparsers.add_parser(
        name,
        help=summary,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_loading_arguments(parser) -> None:
    """Declares what commands that run a model ask about loading it, on a parser or a group of arguments."""
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (cuda where there is one, else cpu)")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="of weights")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the code that comes with MODEL")


def check_is_there(argument: str, name: str) -> None:
    """Refuses what is no name on the Hub and no folder either, before the Hub is asked."""
    if not Path(name).is_dir() and (Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1):
        raise FileNotFoundError(f"{argument} must be a folder or a name on the Hub; there is no folder {name}.")


def find_device(name: str | None) -> torch.device:
    """The device of `--device`; CUDA where there is one, else the CPU, for `None`.

    Raises:
        ValueError: for a name that torch does not know, and CUDA where there is none.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"--device must be a name that torch knows, got {name!r}.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device must be there; CUDA is not available here, got {name}.")
    return device


def keep_quiet() -> None:
    """Progress bars and advice of the library do not belong between results."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()


__all__ = ["DTYPES", "add_command", "add_loading_arguments", "check_is_there", "find_device", "keep_quiet"]
