# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""
Measure training on a stream of text against training on text that is tokenised beforehand: the peak of each process's
memory, the time until the first step, the space on the disk, and tokens per second.

    python examples/benchmarks/streaming.py

The text is the reference text that ships with CPython, over and over again up to each size, in as many files of packed
JSON lines (.jsonl.xz) as there are processes. Each size and each way ("stream", "whole") is a run of its own: processes
start, open the text, and train a two-stream model of 4 layers of width 256 for a few steps with DDP, as
`examples/pretrain.py` does. Then each process of a stream reads on: tens of thousands of rows, tokenised and shuffled,
and once all of its text. So little memory at the end means that nothing has piled up on the way.

The peak is the process's largest resident set, from its start. It has torch and the libraries, about half a gigabyte,
and pages of files that `datasets` maps.

Runs on the CPU, about 7 minutes on one core and fewer on two, one thread for each process. Writes
`benchmark_streaming.json` (all numbers, raw and derived) and `benchmark_streaming.png` to `--output_dir`.
"""

import json
import lzma
import multiprocessing
import os
import resource
import socket
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from baselines import SIZES, make_model
from matplotlib.figure import Figure
from timing import BenchmarkArguments, Report, Target, compare_with_target, parse_arguments, print_table, print_targets
from transformers import TrainerCallback, TrainingArguments

from modeling_aoarm import DataCollatorForAnyOrderLM
from modeling_aoarm.data.text import StreamingTextArguments, hold_out, reference_texts, tokenize_and_chunk
from modeling_aoarm.data.tokenizers import train_bpe_tokenizer
from modeling_aoarm.training import AnyOrderTrainer
from modeling_aoarm.training.streams import StreamPart


BLOCK_SIZE = 128
VOCABULARY = 1024
QUICK = dict(megabytes=[1, 2], whole_megabytes=[1], steps=4, rows=200, batch_size=2, processes=1)
# Steps that do not count: the first ones allocate.
WARMUP = 3


@dataclass
class StreamingArguments(BenchmarkArguments):
    """Arguments of the streaming benchmark."""

    megabytes: list[int] = field(
        default_factory=lambda: [10, 100, 1000], metadata={"help": "Sizes of the text to stream, in million bytes."}
    )
    whole_megabytes: list[int] = field(
        default_factory=lambda: [10, 100], metadata={"help": "Sizes of the text to tokenise beforehand."}
    )
    processes: int = field(default=2, metadata={"help": "Processes, one thread each."})
    steps: int = field(default=20, metadata={"help": f"Steps of a training; the first {WARMUP} are not timed."})
    batch_size: int = field(default=8, metadata={"help": f"Rows of {BLOCK_SIZE} tokens in a process's batch."})
    rows: int = field(default=30_000, metadata={"help": "Rows that each process of a stream reads afterwards."})
    shuffle_buffer_size: int = field(default=10_000, metadata={"help": "Rows of a stream's shuffle buffer."})

    def __post_init__(self):
        super().__post_init__()
        self.check_at_least(1, "megabytes", "whole_megabytes", "processes", "batch_size", "rows", "shuffle_buffer_size")
        self.check_at_least(WARMUP + 1, "steps")


def write_text(folder: Path, megabytes: int, files: int) -> int:
    """Writes the packed text, and held-out text beside it, as a folder that `load_dataset` reads.

    Returns:
        The number of bytes of the unpacked training text.
    """
    folder.mkdir()
    parts = zip(("train", "validation"), hold_out(reference_texts(), 0.06), strict=True)
    blocks = {
        name: "".join(json.dumps({"text": text}) + "\n" for text in texts).encode("utf-8") for name, texts in parts
    }
    (folder / "validation.jsonl.xz").write_bytes(lzma.compress(blocks["validation"]))
    copies = max(1, round(megabytes * 10**6 / files / len(blocks["train"])))
    # Packed files may follow each other in one file.
    packed = lzma.compress(blocks["train"])
    for number in range(files):
        with (folder / f"train-{number}.jsonl.xz").open("wb") as file:
            for _ in range(copies):
                file.write(packed)
    return copies * files * len(blocks["train"])


class StepTimer(TrainerCallback):
    """The time before the first step, and the time and the tokens (of all processes) after each step."""

    def __init__(self):
        self.times, self.tokens = [], []

    def on_train_begin(self, args, state, control, **kwargs):
        self.times.append(time.perf_counter())
        self.tokens.append(0)

    def on_step_end(self, args, state, control, **kwargs):
        self.times.append(time.perf_counter())
        self.tokens.append(state.num_input_tokens_seen)


def read_peak_megabytes() -> float:
    """Returns the process's largest resident set so far, in million bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def run_process(rank: int, port: int, way: str, folder: str, tokenizer, arguments: StreamingArguments) -> dict:
    """Trains as one of several processes, and then reads on in a stream.

    Returns:
        `start_seconds` until the first step starts, `seconds` of the timed steps, their `tokens` in all processes, the
        `peak_megabytes` after the steps and at the end, and of a stream the seconds, rows and tokens of reading on, and
        the characters and seconds of reading all text.
    """
    started = time.perf_counter()
    addresses = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": arguments.processes}
    ranks = {"RANK": rank, "LOCAL_RANK": rank}
    if arguments.processes > 1:
        os.environ.update({name: str(value) for name, value in (addresses | ranks).items()})
    torch.set_num_threads(1)
    args = TrainingArguments(
        output_dir=str(Path(folder).parent / "output"),
        max_steps=arguments.steps,
        per_device_train_batch_size=arguments.batch_size,
        include_num_input_tokens_seen="non_padding",
        dataloader_drop_last=True,
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        seed=arguments.seed,
    )
    is_stream = way == "stream"
    with args.main_process_first():
        text = StreamingTextArguments(dataset_name=folder, streaming=is_stream).load()["train"]
        rows = tokenize_and_chunk(text, tokenizer, BLOCK_SIZE)
    if is_stream:
        rows = rows.shuffle(seed=args.seed, buffer_size=arguments.shuffle_buffer_size)
    timer = StepTimer()
    trainer = AnyOrderTrainer(
        model=make_model("two_stream", arguments.seed, vocab_size=VOCABULARY).train(),
        args=args,
        data_collator=DataCollatorForAnyOrderLM(tokenizer, seed=arguments.seed),
        train_dataset=rows,
        callbacks=[timer],
    )
    trainer.train()
    measured = {
        "start_seconds": timer.times[0] - started,
        "first_step_seconds": timer.times[1] - timer.times[0],
        "seconds": timer.times[-1] - timer.times[WARMUP],
        "tokens": timer.tokens[-1] - timer.tokens[WARMUP],
        "peak_megabytes": read_peak_megabytes(),
    }
    if is_stream:
        begun = time.perf_counter()
        part = StreamPart(rows, rank, arguments.processes)
        measured["read_tokens"] = sum(len(row["input_ids"]) for row in islice(part, arguments.rows))
        measured["read_seconds"] = time.perf_counter() - begun
        begun = time.perf_counter()
        part = StreamPart(text, rank, arguments.processes).start_pass()
        measured["all_characters"] = sum(len(row["text"]) for row in part)
        measured["all_seconds"] = time.perf_counter() - begun
        measured["peak_megabytes_at_the_end"] = read_peak_megabytes()
    if arguments.processes > 1:
        torch.distributed.destroy_process_group()
    return measured


def measure(way: str, megabytes: int, tokenizer, arguments: StreamingArguments) -> dict:
    """Measures one run, in new processes and with an empty cache.

    Returns:
        `way`, `megabytes` of text, `processes` (the result of [`run_process`] for each) and derived numbers:
        `start_seconds`, `tokens_per_second` of the training, `peak_megabytes` of the largest process, `disk_megabytes`
        of the cache of `datasets`; of a stream `read_tokens_per_second` of all processes.
    """
    with tempfile.TemporaryDirectory() as temporary, socket.socket() as free:
        size = write_text(Path(temporary) / "text", megabytes, arguments.processes)
        # `datasets` reads it as it is imported, in the processes that start now.
        os.environ["HF_DATASETS_CACHE"] = str(Path(temporary) / "cache")
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        with ProcessPoolExecutor(arguments.processes, multiprocessing.get_context("spawn")) as pool:
            runs = [
                pool.submit(run_process, rank, port, way, f"{temporary}/text", tokenizer, arguments)
                for rank in range(arguments.processes)
            ]
            processes = [run.result() for run in runs]
        disk = sum(path.stat().st_size for path in Path(temporary, "cache").rglob("*") if path.is_file())
    peaks = [each.get("peak_megabytes_at_the_end", each["peak_megabytes"]) for each in processes]
    entry = {
        "way": way,
        "megabytes": size / 1e6,
        "processes": processes,
        "start_seconds": max(each["start_seconds"] + each["first_step_seconds"] for each in processes),
        "tokens_per_second": processes[0]["tokens"] / max(each["seconds"] for each in processes),
        "peak_megabytes": max(peaks),
        "disk_megabytes": disk / 1e6,
    }
    if way == "stream":
        entry["read_tokens_per_second"] = sum(each["read_tokens"] / each["read_seconds"] for each in processes)
    return entry


def compare_entries(entries: list[dict]) -> list[dict]:
    """Compares a stream's peak of memory with that of the smallest text, and its speed with that of whole text."""
    streams = [entry for entry in entries if entry["way"] == "stream"]
    smallest = min(streams, key=lambda entry: entry["megabytes"])
    targets = [
        compare_with_target(
            f"peak memory, stream of {entry['megabytes']:.0f} MB",
            f"of {smallest['megabytes']:.0f} MB",
            entry["peak_megabytes"] / smallest["peak_megabytes"],
            Target("<=", 1.05),
        )
        for entry in streams
        if entry is not smallest
    ]
    for entry in streams:
        for other in entries:
            if other["way"] == "whole" and other["megabytes"] == entry["megabytes"]:
                ratio = entry["tokens_per_second"] / other["tokens_per_second"]
                what = f"tokens per second, stream of {entry['megabytes']:.0f} MB"
                targets.append(compare_with_target(what, "whole text", ratio, Target(">=", 0.9)))
    return targets


def draw(entries: list[dict], title: str) -> Figure:
    """Plots peak memory, time until the end of the first step and tokens per second over the size of the text."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    panels = (
        ("peak_megabytes", "peak memory of a process, MB"),
        ("start_seconds", "seconds to the end of the first step"),
        ("tokens_per_second", "tokens per second of training"),
    )
    for axes, (name, label) in zip(figure.subplots(1, 3), panels, strict=True):
        for way, colour, words in (("stream", "#1f5fa8", "stream"), ("whole", "#c8501e", "tokenised beforehand")):
            points = sorted((entry["megabytes"], entry[name]) for entry in entries if entry["way"] == way)
            axes.plot(*zip(*points, strict=True), "o-", color=colour, label=words)
        axes.set_xscale("log")
        axes.set_ylim(0, 1.1 * max(entry[name] for entry in entries))
        axes.set_xlabel("text, MB")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize="small", loc="lower right")
    figure.suptitle(title)
    return figure


def main(argv: list[str]) -> None:
    arguments = parse_arguments(StreamingArguments, argv, QUICK, __doc__)
    report = Report(__file__, argv, arguments.seed)
    tokenizer = train_bpe_tokenizer(reference_texts(), VOCABULARY)
    sizes = {"stream": arguments.megabytes, "whole": arguments.whole_megabytes}
    entries = [measure(way, size, tokenizer, arguments) for way, each in sizes.items() for size in each]
    targets = compare_entries(entries)
    title = f"Training on packed text, {arguments.processes} process(es)"
    columns = (
        "text",
        "MB",
        "peak memory, MB",
        "first step after, s",
        "on disk, MB",
        "tokens / s",
        "reading, tokens / s",
    )
    rows = [
        (
            entry["way"],
            f"{entry['megabytes']:.0f}",
            f"{entry['peak_megabytes']:.0f}",
            f"{entry['start_seconds']:.1f}",
            f"{entry['disk_megabytes']:.0f}",
            f"{entry['tokens_per_second']:,.0f}",
            f"{entry['read_tokens_per_second']:,.0f}" if entry["way"] == "stream" else "",
        )
        for entry in entries
    ]
    print_table(title, columns, rows)
    print_targets(targets)
    results = {
        "sizes": SIZES | {"vocab_size": VOCABULARY, "block_size": BLOCK_SIZE},
        "settings": {name: getattr(arguments, name) for name in ("processes", "steps", "batch_size", "rows")}
        | {"shuffle_buffer_size": arguments.shuffle_buffer_size},
        "runs": entries,
        "targets": targets,
    }
    report.write(arguments.output_dir, results, draw(entries, title))


if __name__ == "__main__":
    main(sys.argv[1:])
