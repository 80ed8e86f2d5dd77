# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""
Make an any-order model of a left-to-right one, and compare with training an any-order model from scratch.

Objective: a small Llama is trained left to right on text, as anyone would with `Trainer`, and converted. The converted
model equals it from left to right and knows no other order yet. It is then adapted to every order, by LoRA and with all
weights: orders begin at left to right and get wider step by step, `local(0)` to `local(w)`. A model of the same shape
with new weights is trained under the same orders, for as many tokens as the adaptation saw, and once more for as many
as the Llama and its adaptation saw together.

With the defaults (reference text that ships inside CPython, characters; 6 minutes on 2 CPU cores, no download):

    python examples/convert_and_adapt.py

With a checkpoint of your own instead of the small Llama, and a text of your own:

    python examples/convert_and_adapt.py --model_name_or_path Qwen/Qwen3-0.6B --train_file articles.jsonl.xz \\
        --methods lora --lora_learning_rate 1e-4 --block_size 512 --adapt_steps 5000 --bf16 true

The output folder then holds `adaptation.png` and `adaptation.json` (bits per character of held-out text, in any order
and from left to right, over the tokens seen), and the models: `source`, `converted`, `lora` (an adapter),
`lora_merged`, `full`, `scratch` and `scratch_long`. Started again, it goes on from what is finished and from the last
checkpoint of what is not.
"""

import dataclasses
import json
import logging
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset
from matplotlib.figure import Figure
from peft import PeftModel, get_peft_model
from rich.console import Console
from rich.table import Table
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    HfArgumentParser,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

from modeling_aoarm import (
    AOARMConfig,
    AOARMForCausalLM,
    DataCollatorForAnyOrderLM,
    OrderCurriculum,
    convert_causal_lm,
    infill,
    lora_config,
)
from modeling_aoarm.data.text import TextArguments, sample_texts, tokenize_and_chunk, unigram_bits
from modeling_aoarm.data.tokenizers import character_tokenizer
from modeling_aoarm.io import replacing_folder, save_figure, versions, write_json
from modeling_aoarm.training.checkpoints import resolve_checkpoint
from modeling_aoarm.training.trainer import AnyOrderTrainer


logger = logging.getLogger(__name__)

METHODS = {
    "lora": "converted, LoRA",
    "full": "converted, all weights",
    "scratch": "new weights",
    "scratch_long": "new weights, for the tokens of both trainings",
}
COLORS = {"lora": "#1f5fa8", "full": "#c8501e", "scratch": "#6b6b6b", "scratch_long": "#b5b5b5"}


@dataclass
class AdaptationArguments(TextArguments):
    """What is converted, and how it is adapted."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "A left-to-right checkpoint. Default: a small Llama is trained first."}
    )
    attention_variant: str = field(default="two_stream", metadata={"help": "two_stream or decoupled_rope."})
    methods: str = field(default=",".join(METHODS), metadata={"help": "Which ways are compared: some of the default."})
    order: str | None = field(
        default=None, metadata={"help": "Orders at the end. Default: local(w), w as large as --block_size."}
    )
    start_order: str = field(default="local(0)", metadata={"help": "Orders at the start: local(0) is left to right."})
    anneal_until: float = field(default=0.9, metadata={"help": "Share of a training after which --order is reached."})
    block_size: int = field(default=64, metadata={"help": "Most tokens of a row, without BOS."})
    source_steps: int = field(default=1500, metadata={"help": "Steps of the small Llama."})
    adapt_steps: int = field(default=1000, metadata={"help": "Steps of each adaptation."})
    adaptation_learning_rate: float = field(default=2e-3, metadata={"help": "Highest one with all weights."})
    lora_learning_rate: float = field(default=1e-2, metadata={"help": "Highest one of the adapter."})
    lora_rank: int = field(default=32, metadata={"help": "Rank of the adapter's matrices."})
    eval_draws: int = field(default=2, metadata={"help": "Orders per held-out row in each evaluation."})
    sample_texts: tuple[str, ...] = field(
        default=("The <blank:9> statement is used to <blank:6> a function.", "a <blank:6> of the class"),
        metadata={"help": "Texts with blanks that the adapted model fills at the end."},
    )

    def __post_init__(self):
        unknown = set(self.methods.split(",")) - set(METHODS)
        if unknown:
            raise ValueError(f"methods must be among {', '.join(METHODS)}, got {', '.join(sorted(unknown))}.")
        if self.attention_variant not in ("decoupled_rope", "two_stream"):
            raise ValueError(f"attention_variant must be decoupled_rope or two_stream, got {self.attention_variant!r}.")
        if self.order is None:
            self.order = f"local({self.block_size})"


@dataclass
class RunArguments(TrainingArguments):
    """`TrainingArguments` with defaults for the default run; each training has its own steps and learning rate."""

    output_dir: str | None = field(default="outputs/convert_and_adapt", metadata={"help": "Where all is written."})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Rows per process and step."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Rows per process and forward pass."})
    learning_rate: float = field(default=2e-3, metadata={"help": "Highest one of the trainings from new weights."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning rate schedule."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Steps (or, below 1, share) of rising learning rate."})
    weight_decay: float = field(default=0.1, metadata={"help": "Weight decay of AdamW."})
    adam_beta2: float = field(default=0.95, metadata={"help": "Second-moment decay of AdamW."})
    logging_steps: float = field(default=50, metadata={"help": "Steps between logged losses."})
    eval_strategy: str = field(default="steps", metadata={"help": "When to evaluate: no, steps or epoch."})
    eval_steps: float | None = field(default=250, metadata={"help": "Steps between evaluations."})
    eval_on_start: bool = field(default=True, metadata={"help": "Evaluate before the first step as well."})
    save_steps: float = field(default=250, metadata={"help": "Steps between checkpoints."})
    save_total_limit: int | None = field(default=1, metadata={"help": "Checkpoints to keep."})
    include_num_input_tokens_seen: str = field(default="non_padding", metadata={"help": "no, all or non_padding."})


def stage(args: RunArguments, name: str, steps: int, learning_rate: float, **changes) -> TrainingArguments:
    """The arguments of one training, which has a folder of its own."""
    fields = {item.name: getattr(args, item.name) for item in dataclasses.fields(TrainingArguments) if item.init}
    folder = str(Path(args.output_dir) / "training" / name)
    fields |= {"output_dir": folder, "max_steps": steps, "learning_rate": learning_rate, **changes}
    return TrainingArguments(**fields)


def train(trainer: Trainer) -> None:
    """Trains, from the last complete checkpoint where there is one."""
    has_begun = any(Path(trainer.args.output_dir).glob("checkpoint-*"))
    trainer.train(resume_from_checkpoint=resolve_checkpoint(trainer.args, has_begun))
    # Trainer switched the cache off for the training; the saved model should use it.
    trainer.model.config.use_cache = True


def train_source(
    settings: AdaptationArguments, args: RunArguments, tokenizer: PreTrainedTokenizerBase, rows: Dataset, folder: Path
) -> None:
    """Trains a small Llama from left to right with the library's own means, and saves it."""
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=max(128, settings.block_size + 1),
        **special,
    )
    starts = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    trainer = Trainer(
        LlamaForCausalLM(config),
        stage(args, "source", settings.source_steps, args.learning_rate, eval_strategy="no", eval_on_start=False),
        DataCollatorForLanguageModeling(tokenizer, mlm=False),
        train_dataset=rows.map(lambda row: {"input_ids": starts + row["input_ids"]}, remove_columns=rows.column_names),
    )
    train(trainer)
    with replacing_folder(folder) as temporary:
        trainer.model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def adapt(
    name: str,
    model: PreTrainedModel | PeftModel,
    settings: AdaptationArguments,
    args: RunArguments,
    tokenizer: PreTrainedTokenizerBase,
    blocks: dict[str, Dataset],
) -> dict:
    """Trains a model on orders that get wider, saves it, and returns its curve over the tokens seen."""
    steps = settings.adapt_steps + (settings.source_steps if name == "scratch_long" else 0)
    orders = OrderCurriculum(settings.start_order, settings.order, until=settings.anneal_until)
    rates = {"lora": settings.lora_learning_rate, "full": settings.adaptation_learning_rate}
    trainer = AnyOrderTrainer(
        model=model,
        args=stage(args, name, steps, rates.get(name, args.learning_rate)),
        data_collator=DataCollatorForAnyOrderLM(tokenizer, orders, seed=args.seed),
        train_dataset=blocks["train"],
        eval_dataset=blocks["validation"],
        eval_draws=settings.eval_draws,
    )
    train(trainer)
    curve = [
        {
            "step": entry["step"],
            "tokens": entry.get("num_input_tokens_seen", 0),
            "any_order": entry["eval_any_order_bpc"],
            "left_to_right": entry["eval_left_to_right_bpc"],
        }
        for entry in trainer.state.log_history
        if "eval_any_order_bpc" in entry
    ]
    with replacing_folder(Path(args.output_dir) / name) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        # A finished training is one whose folder is there, and its curve with it.
        write_json(folder / "curve.json", curve)
    return curve


def plot(runs: dict[str, dict], unigram: float, title: str) -> Figure:
    """Two panels, any order and left to right: bits per character of held-out text over the tokens seen."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True)
    for panel, order in zip(panels, ("any_order", "left_to_right"), strict=True):
        for name, run in runs.items():
            curve = run["curve"]
            tokens, values = [row["tokens"] / 1e6 for row in curve], [row[order] for row in curve]
            panel.plot(tokens, values, color=COLORS[name], label=METHODS[name], marker=".", markersize=4)
        panel.axhline(unigram, color="#b0b0b0", linestyle=":", linewidth=1)
        panel.text(
            0.99, unigram, "unigram entropy", transform=panel.get_yaxis_transform(), ha="right", va="bottom", fontsize=8
        )
        panel.set_title(f"held-out text, {order.replace('_', ' ')}", fontsize=10)
        panel.set_xlabel("million tokens of this training")
        panel.set_ylim(top=unigram * 1.1)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("bits per character")
    panels[0].legend(frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11)
    return figure


def print_summary(results: dict) -> None:
    console = Console(width=None if sys.stdout.isatty() else 120)
    table = Table("model", "trained weights", "million tokens", "bits per character, any order", "left to right")
    seen = set()
    for name, run in results["runs"].items():
        for label, row in (("before", run["curve"][0]), ("after", run["curve"][-1])):
            start = "new weights" if name.startswith("scratch") else "converted"
            if label == "before" and start in seen:
                continue
            seen.add(start)
            table.add_row(
                METHODS[name] if label == "after" else f"{start}, before",
                f"{run['trainable_parameters']:,}" if label == "after" else "-",
                f"{row['tokens'] / 1e6:.2f}",
                f"{row['any_order']:.4f}",
                f"{row['left_to_right']:.4f}",
            )
    console.print(table)
    for sample in results["samples"]:
        console.print(f"{sample['canvas']}  →  {sample['filled']}", markup=False, highlight=False)


def main(argv: list[str]) -> None:
    settings, args = HfArgumentParser((AdaptationArguments, RunArguments)).parse_args_into_dataclasses(argv)
    logging.basicConfig()
    logger.setLevel(logging.INFO)
    set_seed(args.seed)
    output = Path(args.output_dir)
    texts = settings.load()
    source = Path(settings.model_name_or_path or output / "source")
    is_missing = settings.model_name_or_path is None and not source.is_dir()
    if is_missing:
        tokenizer = character_tokenizer(texts["train"]["text"])
    else:
        tokenizer = AutoTokenizer.from_pretrained(str(source))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    blocks = {name: tokenize_and_chunk(split, tokenizer, settings.block_size) for name, split in texts.items()}
    if is_missing:
        logger.info("training a left-to-right Llama: %s steps", settings.source_steps)
        train_source(settings, args, tokenizer, blocks["train"], source)

    converted = output / "converted"
    if not converted.is_dir():
        with replacing_folder(converted) as folder:
            convert_causal_lm(str(source), settings.attention_variant).save_pretrained(folder)
            tokenizer.save_pretrained(folder)

    runs = {}
    for name in settings.methods.split(","):
        if name.startswith("scratch"):
            set_seed(args.seed)
            # New weights learn best from the learned start; only `two_stream` has one.
            model = AOARMForCausalLM(AOARMConfig.from_pretrained(converted, query_stream_init="learned"))
        else:
            model = AutoModelForCausalLM.from_pretrained(converted)
        if name == "lora":
            model = get_peft_model(model, lora_config(model, r=settings.lora_rank))
        runs[name] = {"trainable_parameters": model.num_parameters(only_trainable=True)}
        finished = output / name / "curve.json"
        if finished.is_file():
            runs[name]["curve"] = json.loads(finished.read_text(encoding="utf-8"))
        else:
            logger.info("%s: %s trained parameters", METHODS[name], f"{runs[name]['trainable_parameters']:,}")
            runs[name]["curve"] = adapt(name, model, settings, args, tokenizer, blocks)
    merged = output / "lora_merged"
    if "lora" in runs and not merged.is_dir():
        with replacing_folder(merged) as folder:
            adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(converted), output / "lora")
            adapted.merge_and_unload().save_pretrained(folder)
            tokenizer.save_pretrained(folder)

    best = min(runs, key=lambda name: runs[name]["curve"][-1]["any_order"])
    model = AutoModelForCausalLM.from_pretrained(merged if best == "lora" else output / best)
    filled = infill(model, tokenizer, list(settings.sample_texts), decoding_order="confidence")
    unigram = unigram_bits(sample_texts(texts["train"]), sample_texts(texts["validation"]))
    results = {
        "runs": runs,
        "samples": [
            {"canvas": canvas, "filled": text} for canvas, text in zip(settings.sample_texts, filled, strict=True)
        ],
        "samples_from": best,
        "unigram": unigram,
        "text": settings.text_source,
        "settings": dataclasses.asdict(settings),
        "command": shlex.join(["examples/convert_and_adapt.py", *argv]),
        "seed": args.seed,
        "versions": versions(),
    }
    title = f"{settings.attention_variant}, {model.num_parameters():,} parameters, {settings.text_source}"
    save_figure(output / "adaptation.png", plot(runs, unigram["unigram_entropy_all"], title), dpi=150)
    write_json(output / "adaptation.json", results)
    print_summary(results)


if __name__ == "__main__":
    main(sys.argv[1:])
