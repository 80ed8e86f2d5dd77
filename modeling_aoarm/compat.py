# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Private API of transformers, torch, PEFT and lm-eval for the code that does not travel with a saved model.

All of it is used through this module, and `tests/test_compat.py` says what a new release has changed. Its twin for the
code that travels is [`~modeling_aoarm.compat_aoarm`].
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from unittest import mock

from torch import nn
from transformers import GenerationConfig


if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM

# The methods that `TrainerHooks` and the functions below need, and their arguments.
TRAINER_METHODS = {
    "_run_epoch": [],
    "_get_output_dir": ["trial"],
    "_save_checkpoint": ["model", "trial"],
    "_push_from_checkpoint": ["checkpoint_folder"],
    "_save": ["output_dir", "state_dict"],
}
HFLM_METHODS = {
    "_loglikelihood_tokens": ["requests", "disable_tqdm"],
    "_encode_pair": ["context", "continuation"],
    "_detect_batch_size": [],
}


class TrainerHooks:
    """Put before `Trainer` among the bases of a class, it gives its private steps public names to be overridden."""

    def run_epoch(self, *args, **kwargs) -> None:
        super()._run_epoch(*args, **kwargs)

    def checkpoint_parent(self, trial: Any) -> str:
        """The folder that checkpoints are written into."""
        return super()._get_output_dir(trial)

    def save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)

    def push_from_checkpoint(self, checkpoint_folder: str) -> None:
        super()._push_from_checkpoint(checkpoint_folder)

    def save_files(self, output_dir: str | None, state_dict: dict | None) -> None:
        """Writes model, tokenizer and arguments."""
        super()._save(output_dir, state_dict)

    def _run_epoch(self, *args, **kwargs):
        self.run_epoch(*args, **kwargs)

    def _get_output_dir(self, trial):
        return self.checkpoint_parent(trial)

    def _save_checkpoint(self, model, trial):
        self.save_checkpoint(model, trial)

    def _push_from_checkpoint(self, checkpoint_folder):
        self.push_from_checkpoint(checkpoint_folder)

    def _save(self, output_dir=None, state_dict=None):
        self.save_files(output_dir, state_dict)


def keep_published_mark(theirs: GenerationConfig, ours: GenerationConfig) -> None:
    """Lets a generation config be saved that the library would refuse if it had not been published like that."""
    if getattr(theirs, "_original_object_hash", None) == hash(theirs):
        ours._original_object_hash = hash(ours)


def forward_hooks(module: nn.Module) -> dict[int, Any]:
    """The table of a module's hooks, which copies made by `copy.copy` share."""
    return module._forward_hooks


def peft_target_tables() -> dict[str, dict[str, list[str]]]:
    """PEFT's tables of default target modules, by their names; each has an entry for Llama.

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
    """Runs the command line of lm-eval, which reads its arguments from `sys.argv`."""
    from lm_eval.__main__ import cli_evaluate

    with mock.patch.object(sys, "argv", ["lm-eval", *arguments]):
        cli_evaluate()


def loglikelihood_tokens(lm: "HFLM", requests: list, disable_tqdm: bool) -> list[tuple[float, bool]]:
    """The harness's log-likelihoods of tokenised pairs."""
    return lm._loglikelihood_tokens(requests, disable_tqdm)


def encode_pair(lm: "HFLM", context: str, continuation: str) -> tuple[list[int], list[int]]:
    """The tokens of a context and of its continuation, cut where the harness cuts them."""
    return lm._encode_pair(context, continuation)


def harness_batch_size(lm: "HFLM") -> int:
    """The batch size that was asked for, found out by the harness where it is "auto"."""
    return lm._detect_batch_size() if lm.batch_size == "auto" else int(lm.batch_size)


def has_own_max_length(lm: "HFLM") -> bool:
    """Whether the user gave a largest length."""
    return bool(lm._max_length)
