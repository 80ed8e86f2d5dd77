# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The command `parameters`: how many parameters the variants have, and where."""

import argparse

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from ..modeling_aoarm import model_class_for
from .common import add_command, check_is_there


DESCRIPTION = """\
Count the parameters of models from their configs, without making their weights.

The variants share one backbone. What they have besides: one vector (two_stream, unless query_stream_init="content"), a
table of positions (double_position), tables and the modulation of every layer (adaptive_norm, whose knobs are
target_embedding_size and intermediate_size).
"""

EXAMPLES = """\
examples:
  python -m modeling_aoarm parameters configuration/two_stream configuration/adaptive_norm
  python -m modeling_aoarm parameters configuration/causal --overrides hidden_size=256,num_hidden_layers=8

Exit status: 0, or 2 with one line on stderr.
"""

# Which part a parameter belongs to, by its name; the first that fits.
PARTS = {
    "vocabulary": ("embed_tokens", "lm_head"),
    "positions": ("position_embedding", "target_embedding"),
    "modulation": ("modulation",),
    "layers": ("layers.", "norm.", "query_embedding"),
}


def add_parameters_command(subparsers) -> None:
    """Declares `parameters` among argparse's `subparsers`."""
    summary = "count the parameters of models from their configs"
    parser = add_command(subparsers, "parameters", run_parameters, summary, DESCRIPTION, EXAMPLES)
    parser.add_argument("config", nargs="+", metavar="CONFIG", help="a folder with a config, or a name on the Hub")
    parser.add_argument("--overrides", help="fields to change in all of them, as hidden_size=256,num_hidden_layers=8")


def run_parameters(arguments: argparse.Namespace) -> None:
    """Runs the command.

    Raises:
        OSError: there is no such config.
        ValueError: for a config of another model type, and fields that do not exist or do not fit.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table("config", "attention_variant")
    for name in ("parameters", "to the first", *PARTS):
        table.add_column(name, justify="right")
    first = None
    for name in arguments.config:
        counts = count_parameters(load_config(name, arguments.overrides))
        total = sum(counts[part] for part in PARTS)
        first = first or total
        parts = (f"{counts[part]:,}" for part in PARTS)
        table.add_row(name, counts["attention_variant"], f"{total:,}", f"{total / first:.3f}", *parts)
    Console().print(table)


def load_config(name: str, overrides: str | None):
    """A config of this package, with fields changed."""
    check_is_there("CONFIG", name)
    config = AutoConfig.from_pretrained(name)
    if config.model_type != "aoarm":
        raise ValueError(f"CONFIG must be of model type 'aoarm', got {config.model_type!r} in {name}.")
    if overrides is None:
        return config
    config.update_from_string(overrides)
    changed = {each.partition("=")[0]: getattr(config, each.partition("=")[0]) for each in overrides.split(",")}
    # From what the file says: what it leaves open follows from the changed fields.
    values, _ = config.get_config_dict(name)
    try:
        return type(config)(**values | changed)
    except StrictDataclassError as error:
        raise ValueError(f"--overrides must fit the config {name}, got {overrides}: {error}") from error


def count_parameters(config) -> dict:
    """How many parameters each of `PARTS` has, and the `attention_variant`."""
    with torch.device("meta"):
        model = model_class_for(config)(config)
    counts = dict.fromkeys(PARTS, 0)
    for name, weight in model.named_parameters():
        counts[next(part for part, words in PARTS.items() if any(word in name for word in words))] += weight.numel()
    return counts | {"attention_variant": config.attention_variant}


__all__ = ["add_parameters_command"]
