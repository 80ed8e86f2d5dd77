# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""
Compare the log-probabilities that models give to the same held-out text, in random and in chosen orders.

| way | what the number is |
| --- | --- |
| elbo | an estimate of `random` with one pass for each sample (`bidirectional` only) |
| random | mean log-probability over drawn orders, exact in each; on average it bounds that of the mixture from below |
| mixture | log of the mean probability over the same orders: a closer bound of the mixture of all orders |
| left_to_right | exact |
| confidence, entropy, margin | exact under this way of decoding: the model chooses the next blank, the text fills it |

A text has one exact log-probability for each way of decoding, and the exact ones may be compared with each other, also
between models. An ELBO against an exact number is no fair comparison: it is a bound, and of another quantity, the
mixture of all orders. The adaptive log-probabilities bound nothing.

The defaults take the model of `make pretrain`, in a minute on one CPU core:

    python examples/score_orders.py

Several models, which must have one tokenizer. `bidirectional` reads the whole row for each token and order (minutes):

    python examples/score_orders.py --models outputs/pretrain outputs/bidirectional

Cut the text as for the training: give the same --block_size, --join_with and text arguments. The output folder then
holds `score_orders.json`, with the nats of every row, and `score_orders.png`.
"""

import math
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from tqdm.auto import tqdm
from transformers import HfArgumentParser, PreTrainedModel
from transformers.hf_argparser import HfArg

from modeling_aoarm.canvas_aoarm import padded_rows
from modeling_aoarm.cli import load_model
from modeling_aoarm.decoding_aoarm import ADAPTIVE_ORDERS
from modeling_aoarm.evaluation import estimate_ratio
from modeling_aoarm.evaluation.likelihood import make_generator
from modeling_aoarm.evaluation.scripts import HeldOutRowsArguments, print_entries
from modeling_aoarm.infilling_aoarm import with_bos
from modeling_aoarm.io import convert_for_json, save_figure, versions, write_json


# What each number is, from the loosest to the exact ones.
MEANINGS = {"elbo": "estimate of random", "random": "bound of the mixture", "mixture": "closer bound of the mixture"}
PRINTED = ("nats_per_token", "bits_per_character", "over_random")
EXACT = ("left_to_right", *ADAPTIVE_ORDERS)
WAYS = (*MEANINGS, *EXACT)


@dataclass
class ScoreArguments(HeldOutRowsArguments):
    """The models, the text, and how often it is scored."""

    models: list[str] = HfArg(default_factory=lambda: ["outputs/pretrain"], help="Folders or Hub names of models.")
    num_orders: int = HfArg(default=8, help="Random orders of each row.")
    elbo_samples: int = HfArg(default=64, help="Passes over each row for the ELBO.")
    output_dir: str = HfArg(default="outputs/score_orders", help="Where everything is written.")


def list_calls(args: ScoreArguments, variant: str) -> list[dict]:
    """Lists the arguments of `score`, one call after the other, that a variant takes."""
    left_to_right = {"decoding_order": "left_to_right"}
    if variant == "causal":
        return [left_to_right]
    elbo = [{"method": "elbo", "num_samples": args.elbo_samples}] if variant == "bidirectional" else []
    random = {"decoding_order": "random", "num_orders": args.num_orders}
    return [*elbo, random, left_to_right, *({"decoding_order": order} for order in ADAPTIVE_ORDERS)]


def score_rows(
    model: PreTrainedModel, sentences: list[list[int]], args: ScoreArguments, **options
) -> tuple[np.ndarray, np.ndarray | None]:
    """Scores all tokens of each row but the first. Results do not depend on the batch size.

    Args:
        model: the model.
        sentences: token ids of each row, BOS included.
        args: batch size and seed. Row i has the same random orders in every model.
        options: how to score, see `score`.

    Returns:
        Minus the mean log-probability over orders, and minus the log of the mean probability, float64 `[rows]`, nats;
        `None` where `score` gives no such mean.
    """
    means, mixtures = [], []
    for start in tqdm(
        range(0, len(sentences), args.batch_size), desc=" ".join(map(str, options.values())), leave=False
    ):
        rows = sentences[start : start + args.batch_size]
        ids, mask = (each.to(model.device) for each in padded_rows(rows))
        generators = [make_generator(args.seed, start + number) for number in range(len(rows))]
        scores = model.score(ids, attention_mask=mask, generator=generators, **options)
        means.append(scores.mean_log_likelihood.double().cpu())
        if scores.log_mean_likelihood is not None:
            mixtures.append(scores.log_mean_likelihood.double().cpu())
    return -torch.cat(means).numpy(), -torch.cat(mixtures).numpy() if mixtures else None


def measure_model(
    name: str,
    model: PreTrainedModel,
    sentences: list[list[int]],
    characters: list[int],
    args: ScoreArguments,
) -> list[dict]:
    """Scores the rows in all ways. Standard errors are over rows.

    Args:
        name: the model's.
        model: the model.
        sentences: token ids of each row, BOS included.
        characters: how many characters the scored tokens of each row spell.
        args: the script's arguments.

    Returns:
        For each way `nats_per_token` and `bits_per_character`, lower is better, with their standard errors;
        `over_random`, the difference of nats per token to random orders of the same model, whose standard error takes
        the two within each row; `seconds` of its call; and `row_nats`.
    """
    variant, tokens, nats, seconds = model.config.attention_variant, [len(ids) - 1 for ids in sentences], {}, {}
    for options in list_calls(args, variant):
        started = time.perf_counter()
        mean, mixture = score_rows(model, sentences, args, **options)
        # The mean over random orders and their mixture come from one call.
        scored = {"random": mean, "mixture": mixture}
        if options.get("decoding_order") != "random":
            scored = {options.get("method") or options["decoding_order"]: mean}
        nats |= scored
        seconds |= dict.fromkeys(scored, round(time.perf_counter() - started, 1))
    entries = []
    for way, own in nats.items():
        entry = {"model": name, "variant": variant, "way": way, "meaning": MEANINGS.get(way, "exact")}
        estimates = {
            "nats_per_token": estimate_ratio(own, tokens),
            "bits_per_character": estimate_ratio(own / math.log(2), characters),
            "over_random": (None, None),
        }
        if "random" in nats and way != "random":
            estimates["over_random"] = estimate_ratio(own - nats["random"], tokens)
        for measure, (value, error) in estimates.items():
            entry |= {measure: value, f"{measure}_standard_error": error}
        entries.append(entry | {"seconds": seconds[way], "row_nats": own.tolist()})
    return entries


def format_entry(entry: dict) -> dict[str, str]:
    """Formats an entry of [`measure_model`] for the table: estimates with their standard errors."""
    cells = {}
    for name in PRINTED:
        value, error = entry[name], entry[f"{name}_standard_error"]
        cells[name] = None if value is None else f"{value:.4f}" + ("" if error is None else f" ± {error:.4f}")
    return {name: entry[name] for name in ("variant", "way", "meaning")} | cells


def draw(entries: list[dict], title: str) -> Figure:
    """Draws nats per token, and their differences to random orders, with bars of one standard error."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    names = list(dict.fromkeys(entry["model"] for entry in entries))
    ways = [way for way in WAYS if any(entry["way"] == way for entry in entries)]
    for number, name in enumerate(names):
        own = [entry for entry in entries if entry["model"] == name]
        # Models stand side by side within each way.
        shift = 0.5 * ((number + 0.5) / len(names) - 0.5)
        style = {"fmt": "o", "capsize": 3, "color": f"C{number}"}
        label = f"{own[0]['variant']} ({name})"
        for axes, value, error in (
            (left, "nats_per_token", "nats_per_token_standard_error"),
            (right, "over_random", "over_random_standard_error"),
        ):
            drawn = [entry for entry in own if entry[value] is not None]
            if drawn:
                places = [ways.index(entry["way"]) + shift for entry in drawn]
                errors = [entry[error] or 0 for entry in drawn]
                axes.errorbar([entry[value] for entry in drawn], places, xerr=errors, label=label, **style)
    right.axvline(0, color="0.4", linewidth=1)
    exact = [number for number, way in enumerate(ways) if way in EXACT]
    for axes in (left, right):
        axes.axhspan(exact[0] - 0.5, exact[-1] + 0.5, color="0.94", zorder=0)
        axes.grid(axis="x", alpha=0.3)
    left.set_yticks(range(len(ways)), [way.replace("_", " ") for way in ways])
    left.set_ylim(len(ways) - 0.5, -0.5)
    left.set(xlabel="nats per token (lower is better)", title="Exact on the grey ground; above it, bounds")
    right.set(xlabel="nats per token, difference to random orders of the same model", title="Within rows")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize="small")
    figure.suptitle(title)
    return figure


def main(argv: list[str]) -> None:
    started = time.time()
    (args,) = HfArgumentParser(ScoreArguments).parse_args_into_dataclasses(argv)
    try:
        args.check_least(num_orders=1, elbo_samples=1)
        if len(set(args.models)) < len(args.models) or not args.models:
            raise ValueError(f"--models must be different models, at least one, got {args.models}.")
        if args.models == ["outputs/pretrain"] and not Path(args.models[0]).is_dir():
            raise FileNotFoundError(
                f"--models must be folders of models, there is no {args.models[0]}: `make pretrain`."
            )
        texts, models, sentences = args.load()["validation"], {}, None
        for name in args.models:
            models[name], tokenizer = load_model(name, args.device, "auto", args.trust_remote_code)
            rows = args.select_rows(texts, tokenizer, models[name].config)
            own = [with_bos(tokenizer, list(ids)) for ids in rows["input_ids"]]
            if own != (sentences or own):
                raise ValueError(f"--models must have one tokenizer, got other tokens of the text for {name}.")
            sentences, characters = own, rows["num_characters"][:]
    except (OSError, ValueError) as error:
        sys.exit(f"score_orders.py: {error}")

    entries = [
        entry for name, model in models.items() for entry in measure_model(name, model, sentences, characters, args)
    ]
    tokens = [len(ids) - 1 for ids in sentences]
    title = f"{len(sentences)} held-out rows of at most {max(tokens)} tokens"
    title_of_table = f"{title}; NLL, lower is better; standard errors are over rows"
    print_entries(title_of_table, [format_entry(entry) for entry in entries], "variant", "way", "meaning", *PRINTED)
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    described = [
        {"name": name, "attention_variant": model.config.attention_variant, "parameters": model.num_parameters()}
        for name, model in models.items()
    ]
    report = {
        "models": described,
        "data": {"source": args.text_source, "row_tokens": tokens, "row_characters": characters},
        "entries": entries,
        "settings": vars(args),
        "device": next(iter(models.values())).device.type,
        "seconds": round(time.time() - started, 1),
        "command": shlex.join(["examples/score_orders.py", *argv]),
        "versions": versions(),
    }
    write_json(folder / "score_orders.json", convert_for_json(report))
    save_figure(folder / "score_orders.png", draw(entries, title))
    print(f"score_orders.json and score_orders.png are in {folder}.")


if __name__ == "__main__":
    main(sys.argv[1:])
