# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The trainer: orders follow the clock, averaged weights are used and kept, a resumed run is the same run."""

import random

import pytest
import torch
from datasets import Dataset, concatenate_datasets
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainingArguments
from variants import tiny_model

from modeling_aoarm.data.collators import DataCollatorForAnyOrderLM, with_example_index
from modeling_aoarm.data.orders import OrderCurriculum, sample_orders
from modeling_aoarm.data.tokenizers import character_tokenizer
from modeling_aoarm.evaluation.likelihood import evaluate_likelihood
from modeling_aoarm.training import AnyOrderTrainer, EMACallback


TOKENIZER = character_tokenizer(["abcdefghijklmnopqr"])
# Every first letter is another one, so that a batch tells which examples it holds.
ROWS = [[5 + index, *random.Random(index).choices(range(5, 23), k=index % 4 + 3)] for index in range(12)]
CURRICULUM = OrderCurriculum("local(0)", "local(4)", until=1.0)


class Recorder(TrainerCallback):
    """Copies of the weights after each optimiser step, and what the model was given."""

    def __init__(self, model):
        self.weights = []
        self.batches = []
        model.register_forward_pre_hook(self.record_batch, with_kwargs=True)

    def record_batch(self, model, args, kwargs):
        if model.training:
            # Only padding holds its token, whether there is a mask or not.
            batch = {name: kwargs[name].clone() for name in ("input_ids", "position_ids")}
            self.batches.append(batch | {"attention_mask": (batch["input_ids"] != TOKENIZER.pad_token_id).long()})

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.weights.append({name: weight.detach().clone() for name, weight in model.named_parameters()})


def make_trainer(folder, *, ema=None, order="uniform", variant="two_stream", callbacks=(), model=None, **changes):
    if model is None:
        model = tiny_model(variant, initializer_range=0.1)
    recorder = Recorder(model)
    dataset = with_example_index(Dataset.from_dict({"input_ids": ROWS, "num_characters": [len(row) for row in ROWS]}))
    defaults = {
        "max_steps": 9,
        "per_device_train_batch_size": 3,
        "per_device_eval_batch_size": 5,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_drop_last": True,
    }
    trainer = AnyOrderTrainer(
        model=model,
        args=TrainingArguments(output_dir=str(folder), **{**defaults, **changes}),
        data_collator=DataCollatorForAnyOrderLM(TOKENIZER, order=order, seed=3),
        train_dataset=dataset,
        eval_dataset=dataset,
        callbacks=[recorder, *([EMACallback(ema)] if ema else []), *callbacks],
    )
    return trainer, recorder


def check_orders(batches, order, steps_per_epoch, total_steps, first_step=0, accumulation=1):
    """Every recorded example has the order of (seed, epoch, example index) and of its optimiser step's progress."""
    for number, batch in enumerate(batches):
        step = first_step + number // accumulation
        for row in range(len(batch["input_ids"])):
            rows = int(batch["attention_mask"][row].sum())
            positions = batch["position_ids"][row, 1:rows]
            tokens = batch["input_ids"][row, 1:rows]
            index = tokens[positions.argmin()].item() - 5
            expected = sample_orders(
                order,
                [rows - 1],
                example_indices=[index],
                seed=3,
                epoch=step // steps_per_epoch,
                progress=step / total_steps,
                first_column=1,
            )
            assert positions.tolist() == expected.columns[0].tolist(), (number, row)


def test_orders_follow_epoch_and_curriculum(tmp_path):
    trainer, recorder = make_trainer(tmp_path, order=CURRICULUM)
    trainer.train()
    assert len(recorder.batches) == 9
    check_orders(recorder.batches, CURRICULUM, steps_per_epoch=4, total_steps=9)
    rows = recorder.batches[0]["attention_mask"].sum(1)
    for row, length in enumerate(rows):
        # local(0) at progress 0 is the identity.
        assert recorder.batches[0]["position_ids"][row, :length].tolist() == list(range(length))


def test_workers_gradient_accumulation_and_evaluations_do_not_shift_the_clock(tmp_path):
    trainer, recorder = make_trainer(
        tmp_path,
        order=CURRICULUM,
        dataloader_num_workers=2,
        gradient_accumulation_steps=2,
        max_steps=5,
        eval_strategy="steps",
        eval_steps=1,
    )
    trainer.train()
    assert len(recorder.batches) == 10
    check_orders(recorder.batches, CURRICULUM, steps_per_epoch=2, total_steps=5, accumulation=2)


def test_an_evaluation_with_the_training_collator_does_not_shift_the_clock(tmp_path):
    class UsesTheCollator(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_evaluate = True

    trainer, recorder = make_trainer(tmp_path, order=CURRICULUM, callbacks=[UsesTheCollator()])

    def evaluate(*args, **kwargs):
        for _ in range(3):
            trainer.data_collator([{"input_ids": ROWS[0], "example_index": 0}])
        trainer.callback_handler.on_evaluate(trainer.args, trainer.state, trainer.control, {})
        return {}

    trainer.evaluate = evaluate
    trainer.train()
    check_orders(recorder.batches, CURRICULUM, steps_per_epoch=4, total_steps=9)


@pytest.mark.parametrize("checkpoint_step", [3, 4])
def test_a_resumed_run_is_the_uninterrupted_run(tmp_path, checkpoint_step):
    settings = {"ema": 0.8, "order": CURRICULUM, "save_strategy": "steps", "save_steps": checkpoint_step}
    whole, whole_recorder = make_trainer(tmp_path, **settings)
    whole.train()
    resumed, recorder = make_trainer(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{checkpoint_step}"))

    check_orders(recorder.batches, CURRICULUM, 4, 9, first_step=checkpoint_step)
    losses = [[log["loss"] for log in trainer.state.log_history if "loss" in log] for trainer in (whole, resumed)]
    assert losses[0] == losses[1] and len(losses[0]) == 9
    for name, weight in whole.model.named_parameters():
        assert torch.equal(weight, dict(resumed.model.named_parameters())[name]), name
    assert len(whole_recorder.weights) == 9 and len(recorder.weights) == 9 - checkpoint_step


@pytest.mark.parametrize("ignore_data_skip", [False, True])
def test_a_resumed_run_over_a_stream_has_the_right_curriculum(tmp_path, ignore_data_skip):
    """Skipped batches of a stream do pass through the collator, so the clock has to start before them."""

    def stream(trainer):
        dataset = Dataset.from_dict({"input_ids": ROWS * 3}).to_iterable_dataset()
        trainer.train_dataset = with_example_index(dataset)
        return trainer

    whole, recorded = make_trainer(tmp_path / "whole", order=CURRICULUM, save_strategy="steps", save_steps=4)
    stream(whole).train()
    resumed, again = make_trainer(tmp_path / "resumed", order=CURRICULUM, ignore_data_skip=ignore_data_skip)
    stream(resumed).train(str(tmp_path / "whole" / "checkpoint-4"))
    assert len(recorded.batches) == 9 and len(again.batches) == 5
    if ignore_data_skip:
        # The stream starts again at its first rows, at the curriculum's fifth step.
        progress = [CURRICULUM.at(step / 9) for step in range(4, 9)]
        for number, batch in enumerate(again.batches):
            collator = DataCollatorForAnyOrderLM(TOKENIZER, order=progress[number], seed=3)
            rows = (ROWS * 3)[3 * number : 3 * number + 3]
            dataset = with_example_index(Dataset.from_dict({"input_ids": rows}).to_iterable_dataset())
            assert torch.equal(collator(list(dataset))["position_ids"], batch["position_ids"])
    else:
        for before, after in zip(recorded.batches[4:], again.batches, strict=True):
            assert torch.equal(before["position_ids"], after["position_ids"])
            assert torch.equal(before["input_ids"], after["input_ids"])


def test_the_average_follows_its_formula_and_is_what_the_trained_model_holds(tmp_path):
    trainer, recorder = make_trainer(tmp_path, ema=0.7, save_strategy="steps", save_steps=5)
    average = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    for step, weights in enumerate(recorder.weights, start=1):
        decay = min(0.7, (1 + step) / (10 + step))
        average = {name: decay * average[name] + (1 - decay) * weights[name] for name in average}
        if step == 5:
            saved = load_file(tmp_path / "checkpoint-5" / "ema.safetensors")
            torch.testing.assert_close(saved, average)
            # The checkpoint itself holds the weights that training goes on from.
            unaveraged = load_file(tmp_path / "checkpoint-5" / "model.safetensors")
            torch.testing.assert_close(unaveraged, weights)
    torch.testing.assert_close({name: weight.detach() for name, weight in trainer.model.named_parameters()}, average)
    trainer.save_model(tmp_path / "final")
    torch.testing.assert_close(load_file(tmp_path / "final" / "model.safetensors"), average)


def test_evaluation_uses_the_average_and_leaves_the_weights_alone(tmp_path):
    trainer, recorder = make_trainer(tmp_path, ema=0.9, max_steps=4, eval_strategy="steps", eval_steps=2)
    plain, _ = make_trainer(tmp_path, max_steps=4, eval_strategy="steps", eval_steps=2)
    trainer.train()
    plain.train()
    losses = [[log["loss"] for log in each.state.log_history if "loss" in log] for each in (trainer, plain)]
    assert losses[0] == losses[1]
    evals = [[log["eval_loss"] for log in each.state.log_history if "eval_loss" in log] for each in (trainer, plain)]
    assert all(abs(first - second) > 1e-4 for first, second in zip(*evals, strict=True))
    # After the training the model is the average, which the last evaluation used.
    assert trainer.evaluate()["eval_loss"] == pytest.approx(evals[0][-1], abs=1e-6)


def test_metrics_are_those_of_evaluate_likelihood(tmp_path):
    trainer, _ = make_trainer(tmp_path)
    trainer.eval_draws = 3
    metrics = trainer.evaluate()
    expected = evaluate_likelihood(
        trainer.model, trainer.eval_dataset, TOKENIZER, draws=3, characters=sum(map(len, ROWS)), progress=False
    )
    left_to_right = evaluate_likelihood(
        trainer.model, trainer.eval_dataset, TOKENIZER, "left_to_right", draws=1, progress=False
    )
    assert metrics["eval_loss"] == metrics["eval_any_order_nll"] == pytest.approx(expected.nll, abs=1e-5)
    assert metrics["eval_any_order_bpc"] == pytest.approx(expected.bits_per_character, abs=1e-5)
    assert metrics["eval_any_order_nll_standard_error"] == pytest.approx(expected.standard_error, abs=1e-5)
    assert metrics["eval_left_to_right_nll"] == pytest.approx(left_to_right.nll, abs=1e-5)
    parts = trainer.evaluate({"a": trainer.eval_dataset, "b": trainer.eval_dataset.select([0, 1])})
    assert parts["eval_a_loss"] == metrics["eval_loss"] != parts["eval_b_loss"]


def streamed(dataset):
    return with_example_index(dataset.remove_columns("example_index").to_iterable_dataset())


def most_likely(logits, labels):
    return logits.argmax(-1)


def highest(logits, labels):
    return logits.amax(-1)


def share_right(prediction):
    predicted, labels = prediction.predictions[:, :-1], prediction.label_ids[:, 1:]
    return {"right": (predicted == labels)[labels != -100].mean()}


@pytest.mark.parametrize("context_order", ["left_to_right", "suffix_first"])
def test_evaluation_reads_given_tokens_in_the_order_of_the_training(tmp_path, context_order):
    trainer, _ = make_trainer(tmp_path, dataloader_drop_last=False)
    trainer.data_collator = DataCollatorForAnyOrderLM(TOKENIZER, context_order=context_order)
    ids, prompt = TOKENIZER("abcdefgh").input_ids, [0, 1, 5, 6]
    labels = [-100 if column in prompt else token for column, token in enumerate(ids)]
    rows = [{"input_ids": ids, "labels": labels, "example_index": 0}]
    given = [0, 1, 2, 6, 7] if context_order == "left_to_right" else [0, 6, 7, 1, 2]
    for loader in (trainer.get_eval_dataloader(Dataset.from_list(rows)), [trainer.data_collator(rows)]):
        (batch,) = loader
        assert batch["position_ids"][0, :5].tolist() == given


@pytest.mark.parametrize("kind", ["datasets", "torch"])
def test_a_streamed_evaluation_set_has_the_figures_of_its_rows(kind, tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield from ({"input_ids": torch.tensor(row), "num_characters": len(row)} for row in ROWS)

    settings = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True}
    plain, _ = make_trainer(tmp_path, **settings)
    trainer, _ = make_trainer(tmp_path, **settings)
    trainer.eval_dataset = streamed(trainer.eval_dataset) if kind == "datasets" else Stream()
    plain.train()
    trainer.train()
    clock = ("eval_runtime", "eval_samples_per_second")
    evaluations = [
        [{name: log[name] for name in log if name not in clock} for log in each.state.log_history if "eval_loss" in log]
        for each in (plain, trainer)
    ]
    assert evaluations[0] == evaluations[1] and len(evaluations[0]) == 3 and "eval_any_order_bpc" in evaluations[0][0]


def test_processes_that_read_different_rows_of_a_stream_are_an_error(tmp_path, monkeypatch):
    trainer, _ = make_trainer(tmp_path)
    monkeypatch.setattr("modeling_aoarm.training.trainer.gather_object", lambda values: [*values, [6, 0]])
    monkeypatch.setattr(TrainingArguments, "world_size", 2)
    with pytest.raises(ValueError, match="streamed eval_dataset must have the same rows in all processes"):
        trainer.evaluate(streamed(trainer.eval_dataset))


@pytest.mark.parametrize("variant", ["two_stream", "causal"])
def test_metrics_of_the_users_own_are_computed_and_can_choose_the_best_model(variant, tmp_path):
    seen = []

    def metrics(prediction):
        seen.append(prediction)
        return {"highest": prediction.predictions.mean(), "calls": len(seen)}

    trainer, recorder = make_trainer(
        tmp_path,
        variant=variant,
        order="left_to_right",
        ema=0.5,
        max_steps=3,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        metric_for_best_model="calls",
        include_for_metrics=["inputs"],
        dataloader_drop_last=False,
    )
    trainer.compute_metrics, trainer.preprocess_logits_for_metrics = metrics, highest
    trainer.train()
    assert trainer.state.best_global_step == 3 and trainer.state.best_metric == 3
    evaluations = [log for log in trainer.state.log_history if "eval_loss" in log]
    name = "left_to_right" if variant == "causal" else "any_order"
    assert all(log["eval_loss"] == log[f"eval_{name}_nll"] for log in evaluations)
    assert len(seen) == 3 and all(len(each.predictions) == len(ROWS) for each in seen)
    assert (seen[0].label_ids == seen[2].label_ids).all()

    # The orders are those of evaluations, not of the training, and the weights the averaged ones.
    after = trainer.evaluate()
    predicted = trainer.predict(trainer.eval_dataset).metrics
    assert after["eval_highest"] == evaluations[-1]["eval_highest"] == predicted["test_highest"]
    order = "left_to_right" if variant == "causal" else "uniform"
    columns = sample_orders(order, [len(row) for row in ROWS], example_indices=range(12)).columns
    for number, row in enumerate(ROWS):
        rows = seen[-1].inputs[number, 1 : len(row) + 1]
        assert rows.tolist() == [row[column] for column in columns[number, : len(row)]]


def test_the_best_likelihood_is_the_lowest(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "max_steps": 3}
    for metric in ("any_order_nll", "eval_left_to_right_bpc"):
        trainer, _ = make_trainer(
            tmp_path / metric, metric_for_best_model=metric, load_best_model_at_end=True, **settings
        )
        trainer.train()
        name = f"eval_{metric.removeprefix('eval_')}"
        history = {log["step"]: log[name] for log in trainer.state.log_history if name in log}
        assert len(history) == 3 and trainer.state.best_metric == min(history.values())


def test_evaluation_sets_in_a_dictionary_have_metrics_of_their_own(tmp_path):
    trainer, _ = make_trainer(tmp_path, dataloader_num_workers=1, dataloader_persistent_workers=True)
    trainer.compute_metrics = lambda prediction: {"rows": len(prediction.label_ids)}
    trainer.args.dataloader_drop_last = False
    trainer.eval_dataset = {"a": trainer.eval_dataset, "b": trainer.eval_dataset.select([0, 1])}
    metrics = trainer.evaluate()
    assert (metrics["eval_a_rows"], metrics["eval_b_rows"]) == (12, 2)
    assert metrics["eval_b_loss"] == trainer.evaluate("b")["eval_loss"] != metrics["eval_a_loss"]


def test_metrics_of_sets_without_numbers(tmp_path):
    """Streamed or not: their rows are numbered for the orders of the evaluation."""
    trainer, _ = make_trainer(tmp_path)
    numbered = trainer.eval_dataset
    trainer.compute_metrics = lambda prediction: {"rows": len(prediction.label_ids)}
    trainer.args.dataloader_drop_last = False
    bare = numbered.remove_columns("example_index")
    for dataset in (bare, bare.to_iterable_dataset(), {"a": bare}):
        trainer.eval_dataset = dataset
        metrics = trainer.evaluate()
        assert metrics["eval_a_rows" if isinstance(dataset, dict) else "eval_rows"] == len(numbered)


def test_examples_with_the_same_number_are_refused(tmp_path):
    trainer, recorder = make_trainer(tmp_path)
    trainer.train_dataset = concatenate_datasets([trainer.train_dataset.select([0, 1]), trainer.train_dataset])
    with pytest.raises(
        ValueError, match=r"must differ between examples.*got 0 in 2 of them.*with_example_index\(dataset\."
    ):
        trainer.train()
    assert not recorder.weights
    trainer.train_dataset = with_example_index(trainer.train_dataset.remove_columns("example_index"))
    trainer.train()
    assert len(recorder.weights) == 9


def test_causal_models_are_trained_and_measured_left_to_right_only(tmp_path):
    trainer, _ = make_trainer(tmp_path, variant="causal", order="left_to_right", max_steps=2)
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == metrics["eval_left_to_right_nll"]
    assert "eval_any_order_nll" not in metrics


def test_bad_input_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"decay must lie in \(0, 1\), got 1"):
        EMACallback(1.0)
    with pytest.raises(TypeError, match="must be a DataCollatorForAnyOrderLM or .*, got function"):
        AnyOrderTrainer(model=tiny_model("two_stream"), data_collator=lambda features: features)
    trainer, _ = make_trainer(tmp_path / "empty")
    with pytest.raises(ValueError, match="needs a complete checkpoint in .*/empty, found none"):
        trainer.train(resume_from_checkpoint=True)
    trainer.eval_dataset = None
    with pytest.raises(ValueError, match="needs an eval_dataset"):
        trainer.evaluate()
    without, _ = make_trainer(tmp_path, max_steps=2, save_strategy="steps", save_steps=1)
    without.train()
    with_average, _ = make_trainer(tmp_path, max_steps=2, ema=0.9)
    with pytest.raises(ValueError, match=r"checkpoint-1 is not a complete checkpoint: ema.safetensors is missing"):
        with_average.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    # At once, before anything is deleted or trained.
    settings = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    with pytest.raises(ValueError, match="load_best_model_at_end"):
        make_trainer(tmp_path, ema=0.9, load_best_model_at_end=True, **settings)
