# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""
Draw the rows of a model: one order of a sentence, and the target of each row.

    python examples/draw_order.py [--sentence "the cat sat on the mat"] [--order "local(2)"] [--output order.png]

It takes a second on a CPU. The order comes from the collator that training uses. With its defaults the script draws the
picture in the README. It writes the numbers beside the picture as JSON.
"""

import argparse
import json
from pathlib import Path

import matplotlib
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from modeling_aoarm import DataCollatorForAnyOrderLM


OWN, SEEN, TARGET = "#1f5fa8", "#cfdff0", "#c8501e"


def word_tokenizer(sentence: str) -> PreTrainedTokenizerFast:
    """Makes a tokenizer with one token per word of the sentence, after `<s>` and `<pad>`."""
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(["<s>", "<pad>", *sentence.split()]))}
    backend = Tokenizer(models.WordLevel(vocabulary))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", pad_token="<pad>")


def draw(axes: Axes, words: list[str], positions: list[int]) -> None:
    """Draws one line per row: tokens it sees (pale), its own token (dark), and the position it predicts (dashed)."""
    places = sorted(zip(positions, words, strict=True))
    for row, (own, target) in enumerate(zip(positions[:-1], positions[1:], strict=True)):
        for place, word in places:
            seen = place in positions[: row + 1]
            colour = OWN if place == own else SEEN if seen else "white"
            box = FancyBboxPatch(
                (place - 0.4, row - 0.32),
                0.8,
                0.64,
                boxstyle="round,pad=0.02",
                facecolor=colour,
                edgecolor=TARGET if place == target else "#9aa7b4",
                linestyle="--" if place == target else "-",
                linewidth=2 if place == target else 0.8,
            )
            axes.add_patch(box)
            text = word if seen else "?" if place == target else ""
            axes.text(place, row, text, ha="center", va="center", color="white" if place == own else "black")
        label = f"row {row}: token at {own}, predicts {target}"
        axes.text(len(places) - 0.35, row, label, ha="left", va="center", fontsize=9)
    axes.set_xlim(-0.6, len(places) + 2.1)
    axes.set_ylim(len(positions) - 1.4, -0.6)
    axes.set_xticks(range(len(places)), [str(place) for place, _ in places])
    axes.set_yticks([])
    axes.xaxis.tick_top()
    axes.set_xlabel("position in the sentence", labelpad=8)
    axes.xaxis.set_label_position("top")
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentence", default="the cat sat on the mat")
    parser.add_argument("--order", default="uniform", help="anything that sample_orders takes")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "figures" / "order.png")
    arguments = parser.parse_args()

    tokenizer = word_tokenizer(arguments.sentence)
    collator = DataCollatorForAnyOrderLM(tokenizer, order=arguments.order, seed=arguments.seed)
    batch = collator([{"input_ids": tokenizer.encode(arguments.sentence), "example_index": 0}])
    words = tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist())
    positions = batch["position_ids"][0].tolist()

    matplotlib.use("Agg")
    figure, axes = pyplot.subplots(figsize=(1.15 * len(words) + 2.4, 0.5 * len(words) + 0.7), layout="constrained")
    draw(axes, words, positions)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.output, dpi=130)
    rows = [
        {"row": row, "token": word, "position": own, "target_position": target}
        for row, (word, own, target) in enumerate(zip(words[:-1], positions[:-1], positions[1:], strict=True))
    ]
    arguments.output.with_suffix(".json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    print(f"Wrote {arguments.output} and {arguments.output.with_suffix('.json')}.")


if __name__ == "__main__":
    main()
