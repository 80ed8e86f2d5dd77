# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""What a run leaves behind: files that are written whole or not at all, its loss curve and its figures."""

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

from safetensors import SafetensorError


if TYPE_CHECKING:
    from matplotlib.figure import Figure


DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


@contextlib.contextmanager
def naming_disk_errors(path: str | os.PathLike) -> Iterator[None]:
    """Says which file or folder could not be written, and how much space there is; other errors pass.

    Raises:
        OSError: the disk is full, a limit is reached, or the disk fails, whatever the writing library raises then.
    """
    try:
        yield
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
        place = Path(path).absolute()
        while not place.exists():
            place = place.parent
        message = (
            f"{path} could not be written, what was there before is as it was "
            f"({shutil.disk_usage(place).free:,} bytes are free): {error}"
        )
        raise (OSError(message) if number is None else OSError(number, message)) from error


def flush(path: Path) -> None:
    """Waits until a file, or all files of a folder, are on the disk; one that is full may tell only then."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            # Windows flushes only files that are open for writing.
            with file.open("r+b" if os.name == "nt" else "rb") as opened:
                os.fsync(opened.fileno())


@contextlib.contextmanager
def reaching_disk(temporary: Path, path: str | os.PathLike) -> Iterator[None]:
    """What the block writes to `temporary`, which is to become `path`, is on the disk when it ends.

    Raises:
        OSError: as in [`naming_disk_errors`].
    """
    with naming_disk_errors(path):
        yield
        flush(temporary)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path to write to; it becomes `path` when the block ends well and is removed when not."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with reaching_disk(temporary, path):
            yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary folder next to `path`; it becomes `path` when the block ends well and is removed when not.

    Raises:
        FileExistsError: `path` exists and is not an empty folder.
    """
    path = Path(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"The destination must be a new or an empty folder, got {path}.")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    # A killed process may have left one, and had the same number, as in containers.
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
    """Writes a matplotlib figure as a PNG, the whole file at once."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi)


def finite(value: Any) -> Any:
    """The value, at any depth, with None in place of NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: str | os.PathLike, value) -> None:
    """Writes indented JSON, the whole file at once."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that figures depend on, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in ("torch", "transformers", "accelerate", "datasets", "tokenizers", "numpy"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def loss_curve(log_history: list[dict[str, float]]) -> dict[str, list[dict[str, float]]]:
    """Splits a `Trainer`'s log history into `train` (step, nats per token, learning rate) and `eval` entries."""
    return {
        "train": [
            {key: entry[key] for key in ("step", "epoch", "loss", "learning_rate") if key in entry}
            for entry in log_history
            if "loss" in entry
        ],
        "eval": [
            {key: value for key, value in entry.items() if key in ("step", "epoch") or key.startswith("eval_")}
            for entry in log_history
            if "eval_loss" in entry
        ],
    }


def plot_loss_curve(
    path: str | os.PathLike,
    curve: dict[str, list[dict[str, float]]],
    title: str,
    unit: str = "bits per token",
    reference: tuple[str, float] | None = None,
) -> None:
    """Draws training loss and evaluation likelihoods over optimiser steps as a PNG, in bits per token.

    Args:
        path: where the PNG goes.
        curve: from `loss_curve`.
        title: above the axes.
        unit: label of the vertical axis; "bits per character" where a token is a character.
        reference: label and height (bits) of a dashed horizontal line.
    """
    from matplotlib.figure import Figure

    bits = 1 / math.log(2)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    steps = [entry["step"] for entry in curve["train"]]
    axes.plot(steps, [entry["loss"] * bits for entry in curve["train"]], color="0.6", label="training orders")
    for key, label, marker in (
        ("eval_any_order_nll", "held out, any order", "o"),
        ("eval_left_to_right_nll", "held out, left to right", "s"),
    ):
        entries = [entry for entry in curve["eval"] if key in entry]
        if entries:
            heights = [entry[key] * bits for entry in entries]
            axes.plot([entry["step"] for entry in entries], heights, marker=marker, markersize=4, label=label)
    if reference is not None:
        axes.axhline(reference[1], color="black", linestyle="--", linewidth=1, label=reference[0])
    axes.set_title(title)
    axes.set_xlabel("optimiser step")
    axes.set_ylabel(unit)
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(path, figure)
