# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The adapters in `examples/adapters`, on the real weights that they were trained on.

`PYTHONPATH=tests python tests/real/test_adapters.py ADAPTER` prints five figures of an adapter: nats per token of ten
blanks with both sides given and with the left side, shares of blanks and of tokens that greedy decoding recovers, and
nats per token from left to right. The rows are cut out of text that ships with Python, which the adapters did not see.
`ten_middles.json` in each adapter's folder is what this printed.
"""

import json
import os
import sys
from pathlib import Path

import pytest
from scripts import load_script, read_json
from test_real_weights import FILE, FOLDER
from transformers import AutoTokenizer
from warm_python import run_python

from modeling_aoarm import convert_causal_lm
from modeling_aoarm.data.text import TextArguments
from modeling_aoarm.peft import merge_adapter


ADAPTERS = sorted(path.parent for path in Path(__file__).parents[2].glob("examples/adapters/*/adapter_config.json"))


def measure(folder: Path) -> dict[str, float]:
    script = load_script("examples/adapt_decoder.py")
    variant = folder.name.rpartition("-")[2]
    model = merge_adapter(convert_causal_lm(FOLDER, variant, gguf_file=FILE), folder)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER, gguf_file=FILE)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    texts = TextArguments().load()["validation"]
    [held_out] = script.hold_out(script.AdaptationArguments(model_name_or_path=FILE), tokenizer, texts, 10)
    results = script.measure(model, tokenizer, held_out, batch_size=5)
    both, left = results["both_sides"], results["left_side"]
    return {
        "both_sides": both["nats_per_token"],
        "left_side": left["nats_per_token"],
        "exact": both["exact"],
        "tokens": both["tokens"],
        "left_to_right": results["left_to_right"]["nats_per_token"],
    }


@pytest.mark.parametrize("folder", ADAPTERS, ids=lambda folder: folder.name)
def test_an_adapter_has_its_figures_in_a_fresh_process(folder):
    process = run_python(__file__, folder, from_scratch=True, PYTHONPATH=os.pathsep.join(sys.path))
    assert process.returncode == 0, process.stderr
    measured, committed = json.loads(process.stdout.splitlines()[-1]), read_json(folder, "ten_middles.json")
    print(f"\n{folder.name}: {measured}")
    assert set(measured) == set(committed)
    for name in ("both_sides", "left_side", "left_to_right"):
        assert measured[name] == pytest.approx(committed[name], abs=0.01)
    # A near tie may be broken otherwise on another machine.
    assert measured["exact"] == pytest.approx(committed["exact"], abs=0.11)
    assert measured["tokens"] == pytest.approx(committed["tokens"], abs=0.03)


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]))))
