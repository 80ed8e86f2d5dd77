# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""
Measure training and decoding on one accelerator, in several calls that each stay within a time limit.

    python examples/benchmarks/accelerator.py                   # repeat until it says that all cells are measured
    python examples/benchmarks/accelerator.py --part training --training_rows 1024
    python examples/benchmarks/accelerator.py --quick --output_dir outputs/accelerator    # toy sizes, also on a CPU

1. Training, 124 million parameters, 1024 and 4096 rows: milliseconds per step and tokens per second of compiled steps
   (bf16 autocast over float32 weights, fused AdamW, random tokens and orders drawn on the device), and model FLOP
   utilisation: useful operations (`gpu/models.py` has the formula) over the device's peak. The references are the
   library's Llama, and Llama without the mask tensor that the library makes when it is compiled.
2. Decoding, bf16 weights, canvases of 1024 columns with one given token, sampling at temperature 1, in batches of 1, 32
   and 128: one by one, several per pass, speculation and confidence order, with dynamic and static (compiled) caches.
   The references are Llama (`generate`, and a bare loop over its `forward`) and masked diffusion without a cache.

The weights are new. A pass costs the same with them, but nearly all drafts are accepted. So tokens per pass and per
second of speculation are upper bounds. Each call of `generate` makes a new cache and records the graphs of the device
again. The times of static caches include that, also for Llama.

Each model, length and way is a cell. A finished cell is written at once to `accelerator.json` in `--output_dir`, and is
not measured again. No cell starts that would probably end after `--time_limit` seconds, except the first one of a call.
A cell that does not fit into memory counts as measured. Errors are recorded, and measured again with `--retry`. Cells
also have the attention kernels that ran (flash or not), the kernels that took most time, and the number of times that
the host waited for the device per pass. One H100 needs about half an hour, and nothing is downloaded. Writes
`accelerator.json` and `accelerator.png` to `examples/results` by default.
"""

import functools
import json
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from gpu.decoding import LLAMA_WAYS, UNCACHED, list_ways, measure_decoding
from gpu.kernels import find_accelerator, free_memory, synchronize
from gpu.models import LLAMA, LLAMA_WITHOUT_MASK, SIZES, TOY_SIZES, find_peak_tflops
from gpu.training import TRAINED, measure_training
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from timing import (
    COLOURS,
    Report,
    Target,
    TimingArguments,
    compare_with_target,
    parse_arguments,
    print_table,
    print_targets,
)

from modeling_aoarm.io import save_figure, versions, write_json


REPOSITORY = Path(__file__).resolve().parents[2]
UTILISATION, SPEED_UP = Target(">=", 0.45), Target(">=", 20)
QUICK = dict(repetitions=2, training_rows=[16], tokens_per_step=64, steps=1, decoding_batches=[2], canvas=32)
QUICK |= dict(few_blanks=8, uncached_passes=4, compile_backend="eager")


@dataclass
class AcceleratorArguments(TimingArguments):
    """Arguments of the accelerator benchmark. Fields that only choose cells may differ from call to call."""

    part: str = field(default="all", metadata={"help": "What to measure.", "choices": ["all", "training", "decoding"]})
    training_rows: list[int] = field(default_factory=lambda: [1024, 4096], metadata={"help": "Lengths of examples."})
    training_models: list[str] = field(
        default_factory=lambda: list(TRAINED[:6]), metadata={"help": f"Any of: {', '.join(TRAINED)}."}
    )
    decoding_batches: list[int] = field(default_factory=lambda: [32, 1, 128], metadata={"help": "Batch sizes."})
    decoding_variants: list[str] = field(
        default_factory=lambda: ["two_stream"], metadata={"help": "Variants of any order that fill canvases."}
    )
    time_limit: float = field(default=480, metadata={"help": "Seconds after which no cell starts."})
    retry: bool = field(default=False, metadata={"help": "Measure cells again that ended with an error."})
    peak_tflops: float | None = field(
        default=None, metadata={"help": "The device's peak in 10^12 bf16 operations per second, if it is not known."}
    )
    tokens_per_step: int = field(default=32768, metadata={"help": "Training: a power of two times each length."})
    steps: int = field(default=10, metadata={"help": "Training: steps per timed block."})
    canvas: int = field(default=1024, metadata={"help": "Decoding: columns."})
    few_blanks: int = field(default=16, metadata={"help": "Decoding: blanks of untimed calls."})
    uncached_passes: int = field(default=16, metadata={"help": "Decoding: timed passes without a cache."})
    cell_seconds: float = field(default=40, metadata={"help": "Decoding: seconds for the repetitions of a cell."})
    attention_priority: str = field(
        default="flash", metadata={"help": "The first kernels that attention tries.", "choices": ["flash", "cudnn"]}
    )
    compile_backend: str = field(default="inductor", metadata={"help": "Backend of torch.compile for training."})

    # These only choose cells, or set the place and the time.
    FREE = (
        *("part", "training_rows", "training_models", "decoding_batches", "decoding_variants"),
        *("time_limit", "retry", "peak_tflops", "output_dir", "threads"),
    )

    def __post_init__(self):
        super().__post_init__()
        self.check_at_least(1, "steps", "uncached_passes", "decoding_batches")
        self.check_at_least(2, "training_rows")
        # Enough for drafts, so that static shapes are the same as for all blanks.
        self.check_at_least(8, "few_blanks")
        self.check_at_least(3 * self.few_blanks, "canvas")
        for rows in self.training_rows:
            examples, left = divmod(self.tokens_per_step, rows)
            if left or examples < 1 or examples & (examples - 1):
                raise ValueError(
                    "--tokens_per_step must be a power of two times each of --training_rows, got "
                    f"{self.tokens_per_step} and {rows}."
                )
        if unknown := set(self.training_models) - set(TRAINED):
            raise ValueError(f"--training_models must be of {', '.join(TRAINED)}, got {', '.join(sorted(unknown))}.")
        others = (LLAMA, LLAMA_WITHOUT_MASK, "causal", "bidirectional")
        allowed = [each for each in TRAINED if each not in others]
        if unknown := set(self.decoding_variants) - set(allowed):
            raise ValueError(f"--decoding_variants must be of {', '.join(allowed)}, got {', '.join(sorted(unknown))}.")

    def settings(self, sizes: Mapping[str, Any], device_name: str | None) -> dict[str, Any]:
        """Returns the settings on which results depend. All cells of a file share them."""
        mine = {name: value for name, value in asdict(self).items() if name not in self.FREE}
        packages = {name: versions()[name] for name in ("torch", "transformers")}
        return mine | {"sizes": dict(sizes), "device_name": device_name, "versions": packages}


class Cells:
    """The file of all cells, to which later calls add.

    Args:
        path: path of the file, which may exist.
        settings: the settings that its cells share.

    Raises:
        ValueError: the file is damaged, or holds cells of other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any]):
        self.path = path
        self.content: dict[str, Any] = {"settings": settings, "runs": [], "cells": {}}
        if not path.exists():
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            theirs, _, _ = found["settings"], found["runs"], found["cells"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} must hold cells of this benchmark; move it away. Got {error!r}.") from error
        # As JSON holds them.
        mine = json.loads(json.dumps(settings))
        if differing := sorted(name for name in mine | theirs if mine.get(name) != theirs.get(name)):
            pairs = ", ".join(f"{name}={theirs.get(name)} and not {mine.get(name)}" for name in differing)
            raise ValueError(f"--output_dir must hold cells of the same settings, or none; {path} has {pairs}.")
        self.content = found

    @property
    def measured(self) -> dict[str, dict[str, Any]]:
        return self.content["cells"]

    def missing(self, ways: Mapping[str, Callable[[], dict]], retry: bool) -> list[str]:
        """Lists the names of cells that remain to be measured, with `retry` also those with errors."""
        return [name for name in ways if name not in self.measured or (retry and "error" in self.measured[name])]

    def expected_seconds(self, name: str) -> float:
        """Returns the seconds of the longest cell of this part so far."""
        part = name.partition("/")[0]
        return max((cell["cell_seconds"] for key, cell in self.measured.items() if key.startswith(part)), default=0)

    def write(self, **changes: Any) -> None:
        self.content |= changes
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self.content)

    def fill(self, ways: Mapping[str, Callable[[], dict]], report: Report, time_limit: float, retry: bool) -> list[str]:
        """Measures missing cells within the time limit, and returns the names of the remaining ones."""
        missing = self.missing(ways, retry)
        started = time.perf_counter()
        for number, name in enumerate(missing):
            elapsed = time.perf_counter() - started
            if number > 0 and elapsed + self.expected_seconds(name) > time_limit:
                return missing[number:]
            if number == 0:
                self.content["runs"].append(report.header())
            print(f"{elapsed:5.0f} s: {name}", flush=True)
            free_memory(report.device)
            entry = measure_or_catch(ways[name])
            entry["cell_seconds"] = time.perf_counter() - started - elapsed
            entry["run"] = len(self.content["runs"]) - 1
            self.measured[name] = entry
            self.content["runs"][-1] = report.header()
            self.write()
            # This raises if an error has left the device unusable. The next call then goes on after this cell.
            synchronize(report.device)
        return []


def measure_or_catch(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Returns the results of a cell, or an entry about missing memory or another error."""
    try:
        return measure()
    except torch.OutOfMemoryError as error:
        return {"out_of_memory": str(error).partition(". ")[0]}
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


def list_cells(
    arguments: AcceleratorArguments, sizes: Mapping[str, Any], device: torch.device
) -> dict[str, Callable[[], dict[str, Any]]]:
    """Lists the functions that measure cells, by name: `training/<rows>/<model>` and `decoding/<batch>/<way>`."""
    cells = {}
    if arguments.part != "decoding":
        for rows in arguments.training_rows:
            for model in arguments.training_models:
                measure = functools.partial(measure_training, model, rows, arguments, sizes, device)
                cells[f"training/{rows}/{model}"] = measure
    if arguments.part != "training":
        for batch in arguments.decoding_batches:
            for way in list_ways(arguments.decoding_variants):
                measure = functools.partial(measure_decoding, way, batch, arguments, sizes, device)
                cells[f"decoding/{batch}/{way}"] = measure
    return cells


def compare(cells: Mapping[str, dict[str, Any]], peak: float | None) -> dict[str, Any]:
    """Derives numbers from the cells of this and earlier calls.

    Args:
        cells: the cells by name.
        peak: peak of the device, 10^12 operations per second.

    Returns:
        `training`: utilisation, and the speed relative to Llama without a mask tensor. `decoding`: the speed relative
            to
        Llama's `generate` and to uncached masked diffusion at the same batch size. `targets`: see
        [`compare_with_target`].
    """
    training, decoding, targets = {}, {}, []
    for name, cell in cells.items():
        part, size, what = name.split("/", 2)
        if "tokens_per_second" not in cell:
            continue

        def speed_against(other: str, part=part, size=size, cell=cell) -> float | None:
            reference = cells.get(f"{part}/{size}/{other}", {}).get("tokens_per_second")
            return None if reference is None else cell["tokens_per_second"] / reference

        if part == "training":
            utilisation = None if peak is None else cell["useful_tflops_per_second"] / peak
            training[name] = {"utilisation": utilisation, "to_llama": speed_against(LLAMA_WITHOUT_MASK)}
            if what == "two_stream" and utilisation is not None:
                targets.append(
                    compare_with_target(f"two_stream training, {size} rows", "peak", utilisation, UTILISATION)
                )
        else:
            to_uncached = speed_against(UNCACHED)
            decoding[name] = {"to_llama": speed_against(next(iter(LLAMA_WAYS))), "to_uncached": to_uncached}
            if size == "32" and "one by one" in what and to_uncached is not None:
                targets.append(compare_with_target(f"{what}, batch {size}", UNCACHED, to_uncached, SPEED_UP))
    return {"peak_tflops": peak, "training": training, "decoding": decoding, "targets": targets}


def format_value(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def print_tables(cells: Mapping[str, dict[str, Any]], compared: Mapping[str, Any]) -> None:
    """Prints all cells, and the targets."""
    rows: dict[str, list[list[str]]] = {"training": [], "decoding": []}
    for name, cell in cells.items():
        part, size, what = name.split("/", 2)
        if "tokens_per_second" not in cell:
            rows[part].append([what, size, "out of memory" if "out_of_memory" in cell else "error", *["-"] * 6])
            continue
        memory = None if cell["peak_memory_bytes"] is None else cell["peak_memory_bytes"] / 2**30
        common = [format_value(cell["flash_share"], ".2f"), format_value(memory, ".1f")]
        speed, follows = f"{cell['tokens_per_second']:,.0f}", compared[part][name]
        if part == "training":
            step = sorted(cell["milliseconds_per_step"])[len(cell["milliseconds_per_step"]) // 2]
            ratios = [format_value(follows["to_llama"], ".3f"), format_value(follows["utilisation"], ".1%")]
            rows[part].append([what, size, speed, f"{step:.2f}", *ratios, str(cell["accumulation"]), *common])
        else:
            waits = format_value(None if cell["host_waits"] is None else cell["host_waits"]["per_pass"], ".1f")
            ratios = [format_value(follows["to_llama"], ".2f"), format_value(follows["to_uncached"], ".1f")]
            passes = [f"{cell['milliseconds_per_pass']:.2f}", f"{cell['tokens_per_pass']:.2f}"]
            if cell["extrapolated"]:
                what += f" (from {cell['measured_blanks']} of {cell['blanks']} blanks)"
            rows[part].append([what, size, speed, *passes, *ratios, waits, common[0]])
    columns = ["model", "rows", "tokens / s", "ms / step", "to Llama", "utilisation", "parts", "flash", "GiB"]
    if rows["training"]:
        print_table("Training (to Llama without a mask tensor)", columns, rows["training"])
    columns = ["way", "batch", "tokens / s", "ms / pass", "tokens / pass", "to Llama", "to uncached", "waits", "flash"]
    if rows["decoding"]:
        print_table("Decoding (to Llama's generate; waits for the device in a pass)", columns, rows["decoding"])
    if compared["targets"]:
        print_targets(compared["targets"])


def draw_bars(axes: Axes, cells: Mapping[str, dict[str, Any]], part: str, labels: Mapping[str, str]) -> None:
    """Plots tokens per second as bars with `labels`, a group for each length or batch size."""
    names = [name for name, cell in cells.items() if name.startswith(part) and "tokens_per_second" in cell]
    names.sort(key=lambda name: int(name.split("/", 2)[1]))
    places, sizes = [], []
    for name in names:
        size = name.split("/", 2)[1]
        places.append((places[-1] + (1 if size == sizes[-1] else 2)) if places else 0)
        sizes.append(size)
    whats = [name.split("/", 2)[2] for name in names]
    colours = [next((COLOURS[key] for key in COLOURS if what.startswith(key)), "0.35") for what in whats]
    bars = axes.barh(places, [cells[name]["tokens_per_second"] for name in names], color=colours)
    axes.bar_label(bars, [labels[name] for name in names], padding=3, fontsize="small")
    axes.set_yticks(places, [f"{what}, {size}" for what, size in zip(whats, sizes, strict=True)], fontsize="small")
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set_xlabel("tokens per second")
    axes.grid(alpha=0.3, axis="x")


def draw(path: Path, cells: Mapping[str, dict[str, Any]], compared: Mapping[str, Any], device_name: str | None) -> None:
    """Plots tokens per second of training and decoding."""
    utilisations = {name: format_value(each["utilisation"], ".1%") for name, each in compared["training"].items()}
    speed_ups = {name: f"{format_value(each['to_uncached'], '.1f')} ×" for name, each in compared["decoding"].items()}
    titles = {
        "training": f"Training on {device_name}: model and rows of an example, model FLOP utilisation",
        "decoding": "Decoding: way and batch size, times the speed of masked diffusion without a cache",
    }
    labels = {"training": utilisations, "decoding": speed_ups}
    parts = [part for part in labels if labels[part]]
    counts = [len(labels[part]) for part in parts]
    figure = Figure(figsize=(9, 1 + len(parts) + 0.24 * sum(counts)), layout="constrained")
    for part, axes in zip(parts, figure.subplots(len(parts), height_ratios=counts, squeeze=False)[:, 0], strict=True):
        draw_bars(axes, cells, part, labels[part])
        axes.set_title(titles[part])
        if part == "decoding":
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
            axes.xaxis.set_minor_formatter(NullFormatter())
    save_figure(path, figure)


def main(argv: list[str]) -> None:
    arguments = parse_arguments(AcceleratorArguments, argv, QUICK, __doc__)
    device = find_accelerator()
    if device.type == "cpu" and not (arguments.quick and arguments.output_dir):
        sys.exit("There is no accelerator here. Toy sizes run on a CPU with --quick and an --output_dir.")
    sizes = TOY_SIZES if arguments.quick else SIZES
    folder = Path(arguments.output_dir or REPOSITORY / "examples" / "results")
    report = Report(__file__, argv, arguments.seed, device)
    device_name = report.header()["machine"]["device_name"]
    try:
        cells = Cells(folder / "accelerator.json", arguments.settings(sizes, device_name))
    except ValueError as error:
        sys.exit(str(error))
    left = cells.fill(list_cells(arguments, sizes, device), report, arguments.time_limit, arguments.retry)
    peak = arguments.peak_tflops or find_peak_tflops(device_name)
    compared = compare(cells.measured, peak)
    cells.write(compared=compared)
    if compared["training"] or compared["decoding"]:
        draw(folder / "accelerator.png", cells.measured, compared, device_name)
    print_tables(cells.measured, compared)
    if peak is None:
        print(f"No utilisation: the peak of {device_name} is not known; give --peak_tflops.")
    print(f"accelerator.json and accelerator.png are in {folder}.")
    if left:
        print(f"{len(left)} cells remain, the same command goes on with them: {'; '.join(left)}.")
    else:
        print("All cells are measured.")


if __name__ == "__main__":
    main(sys.argv[1:])
