# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""What the library and its users do with any causal model: caches, packing, trees, padding, hidden states, threads."""

import copy

import pytest
import torch
from accelerate import disk_offload
from clean_process import run_clean_process
from test_identity_order import as_variant, peer
from transformers import DataCollatorWithFlattening, DynamicCache, GenerationConfig, StaticCache, TrainingArguments
from variants import (
    ANY_ORDER,
    EVERY_VARIANT,
    VARIANTS,
    all_variants,
    any_order_variants,
    checkpoint_activations,
    every_variant,
    random_rows,
    tiny_config,
    tiny_model,
)

from modeling_aoarm import (
    AOARMGenerationConfig,
    DataCollatorForAnyOrderLM,
    DataCollatorForMaskedDiffusion,
    infill,
    modeling_aoarm,
)
from modeling_aoarm.data.tokenizers import character_tokenizer
from modeling_aoarm.evaluation.likelihood import evaluate_likelihood
from modeling_aoarm.training import AnyOrderTrainer


TEXT = torch.randint(0, 23, (2, 6), generator=torch.Generator().manual_seed(0))
identical_variants = pytest.mark.parametrize("variant", ["two_stream_content", "decoupled_rope", "causal"])


# Caches


@all_variants
def test_the_cache_has_two_names(variant):
    model = tiny_model(variant)
    whole = model(TEXT).logits
    for name in ("past_key_values", "cache"):
        cache = DynamicCache(config=model.config)
        first = model(TEXT[:, :4], **{name: cache})
        assert first.cache is cache and first.past_key_values is cache and cache.get_seq_length() == 4
        second = model(TEXT[:, 4:], **{name: cache}).logits
        torch.testing.assert_close(torch.cat([first.logits, second], 1), whole, atol=1e-5, rtol=0)
        body = model.model(TEXT[:, :4], **{name: DynamicCache(config=model.config)})
        assert body.cache is body.past_key_values and body.cache.get_seq_length() == 4


@all_variants
def test_a_cache_that_would_be_lost_is_refused(variant):
    model, cache = tiny_model(variant), DynamicCache(config=tiny_config(variant))
    with pytest.raises(ValueError, match="same argument"):
        model(TEXT, past_key_values=cache, cache=cache)
    with pytest.raises(ValueError, match="got one as `mems`"):
        model(TEXT, mems=cache)
    with pytest.raises(ValueError, match="must be a transformers `Cache`, got tuple"):
        model(TEXT, past_key_values=((TEXT, TEXT),))
    assert model(TEXT).past_key_values is not None and model.train()(TEXT).past_key_values is None
    checkpoint_activations(model)
    with pytest.raises(ValueError, match="activation checkpointing"):
        model(TEXT, past_key_values=cache)
    with pytest.raises(ValueError, match="activation checkpointing"):
        model(TEXT, use_cache=True)
    assert model(TEXT).past_key_values is None
    with torch.no_grad():
        assert model(TEXT, past_key_values=cache).past_key_values.get_seq_length() == 6


@pytest.mark.grid
@all_variants
@pytest.mark.parametrize("checkpointed", [False, True])
def test_models_in_training_generate_what_they_do_otherwise(variant, checkpointed):
    model = tiny_model(variant)
    expected = model.generate(TEXT, max_new_tokens=5, do_sample=False, use_cache=False)
    if checkpointed:
        checkpoint_activations(model)
    model.train()
    assert torch.equal(model.generate(TEXT, max_new_tokens=5, do_sample=False), expected)


@any_order_variants
def test_the_cache_of_canvases_has_two_names(variant):
    model = tiny_model(variant)
    blanks = torch.zeros(2, 6, dtype=torch.bool)
    blanks[:, [2, 4]] = True
    start = model.generate(TEXT, generation_mask=blanks, return_dict_in_generate=True)
    assert start.cache is start.past_key_values is not None
    longer = [
        model.generate(
            start.sequences, max_new_tokens=3, decoding_order="random", generator=seeded(1), **{name: start.cache}
        )
        for name in ("past_key_values", "cache")
    ]
    assert torch.equal(*longer)
    with pytest.raises(ValueError, match="same argument"):
        model.generate(start.sequences, max_new_tokens=3, past_key_values=start.cache, cache=start.cache)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# Text whose positions are not 0, 1, 2, ...


@identical_variants
@pytest.mark.parametrize("cache", [{}, {"cache_implementation": "static"}, {"use_cache": False}], ids=str)
def test_right_padded_prompts_go_on_as_in_llama(variant, cache):
    model, ours = peer("llama")
    padded = torch.tensor([[3, 4, 5, 6, 7], [3, 4, 5, 0, 0], [8, 0, 0, 0, 0]])
    how = {"attention_mask": (padded > 0).long(), "max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(padded, **how, **cache)
    assert torch.equal(as_variant(variant, model, ours).generate(padded, **how, **cache), expected)


@all_variants
def test_right_padded_prompts_raise_nothing(variant):
    padded = torch.tensor([[3, 4, 5, 6, 7], [3, 4, 5, 0, 0]])
    model = tiny_model(variant)
    filled = model.generate(padded, attention_mask=(padded > 0).long(), max_new_tokens=4, pad_token_id=0)
    assert filled.shape == (2, 9)


FLATTENED = [[3, 4, 5, 6], [7], [8, 9, 10]]


@all_variants
def test_positions_that_start_again_are_packed_text(variant):
    """As `DataCollatorWithFlattening` makes it, whose first labels are -100."""
    model = tiny_model(variant)
    batch = DataCollatorWithFlattening()([{"input_ids": ids, "labels": ids} for ids in FLATTENED])
    packed = model(**batch)
    alone = [model(torch.tensor([ids])).logits for ids in FLATTENED]
    torch.testing.assert_close(packed.logits, torch.cat(alone, dim=1), atol=1e-5, rtol=0)
    segments = torch.tensor([[0, 0, 0, 0, 1, 2, 2, 2]])
    given = model(batch["input_ids"], segment_ids=segments, labels=batch["labels"])
    assert torch.equal(packed.logits, given.logits) and torch.equal(packed.loss, given.loss)
    assert packed.past_key_values is None
    batch["labels"][0, 4] = 7
    with pytest.raises(ValueError, match="first row of each segment"):
        model(**batch)


@identical_variants
def test_packed_text_equals_llamas(variant):
    model, ours = peer("llama")
    batch = DataCollatorWithFlattening()([{"input_ids": ids, "labels": ids} for ids in FLATTENED])
    expected = model(**batch, use_cache=False)
    got = as_variant(variant, model, ours)(**batch)
    torch.testing.assert_close(got.logits, expected.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(got.loss, expected.loss)


@any_order_variants
def test_orders_may_be_packed_by_positions_and_have_one_zero_anywhere(variant):
    model = tiny_model(variant)
    orders = torch.tensor([[0, 3, 1, 2, 0, 2, 1], [4, 2, 0, 6, 1, 5, 3]])
    tokens = torch.randint(0, 23, orders.shape, generator=seeded(2))
    both = model(tokens, position_ids=orders).logits
    alone = [model(tokens[:1, part], position_ids=orders[:1, part]).logits for part in (slice(4), slice(4, 7))]
    torch.testing.assert_close(both[:1], torch.cat(alone, 1), atol=1e-5, rtol=0)
    torch.testing.assert_close(both[1:], model(tokens[1:], position_ids=orders[1:]).logits, atol=1e-5, rtol=0)


def test_masked_models_read_packed_text_too():
    model = tiny_model("bidirectional")
    packed = model(torch.tensor([sum(FLATTENED, [])]), position_ids=torch.tensor([[0, 1, 2, 3, 0, 0, 1, 2]])).logits
    alone = [model(torch.tensor([ids])).logits for ids in FLATTENED]
    torch.testing.assert_close(packed, torch.cat(alone, dim=1), atol=1e-5, rtol=0)


@pytest.mark.grid
@all_variants
@pytest.mark.parametrize("kind", ["bool", "additive"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_alternatives_in_a_tree_predict_what_follows_them(variant, kind, implementation):
    """A prepared mask and equal positions: each branch reads its own ancestors, and predicts its own next position."""
    model = tiny_model(variant)
    model.set_attn_implementation(implementation)
    parents, positions = [-1, 0, 1, 1, 2, 3], torch.tensor([[0, 1, 2, 2, 3, 3]])
    sees = torch.eye(6, dtype=torch.bool)
    for row, parent in enumerate(parents):
        if parent >= 0:
            sees[row] |= sees[parent]
    mask = sees[None, None]
    if kind == "additive":
        mask = torch.zeros(1, 1, 6, 6).masked_fill(~mask, torch.finfo(torch.float32).min)
    tree = torch.tensor([[3, 4, 5, 6, 7, 8]])
    logits = model(tree, position_ids=positions, attention_mask=mask).logits
    for leaf in (4, 5):
        branch = sees[leaf].nonzero().flatten()
        torch.testing.assert_close(logits[:, branch], model(tree[:, branch]).logits, atol=1e-5, rtol=0)


def test_in_a_tree_the_next_position_is_that_of_the_child_wherever_it_is():
    model = tiny_model("decoupled_rope")
    parents, positions = [-1, 0, 1, 1, 2], torch.tensor([[0, 5, 2, 2, 7]])
    sees = torch.eye(5, dtype=torch.bool)
    for row, parent in enumerate(parents[1:], start=1):
        sees[row] |= sees[parent]
    tokens = torch.tensor([[3, 4, 5, 6, 7]])
    given = {"position_ids": positions, "attention_mask": sees[None, None]}
    expected = model(tokens, target_position_ids=torch.tensor([[5, 2, 7, 3, 8]]), **given).logits
    torch.testing.assert_close(model(tokens, **given).logits, expected, atol=1e-6, rtol=0)
    given["position_ids"] = torch.tensor([[0, 5, 2, 3, 7]])
    with pytest.raises(ValueError, match="`target_position_ids` must be given where a prepared `attention_mask`"):
        model(tokens, **given)
    model(tokens, target_position_ids=torch.tensor([[5, 2, 7, 4, 8]]), **given)


@any_order_variants
def test_biases_in_a_prepared_mask_hide_nothing(variant):
    model = tiny_model(variant)
    rows = torch.arange(5)
    mask = -0.1 * (rows[:, None] - rows).abs().float()
    mask = mask.masked_fill(rows > rows[:, None], torch.finfo(torch.float32).min)[None, None]
    order, tokens = torch.tensor([[0, 3, 1, 4, 2]]), torch.tensor([[3, 4, 5, 6, 7]])
    given = {"position_ids": order, "attention_mask": mask}
    expected = model(tokens, target_position_ids=torch.tensor([[3, 1, 4, 2, 3]]), **given).logits
    torch.testing.assert_close(model(tokens, **given).logits, expected, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match=r"A prepared `attention_mask` must have the shape"):
        model(tokens, attention_mask=mask[..., :4])


@all_variants
def test_one_row_sees_what_there_is_of_a_static_cache(variant):
    model = tiny_model(variant)
    cache = StaticCache(config=model.config, max_cache_len=16)
    positions = torch.arange(6).expand(2, -1).contiguous()
    parts = []
    for part in (slice(5), slice(5, 6)):
        given = {"position_ids": positions[:, part], "target_position_ids": positions[:, part] + 1}
        parts.append(model(TEXT[:, part], **given, past_key_values=cache).logits)
    torch.testing.assert_close(torch.cat(parts, 1), model(TEXT).logits, atol=1e-5, rtol=0)


@any_order_variants
def test_positions_that_are_no_text_are_checked_with_next_targets_too(variant):
    model = tiny_model(variant)
    for positions, message in (([0, 10**6, 5, 2], r"must lie in \[0"), ([0, 1, 1, 2], "twice")):
        for batch in (1, 2):
            given = torch.tensor([positions]).expand(batch, -1)
            with pytest.raises(ValueError, match=message):
                model(TEXT[:, :4], position_ids=given, target_position_ids=given + 1)


@pytest.mark.grid(pairs=False)
@all_variants
def test_positions_alone_may_be_compiled_with_a_cache(variant):
    model = tiny_model(variant)
    positions = torch.arange(6).expand(2, -1).contiguous()
    expected = model(TEXT, position_ids=positions, use_cache=True)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")(TEXT, position_ids=positions, use_cache=True)
    torch.testing.assert_close(compiled.logits, expected.logits, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="come back to 0 are packed sequences"):
        model(TEXT, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2]]).expand(2, -1), use_cache=True)


# Outputs


@all_variants
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_hidden_states_and_attentions_get_gradients_as_in_llama(variant, implementation):
    model = tiny_model(variant)
    model.set_attn_implementation(implementation)
    output = model(**random_rows(variant, 2, 5), output_hidden_states=True, output_attentions=implementation == "eager")
    names = ["hidden_states", *(["attentions"] if implementation == "eager" else [])]
    if variant.startswith("two_stream"):
        names += [f"content_{name}" for name in names]
    kept = {(name, index): value for name in names for index, value in enumerate(getattr(output, name))}
    for value in kept.values():
        value.retain_grad()
    output.logits.square().sum().backward()
    for key, value in kept.items():
        assert value.grad is not None and value.grad.abs().max() > 0, key


@pytest.mark.parametrize("variant", ["two_stream", "two_stream_content"])
def test_hidden_states_of_several_targets_get_gradients(variant):
    model = tiny_model(variant)
    rows = random_rows(variant, 2, 5)
    rows["target_position_ids"] = rows["target_position_ids"][..., None] + torch.tensor([0, 1, 2])
    output = model(**rows, output_hidden_states=True)
    for value in output.hidden_states:
        value.retain_grad()
    output.logits.square().sum().backward()
    assert all(value.grad.abs().max() > 0 for value in output.hidden_states)


# Threads and processes


@all_variants
def test_several_threads_may_use_one_model(variant, monkeypatch):
    """Calls with a mask and without one lay heads out in different ways. Here one comes in the middle of another."""
    model = tiny_model(variant)
    calls = [{"input_ids": TEXT}, {"input_ids": TEXT, "attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2])}]
    calls.append({**calls[1], "use_cache": True})
    with torch.no_grad():
        expected = [model(**call).logits for call in calls]
    interface, others = modeling_aoarm.ALL_ATTENTION_FUNCTIONS.get_interface, []

    def interrupted(implementation, default):
        function = interface(implementation, default)

        def attend(module, query, key, *args, **kwargs):
            if others:
                model(**others.pop())
            assert module.num_key_value_groups * key.shape[1] == query.shape[1]
            return function(module, query, key, *args, **kwargs)

        return attend

    monkeypatch.setattr(modeling_aoarm.ALL_ATTENTION_FUNCTIONS, "get_interface", interrupted)
    for call, logits in zip(calls, expected, strict=True):
        for other in calls:
            others.append(other)
            with torch.no_grad():
                torch.testing.assert_close(model(**call).logits, logits, atol=1e-6, rtol=0)
            assert not others


SMOOTHING = """
from transformers import Trainer, TrainingArguments
model = AutoModelForCausalLM.from_pretrained(folder, **trust)
sentence = {"input_ids": [1, 2, 3, 4, 5, 6], "labels": [1, 2, 3, 4, 5, 6]}
arguments = TrainingArguments(
    folder + "/out", max_steps=60, learning_rate=0.01, label_smoothing_factor=0.1, report_to=[], use_cpu=True,
    save_strategy="no", disable_tqdm=True, per_device_train_batch_size=1,
)
Trainer(model, arguments, train_dataset=[sentence] * 60).train()
report["next_tokens"] = model(torch.tensor([[1, 2, 3, 4, 5]])).logits.argmax(-1)[0].tolist()
import torch.nn.modules.module as module
report["hooks"] = len(module._global_module_registration_hooks)
"""


@pytest.mark.parametrize("package", ["with", "without"])
def test_label_smoothing_predicts_next_tokens_with_and_without_the_package(tmp_path, package):
    tiny_model("decoupled_rope").save_pretrained(tmp_path / "model")
    torch.save({"input_ids": TEXT, "position_ids": None, "target_position_ids": None}, tmp_path / "rows")
    report = run_clean_process(tmp_path / "model", tmp_path / "rows", package, program=SMOOTHING)
    assert report["next_tokens"] == [2, 3, 4, 5, 6]


IMPORT = """
import torch.nn.modules.module as module
import modeling_aoarm.cli, modeling_aoarm.training.trainer
report["hooks"] = len(module._global_module_registration_hooks)
"""


def test_an_import_changes_nothing_of_torch(tmp_path):
    torch.save({"input_ids": TEXT, "position_ids": None, "target_position_ids": None}, tmp_path / "rows")
    assert run_clean_process(tmp_path, tmp_path / "rows", "with", program=IMPORT, from_scratch=True)["hooks"] == 0


# Dtypes and devices


@pytest.mark.grid
@pytest.mark.parametrize("variant", ANY_ORDER[:3] + ["bidirectional"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_default_dtype_of_torch_does_not_matter(variant, dtype):
    model = tiny_model(variant)
    blanks = torch.zeros(2, 6, dtype=torch.bool)
    blanks[:, [2, 4, 5]] = True
    ways = [{}, {"decoding_order": "confidence"}, {"tokens_per_step": 2}, {"decoding_order": "random"}]
    ways += [] if variant == "bidirectional" else [{"draft_length": 2}, {"cache_implementation": "static"}]

    def results():
        filled = [
            model.generate(TEXT, generation_mask=blanks, generator=seeded(0), do_sample=sample, **way)
            for way in ways
            for sample in (False, True)
        ]
        return [*filled, model.score(TEXT, generator=seeded(0)).log_likelihood]

    expected = results()
    torch.set_default_dtype(dtype)
    try:
        got = results()
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("variant", ["two_stream", "decoupled_rope", "bidirectional"])
def test_models_that_are_offloaded_as_a_whole_work(tmp_path, variant):
    """All weights are on the meta device then, and come from the disk for each layer's call."""
    tokenizer = character_tokenizer(["abcdefghijklmnopqr"])
    model = tiny_model(variant, vocab_size=len(tokenizer), mask_token_id=tokenizer.mask_token_id)
    offloaded = copy.deepcopy(model)
    # What `device_map={"": "disk"}` does in the releases that take it.
    disk_offload(offloaded, str(tmp_path / "offloaded"), execution_device=torch.device("cpu"))
    assert offloaded.device.type == "meta"
    texts, rows = ["abc<blank:2>de<blank:1-2>"], [{"input_ids": tokenizer.encode(text)} for text in ("abcde", "fghi")]

    def results(model):
        filled = infill(model, tokenizer, texts, return_candidates=True)[0]
        return [
            filled.text,
            filled.log_probability,
            evaluate_likelihood(model, rows, tokenizer, exact=True, draws=1, progress=False).nll,
            evaluate_likelihood(model, rows, tokenizer, draws=1, progress=False).nll,
        ]

    (text, *numbers), (expected, *others) = results(offloaded), results(model)
    assert text == expected and numbers == pytest.approx(others, abs=1e-5)


def collator_for(variant, **options):
    tokenizer = character_tokenizer(["abcdefghijklmnopqr"])
    kind = DataCollatorForMaskedDiffusion if variant == "bidirectional" else DataCollatorForAnyOrderLM
    return kind(tokenizer, order="left_to_right" if variant == "causal" else "uniform", **options)


@every_variant
@pytest.mark.parametrize("packing", [False, True])
def test_a_training_step_never_waits_for_the_device(variant, packing, tmp_path):
    """Meta tensors have no values, so that looking at one raises, as it would make a program wait for its device."""
    if variant == "bidirectional" and not packing:
        pytest.skip("the library looks at the mask of padding, as it does for its own bidirectional models")
    model = tiny_model(variant, mask_token_id=3).train()
    features = [{"input_ids": [5, 6, 7, 8, 9][:length], "example_index": length} for length in (5, 3, 4)]
    batch = collator_for(variant, packing=packing)(features)
    arguments = TrainingArguments(tmp_path, use_cpu=True, report_to="none")
    trainer = AnyOrderTrainer(model, arguments, collator_for(variant, packing=packing))
    expected = model(**batch).loss
    torch.testing.assert_close(trainer.compute_loss(model, batch), expected)
    loss = trainer.compute_loss(
        copy.deepcopy(model).to("meta"), {name: value.to("meta") for name, value in batch.items()}
    )
    loss.backward()
    assert loss.device.type == "meta"


@all_variants
def test_wrong_values_are_refused_at_once_where_nothing_has_to_wait(variant):
    """On a CPU in training too."""
    model = tiny_model(variant).train()
    rows = random_rows(variant, 2, 5)
    rows["position_ids"][0, 1] = 64
    with pytest.raises(ValueError, match="position_ids"):
        model(**rows)


# Generation configs and modes


def test_a_generation_config_of_the_call_is_honoured():
    model = tiny_model("two_stream")
    ways = [{"decoding_order": "confidence"}, {"tokens_per_step": 2}, {"draft_length": 2, "decoding_order": "random"}]
    for way in ways:
        expected = model.generate(TEXT, max_new_tokens=5, generator=seeded(0), **way, return_dict_in_generate=True)
        values = {**way, "max_new_tokens": 5, "return_dict_in_generate": True}
        for config in (AOARMGenerationConfig(**values), GenerationConfig(**values)):
            got = model.generate(TEXT, generation_config=config, generator=seeded(0))
            assert torch.equal(got.sequences, expected.sequences)
            assert torch.equal(got.decoding_order, expected.decoding_order)
            # The call wins.
            plain = model.generate(
                TEXT, generation_config=config, decoding_order="left_to_right", tokens_per_step=1, do_sample=False
            )
            assert torch.equal(plain.sequences, model.generate(TEXT, max_new_tokens=5, do_sample=False))


def test_a_models_own_defaults_are_for_canvases():
    """So that whoever asks for text gets text; pipelines give the model's own config back to it."""
    model = tiny_model("two_stream")
    expected = model.generate(TEXT, max_new_tokens=5, do_sample=False)
    model.generation_config.decoding_order = "confidence"
    for config in (None, copy.deepcopy(model.generation_config)):
        assert torch.equal(model.generate(TEXT, generation_config=config, max_new_tokens=5, do_sample=False), expected)


@every_variant
def test_continuous_batching_is_refused_before_any_work(variant):
    model = tiny_model(variant)
    for call in (
        lambda: model.generate(TEXT, cache_implementation="paged", max_new_tokens=3),
        lambda: model.generate(
            TEXT, generation_config=GenerationConfig(cache_implementation="paged", max_new_tokens=3)
        ),
        lambda: model.generate_batch([[1, 2, 3]]),
        lambda: model.init_continuous_batching(),
        lambda: model.continuous_batching_context_manager(),
    ):
        with pytest.raises(ValueError, match="Call `generate` with a padded batch"):
            call()
    assert set(EVERY_VARIANT) >= set(VARIANTS)


NORMAL_USE = """
import logging, warnings

messages = []


class Keep(logging.Handler):
    def emit(self, record):
        messages.append(record.getMessage())


logging.getLogger("transformers").addHandler(Keep(logging.WARNING))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    # What torch says of its own compiler is not about this package.
    warnings.filterwarnings("ignore", module="torch.*")
    model = AutoModelForCausalLM.from_pretrained(folder, **trust)
    text, blanks = rows["input_ids"], rows["generation_mask"]
    for length in ({}, {"use_cache": False}, {"num_beams": 2}, {"cache_implementation": "static"}):
        model.generate(text, max_new_tokens=3, do_sample=False, **length)
    for way in ({}, {"decoding_order": "confidence"}, {"tokens_per_step": 2}, {"draft_length": 2}):
        out = model.generate(text, generation_mask=blanks, return_dict_in_generate=True, **way)
        model.generate(out.sequences, max_new_tokens=2, past_key_values=out.past_key_values, **way)
    model.score(text)
    out = model(text)
    model(text[:, :1], past_key_values=out.past_key_values)
    model(text, output_hidden_states=True)
    model.train()
    model(text, labels=text).loss.backward()
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{name}_checkpointing_enable")()
    model(text, labels=text).loss.backward()
    model.generate(text, max_new_tokens=3, do_sample=False)
    model.generate(text, generation_mask=blanks)
    model.save_pretrained(folder + "/again")
report["warnings"] = messages + [str(each.message) for each in caught]
"""


@pytest.mark.parametrize("variant", ["two_stream", "decoupled_rope"])
@pytest.mark.parametrize("package", ["with", "without"])
def test_normal_use_warns_of_nothing(tmp_path, variant, package):
    tiny_model(variant, pad_token_id=0, eos_token_id=None).save_pretrained(tmp_path / "model")
    blanks = torch.zeros(2, 6, dtype=torch.bool)
    blanks[:, [2, 4, 5]] = True
    torch.save(
        {"input_ids": TEXT, "position_ids": 0, "target_position_ids": 0, "generation_mask": blanks}, tmp_path / "rows"
    )
    report = run_clean_process(tmp_path / "model", tmp_path / "rows", package, program=NORMAL_USE)
    assert report["warnings"] == []
