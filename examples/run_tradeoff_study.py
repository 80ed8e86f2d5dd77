# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""
A study of the question that the paper leaves open: does one stream lose to two because neighbours in the sentence are
far apart in the order?

The study trains models of one size on the same sentences in the same orders, at several lengths and, at one length, in
orders that move neighbours apart, at random or not, and compares each model at its best learning rate. A synthetic
source has exact conditionals, so the distance of a model from the optimum is known. Text gives differences between
models only. A recipe lists the cells:

    python examples/run_tradeoff_study.py configuration/recipes/study_smoke.yaml --output_dir outputs/study_smoke
    python examples/run_tradeoff_study.py configuration/recipes/study_cpu.yaml --output_dir outputs/study_cpu \\
        --compile --processes 2
    python examples/run_tradeoff_study.py configuration/recipes/study_gpu.yaml --output_dir outputs/study_gpu \\
        --train_file ... --validation_file ... --device cuda --compile --bf16 --max_minutes 9

*Smoke* takes a minute on 2 cores and shows nothing. *CPU* takes some hours on 2 cores. The same command goes on from a
run that ended or was killed, in any number of processes, and never computes a finished cell again. `--plan_seconds 10`
estimates the training time first, and `--report_only` writes the report again. Without files, the text is the manual
inside CPython.

The output folder has a file for each finished cell (`cells`) and its model (`weights`); for the cells that the recipe
names, `attention` (attention mass by distance, and the cost of cutting edges) and `samples` (coherence and diversity of
sampled text); and the report: `results.json`, with one row for each branch of each cell and paired differences between
models, figures, and tables in Markdown, which are printed.
"""

import math
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tradeoff_study import figures
from tradeoff_study.comparisons import choose_best, format_markdown, gaps, report_tables, table_rows
from tradeoff_study.recipe import Recipe
from tradeoff_study.runner import Study, finished_rows, same_speed
from tradeoff_study.text import TextSource, as_letters
from transformers import HfArgumentParser

from modeling_aoarm.data.text import TextArguments
from modeling_aoarm.io import write_json


@dataclass
class StudyArguments(TextArguments):
    """How the study runs."""

    output_dir: str = field(default="outputs/study", metadata={"help": "Folder of results."})
    join_with: str = field(
        default="",
        metadata={"help": "Put between texts. Default: nothing, for running text cut into lines."},
    )
    device: str = field(default="cpu", metadata={"help": "cpu, cuda, ..."})
    threads: int = field(default=1, metadata={"help": "Torch threads of a process without a GPU."})
    processes: int = field(default=1, metadata={"help": "Processes that share the cells."})
    compile: bool = field(default=False, metadata={"help": "Compile training steps."})
    bf16: bool = field(
        default=False, metadata={"help": "Train in bfloat16 mixed precision; on CUDA with flash kernels."}
    )
    plan_seconds: float | None = field(
        default=None,
        metadata={"help": "Train each kind of model for this time, print an estimate for all cells, and end."},
    )
    max_minutes: float = field(default=math.inf, metadata={"help": "Time after which a run saves its state and ends."})
    save_seconds: float = field(default=30.0, metadata={"help": "Seconds between saves of a cell in training."})
    report_only: bool = field(default=False, metadata={"help": "Train nothing; write the report of finished cells."})


def load_sources(args: StudyArguments, recipe: Recipe) -> tuple[TextSource | None, TextSource | None]:
    """Loads training and held-out text, if a cell needs them."""
    if all(cell.source != "text" for cell in recipe.cells):
        return None, None
    texts = args.load()
    own = args.train_file or args.dataset_name
    train, held_out = (
        args.join_with.join(texts[name]["text"]) if own else as_letters(" ".join(texts[name]["text"]))
        for name in ("train", "validation")
    )
    return TextSource(train), TextSource(held_out)


def print_plan(study: Study, args: StudyArguments) -> None:
    """Measures rates, and prints the training time of unfinished cells at these rates."""
    lines, total = [], 0.0
    for measured, rate in study.rates(args.plan_seconds, compile=args.compile, bf16=args.bf16).items():
        cells = [cell for cell in study.recipe.cells if same_speed(cell, measured) and study.result(cell) is None]
        minutes = sum(cell.training_symbols for cell in cells) / rate / 60
        total += minutes
        line = {name: str(getattr(measured, name)) for name in ("source", "length", "model")}
        line |= {"cells": str(len(cells)), "symbols per second": f"{rate:,.0f}", "minutes": f"{minutes:.1f}"}
        lines.append(line)
    print(format_markdown("Training, one process", lines))
    print(f"All cells: {total:.0f} minutes in one process.")


def report(folder: Path) -> None:
    """Writes the numbers and the figures of finished cells, and prints their tables."""
    rows = finished_rows(folder)
    if not rows:
        print(f"No cell is finished in {folder}.")
        return
    best = choose_best(rows)
    write_json(folder / "results.json", {"branches": table_rows(rows), "gaps": gaps(best)})
    figures.plot_lengths(best, folder / "excess.png")
    figures.plot_rates(rows, folder / "rates.png")
    figures.plot_rows(best, folder / "observed.png")
    figures.plot_branches(best, folder / "branches.png")
    if attention := finished_rows(folder, "attention"):
        figures.plot_attention(attention, folder / "attention.png")
    if samples := finished_rows(folder, "samples"):
        figures.plot_frontiers(samples, folder / "frontiers.png")
    for title, lines in report_tables(rows).items():
        if lines:
            print(format_markdown(title, lines))


def main(argv: list[str]) -> None:
    if not argv or not argv[0].endswith((".yaml", ".yml")):
        raise ValueError(f"The first argument must be a recipe, a .yaml file; got {argv[:1]}.")
    [args] = HfArgumentParser(StudyArguments).parse_args_into_dataclasses(argv[1:])
    for name in ("threads", "processes", "max_minutes", "save_seconds", "plan_seconds"):
        if getattr(args, name) is not None and not getattr(args, name) > 0:
            raise ValueError(f"--{name} must be above 0, got {getattr(args, name)}.")
    recipe, folder = Recipe.load(argv[0]), Path(args.output_dir)
    if not args.report_only:
        torch.set_num_threads(args.threads)
        study = Study(recipe, folder, *load_sources(args, recipe), device=args.device)
        if args.plan_seconds is not None:
            return print_plan(study, args)
        others = [
            subprocess.Popen([sys.executable, __file__, *argv, "--processes", "1"]) for _ in range(args.processes - 1)
        ]
        try:
            started = time.monotonic()
            # Analyses that an earlier run left come first.
            study.analyse(args.max_minutes)
            study.run(args.compile, args.bf16, args.max_minutes, args.save_seconds)
            study.analyse(args.max_minutes - (time.monotonic() - started) / 60)
        finally:
            for other in others:
                other.wait()
        if failed := [other.returncode for other in others if other.returncode]:
            raise RuntimeError(f"{len(failed)} of the processes ended with an error: {failed}.")
    report(folder)


if __name__ == "__main__":
    main(sys.argv[1:])
