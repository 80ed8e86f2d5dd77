# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""
Evaluate a trained model: likelihoods in many orders, infilling, and the text that it samples.

Objective: everything one wants to know of an any-order model, on held-out text, with standard errors and with what
every example contributed. Nothing is trained.

| measure | what |
| --- | --- |
| any_order | NLL in uniform orders, exact in each order |
| left_to_right | NLL from left to right |
| elbo | NLL averaged over all orders, estimated from few passes (bidirectional; elsewhere it is any_order) |
| bound | multi-order bound: the probability averaged over K orders, K = 1, 2, 4, ... |
| infilling | NLL of blanks, and accuracy of greedy filling, by blank length; everything else is given |
| context_orders | NLL of the same blanks, averaged over K orders of the given tokens; brings infilling along |
| samples | coherence, diversity and entropy of samples over temperatures, perplexity under --judge |

With the defaults (the model of `make pretrain` and its text; a minute on one CPU core):

    python examples/evaluate.py

Another model, with a left-to-right model that judges its samples, and only some measures:

    python examples/evaluate.py --model outputs/other --judge outputs/causal --measures left_to_right samples

The text must be cut as for the training: give the same --block_size, --join_with and text arguments. A model of the
variant `bidirectional` needs a pass for each token of an order, so its exact likelihoods take longest (3 minutes).

The output folder then holds `evaluation.json` (the figures, their standard errors, and how they were got), the examples
behind them (`likelihoods.parquet`, `infilling.parquet`, `samples.parquet`), and pictures (`bound.png`,
`infilling.png`, `context_orders.png`, `samples.png`).
"""

import math
import shlex
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import Dataset
from timing import print_table
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser, PreTrainedModel, PreTrainedTokenizerBase

from modeling_aoarm.cli.commands import load
from modeling_aoarm.cli.common import check_is_there
from modeling_aoarm.data.text import TextArguments, tokenize_and_chunk
from modeling_aoarm.decoding_aoarm import default_context_order
from modeling_aoarm.evaluation.infilling import context_ensemble, evaluate_infilling
from modeling_aoarm.evaluation.likelihoods import estimate_elbo, exact_order_nll, example_generator, multi_order_bound
from modeling_aoarm.evaluation.plots import plot_averages, plot_infilling, plot_samples
from modeling_aoarm.evaluation.stats import Estimate
from modeling_aoarm.evaluation.text_metrics import (
    coherence,
    coherent_words,
    diversity,
    generative_perplexity,
    sample_entropy,
    vocabulary_of,
    words,
)
from modeling_aoarm.io import finite, replacing, versions, write_json


MEASURES = ("any_order", "left_to_right", "elbo", "bound", "infilling", "context_orders", "samples")
# What a variant is not asked for unless --measures names it, and why.
SKIPPED = {
    "causal": dict.fromkeys(
        ("any_order", "elbo", "bound", "infilling", "context_orders"), "causal knows one order, from left to right"
    ),
    "bidirectional": {"context_orders": "the order of the given tokens changes nothing for bidirectional"},
}
SKIPPED_ELSEWHERE = {"elbo": "minus the ELBO is the any-order NLL"}
FILES = ("evaluation.json",) + tuple(f"{name}.parquet" for name in ("likelihoods", "infilling", "samples"))
PICTURES = tuple(f"{name}.png" for name in ("bound", "infilling", "context_orders", "samples"))
ORDERS = ("left_to_right", "random", "confidence", "entropy", "margin")


@dataclass
class DataArguments(TextArguments):
    """Which text, and how it is cut."""

    block_size: int = field(default=64, metadata={"help": "Most tokens of a row, without BOS."})
    join_with: str | None = field(
        default=None,
        metadata={"help": "Put this string between texts and cut rows across them. Default: rows end with their text."},
    )
    max_examples: int = field(default=128, metadata={"help": "Held-out rows that are measured, spread over the text."})


@dataclass
class EvaluationArguments:
    """What is measured, and how."""

    model: str = field(default="outputs/pretrain", metadata={"help": "Folder or Hub name of an any-order model."})
    judge: str | None = field(
        default=None, metadata={"help": "Folder or Hub name of a causal model, for the perplexity of samples."}
    )
    output_dir: str = field(default="outputs/evaluation", metadata={"help": "Where everything is written."})
    measures: list[str] | None = field(
        default=None, metadata={"help": "Default: all that say something new of the variant.", "choices": MEASURES}
    )
    num_orders: int | None = field(
        default=None, metadata={"help": "Orders of each row for any_order and bound. Default: 16, for bidirectional 4."}
    )
    elbo_draws: int = field(default=4, metadata={"help": "Independent estimates of the ELBO."})
    elbo_samples: int = field(default=8, metadata={"help": "Passes over a row in each of them."})
    blank_lengths: list[int] = field(
        default_factory=lambda: [1, 2, 4, 8, 16], metadata={"help": "Tokens of the blanks of infilling."}
    )
    blanks_per_example: int = field(default=2, metadata={"help": "Blanks of each length in a row, each by itself."})
    infilling_order: str = field(
        default="left_to_right", metadata={"help": "In which blanks are filled.", "choices": ORDERS}
    )
    context_orders: int = field(default=8, metadata={"help": "Orders of the given tokens for context_orders."})
    num_samples: int = field(default=64, metadata={"help": "Samples for each temperature and order."})
    sample_orders: list[str] | None = field(
        default=None,
        metadata={"help": "Default: random and left_to_right, for causal left_to_right.", "choices": ORDERS},
    )
    temperatures: list[float] = field(
        default_factory=lambda: [0.4, 0.6, 0.8, 1.0, 1.2], metadata={"help": "Of samples."}
    )
    batch_size: int = field(default=32, metadata={"help": "Rows in a call of the model."})
    seed: int = field(default=0, metadata={"help": "Of orders, places of blanks, and samples."})
    device: str | None = field(default=None, metadata={"help": "cpu, cuda, ... Default: cuda where there is one."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the code that comes with the models."})


def choose_measures(args: EvaluationArguments, variant: str) -> tuple[list[str], dict[str, str]]:
    """The measures, and why others are left out.

    Raises:
        ValueError: `--measures` names one that the variant does not have.
    """
    skipped = SKIPPED.get(variant, SKIPPED_ELSEWHERE)
    if args.measures is None:
        return [name for name in MEASURES if name not in skipped], skipped
    for name in args.measures:
        if variant == "causal" and name in skipped:
            raise ValueError(f"--measures must fit the variant, got {name}: {skipped[name]}.")
    return [name for name in MEASURES if name in args.measures], {}


def held_out_rows(texts: Dataset, tokenizer: PreTrainedTokenizerBase, data: DataArguments) -> Dataset:
    """`--max_examples` rows of at least two tokens, spread evenly over the text; all where there are fewer.

    Raises:
        ValueError: there is no such row.
    """
    rows = tokenize_and_chunk(texts, tokenizer, data.block_size, data.join_with)
    rows = rows.select([index for index, ids in enumerate(rows["input_ids"]) if len(ids) > 1])
    if len(rows) == 0:
        raise ValueError(f"the held-out text must have rows of at least two tokens, got none in {data.text_source}.")
    count = min(data.max_examples, len(rows))
    return rows.select([index * len(rows) // count for index in range(count)])


def shown(value: float | None, digits: int = 4) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


class Evaluation:
    """The measures of a model on rows of held-out text: figures, rows of examples, pictures and tables.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        rows: held-out rows, with `input_ids` and `num_characters`.
        vocabulary: the words of the training text.
        judge: a causal model and its tokenizer, or None.
        args: the arguments.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rows: Dataset,
        vocabulary: frozenset[str],
        judge: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None,
        args: EvaluationArguments,
    ):
        self.model, self.tokenizer, self.rows, self.vocabulary = model, tokenizer, rows, vocabulary
        self.judge, self.args = judge, args
        self.common = {"seed": args.seed, "batch_size": args.batch_size}
        self.figures: dict[str, dict | list] = {}
        self.examples: dict[str, dict[str, list]] = {}

    @property
    def title(self) -> str:
        return f"{self.model.config.attention_variant}, {self.model.num_parameters():,} parameters"

    def likelihoods(self, measures: list[str], folder: Path) -> None:
        """any_order, left_to_right, elbo and bound."""
        args, table = self.args, []
        inputs = (self.model, self.rows, self.tokenizer)
        common = self.common | {"characters": sum(self.rows["num_characters"])}
        examples = {
            "example_index": self.rows["example_index"][:],
            "text": self.tokenizer.batch_decode(self.rows["input_ids"][:]),
            "characters": self.rows["num_characters"][:],
        }
        results = {}
        if {"any_order", "bound"} & set(measures):
            default = 4 if self.model.config.attention_variant == "bidirectional" else 16
            results["any_order"] = exact_order_nll(*inputs, draws=args.num_orders or default, **common)
        if "left_to_right" in measures:
            results["left_to_right"] = exact_order_nll(*inputs, "left_to_right", draws=1, **common)
        if "elbo" in measures:
            results["elbo"] = estimate_elbo(*inputs, draws=args.elbo_draws, samples=args.elbo_samples, **common)
        for name, result in results.items():
            examples["tokens"] = result.example_tokens[0].tolist()
            examples[f"{name}_nats"] = result.example_nll.T.tolist()
            self.figures[name] = result.to_dict()
            bits = Estimate(result.bits_per_character, result.bits_per_character_standard_error)
            table.append((name, str(len(result.example_nll)), bits, result.nll))
        if "bound" in measures:
            bound = multi_order_bound(results["any_order"])
            self.figures["bound"] = bound.to_dict()
            for size in bound.group_nll:
                examples[f"bound_{size}_nats"] = bound.example_nll(size).tolist()
                table.append(("bound", str(size), bound.bits_per_character(size), bound.nll(size).value))
            curve = {size: bound.bits_per_character(size) for size in bound.group_nll}
            # One order is the any-order NLL: the curve begins there.
            others = {name: result.bits_per_character for name, result in results.items() if name != "any_order"}
            lines = {name.replace("_", " "): height for name, height in others.items()}
            plot_averages(folder / "bound.png", curve, lines, f"Multi-order bound: {self.title}", "bits per character")
        self.examples["likelihoods"] = examples
        print_table(
            "Likelihood of held-out text; standard errors are over orders",
            ("measure", "orders", "bits per character", "standard error", "nats per token"),
            [(name, orders, *map(shown, bits), shown(nll)) for name, orders, bits, nll in table],
        )

    def infilling(self, with_context_orders: bool, folder: Path) -> None:
        """infilling, and context_orders on the same blanks."""
        args = self.args
        inputs = (self.model, self.rows, self.tokenizer)
        result = evaluate_infilling(
            *inputs,
            args.blank_lengths,
            blanks_per_example=args.blanks_per_example,
            decoding_order=args.infilling_order,
            **self.common,
        )
        self.figures["infilling"] = result.to_dict()
        offset = 0 if self.tokenizer.bos_token_id is None else 1
        blanks, ids = result.blanks, self.rows["input_ids"][:]
        # Columns of a canvas count the BOS, the row's tokens do not.
        stood = [ids[each.example][each.start - offset : each.start - offset + each.length] for each in blanks]
        examples = self.examples["infilling"] = {
            "example_index": [self.rows["example_index"][each.example] for each in blanks],
            "start": [each.start - offset for each in blanks],
            "blank_length": [each.length for each in blanks],
            "nats": result.blank_nll.tolist(),
            "right_tokens": result.right_tokens.tolist(),
            "is_right": result.is_right.tolist(),
            "blank": self.tokenizer.batch_decode(stood),
            "filled": self.tokenizer.batch_decode(result.filled),
        }
        lengths = sorted(args.blank_lengths)
        curves = [{n: get(n) for n in lengths} for get in (result.nll, result.accuracy, result.token_accuracy)]
        plot_infilling(folder / "infilling.png", *curves, f"Infilling: {self.title}")
        print_table(
            f"Infilling, blanks filled {args.infilling_order.replace('_', ' ')}; standard errors are over rows",
            ("blank length", "blanks", "nats per token", "right blanks", "right tokens"),
            [
                (str(row["blank_length"]), str(row["blanks"]))
                + tuple(
                    f"{shown(row[name])} ± {shown(row[f'{name}_standard_error'])}"
                    for name in ("nll", "accuracy", "token_accuracy")
                )
                for row in self.figures["infilling"]
            ],
        )
        if not with_context_orders:
            return
        ensemble = context_ensemble(*inputs, blanks, num_orders=args.context_orders, **self.common)
        own_order = default_context_order(self.model.generation_config)
        own = result.nll().value
        figures = {"own_order": own_order, "own_order_nll": own, "averages": ensemble.to_dict()}
        self.figures["context_orders"] = figures
        for size in ensemble.group_nll:
            examples[f"context_orders_{size}_nats"] = ensemble.example_nll(size).tolist()
        curve = {size: ensemble.nll(size) for size in ensemble.group_nll}
        lines = {f"given tokens {own_order}": own}
        title = f"Context orders: {self.title}"
        plot_averages(folder / "context_orders.png", curve, lines, title, "nats per blank token")
        print_table(
            "The same blanks, averaged over random orders of the given tokens; standard errors are over orders",
            ("orders of the given tokens", "nats per token", "standard error"),
            [(str(size), shown(each.value), shown(each.standard_error)) for size, each in curve.items()]
            + [(f"1, {own_order}", shown(own), "-")],
        )

    def sample(self, order: str, temperature: float) -> list[list[int]]:
        """Samples as long as the longest row, token ids; no special token is sampled."""
        args, length = self.args, max(map(len, self.rows["input_ids"]))
        bos = self.tokenizer.bos_token_id
        samples = []
        for start in range(0, args.num_samples, args.batch_size):
            numbers = range(start, min(start + args.batch_size, args.num_samples))
            # Without a BOS samples begin with the first tokens of rows.
            first = [self.rows["input_ids"][number % len(self.rows)][0] if bos is None else bos for number in numbers]
            canvas = torch.zeros(len(first), length + (bos is not None), dtype=torch.int64)
            canvas[:, 0] = torch.tensor(first)
            is_blank = torch.ones_like(canvas, dtype=torch.bool)
            is_blank[:, 0] = False
            filled = self.model.generate(
                canvas.to(self.model.device),
                generation_mask=is_blank.to(self.model.device),
                decoding_order=order,
                tokens_per_step=1,
                do_sample=True,
                temperature=temperature,
                top_k=0,
                top_p=1.0,
                suppress_tokens=self.tokenizer.all_special_ids or None,
                eos_token_id=None,
                generator=[example_generator(args.seed, number) for number in numbers],
            )
            samples += filled[:, int(bos is not None) :].tolist()
        return samples

    def samples(self, folder: Path) -> None:
        """Samples of each order and temperature, and as many rows of held-out text."""
        args = self.args
        default = ["left_to_right"] if self.model.config.attention_variant == "causal" else ["random", "left_to_right"]
        settings = {("held-out text", None): self.rows["input_ids"][: args.num_samples]}
        for order in args.sample_orders or default:
            for temperature in args.temperatures:
                settings[order, temperature] = self.sample(order, temperature)
        texts = {setting: self.tokenizer.batch_decode(ids) for setting, ids in settings.items()}
        # Ratios of equally many words.
        num_words = min(sum(len(words(text)) for text in each) for each in texts.values()) or None
        figures = self.figures["samples"] = []
        examples = self.examples["samples"] = {"order": [], "temperature": [], "text": []}
        for setting, ids in settings.items():
            order, temperature = setting
            counts = [coherent_words(text, self.vocabulary) for text in texts[setting]]
            entropies = sample_entropy(ids)
            figure = {
                "order": order,
                "temperature": temperature,
                "samples": len(ids),
                "coherence": coherence(texts[setting], self.vocabulary),
                "diversity": diversity(texts[setting], num_words),
                "diversity_words": num_words,
                "sample_entropy": sum(entropies) / len(entropies),
            }
            columns = {
                "words": [len(words(text)) for text in texts[setting]],
                "long_words": [long for _, long in counts],
                "known_long_words": [known for known, _ in counts],
                "entropy": entropies,
            }
            if self.judge is not None:
                judged = generative_perplexity(texts[setting], *self.judge, batch_size=args.batch_size)
                figure["generative_perplexity"] = judged.perplexity
                figure["judge_nll"], figure["judge_nll_standard_error"] = judged.nll
                columns["judge_nats"] = judged.sample_nll.tolist()
                columns["judge_tokens"] = judged.sample_tokens.tolist()
            figures.append(figure)
            columns |= {"order": [order] * len(ids), "temperature": [temperature] * len(ids), "text": texts[setting]}
            for name, column in columns.items():
                examples.setdefault(name, []).extend(column)
        curves = {}
        for each in figures[1:]:
            point = (each["temperature"], each["diversity"], each["coherence"])
            curves.setdefault(each["order"].replace("_", " "), []).append(point)
        reference = (figures[0]["diversity"], figures[0]["coherence"])
        plot_samples(folder / "samples.png", curves, reference, f"Samples: {self.title}")
        print_table(
            f"Samples ({num_words} words of each for the diversity)",
            ("order", "temperature", "coherence", "diversity", "entropy (nats)", "generative perplexity"),
            [
                (each["order"], shown(each["temperature"], 1))
                + tuple(shown(each[name], 3) for name in ("coherence", "diversity", "sample_entropy"))
                + (shown(each.get("generative_perplexity"), 2),)
                for each in figures
            ],
        )


def load_judge(args: EvaluationArguments, device: torch.device) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that judges samples, and its tokenizer.

    Raises:
        OSError: there is no such folder.
        ValueError: it cannot be loaded, or is no causal model.
    """
    check_is_there("--judge", args.judge)
    options = {"trust_remote_code": args.trust_remote_code}
    try:
        model = AutoModelForCausalLM.from_pretrained(args.judge, **options).to(device).eval()
        return model, AutoTokenizer.from_pretrained(args.judge, **options)
    except (OSError, ValueError) as error:
        raise ValueError(f"--judge {args.judge} cannot be loaded: {error}") from error


def check_arguments(args: EvaluationArguments, data: DataArguments) -> None:
    """Checks what can be checked before anything is loaded.

    Raises:
        FileNotFoundError: there is no model of `make pretrain`, and --model names no other.
        ValueError: for numbers that are out of range.
    """
    if args.model == EvaluationArguments.model and not Path(args.model).is_dir():
        raise FileNotFoundError(f"--model must be the folder of a model, there is no {args.model}: `make pretrain`.")
    names = ("elbo_draws", "elbo_samples", "blanks_per_example", "context_orders", "num_samples")
    for name in (*names, "batch_size") + (() if args.num_orders is None else ("num_orders",)):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(args, name)}.")
    for name, smallest in (("block_size", 2), ("max_examples", 1)):
        if getattr(data, name) < smallest:
            raise ValueError(f"--{name} must be at least {smallest}, got {getattr(data, name)}.")
    if min(args.temperatures, default=0) <= 0:
        raise ValueError(f"--temperatures must be above 0, at least one, got {args.temperatures}.")
    if len(set(args.blank_lengths)) < len(args.blank_lengths) or min(args.blank_lengths, default=0) < 1:
        raise ValueError(f"--blank_lengths must be different lengths of at least 1, got {args.blank_lengths}.")


def main(argv: list[str]) -> None:
    started = time.time()
    args, data = HfArgumentParser((EvaluationArguments, DataArguments)).parse_args_into_dataclasses(argv)
    try:
        check_arguments(args, data)
        model, tokenizer = load(args.model, args.device, "auto", args.trust_remote_code)
        measures, skipped = choose_measures(args, model.config.attention_variant)
        judge = load_judge(args, model.device) if args.judge is not None and "samples" in measures else None
        texts = data.load()
        rows = held_out_rows(texts["validation"], tokenizer, data)
        longest = max(map(len, rows["input_ids"])) + (tokenizer.bos_token_id is not None)
        most = model.config.max_position_embeddings
        if longest > most:
            raise ValueError(f"--block_size and BOS need {longest} positions, got max_position_embeddings={most}.")
        if {"infilling", "context_orders"} & set(measures) and max(args.blank_lengths) >= longest:
            rule = f"must be below the {longest} tokens of the longest row"
            raise ValueError(f"--blank_lengths {rule}, got {args.blank_lengths}.")
    except (OSError, ValueError) as error:
        sys.exit(f"evaluate.py: {error}")
    if "samples" in measures and judge is None:
        skipped = skipped | {"generative_perplexity": "no --judge was given"}
    for name, reason in skipped.items():
        print(f"{name} is left out: {reason}.")

    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    # What an earlier run measured must not stand beside this one's figures.
    for name in FILES + PICTURES:
        (folder / name).unlink(missing_ok=True)
    evaluation = Evaluation(model, tokenizer, rows, vocabulary_of(texts["train"]["text"]), judge, args)
    if {"any_order", "left_to_right", "elbo", "bound"} & set(measures):
        evaluation.likelihoods(measures, folder)
    if {"infilling", "context_orders"} & set(measures):
        evaluation.infilling("context_orders" in measures, folder)
    if "samples" in measures:
        evaluation.samples(folder)
    for name, columns in evaluation.examples.items():
        with replacing(folder / f"{name}.parquet") as temporary:
            Dataset.from_dict(columns).to_parquet(temporary)
    report = {
        **evaluation.figures,
        "left_out": skipped,
        "model": {
            "name": args.model,
            "attention_variant": model.config.attention_variant,
            "parameters": model.num_parameters(),
        },
        "data": {
            "source": data.text_source,
            "examples": len(rows),
            "characters": sum(rows["num_characters"]),
        },
        "settings": vars(data) | vars(args),
        "device": model.device.type,
        "seconds": round(time.time() - started, 1),
        "command": shlex.join(["examples/evaluate.py", *argv]),
        "versions": versions(),
    }
    write_json(folder / "evaluation.json", finite(report))
    print(f"evaluation.json, pictures and the examples behind them are in {folder}.")


if __name__ == "__main__":
    main(sys.argv[1:])
