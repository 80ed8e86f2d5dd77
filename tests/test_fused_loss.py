# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The loss without logits: its value and gradients, its memory, what it refuses, and what the trainer passes on."""

import pytest
import torch
from collation import make_collator
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainingArguments
from variants import all_variants, pad_rows, random_rows, tiny_model

from modeling_aoarm.training import AnyOrderTrainer


def batch_of(variant):
    """Padded rows with a given part, as the collator makes them."""
    rows = pad_rows(random_rows(variant, 3, 9), 12, "right")
    labels = rows["input_ids"].masked_fill(rows["attention_mask"] == 0, -100)
    labels[:, :3] = -100
    return {**rows, "labels": labels}


def loss_and_gradients(model, **batch):
    model.zero_grad()
    output = model(**batch, use_cache=False)
    output.loss.backward()
    return output, {name: weight.grad.clone() for name, weight in model.named_parameters()}


@all_variants
@pytest.mark.parametrize("items", [None, 11])
def test_loss_and_gradients_are_those_of_logits(variant, items):
    model, batch = tiny_model(variant), batch_of(variant)
    del batch["target_position_ids"]
    items = {} if items is None else {"num_items_in_batch": torch.tensor(items)}
    expected, gradients = loss_and_gradients(model, **batch, **items)
    output, fused = loss_and_gradients(model, **batch, **items, fused_loss=True)
    assert output.logits is None
    assert output.loss.item() == pytest.approx(expected.loss.item(), rel=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(fused[name], gradient, atol=1e-6, rtol=1e-4)


class LargestTensor(TorchDispatchMode):
    """The most elements that a tensor made inside has."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for each in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(each, torch.Tensor):
                self.elements = max(self.elements, each.untyped_storage().nbytes() // each.element_size())
        return result


def test_logits_never_exist():
    """4,096 rows of 4,096 tokens: no tensor is a quarter as large as their logits."""
    model = tiny_model("two_stream", vocab_size=4096, max_position_embeddings=1024, num_hidden_layers=1)
    tokens = torch.randint(0, 4096, (4, 1024))
    made = {}
    for skips in (False, True):
        with LargestTensor() as largest:
            model(tokens, labels=tokens, use_cache=False, fused_loss=skips).loss.backward()
        made[skips] = largest.elements
    assert made[False] >= 4096 * 4096
    assert made[True] < 4096 * 4096 / 4


def test_what_cannot_be_is_refused():
    model, tokens = tiny_model("decoupled_rope"), torch.zeros(1, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="fused_loss.*labels.*None"):
        model(tokens, fused_loss=True)
    whole = model.lm_head.weight
    # What ZeRO-3 leaves of weights between calls.
    model.lm_head.weight = torch.nn.Parameter(torch.empty(0))
    with pytest.raises(ValueError, match=r"fused_loss.*holds its weights.*\[0\]"):
        model(tokens, labels=tokens, fused_loss=True)
    model.lm_head.weight = whole
    model.lm_head = torch.nn.Sequential(model.lm_head)
    with pytest.raises(ValueError, match="fused_loss.*plain linear.*Sequential"):
        model(tokens, labels=tokens, fused_loss=True)


class Calls(torch.nn.Module):
    """Takes down what a model is called with."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config, self.seen = model, model.config, []

    def forward(self, input_ids=None, labels=None, **kwargs):
        self.seen.append(kwargs)
        return self.model(input_ids=input_ids, labels=labels, **kwargs)


@pytest.mark.parametrize("fused", [False, True])
def test_the_trainer_drops_logits_that_nobody_wants(fused, tmp_path):
    model = Calls(tiny_model("two_stream"))
    arguments = TrainingArguments(tmp_path, use_cpu=True, report_to="none")
    trainer = AnyOrderTrainer(model, arguments, make_collator(), fused_loss=fused)
    batch = batch_of("two_stream")
    del batch["target_position_ids"]
    batch["position_ids"][:, 9:] = torch.arange(20, 23)
    expected = model.model(**batch, use_cache=False).loss
    loss = trainer.compute_loss(model, batch)
    torch.testing.assert_close(loss, expected)
    assert model.seen[0].get("fused_loss", False) == fused
    trainer.compute_loss(model, batch, return_outputs=True)
    assert "fused_loss" not in model.seen[1]


def test_a_smoothed_loss_has_logits(tmp_path):
    arguments = TrainingArguments(tmp_path, use_cpu=True, report_to="none", label_smoothing_factor=0.1)
    with pytest.raises(ValueError, match=r"fused_loss.*label_smoothing_factor=0.1"):
        AnyOrderTrainer(tiny_model("two_stream"), arguments, make_collator(), fused_loss=True)
