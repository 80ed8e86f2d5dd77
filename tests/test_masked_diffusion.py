# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Training of `bidirectional`: what is masked and how it weighs, the loss as a likelihood, trainer and evaluation."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from collation import BOS, EOS, PAD, assert_equal_batches, make_examples, make_tokenizer
from datasets import Dataset
from scripts import run_script
from transformers import AutoModelForMaskedLM, AutoTokenizer, TrainingArguments
from variants import tiny_model

from modeling_aoarm import DataCollatorForAnyOrderLM, DataCollatorForMaskedDiffusion, with_example_index
from modeling_aoarm.data import masked_diffusion as module
from modeling_aoarm.data.masked_diffusion import collator_class_for
from modeling_aoarm.data.orders import OrderMixture, sample_orders
from modeling_aoarm.evaluation.likelihood import evaluate_likelihood
from modeling_aoarm.training import AnyOrderTrainer


MASK = 29
ROWS = [example["input_ids"] for example in make_examples(16, shortest=3, longest=9)]


def make_masked_tokenizer(**options):
    tokenizer = make_tokenizer(**options)
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    assert tokenizer.mask_token_id == MASK
    return tokenizer


def make_collator(order="uniform", bos=True, **options):
    return DataCollatorForMaskedDiffusion(make_masked_tokenizer(bos=bos), order=order, **options)


def masked_model(**changes):
    return tiny_model("bidirectional", vocab_size=30, mask_token_id=MASK, **changes)


# Batches


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("weighting", ["elbo", "low_variance"])
@pytest.mark.parametrize("order", ["uniform", "lattice", "left_to_right", "strided(3)"])
def test_the_end_of_each_order_is_masked_and_weighs_what_it_should(order, weighting, bos):
    examples = make_examples(40)
    batch = make_collator(order, bos=bos, seed=3, weighting=weighting)(examples)
    lengths = [len(example["input_ids"]) for example in examples]
    orders = sample_orders(
        order, lengths, example_indices=range(40), seed=3, min_context=1 - bos, first_column=int(bos)
    )
    longest, counts = max(lengths) + bos, set()
    assert set(batch) == {"input_ids", "attention_mask", "labels", "loss_weights"}
    for name, values in batch.items():
        assert values.shape == (40, longest)
        assert values.dtype == (torch.float32 if name == "loss_weights" else torch.int64)
    for row, (example, length) in enumerate(zip(examples, lengths, strict=True)):
        rows, given = length + bos, int(orders.num_context[row])
        columns, tokens = orders.columns[row, :length], torch.tensor([BOS] * bos + example["input_ids"])
        modelled = columns[given:]
        n, k = len(modelled), int((batch["input_ids"][row] == MASK).sum())
        assert 1 <= k <= n or n == 0
        counts.add((n, k))
        masked = modelled[n - k :]
        expected = tokens.clone()
        expected[masked] = MASK
        assert batch["input_ids"][row, :rows].tolist() == expected.tolist()
        labels, weights = torch.full((rows,), -100), torch.zeros(rows)
        labels[modelled] = tokens[modelled]
        if order == "uniform" and n:
            weights[masked] = n / k if weighting == "elbo" else 2 * n / (n + 1)
        elif n:
            weights[masked[0]] = n
        assert torch.equal(batch["labels"][row, :rows], labels)
        torch.testing.assert_close(batch["loss_weights"][row, :rows], weights)
        assert batch["attention_mask"][row].tolist() == [1] * rows + [0] * (longest - rows)
        assert (batch["input_ids"][row, rows:] == PAD).all() and (batch["labels"][row, rows:] == -100).all()
        assert (batch["loss_weights"][row, rows:] == 0).all()
    assert len(counts) > 10


def test_in_a_mixture_each_example_follows_its_own_component():
    spec = "0.5*uniform+0.5*left_to_right"
    examples = make_examples(60, shortest=5)
    batch = make_collator(spec)(examples)
    kinds = []
    for row, example in enumerate(examples):
        n, k = len(example["input_ids"]), int((batch["input_ids"][row] == MASK).sum())
        component = OrderMixture.parse(spec).component_of(example_index=row).name
        columns = sample_orders(spec, [n], example_indices=[row]).columns[0].tolist()
        assert component == "uniform" or columns == sorted(columns)
        weighed = batch["loss_weights"][row].nonzero().flatten().tolist()
        assert len(weighed) == (k if component == "uniform" else 1)
        if component == "left_to_right":
            # Behind it everything is masked, before it nothing, and BOS is in front.
            assert weighed == [n - k + 1] and (batch["input_ids"][row, n - k + 1 : n + 1] == MASK).all()
        kinds.append(component)
    assert 15 < kinds.count("uniform") < 45


def test_context_and_own_orders():
    collator, ids = make_collator(), [7, 8, 9, 10]
    own = {"input_ids": ids, "order": [2, 0, 3, 1], "num_context": 1}
    seen = set()
    for index in range(30):
        batch = collator([{**own, "example_index": index}])
        assert batch["labels"].tolist() == [[-100, 7, 8, -100, 10]]
        k = int((batch["input_ids"] == MASK).sum())
        seen.add((k, tuple(batch["loss_weights"][0].tolist())))
    # Next of one, two and three masked: columns 1, 3 and 0, behind BOS.
    assert seen == {(1, (0, 0, 3, 0, 0)), (2, (0, 0, 0, 0, 3)), (3, (0, 3, 0, 0, 0))}
    labels = {"input_ids": [7, MASK, 9], "labels": [7, -100, 9], "example_index": 0}
    batch = collator([labels])
    # A mask token that is given is text like any other.
    assert batch["input_ids"][0, 2] == MASK and batch["labels"][0, 2] == -100 and batch["loss_weights"][0, 2] == 0
    assert collator([{"input_ids": [], "example_index": 0}])["loss_weights"].tolist() == [[0.0]]


def test_pad_with_eos_makes_eos_part_of_what_is_modelled():
    batch = make_collator(max_length=12, pad_with_eos=True)(make_examples(20, longest=9))
    assert (batch["attention_mask"] == 1).all() and (batch["labels"][:, -2:] == EOS).all()
    assert ((batch["input_ids"] == MASK) & (batch["labels"] == EOS)).any()


@pytest.mark.parametrize("multiple", [None, 16])
def test_packed_batches_hold_the_same_rows_and_have_the_same_loss(multiple):
    examples, model = make_examples(7), masked_model()
    padded = make_collator()(examples)
    packed = make_collator(packing=True, pad_to_multiple_of=multiple)(examples)
    assert set(packed) == {"input_ids", "labels", "loss_weights", "segment_ids"}
    real = padded["attention_mask"].bool()
    total = int(real.sum())
    for name in ("input_ids", "labels", "loss_weights"):
        assert torch.equal(packed[name][0, :total], padded[name][real])
    assert (packed["loss_weights"][0, total:] == 0).all() and (packed["labels"][0, total:] == -100).all()
    assert torch.equal(packed["segment_ids"][0, :total], real.nonzero()[:, 0])
    with torch.no_grad():
        torch.testing.assert_close(model(**packed).loss, model(**padded).loss, atol=1e-5, rtol=0)


# Noise levels


def test_successive_examples_are_spread_evenly_over_noise_levels():
    counts = module.draw_masked_counts([2**40] * 1024, range(1024), seed=1, epoch=2)
    assert counts.dtype == np.int64 and counts.min() >= 1 and counts.max() <= 2**40
    levels = (counts - 1) / 2**40
    for start in (0, 100, 777):
        # As a stratified batch of 16: no eighth of the levels has less than one or more than three.
        counts = np.histogram(levels[start : start + 16], bins=8, range=(0, 1))[0]
        assert counts.min() >= 1 and counts.max() <= 3
    counts = np.histogram(levels, bins=8, range=(0, 1))[0]
    assert abs(counts - 128).max() <= 3


def test_noise_levels_belong_to_seed_epoch_and_example_and_are_uniform_for_each_example():
    streams = itertools.product((0, 1, 2**63 - 1), (0, 5), (0, 7))
    assert len({int(module.draw_masked_counts([2**40], [index], *rest)[0]) for index, *rest in streams}) == 12
    levels = np.sort([module.draw_masked_counts([2**40], [3], epoch=epoch)[0] / 2**40 for epoch in range(2000)])
    # Kolmogorov's distance, whose 0.1 % quantile is 1.95 / sqrt(n).
    assert abs(levels - (np.arange(2000) + 0.5) / 2000).max() < 1.95 / math.sqrt(2000)


def test_an_example_is_the_same_in_every_batch_and_another_in_every_epoch():
    examples, collator = make_examples(20, shortest=6), make_collator(seed=1)
    collator.start_epoch(4)
    together = collator(examples)
    for row in (0, 7, 19):
        alone = collator([examples[row]])
        for name, values in alone.items():
            assert torch.equal(together[name][row, : values.shape[1]], values[0])
    collator.start_epoch(5)
    assert not torch.equal(collator(examples)["input_ids"], together["input_ids"])
    again = make_collator(seed=1)
    again.start_epoch(4)
    assert_equal_batches(again(examples), together)


# The loss


@pytest.mark.parametrize("own_order", [False, True])
def test_over_all_orders_and_noise_levels_the_loss_is_the_negative_log_likelihood(own_order, monkeypatch):
    """No sampling: every order of four tokens at each of four noise levels, in uniform and in given orders."""
    model, ids = masked_model(), [4, 20, 11, 7]
    sentence = torch.tensor([[BOS, *ids]])
    orders = list(itertools.permutations(range(4)))
    exact = model.score(sentence, decoding_order=torch.tensor(orders)[:, None] + 1).log_likelihood[:, 0]
    collator, losses = make_collator(), torch.zeros(len(orders), 4)
    for number, order in enumerate(orders):
        monkeypatch.setattr(OrderMixture, "draw", lambda *_, order=order, **__: (np.array(order), 0))
        feature = {"input_ids": ids, "example_index": 0} | ({"order": list(order)} if own_order else {})
        for level in range(4):
            monkeypatch.setattr(module, "draw_masked_counts", lambda *_, level=level: [level + 1])
            with torch.no_grad():
                losses[number, level] = model(**collator([feature])).loss
    if own_order:
        torch.testing.assert_close(losses.mean(1), -exact / 4, atol=1e-5, rtol=0)
    torch.testing.assert_close(losses.mean(), -exact.mean() / 4, atol=1e-5, rtol=0)


@pytest.mark.parametrize("weighting", ["elbo", "low_variance"])
@pytest.mark.parametrize("order", ["uniform", "left_to_right"])
def test_before_training_the_loss_is_about_that_of_a_guess(order, weighting):
    model = masked_model(initializer_range=0.01)
    collator = make_collator(order, weighting=weighting)
    with torch.no_grad():
        loss = model(**collator(make_examples(400, longest=20))).loss.item()
    # With `low_variance` the weights sum to the number of tokens on average only.
    assert loss == pytest.approx(math.log(29), abs=0.15 if (order, weighting) == ("uniform", "low_variance") else 0.01)


def test_parts_of_a_batch_have_losses_that_sum_to_its_own():
    model, batch = masked_model(), make_collator()(make_examples(8))
    count = batch["labels"].ne(-100).sum()
    with torch.no_grad():
        whole = model(**batch).loss
        parts = [
            model(**{name: value[rows] for name, value in batch.items()}, num_items_in_batch=count).loss
            for rows in (slice(3), slice(3, 8))
        ]
        as_number = model(**batch, num_items_in_batch=int(count)).loss
    torch.testing.assert_close(sum(parts), whole)
    torch.testing.assert_close(as_number, whole)


# The trainer


def make_trainer(folder, model=None, collator=None, **changes):
    dataset = with_example_index(Dataset.from_dict({"input_ids": ROWS, "num_characters": [len(row) for row in ROWS]}))
    defaults = {
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return AnyOrderTrainer(
        model=model or masked_model(),
        args=TrainingArguments(output_dir=str(folder), **{**defaults, **changes}),
        data_collator=collator or make_collator("0.7*uniform+0.3*left_to_right"),
        train_dataset=dataset,
        eval_dataset=dataset,
    )


def test_accumulated_batches_train_the_same_model(tmp_path):
    weights, losses = [], []
    for size, accumulated in ((8, 1), (2, 4)):
        trainer = make_trainer(tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=accumulated)
        trainer.train()
        weights.append(dict(trainer.model.named_parameters()))
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[1] == pytest.approx(losses[0], abs=1e-4) and len(losses[0]) == 4
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, atol=1e-4, rtol=1e-3, msg=name)


def test_training_lowers_the_loss_and_evaluation_reports_what_evaluate_order_finds(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=60, collator=make_collator())
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_any_order_nll"] < before["eval_any_order_nll"] - 0.3
    expected = evaluate_likelihood(
        trainer.model, trainer.eval_dataset, make_masked_tokenizer(), draws=2, progress=False
    )
    assert after["eval_loss"] == after["eval_any_order_nll"] == pytest.approx(expected.nll, abs=1e-6)
    assert after["eval_left_to_right_nll_standard_error"] > 0
    assert after["eval_any_order_bpc"] == pytest.approx(expected.nll / math.log(2), abs=1e-5)


def test_what_a_model_cannot_learn_from_is_refused_before_training(tmp_path):
    any_order = DataCollatorForAnyOrderLM(make_masked_tokenizer())
    with pytest.raises(ValueError, match="must be a DataCollatorForMaskedDiffusion for .*'bidirectional', got Data"):
        make_trainer(tmp_path, collator=any_order).train()
    with pytest.raises(ValueError, match="must be a DataCollatorForAnyOrderLM for .*'two_stream', got Data"):
        make_trainer(tmp_path, model=tiny_model("two_stream", vocab_size=30)).train()
    with pytest.raises(ValueError, match="label_smoothing_factor must be 0 .* got 0.1"):
        make_trainer(tmp_path, label_smoothing_factor=0.1).train()
    other = tiny_model("bidirectional", vocab_size=30, mask_token_id=4)
    with pytest.raises(ValueError, match="must have the model's mask_token_id=4, got 29"):
        make_trainer(tmp_path, model=other).train()
    assert collator_class_for(other.config) is DataCollatorForMaskedDiffusion


# Evaluation


@pytest.mark.parametrize("order", ["uniform", "left_to_right"])
def test_evaluation_estimates_the_exact_likelihood(order):
    model, texts = masked_model(), [[4, 20, 11], [7, 8, 5], [9, 9]]
    result = evaluate_likelihood(
        model, Dataset.from_dict({"input_ids": texts}), make_masked_tokenizer(), order, draws=600, progress=False
    )
    assert result.example_tokens.tolist() == [[3, 3, 2]] * 600
    for index, ids in enumerate(texts):
        columns = range(1, len(ids) + 1)
        orders = list(itertools.permutations(columns)) if order == "uniform" else [tuple(columns)]
        exact = model.score(torch.tensor([[BOS, *ids]]), decoding_order=torch.tensor(orders)[:, None]).log_likelihood
        estimates = result.example_nll[:, index]
        error = estimates.std().item() / math.sqrt(600)
        assert abs(estimates.mean().item() + exact.mean().item()) < 4 * error < 1


def test_evaluation_does_not_depend_on_the_batch_size():
    model, dataset = masked_model(), Dataset.from_dict({"input_ids": ROWS})
    results = [
        evaluate_likelihood(model, dataset, make_masked_tokenizer(), draws=2, batch_size=size, progress=False)
        for size in (1, 7, 100)
    ]
    for result in results[1:]:
        torch.testing.assert_close(result.example_nll, results[0].example_nll, rtol=0, atol=1e-4)


# The example


def test_the_pretraining_example_trains_it_with_one_changed_word(tmp_path):
    """The tiny recipe; the saved model loads by its Auto class, and its card and figures are there."""
    recipe, folder = "configuration/recipes/pretrain_tiny.yaml", tmp_path / "run"
    flags = ["--cpu_threads", "1", "--disable_tqdm", "true", "--use_cpu", "true", "--eval_strategy", "no"]
    config = ["--model_config", "configuration/bidirectional", "--weighting", "low_variance", "--order", "uniform"]
    flags += ["--start_order", "none", "--output_dir", folder]
    process = run_script("examples/pretrain.py", recipe, *config, *flags)
    assert process.returncode == 0, process.stderr
    results = json.loads((folder / "results.json").read_text())
    assert 2 < results["any_order"]["nll"] < 6 and results["left_to_right"]["standard_error"] > 0
    assert len(results["samples"]) == 2 and "AutoModelForMaskedLM" in (folder / "README.md").read_text()
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.attention_variant == "bidirectional"
    assert model.config.mask_token_id == tokenizer.mask_token_id


# Errors


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        ({"input_ids": [3, MASK], "example_index": 17}, r"must not hold the mask token \(29\).*example 17 does"),
        ({"input_ids": [3, 4], "order": [1, 0]}, "feature 1 of the batch has no `example_index`"),
        ({"input_ids": [3, -1], "example_index": 17}, "`input_ids` must be >= 0, got -1 in example 17"),
        ({"input_ids": [3], "order": [1], "example_index": 17}, "permutation of the 1 columns"),
    ],
)
def test_bad_features_are_refused_with_the_reason_and_the_example(feature, message):
    with pytest.raises(ValueError, match=message):
        make_collator()([{"input_ids": [3], "example_index": 0}, feature])


def test_bad_options_are_refused_with_the_reason():
    with pytest.raises(ValueError, match="`tokenizer.mask_token_id` is None"):
        DataCollatorForMaskedDiffusion(make_tokenizer())
    with pytest.raises(ValueError, match="`weighting` must be one of elbo, low_variance, got 'flat'"):
        make_collator(weighting="flat")
    with pytest.raises(ValueError, match="`max_length` must be at least 1, got 0"):
        make_collator(max_length=0)
