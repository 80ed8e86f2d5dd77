# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""
Evaluate a trained model on held-out text: likelihoods in many orders, infilling, and sampled text.

| measure | meaning |
| --- | --- |
| any_order | NLL in uniform orders, exact in each order |
| left_to_right | NLL from left to right |
| elbo | NLL in uniform orders, estimated from one pass per order (bidirectional; for others it is any_order) |
| bound | multi-order bound: the probability averaged over K orders, K = 1, 2, 4, ... |
| infilling | NLL of blanks, and accuracy of greedy filling, by blank length; everything else is given |
| context_orders | NLL of the same blanks, averaged over K orders of the given tokens; it includes infilling |
| samples | coherence, diversity and entropy of samples over temperatures, perplexity under --judge |

The defaults evaluate the model of `make pretrain` on its text, in a minute on one CPU core:

    python examples/evaluate.py

Another model, with a left-to-right model that judges its samples, and only some measures:

    python examples/evaluate.py --model outputs/other --judge outputs/causal --measures left_to_right samples

Cut the text as for the training: give the same --block_size, --join_with and text arguments. Exact likelihoods of the
variant `bidirectional` need one pass per token, so they take longest (3 minutes).

The output folder then holds `evaluation.json` (results with standard errors and all settings), the examples behind them
(`likelihoods.parquet`, `infilling.parquet`, `samples.parquet`), and plots (`bound.png`, `infilling.png`,
`context_orders.png`, `samples.png`).
"""

import shlex
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser, PreTrainedModel, PreTrainedTokenizerBase
from transformers.hf_argparser import HfArg

from modeling_aoarm.cli import check_source, load_model
from modeling_aoarm.decoding_aoarm import default_context_order
from modeling_aoarm.evaluation import (
    bound_likelihood,
    collect_vocabulary,
    count_coherent_words,
    evaluate_context_orders,
    evaluate_infilling,
    evaluate_likelihood,
    measure_coherence,
    measure_diversity,
    measure_generative_perplexity,
    measure_sample_entropy,
    split_words,
)
from modeling_aoarm.evaluation.likelihood import make_generator
from modeling_aoarm.evaluation.plots import plot_estimates, plot_samples
from modeling_aoarm.evaluation.scripts import HeldOutRowsArguments, print_entries
from modeling_aoarm.io import convert_for_json, replacing, versions, write_json


MEASURES = ("any_order", "left_to_right", "elbo", "bound", "infilling", "context_orders", "samples")
# Measures that a variant gets only if --measures names them, and why.
SKIPPED = {
    "causal": dict.fromkeys(
        ("any_order", "elbo", "bound", "infilling", "context_orders"), "causal knows one order, from left to right"
    ),
    "bidirectional": {"context_orders": "the order of the given tokens changes nothing for bidirectional"},
}
SKIPPED_ELSEWHERE = {"elbo": "minus the ELBO is the any-order NLL"}
FILES = ("evaluation.json", "likelihoods.parquet", "infilling.parquet", "samples.parquet")
FILES += ("bound.png", "infilling.png", "context_orders.png", "samples.png")
ORDERS = ("left_to_right", "random", "confidence", "entropy", "margin")


@dataclass
class EvaluationArguments(HeldOutRowsArguments):
    """The model, the text, and what is measured."""

    model: str = HfArg(default="outputs/pretrain", help="Folder or Hub name of an any-order model.")
    judge: str | None = HfArg(default=None, help="Folder or Hub name of a causal model, for the perplexity of samples.")
    output_dir: str = HfArg(default="outputs/evaluation", help="Where everything is written.")
    measures: list[str] | None = HfArg(
        default=None, help="Default: all that tell something new for the variant.", metadata={"choices": MEASURES}
    )
    num_orders: int | None = HfArg(
        default=None, help="Orders of each row for any_order and bound. Default: 16, for bidirectional 4."
    )
    elbo_draws: int = HfArg(default=32, help="Passes over each row for elbo.")
    blank_lengths: list[int] = HfArg(default_factory=lambda: [1, 2, 4, 8, 16], help="Tokens of blanks.")
    blanks_per_example: int = HfArg(default=2, help="Blanks of each length in a row, each by itself.")
    infilling_order: str = HfArg(
        default="left_to_right", help="The order in which blanks are filled.", metadata={"choices": ORDERS}
    )
    context_orders: int = HfArg(default=8, help="Orders of the given tokens for context_orders.")
    num_samples: int = HfArg(default=64, help="Samples for each temperature and order.")
    sample_orders: list[str] | None = HfArg(
        default=None, help="Default: random and left_to_right, if the variant knows them.", metadata={"choices": ORDERS}
    )
    temperatures: list[float] = HfArg(default_factory=lambda: [0.4, 0.6, 0.8, 1.0, 1.2], help="Of samples.")


def choose_measures(args: EvaluationArguments, variant: str) -> tuple[list[str], dict[str, str]]:
    """Returns the measures, and the reasons why others are left out."""
    skipped = SKIPPED.get(variant, SKIPPED_ELSEWHERE)
    if args.measures is None:
        return [name for name in MEASURES if name not in skipped], skipped
    for name in args.measures:
        if variant == "causal" and name in skipped:
            raise ValueError(f"--measures must fit the variant, got {name}: {skipped[name]}.")
    return [name for name in MEASURES if name in args.measures], {}


@dataclass
class Evaluation:
    """Measures a model. Results go into `report`, the examples behind them into `examples`, plots into `folder`."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    rows: Dataset
    args: EvaluationArguments
    folder: Path
    report: dict[str, dict | list] = field(default_factory=dict)
    examples: dict[str, dict[str, list]] = field(default_factory=dict)

    def __post_init__(self):
        self.inputs = (self.model, self.rows, self.tokenizer)
        self.common = {"seed": self.args.seed, "batch_size": self.args.batch_size}
        self.variant = self.model.config.attention_variant
        self.title = f"{self.variant}, {self.model.num_parameters():,} parameters"

    def measure_likelihoods(self, measures: list[str]) -> None:
        """Measures any_order, left_to_right, elbo and bound."""
        args, results = self.args, {}
        options = self.common | {"characters": sum(self.rows["num_characters"])}
        if {"any_order", "bound"} & set(measures):
            draws = args.num_orders or (4 if self.variant == "bidirectional" else 16)
            results["any_order"] = evaluate_likelihood(*self.inputs, exact=True, draws=draws, **options)
        if "left_to_right" in measures:
            results["left_to_right"] = evaluate_likelihood(
                *self.inputs, "left_to_right", exact=True, draws=1, **options
            )
        if "elbo" in measures:
            results["elbo"] = evaluate_likelihood(*self.inputs, draws=args.elbo_draws, **options)
        columns = self.examples["likelihoods"] = {
            "example_index": self.rows["example_index"][:],
            "text": self.tokenizer.batch_decode(self.rows["input_ids"][:]),
            "characters": self.rows["num_characters"][:],
            "tokens": next(iter(results.values())).example_tokens[0].tolist(),
        }
        table = []
        for name, result in results.items():
            columns[f"{name}_nats"] = result.example_nll.T.tolist()
            self.report[name] = result.to_dict()
            table.append({"measure": name, "orders": len(result.example_nll), **self.report[name]})
        if "bound" in measures:
            bound = bound_likelihood(results["any_order"])
            self.report["bound"] = bound.to_dict()
            table += [{"measure": "bound", **entry} for entry in self.report["bound"]]
            for size in bound.group_nll:
                columns[f"bound_{size}_nats"] = bound.example_nll(size).tolist()
            panels = {"bits per character": {"bound": {k: bound.bits_per_character(k) for k in bound.group_nll}}}
            # The bound of one order is the any-order NLL, which needs no line of its own.
            lines = {name: results[name].bits_per_character for name in results if name != "any_order"}
            title = f"Multi-order bound: {self.title}"
            plot_estimates(self.folder / "bound.png", panels, title, "averaged orders", lines)
        errors = ("bits_per_character", "bits_per_character_standard_error", "nll")
        print_entries("Likelihood; standard errors are over orders", table, "measure", "orders", *errors)

    def measure_infilling(self, with_context_orders: bool) -> None:
        """Measures infilling, and context_orders on the same blanks."""
        args = self.args
        result = evaluate_infilling(
            *self.inputs,
            args.blank_lengths,
            blanks_per_example=args.blanks_per_example,
            decoding_order=args.infilling_order,
            **self.common,
        )
        self.report["infilling"] = result.to_dict()
        # Canvas columns count the BOS, and the row's tokens do not.
        offset, blanks, ids = int(self.tokenizer.bos_token_id is not None), result.blanks, self.rows["input_ids"][:]
        original = [ids[each.example][each.start - offset : each.start - offset + each.length] for each in blanks]
        columns = self.examples["infilling"] = {
            "example_index": [self.rows["example_index"][each.example] for each in blanks],
            "start": [each.start - offset for each in blanks],
            "blank_length": [each.length for each in blanks],
            "nats": result.blank_nll.tolist(),
            "right_tokens": result.right_tokens.tolist(),
            "is_right": result.is_right.tolist(),
            "blank": self.tokenizer.batch_decode(original),
            "filled": self.tokenizer.batch_decode(result.filled),
        }
        nll, whole, tokens = (
            {length: estimate(length) for length in sorted(args.blank_lengths)}
            for estimate in (result.nll, result.accuracy, result.token_accuracy)
        )
        panels = {"nats per blank token": {"NLL": nll}, "share that is right": {"blanks": whole, "tokens": tokens}}
        plot_estimates(self.folder / "infilling.png", panels, f"Infilling: {self.title}", "blank length in tokens")
        names = [f"{name}{end}" for name in ("nll", "accuracy", "token_accuracy") for end in ("", "_standard_error")]
        title = f"Infilling, {args.infilling_order}; standard errors are over rows"
        print_entries(title, self.report["infilling"], "blank_length", "blanks", *names)
        if not with_context_orders:
            return
        averages = evaluate_context_orders(*self.inputs, blanks, num_orders=args.context_orders, **self.common)
        own_order, own = default_context_order(self.model.generation_config), result.nll().value
        entries = averages.to_dict()
        self.report["context_orders"] = {"own_order": own_order, "own_order_nll": own, "averages": entries}
        for size in averages.group_nll:
            columns[f"context_orders_{size}_nats"] = averages.example_nll(size).tolist()
        panels = {"nats per blank token": {"mean": {size: averages.nll(size) for size in averages.group_nll}}}
        title, path = f"Context orders: {self.title}", self.folder / "context_orders.png"
        plot_estimates(path, panels, title, "averaged orders", {f"given tokens {own_order}": own})
        title = f"Blanks, averaged over orders of the given tokens; {own:.4f} nats per token in {own_order} order"
        print_entries(title, entries, "orders", "nll", "standard_error")

    def sample(self, order: str, temperature: float) -> list[list[int]]:
        """Samples token ids as long as the longest row, without special tokens."""
        args, bos, samples = self.args, self.tokenizer.bos_token_id, []
        length = max(map(len, self.rows["input_ids"])) + (bos is not None)
        for start in range(0, args.num_samples, args.batch_size):
            numbers = range(start, min(start + args.batch_size, args.num_samples))
            canvas = torch.zeros(len(numbers), length, dtype=torch.int64)
            # Without a BOS samples begin with the first tokens of rows.
            first = [self.rows["input_ids"][number % len(self.rows)][0] if bos is None else bos for number in numbers]
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
                generator=[make_generator(args.seed, number) for number in numbers],
            )
            samples += filled[:, int(bos is not None) :].tolist()
        return samples

    def measure_samples(self, vocabulary: frozenset[str], judge: tuple | None) -> None:
        """Measures samples of each order and temperature, and the same number of held-out rows."""
        args = self.args
        orders = args.sample_orders or (["left_to_right"] if self.variant == "causal" else ["random", "left_to_right"])
        settings = {("held-out text", None): self.rows["input_ids"][: args.num_samples]}
        settings |= {(order, each): self.sample(order, each) for order in orders for each in args.temperatures}
        texts = {setting: self.tokenizer.batch_decode(ids) for setting, ids in settings.items()}
        # Only ratios of the same number of words can be compared.
        num_words = min(sum(len(split_words(text)) for text in each) for each in texts.values()) or None
        entries, columns = [], {}
        for (order, temperature), ids in settings.items():
            own, entropies = texts[order, temperature], measure_sample_entropy(ids)
            counts = [count_coherent_words(text, vocabulary) for text in own]
            entry = {
                "order": order,
                "temperature": temperature,
                "samples": len(ids),
                "coherence": measure_coherence(own, vocabulary),
                "diversity": measure_diversity(own, num_words),
                "diversity_words": num_words,
                "sample_entropy": sum(entropies) / len(entropies),
            }
            rows = {"order": [order] * len(ids), "temperature": [temperature] * len(ids), "text": own}
            rows |= {"words": [len(split_words(text)) for text in own], "long_words": [long for _, long in counts]}
            rows |= {"known_long_words": [known for known, _ in counts], "entropy": entropies}
            if judge is not None:
                judged = measure_generative_perplexity(own, *judge, batch_size=args.batch_size)
                entry["generative_perplexity"] = judged.perplexity
                entry["judge_nll"], entry["judge_nll_standard_error"] = judged.nll
                rows |= {"judge_nats": judged.sample_nll.tolist(), "judge_tokens": judged.sample_tokens.tolist()}
            entries.append(entry)
            for name, column in rows.items():
                columns.setdefault(name, []).extend(column)
        self.report["samples"], self.examples["samples"] = entries, columns
        points = [(each["temperature"], each["diversity"], each["coherence"]) for each in entries]
        curves = {}
        for entry, point in zip(entries[1:], points[1:], strict=True):
            curves.setdefault(entry["order"].replace("_", " "), []).append(point)
        plot_samples(self.folder / "samples.png", curves, points[0][1:], f"Samples: {self.title}")
        names = ("coherence", "diversity", "sample_entropy", "generative_perplexity")
        title = f"Samples ({num_words} words of each for the diversity, entropy in nats)"
        print_entries(title, entries, "order", "temperature", *names)


def load_judge(args: EvaluationArguments, device: torch.device) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads the causal model that judges samples, and its tokenizer."""
    check_source("--judge", args.judge)
    options = {"trust_remote_code": args.trust_remote_code}
    try:
        model = AutoModelForCausalLM.from_pretrained(args.judge, **options).to(device).eval()
        return model, AutoTokenizer.from_pretrained(args.judge, **options)
    except (OSError, ValueError) as error:
        raise ValueError(f"--judge {args.judge} cannot be loaded: {error}") from error


def check_arguments(args: EvaluationArguments) -> None:
    """Checks what can be checked before anything is loaded."""
    if args.model == EvaluationArguments.model and not Path(args.model).is_dir():
        raise FileNotFoundError(f"--model must be the folder of a model, there is no {args.model}: `make pretrain`.")
    names = ("elbo_draws", "blanks_per_example", "context_orders", "num_samples")
    args.check_least(**dict.fromkeys(names, 1), **({} if args.num_orders is None else {"num_orders": 1}))
    if min(args.temperatures, default=0) <= 0:
        raise ValueError(f"--temperatures must be above 0, at least one, got {args.temperatures}.")
    if len(set(args.blank_lengths)) < len(args.blank_lengths) or min(args.blank_lengths, default=0) < 1:
        raise ValueError(f"--blank_lengths must be different lengths of at least 1, got {args.blank_lengths}.")


def main(argv: list[str]) -> None:
    started = time.time()
    (args,) = HfArgumentParser(EvaluationArguments).parse_args_into_dataclasses(argv)
    try:
        check_arguments(args)
        model, tokenizer = load_model(args.model, args.device, "auto", args.trust_remote_code)
        measures, skipped = choose_measures(args, model.config.attention_variant)
        judge = load_judge(args, model.device) if args.judge is not None and "samples" in measures else None
        texts = args.load()
        rows = args.select_rows(texts["validation"], tokenizer, model.config)
        longest = max(map(len, rows["input_ids"])) + (tokenizer.bos_token_id is not None)
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
    # Results of an earlier run must not stand beside those of this one.
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    evaluation = Evaluation(model, tokenizer, rows, args, folder)
    if {"any_order", "left_to_right", "elbo", "bound"} & set(measures):
        evaluation.measure_likelihoods(measures)
    if {"infilling", "context_orders"} & set(measures):
        evaluation.measure_infilling("context_orders" in measures)
    if "samples" in measures:
        evaluation.measure_samples(collect_vocabulary(texts["train"]["text"]), judge)
    for name, columns in evaluation.examples.items():
        with replacing(folder / f"{name}.parquet") as temporary:
            Dataset.from_dict(columns).to_parquet(temporary)
    variant, parameters = model.config.attention_variant, model.num_parameters()
    report = evaluation.report | {
        "left_out": skipped,
        "model": {"name": args.model, "attention_variant": variant, "parameters": parameters},
        "data": {"source": args.text_source, "examples": len(rows), "characters": sum(rows["num_characters"])},
        "settings": vars(args),
        "device": model.device.type,
        "seconds": round(time.time() - started, 1),
        "command": shlex.join(["examples/evaluate.py", *argv]),
        "versions": versions(),
    }
    write_json(folder / "evaluation.json", convert_for_json(report))
    print(f"evaluation.json, plots and the examples behind them are in {folder}.")


if __name__ == "__main__":
    main(sys.argv[1:])
