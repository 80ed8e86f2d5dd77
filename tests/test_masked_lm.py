# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The laws of `bidirectional`: rows in sentence order, blanks hold the mask token, all rows see each other."""

import itertools
import json

import pytest
import torch
from clean_process import run_clean_process
from masked import MASK, logits_of, masked_model, masked_rows, padded
from reference import ALL_OPTIONS, Reference
from test_laws import Spy
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, DynamicCache
from variants import checkpoint_activations, tiny_config

from modeling_aoarm import (
    AOARMForCausalLM,
    AOARMForMaskedLM,
    AOARMModel,
    model_class_for,
)


# The model


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_every_row_depends_on_every_row(implementation):
    model = masked_model(attn_implementation=implementation)
    embeds = model.model.embed_tokens(masked_rows(1, 6)[0]).detach().requires_grad_()
    logits = model(inputs_embeds=embeds).logits[..., :MASK]
    for row in range(6):
        gradient = torch.autograd.grad(logits[0, row].norm(), embeds, retain_graph=True)[0][0]
        assert (gradient.abs().amax(-1) > 0).all()


def test_the_mask_token_has_probability_zero_and_the_others_sum_to_one():
    model = masked_model()
    with torch.no_grad():
        # As if it were by far the likeliest.
        model.lm_head.weight[MASK] = 50 * model.lm_head.weight[0]
    log_probs = logits_of(model, masked_rows(2, 7)[0]).log_softmax(-1)
    assert (log_probs[..., MASK] == -torch.inf).all()
    torch.testing.assert_close(log_probs[..., :MASK].exp().sum(-1), torch.ones(2, 7))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_an_example_does_not_depend_on_its_neighbours_or_padding(implementation, side):
    model = masked_model(attn_implementation=implementation)
    examples = [masked_rows(1, length, seed=length)[0] for length in (9, 5, 7)]
    batch, mask = padded(examples, side)
    together = logits_of(model, batch, attention_mask=mask)
    torch.testing.assert_close(logits_of(model, batch.flip(0), attention_mask=mask.flip(0)).flip(0), together)
    for row, example in enumerate(examples):
        alone = logits_of(model, example)[0]
        torch.testing.assert_close(together[row, mask[row].bool()], alone, atol=1e-5, rtol=0)
    by_position = logits_of(model, batch, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))
    torch.testing.assert_close(by_position[mask.bool()], together[mask.bool()], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("implementation", "side"),
    [
        *itertools.product(["sdpa", "eager"], [None, "left", "right"]),
        pytest.param("flex_attention", "left", marks=pytest.mark.full),
    ],
)
def test_packed_sequences_equal_separate_ones(implementation, side):
    model = masked_model(attn_implementation=implementation)
    examples = [masked_rows(1, length, seed=length)[0] for length in (5, 1, 4)]
    packed, segment_ids = torch.cat(examples, dim=1), torch.tensor([[4] * 5 + [2] + [4] * 4])
    mask = None
    if side is not None:
        where = (3, 0) if side == "left" else (0, 3)
        mask = torch.nn.functional.pad(torch.ones_like(packed), where)
        # Padding has the number of the segment beside it.
        packed, segment_ids = (torch.nn.functional.pad(each, where, value=4) for each in (packed, segment_ids))
    together = logits_of(model, packed, segment_ids=segment_ids, attention_mask=mask)
    together = together[0] if mask is None else together[mask.bool()]
    separate = torch.cat([logits_of(masked_model(), example)[0] for example in examples])
    torch.testing.assert_close(together, separate, atol=1e-5, rtol=0)


@pytest.mark.parametrize("packs", [False, True])
def test_flash_kernels_are_told_that_nothing_is_causal_and_where_segments_start(packs, monkeypatch):
    spy = Spy(monkeypatch, "flash_attention_2")
    model = masked_model()
    model.config._attn_implementation = "flash_attention_2"
    segment_ids = torch.tensor([[0, 0, 0, 1, 1], [5, 6, 6, 6, 6]]) if packs else None
    logits_of(model, masked_rows(2, 5)[0], segment_ids=segment_ids)
    assert len(spy.calls) == 3
    for call in spy.calls:
        assert call["mask"] is None and call["is_causal"] is False and "position_ids" not in call
        assert tuple(call["query"]) == (2, 4, 5, 8) and tuple(call["key"]) == (2, 2, 5, 8)
        if packs:
            assert call["cu_seq_lens_q"].tolist() == call["cu_seq_lens_k"].tolist() == [0, 3, 5, 6, 10]
            assert call["max_length_q"] == call["max_length_k"] == 4


REFERENCE_CASES = {
    "plain": {},
    "all_options": ALL_OPTIONS,
    "one_layer_and_key_head": {"num_hidden_layers": 1, "num_key_value_heads": 1},
}


@pytest.mark.parametrize("layout", ["plain", "left", "right", "packed"])
@pytest.mark.parametrize("case", list(REFERENCE_CASES))
def test_outputs_and_gradients_equal_the_naive_reference(case, layout):
    """With the weighted loss, whose formula is written out once more."""
    model = masked_model(**REFERENCE_CASES[case])
    for parameter in model.parameters():
        # Biases and norms start at 0 and 1, where mistakes with them do not show.
        parameter.data += 0.05 * torch.randn(parameter.shape)
    input_ids, tokens = masked_rows(2, 9)
    position_ids, real, extra = torch.arange(9).expand(2, -1).clone(), torch.ones(2, 9, dtype=torch.bool), {}
    visible = None
    if layout == "packed":
        segments = torch.tensor([[0] * 4 + [1] * 5, [3] * 7 + [2] * 2])
        position_ids = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6, 0, 1]])
        extra, visible = {"segment_ids": segments}, segments[:, :, None] == segments[:, None, :]
    elif layout != "plain":
        real[1, slice(4) if layout == "left" else slice(5, None)] = False
        extra, visible = {"attention_mask": real.long()}, real[:, :, None] & real[:, None, :]
    labels = tokens.masked_fill(~real, -100)
    labels[0, :2] = -100
    weights = torch.rand(2, 9, generator=torch.Generator().manual_seed(1)) * (input_ids == MASK) * (labels != -100)
    assert (weights > 0).sum() > 4

    reference = Reference(model)
    expected = reference.logits(input_ids, position_ids, visible=visible)
    output = model(input_ids, labels=labels, loss_weights=weights, **extra)
    torch.testing.assert_close(output.logits.double()[real], expected[real], atol=1e-4, rtol=1e-4)
    scored = weights > 0
    surprises = -expected.log_softmax(-1)[scored].gather(1, tokens[scored][:, None])[:, 0]
    expected_loss = (surprises * weights[scored]).sum() / (labels != -100).sum()
    torch.testing.assert_close(output.loss.double(), expected_loss, atol=1e-5, rtol=0)
    output.loss.backward()
    expected_loss.backward()
    for name, parameter in model.named_parameters():
        gradient = reference.parameters[name].grad
        scale = gradient.abs().max()
        assert scale > 0, name
        torch.testing.assert_close(parameter.grad.double() / scale, gradient / scale, atol=1e-4, rtol=0)


@pytest.mark.parametrize("reentrant", [None, True, False])
def test_training_steps_change_every_parameter_and_checkpointing_no_gradient(reentrant):
    options = {"attention_bias": True, "attention_output_bias": True, "mlp_bias": True, "qk_norm": True}
    input_ids, tokens = masked_rows(4, 12)
    labels = tokens.where(input_ids == MASK, -100)
    model, other = masked_model(**options).train(), masked_model(**options).train()
    if reentrant is not None:
        checkpoint_activations(other, {"use_reentrant": reentrant})
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for each in (model, other):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            each(input_ids, labels=labels).loss.backward()
            optimizer.step()
    assert [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])] == []
    for (name, parameter), same in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(same, parameter, atol=1e-6, rtol=1e-5, msg=name)


def test_bfloat16_is_float32_within_its_error():
    model, rounded = masked_model(initializer_range=0.1), masked_model(initializer_range=0.1)
    input_ids, _ = masked_rows(2, 9)
    exact = logits_of(model, input_ids)[..., :MASK]
    for parameter in rounded.parameters():
        parameter.data = parameter.data.bfloat16().float()
    allowed = 6 * (logits_of(rounded, input_ids)[..., :MASK] - exact).abs().max()
    assert (logits_of(model.bfloat16(), input_ids)[..., :MASK].float() - exact).abs().max() <= allowed


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.full)])
def test_compiled_equals_uncompiled(backend):
    torch._dynamo.reset()
    model = masked_model()
    input_ids, tokens = masked_rows(2, 9)
    batch = {"input_ids": input_ids, "labels": tokens, "loss_weights": (input_ids == MASK).float()}
    expected = model(**batch)
    expected.loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    actual = torch.compile(model, fullgraph=True, backend=backend)(**batch)
    actual.loss.backward()
    torch.testing.assert_close(actual.logits, expected.logits, atol=1e-5, rtol=0)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-5, rtol=1e-4)


def test_logits_of_some_rows_are_those_of_all():
    model = masked_model()
    input_ids, _ = masked_rows(2, 7)
    whole = logits_of(model, input_ids)
    assert torch.equal(logits_of(model, input_ids, logits_to_keep=3), whole[:, -3:])
    assert torch.equal(logits_of(model, input_ids, logits_to_keep=torch.tensor([4, 0])), whole[:, [4, 0]])
    kept = torch.tensor([[1, 6, 6], [5, 0, 2]])
    each = torch.stack([whole[row, columns] for row, columns in enumerate(kept)])
    assert torch.equal(logits_of(model, input_ids, logits_to_keep=kept), each)


def test_hidden_states_and_attentions_are_those_of_the_rows():
    model = masked_model(attn_implementation="eager")
    output = model(masked_rows(2, 5)[0], output_hidden_states=True, output_attentions=True)
    assert [tuple(state.shape) for state in output.hidden_states] == [(2, 5, 32)] * 4
    assert [tuple(weights.shape) for weights in output.attentions] == [(2, 4, 5, 5)] * 3
    assert all((weights > 0).all() for weights in output.attentions)
    torch.testing.assert_close(model.lm_head(output.hidden_states[-1])[..., :MASK], output.logits[..., :MASK])


# Saving


LOAD = """
from transformers import AutoModelForMaskedLM

for name in ("head", "body"):
    AutoConfig.from_pretrained(f"{folder}/{name}", **trust)
model = AutoModelForMaskedLM.from_pretrained(f"{folder}/head", **trust)
body = AutoModel.from_pretrained(f"{folder}/body", **trust)
with torch.no_grad():
    logits = model(rows["input_ids"]).logits
    hidden_states = body(rows["input_ids"]).last_hidden_state
torch.manual_seed(3)
filled = model.generate(rows["input_ids"], generation_mask=rows["generation_mask"], **rows["way"])
score = model.score(filled, rows["generation_mask"], decoding_order="left_to_right").log_likelihood
torch.save({"logits": logits, "hidden_states": hidden_states, "filled": filled, "score": score}, sys.argv[2] + ".out")
report["module"] = type(model).__module__
try:
    AutoModelForCausalLM.from_pretrained(f"{folder}/head", **trust)
except ValueError as error:
    report["wrong head"] = str(error)
model.save_pretrained(f"{folder}/again")
report["auto_map"] = AutoConfig.from_pretrained(f"{folder}/again", **trust).auto_map
"""


@pytest.mark.parametrize("package", ["with", "without"])
def test_a_fresh_process_computes_and_fills_the_same(package, tmp_path):
    """Law 7, from a folder of the head and one of the body; that one has the head's code besides."""
    model = masked_model()
    model.save_pretrained(tmp_path / "models" / "head")
    model.model.save_pretrained(tmp_path / "models" / "body")
    input_ids, _ = masked_rows(2, 6)
    generation_mask = torch.tensor([[False, False, True, True, True, True]] * 2)
    way = {"do_sample": True, "decoding_order": "confidence"}
    unused = {"position_ids": None, "target_position_ids": None}
    rows = {"input_ids": input_ids, "generation_mask": generation_mask, "way": way, **unused}
    torch.save(rows, tmp_path / "rows")
    report = run_clean_process(tmp_path / "models", tmp_path / "rows", package, LOAD)
    results = torch.load(tmp_path / "rows.out")
    torch.testing.assert_close(results["logits"], logits_of(model, input_ids), atol=1e-6, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(results["hidden_states"], model.model(input_ids).last_hidden_state)
    torch.manual_seed(3)
    filled = model.generate(input_ids, generation_mask=generation_mask, **way)
    assert torch.equal(results["filled"], filled)
    expected = model.score(filled, generation_mask, decoding_order="left_to_right").log_likelihood
    torch.testing.assert_close(results["score"], expected)
    assert report["module"].endswith(".modeling_aoarm")
    assert report["module"].startswith("modeling_aoarm." if package == "with" else "transformers_modules.")
    assert "AutoModelForCausalLM" in report["wrong head"] or "AutoModelForMaskedLM" in report["wrong head"]
    assert report["auto_map"] == {
        "AutoConfig": "configuration_aoarm.AOARMConfig",
        "AutoModel": "modeling_aoarm.AOARMModel",
        "AutoModelForMaskedLM": "modeling_aoarm.AOARMForMaskedLM",
    }
    code = [sorted(path.name for path in (tmp_path / "models" / name).glob("*.py")) for name in ("head", "body")]
    assert code[0] == code[1] and {"modeling_aoarm.py"} <= set(code[0])


def test_each_variant_has_one_head_and_the_other_one_says_which(tmp_path):
    assert model_class_for(tiny_config("bidirectional")) is AOARMForMaskedLM
    assert model_class_for(tiny_config("causal")) is AOARMForCausalLM
    with pytest.raises(ValueError, match="'bidirectional' needs the head AOARMForMaskedLM .AutoModelForMaskedLM."):
        AOARMForCausalLM(tiny_config("bidirectional"))
    with pytest.raises(ValueError, match="'two_stream' needs the head AOARMForCausalLM .AutoModelForCausalLM.*Masked"):
        AOARMForMaskedLM(tiny_config("two_stream"))
    masked_model().save_pretrained(tmp_path)
    assert isinstance(AutoModelForMaskedLM.from_pretrained(tmp_path), AOARMForMaskedLM)
    assert isinstance(AutoModel.from_pretrained(tmp_path), AOARMModel)
    with pytest.raises(ValueError, match="AutoModelForMaskedLM"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    assert set(json.loads((tmp_path / "config.json").read_text())["auto_map"]) == {
        "AutoConfig",
        "AutoModel",
        "AutoModelForMaskedLM",
    }


# Bad input


def test_a_mask_token_is_needed():
    with pytest.raises(Exception, match="`mask_token_id` must be .*'bidirectional', got None"):
        tiny_config("bidirectional", mask_token_id=None)


IDS = torch.tensor([[1, MASK, 3]])
BLANKS = torch.tensor([[False, True, False]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target_position_ids": torch.tensor([[1, 2, 3]])}, "`target_position_ids` must not be given"),
        ({"past_key_values": DynamicCache()}, "`past_key_values` must not be given.*DynamicCache"),
        ({"use_cache": True}, "`use_cache` must not be given"),
        ({"is_causal": True}, "`is_causal` must not be given"),
        ({"position_ids": torch.tensor([[0, 1, 1]])}, "`position_ids` must not hold a position twice"),
        ({"position_ids": torch.tensor([[0, 1, 64]])}, r"`position_ids` must lie in \[0, 63\].*got 64"),
        ({"labels": torch.tensor([[1, 2]])}, r"`labels` must have the shape .*\[1, 3\]; got \[1, 2\]"),
        ({"labels": IDS}, r"`labels` must not hold the mask token \(22\)"),
        ({"labels": IDS - 1, "loss_weights": torch.ones(1, 2)}, r"`loss_weights` must have the shape .*\[1, 2\]"),
        ({"loss_weights": torch.ones(1, 3)}, "`loss_weights` need `labels`"),
    ],
)
def test_calls_that_cannot_be_meant_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        masked_model()(IDS, **arguments)
