# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""
The study that the paper left open: does one stream lose to two because neighbours in the sentence are far in the order?

Models of one size are trained on the same sentences in the same orders, at several lengths and, at one length, in
orders that move neighbours apart, at random or not. A synthetic source has exact conditionals, so what a model lacks is
known; text gives differences. A recipe says which cells there are:

    python examples/run_tradeoff_study.py configuration/recipes/study_smoke.yaml --output_dir outputs/study_smoke
    python examples/run_tradeoff_study.py configuration/recipes/study_cpu.yaml --output_dir outputs/study_cpu \\
        --train_file wiki27_train.txt.xz --validation_file wiki27_validation.txt.xz --compile --processes 2
    python examples/run_tradeoff_study.py configuration/recipes/study_gpu.yaml --output_dir outputs/study_gpu \\
        --train_file ... --validation_file ... --device cuda --compile --bf16 --max_minutes 9

*Smoke* takes a minute on 2 cores and shows nothing; *CPU* three and a half hours on 2 cores; *GPU* as long as it gets,
in pieces: the same command goes on where a run ended or was killed, in any number of processes, and no finished cell is
computed again. `--plan_seconds 10` says beforehand how long training will take. Without files the text is that of the
manual inside CPython. `study_cpu_rates.yaml` adds half and double the learning rate to the folder of *CPU*.

The output folder has a file for each finished cell (`cells`) and its model (`weights`), `attention` (where each head
looks, and what cutting edges costs) and `samples` (coherence and diversity of sampled text) for the cells that the
recipe names, and the report: `results.json`, one row for each branch of each cell, and figures.
"""

import math
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from tradeoff_study import figures
from tradeoff_study.recipe import Recipe
from tradeoff_study.runner import Study, finished_rows, same_speed
from tradeoff_study.text import TextSource, as_letters
from transformers import HfArgumentParser

from modeling_aoarm.data.text import TextArguments
from modeling_aoarm.io import write_json


@dataclass
class StudyArguments(TextArguments):
    """How the study runs."""

    output_dir: str = field(default="outputs/study", metadata={"help": "Where results go, and are gone on from."})
    join_with: str = field(
        default="",
        metadata={"help": "What is put between texts. Default: nothing, as for running text cut into lines."},
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
        metadata={"help": "Train each kind of model for so long, print what all cells would take, and end."},
    )
    max_minutes: float = field(default=math.inf, metadata={"help": "After these a run saves its state and ends."})
    save_seconds: float = field(default=30.0, metadata={"help": "Seconds between savings of a cell in training."})
    report_only: bool = field(default=False, metadata={"help": "Train nothing; write the report of what there is."})


def load_sources(args: StudyArguments, recipe: Recipe) -> tuple[TextSource | None, TextSource | None]:
    """Training and held-out text, if a cell needs them."""
    if all(cell.source != "text" for cell in recipe.cells):
        return None, None
    texts = args.load()
    own = args.train_file or args.dataset_name
    train, held_out = (
        args.join_with.join(texts[name]["text"]) if own else as_letters(" ".join(texts[name]["text"]))
        for name in ("train", "validation")
    )
    return TextSource(train), TextSource(held_out)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], texts: int) -> None:
    """Prints a table whose first `texts` columns are aligned left and the others, numbers, right."""
    table = Table(title=title, title_justify="left")
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number < texts else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def print_plan(study: Study, args: StudyArguments) -> None:
    """Measures rates and prints them with the time that unfinished cells train at them; measuring is not in it."""
    rates = study.rates(args.plan_seconds, args.compile, args.bf16)
    table, total = [], 0.0
    for measured, rate in rates.items():
        cells = [cell for cell in study.recipe.cells if same_speed(cell, measured) and study.result(cell) is None]
        minutes = sum(cell.training_symbols for cell in cells) / rate / 60
        total += minutes
        names = measured.source, str(measured.length), measured.model
        table.append((*names, f"{rate:,.0f}", str(len(cells)), f"{minutes:.1f}"))
    columns = ("source", "length", "model", "symbols per second", "cells", "minutes")
    print_table("Training, one process", columns, table, texts=3)
    print(f"All cells: {total:.0f} minutes in one process.")


def report(folder: Path) -> None:
    """Writes the table and the figures of what there is, and prints a table."""
    rows = finished_rows(folder)
    if not rows:
        print(f"No cell is finished in {folder}.")
        return
    flat, found = figures.table_rows(rows), figures.gaps(rows)
    write_json(folder / "results.json", {"branches": flat, "gaps": found})
    figures.plot_learning(rows, folder / "learning.png")
    figures.plot_rows(rows, folder / "observed.png")
    figures.plot_branches(rows, folder / "branches.png")
    if found:
        figures.plot_gaps(found, folder / "gaps.png")
    if attention := finished_rows(folder, "attention"):
        figures.plot_attention(attention, folder / "attention.png")
    if samples := finished_rows(folder, "samples"):
        figures.plot_frontiers(samples, folder / "frontiers.png")
    table = []
    for row in flat:
        is_exact = "excess" in row
        error = row["excess_standard_error" if is_exact else "standard_error"]
        table.append(
            (
                *(str(row[name]) for name in ("source", "length", "order", "learning_rate", "model", "seed")),
                f"{row['symbols'] / 1e6:.2f}M",
                f"{row['nll']:.4f}",
                f"{row['excess']:.4f}" if is_exact else "-",
                "-" if error is None else f"{error:.4f}",
                f"{row['unigram_entropy']:.4f}" + ("" if row["beats_unigram"] else " (not beaten)"),
            )
        )
    columns = ("source", "length", "order", "rate", "model", "seed", "symbols", "nats", "excess", "s.e.", "unigram")
    print_table("Nats per symbol", columns, table, texts=5)
    print_table(
        f"What {figures.ONE} needs more than others, on the same sentences and orders",
        ("source", "length", "order", "rate", "other", "seed", "rows to a neighbour", "nats", "s.e."),
        [
            (
                *(str(gap[name]) for name in ("source", "length", "order", "learning_rate", "other", "seed")),
                f"{gap['neighbour_row_lag']:.1f}",
                *(f"{gap[name]:.4f}" for name in ("gap", "standard_error")),
            )
            for gap in found
        ],
        texts=5,
    )


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
            # What an earlier call left comes first.
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
