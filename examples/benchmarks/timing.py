# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""What the benchmarks share: ways that take turns, ratios with targets, and reports with everything behind a figure.

A machine is never quiet. So the ways that are compared take turns, over and over, and their times are compared within
one round: load that comes and goes, and clocks that change, cancel. A ratio is the median over rounds.
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
    """What all benchmarks take."""

    threads: int | None = field(default=None, metadata={"help": "torch threads. Default: torch's own number."})
    seed: int = field(default=0, metadata={"help": "Of weights, tokens and orders."})
    output_dir: str | None = field(
        default=None, metadata={"help": "Where the JSON and the PNG go. Default: examples/figures."}
    )
    quick: bool = field(default=False, metadata={"help": "Toy sizes: a run of seconds, to see that everything works."})

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
    """What benchmarks of time take."""

    repetitions: int = field(default=5, metadata={"help": "Rounds that are measured, after one that is not."})

    def __post_init__(self):
        super().__post_init__()
        self.check_at_least(1, "repetitions")


@dataclass
class CheckpointArguments(BenchmarkArguments):
    """What benchmarks of a left-to-right checkpoint take."""

    model: str = field(default="", metadata={"help": "A left-to-right checkpoint: folder, GGUF file or Hub name."})

    def __post_init__(self):
        super().__post_init__()
        if not self.model:
            raise ValueError("--model must be a checkpoint's folder, a GGUF file or a name on the Hub, got none.")


Arguments = TypeVar("Arguments", bound=BenchmarkArguments)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Docstrings as they stand, and the defaults of arguments."""


def parse_arguments(
    kind: type[Arguments], argv: Sequence[str], quick: Mapping[str, Any], description: str
) -> Arguments:
    """Reads a benchmark's command line; what is wrong with it ends the program with one line, as argparse does.

    Args:
        kind: the dataclass of arguments; a `ValueError` of its `__post_init__` says what is wrong.
        argv: the arguments, without the program's name.
        quick: defaults that `--quick` changes.
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


def take_turns(
    ways: Mapping[Hashable, Callable[[int], Any]], repetitions: int, title: str
) -> dict[Hashable, tuple[list[float], list]]:
    """Runs all ways one after the other, several times.

    Args:
        ways: functions of the repetition's number, by name.
        repetitions: how many rounds are measured, after one that is not.
        title: of the progress bar.

    Returns:
        For each name the wall times (seconds) and the results of the rounds.
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


def median_ratio(values: Sequence[float], reference: Sequence[float]) -> float:
    """The median over rounds of the ratios within one round."""
    return median(value / base for value, base in zip(values, reference, strict=True))


def figure(value: float) -> str:
    """A figure for people: whole from 1,000 on, four digits below."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


@dataclass(frozen=True)
class Target:
    """What a figure is to reach.

    Args:
        kind: `"<="` where it must be at most the bound, `">="` where at least.
        bound: the bound.

    Raises:
        ValueError: for another kind.
    """

    kind: str
    bound: float

    _COMPARE = {"<=": operator.le, ">=": operator.ge}

    def __post_init__(self):
        if self.kind not in self._COMPARE:
            raise ValueError(f"`kind` must be one of {sorted(self._COMPARE)}, got {self.kind!r}.")

    def __str__(self) -> str:
        return f"{self.kind} {figure(self.bound)}"

    def is_met(self, value: float) -> bool:
        return self._COMPARE[self.kind](value, self.bound)


def judged(what: str, against: str, value: float, target: Target | None, **details) -> dict[str, Any]:
    """A figure beside its target, as reports hold it.

    Args:
        what: what was measured.
        against: what it was compared with; `""` for a figure that is no ratio.
        value: the figure, most often a ratio.
        target: what it is to reach, or `None`.
        details: what else is to stand in the entry.

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


def verdict(entry: Mapping[str, Any]) -> str:
    """The table cell of a [`judged`] figure, as `"1.032 (<= 1.05: met)"`."""
    if entry["target"] is None:
        return figure(entry["value"])
    return f"{figure(entry['value'])} ({entry['target']}: {'met' if entry['met'] else 'missed'})"


def load_checkpoint(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A left-to-right checkpoint in float32, and its tokenizer.

    Args:
        name: a folder, a GGUF file or a name on the Hub.
    """
    folder, options = name, {}
    if name.endswith(".gguf"):
        folder, options = Path(name).parent, {"gguf_file": Path(name).name}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    if options and hasattr(model.config, "quantization_config"):
        # The weights were made float32 while they were loaded.
        del model.config.quantization_config
    return model, AutoTokenizer.from_pretrained(folder, **options)


def git_commit(folder: str | os.PathLike) -> str | None:
    """The commit that is checked out around a folder, with `-dirty` where files differ; `None` outside a checkout."""
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"]
    try:
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def processor_name() -> str | None:
    """The processor's model name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or None


def machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """What figures depend on of a machine; nothing that tells whose it is."""
    device = torch.device(device)
    is_cuda = device.type == "cuda"
    return {
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if is_cuda else processor_name(),
        "processor": processor_name(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "dtype": str(torch.get_default_dtype()).removeprefix("torch."),
    }


class Report:
    """What a benchmark leaves behind: `benchmark_<script>.json` and `.png`, and tables on the terminal.

    Make it before measuring: it takes down the time and the commit, as files may change while a benchmark runs.

    Args:
        script: the script's file.
        argv: its arguments.
        seed: of everything that is drawn.
        device: where it measures.
    """

    def __init__(self, script: str | os.PathLike, argv: Sequence[str], seed: int, device: torch.device | str = "cpu"):
        self.script = Path(script).resolve()
        self.device, self.seed = device, seed
        root = next((each for each in self.script.parents if (each / "pyproject.toml").is_file()), self.script.parent)
        self.command = shlex.join([self.script.relative_to(root).as_posix(), *map(str, argv)])
        self.default_folder = root / "examples" / "figures"
        self.date = datetime.datetime.now(datetime.UTC)
        self.commit = git_commit(self.script.parent)
        self.started = time.perf_counter()

    def header(self) -> dict[str, Any]:
        """How the figures came about: command, date, seconds so far, machine, versions, seed and commit."""
        return {
            "command": self.command,
            "date": self.date.isoformat(timespec="seconds"),
            "total_seconds": round(time.perf_counter() - self.started, 1),
            "machine": machine(self.device),
            "versions": versions(),
            "seed": self.seed,
            "git_commit": self.commit,
        }

    def write(self, folder: str | os.PathLike | None, results: Mapping[str, Any], figure: "Figure") -> None:
        """Writes the results with their header as JSON and the figure as PNG, and says where.

        Args:
            folder: where to; it is made. Default: `examples/figures` of the repository.
            results: what was measured, raw numbers and what follows from them.
            figure: the picture.
        """
        folder = self.default_folder if folder is None else Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        name = f"benchmark_{self.script.stem}"
        write_json(folder / f"{name}.json", self.header() | dict(results))
        save_figure(folder / f"{name}.png", figure)
        print(f"{name}.json and {name}.png are in {folder}.")


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> None:
    """Prints a table; the first `left` columns are texts, the others figures.

    Args:
        title: above it.
        columns: their names.
        rows: of cells.
        left: how many columns are aligned left.
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


def print_verdicts(entries: Iterable[Mapping[str, Any]]) -> None:
    """Prints [`judged`] figures."""
    rows = [(entry["what"], entry["against"] or "-", verdict(entry)) for entry in entries]
    print_table("Targets", ("what", "against", "measured (target)"), rows, left=2)


def plot_over_lengths(
    axes: "Axes", curves: Mapping[str, Sequence[tuple[int, float]]], styles: Mapping[str, str] | None = None
) -> None:
    """Draws curves over lengths in tokens, both axes logarithmic.

    Args:
        axes: where.
        curves: points `(length, value)` by name. A name begins with a model's, by which it is coloured.
        styles: matplotlib's format by the end of a name; default: a line with dots.
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
