# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""
Draw how a model fills blanks: in which order, and how sure it was of each token.

    python examples/draw_generation.py [--model outputs/pretrain] [--text "The <blank:9> statement."]
                                       [--decoding_order confidence] [--output_dir examples/figures]

It takes a few seconds on a CPU, with the model that `make pretrain` leaves behind. It shows the canvas filling in the
terminal and writes generation.png, which shows when each blank was filled. The numbers go beside it as JSON.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, set_seed

import modeling_aoarm  # noqa: F401  (registers the models)
from modeling_aoarm.infilling_aoarm import make_canvases, make_generate_inputs
from modeling_aoarm.plots import plot_decoding_order
from modeling_aoarm.streaming import CanvasStreamer


TEXT = "The <blank:9> statement is used to <blank:6> a function. If the <blank:12> is true, the first <blank:5> runs."


def make_canvas(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> dict[str, torch.Tensor]:
    """Makes arguments of `generate`: a canvas, a mask of its blanks, and the tokens that its blanks may hold."""
    canvases = make_canvases(tokenizer, text, model.config.max_position_embeddings, max_candidates=1)
    return make_generate_inputs(model, tokenizer, canvases)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("outputs/pretrain"), help="a saved model's folder")
    parser.add_argument("--text", default=TEXT, help="with blanks, written <blank:n> for n tokens")
    parser.add_argument("--decoding_order", default="confidence", help="a name that generate takes")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--colour_by", choices=("age", "confidence"), default="age", help="colours in the terminal")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).parent / "figures")
    arguments = parser.parse_args()
    if not (arguments.model / "config.json").is_file():
        parser.error(f"--model must be a saved model's folder, got {arguments.model}; `make pretrain` makes one.")

    model = AutoModelForCausalLM.from_pretrained(arguments.model)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    canvas = make_canvas(model, tokenizer, arguments.text)
    blanks = canvas["generation_mask"]
    if not blanks.any():
        parser.error(f"--text must have a blank, written <blank:n>, got {arguments.text!r}.")
    set_seed(arguments.seed)
    output = model.generate(
        **canvas,
        decoding_order=arguments.decoding_order,
        do_sample=True,
        temperature=arguments.temperature,
        streamer=CanvasStreamer(tokenizer, colour_by=arguments.colour_by, skip_special_tokens=True),
        return_dict_in_generate=True,
    )

    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    picture = arguments.output_dir / "generation.png"
    plot_decoding_order(output, picture, tokenizer, generation_mask=blanks)
    print(f"Wrote {picture} and {picture.with_suffix('.json')}.")


if __name__ == "__main__":
    main()
