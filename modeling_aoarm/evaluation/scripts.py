# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""What the evaluation scripts share: arguments that choose held-out rows of text, and tables."""

import sys
from dataclasses import dataclass

from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from transformers.hf_argparser import HfArg

from ..data.text import TextArguments, tokenize_and_chunk


@dataclass
class HeldOutRowsArguments(TextArguments):
    """The text, how held-out rows are cut from it, and how models read them."""

    block_size: int = HfArg(default=64, help="Most tokens of a row, without BOS.")
    join_with: str | None = HfArg(default=None, help="Join texts with this string. Default: rows end with their text.")
    max_examples: int = HfArg(default=128, help="Number of held-out rows, spread over the text.")
    batch_size: int = HfArg(default=32, help="Rows per call of the model.")
    seed: int = HfArg(default=0, help="Seed of all draws.")
    device: str | None = HfArg(default=None, help="cpu, cuda, ... Default: cuda if there is one.")
    trust_remote_code: bool = HfArg(default=False, help="Run the code that comes with the models.")

    def check_least(self, **least: int) -> None:
        """Raises a ValueError for the first of these arguments, or of `block_size` and the like, that is too small."""
        for name, smallest in {"block_size": 2, "max_examples": 1, "batch_size": 1, **least}.items():
            if getattr(self, name) < smallest:
                raise ValueError(f"--{name} must be at least {smallest}, got {getattr(self, name)}.")

    def select_rows(self, texts: Dataset, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> Dataset:
        """Selects at most `max_examples` rows of at least two tokens, spread evenly over the text.

        Args:
            texts: the held-out texts.
            tokenizer: the model's tokenizer.
            config: the model's config.

        Returns:
            Rows as of [`~modeling_aoarm.data.text.tokenize_and_chunk`].

        Raises:
            ValueError: there is no such row, or the longest one and a BOS do not fit the model.
        """
        rows = tokenize_and_chunk(texts, tokenizer, self.block_size, self.join_with)
        rows = rows.select([index for index, ids in enumerate(rows["input_ids"]) if len(ids) > 1])
        if len(rows) == 0:
            raise ValueError(
                f"the held-out text must have rows of at least two tokens, got none in {self.text_source}."
            )
        count = min(self.max_examples, len(rows))
        rows = rows.select([index * len(rows) // count for index in range(count)])
        longest = max(map(len, rows["input_ids"])) + (tokenizer.bos_token_id is not None)
        most = config.max_position_embeddings
        if longest > most:
            raise ValueError(f"--block_size and BOS need {longest} positions, got max_position_embeddings={most}.")
        return rows


def print_entries(title: str, entries: list[dict], *names: str) -> None:
    """Prints a table of these values of the entries."""
    table = Table(*(name.replace("_", " ") for name in names), title=title, title_justify="left")
    for entry in entries:
        values = [entry.get(name) for name in names]
        table.add_row(
            *(f"{each:.4f}" if isinstance(each, float) else str("-" if each is None else each) for each in values)
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)


__all__ = ["HeldOutRowsArguments", "print_entries"]
