# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Adapters of PEFT: trained, saved, loaded without this package, merged, switched; and what is refused."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from clean_process import run_clean_process
from datasets import Dataset
from peft import (
    AdaLoraConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from transformers import AutoModelForCausalLM, TrainingArguments
from variants import VARIANTS, all_variants, any_order_variants, random_rows, tiny_config, tiny_model

from modeling_aoarm import AOARMForCausalLM, DataCollatorForAnyOrderLM, infill, lora_config, with_example_index
from modeling_aoarm.data.tokenizers import character_tokenizer
from modeling_aoarm.peft import LORA_TARGETS
from modeling_aoarm.training import AnyOrderTrainer, EMACallback


pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

REPOSITORY = Path(__file__).resolve().parents[1]
TOKENIZER = character_tokenizer(["abcdefghijklmnopqr"])
PROMPT_LEARNING = {
    "PROMPT_TUNING": (PromptTuningConfig, {}),
    "P_TUNING": (PromptEncoderConfig, {"encoder_hidden_size": 16}),
    "PREFIX_TUNING": (PrefixTuningConfig, {}),
}
prompt_learning = pytest.mark.parametrize("method", list(PROMPT_LEARNING))


def adapted(variant, seed=1, base=None, name="default"):
    """A model with an adapter whose weights, and query vector, are far from those that change nothing."""
    base = tiny_model(variant) if base is None else base
    torch.manual_seed(seed)
    model = get_peft_model(base, lora_config(base, r=2, lora_alpha=4), adapter_name=name)
    return disturbed(model, name)


@torch.no_grad()
def disturbed(model, name):
    for weight_name, weight in model.named_parameters():
        if f".{name}." in weight_name:
            weight.normal_(std=0.3)
    return model.eval()


def merged_by_hand(model, base, name="default"):
    """A plain model with W + alpha / r · B A for each adapted W, and the adapter's query vector."""
    weights = dict(model.named_parameters())
    by_hand = AOARMForCausalLM(base.config)
    with torch.no_grad():
        for own_name, weight in by_hand.named_parameters():
            module, _, kind = own_name.rpartition(".")
            path = f"base_model.model.{module}"
            if kind == "weight" and f"{path}.lora_A.{name}.weight" in weights:
                low_rank = (weights[f"{path}.lora_{side}.{name}.weight"].double() for side in "BA")
                update = 2 * torch.matmul(*low_rank)
                weight.copy_(weights[f"{path}.base_layer.weight"] + update)
            elif f"{path}.modules_to_save.{name}.weight" in weights:
                weight.copy_(weights[f"{path}.modules_to_save.{name}.weight"])
            else:
                is_wrapped = f"{path}.base_layer.{kind}" in weights
                weight.copy_(weights[f"{path}.base_layer.{kind}" if is_wrapped else f"{path}.{kind}"])
    return by_hand.eval()


def canvases(variant, batch=2):
    """Rows for `forward`, and a canvas for `generate` and `score` with a seeded way of filling it."""
    rows = random_rows(variant, batch, 6)
    generation_mask = torch.tensor([[False, False, True, True, True, True]] * batch)
    way = {"do_sample": True} if variant == "causal" else {"do_sample": True, "decoding_order": "random"}
    return rows, {"generation_mask": generation_mask, "way": way}


@torch.no_grad()
def answers(model, rows, canvas):
    """Logits, a seeded filling, and its log-likelihood from left to right."""
    logits = model(**rows).logits
    torch.manual_seed(3)
    # By name: older versions of PEFT drop other arguments in prompt learning.
    filled = model.generate(input_ids=rows["input_ids"], generation_mask=canvas["generation_mask"], **canvas["way"])
    scores = model.score(filled, canvas["generation_mask"], decoding_order="left_to_right")
    return logits, filled, scores.log_likelihood


def assert_same(first, second, tolerance=0.0):
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=0)


def assert_different(first, second):
    assert (first[0] - second[0]).abs().max() > 0.1


def training_arguments(folder, **changes):
    defaults = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 0.01, "logging_steps": 1}
    settings = {**defaults, "save_strategy": "no", "use_cpu": True, "disable_tqdm": True, **changes}
    return TrainingArguments(folder, **settings)


def trainer_of(model, folder, order="uniform", ema=None, **changes):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(5, 23, (12, 7), generator=generator).tolist()
    dataset = with_example_index(Dataset.from_dict({"input_ids": rows}))
    return AnyOrderTrainer(
        model=model,
        args=training_arguments(folder, **changes),
        data_collator=DataCollatorForAnyOrderLM(TOKENIZER, order=order),
        train_dataset=dataset,
        eval_dataset=dataset,
        eval_draws=1,
        callbacks=[EMACallback(ema)] if ema else None,
    )


# Adapters that change weights


@all_variants
def test_lora_needs_no_target_modules(variant):
    model = get_peft_model(tiny_model(variant), LoraConfig(r=2))
    found = {name.rpartition(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A." in name}
    layers = {name for name, module in tiny_model(variant).named_modules() if isinstance(module, torch.nn.Linear)}
    assert {name.removeprefix("base_model.model.") for name in found} == layers - {"lm_head"}
    assert {name.rpartition(".")[2] for name in found} <= set(LORA_TARGETS)


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (AdaLoraConfig, {"total_step": 10}),
        (IA3Config, {}),
        (LNTuningConfig, {}),
        (LoHaConfig, {}),
        (LoKrConfig, {}),
        (VeraConfig, {}),
        (LoraConfig, {"use_dora": True}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "-".join(value),
)
@pytest.mark.parametrize("variant", ["two_stream", "decoupled_rope"])
def test_other_methods_need_none_either(variant, config, options):
    rows = random_rows(variant, 2, 6)
    model = get_peft_model(tiny_model(variant), config(task_type="CAUSAL_LM", **options))
    with torch.no_grad():
        torch.testing.assert_close(model(**rows).logits, tiny_model(variant)(**rows).logits, atol=1e-5, rtol=0)
    model(**rows, labels=rows["input_ids"]).loss.backward()
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained and all(weight.grad is not None for weight in trained.values())


WITH_QUERY_VECTOR = ("two_stream", "two_stream_neighbor")


def test_the_query_vector_is_trained_where_there_is_one_and_the_callers_modules_are_kept():
    for variant in VARIANTS:
        expected = ["query_embedding"] if variant in WITH_QUERY_VECTOR else None
        assert lora_config(tiny_model(variant)).modules_to_save == expected
        assert lora_config(tiny_model(variant), ["lm_head"]).modules_to_save == ["lm_head", *(expected or [])]
    config = lora_config(tiny_model("causal"), r=3, task_type="FEATURE_EXTRACTION")
    assert (config.r, config.task_type) == (3, "FEATURE_EXTRACTION")


@all_variants
def test_training_changes_the_adapter_and_the_query_vector_and_nothing_else(variant, tmp_path):
    base = tiny_model(variant)
    model = get_peft_model(base, lora_config(base, r=2))
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    # The first step changes B only, because B is zero; the second changes A as well.
    trainer_of(model, tmp_path, "left_to_right" if variant == "causal" else "uniform").train()
    has_vector = variant in WITH_QUERY_VECTOR
    changed = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    expected = {name for name in before if ".lora_A." in name or ".lora_B." in name}
    if has_vector:
        expected.add("base_model.model.model.query_embedding.modules_to_save.default.weight")
    linear = sum(isinstance(module, torch.nn.Linear) for module in tiny_model(variant).modules()) - 1
    assert len(expected) == 2 * linear + has_vector
    assert changed == expected


@all_variants
def test_an_adapter_computes_what_adapted_weights_compute_and_merges_into_them(variant):
    base = tiny_model(variant)
    rows, canvas = canvases(variant)
    plain = answers(base, rows, canvas)
    model = adapted(variant, base=base)
    expected = answers(merged_by_hand(model, tiny_model(variant)), rows, canvas)
    assert_different(expected, plain)
    assert_same(answers(model, rows, canvas), expected, 5e-5)
    with model.disable_adapter():
        assert_same(answers(model, rows, canvas), plain)
    merged = model.merge_and_unload()
    assert type(merged) is AOARMForCausalLM
    assert_same(answers(merged, rows, canvas), expected, 5e-5)
    for name, weight in merged_by_hand(adapted(variant), base).named_parameters():
        torch.testing.assert_close(merged.get_parameter(name), weight, atol=1e-6, rtol=0)


@all_variants
def test_two_adapters_take_turns(variant, tmp_path):
    rows, canvas = canvases(variant)
    alone = {}
    for seed, name in enumerate(("first", "second")):
        other = adapted(variant, seed=seed, name=name)
        alone[name] = answers(other, rows, canvas)
        other.save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(tiny_model(variant), tmp_path / "first", adapter_name="first").eval()
    model.load_adapter(tmp_path / "second", adapter_name="second")
    assert_different(alone["first"], alone["second"])
    for name in ("first", "second", "first"):
        model.set_adapter(name)
        assert_same(answers(model, rows, canvas), alone[name])


@any_order_variants
def test_an_adapter_for_each_example_is_never_mixed_up_in_silence(variant):
    """A single stream has one example after the other, as PEFT expects; two streams are more than it has names for."""
    model = adapted(variant, name="first")
    model.add_adapter("second", lora_config(model.get_base_model(), r=2))
    names, rows = ["first", "second"], random_rows(variant, 2, 6)
    if variant.startswith("two_stream"):
        with pytest.raises((TypeError, ValueError)):
            model(**rows, adapter_names=names)
        return
    model.eval()
    with torch.no_grad():
        mixed = model(**rows, adapter_names=names).logits
        for index, name in enumerate(names):
            model.set_adapter(name)
            torch.testing.assert_close(mixed[index], model(**rows).logits[index], atol=1e-5, rtol=0)


def test_text_is_filled_by_an_adapted_model():
    special = {f"{name}_token_id": getattr(TOKENIZER, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    model = adapted("two_stream", base=tiny_model("two_stream", vocab_size=len(TOKENIZER), **special))
    text = ["ab<blank:2>ef", "<blank:1-3>q"]
    filled = infill(model, TOKENIZER, text, decoding_order="confidence")
    assert filled == infill(model.merge_and_unload(), TOKENIZER, text, decoding_order="confidence")


# Saved and loaded

LOADS_ADAPTERS = """
from peft import AutoPeftModelForCausalLM, PeftModel, PromptTuningConfig, get_peft_model

results, report["modules"], report["refused"] = {}, {}, {}
for variant in rows["variants"]:
    inputs = torch.load(f"{variant}/inputs")
    base = AutoModelForCausalLM.from_pretrained(f"{variant}/base", **trust)
    report["modules"][variant] = type(base).__module__
    loaded = {
        "PeftModel": PeftModel.from_pretrained(base, f"{variant}/adapter"),
        "AutoPeftModel": AutoPeftModelForCausalLM.from_pretrained(f"{variant}/adapter", **trust),
        "merged": AutoModelForCausalLM.from_pretrained(f"{variant}/merged", **trust),
    }
    for name, model in loaded.items():
        with torch.no_grad():
            logits = model.eval()(**inputs["rows"]).logits
        torch.manual_seed(3)
        blanks = inputs["canvas"]["generation_mask"]
        filled = model.generate(inputs["rows"]["input_ids"], generation_mask=blanks, **inputs["canvas"]["way"])
        scores = model.score(filled, blanks, decoding_order="left_to_right").log_likelihood
        results[variant, name] = logits, filled, scores
    base = AutoModelForCausalLM.from_pretrained(f"{variant}/base", **trust)
    try:
        get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))(**inputs["rows"])
    except ValueError as error:
        report["refused"][variant] = str(error)
torch.save(results, "results")
"""

WITHOUT_PEFT = """
import json, sys


class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "peft":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Refuse())
from modeling_aoarm import AOARMConfig, AOARMForCausalLM, lora_config
import torch

sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
model = AOARMForCausalLM(AOARMConfig(vocab_size=9, **sizes))
rows = torch.tensor([[3, 4, 5]])
model(rows, position_ids=torch.tensor([[0, 2, 1]]), labels=rows).loss.backward()
try:
    lora_config(model)
except ImportError as error:
    print(json.dumps([str(error), [name for name in sys.modules if name.startswith("peft.")]]))
"""


def test_saved_adapters_and_merged_models_need_nothing_but_peft(tmp_path, monkeypatch):
    # Adapters name their base model as it was loaded: by a path from here.
    monkeypatch.chdir(tmp_path)
    expected = {}
    for variant in VARIANTS:
        tiny_model(variant).save_pretrained(f"{variant}/base")
        model = adapted(variant, base=AutoModelForCausalLM.from_pretrained(f"{variant}/base"))
        rows, canvas = canvases(variant)
        torch.save({"rows": rows, "canvas": canvas}, f"{variant}/inputs")
        expected[variant] = answers(model, rows, canvas)
        model.save_pretrained(f"{variant}/adapter")
        model.merge_and_unload().save_pretrained(f"{variant}/merged")
        assert sorted(os.listdir(f"{variant}/adapter")) == [
            "README.md",
            "adapter_config.json",
            "adapter_model.safetensors",
        ]
        # The query vector: 32 numbers, and not the embeddings next to it.
        assert os.path.getsize(f"{variant}/adapter/adapter_model.safetensors") < 24_000
    torch.save({**rows, "variants": list(VARIANTS)}, "rows")
    report = run_clean_process(tmp_path, tmp_path / "rows", "without", LOADS_ADAPTERS)
    results = torch.load("results")
    assert len(results) == 3 * len(VARIANTS)
    for (variant, loader), result in results.items():
        assert report["modules"][variant].startswith("transformers_modules.")
        assert_same(result, expected[variant], 5e-5 if loader == "merged" else 2e-5)
        assert "cannot be combined with PROMPT_TUNING" in report["refused"][variant]


def test_peft_may_be_missing():
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT_PEFT]
    process = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert process.returncode == 0, process.stderr
    message, modules = json.loads(process.stdout)
    assert message == "No module named 'peft'" and modules == []


@pytest.mark.parametrize("ema", [None, 0.5], ids=["", "ema"])
def test_a_resumed_training_of_an_adapter_is_the_uninterrupted_one(ema, tmp_path):
    finished = []
    for resume in (False, str(tmp_path / "checkpoint-2")):
        base = tiny_model("two_stream")
        torch.manual_seed(4)
        model = get_peft_model(base, lora_config(base, r=2))
        trainer = trainer_of(model, tmp_path, ema=ema, max_steps=4, save_strategy="steps", save_steps=2)
        trainer.train(resume_from_checkpoint=resume)
        finished.append((trainer.evaluate()["eval_any_order_nll"], dict(model.named_parameters())))
        trainer.save_model(tmp_path / "model")
        loaded = PeftModel.from_pretrained(tiny_model("two_stream"), tmp_path / "model").eval()
        assert trainer_of(loaded, tmp_path / "other").evaluate()["eval_any_order_nll"] == finished[-1][0]
    assert finished[0][0] == finished[1][0]
    for name, weight in finished[0][1].items():
        assert torch.equal(weight, finished[1][1][name]), name


# Prompt learning


def prompted(variant, method, base=None):
    config, options = PROMPT_LEARNING[method]
    base = tiny_model(variant) if base is None else base
    torch.manual_seed(0)
    return get_peft_model(base, config(task_type="CAUSAL_LM", num_virtual_tokens=3, **options)).eval()


@all_variants
@pytest.mark.parametrize("method", ["PROMPT_TUNING", "PREFIX_TUNING"])
def test_virtual_tokens_in_front_of_text_are_as_good_as_real_ones(variant, method):
    """Embeddings, or keys and values, of three tokens: then the text continues as if these had been written there."""
    base = tiny_model(variant)
    written = torch.tensor([[7, 3, 11]])
    text = torch.randint(0, 23, (2, 5), generator=torch.Generator().manual_seed(1))
    whole = torch.cat([written.expand(2, -1), text], dim=1)
    with torch.no_grad():
        expected = base(whole).logits[:, 3:]
        loss = base(whole, labels=whole.index_fill(1, torch.arange(3), -100)).loss
        continued = base.generate(whole, do_sample=False, max_new_tokens=4)[:, 3:]
        virtual = base.get_input_embeddings()(written)[0]
        if method == "PREFIX_TUNING":
            layers = base(written).past_key_values.layers
            # For each token, layer by layer its keys and then its values, head by head.
            virtual = torch.stack([part[0] for layer in layers for part in (layer.keys, layer.values)])
            virtual = virtual.permute(2, 0, 1, 3).flatten(1)
    model = prompted(variant, method, base)
    with torch.no_grad():
        model.prompt_encoder["default"].embedding.weight.copy_(virtual)
        output = model(text, labels=text)
        torch.testing.assert_close(output.logits[:, -5:], expected, atol=1e-5, rtol=0)
        if method == "PROMPT_TUNING":
            # The last virtual token predicts the first one of the text.
            torch.testing.assert_close(output.loss, loss, atol=1e-5, rtol=0)
        assert torch.equal(model.generate(input_ids=text, do_sample=False, max_new_tokens=4), continued)


@all_variants
@prompt_learning
def test_prompt_learning_is_refused_where_it_would_lose_orders(variant, method, tmp_path):
    model = prompted(variant, method)
    rows, canvas = canvases(variant)
    ids, kinds = rows["input_ids"], torch.tensor([[0, 0, 0, 1, 1, 1]] * 2)
    with warnings.catch_warnings():
        # PEFT drops positions with a warning; it must not come that far.
        warnings.simplefilter("error", UserWarning)
        for given in (
            {"position_ids": rows["position_ids"]},
            {"target_position_ids": rows["target_position_ids"]},
            {"segment_ids": kinds},
            {"position_ids": rows["position_ids"], "target_position_ids": rows["target_position_ids"]},
        ):
            names = "`, `".join(given)
            with pytest.raises(ValueError, match=f"`{names}` cannot be combined with {method}.*LoRA"):
                model(ids, **given)
        with pytest.raises(ValueError, match=f"`score` cannot be combined with {method}.*LoRA"):
            model.score(ids)
        with pytest.raises(ValueError, match=f"Prompt learning.*LoRA.*{method}"):
            model.generate(input_ids=ids, generation_mask=canvas["generation_mask"])
    base = tiny_model(variant)
    with model.disable_adapter():
        assert_same(answers(model, rows, canvas), answers(base, rows, canvas))
    assert_same(answers(model.get_base_model(), rows, canvas), answers(base, rows, canvas))


@prompt_learning
def test_the_trainer_refuses_prompt_learning_before_it_changes_anything(method, tmp_path):
    model = prompted("two_stream", method)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    trainer = trainer_of(model, tmp_path)
    for work in (trainer.train, trainer.evaluate):
        with pytest.raises(ValueError, match=f"`position_ids`.*cannot be combined with {method}"):
            work()
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    assert not list(tmp_path.glob("checkpoint-*"))


def test_prompt_learning_loaded_from_a_folder_is_watched_and_models_around_others_are_not(tmp_path):
    prompted("two_stream", "PROMPT_TUNING").save_pretrained(tmp_path)
    rows = random_rows("two_stream", 2, 6)
    with pytest.raises(ValueError, match="cannot be combined with PROMPT_TUNING"):
        PeftModel.from_pretrained(tiny_model("two_stream"), tmp_path)(**rows)

    class Wrapper(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.base_model = AOARMForCausalLM(tiny_config("two_stream"))

        def forward(self, **rows):
            return self.base_model(**rows)

    assert Wrapper()(**rows).logits.shape == (2, 6, 23) and not hasattr(Wrapper(), "score")
