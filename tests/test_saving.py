# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Models are ordinary models of the library: saved and loaded (also without this package), resized, tied, compiled."""

import json
import re

import pytest
import torch
from accelerate import cpu_offload
from clean_process import run_clean_process
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    StaticCache,
    Trainer,
    TrainingArguments,
)
from variants import SIZES, all_variants, any_order_variants, left_tokens, random_rows, tiny_config, tiny_model

from modeling_aoarm import AOARMForCausalLM, AOARMModel


@all_variants
def test_a_fresh_process_with_the_package_computes_and_fills_the_same(variant, tmp_path):
    """Law 7 for users of the package, who need to trust no code; `test_remote_code.py` has those without it."""
    model = tiny_model(variant, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0})
    model.save_pretrained(tmp_path / "model")
    rows = random_rows(variant, 2, 6)
    rows["generation_mask"] = torch.tensor([[False, False, True, True, True, True]] * 2)
    way = {"do_sample": True} if variant == "causal" else {"do_sample": True, "decoding_order": "confidence"}
    torch.save({**rows, "ways": [way]}, tmp_path / "rows")
    report = run_clean_process(tmp_path / "model", tmp_path / "rows", "with")
    assert report["module"].startswith("modeling_aoarm.") and report["same_body"]
    results = torch.load(tmp_path / "rows.out")
    generation_mask = rows.pop("generation_mask")
    with torch.no_grad():
        torch.testing.assert_close(results["logits"], model(**rows).logits, atol=1e-6, rtol=0)
    torch.manual_seed(3)
    filled = model.generate(rows["input_ids"], generation_mask=generation_mask, **way)
    assert torch.equal(results["filled"][0], filled)


@all_variants
def test_a_saved_folder_names_the_code_of_every_auto_class(variant, tmp_path):
    for saved in (tiny_model(variant), tiny_model(variant).model):
        saved.save_pretrained(tmp_path)
        assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == {
            "AutoConfig": "configuration_aoarm.AOARMConfig",
            "AutoModel": "modeling_aoarm.AOARMModel",
            "AutoModelForCausalLM": "modeling_aoarm.AOARMForCausalLM",
        }
        assert (tmp_path / "generation_aoarm.py").exists()
    assert isinstance(AutoModelForCausalLM.from_pretrained(tmp_path), AOARMForCausalLM)
    assert isinstance(AutoModel.from_pretrained(tmp_path), AOARMModel)
    with pytest.raises(ValueError, match="needs the head AOARMForCausalLM"):
        AutoModelForMaskedLM.from_pretrained(tmp_path)


@all_variants
def test_every_tensor_of_a_loaded_model_is_set(variant, tmp_path):
    """Loading starts from uninitialised memory: buffers that are not saved must be computed again."""
    model = tiny_model(variant)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    expected = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    actual = {**dict(loaded.named_parameters()), **dict(loaded.named_buffers())}
    assert expected.keys() == actual.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, atol=0, rtol=0)


def test_missing_weights_are_drawn_anew_and_reported(tmp_path):
    """A single-stream checkpoint opened as two streams gets a query vector of the right size, not random memory."""
    tiny_model("decoupled_rope", initializer_range=0.02).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    config.attention_variant = "two_stream"
    model, report = AOARMForCausalLM.from_pretrained(tmp_path, config=config, output_loading_info=True)
    assert set(report["missing_keys"]) == {"model.query_embedding.weight"}
    assert 0.005 < model.model.query_embedding.weight.std() < 0.05


@all_variants
def test_embeddings_can_grow_by_a_mask_token(variant):
    model = tiny_model(variant, tie_word_embeddings=True)
    rows = random_rows(variant, 2, 5)
    with torch.no_grad():
        before = model(**rows).logits
        model.resize_token_embeddings(26, mean_resizing=False)
        assert model.config.vocab_size == 26
        after = model(**rows).logits
        assert after.shape[-1] == 26
        torch.testing.assert_close(after[..., :23], before, atol=1e-6, rtol=0)
        assert model(**{**rows, "input_ids": rows["input_ids"] + 3}).logits.isfinite().all()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.config.mask_token_id = 25


@all_variants
def test_tied_embeddings_stay_tied_through_saving(variant, tmp_path):
    model = tiny_model(variant, tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    rows = random_rows(variant, 1, 5)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**rows).logits, model(**rows).logits)


@all_variants
def test_parameter_names_are_llamas(variant):
    """Checkpoints convert by name: every parameter but those of the variant itself is one of LlamaForCausalLM's."""
    sizes = tiny_config(variant).to_dict()
    shared = {name: value for name, value in sizes.items() if name in SIZES}
    llama = LlamaForCausalLM(LlamaConfig(**shared))
    theirs = {name: parameter.shape for name, parameter in llama.named_parameters()}
    ours = {name: parameter.shape for name, parameter in tiny_model(variant).named_parameters()}
    further = {re.sub(r"layers\.\d+", "layers.N", name) for name in ours if name not in theirs}
    assert further == {
        "two_stream": {"model.query_embedding.weight"},
        "two_stream_neighbor": {"model.query_embedding.weight"},
        "double_position": {"model.position_embedding.own.weight"},
        "double_position_summed": {"model.position_embedding.own.weight", "model.position_embedding.target.weight"},
        "adaptive_norm": {
            *("model.position_embedding.weight", "model.target_embedding.weight"),
            *("model.layers.N.modulation.weight", "model.layers.N.modulation.bias"),
            *("model.norm_modulation.weight", "model.norm_modulation.bias"),
        },
    }.get(variant, set())
    assert all(ours[name] == shape for name, shape in theirs.items())


@all_variants
def test_positions_of_any_integer_type_and_of_one_example_for_all_are_taken(variant):
    model = tiny_model(variant)
    rows = random_rows(variant, 1, 6)
    tokens = torch.randint(0, 23, (3, 6))
    with torch.no_grad():
        expected = model(tokens, **{n: v.expand(3, -1) for n, v in rows.items() if n != "input_ids"}).logits
        shared = {name: value.int() for name, value in rows.items() if name != "input_ids"}
        torch.testing.assert_close(model(tokens, **shared).logits, expected, atol=0, rtol=0)


@all_variants
def test_weights_may_live_elsewhere_between_calls(variant):
    """Offloading brings weights by hooks on the modules' calls: no weight may be read past them."""
    rows = random_rows(variant, 2, 5)
    model = tiny_model(variant)
    with torch.no_grad():
        expected = model(**rows).logits
        cpu_offload(model, execution_device=torch.device("cpu"))
        torch.testing.assert_close(model(**rows).logits, expected, atol=0, rtol=0)


@all_variants
def test_the_trainer_smooths_labels_as_it_does_for_llama(variant, tmp_path):
    """It shifts labels only for the models it knows by name."""
    model = tiny_model(variant)
    rows = random_rows(variant, 2, 6)
    trainer = Trainer(model, TrainingArguments(str(tmp_path), label_smoothing_factor=0.2, use_cpu=True))
    with torch.no_grad():
        loss = trainer.compute_loss(model, {**rows, "labels": rows["input_ids"], "use_cache": False})
        log_probs = model(**rows).logits[:, :-1].log_softmax(-1)
    exact = -log_probs.gather(-1, rows["input_ids"][:, 1:, None]).mean()
    torch.testing.assert_close(loss, 0.8 * exact - 0.2 * log_probs.mean(), atol=1e-5, rtol=0)


@all_variants
def test_logits_to_keep_keeps_the_last_rows(variant):
    model = tiny_model(variant)
    rows = random_rows(variant, 2, 6)
    with torch.no_grad():
        torch.testing.assert_close(model(**rows, logits_to_keep=2).logits, model(**rows).logits[:, -2:])


@pytest.mark.grid(pairs=False, seldom="inductor")
@any_order_variants
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_one_compiled_step_serves_all_positions(variant, backend):
    """A cached step compiles as one graph, and positions, targets and the place in a static cache are data to it."""
    torch._dynamo.reset()
    model = tiny_model(variant, num_hidden_layers=2)
    rows = random_rows(variant, 2, 8)
    config = model.config
    cache = StaticCache(config=config, max_cache_len=8)
    with torch.no_grad():
        expected = model(**rows).logits
        rows |= left_tokens(variant, **rows)
        pieces = [model(**{name: value[:, :3] for name, value in rows.items()}, past_key_values=cache).logits]
        step = torch.compile(model, fullgraph=True, dynamic=False, backend=backend)
        for r in range(3, 8):
            piece = {name: value[:, r : r + 1].clone() for name, value in rows.items()}
            # The first call compiles; after it a guard that fails would be an error.
            with torch.compiler.set_stance("default" if r == 3 else "fail_on_recompile"):
                pieces.append(step(**piece, past_key_values=cache).logits)
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, atol=1e-5, rtol=0)


@all_variants
def test_linear_layers_get_three_dimensions_at_most(variant):
    """Those of some quantisation libraries take no more."""
    model, seen = tiny_model(variant), set()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda module, args: seen.add(args[0].ndim))
    with torch.no_grad():
        model(**random_rows(variant, 2, 5))
    assert seen and max(seen) <= 3
