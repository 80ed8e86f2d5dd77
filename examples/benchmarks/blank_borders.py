# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""
Measure the effect of the space before a blank: as its own token, or as part of the blank's first token.

    python examples/benchmarks/blank_borders.py --model MODEL

People write "The capital of <blank> is Paris." Tokenised piece by piece, this has a lone space before the blank, which
a model of subwords has hardly ever seen. `infill` moves it into the blank's first token. MODEL is a left-to-right
checkpoint that `convert_causal_lm` takes: a folder, a GGUF file or a name on the Hub. It is converted and not trained.

1. The log-probability (nats) of natural fillings of 20 sentences, with both ways to cut the text into tokens.
   `word` is log p(filling | rest) by `score`; a lone space is given, and a space in the blank is not.
   `space_and_word` is the log-probability of the same characters for both ways. `text` is that of the whole text from
   left to right, where a converted model computes the same as its checkpoint.
2. The texts that the models fill in, by `infill` and behind a lone space.

Given tokens come in the models' own context order: from left to right in `two_stream`, whose query stream starts from
the token left of the blank, and with the text left of the blank last in `decoupled_rope`, which goes on from its last
row.

Greedy, on the CPU, two minutes for 135 million weights. Writes `benchmark_blank_borders.json` (all numbers) and
`benchmark_blank_borders.png` to `--output_dir`.
"""

import sys
from dataclasses import dataclass, field
from statistics import mean

import torch
from matplotlib.figure import Figure
from timing import (
    CheckpointArguments,
    Report,
    Target,
    compare_with_target,
    load_checkpoint,
    parse_arguments,
    print_table,
    print_targets,
)
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modeling_aoarm import convert_causal_lm, infill
from modeling_aoarm.infilling_aoarm import make_canvases


SENTENCES = [
    ("The capital of <blank> is Paris.", "France"),
    ("Water freezes at zero <blank> Celsius.", "degrees"),
    ("The sun rises in the <blank> and sets in the west.", "east"),
    ("She opened the <blank> and walked into the room.", "door"),
    ("He drank a cup of <blank> before going to work.", "coffee"),
    ("There are seven <blank> in a week.", "days"),
    ("My mother's brother is my <blank>, and his son is my cousin.", "uncle"),
    ("The opposite of hot is <blank>, and the opposite of wet is dry.", "cold"),
    ("A year has twelve <blank>, and the first is January.", "months"),
    ("Bees make <blank> from the nectar of flowers.", "honey"),
    ("The teacher asked the <blank> to open their books.", "students"),
    ("The Earth moves around the <blank> once a year.", "Sun"),
    ("We use our <blank> to see and our ears to hear.", "eyes"),
    ("The dog wagged its <blank> when it saw the children.", "tail"),
    ("Please turn off the <blank> before you leave the room.", "lights"),
    ("In winter, the <blank> falls and covers the ground in white.", "snow"),
    ("The doctor told the <blank> to rest for a week.", "patient"),
    ("Two plus two is <blank>, and three plus three is six.", "four"),
    ("They crossed the <blank> by boat because there was no bridge.", "river"),
    ("The baby began to <blank> because it was hungry.", "cry"),
]
OWN_TOKEN, IN_BLANK = "space as its own token", "space in the blank"
WAYS = (OWN_TOKEN, IN_BLANK)
VARIANTS = ("two_stream", "decoupled_rope")
GAIN = Target(">=", 0)
FIGURES = ("word", "space_and_word", "text")
PLAIN = {"add_special_tokens": False}


@dataclass
class BorderArguments(CheckpointArguments):
    """Arguments of the benchmark of blank borders."""

    variants: list[str] = field(default_factory=lambda: list(VARIANTS), metadata={"help": f"Of {', '.join(VARIANTS)}."})
    sentences: int = field(default=len(SENTENCES), metadata={"help": "Number of sentences."})

    def __post_init__(self):
        super().__post_init__()
        self.check_at_least(1, "sentences")
        unknown = [name for name in self.variants if name not in VARIANTS]
        if unknown or not self.variants:
            raise ValueError(f"--variants must be of {VARIANTS}, got {self.variants}.")


@dataclass
class Segmentation:
    """A sentence's tokens.

    Attributes:
        before, filling, after: token ids.
    """

    before: list[int]
    filling: list[int]
    after: list[int]

    @property
    def ids(self) -> list[int]:
        return self.before + self.filling + self.after


def segment(tokenizer: PreTrainedTokenizerBase, text: str, word: str, max_length: int) -> dict[str, Segmentation]:
    """Cuts a sentence with its natural filling into tokens, in both ways.

    Raises:
        ValueError: the tokenizer does not join words with the space before them.
    """
    before, after = make_canvases(tokenizer, text, max_length)[0].pieces
    if before.moved != " ":
        raise ValueError(f"The tokenizer of --model must join words with the space before them, got {before.moved!r}.")
    return {
        OWN_TOKEN: Segmentation(before.unmoved_ids, tokenizer.encode(word, **PLAIN), after.ids),
        IN_BLANK: Segmentation(before.ids, tokenizer.encode(f" {word}", **PLAIN), after.ids),
    }


@torch.no_grad()
def measure(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sentences: list[tuple[str, str]]) -> list[dict]:
    """Measures log-probabilities of natural fillings, and fills the blanks.

    Returns:
        An entry for each sentence and way: the tokens, `text`, `word`, `space_and_word` (log-probabilities in nats, see
        the head of the script) and `filled`, the text that the model fills in.
    """
    entries = []
    for text, word in sentences:
        for way, own in segment(tokenizer, text, word, model.config.max_position_embeddings).items():
            ids = torch.tensor([own.ids])
            columns = torch.arange(ids.shape[1])
            starts = {"word": len(own.before), "space_and_word": len(own.before) - (way == OWN_TOKEN)}
            entry = {
                "sentence": text,
                "natural_filling": word,
                "way": way,
                "tokens": [tokenizer.convert_ids_to_tokens(part) for part in (own.before, own.filling, own.after)],
                "text": model.score(ids, decoding_order="left_to_right").log_likelihood.item(),
            }
            for name, first in starts.items():
                blank = (columns >= first) & (columns < len(own.before + own.filling))
                scored = model.score(ids, blank[None], decoding_order="left_to_right")
                entry[name] = scored.log_likelihood.item()
            entry["filled"] = fill(model, tokenizer, text, way, own)
            entries.append(entry)
    return entries


def fill(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    way: str,
    segmentation: Segmentation,
) -> str:
    """Fills the blank of a sentence with one token."""
    if way == IN_BLANK:
        return infill(model, tokenizer, text)
    one = Segmentation(segmentation.before, [0], segmentation.after)
    ids = torch.tensor([one.ids])
    blank = torch.zeros_like(ids, dtype=torch.bool)
    blank[0, len(one.before)] = True
    output = model.generate(ids, generation_mask=blank, attention_mask=torch.ones_like(ids))
    return tokenizer.decode(output[0], skip_special_tokens=True)


def compare_entries(entries: dict[str, list[dict]]) -> list[dict]:
    """Computes mean gains in nats, by variant."""
    targets = []
    for variant, own in entries.items():
        for name in FIGURES:
            means = {way: mean(entry[name] for entry in own if entry["way"] == way) for way in WAYS}
            what = f"{variant}, {name}, mean gain (nats)"
            targets.append(compare_with_target(what, OWN_TOKEN, means[IN_BLANK] - means[OWN_TOKEN], GAIN, means=means))
    return targets


def draw(entries: dict[str, list[dict]]) -> Figure:
    """Plots log-probabilities of natural fillings in both ways, one point per sentence."""
    drawn = Figure(figsize=(4.4 * len(entries), 4.4), layout="constrained")
    for axes, (variant, own) in zip(drawn.subplots(1, len(entries), squeeze=False)[0], entries.items(), strict=True):
        points = [[entry["word"] for entry in own if entry["way"] == way] for way in WAYS]
        lowest = min(map(min, points)) - 1
        axes.plot([lowest, 0], [lowest, 0], color="0.6", linewidth=1)
        axes.plot(*points, "o", color="#1f5fa8", markersize=5)
        axes.set_xlabel(f"{OWN_TOKEN} (nats)")
        axes.set_ylabel(f"{IN_BLANK} (nats)")
        axes.set_title(f"log p(natural filling | rest), {variant}", fontsize="medium")
        axes.locator_params(nbins=5)
        axes.grid(alpha=0.3)
    return drawn


def main(argv: list[str]) -> None:
    arguments = parse_arguments(BorderArguments, argv, {"sentences": 2}, __doc__)
    report = Report(__file__, argv, arguments.seed)
    source, tokenizer = load_checkpoint(arguments.model)
    entries = {}
    for variant in arguments.variants:
        # GGUF files name an unknown token, which changes no logit.
        model = convert_causal_lm(source, variant, ignored_fields=("unk_token_id",))
        entries[variant] = measure(model, tokenizer, SENTENCES[: arguments.sentences])
    for variant, own in entries.items():
        rows = [
            (before["sentence"], before["natural_filling"])
            + tuple(f"{before[name]:.2f} -> {after[name]:.2f}" for name in FIGURES)
            for before, after in zip(own[::2], own[1::2], strict=True)
        ]
        title = f"{variant}: log p (nats), {OWN_TOKEN} -> {IN_BLANK}"
        print_table(title, ("sentence", "filling", "word", "space and word", "text"), rows, left=2)
        filled = [
            tuple(entry["filled"].replace("\n", "⏎") for entry in pair)
            for pair in zip(own[::2], own[1::2], strict=True)
        ]
        print_table(f"{variant}: filled in", WAYS, filled, left=2)
    targets = compare_entries(entries)
    print_targets(targets)
    weights = {"parameters": source.num_parameters(), "layers": source.config.num_hidden_layers}
    report.write(arguments.output_dir, {"model": weights, "sentences": entries, "targets": targets}, draw(entries))


if __name__ == "__main__":
    main(sys.argv[1:])
