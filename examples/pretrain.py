# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""
Pretrain an any-order autoregressive language model from scratch.

Each sentence gets its own random order of its tokens. The model predicts each token from the tokens that came before it
in that order, and is told where the next token goes. The loss is the mean negative log-likelihood per token.
`--model_config configuration/bidirectional` is masked diffusion: the end of the order is masked, and the loss estimates
the same quantity.

With the defaults (a character-level two-stream model on the reference text that ships with CPython, no download):

    accelerate launch examples/pretrain.py

Two processes on one machine without a GPU (`--multi_gpu` starts them; `--cpu` would run one):

    accelerate launch --multi_gpu --num_processes 2 examples/pretrain.py --use_cpu true --per_device_train_batch_size 16

A recipe, with a flag that overrides it, and your own text:

    accelerate launch examples/pretrain.py configuration/recipes/pretrain_small.yaml --train_file text.jsonl.xz

Text that is too much to tokenise beforehand, as a stream (a file or a dataset of the Hub):

    accelerate launch examples/pretrain.py --dataset_name me/corpus --streaming true --tokenizer bpe --max_steps 100000

Continue a stopped run with the same arguments:

    accelerate launch examples/pretrain.py --resume_from_checkpoint true

It continues from the last complete checkpoint with the losses of an uninterrupted run. If killed after the last step, a
resumed run only evaluates and saves.

The output folder gets the model with its tokenizer and model card, `loss_curve.png` and `loss_curve.json`,
`results.json` (held-out bits per character over several orders and left to right, and the unigram entropy), and the
last checkpoints.
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
from transformers import (
    AutoConfig,
    AutoTokenizer,
    HfArgumentParser,
    PreTrainedTokenizerBase,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.modelcard import extract_hyperparameters_from_trainer
from transformers.trainer import TRAINER_STATE_NAME

from modeling_aoarm import AOARMConfig, DataCollatorWithOrders, OrderCurriculum, infill, model_class_for
from modeling_aoarm.cli import load_config
from modeling_aoarm.data.masked_diffusion import WEIGHTINGS, collator_class_for
from modeling_aoarm.data.text import (
    StreamingTextArguments,
    count_characters,
    sample_texts,
    tokenize_and_chunk,
    unigram_bits,
)
from modeling_aoarm.data.tokenizers import byte_tokenizer, character_tokenizer, train_bpe_tokenizer
from modeling_aoarm.infilling_aoarm import write_blanks
from modeling_aoarm.io import versions, write_json
from modeling_aoarm.model_card import CardArguments
from modeling_aoarm.plots import save_loss_curve
from modeling_aoarm.training import AnyOrderTrainer, EMACallback
from modeling_aoarm.training.callbacks import EMA_FILE
from modeling_aoarm.training.checkpoints import discard_checkpoints, starting_checkpoint


logger = logging.getLogger(__name__)

REPOSITORY = Path(__file__).resolve().parents[1]
TRAINING_DEFAULTS = {
    "output_dir": "outputs/pretrain",
    "max_steps": 2500,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 64,
    "learning_rate": 2e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 200,
    "weight_decay": 0.1,
    "adam_beta2": 0.95,
    "logging_steps": 20,
    "eval_strategy": "steps",
    "eval_steps": 500,
    "save_steps": 1000,
    "save_total_limit": 2,
    # Two processes would fill up a smaller last batch, one process would not.
    "dataloader_drop_last": True,
}


@dataclass
class ModelArguments:
    """The model to build."""

    model_config: str | None = field(
        default=None,
        metadata={"help": "Folder, JSON file or Hub name. Default: configuration/two_stream."},
    )
    config_overrides: str | None = field(
        default=None,
        metadata={"help": "Fields of the configuration to change, as 'hidden_size=256,num_hidden_layers=8'."},
    )
    attn_implementation: str | None = field(default=None, metadata={"help": "eager, sdpa, flex_attention, ..."})


@dataclass
class DataArguments(StreamingTextArguments):
    """Text, tokenizer and orders."""

    tokenizer: str = field(
        default="character",
        metadata={
            "help": "character, byte, bpe, or a folder or Hub name for AutoTokenizer. character and bpe come from the "
            "training text, with --streaming from its first 10 million characters."
        },
    )
    bpe_vocab_size: int = field(default=1024, metadata={"help": "Vocabulary size for --tokenizer bpe."})
    block_size: int = field(default=64, metadata={"help": "Most tokens of a row, without BOS."})
    join_with: str | None = field(
        default=None,
        metadata={"help": "Put this string between texts and cut rows across them. Default: rows end with their text."},
    )
    num_proc: int | None = field(default=None, metadata={"help": "Processes that tokenise, without --streaming."})
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
            "Default: left_to_right without --order; none with --order and for the bidirectional variant."
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
class RunArguments:
    """Training options that `TrainingArguments` lacks, and how the model is measured."""

    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Write into a folder that is not empty; its checkpoints are deleted."}
    )
    ema_decay: float | None = field(
        default=None, metadata={"help": "Also keep averaged weights with this decay; they are evaluated and saved."}
    )
    fused_loss: bool = field(
        default=False,
        metadata={"help": "Compute the training loss without logits: less memory for large vocabularies."},
    )
    cpu_threads: int | None = field(
        default=None,
        metadata={"help": "Torch threads of a process without a GPU. Default: the cores divided by the processes."},
    )
    eval_draws: int = field(default=1, metadata={"help": "Orders per held-out row in evaluations during training."})
    final_eval_draws: int = field(default=8, metadata={"help": "Orders per held-out row in the final evaluation."})
    eval_order_seed: int = field(default=0, metadata={"help": "Seed of the orders of evaluations."})
    sample_rows: int = field(default=4, metadata={"help": "Held-out rows in which blanks are filled at the end."})


def parse_arguments(argv: list[str]) -> tuple:
    """Reads flags. A first argument that ends in .yaml, .yml or .json is a recipe that the flags after it override."""
    parser = HfArgumentParser((ModelArguments, DataArguments, RunArguments, TrainingArguments, CardArguments))
    parser.set_defaults(**TRAINING_DEFAULTS)
    if argv and argv[0].endswith((".yaml", ".yml", ".json")):
        # YAML reads JSON as well.
        recipe = yaml.safe_load(Path(argv[0]).read_text(encoding="utf-8")) or {}
        if unknown := sorted(set(recipe) - set(vars(parser.parse_args([])))):
            raise ValueError(f"recipe {argv[0]} must name flags of this script, got {', '.join(unknown)}.")
        # As strings, so that every value is read like a flag's.
        parser.set_defaults(**{name: value if value is None else str(value) for name, value in recipe.items()})
        argv = argv[1:]
    model_args, data_args, run_args, args, card_args = parser.parse_args_into_dataclasses(argv)
    args.include_num_input_tokens_seen = "non_padding"
    return model_args, data_args, run_args, args, card_args


def build_tokenizer(data_args: DataArguments, texts: list[str]) -> PreTrainedTokenizerBase:
    """Builds or loads the tokenizer of `--tokenizer`, with a padding token, and a mask token to write canvases with."""
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


def build_config(model_args: ModelArguments, tokenizer: PreTrainedTokenizerBase, rows: int) -> AOARMConfig:
    """Builds the model's configuration, with the tokenizer's vocabulary and special tokens."""
    name = model_args.model_config or str(REPOSITORY / "configuration" / "two_stream")
    fields = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad", "mask")}
    config = load_config(name, model_args.config_overrides, vocab_size=len(tokenizer), **fields)
    if rows > config.max_position_embeddings:
        raise ValueError(
            f"--block_size and BOS need {rows} positions, got max_position_embeddings={config.max_position_embeddings}."
        )
    return config


def build_collator(
    data_args: DataArguments, tokenizer: PreTrainedTokenizerBase, config: AOARMConfig
) -> DataCollatorWithOrders:
    """Builds the variant's collator with the training orders."""
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
        # Learning any order from scratch is faster if neighbours are known first.
        start, end = start or "left_to_right", "uniform"
    order = end if start in (None, "none") else OrderCurriculum(start, end, until=data_args.anneal_until)
    return collator_class_for(config)(tokenizer, order=order, seed=data_args.order_seed, **options)


def count_token(rows: Dataset, token_id: int | None) -> int:
    """Counts a token in rows; 0 for `None`."""
    batches = rows.with_format("arrow").iter(1000) if token_id is not None else ()
    return sum(pc.sum(pc.equal(pc.list_flatten(batch["input_ids"]), token_id)).as_py() or 0 for batch in batches)


def fill_blanks(output_dir: str, dataset: Dataset, count: int) -> list[dict[str, str]]:
    """Loads the saved model and fills two blanks in each of `count` rows, greedily in a random order."""
    model = model_class_for(AutoConfig.from_pretrained(output_dir)).from_pretrained(output_dir)
    tokenizer = AutoTokenizer.from_pretrained(output_dir)
    # The longest of 1,000 rows, spread over the text.
    rows = dataset[:: math.ceil(len(dataset) / 1000)]["input_ids"]
    rows = [ids for ids in rows if len(ids) == max(map(len, rows))]
    rows = rows[:: max(1, len(rows) // count)][:count]
    canvases = []
    for ids in rows:
        length = max(1, len(ids) // 10)
        first, second = 2 * len(ids) // 5, 4 * len(ids) // 5
        pieces = (ids[:first], ids[first + length : second], ids[second + length :])
        canvases.append(write_blanks([tokenizer.decode(piece) for piece in pieces], [f"<blank:{length}>"] * 2))
    filled = infill(model, tokenizer, canvases, decoding_order="random")
    originals = [tokenizer.decode(ids) for ids in rows]
    return [
        {"canvas": canvas, "filled": text, "original": original}
        for canvas, text, original in zip(canvases, filled, originals, strict=True)
    ]


def print_summary(results: dict) -> None:
    for name in ("any_order", "left_to_right"):
        if row := results.get(name):
            error = row["bits_per_character_standard_error"]
            over = f", standard error {error:.4f} over {row['draws']} orders" if error is not None else ""
            print(f"held out, {name.replace('_', ' ')}: {row['bits_per_character']:.4f} bits per character{over}")
    print(f"unigram entropy of the text: {results['unigram']['unigram_entropy_all']:.4f} bits per character")
    for sample in results["samples"]:
        print(f"\ncanvas:   {sample['canvas']}\nfilled:   {sample['filled']}\noriginal: {sample['original']}")


def main(argv: list[str]) -> None:
    started = time.time()
    model_args, data_args, run_args, args, card_args = parse_arguments(argv)
    logging.basicConfig()
    logger.setLevel(logging.INFO if args.process_index == 0 else logging.WARNING)
    if data_args.streaming and args.max_steps <= 0:
        raise ValueError(
            f"--max_steps must be the number of steps with --streaming, got {args.max_steps}: a stream has no length."
        )
    required = [EMA_FILE] if run_args.ema_decay is not None else []
    checkpoint = starting_checkpoint(args, run_args.overwrite_output_dir, required)
    if args.device.type == "cpu":
        # `accelerate launch` allows one thread.
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(run_args.cpu_threads or max(1, cores // args.world_size))
    set_seed(args.seed)

    # The main process goes first, and the others find its work in the cache of `datasets`.
    with args.main_process_first(desc="loading text"):
        texts = data_args.load()
    tokenizer = None
    if args.process_index == 0:
        sample = sample_texts(texts["train"]) if data_args.streaming else texts["train"]["text"]
        tokenizer = build_tokenizer(data_args, sample)
    [tokenizer] = broadcast_object_list([tokenizer])
    config = build_config(model_args, tokenizer, data_args.block_size + (tokenizer.bos_token_id is not None))
    collator = build_collator(data_args, tokenizer, config)
    with args.main_process_first(desc="tokenising"):
        blocks = {
            name: tokenize_and_chunk(split, tokenizer, data_args.block_size, data_args.join_with, data_args.num_proc)
            for name, split in texts.items()
        }
    if data_args.streaming:
        seed = args.seed if args.data_seed is None else args.data_seed
        blocks["train"] = blocks["train"].shuffle(seed=seed, buffer_size=data_args.shuffle_buffer_size)
    kwargs = {"attn_implementation": model_args.attn_implementation} if model_args.attn_implementation else {}
    model = model_class_for(config)._from_config(config, **kwargs)
    # Under ZeRO-3 a process holds no weights but knows their sizes.
    parameters = sum(getattr(weight, "ds_numel", weight.numel()) for weight in model.parameters())
    logger.info("%s: %s parameters", config.attention_variant, f"{parameters:,}")
    trainer = AnyOrderTrainer(
        model=model,
        args=args,
        data_collator=collator,
        train_dataset=blocks["train"],
        eval_dataset=blocks["validation"],
        processing_class=tokenizer,
        eval_draws=run_args.eval_draws,
        eval_order_seed=run_args.eval_order_seed,
        fused_loss=run_args.fused_loss,
        callbacks=[EMACallback(run_args.ema_decay)] if run_args.ema_decay is not None else None,
    )
    # Nothing is deleted or written before all arguments have been checked.
    first_step = 0
    if checkpoint is None:
        discard_checkpoints(args)
    else:
        first_step = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME)).global_step
    training_started = time.time()
    trainer.train(resume_from_checkpoint=checkpoint)
    training_seconds = time.time() - training_started
    # Trainer switched the cache off for the training.
    model.config.use_cache = True
    trainer.save_model()
    trainer.save_state()

    measured = trainer.evaluate_orders(blocks["validation"], run_args.final_eval_draws)
    if args.process_index > 0:
        if args.push_to_hub:
            # All processes save together.
            trainer.push_to_hub()
        return
    # This process loads the saved model alone. ZeRO-3 would distribute it over all processes.
    unset_hf_deepspeed_config()
    samples = []
    if run_args.sample_rows > 0 and config.attention_variant != "causal":
        samples = fill_blanks(args.output_dir, blocks["validation"], run_args.sample_rows)
    results = {
        **{name: result.to_dict() for name, result in measured.items()},
        "unigram": unigram_bits(sample_texts(texts["train"]), sample_texts(texts["validation"])),
        "parameters": parameters,
        "config": config.to_diff_dict(),
        "data": {
            "source": data_args.text_source,
            "tokenizer": data_args.tokenizer,
            "streaming": data_args.streaming,
            "train_characters": None if data_args.streaming else count_characters(texts["train"]),
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
            "ema_decay": run_args.ema_decay,
            "first_step": first_step,
            "hyperparameters": extract_hyperparameters_from_trainer(trainer),
            "training_seconds": round(training_seconds, 1),
            "total_seconds": round(time.time() - started, 1),
        },
        "command": shlex.join(["examples/pretrain.py", *argv]),
        "versions": versions(),
        "samples": samples,
    }
    by_character = data_args.tokenizer == "character"
    save_loss_curve(
        args.output_dir,
        trainer.state.log_history,
        title=f"{config.attention_variant}, {parameters:,} parameters, {data_args.text_source}",
        unit="bits per character" if by_character else "bits per token",
        reference=("unigram entropy", results["unigram"]["unigram_entropy_all"]) if by_character else None,
    )
    about = {"license": card_args.license, "language": card_args.language, "curve": "loss_curve.png"}
    trainer.create_model_card(report=results, **about)
    write_json(Path(args.output_dir) / "results.json", results)
    if args.push_to_hub:
        trainer.push_to_hub(report=results, **about)
    print_summary(results)
    print(f"\nModel, loss_curve.png and results.json are in {args.output_dir}.")


if __name__ == "__main__":
    main(sys.argv[1:])
