# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""
Pretrain an any-order autoregressive language model from scratch.

Objective: every sentence gets its own random order of its tokens; the model predicts each token from those that came
before it in that order, and is told where the next token goes. The loss is the mean negative log-likelihood per token.
With `--model_config configuration/bidirectional` it is masked diffusion: the end of the order is masked, and the loss
an estimate of the same quantity.

With the defaults (a character-level two-stream model on the reference text that ships inside CPython, no download):

    accelerate launch examples/pretrain.py

Two processes on one machine without a GPU (`--multi_gpu` is what starts them; `--cpu` would run one):

    accelerate launch --multi_gpu --num_processes 2 examples/pretrain.py --use_cpu true --per_device_train_batch_size 16

A recipe, with a flag that overrides it, and an own text:

    accelerate launch examples/pretrain.py configuration/recipes/pretrain_small.yaml --train_file text.jsonl.xz

Continue a run that was stopped (same arguments as before):

    accelerate launch examples/pretrain.py --resume_from_checkpoint true

It goes on from the last complete checkpoint, whenever it was killed, and has the losses of a run that was not. Killed
after the training, it only evaluates and saves.

The output folder then holds the model and its tokenizer, `loss_curve.png` and `loss_curve.json`, `results.json`
(held-out bits per character over several orders and left to right, and how they were got; the unigram entropy, of some
10 million characters of each part where the text is longer), a model card (`README.md`) and the last checkpoints.
"""

import logging
import math
import os
import shlex
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.compute as pc
import torch
import yaml
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import (
    AutoConfig,
    AutoTokenizer,
    HfArgumentParser,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.modelcard import extract_hyperparameters_from_trainer
from transformers.trainer import TRAINER_STATE_NAME

from modeling_aoarm import infill, model_class_for
from modeling_aoarm.data.collators import DataCollatorWithOrders
from modeling_aoarm.data.masked_diffusion import WEIGHTINGS, collator_class_for
from modeling_aoarm.data.orders import OrderCurriculum
from modeling_aoarm.data.text import TextArguments, count_characters, sample_texts, tokenize_and_chunk, unigram_bits
from modeling_aoarm.data.tokenizers import byte_tokenizer, character_tokenizer, train_bpe_tokenizer
from modeling_aoarm.infilling_aoarm import write_blanks
from modeling_aoarm.io import loss_curve, plot_loss_curve, versions, write_json
from modeling_aoarm.model_card import CardArguments
from modeling_aoarm.training.checkpoints import discard_checkpoints, starting_checkpoint
from modeling_aoarm.training.trainer import EMA_FILE, AnyOrderTrainer, EMACallback


logger = logging.getLogger(__name__)

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass
class ModelArguments:
    """Which model is built."""

    model_config: str | None = field(
        default=None,
        metadata={"help": "Folder, JSON file or Hub name for AutoConfig. Default: configuration/two_stream."},
    )
    config_overrides: str | None = field(
        default=None,
        metadata={"help": "Fields of the configuration to change, as 'hidden_size=256,num_hidden_layers=8'."},
    )
    attn_implementation: str | None = field(default=None, metadata={"help": "eager, sdpa, flex_attention, ..."})


@dataclass
class DataArguments(TextArguments):
    """Which text, tokenizer and orders."""

    tokenizer: str = field(
        default="character",
        metadata={"help": "character, byte, bpe (trained on the data), or a folder or Hub name for AutoTokenizer."},
    )
    bpe_vocab_size: int = field(default=1024, metadata={"help": "Vocabulary size for --tokenizer bpe."})
    block_size: int = field(default=64, metadata={"help": "Most tokens of a row, without BOS."})
    join_with: str | None = field(
        default=None,
        metadata={"help": "Put this string between texts and cut rows across them. Default: rows end with their text."},
    )
    num_proc: int | None = field(default=None, metadata={"help": "Processes that tokenise."})
    order: str | None = field(
        default=None,
        metadata={
            "help": "Training orders, such as 'uniform' or '0.9*uniform+0.1*left_to_right'. "
            "Default: uniform; left_to_right for the causal variant."
        },
    )
    start_order: str | None = field(
        default=None,
        metadata={
            "help": "Curriculum: begin with these orders and move to --order. 'none' for --order all the time. "
            "Default: left_to_right where --order is not given; none where it is, and for the bidirectional variant."
        },
    )
    anneal_until: float = field(
        default=0.4, metadata={"help": "Share of the training after which a curriculum has arrived at --order."}
    )
    order_seed: int = field(default=0, metadata={"help": "Seed of the training orders."})
    weighting: str = field(
        default="elbo",
        metadata={"help": "Weights of masked tokens, for the bidirectional variant.", "choices": WEIGHTINGS},
    )


@dataclass
class EvaluationArguments:
    """How the model is measured."""

    eval_draws: int = field(default=1, metadata={"help": "Orders per held-out row in evaluations during training."})
    final_eval_draws: int = field(default=8, metadata={"help": "Orders per held-out row in the final evaluation."})
    eval_order_seed: int = field(default=0, metadata={"help": "Seed of the orders of evaluations."})
    sample_rows: int = field(default=4, metadata={"help": "Held-out rows in which blanks are filled at the end."})


@dataclass
class PretrainingArguments(TrainingArguments):
    """`TrainingArguments` with defaults for the default run, and three more flags."""

    output_dir: str | None = field(default="outputs/pretrain", metadata={"help": "Where everything is written."})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Write into a folder that is not empty; its checkpoints are deleted."}
    )
    ema_decay: float | None = field(
        default=None, metadata={"help": "Also keep averaged weights with this decay; they are evaluated and saved."}
    )
    fused_loss: bool = field(
        default=False,
        metadata={"help": "Compute the training loss without logits: less memory where the vocabulary is large."},
    )
    cpu_threads: int | None = field(
        default=None,
        metadata={
            "help": "Torch threads of a process without a GPU. Default: the cores shared out among the processes "
            "(accelerate launch would allow one thread)."
        },
    )
    max_steps: int = field(default=2500, metadata={"help": "Optimiser steps."})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Rows per process and step."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Rows per process and forward pass."})
    learning_rate: float = field(default=2e-3, metadata={"help": "Highest learning rate."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning rate schedule."})
    warmup_steps: float = field(default=200, metadata={"help": "Steps (or, below 1, share) of rising learning rate."})
    weight_decay: float = field(default=0.1, metadata={"help": "Weight decay of AdamW."})
    adam_beta2: float = field(default=0.95, metadata={"help": "Second-moment decay of AdamW."})
    logging_steps: float = field(default=20, metadata={"help": "Steps between logged losses."})
    eval_strategy: str = field(default="steps", metadata={"help": "When to evaluate: no, steps or epoch."})
    eval_steps: float | None = field(default=500, metadata={"help": "Steps between evaluations."})
    save_steps: float = field(default=1000, metadata={"help": "Steps between checkpoints."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep."})
    # A last batch that is smaller would be filled up in two processes but not in one.
    dataloader_drop_last: bool = field(default=True, metadata={"help": "Leave out an epoch's last, smaller batch."})
    include_num_input_tokens_seen: str = field(default="non_padding", metadata={"help": "no, all or non_padding."})


def parse_arguments(
    argv: list[str],
) -> tuple[ModelArguments, DataArguments, EvaluationArguments, PretrainingArguments, CardArguments]:
    """Reads flags; a first argument that ends in .yaml, .yml or .json is a recipe that the flags after it override."""
    parser = HfArgumentParser((ModelArguments, DataArguments, EvaluationArguments, PretrainingArguments, CardArguments))
    if argv and argv[0].endswith((".yaml", ".yml", ".json")):
        # YAML reads JSON as well.
        recipe = yaml.safe_load(Path(argv[0]).read_text(encoding="utf-8")) or {}
        known = {action.dest for action in parser._actions}
        if unknown := sorted(set(recipe) - known):
            raise ValueError(f"recipe {argv[0]} must name flags of this script, got {', '.join(unknown)}.")
        # As strings, so that every value is read like a flag's.
        parser.set_defaults(**{name: value if value is None else str(value) for name, value in recipe.items()})
        argv = argv[1:]
    return parser.parse_args_into_dataclasses(argv)


def build_tokenizer(data_args: DataArguments, texts) -> PreTrainedTokenizerBase:
    """The tokenizer that `--tokenizer` names, with a padding token (and a mask token to write canvases with)."""
    if data_args.tokenizer == "character":
        return character_tokenizer(texts)
    if data_args.tokenizer == "byte":
        return byte_tokenizer()
    if data_args.tokenizer == "bpe":
        return train_bpe_tokenizer(texts, data_args.bpe_vocab_size)
    tokenizer = AutoTokenizer.from_pretrained(data_args.tokenizer)
    missing = {"pad_token": "<pad>", "mask_token": "<mask>"}
    tokenizer.add_special_tokens({name: text for name, text in missing.items() if getattr(tokenizer, name) is None})
    return tokenizer


def build_config(model_args: ModelArguments, tokenizer: PreTrainedTokenizerBase, rows: int):
    """The model's configuration, with the tokenizer's vocabulary and special tokens."""
    overrides = {}
    for item in filter(None, (model_args.config_overrides or "").split(",")):
        name, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"--config_overrides must be a list of name=value, got {item!r} in it.")
        overrides[name.strip()] = yaml.safe_load(value)
    fields, _ = PreTrainedConfig.get_config_dict(model_args.model_config or REPOSITORY / "configuration" / "two_stream")
    fields |= {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad", "mask")}
    fields["vocab_size"] = len(tokenizer)
    model_type = fields.pop("model_type")
    known = AutoConfig.for_model(model_type)
    if unknown := [name for name in overrides if not hasattr(known, name)]:
        raise ValueError(f"--config_overrides must name fields of {type(known).__name__}, got {', '.join(unknown)}.")
    # From the fields, not onto a finished configuration, so that derived fields (head_dim) follow.
    config = AutoConfig.for_model(model_type, **{**fields, **overrides})
    if rows > config.max_position_embeddings:
        raise ValueError(
            f"--block_size and BOS need {rows} positions, got max_position_embeddings={config.max_position_embeddings}."
        )
    return config


def build_collator(data_args: DataArguments, tokenizer: PreTrainedTokenizerBase, config) -> DataCollatorWithOrders:
    """The variant's collator with the training orders."""
    start, end = data_args.start_order, data_args.order
    options = {}
    if config.attention_variant == "causal":
        if end not in (None, "left_to_right") or start not in (None, "none", "left_to_right"):
            raise ValueError(f"--order must be left_to_right for the causal variant, got {end} (from {start}).")
        start, end = None, "left_to_right"
    elif config.attention_variant == "bidirectional":
        # In other orders only one token of a row is learned.
        end, options = end or "uniform", {"weighting": data_args.weighting}
    elif end is None:
        # Any order is hard to learn from nothing: left to right first, where neighbours are known, is faster.
        start, end = start or "left_to_right", "uniform"
    order = end if start in (None, "none") else OrderCurriculum(start, end, until=data_args.anneal_until)
    return collator_class_for(config)(tokenizer, order=order, seed=data_args.order_seed, **options)


def count_token(rows: Dataset, token_id: int | None) -> int:
    """How often a token comes in rows; 0 for a token that does not exist."""
    if token_id is None:
        return 0
    batches = rows.with_format("arrow").iter(1000)
    return sum(pc.sum(pc.equal(pc.list_flatten(batch["input_ids"]), token_id)).as_py() or 0 for batch in batches)


def rows_of_prose(rows: Dataset, tokenizer: PreTrainedTokenizerBase, count: int) -> list[list[int]]:
    """Up to `count` of the longest of 1,000 rows, spread over the text; no tables or code where there is prose."""
    sample = rows[:: math.ceil(len(rows) / 1000)]["input_ids"]
    longest = max(map(len, sample))
    sample = [ids for ids in sample if len(ids) == longest]

    def letters(ids: list[int]) -> float:
        text = tokenizer.decode(ids)
        return sum(character.isalpha() or character == " " for character in text) / max(1, len(text))

    prose = [ids for ids in sample if letters(ids) > 0.9] or sample
    return prose[:: max(1, len(prose) // count)][:count]


def fill_blanks(output_dir: str, rows: list[list[int]]) -> list[dict[str, str]]:
    """Loads the saved model and fills two blanks in each row, greedily in a random order."""
    model = model_class_for(AutoConfig.from_pretrained(output_dir)).from_pretrained(output_dir)
    tokenizer = AutoTokenizer.from_pretrained(output_dir)
    canvases = []
    for ids in rows:
        length = max(1, len(ids) // 10)
        first, second = 2 * len(ids) // 5, 4 * len(ids) // 5
        pieces = (ids[:first], ids[first + length : second], ids[second + length :])
        canvases.append(write_blanks([tokenizer.decode(piece) for piece in pieces], [f"<blank:{length}>"] * 2))
    filled = infill(model, tokenizer, canvases, decoding_order="random")
    return [
        {"canvas": canvas, "filled": text, "original": tokenizer.decode(ids)}
        for canvas, text, ids in zip(canvases, filled, rows, strict=True)
    ]


def print_summary(results: dict, samples: list[dict[str, str]]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 120)
    figures = Table("held-out text", "bits per character", "standard error over orders", "nats per token")
    for name in ("any_order", "left_to_right"):
        if name in results:
            row = results[name]
            error = row["bits_per_character_standard_error"]
            figures.add_row(
                name.replace("_", " "),
                f"{row['bits_per_character']:.4f}",
                f"{error:.4f} ({row['draws']} orders)" if error is not None else "-",
                f"{row['nll']:.4f}",
            )
    figures.add_row("unigram entropy of the text", f"{results['unigram']['unigram_entropy_all']:.4f}", "-", "-")
    console.print(figures)
    if samples:
        blanks = Table("canvas", "filled", "original", title="Blanks filled by the saved model", show_lines=True)
        for sample in samples:
            blanks.add_row(*(Text(sample[name].replace("\n", "⏎")) for name in ("canvas", "filled", "original")))
        console.print(blanks)


def main(argv: list[str]) -> None:
    started = time.time()
    model_args, data_args, eval_args, args, card_args = parse_arguments(argv)
    logging.basicConfig()
    logger.setLevel(logging.INFO if args.process_index == 0 else logging.WARNING)
    required = [EMA_FILE] if args.ema_decay is not None else []
    checkpoint = starting_checkpoint(args, args.overwrite_output_dir, required)
    first_step = 0
    if checkpoint is not None:
        first_step = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME)).global_step
    if args.device.type == "cpu":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(args.cpu_threads or max(1, cores // args.world_size))
    set_seed(args.seed)

    # The main process goes first, the others find its work in the cache of `datasets`.
    with args.main_process_first(desc="loading text"):
        texts = data_args.load()
    tokenizer = build_tokenizer(data_args, texts["train"]["text"]) if args.process_index == 0 else None
    [tokenizer] = broadcast_object_list([tokenizer])
    config = build_config(model_args, tokenizer, data_args.block_size + (tokenizer.bos_token_id is not None))
    collator = build_collator(data_args, tokenizer, config)
    with args.main_process_first(desc="tokenising"):
        blocks = {
            name: tokenize_and_chunk(split, tokenizer, data_args.block_size, data_args.join_with, data_args.num_proc)
            for name, split in texts.items()
        }
    kwargs = {"attn_implementation": model_args.attn_implementation} if model_args.attn_implementation else {}
    model = model_class_for(config)._from_config(config, **kwargs)
    # Under ZeRO-3 a process holds none, and knows their sizes.
    parameters = sum(getattr(weight, "ds_numel", weight.numel()) for weight in model.parameters())
    logger.info("%s: %s parameters", config.attention_variant, f"{parameters:,}")
    trainer = AnyOrderTrainer(
        model=model,
        args=args,
        data_collator=collator,
        train_dataset=blocks["train"],
        eval_dataset=blocks["validation"],
        processing_class=tokenizer,
        eval_draws=eval_args.eval_draws,
        eval_order_seed=eval_args.eval_order_seed,
        fused_loss=args.fused_loss,
        callbacks=[EMACallback(args.ema_decay)] if args.ema_decay is not None else None,
    )
    # Nothing is written before everything that was asked for has been checked.
    if checkpoint is None:
        discard_checkpoints(args)
    training_started = time.time()
    trainer.train(resume_from_checkpoint=checkpoint)
    training_seconds = time.time() - training_started
    # Trainer switched the cache off for training; the saved model should use it.
    model.config.use_cache = True
    trainer.save_model()
    trainer.save_state()

    measured = trainer.evaluate_orders(blocks["validation"], eval_args.final_eval_draws)
    if args.process_index > 0:
        if args.push_to_hub:
            # All processes save together.
            trainer.push_to_hub()
        return
    # The saved model is loaded in this process alone: ZeRO-3 would share it out among all.
    unset_hf_deepspeed_config()
    samples = []
    if eval_args.sample_rows > 0 and config.attention_variant != "causal":
        samples = fill_blanks(args.output_dir, rows_of_prose(blocks["validation"], tokenizer, eval_args.sample_rows))
    results = {
        **{name: result.to_dict() for name, result in measured.items()},
        "unigram": unigram_bits(sample_texts(texts["train"]), sample_texts(texts["validation"])),
        "parameters": parameters,
        "config": config.to_diff_dict(),
        "data": {
            "source": data_args.text_source,
            "tokenizer": data_args.tokenizer,
            "train_characters": count_characters(texts["train"]),
            "held_out_characters": count_characters(texts["validation"]),
            "held_out_unknown_tokens": count_token(blocks["validation"], tokenizer.unk_token_id),
            "block_size": data_args.block_size,
        },
        "training": {
            "orders": str(collator.order),
            "steps": trainer.state.global_step,
            "tokens_seen": trainer.state.num_input_tokens_seen,
            "batch_rows": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
            "processes": args.world_size,
            "threads": torch.get_num_threads(),
            "device": args.device.type,
            "seed": args.seed,
            "ema_decay": args.ema_decay,
            "first_step": first_step,
            "hyperparameters": extract_hyperparameters_from_trainer(trainer),
            "training_seconds": round(training_seconds, 1),
            "total_seconds": round(time.time() - started, 1),
        },
        "command": shlex.join(["examples/pretrain.py", *argv]),
        "versions": versions(),
        "samples": samples,
    }
    curve = loss_curve(trainer.state.log_history)
    write_json(Path(args.output_dir) / "loss_curve.json", curve)
    by_character = data_args.tokenizer == "character"
    plot_loss_curve(
        Path(args.output_dir) / "loss_curve.png",
        curve,
        title=f"{config.attention_variant}, {parameters:,} parameters, {results['data']['source']}",
        unit="bits per character" if by_character else "bits per token",
        reference=("unigram entropy", results["unigram"]["unigram_entropy_all"]) if by_character else None,
    )
    about = {"license": card_args.license, "language": card_args.language, "curve": "loss_curve.png"}
    trainer.create_model_card(report=results, **about)
    write_json(Path(args.output_dir) / "results.json", results)
    if args.push_to_hub:
        trainer.push_to_hub(report=results, **about)
    print_summary(results, samples)
    print(f"Model, loss_curve.png and results.json are in {args.output_dir}.")


if __name__ == "__main__":
    main(sys.argv[1:])
