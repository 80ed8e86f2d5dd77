# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The commands of `python -m modeling_aoarm`.

Wrong input raises ValueError or OSError, and a missing library ImportError. `main` prints them as one line on stderr.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.utils import logging

from .compat import run_harness_command
from .configuration_aoarm import AOARMConfig, head_auto_class
from .conversion import QUERY_STREAM_INITS, VARIANTS, convert_causal_lm
from .decoding_aoarm import decoding_orders
from .gguf import require_gguf
from .infilling_aoarm import Infilling, infill
from .io import replacing_folder
from .modeling_aoarm import model_class_for
from .peft import merge_adapter


DTYPES = ("auto", "float32", "bfloat16", "float16")

INFILL = """\
Fill the blanks of texts with an any-order model.

  <blank>      one token           The <blank> sat on the mat.
  <blank:3>    three tokens        The <blank:3> sat on the mat.
  <blank:2-6>  from 2 to 6 tokens  The <blank:2-6> sat on the mat.

Words often have several tokens: <blank:1-6> is for a word or three.
A blank of unknown length is filled at every length, and the text with the highest log-probability is printed. All its
tokens after the first one count, from left to right (see --score-end). Write \\<blank> for these characters themselves.

examples:
  python -m modeling_aoarm infill outputs/pretrain "a <blank:2-8> of the object" --candidates
  python -m modeling_aoarm infill outputs/pretrain --file texts.txt --do-sample --top-p 0.9 --json
"""

CONVERT = """\
Convert a left-to-right checkpoint to an any-order model: Llama, Mistral, Qwen2, Qwen3, SmolLM.

From left to right the result computes the same as the checkpoint. By default (two_stream, whose query stream starts
from the token left of a blank) it fills blanks from both sides without training. Free orders need training first.
Checkpoints that no variant equals exactly are refused (sliding windows, dynamic RoPE, layers without RoPE, quantised
weights). A GGUF file is unpacked to plain weights, and its tokenizer and chat template are kept. A LoRA adapter that
was trained on the converted model can be merged in.

examples:
  python -m modeling_aoarm convert checkpoints/smollm2 outputs/smollm2-any-order --gguf-file model.Q4_1.gguf
  python -m modeling_aoarm convert Qwen/Qwen3-0.6B outputs/qwen3 --adapter outputs/adapt_decoder/adapted
"""

PARAMETERS = """\
Count the parameters of models from their configs, part by part, without making their weights.

example:
  python -m modeling_aoarm parameters configuration/two_stream configuration/causal --overrides hidden_size=256
"""

# A parameter belongs to the first part that has a word in the parameter's name.
PARTS = {
    "vocabulary": ("embed_tokens", "lm_head"),
    "positions": ("position_embedding", "target_embedding"),
    "modulation": ("modulation",),
    "layers": ("layers.", "norm.", "query_embedding"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. Returns the exit status: 0, or 2 after wrong input, which one line on stderr names."""
    parser = build_parser()
    parsed, parsed.remaining = parser.parse_known_args(arguments)
    if parsed.remaining and parsed.run is not run_lm_eval:
        parser.error(f"unrecognized arguments: {' '.join(parsed.remaining)}")
    try:
        parsed.run(parsed)
    except (ImportError, OSError, ValueError) as error:
        print(f"{parser.prog} {parsed.command}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser of all commands. A parsed command has its function as `run`."""
    parser = argparse.ArgumentParser(
        prog="python -m modeling_aoarm", description="Any-order autoregressive language models, from the command line."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    add = _add_command(commands, "infill", run_infill, "fill the blanks of texts", INFILL)
    add("model", metavar="MODEL", help="folder of a saved model and its tokenizer, or a name on the Hub")
    add("texts", metavar="TEXT", nargs="*", help="a text with blanks")
    add("--file", metavar="PATH", help="more texts, one per line (UTF-8); - reads standard input")
    orders = decoding_orders()
    add("--decoding-order", choices=orders, help="the order in which blanks are filled (as in the generation config)")
    several = "fill K tokens per forward pass, or as many as threshold(0.9) or the like says: fewer passes, approximate"
    add("--tokens-per-step", type=_number_or_name, metavar="K", help=several)
    add("--draft-length", type=_number_or_name, metavar="K", help="draft K tokens, or auto, and verify them: exact")
    add("--do-sample", action="store_true", default=None, help="sample instead of taking the best token")
    add("--temperature", type=float, metavar="T", help="divides the logits; needs --do-sample")
    add("--top-k", type=int, metavar="K", help="sample from the K best tokens; needs --do-sample")
    add("--top-p", type=float, metavar="P", help="sample from the best share P; needs --do-sample")
    add("--seed", type=int, default=0, metavar="S", help="seed of random orders and samples (%(default)s)")
    add("--candidates", action="store_true", help="print all lengths with log-probabilities (nats)")
    add("--candidate-order", choices=orders[:2], default=orders[0], help="the order in which lengths are compared")
    add("--score-end", action="store_true", help="compare texts with their end of sentence, if the model learned ends")
    most = infill.__kwdefaults__["max_candidates"]
    add("--max-candidates", type=int, default=most, metavar="N", help="most lengths that a text may have (%(default)s)")
    add("--json", action="store_true", help="print one JSON object per text, each on one line")
    add("--stream", action="store_true", help="show the texts on stderr while they are filled")
    size = infill.__kwdefaults__["batch_size"]
    add("--batch-size", type=int, default=size, metavar="N", help="texts filled at once (%(default)s)")
    add("--device", help="cpu, cuda, cuda:1, ... (cuda if there is one, else cpu)")
    add("--dtype", choices=DTYPES, default="auto", help="dtype of the weights (%(default)s)")
    add("--trust-remote-code", action="store_true", help="run the code that comes with MODEL")

    add = _add_command(commands, "convert", run_convert, "convert a left-to-right model to any order", CONVERT)
    add("source", metavar="SRC", help="folder of a checkpoint and its tokenizer, or a name on the Hub")
    add("destination", metavar="DST", help="a new or empty folder for the any-order model")
    add("--attention-variant", choices=VARIANTS, default="two_stream", help="variant of the result (%(default)s)")
    starts = {"choices": QUERY_STREAM_INITS, "default": "neighbor"}
    add("--query-stream-init", **starts, help="where the query stream of two_stream starts (%(default)s)")
    add("--dtype", choices=DTYPES, default="auto", help="dtype of the weights; auto: as in SRC, float32 for GGUF")
    add("--gguf-file", metavar="NAME", help="read weights, config and tokenizer from this GGUF file of SRC")
    add("--adapter", metavar="ADAPTER", help="merge this LoRA adapter of the converted model: folder or Hub name")
    ignored = "an unknown config field that does not change the model's computation; may be repeated"
    add("--ignore-field", action="append", default=[], metavar="NAME", help=ignored)
    add("--trust-remote-code", action="store_true", help="run the code that comes with SRC's tokenizer")

    add = _add_command(commands, "parameters", run_parameters, "count the parameters of models", PARAMETERS)
    add("config", nargs="+", metavar="CONFIG", help="a folder with a config, or a name on the Hub")
    add("--overrides", help="fields to change in all configs, as hidden_size=256,num_hidden_layers=8")

    summary = "run lm_eval with --model aoarm available; all arguments are those of lm_eval"
    # It has no options of its own, so all arguments remain.
    commands.add_parser("lm-eval", help=summary, add_help=False).set_defaults(run=run_lm_eval)
    return parser


def _add_command(commands, name: str, run: Callable, summary: str, description: str) -> Callable:
    """Adds a command to argparse's subparsers. Returns the function that adds its arguments."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser(name, help=summary, description=description, formatter_class=formatter)
    parser.set_defaults(run=run)
    return parser.add_argument


def run_infill(arguments: argparse.Namespace) -> None:
    """Prints each filled text on a line, or one JSON object per line with `--json`."""
    for name in ("temperature", "top_k", "top_p"):
        value = getattr(arguments, name)
        if value is not None and not arguments.do_sample:
            raise ValueError(f"--{name.replace('_', '-')} needs --do-sample, got {value} without it.")
    texts = list(arguments.texts)
    if arguments.file is not None:
        with sys.stdin if arguments.file == "-" else open(arguments.file, encoding="utf-8") as file:
            texts += [line.removesuffix("\n") for line in file]
    if not texts:
        raise ValueError("TEXT or --file must give at least one text, got none.")
    model, tokenizer = load_model(arguments.model, arguments.device, arguments.dtype, arguments.trust_remote_code)
    names = ("decoding_order", "tokens_per_step", "draft_length", "do_sample", "temperature", "top_k", "top_p")
    options = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if arguments.stream:
        from rich.console import Console

        from .streaming import CanvasStreamer

        # Standard output has only the results.
        options["streamer"] = CanvasStreamer(tokenizer, console=Console(stderr=True))
    set_seed(arguments.seed)
    infillings = infill(
        model,
        tokenizer,
        texts,
        return_candidates=True,
        candidate_order=arguments.candidate_order,
        score_end=arguments.score_end,
        max_candidates=arguments.max_candidates,
        # A stream shows one text after the other.
        batch_size=1 if arguments.stream else arguments.batch_size,
        **options,
    )
    for text, infilling in zip(texts, infillings, strict=True):
        print(_format_json(text, infilling, arguments.candidates) if arguments.json else infilling.text)
        if arguments.candidates and not arguments.json:
            for each in infilling.candidates:
                print(f"{each.log_probability:10.3f}", ",".join(map(str, each.blank_lengths)), each.text, sep="\t")


def run_convert(arguments: argparse.Namespace) -> None:
    """Writes the converted model and its tokenizer, and prints one line about them."""
    check_source("SRC", arguments.source)
    silence_library()
    gguf = {}
    if arguments.gguf_file is not None:
        require_gguf()
        gguf["gguf_file"] = arguments.gguf_file
    remote = arguments.trust_remote_code
    with replacing_folder(arguments.destination) as folder:
        try:
            tokenizer = AutoTokenizer.from_pretrained(arguments.source, trust_remote_code=remote, **gguf)
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
        if arguments.adapter is not None:
            model = merge_adapter(model, arguments.adapter)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    result = f"{model.num_parameters():,} parameters in {str(model.dtype).removeprefix('torch.')}"
    print(f"{arguments.destination}: {arguments.attention_variant} of {arguments.source}, {result}")


def run_parameters(arguments: argparse.Namespace) -> None:
    """Prints the number of parameters of each config and of each part of its model, separated by tabs."""
    print("config", "attention_variant", "parameters", "to the first", *PARTS, sep="\t")
    first = None
    for name in arguments.config:
        check_source("CONFIG", name)
        config = load_config(name, arguments.overrides)
        counts = count_parameters(config).values()
        first = first or sum(counts)
        numbers = (f"{count:,}" for count in counts)
        total = (f"{sum(counts):,}", f"{sum(counts) / first:.3f}")
        print(name, config.attention_variant, *total, *numbers, sep="\t")


def run_lm_eval(arguments: argparse.Namespace) -> None:
    """Registers the model type `aoarm` with the LM Evaluation Harness, and runs its own command line."""
    try:
        from .evaluation import lm_eval  # noqa: F401
    except ImportError as error:
        raise ImportError(f"lm-eval needs the packages of `lm-eval[hf]`: {error}") from error
    run_harness_command(arguments.remaining)


def load_model(
    name: str, device: str | None, dtype: str, trust_remote_code: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a model in evaluation mode, and its tokenizer.

    Args:
        name: a folder or a name on the Hub.
        device: see [`find_device`].
        dtype: name of the weights' dtype, or `"auto"`.
        trust_remote_code: whether code that comes with the model may run.

    Raises:
        OSError, ValueError: there is no such model, tokenizer or device, or the model is not an any-order model.
    """
    check_source("MODEL", name)
    device = find_device(device)
    silence_library()
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
        auto_class = getattr(transformers, head_auto_class(getattr(config, "attention_variant", None)))
        model = auto_class.from_pretrained(name, dtype=dtype, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, StrictDataclassError) as error:
        raise ValueError(f"MODEL {name} cannot be loaded: {error}") from error
    if not hasattr(model, "score"):
        raise ValueError(f"MODEL must be an any-order model with `score`, got {name}.")
    return model.to(device).eval(), tokenizer


def load_config(name: str, overrides: str | None = None, **fields) -> AOARMConfig:
    """Loads a config of this package and changes fields. Fields that the file leaves out follow from the changed ones.

    Args:
        name: a folder, a JSON file or a name on the Hub.
        overrides: fields to change, as in `"hidden_size=256,num_hidden_layers=8"`. They win over `fields`.
        **fields: more fields to change.

    Raises:
        OSError: there is no such config.
        ValueError: the config is of another model type, a changed field does not exist, or a value does not fit.
    """
    values, _ = AOARMConfig.get_config_dict(name)
    if values.get("model_type") != "aoarm":
        raise ValueError(f"A config must be of model type 'aoarm', got {values.get('model_type')!r} in {name}.")
    values |= fields
    try:
        if overrides:
            overrides = overrides.replace(" ", "")
            # Converts each value to the type of its field.
            changed = AOARMConfig(**values)
            changed.update_from_string(overrides)
            values |= {field: getattr(changed, field) for field in re.findall(r"(\w+)=", overrides)}
        return AOARMConfig(**values)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise ValueError(f"The config {name} with overrides={overrides!r} cannot be built: {error}") from error


def count_parameters(config: AOARMConfig) -> dict[str, int]:
    """Counts the parameters of each of `PARTS`, without making weights."""
    counts = dict.fromkeys(PARTS, 0)
    with torch.device("meta"):
        model = model_class_for(config)(config)
    for name, weight in model.named_parameters():
        counts[next(part for part, words in PARTS.items() if any(word in name for word in words))] += weight.numel()
    return counts


def check_source(argument: str, name: str) -> None:
    """Raises a FileNotFoundError for a missing folder whose name cannot be one on the Hub."""
    if not Path(name).is_dir() and (Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1):
        raise FileNotFoundError(f"{argument} must be a folder or a name on the Hub; there is no folder {name}.")


def find_device(name: str | None) -> torch.device:
    """Finds a device, for `None` CUDA if it is available and else the CPU. Raises a ValueError if there is none."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"--device must be a name that torch knows, got {name!r}.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device must be available; CUDA is not available here, got {name}.")
    return device


def silence_library() -> None:
    """Turns off the progress bars and warnings of transformers, which would mix with the results."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _number_or_name(text: str) -> int | str:
    """Reads an option that is a number or a name, which `generate` checks."""
    return int(text) if text.lstrip("-").isdecimal() else text


def _format_json(text: str, infilling: Infilling, with_candidates: bool) -> str:
    record = {"text": text, "filled": infilling.text, "log_probability": infilling.log_probability}
    if with_candidates:
        record["candidates"] = [
            {"filled": each.text, "blank_lengths": list(each.blank_lengths), "log_probability": each.log_probability}
            for each in infilling.candidates
        ]
    return json.dumps(record, ensure_ascii=False)


__all__ = ["check_source", "count_parameters", "find_device", "load_config", "load_model", "main"]
