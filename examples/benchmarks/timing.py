# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Shared parts of the benchmarks: timing in turns, ratios with targets, and reports with all raw numbers.

A machine is never quiet, so the compared ways take turns over many rounds, and their times are compared within each
round. Changing load and changing clocks then cancel. A ratio is the median over rounds.
"""

import argparse
import datetime
import operator
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from tqdm.auto import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    HfArgumentParser,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from modeling_aoarm.gguf import locate_checkpoint
from modeling_aoarm.io import save_figure, versions, write_json


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# One colour for each model wherever it is drawn.
COLOURS = {
    "Llama": "0.35",
    "XLNet": "#8a6d3b",
    "causal": "0.6",
    "two_stream": "#1f5fa8",
    "decoupled_rope": "#c8501e",
    "double_position": "#3a8f3a",
    "adaptive_norm": "#7a4fa3",
    "bidirectional": "#c2a000",
}


@dataclass
class BenchmarkArguments:
    """Arguments of all benchmarks."""

    threads: int | None = field(default=None, metadata={"help": "torch threads. Default: torch's own number."})
    seed: int = field(default=0, metadata={"help": "Seed of weights, tokens and orders."})
    output_dir: str | None = field(
        default=None, metadata={"help": "Folder for the JSON and the PNG. Default: examples/figures."}
    )
    quick: bool = field(default=False, metadata={"help": "Toy sizes: a run of seconds, as a test."})

    def __post_init__(self):
        self.check_at_least(1, "threads")
        if self.threads is not None:
            torch.set_num_threads(self.threads)

    def check_at_least(self, least: int, *names: str) -> None:
        """Raises a ValueError for an argument, or a number in one that is a list, below `least`."""
        for name in names:
            value = getattr(self, name)
            if value is not None and min(value if isinstance(value, list) else [value], default=least - 1) < least:
                raise ValueError(f"--{name} must be at least {least}, got {value}.")


@dataclass
class TimingArguments(BenchmarkArguments):
    """Arguments of benchmarks of time."""

    repetitions: int = field(default=5, metadata={"help": "Measured rounds, after one that does not count."})

    def __post_init__(self):
        super().__post_init__()
        self.check_at_least(1, "repetitions")


@dataclass
class CheckpointArguments(BenchmarkArguments):
    """Arguments of benchmarks of a left-to-right checkpoint."""

    model: str = field(default="", metadata={"help": "A left-to-right checkpoint: folder, GGUF file or Hub name."})

    def __post_init__(self):
        super().__post_init__()
        if not self.model:
            raise ValueError("--model must be a checkpoint's folder, a GGUF file or a name on the Hub, got none.")


Arguments = TypeVar("Arguments", bound=BenchmarkArguments)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows docstrings unchanged, and the defaults of arguments."""


def parse_arguments(
    kind: type[Arguments], argv: Sequence[str], quick: Mapping[str, Any], description: str
) -> Arguments:
    """Reads a benchmark's command line. A wrong argument ends the program with one line, as argparse does.

    Args:
        kind: the dataclass of arguments, whose `__post_init__` raises a `ValueError` for wrong ones.
        argv: the arguments, without the program's name.
        quick: the defaults under `--quick`.
        description: the script's docstring.
    """
    parser = HfArgumentParser(kind, description=description, formatter_class=_HelpFormatter)
    if "--quick" in argv:
        parser.set_defaults(**quick)
    try:
        (arguments,) = parser.parse_args_into_dataclasses(list(argv))
    except ValueError as error:
        parser.error(str(error))
    return arguments


def time_in_turns(
    ways: Mapping[Hashable, Callable[[int], Any]], repetitions: int, title: str
) -> dict[Hashable, tuple[list[float], list]]:
    """Runs all ways one after the other, in several rounds.

    Args:
        ways: functions of the round's number, by name.
        repetitions: the number of measured rounds, after one that does not count.
        title: title of the progress bar.

    Returns:
        For each name, the wall times (seconds) and the results of the rounds.
    """
    measured = {name: ([], []) for name in ways}
    rounds = [(repetition, name) for repetition in range(-1, repetitions) for name in ways]
    for repetition, name in tqdm(rounds, desc=title, unit="run"):
        started = time.perf_counter()
        result = ways[name](max(repetition, 0))
        if repetition >= 0:
            measured[name][0].append(time.perf_counter() - started)
            measured[name][1].append(result)
    return measured


def compute_median_ratio(values: Sequence[float], reference: Sequence[float]) -> float:
    """Computes the median over rounds of the ratios within one round."""
    return median(value / base for value, base in zip(values, reference, strict=True))


def format_number(value: float) -> str:
    """Formats a number for people: whole from 1,000 on, with four digits below."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


@dataclass(frozen=True)
class Target:
    """A target for a measured value.

    Args:
        kind: `"<="` if the value must be at most the bound, `">="` if at least.
        bound: the bound.

    Raises:
        ValueError: `kind` is not one of these.
    """

    kind: str
    bound: float

    _COMPARE = {"<=": operator.le, ">=": operator.ge}

    def __post_init__(self):
        if self.kind not in self._COMPARE:
            raise ValueError(f"`kind` must be one of {sorted(self._COMPARE)}, got {self.kind!r}.")

    def __str__(self) -> str:
        return f"{self.kind} {format_number(self.bound)}"

    def is_met(self, value: float) -> bool:
        return self._COMPARE[self.kind](value, self.bound)


def compare_with_target(what: str, against: str, value: float, target: Target | None, **details) -> dict[str, Any]:
    """Compares a value with its target, for the list `targets` of a report.

    Args:
        what: label of the measured value.
        against: label of the reference; `""` if the value is not a ratio.
        value: the value, most often a ratio.
        target: its target, or `None`.
        details: further items of the entry.

    Returns:
        `what`, `against`, `value`, `target` (text or `None`), `met` (or `None`) and the details.
    """
    return {
        "what": what,
        "against": against,
        "value": value,
        "target": None if target is None else str(target),
        "met": None if target is None else target.is_met(value),
        **details,
    }


def format_result(entry: Mapping[str, Any]) -> str:
    """Formats an entry of [`compare_with_target`], as in `"1.032 (<= 1.05: met)"`."""
    if entry["target"] is None:
        return format_number(entry["value"])
    return f"{format_number(entry['value'])} ({entry['target']}: {'met' if entry['met'] else 'missed'})"


def load_checkpoint(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a left-to-right checkpoint in float32, and its tokenizer.

    Args:
        name: a folder, a GGUF file or a name on the Hub.
    """
    folder, options = locate_checkpoint(name)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    if options and hasattr(model.config, "quantization_config"):
        # Loading has turned the weights into float32.
        del model.config.quantization_config
    return model, AutoTokenizer.from_pretrained(folder, **options)


def find_git_commit(folder: str | os.PathLike) -> str | None:
    """Finds the checked-out commit of a folder, with `-dirty` if files differ; `None` outside a checkout."""
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"]
    try:
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def find_processor_name() -> str | None:
    """Finds the processor's model name; `None` if the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or None


def describe_machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Describes the parts of a machine that results depend on, without identifying it."""
    device = torch.device(device)
    is_cuda = device.type == "cuda"
    return {
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if is_cuda else find_processor_name(),
        "processor": find_processor_name(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "dtype": str(torch.get_default_dtype()).removeprefix("torch."),
    }


class Report:
    """The output of a benchmark: `benchmark_<script>.json` and `benchmark_<script>.png`.

    Make it before measuring. It records the time and the commit, and files may change while a benchmark runs.

    Args:
        script: the script's file.
        argv: its arguments.
        seed: seed of all draws.
        device: the measured device.
    """

    def __init__(self, script: str | os.PathLike, argv: Sequence[str], seed: int, device: torch.device | str = "cpu"):
        self.script = Path(script).resolve()
        self.device, self.seed = device, seed
        root = next((each for each in self.script.parents if (each / "pyproject.toml").is_file()), self.script.parent)
        self.command = shlex.join([self.script.relative_to(root).as_posix(), *map(str, argv)])
        self.default_folder = root / "examples" / "figures"
        self.date = datetime.datetime.now(datetime.UTC)
        self.commit = find_git_commit(self.script.parent)
        self.started = time.perf_counter()

    def header(self) -> dict[str, Any]:
        """Returns the circumstances: command, date, seconds so far, machine, versions, seed and commit."""
        return {
            "command": self.command,
            "date": self.date.isoformat(timespec="seconds"),
            "total_seconds": round(time.perf_counter() - self.started, 1),
            "machine": describe_machine(self.device),
            "versions": versions(),
            "seed": self.seed,
            "git_commit": self.commit,
        }

    def write(self, folder: str | os.PathLike | None, results: Mapping[str, Any], figure: "Figure") -> None:
        """Writes the results with their header as JSON and the figure as PNG, and prints where they are.

        Args:
            folder: the output folder, which is made. Default: `examples/figures` of the repository.
            results: raw and derived numbers.
            figure: the plot.
        """
        folder = self.default_folder if folder is None else Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        name = f"benchmark_{self.script.stem}"
        write_json(folder / f"{name}.json", self.header() | dict(results))
        save_figure(folder / f"{name}.png", figure)
        print(f"{name}.json and {name}.png are in {folder}.")


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> None:
    """Prints a table.

    Args:
        title: title above the table.
        columns: names of the columns.
        rows: the cells of each row.
        left: the number of columns that are aligned left; the others are aligned right.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number < left else "right")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def print_targets(entries: Iterable[Mapping[str, Any]]) -> None:
    """Prints entries of [`compare_with_target`]."""
    rows = [(entry["what"], entry["against"] or "-", format_result(entry)) for entry in entries]
    print_table("Targets", ("what", "against", "measured (target)"), rows, left=2)


def plot_over_lengths(
    axes: "Axes", curves: Mapping[str, Sequence[tuple[int, float]]], styles: Mapping[str, str] | None = None
) -> None:
    """Plots curves over lengths in tokens, on two logarithmic axes.

    Args:
        axes: the axes.
        curves: points `(length, value)` by name. A name begins with that of a model, which determines its colour.
        styles: matplotlib's format by the end of a name. Default: a line with dots.
    """
    for name, points in curves.items():
        colour = next((colour for model, colour in COLOURS.items() if name.startswith(model)), None)
        style = next((style for end, style in (styles or {}).items() if name.endswith(end)), "o-")
        axes.plot(*zip(*sorted(points), strict=True), style, color=colour, markersize=5, label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    lengths = sorted({length for points in curves.values() for length, _ in points})
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
