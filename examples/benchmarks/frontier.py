# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""
Measure the quality of filled text against the forward passes that it takes, for all ways of decoding.

    python examples/benchmarks/frontier.py                                              # after `make pretrain`
    python examples/benchmarks/frontier.py --models outputs/pretrain outputs/decoupled  # the first one is the judge
    python examples/benchmarks/frontier.py --models outputs/smollm2 --judge CHECKPOINT --train_file articles.jsonl

Each canvas is a row of held-out text with one long blank in the middle, `--shortest` to `--longest` tokens. All models
fill the same blanks, greedily and by sampling at temperature 1, in these ways:

| family | points |
| --- | --- |
| one by one | from left to right, in a random order, and in confidence order (the surest blank first) |
| k per pass | `--tokens_per_step` with numbers, in confidence order and in a random order |
| linear(n), cosine(n) | all blanks in n passes, in confidence order |
| threshold(p), entropy(bound) | as many blanks per pass as the model is sure about |
| drafts | exact speculation with `--draft_lengths`, from left to right and in a random order |

What is measured, with standard errors over canvases:

- passes per token: the passes up to a canvas's last token, divided by its blanks. Adaptive orders and several tokens
  per pass need a pass that reads the given text. A pass is not a time: adaptive orders ask about all remaining blanks
  in each pass, and drafts add rows.
- nats per token: minus the log-probability of the blank and the text behind it under a left-to-right judge, given the
  text before, divided by their tokens. On one canvas all fillings share the text behind the blank, so this ranks them
  as the judge's own probability of the filling given both sides does.
- recovered: the share of blank tokens, and of whole blanks, that are equal to the text.
- different: different tokens in a blank, divided by its tokens. A judge likes repetitions; they show here.

The judge (`--judge`) is a left-to-right checkpoint or an any-order model with the same vocabulary: a folder, a GGUF
file or a name on the Hub. By default the first model judges, from left to right. Runs on the CPU in float32, about
ten minutes for a small model. Writes `benchmark_frontier.json` and `benchmark_frontier.png` to `--output_dir`.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from speculation import cut_canvases
from timing import BenchmarkArguments, Report, load_checkpoint, parse_arguments, print_table
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from zero_shot import hash_windows, score_decoder

from modeling_aoarm import AOARMForCausalLM, AOARMForMaskedLM, model_class_for
from modeling_aoarm.data.text import TextArguments
from modeling_aoarm.decoding_aoarm import check_decoding_options
from modeling_aoarm.evaluation import Blank, count_right_tokens, estimate_ratio, place_middles
from modeling_aoarm.evaluation.likelihood import make_generator


ONE_BY_ONE, ORIGINAL = "one by one", "original text"
# The order of the one-by-one decoding that a family starts from, and how the family is drawn.
FAMILIES = {
    "k per pass, confidence": ("confidence", "#1f5fa8", "o-"),
    "k per pass, random": ("random", "0.55", "o-"),
    "linear(n)": ("confidence", "#7fb0e0", "s:"),
    "cosine(n)": ("confidence", "#3a8f3a", "s--"),
    "threshold(p)": ("confidence", "#c8501e", "^-"),
    "entropy(bound)": ("confidence", "#c2a000", "v-"),
    "drafts, left to right": ("left_to_right", "#7a4fa3", "d-"),
    "drafts, random": ("random", "#b57edc", "d--"),
}
ORDERS = {"left_to_right": "left to right", "random": "random", "confidence": "confidence"}
STEPS = ["2", "4", "8", "linear(3)", "linear(6)", "linear(12)", "cosine(3)", "cosine(6)", "cosine(12)"]
STEPS += [f"threshold({bound})" for bound in (0.2, 0.35, 0.5, 0.7, 0.9)]
STEPS += [f"entropy({bound})" for bound in (0.1, 0.3, 1.0, 3.0, 6.0)]
QUICK = dict(
    canvases=3,
    block_size=24,
    shortest=3,
    longest=5,
    margin=2,
    tokens_per_step=["2", "linear(2)", "cosine(2)", "threshold(0)", "threshold(0.9)", "entropy(0.1)"],
    draft_lengths=[2],
)


@dataclass
class FrontierArguments(TextArguments, BenchmarkArguments):
    """Arguments of the benchmark of quality against passes."""

    models: list[str] = field(
        default_factory=lambda: ["outputs/pretrain"], metadata={"help": "Any-order models: folders or Hub names."}
    )
    judge: str | None = field(
        default=None, metadata={"help": "The model that judges from left to right. Default: the first of --models."}
    )
    canvases: int = field(default=128, metadata={"help": "Number of canvases."})
    block_size: int = field(default=64, metadata={"help": "Columns per canvas without BOS."})
    shortest: int = field(default=16, metadata={"help": "Fewest tokens of a blank."})
    longest: int = field(default=32, metadata={"help": "Most tokens of a blank."})
    margin: int = field(default=8, metadata={"help": "Fewest given tokens on either side of a blank."})
    tokens_per_step: list[str] = field(
        default_factory=lambda: STEPS, metadata={"help": "Values of tokens_per_step: 2, linear(6), threshold(0.9), ..."}
    )
    draft_lengths: list[int] = field(default_factory=lambda: [1, 2, 4], metadata={"help": "Drafts per pass."})
    sampling: bool = field(default=True, metadata={"help": "Also sample at temperature 1, not only greedily."})
    batch_size: int = field(default=16, metadata={"help": "Canvases per call. It changes no result."})

    def __post_init__(self):
        super().__post_init__()
        self.check_at_least(1, "canvases", "shortest", "margin", "draft_lengths", "batch_size")
        self.check_at_least(2, "block_size")
        for value in self.tokens_per_step:
            check_decoding_options(None, read_step(value), None)


def read_step(value: str) -> int | str:
    """Reads a value of `tokens_per_step`: a number of tokens, or a rule by name."""
    return int(value) if value.isdecimal() else value


def list_ways(tokens_per_step: Sequence[str], draft_lengths: Sequence[int]) -> dict[tuple[str, str], dict[str, Any]]:
    """Lists the ways of decoding: arguments of `generate` by family and point.

    Args:
        tokens_per_step: see [`FrontierArguments`].
        draft_lengths: none for models without drafts.
    """
    ways = {(ONE_BY_ONE, name): {"decoding_order": order, "tokens_per_step": 1} for order, name in ORDERS.items()}
    for value in tokens_per_step:
        step, name = read_step(value), value.partition("(")[0]
        if isinstance(step, int):
            for order in ("confidence", "random"):
                ways[f"k per pass, {order}", value] = {"decoding_order": order, "tokens_per_step": step}
            continue
        family = next(family for family in FAMILIES if family.startswith(name))
        # The rules that count tokens by certainty bring their own order.
        order = "confidence" if name in ("linear", "cosine") else None
        ways[family, value] = {"decoding_order": order, "tokens_per_step": step}
    for order in ("left_to_right", "random"):
        for length in draft_lengths:
            ways[f"drafts, {ORDERS[order]}", str(length)] = {"decoding_order": order, "draft_length": length}
    return ways


@dataclass
class Canvases:
    """Rows of held-out text with a blank each.

    Attributes:
        ids: int64 `[canvases, columns]`.
        blanks: one of each canvas.
    """

    ids: torch.Tensor
    blanks: list[Blank]

    @property
    def mask(self) -> torch.Tensor:
        """The blank columns, bool `[canvases, columns]`."""
        mask = torch.zeros_like(self.ids, dtype=torch.bool)
        for row, blank in zip(mask, self.blanks, strict=True):
            row[blank.start : blank.start + blank.length] = True
        return mask


@dataclass
class Filled:
    """Filled canvases.

    Attributes:
        ids: int64 `[canvases, columns]`.
        passes: int64 `[canvases]`, the forward passes up to the last token of each canvas, whatever the batch is.
    """

    ids: torch.Tensor
    passes: torch.Tensor


def fill(
    model: AOARMForCausalLM | AOARMForMaskedLM,
    canvases: Canvases,
    options: dict[str, Any],
    do_sample: bool,
    batch_size: int,
    seed: int,
) -> Filled:
    """Fills the blanks, batch by batch. Each canvas has its own seed, the same for all ways.

    Args:
        model: the model.
        canvases: the canvases.
        options: the way of decoding, arguments of `generate`.
        do_sample: whether to sample at temperature 1. Otherwise greedily.
        batch_size: canvases per call.
        seed: seed of random orders and samples.
    """
    outputs, mask = [], canvases.mask
    for numbers in torch.arange(len(mask)).split(batch_size):
        output = model.generate(
            canvases.ids[numbers],
            generation_mask=mask[numbers],
            # Each canvas keeps its number of blanks.
            eos_token_id=None,
            generator=[make_generator(seed, number) for number in numbers.tolist()],
            return_dict_in_generate=True,
            **({"do_sample": True, "top_k": 0} if do_sample else {"do_sample": False}),
            **options,
        )
        outputs.append((output.sequences, output.decoding_steps.amax(1) + 1))
    return Filled(*(torch.cat(each) for each in zip(*outputs, strict=True)))


def judge_tokens(judge: PreTrainedModel, ids: torch.Tensor, batch_size: int) -> torch.Tensor:
    """Computes the judge's nats (minus the log-probability) of each token, given those to its left.

    Args:
        judge: a model that reads from left to right.
        ids: int64 `[canvases, columns]`.
        batch_size: canvases per pass.

    Returns:
        float64 `[canvases, columns]`, 0 in the first column.
    """
    return torch.cat([-score_decoder(judge, part).double() for part in ids.split(batch_size)])


def count(canvases: Canvases, filled: Filled, nats: torch.Tensor) -> dict[str, list[float]]:
    """Counts what each canvas has, by name, `[canvases]` each.

    Args:
        canvases: the canvases, with the text in the blanks.
        filled: the same, filled.
        nats: what the judge says of the filled ones, `[canvases, columns]`.

    Returns:
        The numbers of `blank` tokens and of `judged` ones (the blank and the text behind it), their nats
        (`blank_nats`, `judged_nats`), `passes`, and the numbers of `right` and of `different` blank tokens.
    """
    mask = canvases.mask
    is_judged = mask.cummax(1).values
    fillings, texts = (
        [row[own].tolist() for row, own in zip(ids, mask, strict=True)] for ids in (filled.ids, canvases.ids)
    )
    return {
        "blank": mask.sum(1).tolist(),
        "judged": is_judged.sum(1).tolist(),
        "blank_nats": (nats * mask).sum(1).tolist(),
        "judged_nats": (nats * is_judged).sum(1).tolist(),
        "passes": filled.passes.tolist(),
        "right": count_right_tokens(fillings, texts),
        "different": [len(set(own)) for own in fillings],
    }


def summarise(counts: dict[str, list[float]], reference: dict[str, list[float]]) -> dict[str, float | None]:
    """Computes the measures of a way, each followed by its standard error over canvases.

    Args:
        counts: the way's, see [`count`].
        reference: those of one by one in confidence order on the same canvases.
    """
    gains = np.subtract(counts["judged_nats"], reference["judged_nats"])
    is_right = np.equal(counts["right"], counts["blank"])
    measures = {
        "passes_per_token": estimate_ratio(counts["passes"], counts["blank"]),
        "nats_per_token": estimate_ratio(counts["judged_nats"], counts["judged"]),
        "nats_to_one_by_one": estimate_ratio(gains, counts["judged"]),
        "nats_in_blank": estimate_ratio(counts["blank_nats"], counts["blank"]),
        "recovered": estimate_ratio(counts["right"], counts["blank"]),
        "recovered_blanks": estimate_ratio(is_right, np.ones(len(is_right))),
        "different": estimate_ratio(counts["different"], counts["blank"]),
    }
    entry = {}
    for name, estimate in measures.items():
        entry[name], entry[f"{name}_standard_error"] = estimate
    return entry


def measure(name: str, judge: PreTrainedModel, canvases: Canvases, arguments: FrontierArguments) -> list[dict]:
    """Measures all ways of decoding with a model.

    Returns:
        An entry for the original text, whose passes have no meaning, and one for each kind of token choice (`tokens`:
        greedy or sampled), family and point. They have the measures of [`summarise`].
    """
    model = load_model(name)
    variant = model.config.attention_variant
    # Without a cache there are no drafts to verify.
    drafts = () if variant == "bidirectional" else arguments.draft_lengths
    ways = list_ways(arguments.tokens_per_step, drafts)
    size = arguments.batch_size

    def describe(filled: Filled) -> dict[str, list[float]]:
        return count(canvases, filled, judge_tokens(judge, filled.ids, size))

    choices = ("greedy", "sampled") if arguments.sampling else ("greedy",)
    runs = [(choice, *way) for choice in choices for way in ways]
    counts = {}
    for choice, family, point in tqdm(runs, desc=name, unit="way"):
        how = (ways[family, point], choice == "sampled", size, arguments.seed)
        counts[choice, family, point] = describe(fill(model, canvases, *how))
    text = describe(Filled(canvases.ids, torch.zeros(len(canvases.ids), dtype=torch.int64)))
    counts = {("text", ORIGINAL, ""): text, **counts}
    header = {"model": name, "attention_variant": variant, "parameters": model.num_parameters()}
    entries = []
    for (choice, family, point), own in counts.items():
        reference = counts["greedy" if choice == "text" else choice, ONE_BY_ONE, "confidence"]
        where = {"tokens": choice, "family": family, "point": point}
        entries.append({**header, **where, **summarise(own, reference)})
    return entries


def load_model(name: str) -> AOARMForCausalLM | AOARMForMaskedLM:
    """Loads an any-order model in float32.

    Raises:
        ValueError: the model is not one, or knows one order only.
    """
    config = AutoConfig.from_pretrained(name)
    variant = getattr(config, "attention_variant", None)
    if variant in (None, "causal"):
        raise ValueError(f"--models must fill blanks in any order, got {name} with attention_variant={variant!r}.")
    return model_class_for(config).from_pretrained(name, dtype=torch.float32)


def load_judge(arguments: FrontierArguments) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads the judge and its tokenizer.

    Raises:
        ValueError: it does not read from left to right, or a model has another vocabulary.
    """
    name = arguments.judge or arguments.models[0]
    try:
        judge, tokenizer = load_checkpoint(name)
    except ValueError as error:
        raise ValueError(f"--judge {name} cannot be loaded: {error}") from error
    for model in arguments.models:
        if AutoTokenizer.from_pretrained(model).get_vocab() != tokenizer.get_vocab():
            raise ValueError(f"--judge must have the vocabulary of all --models, got {name} for {model}.")
    return judge, tokenizer


def describe_model(entry: dict) -> str:
    """Describes an entry's model: its variant and size."""
    return f"{entry['attention_variant']}, {entry['parameters']:,} parameters"


def format_rows(entries: list[dict]) -> list[tuple[str, ...]]:
    """Formats the table's rows. Standard errors are in brackets."""

    def cell(entry: dict, name: str, digits: int = 3) -> str:
        error = entry[f"{name}_standard_error"]
        return f"{entry[name]:.{digits}f}" + ("" if error is None else f" ({error:.{digits}f})")

    return [
        (
            entry["family"],
            entry["point"],
            "-" if entry["family"] == ORIGINAL else f"{entry['passes_per_token']:.3f}",
            *(cell(entry, name) for name in ("nats_per_token", "nats_to_one_by_one", "recovered")),
            f"{entry['recovered_blanks']:.3f}",
            cell(entry, "different"),
        )
        for entry in entries
    ]


def draw(by_model: list[list[dict]]) -> Figure:
    """Plots the qualities over passes per token, a column for each model. Lines start at one by one."""
    panels = [("greedy", "nats_per_token"), ("sampled", "nats_per_token"), ("greedy", "recovered")]
    panels = [panel for panel in panels if any(each["tokens"] == panel[0] for each in by_model[0])]
    size = (1.5 + 4.8 * len(by_model), 1 + 3.1 * len(panels))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(panels), len(by_model), sharex=True, sharey="row", squeeze=False)
    for entries, column in zip(by_model, grid.T, strict=True):
        column[0].set_title(describe_model(entries[0]), fontsize="medium")
        column[-1].set_xlabel("passes per token")
        for axes, (tokens, name) in zip(column, panels, strict=True):
            own = [each for each in entries if each["tokens"] == tokens]
            start = {each["point"]: each for each in own if each["family"] == ONE_BY_ONE}
            for family, (order, colour, style) in FAMILIES.items():
                points = [each for each in own if each["family"] == family]
                if points:
                    points.append(start[ORDERS[order]])
                    points.sort(key=lambda each: each["passes_per_token"])
                    line = [[each[key] for each in points] for key in ("passes_per_token", name)]
                    axes.plot(*line, style, color=colour, markersize=4, linewidth=1.2, label=family)
            for marker, (point, each) in zip("<x>", start.items(), strict=True):
                label = f"{ONE_BY_ONE}, {point}"
                axes.plot(each["passes_per_token"], each[name], marker, color="black", markersize=6, label=label)
            if name == "nats_per_token":
                axes.axhline(entries[0][name], color="0.35", linewidth=1, linestyle=":", label=ORIGINAL)
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.grid(alpha=0.3)
    labels = {"nats_per_token": "nats per token (judge)", "recovered": "share of tokens recovered"}
    for axes, (tokens, name) in zip(grid[:, 0], panels, strict=True):
        axes.set_ylabel(f"{tokens}: {labels[name]}")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
    return figure


def main(argv: list[str]) -> None:
    arguments = parse_arguments(FrontierArguments, argv, QUICK, __doc__)
    report = Report(__file__, argv, arguments.seed)
    try:
        judge, tokenizer = load_judge(arguments)
        ids = cut_canvases(arguments.load()["validation"], tokenizer, arguments.block_size, arguments.canvases)
        lengths = arguments.shortest, arguments.longest, arguments.margin
        canvases = Canvases(ids, place_middles([ids.shape[1]] * len(ids), *lengths, seed=arguments.seed))
        by_model = [measure(name, judge, canvases, arguments) for name in arguments.models]
    except ValueError as error:
        sys.exit(str(error))
    columns = ("way", "point", "passes / token", "nats", "to one by one", "recovered", "blanks", "different")
    for entries in by_model:
        for tokens in dict.fromkeys(entry["tokens"] for entry in entries[1:]):
            own = [entry for entry in entries if entry["tokens"] in ("text", tokens)]
            print_table(f"{describe_model(own[0])}, {tokens}", columns, format_rows(own), left=2)
    results = {
        "judge": {"name": arguments.judge or arguments.models[0], "parameters": judge.num_parameters()},
        "text": {"source": arguments.text_source, "canvases": hash_windows(ids)},
        "blanks": [[blank.start, blank.length] for blank in canvases.blanks],
        "frontier": [entry for entries in by_model for entry in entries],
    }
    report.write(arguments.output_dir, results, draw(by_model))


if __name__ == "__main__":
    main(sys.argv[1:])
