# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""
Where a trained any-order model attends, and its loss without parts of its attention.

Does attention serve two ends at once, reading near the target (semantic) and summing up the most recent rows
(structural)? Nothing is trained. On held-out text, in random orders,

1. the attention mass of each head is measured by semantic and by structural distance, in each layer and stream, and
   each head gets a score between -1 (recency alone) and 1 (nearness to the target alone);
2. as mass is only correlation, attention is cut to the m rows nearest to each target, nearest to each row's own
   position, most recent, or random, in each stream, and the loss is measured again. Rows always see themselves; with
   `--own_row true` the row itself is the most recent one, and may be hidden like the others.

    python examples/analyze_attention.py [--model outputs/pretrain] [--output_dir outputs/attention] [--order uniform]

It takes a minute or two on a CPU. By default the model is the one that `make pretrain` leaves; any saved any-order
model works. The text should be the held-out part of the model's training text, so give the same arguments as to
`examples/pretrain.py` (`--train_file`, `--block_size`, ...).

The output folder then holds two pictures, `attention_mass.png` and `hidden_rows.png`, and the numbers of each beside it
as JSON.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoTokenizer, HfArgumentParser, PreTrainedConfig, PreTrainedTokenizerBase

from modeling_aoarm import model_class_for
from modeling_aoarm.analysis import (
    AttentionMass,
    HiddenRowLosses,
    attention_mass,
    hidden_row_losses,
    plot_attention_mass,
    plot_hidden_rows,
)
from modeling_aoarm.cli import find_device
from modeling_aoarm.data.masked_diffusion import collator_class_for
from modeling_aoarm.data.text import TextArguments, tokenize_and_chunk


@dataclass
class AnalysisArguments(TextArguments):
    """The model and the text."""

    model: str = field(default="outputs/pretrain", metadata={"help": "Folder of a saved model and its tokenizer."})
    output_dir: str = field(default="outputs/attention", metadata={"help": "Folder of pictures and numbers."})
    block_size: int = field(
        default=64, metadata={"help": "Tokens of a row of text, without BOS; shorter rows are left out."}
    )
    examples: int = field(default=128, metadata={"help": "Rows of text, spread over the held-out part."})
    batch_size: int = field(default=32, metadata={"help": "Rows of text per forward pass."})
    order: str | None = field(
        default=None, metadata={"help": "Orders, as for pretraining. Default: uniform; left_to_right for causal."}
    )
    counts: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16], metadata={"help": "Numbers of hidden rows."})
    near: int = field(default=4, metadata={"help": "Rows that count as near, and as recent, in the heads' scores."})
    own_row: bool = field(
        default=False, metadata={"help": "Whether a row may be hidden from itself, as the most recent one."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of orders and of random hidden rows."})
    device: str | None = field(default=None, metadata={"help": "cpu, cuda, ... Default: cuda if there is one."})


def held_out_batches(
    args: AnalysisArguments, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig
) -> list[dict[str, torch.Tensor]]:
    """Makes batches of held-out rows of text of one length, in the chosen orders."""
    blocks = tokenize_and_chunk(args.load()["validation"], tokenizer, args.block_size)
    whole = [row for row in blocks if len(row["input_ids"]) == args.block_size]
    if not whole:
        raise ValueError(f"--block_size must leave whole rows of the held-out text, got {args.block_size}.")
    rows = whole[:: max(1, len(whole) // args.examples)][: args.examples]
    order = args.order or ("left_to_right" if config.attention_variant == "causal" else "uniform")
    collator = collator_class_for(config)(tokenizer, order=order, seed=args.seed)
    return [collator(rows[start : start + args.batch_size]) for start in range(0, len(rows), args.batch_size)]


def print_summary(mass: AttentionMass, losses: HiddenRowLosses) -> None:
    console = Console(width=None if sys.stdout.isatty() else 120)
    if mass.nearest:
        table = Table("stream", title=f"Heads: near the target (1) or recent (-1), the {mass.near} rows of each")
        for name in ("score", "spread over heads", "lowest head", "highest head"):
            table.add_column(name, justify="right")
        for stream in mass.streams:
            found = mass.specialisation(stream)
            heads = found.heads[~found.heads.isnan()]
            ends = (f"{heads.min():+.3f}", f"{heads.max():+.3f}") if len(heads) else ("-", "-")
            table.add_row(stream, f"{found.score:+.3f}", f"{found.spread:.3f}", *ends)
        console.print(table)
    table = Table(
        "edges cut in", "rows hidden", title=f"Excess loss over {losses.nll:.4f} nats per token (standard error)"
    )
    for choice in losses.choices:
        table.add_column(choice, justify="right")
    for stream in losses.streams:
        found = [losses.excess(stream, choice) for choice in losses.choices]
        for number, count in enumerate(losses.counts):
            cells = (f"{each.mean[number]:+.4f} ({each.standard_error[number]:.4f})" for each in found)
            table.add_row(stream, str(count), *cells)
        table.add_section()
    console.print(table)
    if losses.dissociation is not None:
        table = Table("stream", title="Nearest hidden minus most recent hidden, nats per token (standard error)")
        rows = {stream: losses.contrast(stream) for stream in ("prediction", "content")}
        for count in losses.counts:
            table.add_column(f"m = {count}", justify="right")
        for name, each in (rows | {"difference": losses.dissociation}).items():
            table.add_row(name, *(f"{m:+.4f} ({e:.4f})" for m, e in zip(each.mean, each.standard_error, strict=True)))
        console.print(table)


def main(argv: list[str]) -> None:
    [args] = HfArgumentParser(AnalysisArguments).parse_args_into_dataclasses(argv)
    if not (Path(args.model) / "config.json").is_file():
        sys.exit(f"--model must be the folder of a saved model, got {args.model}. `make pretrain` makes one.")
    for name in ("examples", "batch_size", "block_size"):
        if getattr(args, name) < 1:
            sys.exit(f"--{name} must be at least 1, got {getattr(args, name)}.")
    config = AutoConfig.from_pretrained(args.model)
    model = model_class_for(config).from_pretrained(args.model).to(find_device(args.device))
    batches = held_out_batches(args, AutoTokenizer.from_pretrained(args.model), config)

    mass = attention_mass(model, batches, near=args.near, own_row=args.own_row)
    losses = hidden_row_losses(model, batches, args.counts, own_row=args.own_row, seed=args.seed)
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    plot_attention_mass(mass, folder / "attention_mass.png")
    plot_hidden_rows(losses, folder / "hidden_rows.png")
    print_summary(mass, losses)
    print(f"attention_mass and hidden_rows (.png and .json) are in {folder}.")


if __name__ == "__main__":
    main(sys.argv[1:])
