# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Training with `transformers.Trainer`: the collator's clock, averaged weights, any-order evaluation."""

import contextlib
import time
from collections.abc import Mapping, Sized
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback
from transformers.modelcard import extract_hyperparameters_from_trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints, speed_metrics

from ..compat import TrainerHooks
from ..data.collators import DataCollatorForAnyOrderLM, DataCollatorWithOrders, check_example_index, with_example_index
from ..data.masked_diffusion import collator_class_for
from ..evaluation.likelihood import OrderNLL, evaluate_likelihood
from ..io import naming_disk_errors, replacing, versions
from ..model_card import model_card, write_model_card
from .checkpoints import INCOMPLETE, discard_incomplete, exclusive, publish, replacing_files, resolve_checkpoint


EMA_FILE = "ema.safetensors"


class OrderClockCallback(TrainerCallback):
    """Tells a `DataCollatorWithOrders` the epoch and the optimiser step: orders and curricula follow the training.

    `AnyOrderTrainer` adds it by itself; with a plain `Trainer` pass it in `callbacks`, with the same collator.

    Args:
        collator: the training collator.
    """

    def __init__(self, collator: DataCollatorWithOrders):
        self.collator = collator
        self.batches_seen = None

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        # A resumed run starts within an epoch. Batches of the steps before never reach the collator, unless the dataset
        # is a stream: then they are made again and thrown away.
        epoch = int(state.epoch or 0)
        first_step = state.global_step
        is_stream = isinstance(getattr(train_dataloader, "dataset", None), IterableDataset)
        if is_stream and not args.ignore_data_skip:
            # The Trainer takes `max_steps` for the length of a pass over a stream.
            first_step -= round(((state.epoch or 0) - epoch) * state.max_steps)
        self.collator.start_epoch(
            epoch,
            first_step=first_step,
            total_steps=state.max_steps,
            gradient_accumulation_steps=args.gradient_accumulation_steps,
        )

    def on_step_end(self, args, state, control, **kwargs):
        self.batches_seen = self.collator.batches_seen

    def on_evaluate(self, args, state, control, **kwargs):
        # An evaluation in this process that used the training collator moved its counter.
        if self.batches_seen is not None:
            self.collator.batches_seen = self.batches_seen


class EMACallback(TrainerCallback):
    """Exponential moving average (EMA) of the trainable weights, in float32.

    After optimiser step t the average moves by 1 - min(decay, (1 + t) / (10 + t)) towards the weights, so that the
    initialisation does not dominate short runs. `AnyOrderTrainer` saves the average in every checkpoint
    (`ema.safetensors`), restores it on resume and evaluates with it. After the training the model holds it, so the
    final save has it too; checkpoints hold the unaveraged weights, which a resumed run needs.

    Args:
        decay: weight of the old average, in (0, 1).

    Raises:
        ValueError: `decay` outside (0, 1); sharded training (FSDP, DeepSpeed); `load_best_model_at_end`, which would
            load unaveraged weights; a resumed checkpoint without an average.
    """

    def __init__(self, decay: float):
        if not 0 < decay < 1:
            raise ValueError(f"decay must lie in (0, 1), got {decay}.")
        self.decay = decay
        self.average: dict[str, torch.Tensor] | None = None
        # Set by `AnyOrderTrainer.train`: callbacks are not told where a resumed run comes from.
        self.checkpoint: str | None = None

    def on_init_end(self, args, state, control, **kwargs):
        if args.fsdp or args.deepspeed:
            raise ValueError("EMACallback needs whole weights in every process: FSDP and DeepSpeed must be off.")
        if args.load_best_model_at_end:
            raise ValueError("EMACallback cannot be combined with load_best_model_at_end=True: set it to False.")

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        # Again, for a callback that was added later.
        self.on_init_end(args, state, control)
        self.average = {name: weight.detach().clone().float() for name, weight in _trainable(model).items()}
        if self.checkpoint is not None:
            for name, weight in load_file(Path(self.checkpoint) / EMA_FILE).items():
                self.average[name].copy_(weight)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        step = state.global_step
        update = get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))
        update(list(self.average.values()), [weight.detach().float() for weight in _trainable(model).values()], None)

    def save(self, checkpoint: Path):
        """Adds the average to a checkpoint that is being written."""
        save_file(self.average, checkpoint / EMA_FILE)

    def on_train_end(self, args, state, control, model=None, **kwargs):
        self._load_into(model)
        self.average = None

    @contextlib.contextmanager
    def swapped_in(self, model):
        """The model holds the average inside the context, its own weights after it. Outside of training: no change."""
        if self.average is None:
            yield
            return
        weights = {name: weight.detach().clone() for name, weight in _trainable(model).items()}
        self._load_into(model)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, weight in _trainable(model).items():
                    weight.copy_(weights[name])

    @torch.no_grad()
    def _load_into(self, model):
        for name, weight in _trainable(model).items():
            weight.copy_(self.average[name])


class AnyOrderTrainer(TrainerHooks, Trainer):
    """`transformers.Trainer` for any-order models.

    It keeps the collator's clock (`OrderClockCallback`), keeps the dataset's `example_index` column, and evaluates by
    negative log-likelihood over whole orders. `evaluate()` returns and logs, in nats per token: `eval_any_order_nll`
    (uniform orders, mean over `eval_draws` of them), `eval_any_order_nll_standard_error` (over the orders),
    `eval_left_to_right_nll`, and `eval_loss`, which is the any-order one; the same with `_bpc` in bits per character
    where the evaluation dataset has a column `num_characters` (characters that each row's predicted tokens spell).
    A `causal` model knows no other order than left to right and gets only that. Those of a `bidirectional` model are
    estimates, see [`evaluate_likelihood`].
    In several processes each scores its share. Results do not depend on the number of processes or on the batch size.
    A streamed evaluation dataset is read into memory in each evaluation, by every process.

    With `compute_metrics`, `evaluate()` makes one more pass as `Trainer` does and adds its metrics. Rows of a data set
    without `example_index` are numbered for it. Its orders are drawn once (uniform ones; left to right for `causal`),
    also in `predict()`: rows are in generation order, and the logits of row r predict the label of row r + 1 (of row r
    for `bidirectional`).
    Lower likelihood figures are better, so `greater_is_better` is set to False where `metric_for_best_model` ends in
    `_nll` or `_bpc`.

    A checkpoint appears when it is complete, and old ones go after that, so a training may be killed at any moment;
    `train(resume_from_checkpoint=True)` goes on from the last complete one (see [`resolve_checkpoint`]) and gives the
    losses and weights of a run that was not killed. `save_model` replaces an earlier model when the new one is written.

    Args:
        model, args, data_collator, kwargs: as in `Trainer`; `data_collator` is the one of the model's variant, see
            [`~modeling_aoarm.data.masked_diffusion.collator_class_for`].
        eval_draws: orders per example in `evaluate()`.
        eval_order_seed: seed of these orders.
        fused_loss: whether training steps compute the loss without logits, see `fused_loss` of
            [`AOARMForCausalLM.forward`]: less memory for large vocabularies.

    Raises:
        TypeError: `data_collator` draws no orders.
        ValueError: `fused_loss` for a `bidirectional` model or with label smoothing.
    """

    def __init__(
        self,
        model=None,
        args=None,
        data_collator=None,
        *,
        eval_draws=2,
        eval_order_seed=0,
        fused_loss=False,
        **kwargs,
    ):
        if not isinstance(data_collator, DataCollatorWithOrders):
            raise TypeError(
                "data_collator must be a DataCollatorForAnyOrderLM or DataCollatorForMaskedDiffusion, got "
                f"{type(data_collator).__name__}."
            )
        # What was measured last, for the model card.
        self.measured: dict[str, OrderNLL] = {}
        # Where a checkpoint lies while it is written.
        self.incomplete: Path | None = None
        super().__init__(model, args, data_collator, **kwargs)
        # Trainer takes what does not end in "loss" for something that should be high.
        if (self.args.metric_for_best_model or "").endswith(("_nll", "_bpc")):
            self.args.greater_is_better = False
        # The model has no use for example_index, the collator has.
        self.args.remove_unused_columns = False
        self.eval_draws = eval_draws
        self.eval_order_seed = eval_order_seed
        self.fused_loss = fused_loss
        variant, smoothing = self.model.config.attention_variant, self.args.label_smoothing_factor
        if fused_loss and (variant == "bidirectional" or smoothing):
            raise ValueError(
                "fused_loss needs an unsmoothed loss of a model with rows in generation order, got "
                f"attention_variant={variant!r} and label_smoothing_factor={smoothing}."
            )
        self.add_callback(OrderClockCallback(data_collator))

    @property
    def ema(self) -> EMACallback | None:
        """The EMA callback, where there is one."""
        return next((item for item in self.callback_handler.callbacks if isinstance(item, EMACallback)), None)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """As `Trainer.train`; a resumed run also restores the averaged weights.

        Raises:
            ValueError: the collator or its tokenizer does not fit the model, two examples have one `example_index`,
                there is no complete checkpoint to resume from (see [`resolve_checkpoint`]), or another process is
                training in the output folder.
            OSError: a checkpoint could not be written, because the disk is full. The ones before are as they were.
        """
        self._check_collator()
        check_example_index(self.train_dataset)
        vocab_size, tokens = self.model.config.vocab_size, len(self.data_collator.tokenizer)
        if tokens > vocab_size:
            raise ValueError(
                f"The collator's tokenizer must fit the model's vocab_size={vocab_size}, got {tokens} tokens. Take the "
                f"model's own tokenizer, or call `model.resize_token_embeddings({tokens})` before training."
            )
        self.data_collator.vocab_size = vocab_size
        required = [EMA_FILE] if self.ema is not None else []
        checkpoint = resolve_checkpoint(self.args, resume_from_checkpoint, required)
        if self.ema is not None:
            self.ema.checkpoint = checkpoint
        with exclusive(self.args.output_dir) if self.args.should_save else contextlib.nullcontext():
            return super().train(checkpoint, *args, **kwargs)

    def _check_collator(self) -> None:
        """Raises a ValueError for batches that the model could not learn from."""
        config, right = self.model.config, collator_class_for(self.model.config)
        if not isinstance(self.data_collator, right):
            raise ValueError(
                f"data_collator must be a {right.__name__} for attention_variant={config.attention_variant!r}, got "
                f"{type(self.data_collator).__name__}."
            )
        if config.attention_variant != "bidirectional":
            return
        if self.args.label_smoothing_factor:
            raise ValueError(
                "label_smoothing_factor must be 0 for attention_variant='bidirectional', whose loss is weighted; got "
                f"{self.args.label_smoothing_factor}."
            )
        mask_token_id = self.data_collator.tokenizer.mask_token_id
        if mask_token_id != config.mask_token_id:
            raise ValueError(
                f"The collator's tokenizer must have the model's mask_token_id={config.mask_token_id}, got "
                f"{mask_token_id}."
            )

    @contextlib.contextmanager
    def _evaluation_collator(self):
        """Within the block `data_collator` draws the orders of evaluations, which do not follow the training."""
        config, collator = self.model.config, self.data_collator
        self.data_collator = collator_class_for(config)(
            collator.tokenizer,
            order="left_to_right" if config.attention_variant == "causal" else "uniform",
            seed=self.eval_order_seed,
            max_length=collator.max_length,
            **({"context_order": collator.context_order} if isinstance(collator, DataCollatorForAnyOrderLM) else {}),
        )
        try:
            yield
        finally:
            self.data_collator = collator

    def get_eval_dataloader(self, eval_dataset=None):
        """As in `Trainer`, with orders for evaluation."""
        own = self.eval_dataset
        with self._evaluation_collator():
            if not isinstance(eval_dataset, str):
                return super().get_eval_dataloader(_numbered(own if eval_dataset is None else eval_dataset))
            # `Trainer` keeps a loader for each name.
            self.eval_dataset = {**own, eval_dataset: _numbered(own[eval_dataset])}
            try:
                return super().get_eval_dataloader(eval_dataset)
            finally:
                self.eval_dataset = own

    def get_test_dataloader(self, test_dataset):
        """As in `Trainer`, with orders for evaluation."""
        with self._evaluation_collator():
            return super().get_test_dataloader(_numbered(test_dataset))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """As in `Trainer`, without a mask where it hides nothing from anyone, and without logits that nobody wants.

        The collator pads on the right, so that the rows of an example never see its padding. Without a mask there are
        flash kernels, and nothing waits for the device to look at it.
        """
        inputs = dict(inputs)
        config = self.model.config
        # Positions of padding need a place in the tables.
        fits = inputs["input_ids"].shape[1] <= config.max_position_embeddings
        if config.attention_variant != "bidirectional" and fits and not return_outputs:
            inputs.pop("attention_mask", None)
        if self.fused_loss and not return_outputs:
            inputs["fused_loss"] = True
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def run_epoch(self, *args, **kwargs):
        if self.state.global_step >= self.state.max_steps:
            # Trainer resumed at the last step would take one more.
            self.control.should_training_stop = True
        else:
            super().run_epoch(*args, **kwargs)

    def checkpoint_parent(self, trial):
        return super().checkpoint_parent(trial) if self.incomplete is None else str(self.incomplete)

    def save_checkpoint(self, model, trial):
        """As in `Trainer`, but a checkpoint gets its name when all processes have written their files."""
        output_dir = Path(self.checkpoint_parent(trial))
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        temporary, checkpoint = output_dir / INCOMPLETE / name, output_dir / name
        if self.args.should_save:
            discard_incomplete(output_dir)
        self.accelerator.wait_for_everyone()
        self.incomplete = temporary.parent
        try:
            with naming_disk_errors(checkpoint):
                super().save_checkpoint(model, trial)
                best = output_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
                if best == checkpoint or best.is_dir():
                    self.state.best_model_checkpoint = str(best)
                if self.args.should_save:
                    self.state.save_to_json(str(temporary / TRAINER_STATE_NAME))
                    if self.ema is not None:
                        self.ema.save(temporary)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                publish(temporary, checkpoint)
        finally:
            self.incomplete = None
            if self.args.should_save:
                discard_incomplete(output_dir)
        self.accelerator.wait_for_everyone()
        # Not before, when the folder had another name.
        if self.args.push_to_hub:
            self.push_from_checkpoint(str(checkpoint))
        if self.args.should_save:
            rotate_checkpoints(
                output_dir=str(output_dir),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

    def push_from_checkpoint(self, checkpoint_folder):
        if self.incomplete is None:
            super().push_from_checkpoint(checkpoint_folder)

    def save_files(self, output_dir, state_dict):
        """As in `Trainer`, but a model saved before stays until the new one is complete."""
        output_dir = output_dir or self.args.output_dir
        if self.incomplete is None and self.args.should_save:
            with replacing_files(output_dir) as temporary:
                super().save_files(str(temporary), state_dict)
        else:
            super().save_files(output_dir, state_dict)

    def save_state(self):
        """As in `Trainer`, the whole file at once."""
        if self.is_world_process_zero():
            with replacing(Path(self.args.output_dir) / TRAINER_STATE_NAME) as temporary:
                self.state.save_to_json(str(temporary))

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags=None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        *args,
        report: Mapping[str, Any] | None = None,
        curve: str | None = None,
        **kwargs,
    ) -> None:
        """Writes the variant's model card into the output folder; `push_to_hub` calls this, too, with its arguments.

        Args:
            language, license, model_name, finetuned_from: as in `Trainer`; its other arguments are ignored.
            report: what the trainer cannot know, and what is to replace its own figures; see [`model_card`].
            curve: file name of a picture of the loss curve.
        """
        if not self.is_world_process_zero():
            return
        model = self.accelerator.unwrap_model(self.model)
        adapter = getattr(model, "active_peft_config", None)
        known = {
            "parameters": model.num_parameters(),
            "evaluation": {name.replace("_", " "): result.to_dict() for name, result in self.measured.items()},
            "training": {
                "orders": str(self.data_collator.order),
                "steps": self.state.global_step,
                "hyperparameters": extract_hyperparameters_from_trainer(self),
            },
            "versions": versions(),
        }
        card = model_card(
            model.config,
            {**known, **(report or {})},
            # The library leaves the owner out of `model_name`.
            model_id=self.hub_model_id or model_name or self.args.output_dir,
            license=license,
            language=language,
            base_model=finetuned_from or getattr(adapter, "base_model_name_or_path", None),
            adapter=adapter is not None,
            curve=curve,
        )
        write_model_card(self.args.output_dir, card)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Any-order and left-to-right likelihood of the evaluation dataset, or of each one in a dictionary."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, dict):
            metrics = {}
            for name, part in dataset.items():
                part = name if eval_dataset is None else part
                metrics |= self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}")
            return metrics
        if dataset is None:
            raise ValueError("evaluate needs an eval_dataset, in the call or in the constructor.")

        started = time.time()
        metrics = {}
        if self.compute_metrics is not None:
            with self._averaged_weights():
                metrics = self.evaluation_loop(
                    self.get_eval_dataloader(eval_dataset),
                    description="Evaluation",
                    ignore_keys=ignore_keys,
                    metric_key_prefix=metric_key_prefix,
                ).metrics
        rows = self._evaluation_rows(self.eval_dataset[dataset] if isinstance(dataset, str) else dataset)
        results = self.evaluate_orders(rows, self.eval_draws)
        metrics[f"{metric_key_prefix}_loss"] = results[next(iter(results))].nll
        for name, result in results.items():
            for unit, value, error in (
                ("nll", result.nll, result.standard_error),
                ("bpc", result.bits_per_character, result.bits_per_character_standard_error),
            ):
                key = f"{metric_key_prefix}_{name}_{unit}"
                metrics |= {key: value} if value is not None else {}
                metrics |= {f"{key}_standard_error": error} if error is not None else {}
        metrics |= speed_metrics(metric_key_prefix, started, num_samples=len(rows))
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def evaluate_orders(self, dataset, draws: int):
        """`evaluate_likelihood` in `draws` uniform orders and left to right, with averaged weights where there are any.

        Returns a dict from `any_order` (not for `causal` models) and `left_to_right` to `OrderNLL`.
        """
        model = self.accelerator.unwrap_model(self.model)
        dataset = self._evaluation_rows(dataset)
        # A bidirectional model's figures are estimates in a known order, too.
        draws_left_to_right = draws if model.config.attention_variant == "bidirectional" else 1
        orders = {"any_order": ("uniform", draws), "left_to_right": ("left_to_right", draws_left_to_right)}
        if model.config.attention_variant == "causal":
            del orders["any_order"]
        with self._averaged_weights():
            self.measured = {
                name: evaluate_likelihood(
                    model,
                    dataset,
                    self.data_collator.tokenizer,
                    order,
                    draws=order_draws,
                    seed=self.eval_order_seed,
                    batch_size=self.args.per_device_eval_batch_size,
                    characters=_count_characters(dataset),
                    max_length=self.data_collator.max_length,
                    accelerator=self.accelerator,
                    progress=not self.args.disable_tqdm,
                )
                for name, (order, order_draws) in orders.items()
            }
        return self.measured

    def _averaged_weights(self):
        return contextlib.nullcontext() if self.ema is None else self.ema.swapped_in(self.model)

    def _evaluation_rows(self, dataset) -> Sized:
        """The dataset, or the rows of a streamed one.

        Raises:
            ValueError: processes read different rows.
        """
        if isinstance(dataset, Sized):
            return dataset
        columns = ("input_ids", "labels", "num_characters")
        rows = [{name: row[name] for name in columns if name in row} for row in dataset]
        read = [len(rows), hash(tuple(int(token) for row in rows for token in row["input_ids"]))]
        if gather_object([read]).count(read) < self.args.world_size:
            raise ValueError(
                "A streamed eval_dataset must have the same rows in all processes, got others in some. Do not split it "
                "by process: each process reads all rows and scores its share."
            )
        return rows


def _count_characters(dataset: Sized) -> int | None:
    """The sum of the column `num_characters`, where there is one."""
    names = getattr(dataset, "column_names", None)
    if "num_characters" in (names or (dataset[0] if len(dataset) else ())):
        return sum(dataset["num_characters"] if names else [row["num_characters"] for row in dataset])
    return None


def _numbered(dataset):
    """A data set with the column `example_index`, by which evaluations draw orders, where it can be added."""
    from datasets import Dataset
    from datasets import IterableDataset as StreamedDataset

    can_be_numbered = isinstance(dataset, (Dataset, StreamedDataset))
    has_number = can_be_numbered and "example_index" in (dataset.column_names or ())
    return with_example_index(dataset) if can_be_numbered and not has_number else dataset


def _trainable(model) -> dict[str, torch.nn.Parameter]:
    """Parameters with gradients, tied ones once."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
