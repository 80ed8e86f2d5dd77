# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""A saved folder holds everything: it loads in a process that cannot import this package, and only when trusted."""

import pytest
import torch
from clean_process import LOAD_AND_FILL, run_clean_process
from transformers import Trainer, TrainingArguments
from variants import VARIANTS, all_variants, random_rows, tiny_model

from modeling_aoarm import infill
from modeling_aoarm.data.tokenizers import character_tokenizer


WITHOUT_TRUST = """
def refusal(load, *args, **kwargs):
    try:
        load(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


from transformers import pipeline

autos = (AutoConfig, AutoModel, AutoModelForCausalLM)
for name, kwargs in {"not said": {}, "false": {"trust_remote_code": False}}.items():
    report[f"trust {name}"] = [refusal(auto.from_pretrained, folder, **kwargs) for auto in autos]
    report[f"trust {name}"] += [refusal(pipeline, "text-generation", folder, **kwargs)]
report["code was loaded"] = any(name.startswith("transformers_modules.") for name in sys.modules)
"""

OTHER_WAYS_TO_LOAD = """
from pathlib import Path

from transformers import AutoModelForMaskedLM, AutoTokenizer, Trainer, TrainingArguments

report["wrong head"] = refusal(AutoModelForMaskedLM.from_pretrained, folder, **trust)
tokenizer = AutoTokenizer.from_pretrained(folder, **trust)
report["tokens"] = tokenizer(rows["text"]).input_ids
writer = pipeline("text-generation", folder, **trust)
[written] = writer(rows["text"], max_new_tokens=5, do_sample=False, return_tensors=True)
report["written"] = written["generated_token_ids"]
report["infilled"] = model.infill(tokenizer, rows["texts with blanks"])


def distance(other, reference=logits):
    with torch.no_grad():
        return (other(**inputs).logits.float() - reference).abs().max().item()


def load(folder, **kwargs):
    return AutoModelForCausalLM.from_pretrained(folder, **kwargs, **trust)


half = load(folder, dtype=torch.bfloat16)
report["dtypes"] = sorted({str(weight.dtype) for weight in half.parameters()})
report["half precision"] = distance(half) / logits.abs().max().item()
places = {name: "cpu" for name, _ in model.named_children()} | {"model": "disk"}
for name, kwargs in {
    "cpu": {"device_map": "cpu"},
    "auto": {"device_map": "auto"},
    "disk": {"device_map": places, "offload_folder": "offloaded"},
}.items():
    placed = load(folder, **kwargs)
    report[f"device_map {name}"] = distance(placed)
    report[f"devices {name}"] = sorted({str(weight.device) for weight in placed.parameters()})

model.save_pretrained("again")
tokenizer.save_pretrained("again")
again = load("again")
body.save_pretrained("body again")
report["saved again"] = [distance(again), type(again).__module__ != type(model).__module__]
examples = [{name: inputs[name][r] for name in inputs} | {"labels": inputs["input_ids"][r]} for r in (0, 1)]
args = TrainingArguments("run", max_steps=1, save_steps=1, learning_rate=0.1, use_cpu=True, disable_tqdm=True)
Trainer(again, args, train_dataset=examples, processing_class=tokenizer).train()
again.eval()
with torch.no_grad():
    trained = again(**inputs).logits
report["training changed"] = distance(again)
report["checkpoint"] = distance(load("run/checkpoint-1"), trained)
folders = (folder, "again", "body again", "run/checkpoint-1")
report["code"] = [sorted(path.name for path in Path(place).glob("*.py")) for place in folders]
report["auto_map"] = [json.loads(Path(place, "config.json").read_text())["auto_map"] for place in folders]
"""

# With the special tokens as many as the tiny models know.
LETTERS = "abcdefghijklmnopqr"


@all_variants
def test_everything_loads_without_the_package_and_computes_the_same(variant, tmp_path):
    """Law 7, and what else can be loaded, in a process without the package: nothing but the saved folder is there."""
    tokenizer = character_tokenizer([LETTERS])
    model = tiny_model(variant, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0})
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = random_rows(variant, 2, 6)
    rows["generation_mask"] = torch.tensor([[False, False, True, True, True, True]] * 2)
    rows["text"] = "abcd"
    # `causal` fills blanks only at the end.
    rows["texts with blanks"] = ["abc<blank:2>", f"a{'' if variant == 'causal' else '<blank:2>'}d<blank:1-3>"]
    rows["ways"] = [{"do_sample": True}]
    if variant != "causal":
        rows["ways"] = [
            {"do_sample": True, **way}
            for way in (
                {"decoding_order": "random"},
                {"decoding_order": "confidence"},
                {"decoding_order": "random", "tokens_per_step": "cosine(3)"},
                {"decoding_order": "random", "draft_length": 2},
            )
        ]
    torch.save(rows, tmp_path / "rows")
    program = WITHOUT_TRUST + LOAD_AND_FILL + OTHER_WAYS_TO_LOAD
    report = run_clean_process(tmp_path / "model", tmp_path / "rows", "without", program)

    refusals = [*report["trust not said"], *report["trust false"]]
    assert len(refusals) == 8
    for refusal in refusals:
        assert refusal.startswith("ValueError") and "`trust_remote_code=True`" in refusal
    assert not report["code was loaded"]

    assert report["module"].startswith("transformers_modules.")
    assert report["same_body"]
    results = torch.load(tmp_path / "rows.out")
    inputs = {name: rows[name] for name in ("input_ids", "position_ids", "target_position_ids")}
    with torch.no_grad():
        torch.testing.assert_close(results["logits"], model(**inputs).logits, atol=1e-6, rtol=0)
    for way, filled in zip(rows["ways"], results["filled"], strict=True):
        torch.manual_seed(3)
        assert torch.equal(filled, model.generate(rows["input_ids"], generation_mask=rows["generation_mask"], **way))

    assert report["wrong head"].startswith("ValueError") and "AutoModelForMaskedLM" in report["wrong head"]
    prompt = tokenizer([rows["text"]], return_tensors="pt")
    assert report["tokens"] == prompt.input_ids[0].tolist() == [5, 6, 7, 8]
    assert report["written"] == model.generate(**prompt, max_new_tokens=5, do_sample=False)[0].tolist()
    assert report["infilled"] == infill(model, tokenizer, rows["texts with blanks"])
    assert "is not supported" not in report["stderr"]

    assert report["dtypes"] == ["torch.bfloat16"]
    assert 0 < report["half precision"] < 0.1
    assert report["devices cpu"] == report["devices auto"] == ["cpu"] and "meta" in report["devices disk"]
    assert [report[f"device_map {name}"] for name in ("cpu", "auto", "disk")] == [0, 0, 0]

    assert report["saved again"] == [0, True]
    assert report["training changed"] > 0.01
    assert report["checkpoint"] == 0
    assert "modeling_aoarm.py" in report["code"][0] and "__init__.py" not in report["code"][0]
    assert report["code"] == [report["code"][0]] * 4
    assert report["auto_map"] == [model.config.auto_map] * 4


@pytest.mark.full
def test_checkpoints_of_the_trainer_load_without_the_package(tmp_path):
    """A run for each variant, and one process that loads them all."""
    rows = random_rows("causal", 2, 6)
    examples = [{**{name: value[r] for name, value in rows.items()}, "labels": rows["input_ids"][r]} for r in (0, 1)]
    expected = {}
    for variant in VARIANTS:
        model = tiny_model(variant)
        args = TrainingArguments(
            tmp_path / variant, max_steps=1, save_steps=1, learning_rate=0.1, use_cpu=True, disable_tqdm=True
        )
        Trainer(model, args, train_dataset=examples).train()
        model.eval()
        with torch.no_grad():
            expected[variant] = model(**rows).logits
    torch.save({**rows, "expected": expected}, tmp_path / "rows")
    program = """
for variant, expected in rows["expected"].items():
    model = AutoModelForCausalLM.from_pretrained(f"{folder}/{variant}/checkpoint-1", **trust)
    with torch.no_grad():
        report[variant] = torch.equal(model(**inputs).logits, expected)
"""
    report = run_clean_process(tmp_path, tmp_path / "rows", "without", program, from_scratch=True)
    assert {variant: report[variant] for variant in VARIANTS} == dict.fromkeys(VARIANTS, True)
