# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""
Fine-tune an any-order model with LoRA, to fill in the middle of a text.

Each row of text is cut into a prefix, a middle and a suffix. Prefix and suffix are given. The model predicts the tokens
of the middle in an order that is drawn anew in each epoch, and only the middle is in the loss. The adapter changes all
linear layers, and `two_stream` trains its learned query vector as well.

With the defaults (the model of `make pretrain` and its text, in rows twice as long; 2 minutes on 2 CPU cores):

    python examples/finetune_peft.py

Another model, a folder or a Hub name (`--trust_remote_code true` runs the code that comes with it), and your own text:

    accelerate launch examples/finetune_peft.py --model_name_or_path outputs/qwen3-any-order --bf16 true \\
        --train_file articles.jsonl.xz --block_size 512 --longest_middle 64 --learning_rate 2e-4 --merge_and_save true

Continue a stopped run with the same arguments: `--resume_from_checkpoint true`.

The output folder gets the adapter with the tokenizer and a model card, `loss_curve.png` and `loss_curve.json`,
`results.json` (likelihood and exact fills of held-out middles, before and after), the last checkpoints, and with
`--merge_and_save true` the merged model in `merged`.
"""

import logging
import math
import shlex
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import peft
import torch
from accelerate import Accelerator
from datasets import Dataset
from peft import AutoPeftModelForCausalLM, get_peft_model
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    HfArgumentParser,
    PreTrainedTokenizerBase,
    TrainingArguments,
    set_seed,
)
from transformers.modelcard import extract_hyperparameters_from_trainer

from modeling_aoarm import DataCollatorForAnyOrderLM, lora_config, with_example_index
from modeling_aoarm.data.text import TextArguments, tokenize_and_chunk
from modeling_aoarm.evaluation.likelihood import evaluate_likelihood
from modeling_aoarm.io import replacing_folder, versions, write_json
from modeling_aoarm.model_card import CardArguments
from modeling_aoarm.plots import save_loss_curve
from modeling_aoarm.training import AnyOrderTrainer
from modeling_aoarm.training.checkpoints import discard_checkpoints, starting_checkpoint


logger = logging.getLogger(__name__)

# The output of `make pretrain`.
DEFAULT_MODEL = "outputs/pretrain"
ORDERS = {"any_order": "uniform", "left_to_right": "left_to_right"}
TRAINING_DEFAULTS = {
    "output_dir": "outputs/finetune_peft",
    "max_steps": 400,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 64,
    "learning_rate": 2e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05,
    "logging_steps": 20,
    "eval_strategy": "steps",
    "eval_steps": 100,
    "eval_on_start": True,
    "save_steps": 200,
    "save_total_limit": 1,
}


@dataclass
class AdapterArguments:
    """The model, the adapter and the output folder."""

    model_name_or_path: str = field(
        default=DEFAULT_MODEL,
        metadata={"help": "An any-order model: folder or Hub name."},
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the code that comes with the model."})
    lora_rank: int = field(default=16, metadata={"help": "Rank of the adapter's matrices."})
    lora_alpha: float = field(default=32, metadata={"help": "The adapter's output is scaled by alpha / rank."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout in front of the adapter."})
    target_modules: str | None = field(
        default=None,
        metadata={"help": "Modules to adapt, as 'q_proj,v_proj', or all-linear. Default: all linear layers."},
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Write into a folder that is not empty; its checkpoints are deleted."}
    )
    merge_and_save: bool = field(default=False, metadata={"help": "Also write the model with the adapter merged in."})

    def load(self):
        """Loads the base model and its tokenizer.

        Raises:
            ValueError: there is no such model, or it cannot fill a middle.
        """
        kwargs = {"trust_remote_code": self.trust_remote_code}
        try:
            if self.model_name_or_path == DEFAULT_MODEL and not Path(DEFAULT_MODEL).is_dir():
                # The Hub is not asked for it.
                raise FileNotFoundError(DEFAULT_MODEL)
            config = AutoConfig.from_pretrained(self.model_name_or_path, **kwargs)
        except OSError as error:
            raise ValueError(
                "--model_name_or_path must be a folder with a model or a name on the Hub, got "
                f"{self.model_name_or_path}. `make pretrain` makes {DEFAULT_MODEL}."
            ) from error
        variant = getattr(config, "attention_variant", None)
        if variant in (None, "causal"):
            raise ValueError(
                "--model_name_or_path must be an any-order model, which knows the suffix when it fills the middle; got "
                f"{self.model_name_or_path}, model_type={config.model_type}, attention_variant={variant}. "
                "`python -m modeling_aoarm convert` makes one of a left-to-right model."
            )
        tokenizer = AutoTokenizer.from_pretrained(self.model_name_or_path, **kwargs)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return AutoModelForCausalLM.from_pretrained(self.model_name_or_path, **kwargs), tokenizer


@dataclass
class InfillingArguments(TextArguments):
    """The text, the middles to cut out of it, and the evaluation."""

    block_size: int = field(default=128, metadata={"help": "Most tokens of a row, without BOS."})
    shortest_middle: int = field(default=2, metadata={"help": "Fewest tokens of a middle."})
    longest_middle: int = field(default=16, metadata={"help": "Most tokens of a middle."})
    middles_per_row: int = field(default=4, metadata={"help": "Middles cut out of each row of the training text."})
    order: str = field(
        default="uniform", metadata={"help": "Orders in which middles are learned: uniform, left_to_right, ..."}
    )
    middle_seed: int = field(default=0, metadata={"help": "Seed of the middles and of their training orders."})
    eval_draws: int = field(default=1, metadata={"help": "Orders per held-out middle in evaluations during training."})
    final_eval_draws: int = field(default=4, metadata={"help": "Orders per held-out middle before and after."})
    sample_rows: int = field(
        default=4, metadata={"help": "Held-out middles that the fine-tuned model fills at the end."}
    )

    def __post_init__(self):
        longest = min(self.longest_middle, self.block_size - 2)
        if not 1 <= self.shortest_middle <= longest:
            raise ValueError(
                "shortest_middle must lie between 1 and the smaller of longest_middle and block_size - 2 (prefix and "
                f"suffix have a token at least), here {longest}; got {self.shortest_middle}."
            )

    def middles(self, texts: Dataset, tokenizer: PreTrainedTokenizerBase, per_row: int) -> Dataset:
        """Rows of text, each `per_row` times, with labels of -100 outside of a random middle.

        Columns: `input_ids`, `labels`, `num_characters` (that the middle spells) and `example_index`.
        """
        rows = tokenize_and_chunk(texts, tokenizer, self.block_size)

        def cut(batch: dict[str, list]) -> dict[str, list]:
            examples = {"input_ids": [], "labels": [], "num_characters": []}
            for ids, index in zip(batch["input_ids"], batch["example_index"], strict=True):
                longest = min(self.longest_middle, len(ids) - 2)
                for copy in range(per_row if longest >= self.shortest_middle else 0):
                    random = np.random.default_rng((self.middle_seed, index, copy))
                    length = int(random.integers(self.shortest_middle, longest, endpoint=True))
                    start = int(random.integers(1, len(ids) - length))
                    stop = start + length
                    before, both = (len(tokenizer.decode(ids[:end])) for end in (start, stop))
                    examples["input_ids"].append(ids)
                    examples["labels"].append([-100] * start + ids[start:stop] + [-100] * (len(ids) - stop))
                    examples["num_characters"].append(both - before)
            return examples

        rows = rows.map(cut, batched=True, remove_columns=rows.column_names, desc="Cutting middles")
        if not len(rows):
            raise ValueError(f"the text must have rows of {self.shortest_middle + 2} tokens at least, got none.")
        return with_example_index(rows)


def canvases(rows: dict[str, list], tokenizer: PreTrainedTokenizerBase, device) -> dict[str, torch.Tensor]:
    """Input ids, attention mask and generation mask (the middles), each `[batch, columns]`."""
    first = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids = [torch.tensor(first + each) for each in rows["input_ids"]]
    blank = [torch.tensor([-100] * len(first) + each) != -100 for each in rows["labels"]]
    real = [torch.ones_like(each) for each in ids]
    names = ("input_ids", "attention_mask", "generation_mask")
    return {
        name: torch.nn.utils.rnn.pad_sequence(values, batch_first=True).to(device)
        for name, values in zip(names, (ids, real, blank), strict=True)
    }


def accuracy(model, dataset: Dataset, tokenizer, batch_size: int, accelerator: Accelerator) -> dict[str, float]:
    """Greedy filling from left to right: share of middles that are right as a whole, and of tokens that are right."""
    model.eval()
    batches, processes = math.ceil(len(dataset) / batch_size), accelerator.num_processes
    # Equally many passes in each process. Where no batch is left, one comes again and does not count.
    passes = range(accelerator.process_index, math.ceil(batches / processes) * processes, processes)
    counts = torch.zeros(3, dtype=torch.int64)
    for number in tqdm(passes, desc="filling", leave=False, disable=not accelerator.is_main_process):
        start = number % batches * batch_size
        batch = canvases(dataset[start : start + batch_size], tokenizer, model.device)
        with accelerator.autocast():
            filled = model.generate(**batch, decoding_order="left_to_right", tokens_per_step=1, do_sample=False)
        blank = batch["generation_mask"]
        wrong = (filled != batch["input_ids"]) & blank
        if number < batches:
            counts += torch.stack([(~wrong.any(1)).sum(), blank.sum() - wrong.sum(), blank.sum()]).cpu()
    exact, right, tokens = accelerator.reduce(counts.to(accelerator.device), "sum").tolist()
    return {"exact_match": exact / len(dataset), "token_accuracy": right / tokens}


def measure(
    model, dataset: Dataset, tokenizer, draws: int, batch_size: int, accelerator: Accelerator
) -> dict[str, dict | float]:
    """The figures of one model: likelihoods in both kinds of orders, and accuracies. Processes share the work."""
    characters = sum(dataset["num_characters"])
    likelihoods = {
        name: evaluate_likelihood(
            model,
            dataset,
            tokenizer,
            order,
            draws=draws if order == "uniform" else 1,
            batch_size=batch_size,
            characters=characters,
            accelerator=accelerator,
        ).to_dict()
        for name, order in ORDERS.items()
    }
    return likelihoods | accuracy(model, dataset, tokenizer, batch_size, accelerator)


def fill_middles(model, tokenizer: PreTrainedTokenizerBase, dataset: Dataset, count: int) -> list[dict[str, str]]:
    """Fills up to `count` middles, spread over the text, greedily in the order of the model's confidence."""
    rows = dataset[:: max(1, len(dataset) // count)]
    rows = {name: values[:count] for name, values in rows.items()}
    batch = canvases(rows, tokenizer, model.device)
    filled = model.generate(**batch, decoding_order="confidence", tokens_per_step=1, do_sample=False)
    samples = []
    for ids, labels, row, real in zip(rows["input_ids"], rows["labels"], filled, batch["attention_mask"], strict=True):
        blank = [column for column, label in enumerate(labels) if label != -100]
        prefix, suffix = (tokenizer.decode(part) for part in (ids[: blank[0]], ids[blank[-1] + 1 :]))
        samples.append(
            {
                "canvas": f"{prefix}<blank:{len(blank)}>{suffix}",
                # Without the token in front.
                "filled": tokenizer.decode(row[real.bool()][-len(ids) :]),
                "original": tokenizer.decode(ids),
            }
        )
    return samples


def print_summary(results: dict) -> None:
    for name in ("before", "after"):
        for order in ORDERS:
            row = results[name][order]
            bits = row["bits_per_character"]
            print(f"{name}, {order.replace('_', ' ')}: {row['nll']:.4f} nats per token, {bits:.4f} bits per character")
        exact, right = results[name]["exact_match"], results[name]["token_accuracy"]
        print(f"{name}, filled from left to right: {exact:.1%} of middles and {right:.1%} of tokens are right")
    for sample in results["samples"]:
        print(f"\ncanvas:   {sample['canvas']}\nfilled:   {sample['filled']}\noriginal: {sample['original']}")


def main(argv: list[str]) -> None:
    started = time.time()
    parser = HfArgumentParser((AdapterArguments, InfillingArguments, TrainingArguments, CardArguments))
    parser.set_defaults(**TRAINING_DEFAULTS)
    adapter_args, data_args, args, card_args = parser.parse_args_into_dataclasses(argv)
    logging.basicConfig()
    logger.setLevel(logging.INFO if args.process_index == 0 else logging.WARNING)
    args.include_num_input_tokens_seen = "non_padding"
    checkpoint = starting_checkpoint(args, adapter_args.overwrite_output_dir)
    set_seed(args.seed)
    # A resumed run has the evaluation of the start in its history.
    args.eval_on_start = args.eval_on_start and checkpoint is None

    base, tokenizer = adapter_args.load()
    base.to(args.device)
    # The main process goes first, the others find its work in the cache of `datasets`.
    with args.main_process_first(desc="loading text"):
        texts = data_args.load()
        train = data_args.middles(texts["train"], tokenizer, data_args.middles_per_row)
        held_out = data_args.middles(texts["validation"], tokenizer, 1)
    targets = adapter_args.target_modules
    adapter = lora_config(
        base,
        r=adapter_args.lora_rank,
        lora_alpha=adapter_args.lora_alpha,
        lora_dropout=adapter_args.lora_dropout,
        target_modules=targets.split(",") if targets and targets != "all-linear" else targets,
    )
    model = get_peft_model(base, adapter)
    trained, parameters = model.get_nb_trainable_parameters()
    logger.info("%s of %s parameters are trained", f"{trained:,}", f"{parameters:,}")
    trainer = AnyOrderTrainer(
        model=model,
        args=args,
        data_collator=DataCollatorForAnyOrderLM(tokenizer, order=data_args.order, seed=data_args.middle_seed),
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
        eval_draws=data_args.eval_draws,
    )
    how = (
        held_out,
        tokenizer,
        data_args.final_eval_draws,
        args.per_device_eval_batch_size,
        trainer.accelerator,
    )
    with model.disable_adapter():
        results = {"before": measure(model, *how)}
    if checkpoint is None:
        discard_checkpoints(args)
    training_started = time.time()
    trainer.train(resume_from_checkpoint=checkpoint)
    training_seconds = time.time() - training_started
    # Trainer switched the cache off for the training.
    model.config.use_cache = True
    trainer.save_model()
    trainer.save_state()
    trained_model = trainer.accelerator.unwrap_model(trainer.model)
    results["after"] = measure(trained_model, *how)
    samples = fill_middles(trained_model, tokenizer, held_out, data_args.sample_rows) if data_args.sample_rows else []
    if args.process_index > 0:
        if args.push_to_hub:
            # All processes save together.
            trainer.push_to_hub()
        return

    results |= {
        "parameters": parameters,
        "trained_parameters": trained,
        "adapter": {
            "base_model": adapter_args.model_name_or_path,
            "rank": adapter_args.lora_rank,
            "alpha": adapter_args.lora_alpha,
            "target_modules": sorted(adapter.target_modules),
            "modules_to_save": adapter.modules_to_save,
        },
        "data": {
            "source": data_args.text_source,
            "train_middles": len(train),
            "held_out_middles": len(held_out),
            "block_size": data_args.block_size,
            "tokens_of_a_middle": f"{data_args.shortest_middle} to {data_args.longest_middle}",
        },
        "training": {
            "orders": f"middles: {trainer.data_collator.order}",
            "steps": trainer.state.global_step,
            "tokens_seen": trainer.state.num_input_tokens_seen,
            "trained_parameters": trained,
            "device": args.device.type,
            "seed": args.seed,
            "hyperparameters": extract_hyperparameters_from_trainer(trainer),
            "training_seconds": round(training_seconds, 1),
            "total_seconds": round(time.time() - started, 1),
        },
        "command": shlex.join(["examples/finetune_peft.py", *argv]),
        "versions": versions() | {"peft": peft.__version__},
        "samples": samples,
    }
    save_loss_curve(
        args.output_dir,
        trainer.state.log_history,
        title=f"LoRA on {adapter_args.model_name_or_path}: middles of {data_args.text_source}",
    )
    # The card's figures are the adapter's.
    before = {f"before: {order}, nats per token": results["before"][order]["nll"] for order in ORDERS}
    report = {
        **results,
        "training": {**results["training"], **before},
        "evaluation": {f"middles, {order.replace('_', ' ')}": results["after"][order] for order in ORDERS},
    }
    about = {"license": card_args.license, "language": card_args.language, "curve": "loss_curve.png"}
    trainer.create_model_card(report=report, **about)
    write_json(Path(args.output_dir) / "results.json", results)
    if args.push_to_hub:
        trainer.push_to_hub(report=report, **about)
    if adapter_args.merge_and_save:
        # From the saved files: processes may hold parts of the weights.
        adapted = AutoPeftModelForCausalLM.from_pretrained(
            args.output_dir, trust_remote_code=adapter_args.trust_remote_code
        )
        merged = Path(args.output_dir) / "merged"
        shutil.rmtree(merged, ignore_errors=True)
        with replacing_folder(merged) as folder:
            adapted.merge_and_unload().save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    print_summary(results)
    print(f"\nAdapter, loss_curve.png and results.json are in {args.output_dir}.")


if __name__ == "__main__":
    main(sys.argv[1:])
