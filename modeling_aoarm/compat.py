# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Private API of transformers, torch, datasets, PEFT and lm-eval, for the code that does not travel with a saved model.

That code uses private API only through this module. `tests/test_compat.py` tells what a new release has changed.
[`~modeling_aoarm.compat_aoarm`] serves the code that travels.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from torch import nn
from transformers import GenerationConfig


if TYPE_CHECKING:
    from datasets import IterableDataset
    from lm_eval.models.huggingface import HFLM


class TrainerHooks:
    """Gives private steps of `Trainer` public names. It goes before `Trainer` among the bases of a class."""

    _staging: Path | None = None

    @property
    def current_batch_size(self) -> int:
        """Examples of one process's batch, which `auto_find_batch_size` may have lowered."""
        return self._train_batch_size

    def run_epoch(self, **kwargs) -> None:
        """Runs one pass over the data. To be overridden."""
        super()._run_epoch(**kwargs)

    def save_checkpoint(self, model: Any, trial: Any) -> None:
        """Saves a checkpoint. To be overridden."""
        super()._save_checkpoint(model, trial)

    def checkpoint_parent(self, trial: Any) -> str:
        """Returns the folder that has the checkpoints."""
        return super()._get_output_dir(trial)

    def write_checkpoint(self, model: Any, trial: Any, parent: Path) -> None:
        """Writes the files of a checkpoint into a folder of `parent`, without pushing them."""
        self._staging = parent
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging = None

    def push_checkpoint(self, folder: Path) -> None:
        """Starts to upload a checkpoint to the Hub."""
        super()._push_from_checkpoint(str(folder))

    def _run_epoch(self, **kwargs):
        self.run_epoch(**kwargs)

    def _save_checkpoint(self, model, trial):
        self.save_checkpoint(model, trial)

    def _get_output_dir(self, trial):
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)

    def _push_from_checkpoint(self, checkpoint_folder):
        if self._staging is None:
            super()._push_from_checkpoint(checkpoint_folder)


def is_split_by_node(dataset: "IterableDataset") -> bool:
    """Returns whether a streamed dataset is what `split_dataset_by_node` gave one of several processes."""
    return dataset._distributed is not None and dataset._distributed.world_size > 1


def keep_published_mark(theirs: GenerationConfig, ours: GenerationConfig) -> None:
    """Lets a changed copy of a published generation config be saved, if the library would refuse a new one like it."""
    if getattr(theirs, "_original_object_hash", None) == hash(theirs):
        ours._original_object_hash = hash(ours)


def forward_hooks(module: nn.Module) -> dict[int, Any]:
    """Returns the table of a module's hooks, which copies made by `copy.copy` share."""
    return module._forward_hooks


def peft_target_tables() -> dict[str, dict[str, list[str]]]:
    """Returns PEFT's tables of default target modules by name. Each has an entry for Llama.

    Raises:
        ImportError: PEFT is not installed.
    """
    from peft.utils import constants

    return {
        name: table
        for name, table in vars(constants).items()
        if name.startswith("TRANSFORMERS_MODELS_TO_") and "llama" in table
    }


def run_harness_command(arguments: Sequence[str]) -> None:
    """Runs the command line of lm-eval, which reads `sys.argv`."""
    from lm_eval.__main__ import cli_evaluate

    with mock.patch.object(sys, "argv", ["lm-eval", *arguments]):
        cli_evaluate()


def loglikelihood_tokens(lm: "HFLM", requests: list, disable_tqdm: bool) -> list[tuple[float, bool]]:
    """Computes the harness's log-likelihoods of tokenised pairs."""
    return lm._loglikelihood_tokens(requests, disable_tqdm)


def encode_pair(lm: "HFLM", context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Tokenises a context and its continuation, split where the harness splits them."""
    return lm._encode_pair(context, continuation)


def harness_batch_size(lm: "HFLM") -> int:
    """Returns the requested batch size. If it is "auto", the harness finds one."""
    return lm._detect_batch_size() if lm.batch_size == "auto" else int(lm.batch_size)


def has_own_max_length(lm: "HFLM") -> bool:
    """Returns whether the user set a maximum length."""
    return bool(lm._max_length)
