# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""
A page in the browser that fills the blanks of a text: token by token, in any order, with alternatives for each token.

    python examples/space/app.py --model outputs/pretrain

The model is a folder or a name on the Hub: an any-order model, or a decoder that `convert_causal_lm` takes, which is
converted at the start. A GGUF file works too. Without `--model`, the environment variable MODEL names it. Without that
it is SmolLM2-135M-Instruct, downloaded from the Hub. Needs the extra `space`.
"""

import argparse
import os
import sys
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from modeling_aoarm import convert_causal_lm
from modeling_aoarm.blanks_aoarm import read_vocabulary
from modeling_aoarm.cli import check_source, find_device, load_model
from modeling_aoarm.gguf import locate_checkpoint
from modeling_aoarm.peft import merge_adapter


DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def load(name: str, adapter: str | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a model, on CUDA if it is available, and its tokenizer. Decoders are converted.

    Args:
        name: a folder, a name on the Hub, or a GGUF file.
        adapter: a folder or a Hub name with a PEFT adapter for the model.

    Raises:
        OSError, ValueError: there is no such model, or it is neither an any-order model nor can be converted.
    """
    device, path = find_device(None), Path(name)
    # Many CPUs are slow in half precision.
    dtype = "float32" if device.type == "cpu" else "auto"
    source, gguf = locate_checkpoint(name)
    if gguf and path.is_file():
        model, tokenizer = convert(source, dtype, **gguf)
    else:
        check_source("--model", name)
        if AutoConfig.from_pretrained(name).model_type == "aoarm":
            model, tokenizer = load_model(name, device=None, dtype=dtype, trust_remote_code=False)
        else:
            model, tokenizer = convert(name, dtype)
    if adapter:
        model = merge_adapter(model, adapter)
    # Takes a second, which the first visitor should not wait.
    read_vocabulary(tokenizer)
    return model.to(device).eval(), tokenizer


def convert(source: str, dtype: str, **kwargs) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Makes an any-order model of a decoder."""
    return convert_causal_lm(source, dtype=dtype, **kwargs), AutoTokenizer.from_pretrained(source, **kwargs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("MODEL", DEFAULT_MODEL)
    parser.add_argument("--model", default=default, help="folder, Hub name or GGUF file (%(default)s)")
    adapter = os.environ.get("ADAPTER")
    parser.add_argument("--adapter", default=adapter, help="folder or Hub name of a PEFT adapter (%(default)s)")
    parser.add_argument("--host", help="address to listen at; 0.0.0.0 lets others in (this machine only)")
    parser.add_argument("--port", type=int, help="port to listen at (the first free one from 7860)")
    parser.add_argument("--most-tokens", type=int, default=256, help="how long a text may be (%(default)s)")
    parser.add_argument("--parallel", type=int, default=2, help="how many texts are filled at once (%(default)s)")
    arguments = parser.parse_args()

    from interface import build_app, launch_app

    try:
        model, tokenizer = load(arguments.model, arguments.adapter)
    except (OSError, ValueError) as error:
        sys.exit(f"The model cannot be loaded: {error}")
    name = Path(arguments.model).name if Path(arguments.model).exists() else arguments.model
    app = build_app(model, tokenizer, name, arguments.most_tokens, arguments.parallel)
    launch_app(app, server_name=arguments.host, server_port=arguments.port)


if __name__ == "__main__":
    main()
