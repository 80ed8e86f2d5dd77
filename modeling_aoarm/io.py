# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Writes files and folders that are complete or absent, figures and JSON."""

import contextlib
import errno
import json
import math
import os
import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError


if TYPE_CHECKING:
    from matplotlib.figure import Figure


DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


@contextlib.contextmanager
def reaching_disk(temporary: Path, path: str | os.PathLike) -> Iterator[None]:
    """Flushes to the disk what the block writes to `temporary`, which will become `path`.

    Raises:
        OSError: the disk is full, a limit is reached, or the disk fails. The message names `path` and the free space.
            It replaces the errors of the writing libraries.
    """
    try:
        yield
        for file in temporary.rglob("*") if temporary.is_dir() else [temporary]:
            if file.is_file():
                # Some systems report a full disk only here. Windows flushes only files that are open for writing.
                with file.open("r+b" if os.name == "nt" else "rb") as opened:
                    os.fsync(opened.fileno())
    except Exception as error:
        # tokenizers raises bare exceptions, torch the messages of its C++ streams.
        is_foreign = (
            isinstance(error, SafetensorError)
            or (type(error) is Exception and "os error" in str(error))
            or (type(error) is RuntimeError and any(word in str(error) for word in ("inline_container", "iostream")))
        )
        number = getattr(error, "errno", None)
        if number not in DISK_ERRORS and not is_foreign:
            raise
        existing = next(folder for folder in Path(path).absolute().parents if folder.exists())
        message = (
            f"{path} could not be written, what was there before is as it was "
            f"({shutil.disk_usage(existing).free:,} bytes are free): {error}"
        )
        raise (OSError(message) if number is None else OSError(number, message)) from error


def _temporary_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path to write a file to. It becomes `path` if the block succeeds, else it is removed."""
    path = Path(path)
    temporary = _temporary_path(path)
    try:
        with reaching_disk(temporary, path):
            yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary folder next to `path`. It becomes `path` if the block succeeds, else it is removed.

    Raises:
        FileExistsError: `path` exists and is not an empty folder.
    """
    path = Path(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"The destination must be a new or an empty folder, got {path}.")
    temporary = _temporary_path(path)
    # A killed process may have left one, because process numbers repeat in containers.
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        with reaching_disk(temporary, path):
            yield temporary
        if path.is_dir():
            # Windows does not replace empty folders.
            path.rmdir()
        os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def save_figure(path: str | os.PathLike, figure: "Figure", dpi: int = 120) -> None:
    """Writes a matplotlib figure as a PNG file."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi)


def save_figure_and_numbers(path: str | os.PathLike, figure: "Figure", numbers: Any) -> None:
    """Writes a matplotlib figure as a PNG file, and its numbers beside it as a JSON file of the same name.

    Raises:
        ValueError: `path` does not end in `.png`.
    """
    if Path(path).suffix != ".png":
        raise ValueError(f"`path` must end in .png, got {str(path)!r}.")
    save_figure(path, figure)
    write_json(Path(path).with_suffix(".json"), numbers)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes indented JSON."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def convert_for_json(value: Any) -> Any:
    """Converts tensors to lists and NaN and infinities, which JSON lacks, to `None`, at any depth."""
    if isinstance(value, torch.Tensor):
        value = value.tolist()
    if isinstance(value, dict):
        return {key: convert_for_json(part) for key, part in value.items()}
    if isinstance(value, list):
        return [convert_for_json(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the installed packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in ("torch", "transformers", "accelerate", "datasets", "tokenizers", "numpy"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
