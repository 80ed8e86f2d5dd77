# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""
Convert a left-to-right model to an any-order model, adapt it, and compare with an any-order model from scratch.

A small Llama is trained left to right on text with `Trainer`, and converted. The converted model equals it from left to
right and knows no other order yet. It is then adapted to every order, by LoRA and with all weights, under orders that
widen from left to right, `local(0)` to `local(w)`. A model of the same shape with new weights is trained under the same
orders for as many tokens as the adaptation, and once more for as many as the Llama and its adaptation together.

With the defaults (reference text that ships inside CPython, characters; 6 minutes on 2 CPU cores, no download):

    python examples/convert_and_adapt.py

With your own checkpoint instead of the small Llama, and your own text:

    python examples/convert_and_adapt.py --model_name_or_path Qwen/Qwen3-0.6B --train_file articles.jsonl.xz \\
        --methods lora --lora_learning_rate 1e-4 --block_size 512 --adapt_steps 5000 --bf16 true

The output folder then holds `adaptation.png` and `adaptation.json` (bits per character of held-out text, in any order
and from left to right, over the tokens seen), and the models: `source`, `converted`, `lora` (an adapter),
`lora_merged`, `full`, `scratch` and `scratch_long`. If started again, it keeps finished models, and
continues unfinished trainings from their last checkpoints.
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
    "scratch_long": "new weights, tokens of both trainings",
}
# Each training has its own steps and learning rate.
TRAINING_DEFAULTS = dict(
    output_dir="outputs/convert_and_adapt",
    per_device_train_batch_size=16,
    per_device_eval_batch_size=64,
    learning_rate=2e-3,
    lr_scheduler_type="cosine",
    warmup_steps=0.05,
    weight_decay=0.1,
    adam_beta2=0.95,
    logging_steps=50,
    eval_strategy="steps",
    eval_steps=250,
    eval_on_start=True,
    save_steps=250,
    save_total_limit=1,
)
COLOURS = {"lora": "#1f5fa8", "full": "#c8501e", "scratch": "#6b6b6b", "scratch_long": "#b5b5b5"}


@dataclass
class AdaptationArguments(TextArguments):
    """The model to convert, and its adaptation."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "A left-to-right checkpoint. Default: a small Llama is trained first."}
    )
    attention_variant: str = field(default="two_stream", metadata={"help": "two_stream or decoupled_rope."})
    methods: str = field(default=",".join(METHODS), metadata={"help": "Methods to compare, some of the default."})
    order: str | None = field(
        default=None, metadata={"help": "Orders at the end. Default: local(w), w as large as --block_size."}
    )
    start_order: str = field(default="local(0)", metadata={"help": "Orders at the start: local(0) is left to right."})
    anneal_until: float = field(default=0.9, metadata={"help": "Share of a training after which --order is reached."})
    block_size: int = field(default=64, metadata={"help": "Most tokens of a row, without BOS."})
    source_steps: int = field(default=1500, metadata={"help": "Steps of the small Llama."})
    adapt_steps: int = field(default=1000, metadata={"help": "Steps of each adaptation."})
    adaptation_learning_rate: float = field(default=2e-3, metadata={"help": "Peak learning rate with all weights."})
    lora_learning_rate: float = field(default=1e-2, metadata={"help": "Peak learning rate of the adapter."})
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


def training_arguments(args: TrainingArguments, name: str, steps: int, rate: float, **changes) -> TrainingArguments:
    """The arguments of one training, which has its own folder."""
    changes |= {"output_dir": str(Path(args.output_dir) / "training" / name), "max_steps": steps, "learning_rate": rate}
    return dataclasses.replace(args, include_num_input_tokens_seen="non_padding", **changes)


def train(trainer: Trainer) -> None:
    """Trains from the last complete checkpoint, if there is one."""
    has_begun = any(Path(trainer.args.output_dir).glob("checkpoint-*"))
    trainer.train(resume_from_checkpoint=resolve_checkpoint(trainer.args, has_begun))
    # Trainer switches the cache off for training; the saved model should use it.
    trainer.model.config.use_cache = True


def save(folder: Path, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, curve=None) -> None:
    """Saves a model, and the curve of its training, all at once."""
    with replacing_folder(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        if curve is not None:
            write_json(temporary / "curve.json", curve)


def train_source(
    settings: AdaptationArguments, args: TrainingArguments, tokenizer: PreTrainedTokenizerBase, rows: Dataset
) -> LlamaForCausalLM:
    """Trains a small Llama from left to right with the library alone."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=max(128, settings.block_size + 1),
        **{name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
    )
    starts = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    steps, changes = settings.source_steps, dict(eval_strategy="no", eval_on_start=False)
    trainer = Trainer(
        LlamaForCausalLM(config),
        training_arguments(args, "source", steps, args.learning_rate, **changes),
        DataCollatorForLanguageModeling(tokenizer, mlm=False),
        train_dataset=rows.map(lambda row: {"input_ids": starts + row["input_ids"]}, remove_columns=rows.column_names),
    )
    train(trainer)
    return trainer.model


def adapt(
    name: str,
    model: PreTrainedModel | PeftModel,
    settings: AdaptationArguments,
    args: TrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    blocks: dict[str, Dataset],
) -> list[dict]:
    """Trains a model on orders that widen, and returns its curve over the tokens seen."""
    steps = settings.adapt_steps + (settings.source_steps if name == "scratch_long" else 0)
    rates = {"lora": settings.lora_learning_rate, "full": settings.adaptation_learning_rate}
    orders = OrderCurriculum(settings.start_order, settings.order, until=settings.anneal_until)
    trainer = AnyOrderTrainer(
        model=model,
        args=training_arguments(args, name, steps, rates.get(name, args.learning_rate)),
        data_collator=DataCollatorForAnyOrderLM(tokenizer, orders, seed=args.seed),
        train_dataset=blocks["train"],
        eval_dataset=blocks["validation"],
        eval_draws=settings.eval_draws,
    )
    train(trainer)
    return [
        {
            "step": entry["step"],
            "tokens": entry.get("num_input_tokens_seen", 0),
            "any_order": entry["eval_any_order_bpc"],
            "left_to_right": entry["eval_left_to_right_bpc"],
        }
        for entry in trainer.state.log_history
        if "eval_any_order_bpc" in entry
    ]


def plot(runs: dict[str, dict], unigram: float, title: str) -> Figure:
    """Draws bits per character of held-out text over the tokens seen, in any order and from left to right."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for panel, order in zip(panels, ("any_order", "left_to_right"), strict=True):
        for name, run in runs.items():
            tokens, values = zip(*((row["tokens"] / 1e6, row[order]) for row in run["curve"]), strict=True)
            panel.plot(tokens, values, color=COLOURS[name], label=METHODS[name], marker=".", markersize=4)
        panel.axhline(unigram, color="#b0b0b0", linestyle=":", linewidth=1, label="unigram entropy")
        panel.set_title(f"held-out text, {order.replace('_', ' ')}", fontsize=10)
        panel.set_xlabel("million tokens of this training")
    panels[0].set_ylim(top=unigram * 1.1)
    panels[0].set_ylabel("bits per character")
    panels[0].legend(frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11)
    return figure


def print_summary(results: dict) -> None:
    for name, run in results["runs"].items():
        first, last = run["curve"][0], run["curve"][-1]
        print(f"{METHODS[name]}: {run['trainable_parameters']:,} weights, {last['tokens'] / 1e6:.2f} million tokens")
        for order in ("any_order", "left_to_right"):
            print(f"    bits per character, {order.replace('_', ' ')}: {first[order]:.4f} → {last[order]:.4f}")
    for sample in results["samples"]:
        print(f"{sample['canvas']}  →  {sample['filled']}")


def main(argv: list[str]) -> None:
    parser = HfArgumentParser((AdaptationArguments, TrainingArguments))
    parser.set_defaults(**TRAINING_DEFAULTS)
    settings, args = parser.parse_args_into_dataclasses(argv)
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
        save(source, train_source(settings, args, tokenizer, blocks["train"]), tokenizer)

    converted = output / "converted"
    if not converted.is_dir():
        save(converted, convert_causal_lm(str(source), settings.attention_variant), tokenizer)

    runs = {}
    for name in settings.methods.split(","):
        if name.startswith("scratch"):
            set_seed(args.seed)
            # New weights learn best from the learned start, which only `two_stream` has.
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
            save(output / name, model, tokenizer, runs[name]["curve"])
    merged = output / "lora_merged"
    if "lora" in runs and not merged.is_dir():
        adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(converted), output / "lora")
        save(merged, adapted.merge_and_unload(), tokenizer)

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
