# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""`transformers.Trainer` for any-order models: order clock, any-order evaluation, complete checkpoints."""

import contextlib
import time
from collections.abc import Mapping, Sized
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from transformers import Trainer
from transformers.modelcard import extract_hyperparameters_from_trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints, speed_metrics

from ..compat import TrainerHooks
from ..data.collators import DataCollatorForAnyOrderLM, DataCollatorWithOrders, check_example_index, with_example_index
from ..data.masked_diffusion import collator_class_for
from ..evaluation.likelihood import OrderNLL, evaluate_likelihood
from ..io import reaching_disk, replacing, versions
from ..model_card import make_model_card, write_model_card
from .callbacks import EMA_FILE, EMACallback, OrderClockCallback
from .checkpoints import INCOMPLETE, discard_incomplete, exclusive, publish, replacing_files, resolve_checkpoint


class AnyOrderTrainer(TrainerHooks, Trainer):
    """`transformers.Trainer` for any-order models.

    It keeps the collator's clock (`OrderClockCallback`) and the dataset's `example_index` column.

    `evaluate()` measures negative log-likelihood over whole orders, in nats per token: `eval_any_order_nll` (mean over
    `eval_draws` uniform orders), `eval_any_order_nll_standard_error` (over the orders), `eval_left_to_right_nll`, and
    `eval_loss`, which equals the first. If the dataset has a column `num_characters` (characters that each row's
    predicted tokens spell), the same figures with `_bpc` are in bits per character. A `causal` model gets only the
    left-to-right figures. The figures of a `bidirectional` model are estimates, see [`evaluate_likelihood`]. Results do
    not depend on the number of processes or on the batch size. In each evaluation, every process reads a streamed
    dataset into memory. `greater_is_better` becomes False if `metric_for_best_model` ends in `_nll` or `_bpc`.

    With `compute_metrics`, `evaluate()` makes one more pass, as `Trainer` does, and adds its metrics. That pass and
    `predict()` always use the same orders: uniform ones, or left to right for `causal`. Rows without `example_index`
    are numbered. Rows are in generation order, and the logits of row r predict the label of row r + 1 (of row r for
    `bidirectional`).

    `train_dataset` may be a `datasets.IterableDataset`, the whole stream in every process (`max_steps` is needed). Each
    process and each worker of its data loader reads a part of its own, pass after pass, see [`StreamPart`]. A resumed
    run reads and skips what was trained on, so its batches are those of an uninterrupted run.

    A training can be killed at any moment, because a checkpoint appears when it is complete and old ones are removed
    after that. `train(resume_from_checkpoint=True)` continues from the last complete checkpoint (see
    [`resolve_checkpoint`]) with the losses and weights of an uninterrupted run. `save_model` replaces an earlier model
    when the new one is written.

    Args:
        model, args, kwargs: as in `Trainer`.
        data_collator: an instance of [`~modeling_aoarm.data.masked_diffusion.collator_class_for`] of the model's
            config.
        eval_draws: orders per example in `evaluate()`.
        eval_order_seed: seed of these orders.
        fused_loss: whether training steps compute the loss without logits, which needs less memory for large
            vocabularies, see [`AOARMForCausalLM.forward`].

    Raises:
        TypeError: `data_collator` draws no orders.
        ValueError: `fused_loss` is set for a `bidirectional` model or with label smoothing.
    """

    def __init__(
        self,
        model=None,
        args=None,
        data_collator=None,
        *,
        eval_draws: int = 2,
        eval_order_seed: int = 0,
        fused_loss: bool = False,
        **kwargs,
    ):
        if not isinstance(data_collator, DataCollatorWithOrders):
            raise TypeError(
                "data_collator must be a DataCollatorForAnyOrderLM or DataCollatorForMaskedDiffusion, got "
                f"{type(data_collator).__name__}."
            )
        super().__init__(model, args, data_collator, **kwargs)
        # Trainer assumes that a metric is better when higher unless its name ends in "loss".
        if (self.args.metric_for_best_model or "").endswith(("_nll", "_bpc")):
            self.args.greater_is_better = False
        # The collator needs example_index, which the model does not take.
        self.args.remove_unused_columns = False
        self.eval_draws = eval_draws
        self.eval_order_seed = eval_order_seed
        self.fused_loss = fused_loss
        # The last figures, for the model card.
        self.measured: dict[str, OrderNLL] = {}
        variant, smoothing = self.model.config.attention_variant, self.args.label_smoothing_factor
        if fused_loss and (variant == "bidirectional" or smoothing):
            raise ValueError(
                "fused_loss needs an unsmoothed loss of a model with rows in generation order, got "
                f"attention_variant={variant!r} and label_smoothing_factor={smoothing}."
            )
        self.add_callback(OrderClockCallback(data_collator))

    @property
    def ema(self) -> EMACallback | None:
        """The EMA callback, if there is one."""
        return next((item for item in self.callback_handler.callbacks if isinstance(item, EMACallback)), None)

    # Training

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """As `Trainer.train`. A resumed run also restores the averaged weights.

        Raises:
            ValueError: the collator or its tokenizer does not fit the model, two examples have the same
                `example_index`, there is no complete checkpoint to resume from (see [`resolve_checkpoint`]), or another
                process is training in the output folder.
            OSError: the disk is too full for a checkpoint. Earlier checkpoints have not changed.
        """
        self._check_collator()
        check_example_index(self.train_dataset)
        self.data_collator.vocab_size = self.model.config.vocab_size
        required = [EMA_FILE] if self.ema is not None else []
        checkpoint = resolve_checkpoint(self.args, resume_from_checkpoint, required)
        if self.ema is not None:
            self.ema.checkpoint = checkpoint
        with exclusive(self.args.output_dir) if self.args.should_save else contextlib.nullcontext():
            return super().train(checkpoint, *args, **kwargs)

    def _check_collator(self) -> None:
        """Raises a ValueError if the model could not learn from the collator's batches."""
        config, tokenizer = self.model.config, self.data_collator.tokenizer
        collator_class = collator_class_for(config)
        if not isinstance(self.data_collator, collator_class):
            raise ValueError(
                f"data_collator must be a {collator_class.__name__} for attention_variant="
                f"{config.attention_variant!r}, got {type(self.data_collator).__name__}."
            )
        if len(tokenizer) > config.vocab_size:
            raise ValueError(
                f"The collator's tokenizer must fit the model's vocab_size={config.vocab_size}, got {len(tokenizer)} "
                "tokens. Take the model's own tokenizer, or call "
                f"`model.resize_token_embeddings({len(tokenizer)})` before training."
            )
        if config.attention_variant != "bidirectional":
            return
        if self.args.label_smoothing_factor:
            raise ValueError(
                "label_smoothing_factor must be 0 for attention_variant='bidirectional', whose loss is weighted; got "
                f"{self.args.label_smoothing_factor}."
            )
        if tokenizer.mask_token_id != config.mask_token_id:
            raise ValueError(
                f"The collator's tokenizer must have the model's mask_token_id={config.mask_token_id}, got "
                f"{tokenizer.mask_token_id}."
            )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """As in `Trainer`, without an attention mask and without logits where they are not needed.

        The collator pads on the right, so causal rows never see padding. Without a mask, attention can use flash
        kernels and the device does not wait for the host to read the mask.
        """
        inputs = dict(inputs)
        config = self.model.config
        # The positions of padding need entries in the position tables.
        fits = inputs["input_ids"].shape[1] <= config.max_position_embeddings
        if config.attention_variant != "bidirectional" and fits and not return_outputs:
            inputs.pop("attention_mask", None)
        if self.fused_loss and not return_outputs:
            inputs["fused_loss"] = True
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def get_train_dataloader(self):
        """As in `Trainer`. Each process reads its own part of a `datasets.IterableDataset`, see the class."""
        from datasets import IterableDataset

        from .streams import make_stream_loader

        parallelism = self.accelerator.parallelism_config
        # With tensor or context parallelism several processes need the same rows: accelerate sends them.
        is_shared = parallelism is not None and parallelism.tp_size * parallelism.cp_size > 1
        if is_shared or not isinstance(self.train_dataset, IterableDataset):
            return super().get_train_dataloader()
        return make_stream_loader(self.train_dataset, self.data_collator, self.args, self.current_batch_size)

    def run_epoch(self, **kwargs):
        if self.state.global_step < self.state.max_steps:
            super().run_epoch(**kwargs)
        else:
            # A Trainer that resumes at the last step would take one more.
            self.control.should_training_stop = True

    # Saving

    def save_checkpoint(self, model, trial):
        """As in `Trainer`, but a checkpoint gets its name when all processes have written their files."""
        output_dir = Path(self.checkpoint_parent(trial))
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        temporary, checkpoint = output_dir / INCOMPLETE / name, output_dir / name
        if self.args.should_save:
            discard_incomplete(output_dir)
        self.accelerator.wait_for_everyone()
        try:
            with reaching_disk(temporary, checkpoint):
                self.write_checkpoint(model, trial, temporary.parent)
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
            if self.args.should_save:
                discard_incomplete(output_dir)
        self.accelerator.wait_for_everyone()
        # The upload reads the folder later, so it needs the final name.
        if self.args.push_to_hub:
            self.push_checkpoint(checkpoint)
        if self.args.should_save:
            rotate_checkpoints(
                output_dir=str(output_dir),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in `Trainer`, but an earlier model stays until the new one is complete."""
        if _internal_call and output_dir is not None:
            # This is part of a checkpoint.
            super().save_model(output_dir, _internal_call=True)
            return
        folder = output_dir or self.args.output_dir
        with replacing_files(folder) if self.args.should_save else contextlib.nullcontext(folder) as temporary:
            super().save_model(str(temporary), _internal_call=True)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def save_state(self) -> None:
        """As in `Trainer`, but the file is never partial."""
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
        """Writes the variant's model card into the output folder. `push_to_hub` calls this with its own arguments.

        Args:
            language, license, model_name, finetuned_from: as in `Trainer`. Its other arguments are ignored.
            report: replaces and extends what the trainer knows, see [`make_model_card`].
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
        card = make_model_card(
            model.config,
            {**known, **(report or {})},
            # `model_name` lacks the owner of the repository.
            model_id=self.hub_model_id or model_name or self.args.output_dir,
            license=license,
            language=language,
            base_model=finetuned_from or getattr(adapter, "base_model_name_or_path", None),
            adapter=adapter is not None,
            curve=curve,
        )
        write_model_card(self.args.output_dir, card)

    # Evaluation

    def get_eval_dataloader(self, eval_dataset=None):
        """As in `Trainer`, with the orders of evaluations, which do not depend on the training."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        return self.get_test_dataloader(self.eval_dataset[dataset] if isinstance(dataset, str) else dataset)

    def get_test_dataloader(self, test_dataset):
        """As in `Trainer`, with the orders of evaluations, which do not depend on the training."""
        from datasets import Dataset, IterableDataset

        has_columns = isinstance(test_dataset, (Dataset, IterableDataset))
        if has_columns and "example_index" not in (test_dataset.column_names or ()):
            test_dataset = with_example_index(test_dataset)
        config, collator = self.model.config, self.data_collator
        self.data_collator = collator_class_for(config)(
            collator.tokenizer,
            order="left_to_right" if config.attention_variant == "causal" else "uniform",
            seed=self.eval_order_seed,
            max_length=collator.max_length,
            **({"context_order": collator.context_order} if isinstance(collator, DataCollatorForAnyOrderLM) else {}),
        )
        try:
            return super().get_test_dataloader(test_dataset)
        finally:
            self.data_collator = collator

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Measures the likelihood of the evaluation dataset, or of each one in a dictionary. See the class."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, str):
            dataset = self.eval_dataset[dataset]
        if isinstance(dataset, dict):
            metrics = {}
            for name, part in dataset.items():
                metrics |= self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}")
            return metrics
        if dataset is None:
            raise ValueError("evaluate needs an eval_dataset, in the call or in the constructor.")

        started = time.time()
        metrics = {}
        if self.compute_metrics is not None:
            with self._averaged_weights():
                metrics = self.evaluation_loop(
                    self.get_eval_dataloader(dataset),
                    description="Evaluation",
                    ignore_keys=ignore_keys,
                    metric_key_prefix=metric_key_prefix,
                ).metrics
        rows = self._read_rows(dataset)
        results = self.evaluate_orders(rows, self.eval_draws)
        metrics[f"{metric_key_prefix}_loss"] = next(iter(results.values())).nll
        for name, result in results.items():
            figures = {
                "nll": result.nll,
                "nll_standard_error": result.standard_error,
                "bpc": result.bits_per_character,
                "bpc_standard_error": result.bits_per_character_standard_error,
            }
            for unit, value in figures.items():
                if value is not None:
                    metrics[f"{metric_key_prefix}_{name}_{unit}"] = value
        metrics |= speed_metrics(metric_key_prefix, started, num_samples=len(rows))
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def evaluate_orders(self, dataset, draws: int) -> dict[str, OrderNLL]:
        """Calls [`evaluate_likelihood`] for uniform orders and left to right, with averaged weights if there are any.

        Args:
            dataset: tokenised rows; may be streamed.
            draws: uniform orders per example.

        Returns:
            Results under the names `any_order` (except for `causal` models) and `left_to_right`.
        """
        model = self.accelerator.unwrap_model(self.model)
        variant = model.config.attention_variant
        rows = self._read_rows(dataset)
        orders = {} if variant == "causal" else {"any_order": ("uniform", draws)}
        # Figures of a bidirectional model are estimates even in a fixed order.
        orders["left_to_right"] = ("left_to_right", draws if variant == "bidirectional" else 1)
        with self._averaged_weights():
            self.measured = {
                name: evaluate_likelihood(
                    model,
                    rows,
                    self.data_collator.tokenizer,
                    order,
                    draws=order_draws,
                    seed=self.eval_order_seed,
                    batch_size=self.args.per_device_eval_batch_size,
                    characters=_count_characters(rows),
                    max_length=self.data_collator.max_length,
                    accelerator=self.accelerator,
                    progress=not self.args.disable_tqdm,
                )
                for name, (order, order_draws) in orders.items()
            }
        return self.measured

    def _averaged_weights(self):
        return contextlib.nullcontext() if self.ema is None else self.ema.swapped_in(self.model)

    def _read_rows(self, dataset) -> Sized:
        """Returns the dataset, or the rows of a streamed one.

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


def _count_characters(rows: Sized) -> int | None:
    """Sums the column `num_characters`, if there is one."""
    names = getattr(rows, "column_names", None)
    if "num_characters" in (names or (rows[0] if len(rows) else ())):
        return sum(rows["num_characters"] if names else [row["num_characters"] for row in rows])
    return None
