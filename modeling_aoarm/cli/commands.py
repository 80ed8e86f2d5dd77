# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The commands of `python -m modeling_aoarm`.

A command is a function that takes the parsed arguments, and an `add_..._command` that declares them and is listed in
`COMMANDS`. Wrong input raises ValueError or OSError, of which `__main__` makes one line on stderr.
"""

import argparse
import json
import sys

import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from ..configuration_aoarm import head_auto_class
from ..conversion import QUERY_STREAM_INITS, VARIANTS, convert_causal_lm
from ..gguf import require_gguf
from ..infilling_aoarm import Infilling, infill
from ..io import replacing_folder
from .common import DTYPES, add_command, add_loading_arguments, check_is_there, find_device, keep_quiet
from .lm_eval import add_lm_eval_command
from .parameters import add_parameters_command


INFILL_DESCRIPTION = """\
Fill the blanks of texts with an any-order model.

  <blank>      one token           The <blank> sat on the mat.
  <blank:3>    three tokens        The <blank:3> sat on the mat.
  <blank:2-6>  from 2 to 6 tokens  The <blank:2-6> sat on the mat.

Of blanks of unknown length every length is filled, and the text with the highest log-probability is printed: that of
all its tokens given its first one, from left to right, longer texts paying for more tokens (see --score-end).
All other text comes back as it is. Write \\<blank> for these characters themselves.
"""

INFILL_EXAMPLES = """\
examples:
  python -m modeling_aoarm infill outputs/pretrain "The <blank:9> statement is used to <blank:6> a function."
  python -m modeling_aoarm infill outputs/pretrain "a <blank:2-8> of the object" --candidates
  python -m modeling_aoarm infill outputs/pretrain --file texts.txt --do-sample --top-p 0.9 --json

Exit status: 0, or 2 with one line on stderr.
"""

CONVERT_DESCRIPTION = """\
Make an any-order model of a left-to-right checkpoint: Llama, Mistral, Qwen2, Qwen3, SmolLM.

From left to right the result computes what the checkpoint computes. By default (two_stream, whose query stream starts
from the token left of a blank) it fills blanks from both sides without training; free orders need training first.
What no variant equals exactly (sliding windows, dynamic RoPE, layers without RoPE, quantised weights) is refused.
A GGUF file is unpacked to plain numbers and brings its tokenizer and chat template along.
"""

CONVERT_EXAMPLES = """\
examples:
  python -m modeling_aoarm convert Qwen/Qwen3-0.6B outputs/qwen3-any-order
  python -m modeling_aoarm convert checkpoints/llama outputs/one-stream --attention-variant decoupled_rope
  python -m modeling_aoarm convert checkpoints/smollm2 outputs/smollm2-any-order --gguf-file model.Q4_1.gguf

Exit status: 0, or 2 with one line on stderr. DST appears when it is complete.
"""


def add_infill_command(subparsers) -> None:
    """Declares `infill` among argparse's `subparsers`."""
    parser = add_command(
        subparsers, "infill", run_infill, "fill the blanks of texts", INFILL_DESCRIPTION, INFILL_EXAMPLES
    )
    parser.add_argument(
        "model", metavar="MODEL", help="folder of a saved model and its tokenizer, or a name on the Hub"
    )
    parser.add_argument("texts", metavar="TEXT", nargs="*", help="a text with blanks")
    parser.add_argument("--file", metavar="PATH", help="more texts, one on each line (UTF-8); - reads standard input")

    filling = parser.add_argument_group("filling", "What is not given is as in the model's generation_config.")
    filling.add_argument(
        "--decoding-order",
        choices=("left_to_right", "random", "confidence", "entropy", "margin"),
        help="the order in which blanks are filled (left_to_right)",
    )
    filling.add_argument(
        "--tokens-per-step", type=int, metavar="K", help="fill K tokens in each forward pass: fewer passes, approximate"
    )
    filling.add_argument(
        "--draft-length", type=int, metavar="K", help="draft K tokens and verify them in one pass: exact, fewer passes"
    )
    filling.add_argument(
        "--do-sample", action="store_true", default=None, help="sample instead of taking the best token"
    )
    filling.add_argument("--temperature", type=float, metavar="T", help="divides the logits; needs --do-sample")
    filling.add_argument("--top-k", type=int, metavar="K", help="sample from the K best tokens; needs --do-sample")
    filling.add_argument("--top-p", type=float, metavar="P", help="sample from the best share P; needs --do-sample")
    filling.add_argument("--seed", type=int, default=0, metavar="S", help="of random orders and samples (%(default)s)")

    lengths = parser.add_argument_group("blanks of unknown length")
    lengths.add_argument("--candidates", action="store_true", help="print all lengths with log-probabilities (nats)")
    lengths.add_argument(
        "--candidate-order",
        choices=("left_to_right", "random"),
        default="left_to_right",
        help="the order in which filled texts are compared (%(default)s)",
    )
    lengths.add_argument(
        "--score-end",
        action="store_true",
        help="compare texts with their end of sentence, for models that saw ends in training",
    )
    lengths.add_argument(
        "--max-candidates", type=int, default=64, metavar="N", help="most lengths a text may have (%(default)s)"
    )

    running = parser.add_argument_group("output and loading")
    running.add_argument(
        "--json",
        action="store_true",
        help="print a JSON object for each text, on one line each, whatever the text holds",
    )
    running.add_argument("--stream", action="store_true", help="show the texts on stderr while they are filled")
    running.add_argument("--batch-size", type=int, default=64, metavar="N", help="texts filled at once (%(default)s)")
    add_loading_arguments(running)


def run_infill(arguments: argparse.Namespace) -> None:
    """Prints each filled text and a line break, or with `--json` one JSON object on a line for each.

    Raises:
        OSError: for a model or a file that is not there.
        ValueError: for arguments that do not go together, no text at all, and as in [`infill`].
    """
    for name in ("temperature", "top_k", "top_p"):
        if getattr(arguments, name) is not None and not arguments.do_sample:
            raise ValueError(
                f"--{name.replace('_', '-')} needs --do-sample, got {getattr(arguments, name)} without it."
            )
    texts = arguments.texts + ([] if arguments.file is None else _lines(arguments.file))
    if not texts:
        raise ValueError("TEXT or --file must give at least one text, got none.")

    model, tokenizer = load(arguments.model, arguments.device, arguments.dtype, arguments.trust_remote_code)
    names = ("decoding_order", "tokens_per_step", "draft_length", "do_sample", "temperature", "top_k", "top_p")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if arguments.stream:
        given["streamer"] = _streamer(tokenizer)
    set_seed(arguments.seed)
    infillings = infill(
        model,
        tokenizer,
        texts,
        return_candidates=True,
        candidate_order=arguments.candidate_order,
        score_end=arguments.score_end,
        max_candidates=arguments.max_candidates,
        # One after the other where they are watched.
        batch_size=1 if arguments.stream else arguments.batch_size,
        **given,
    )
    for text, infilling in zip(texts, infillings, strict=True):
        print(_as_json(text, infilling, arguments.candidates) if arguments.json else infilling.text)
        if arguments.candidates and not arguments.json:
            for each in infilling.candidates:
                print(f"{each.log_probability:10.3f}", ",".join(map(str, each.blank_lengths)), each.text, sep="\t")


def add_convert_command(subparsers) -> None:
    """Declares `convert` among argparse's `subparsers`."""
    parser = add_command(
        subparsers,
        "convert",
        run_convert,
        "make an any-order model of a left-to-right one",
        CONVERT_DESCRIPTION,
        CONVERT_EXAMPLES,
    )
    parser.add_argument("source", metavar="SRC", help="folder of a checkpoint and its tokenizer, or a name on the Hub")
    parser.add_argument("destination", metavar="DST", help="a new or empty folder for the any-order model")
    parser.add_argument(
        "--attention-variant",
        choices=VARIANTS,
        default="two_stream",
        help="what the model becomes (%(default)s)",
    )
    parser.add_argument(
        "--query-stream-init",
        choices=QUERY_STREAM_INITS,
        default="neighbor",
        help="where the query stream of two_stream starts (%(default)s)",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="of weights; auto keeps what the checkpoint has, float32 for GGUF (%(default)s)",
    )
    parser.add_argument(
        "--gguf-file", metavar="NAME", help="read weights, config and tokenizer from this GGUF file of SRC"
    )
    parser.add_argument(
        "--ignore-field",
        action="append",
        default=[],
        metavar="NAME",
        help="a config field unknown here that changes nothing that the model computes; may be repeated",
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="run the code that comes with SRC's tokenizer")


def run_convert(arguments: argparse.Namespace) -> None:
    """Writes the converted model and its tokenizer, and prints one line about them.

    Raises:
        OSError: for a source that is not there, and a destination that is.
        ValueError: as in [`convert_causal_lm`].
    """
    check_is_there("SRC", arguments.source)
    keep_quiet()
    gguf = {}
    if arguments.gguf_file is not None:
        require_gguf()
        gguf["gguf_file"] = arguments.gguf_file
    with replacing_folder(arguments.destination) as folder:
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                arguments.source, trust_remote_code=arguments.trust_remote_code, **gguf
            )
        except Exception as error:
            # The package `tokenizers` raises bare exceptions.
            raise ValueError(f"The tokenizer of SRC {arguments.source} cannot be loaded: {error}") from error
        model = convert_causal_lm(
            arguments.source,
            arguments.attention_variant,
            query_stream_init=arguments.query_stream_init,
            dtype=arguments.dtype,
            mask_token_id=tokenizer.mask_token_id,
            ignored_fields=arguments.ignore_field,
            **gguf,
        )
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    print(
        f"{arguments.destination}: {arguments.attention_variant} of {arguments.source}, "
        f"{model.num_parameters():,} parameters in {str(model.dtype).removeprefix('torch.')}"
    )


def load(
    name: str, device: str | None, dtype: str, trust_remote_code: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in evaluation mode, and its tokenizer.

    Args:
        name: a folder or a name on the Hub.
        device: what `torch.device` takes; default: CUDA where there is one, else the CPU.
        dtype: name of the weights' dtype, or `"auto"`.
        trust_remote_code: whether code that comes with the model may run.

    Raises:
        OSError: there is no such model or tokenizer.
        ValueError: for a device that is not there, and a model that is none of this package's.
    """
    check_is_there("MODEL", name)
    place = find_device(device)
    keep_quiet()
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
        auto_class = getattr(transformers, head_auto_class(getattr(config, "attention_variant", None)))
        model = auto_class.from_pretrained(name, dtype=dtype, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, StrictDataclassError) as error:
        raise ValueError(f"MODEL {name} cannot be loaded: {error}") from error
    if not hasattr(model, "score"):
        raise ValueError(f"MODEL must be an any-order model with `generate` for canvases and `score`, got {name}.")
    return model.to(place).eval(), tokenizer


def _streamer(tokenizer: PreTrainedTokenizerBase):
    """Shows canvases on standard error, so that standard output holds the results alone."""
    try:
        from rich.console import Console

        from ..streaming import CanvasStreamer
    except ImportError as error:
        raise ValueError(f"--stream needs the package `rich`: {error}") from error
    return CanvasStreamer(tokenizer, console=Console(stderr=True))


def _lines(path: str) -> list[str]:
    """The lines of a file, or of standard input for `-`."""
    if path == "-":
        return [line.removesuffix("\n") for line in sys.stdin]
    with open(path, encoding="utf-8") as file:
        return [line.removesuffix("\n") for line in file]


def _as_json(text: str, infilling: Infilling, with_candidates: bool) -> str:
    record = {"text": text, "filled": infilling.text, "log_probability": infilling.log_probability}
    if with_candidates:
        record["candidates"] = [
            {
                "filled": candidate.text,
                "blank_lengths": list(candidate.blank_lengths),
                "log_probability": candidate.log_probability,
            }
            for candidate in infilling.candidates
        ]
    return json.dumps(record, ensure_ascii=False)


COMMANDS = (add_infill_command, add_convert_command, add_lm_eval_command, add_parameters_command)

__all__ = ["COMMANDS", "add_convert_command", "add_infill_command", "load", "run_convert", "run_infill"]
