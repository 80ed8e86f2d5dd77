# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""
Compare rules that choose the length of a blank when nobody knows it.

    python examples/benchmarks/blank_lengths.py --model MODEL --train_file articles.jsonl

With tokens of several letters, people who blank a word do not know how many tokens it has. One to three words in the
middle of each window are blanked. The model fills the blank at every length from 1 to `--longest` tokens, and each rule
chooses one of these fillings. S(n) is the log-probability of the whole text with n tokens in the blank, from left to
right, B(n) the part of it that the blank's own tokens have, both in nats.

| rule | chooses |
| --- | --- |
| one token | n = 1, whatever the text |
| whole text | the largest S(n), as `infill` does for `<blank:1-6>` |
| bonus | the largest S(n) + bonus × n |
| mean per blank token | the largest S(n) - B(n) + B(n) / n |
| text behind the blank | the largest S(n) - B(n) |
| first that goes on | the smallest n behind which the text's next token is the likeliest, else the largest S(n) |
| known length | the n that the blanked words have: what no rule knows |
| best possible | a filling that recovers the words, if any length has one |

A filling recovers the words if it is equal to them. `f1` counts the words that filling and text share (harmonic mean of
precision and recall). The bonus of a window is the one that recovers most in the other half of the windows, so it is
never chosen on the windows that it is measured on.

MODEL is a left-to-right checkpoint that `convert_causal_lm` takes: a folder, a GGUF file or a name on the Hub. It is
converted (`two_stream`, neighbor start) and not trained. Windows come from the text's validation part,
`--validation_fraction` of it, one from each text. Greedy, in float32 on the CPU, about 5 seconds a window for 135
million weights. A killed run goes on where it stopped. Writes `benchmark_blank_lengths.json` (numbers only) and
`benchmark_blank_lengths.png` to `--output_dir`.
"""

import hashlib
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from matplotlib.figure import Figure
from timing import (
    CheckpointArguments,
    Report,
    compare_with_target,
    load_checkpoint,
    parse_arguments,
    print_table,
    print_targets,
)
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modeling_aoarm import convert_causal_lm
from modeling_aoarm.data.text import TextArguments
from modeling_aoarm.evaluation.stats import estimate_ratio
from modeling_aoarm.infilling_aoarm import fill_canvases, make_canvases, write_blanks


ONE, WHOLE, BONUS, MEAN = "one token", "whole text", "bonus", "mean per blank token"
BEHIND, FIRST, KNOWN, BEST = "text behind the blank", "first that goes on", "known length", "best possible"
RULES = (ONE, WHOLE, BONUS, MEAN, BEHIND, FIRST, KNOWN, BEST)
BONUSES = tuple(step / 4 for step in range(17))
# Whole words left and right of the blank.
LEFT, RIGHT = 28, 12
QUICK = dict(windows=4, longest=3)


@dataclass
class LengthArguments(TextArguments, CheckpointArguments):
    """Arguments of the benchmark of blank lengths."""

    windows: int = field(default=200, metadata={"help": "Largest number of windows, one per text."})
    longest: int = field(default=6, metadata={"help": "Tokens of the longest filling."})
    validation_fraction: float = field(default=0.9, metadata={"help": "Share of the text that windows come from."})

    def __post_init__(self):
        super().__post_init__()
        # Two halves for the bonus.
        self.check_at_least(2, "windows", "longest")


@dataclass
class Window:
    """A text with one to three blanked words.

    Attributes:
        before, words, after: the text, cut at the blank; the spaces around the blank are in `before` and `after`.
        tokens: how many tokens the words have.
    """

    before: str
    words: str
    after: str
    tokens: int


def draw_windows(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, count: int, longest: int, seed: int
) -> list[Window]:
    """Draws one window from each of the first `count` texts that have a fitting one.

    The blanked words have only letters, and at most `longest` tokens together.

    Raises:
        ValueError: no text has one.
    """
    rng, windows = random.Random(seed), []
    for text in texts:
        words, wanted = text.split(), rng.randint(1, 3)
        starts = list(range(LEFT, len(words) - RIGHT - wanted + 1))
        rng.shuffle(starts)
        for start in starts:
            blanked = words[start : start + wanted]
            middle = " ".join(blanked)
            tokens = len(tokenizer.encode(f" {middle}", add_special_tokens=False, verbose=False))
            if all(map(str.isalpha, blanked)) and tokens <= longest:
                before = " ".join(words[start - LEFT : start]) + " "
                after = " " + " ".join(words[start + wanted : start + wanted + RIGHT])
                windows.append(Window(before, middle, after, tokens))
                break
        if len(windows) == count:
            break
    if not windows:
        raise ValueError(f"--train_file must have a text of {LEFT + RIGHT + 3} words or more, got none.")
    return windows


def count_shared_words(filling: str, words: str) -> float:
    """Computes the harmonic mean of precision and recall of a filling's words."""
    given, wanted = Counter(filling.split()), Counter(words.split())
    return 2 * (given & wanted).total() / (given.total() + wanted.total())


@torch.no_grad()
def measure_window(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, window: Window, longest: int
) -> dict[str, list | int]:
    """Fills a window at every length.

    Returns:
        `words` and `tokens` of the blanked text; and by length, from 1 to `longest`: whether the filling `recovers` the
        text, its `f1`, its nats in the `blank` and `behind` it, and whether the token behind it is the likeliest
        (`goes_on`); and the `seconds` that it took.
    """
    started = time.perf_counter()
    text = write_blanks([window.before, window.after], [f"<blank:1-{longest}>"])
    canvases = make_canvases(tokenizer, text, model.config.max_position_embeddings)
    fill_canvases(model, tokenizer, canvases)
    entry = {"words": len(window.words.split()), "tokens": window.tokens}
    entry |= {name: [] for name in ("recovers", "f1", "blank", "behind", "goes_on")}
    for canvas in canvases:
        ids, (blank,) = canvas.join_ids()
        scored = model.score(torch.tensor([ids]), decoding_order="left_to_right")
        nats = scored.token_log_probs[0, 0]
        (filling,) = canvas.decode_fillings(tokenizer)
        entry["recovers"].append(filling == window.words)
        entry["f1"].append(count_shared_words(filling, window.words))
        entry["blank"].append(nats[blank.start : blank.stop].sum().item())
        entry["behind"].append(nats[blank.stop :].sum().item())
        entry["goes_on"].append(bool(scored.token_is_likeliest[0, 0, blank.stop]))
    entry["seconds"] = round(time.perf_counter() - started, 2)
    return entry


def choose_length(rule: str, entry: dict, bonus: float = 0.0) -> int:
    """Returns the index (length - 1) that a rule chooses; of equal ones the first."""
    blank, behind = np.array(entry["blank"]), np.array(entry["behind"])
    lengths = np.arange(1, len(blank) + 1)
    if rule == ONE:
        return 0
    if rule == KNOWN:
        return entry["tokens"] - 1
    if rule == BEST:
        return int(np.argmax(entry["f1"]))
    if rule == FIRST and any(entry["goes_on"]):
        return entry["goes_on"].index(True)
    values = {
        BONUS: blank + behind + bonus * lengths,
        MEAN: behind + blank / lengths,
        BEHIND: behind,
    }
    return int(np.argmax(values.get(rule, blank + behind)))


def fit_bonus(entries: list[dict]) -> float:
    """Returns the bonus that recovers most, and of these the one with the best f1; of equal ones the smallest."""

    def quality(bonus: float) -> tuple[float, float]:
        chosen = [(entry, choose_length(BONUS, entry, bonus)) for entry in entries]
        return sum(each["recovers"][n] for each, n in chosen), sum(each["f1"][n] for each, n in chosen)

    return max(BONUSES, key=quality)


def apply_rules(entries: list[dict]) -> dict[str, list[int]]:
    """Returns the index (length - 1) that each rule chooses in each window."""
    bonuses = [fit_bonus(entries[1::2]), fit_bonus(entries[::2])]
    return {
        rule: [choose_length(rule, entry, bonuses[number % 2]) for number, entry in enumerate(entries)]
        for rule in RULES
    }


def summarise(entries: list[dict], chosen: dict[str, list[int]], words: int | None = None) -> list[dict]:
    """Computes means over the windows with `words` blanked words; `None` means all windows."""
    own = [number for number, entry in enumerate(entries) if words in (None, entry["words"])]
    summary = []
    for rule in RULES:
        pairs = [(entries[number], chosen[rule][number]) for number in own]
        summary.append(
            {
                "rule": rule,
                "words": words,
                "windows": len(own),
                "recovered": mean(entry["recovers"][n] for entry, n in pairs),
                "f1": mean(entry["f1"][n] for entry, n in pairs),
                "right_length": mean(n + 1 == entry["tokens"] for entry, n in pairs),
                "mean_length": mean(n + 1 for _, n in pairs),
            }
        )
    return summary


def compare_rules(entries: list[dict], chosen: dict[str, list[int]]) -> list[dict]:
    """Compares rules with the one that `infill` has, on the same windows."""
    targets = []
    for rule in RULES:
        for name in ("recovers", "f1") if rule != WHOLE else ():
            gains = [
                float(entry[name][mine]) - float(entry[name][theirs])
                for entry, mine, theirs in zip(entries, chosen[rule], chosen[WHOLE], strict=True)
            ]
            value, error = estimate_ratio(gains, [1] * len(gains))
            targets.append(compare_with_target(f"{rule}: {name}", WHOLE, value, None, standard_error=error))
    return targets


def draw(summary: list[dict]) -> Figure:
    """Plots the share of recovered blanks and the f1 by rule, over all windows."""
    drawn = Figure(figsize=(8, 3.4), layout="constrained")
    own = [each for each in summary if each["words"] is None]
    for axes, name in zip(drawn.subplots(1, 2, sharey=True), ("recovered", "f1"), strict=True):
        bars = axes.barh([each["rule"] for each in own], [each[name] for each in own], color="#1f5fa8")
        axes.bar_label(bars, [f"{each[name]:.2f}" for each in own], padding=3)
        axes.set_xlim(0, 1.15 * max(each[name] for each in own) or 1)
        axes.set_xlabel({"recovered": "share of blanks recovered", "f1": "words shared with the text (f1)"}[name])
    axes.invert_yaxis()
    return drawn


def main(argv: list[str]) -> None:
    arguments = parse_arguments(LengthArguments, argv, QUICK, __doc__)
    report = Report(__file__, argv, arguments.seed)
    source, tokenizer = load_checkpoint(arguments.model)
    texts = arguments.load()["validation"]["text"]
    try:
        windows = draw_windows(texts, tokenizer, arguments.windows, arguments.longest, arguments.seed)
    except ValueError as error:
        sys.exit(str(error))
    identity = hashlib.sha256(repr((arguments.model, arguments.longest, windows)).encode()).hexdigest()
    # GGUF files name an unknown token, which changes no logit.
    model = convert_causal_lm(source, query_stream_init="neighbor", ignored_fields=("unk_token_id",))
    # One line for each measured window of this run or of a killed one.
    progress = (report.default_folder if arguments.output_dir is None else Path(arguments.output_dir)) / (
        f"blank_lengths_{identity[:12]}.partial"
    )
    progress.parent.mkdir(parents=True, exist_ok=True)
    # A killed run's last line may be torn.
    lines = progress.read_text(encoding="utf-8").split("\n")[:-1] if progress.exists() else []
    entries = [json.loads(line) for line in lines]
    with progress.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)
        for window in tqdm(windows[len(entries) :], desc="windows"):
            entries.append(measure_window(model, tokenizer, window, arguments.longest))
            print(json.dumps(entries[-1]), file=file, flush=True)
    chosen = apply_rules(entries)
    groups = [None, *sorted({entry["words"] for entry in entries})]
    summary = [line for words in groups for line in summarise(entries, chosen, words)]
    for words in groups:
        rows = [
            (each["rule"], *(f"{each[name]:.3f}" for name in ("recovered", "f1", "right_length", "mean_length")))
            for each in summary
            if each["words"] == words
        ]
        count = next(each["windows"] for each in summary if each["words"] == words)
        title = f"{'one to three' if words is None else words} blanked words, {count} windows"
        print_table(title, ("rule", "recovered", "f1", "right length", "mean length"), rows)
    targets = compare_rules(entries, chosen)
    print_targets(targets)
    results = {
        "model": {"parameters": source.num_parameters(), "layers": source.config.num_hidden_layers},
        "text": {"source": arguments.text_source, "windows": identity},
        "measured_seconds": round(sum(entry["seconds"] for entry in entries), 1),
        "entries": entries,
        "chosen": chosen,
        "bonuses": {"even windows": fit_bonus(entries[1::2]), "odd windows": fit_bonus(entries[::2])},
        "summary": summary,
        "targets": targets,
    }
    report.write(arguments.output_dir, results, draw(summary))
    progress.unlink()


if __name__ == "__main__":
    main(sys.argv[1:])
