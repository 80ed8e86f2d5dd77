# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""
Fill blanks in text with a trained any-order model: of known length, in several orders, and of unknown length.

The model writes the text in the blanks, given the text on both sides. Nothing is trained. Four tables show

1. blanks of known length, filled in different orders;
2. a blank of unknown length: each length is filled, and the filled texts are compared by their log-probability;
3. a blank of unknown length at the end of a text, compared without and with the end of the text;
4. multiple choice: given fillings of a blank, compared by log p(blank | rest).

    python examples/infill.py [--model outputs/pretrain] [--seed 0]

Takes ten seconds on a CPU. The default model is the one that `make pretrain` saves (four minutes). Any other saved
any-order model works too. `--text` replaces the texts of the first two tables. The same from the command line, without
this script: `python -m modeling_aoarm infill outputs/pretrain "The <blank:3-9> statement" --candidates`.
"""

import argparse
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from modeling_aoarm import infill
from modeling_aoarm.infilling_aoarm import with_bos


KNOWN = [
    "The <blank:9> statement is used to <blank:6> a function.",
    "If the <blank:4> is true, the first <blank:5> is executed.",
    "A <blank:5> is an object.",
]
UNKNOWN = "the <blank:2-9> of the object"
AT_THE_END = "an object is a <blank:2-9>"
# The choices of a question have equally many tokens, so equally many probabilities are multiplied.
CHOICES = [
    ("The value of the ", ["argument", "argumint", "tnemugra"], " is a string."),
    ("If the ", ["object", "banana", "xqzwkj"], " has no such attribute, an error is raised."),
]


def show_line_breaks(text: str) -> Text:
    """Makes a table cell in which line breaks are visible and nothing is read as markup."""
    return Text(text.replace("\n", "⏎"))


def make_orders_table(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Table:
    """Fills each text in different orders: one line per text, one column per order."""
    ways = {
        "left to right": {"decoding_order": "left_to_right"},
        "random order": {"decoding_order": "random"},
        "random order, sampled": {"decoding_order": "random", "do_sample": True, "temperature": 0.7, "top_p": 0.9},
    }
    filled = [infill(model, tokenizer, texts, **arguments) for arguments in ways.values()]
    table = Table("text", *ways, title="1. Blanks of known length", show_lines=True)
    for cells in zip(texts, *filled, strict=True):
        table.add_row(*map(show_line_breaks, cells))
    return table


def make_candidates_table(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, title: str, text: str, score_end: bool = False
) -> Table:
    """Lists all candidates of a text, the best first."""
    result = infill(model, tokenizer, text, return_candidates=True, score_end=score_end)
    table = Table(title=f"{title}: {text}")
    table.add_column("tokens", justify="right")
    table.add_column("log-probability (nats)", justify="right")
    table.add_column("filled text")
    for candidate in result.candidates:
        lengths = ", ".join(map(str, candidate.blank_lengths))
        table.add_row(lengths, f"{candidate.log_probability:.2f}", show_line_breaks(candidate.text))
    return table


def score_choices(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    before: str,
    choices: list[str],
    after: str,
    num_orders: int = 8,
) -> list[float]:
    """Returns log p(choice | text before and after it) of each choice, in nats.

    The probability is the mean over `num_orders` orders of the blank's tokens. It is conditional on the length of the
    blank, so the choices must have equally many tokens. (For others, compare whole texts as `infill` does.)

    Raises:
        ValueError: the choices have different numbers of tokens.
    """
    left, right = (tokenizer.encode(text, add_special_tokens=False) for text in (before, after))
    left = with_bos(tokenizer, left)
    fillings = [tokenizer.encode(choice, add_special_tokens=False) for choice in choices]
    lengths = {len(filling) for filling in fillings}
    if len(lengths) != 1:
        raise ValueError(f"choices must have the same number of tokens, got {sorted(lengths)} for {choices}.")
    canvas = torch.tensor([left + filling + right for filling in fillings], device=model.device)
    blanks = torch.zeros_like(canvas, dtype=torch.bool)
    blanks[:, len(left) : len(left) + lengths.pop()] = True
    # All choices are scored in the same orders.
    columns = blanks[0].nonzero()[:, 0]
    orders = torch.stack([columns[torch.randperm(len(columns))] for _ in range(num_orders)])
    orders = orders[:, None].expand(-1, len(choices), -1)
    return model.score(canvas, blanks, decoding_order=orders).log_mean_likelihood.tolist()


def make_choices_table(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Table:
    """Lists each question's choices with log p(blank | rest), and the share of each among them."""
    table = Table("text", "choice", title="4. Multiple choice: log p(blank | rest)")
    table.add_column("log-probability (nats)", justify="right")
    table.add_column("share", justify="right")
    for before, choices, after in CHOICES:
        scores = torch.tensor(score_choices(model, tokenizer, before, choices, after))
        for index in scores.argsort(descending=True).tolist():
            share = f"{scores.softmax(0)[index]:.1%}"
            table.add_row(
                show_line_breaks(f"{before}___{after}"), show_line_breaks(choices[index]), f"{scores[index]:.2f}", share
            )
        table.add_section()
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="outputs/pretrain", help="folder of a saved model and its tokenizer")
    parser.add_argument("--text", help="a text with blanks, instead of the examples of tables 1 and 2")
    parser.add_argument("--seed", type=int, default=0, help="seed of random orders and samples")
    arguments = parser.parse_args()
    if not (Path(arguments.model) / "config.json").is_file():
        sys.exit(f"--model must be the folder of a saved model, got {arguments.model}. `make pretrain` makes one.")

    model = AutoModelForCausalLM.from_pretrained(arguments.model)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    set_seed(arguments.seed)
    console = Console()
    unknown = arguments.text or UNKNOWN
    console.print(make_orders_table(model, tokenizer, [arguments.text] if arguments.text else KNOWN))
    console.print(make_candidates_table(model, tokenizer, "2. A blank of unknown length", unknown))
    console.print(make_candidates_table(model, tokenizer, "3. At the end, as the beginning of a text", AT_THE_END))
    # The model of `make pretrain` saw no ends of texts in training, so this comparison misleads.
    console.print(make_candidates_table(model, tokenizer, "3. At the end, as a whole text", AT_THE_END, score_end=True))
    console.print(make_choices_table(model, tokenizer))


if __name__ == "__main__":
    main()
