# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Masked diffusion (MDLM, 2406.07524), or order-agnostic modelling (ARDM, 2110.02037): the head of `bidirectional`.

Rows are in sentence order, blanks hold the mask token, all rows see each other, and each row predicts its own token.
There is no cache: every pass reads the whole canvas.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.generation import GenerationConfig, GenerationMixin
from transformers.modeling_outputs import MaskedLMOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .canvas import CanvasRows
from .compat_aoarm import require
from .decoding_aoarm import DecodingPlan
from .fused_loss_aoarm import score_tokens
from .generation_aoarm import AOARMGenerationMixin
from .masked_reading_aoarm import MaskedReader
from .masked_scoring_aoarm import MaskedScoringMixin
from .modeling_aoarm import AOARMLanguageModel


@dataclass
class AOARMMaskedLMOutput(MaskedLMOutput):
    """
    Args:
        loss: nats per label that is not -100, or per `num_items_in_batch`, which `Trainer` counts.
        logits: `[batch, rows, vocab]`, or `[batch, kept, vocab]`.
        hidden_states, attentions: as in the library, `[batch, rows, hidden]` and `[batch, heads, rows, keys]`.
        token_log_probs: float32, nats, and
        token_is_likeliest: bool, in the shape of `scored_ids`.
    """

    token_log_probs: torch.FloatTensor | None = None
    token_is_likeliest: torch.BoolTensor | None = None


class AOARMForMaskedLM(AOARMLanguageModel, MaskedScoringMixin, AOARMGenerationMixin, GenerationMixin):
    """A bidirectional model that predicts the tokens of masked rows (`attention_variant="bidirectional"`).

    The mask token stands for what is not known and is never predicted: its logit is minus infinity, so that every row
    has a distribution over the other tokens (MDLM's zero masking probability). What stands in rows that hold another
    token is known; they have logits too, but nobody needs them.
    """

    # Without blanks there is nothing to generate.
    continues_text = False

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        segment_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        loss_weights: torch.FloatTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        scored_ids: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AOARMMaskedLMOutput:
        """Predicts each row's own token from all rows. See also [`AOARMModel.forward`].

        Args:
            input_ids: int64 `[batch, rows]`, in sentence order, with the mask token in blanks.
            attention_mask: `[batch, rows]`, 0 for padding on either side; or a prepared 4-D mask.
            position_ids: int64 `[batch, rows]`. Default: 0, 1, 2, ..., starting again in each segment.
            segment_ids: int64 `[batch, rows]`, equal within each run of rows that is an example of its own (packing).
            inputs_embeds: `[batch, rows, hidden]`, in place of `input_ids`.
            labels: int64 `[batch, rows]`, not shifted: row r's logits are scored against row r's label. -100 where
                nothing is to be learned.
            loss_weights: float `[batch, rows]`, what each row's cross-entropy counts. Labels are then the tokens of all
                rows that are to be modelled, of which those that are not masked weigh 0: the loss is divided by the
                number of labels whatever was masked, which is the same in any number of processes and accumulated
                batches. Default: 1, labels being those of masked rows.
            logits_to_keep: which rows get logits: so many of the last, 0 for all; int64 `[kept]`; or int64
                `[batch, kept]`, other rows in each example.
            scored_ids: int64 `[batch, rows]`, or `[batch, kept]` with `logits_to_keep`: tokens whose log-probabilities
                are wanted instead of logits. They are computed in pieces.

        Raises:
            ValueError: as in [`AOARMModel.forward`]; for labels or weights of a wrong shape, weights without labels,
                a label that is the mask token, and `target_position_ids`, caches and `is_causal=True`.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            segment_ids=segment_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        if isinstance(logits_to_keep, int):
            hidden_states = hidden_states[:, -logits_to_keep:]
        elif logits_to_keep.ndim == 1:
            hidden_states = hidden_states[:, logits_to_keep]
        else:
            hidden_states = hidden_states.take_along_dim(logits_to_keep[..., None], dim=1)
        if scored_ids is not None:
            if labels is not None or loss_weights is not None:
                raise ValueError("`scored_ids` and `labels` exclude each other, as no logits are left for the loss.")
            scores = score_tokens(hidden_states, self.lm_head, scored_ids, self.vocab_size, self.config.mask_token_id)
            return AOARMMaskedLMOutput(
                hidden_states=outputs.hidden_states,
                attentions=outputs.attentions,
                token_log_probs=scores[0],
                token_is_likeliest=scores[1],
            )
        logits = self.lm_head(hidden_states)
        # Not in place: hooks of sharded training may hold the output.
        is_mask_token = torch.arange(logits.shape[-1], device=logits.device) == self.config.mask_token_id
        logits = logits.masked_fill(is_mask_token, -torch.inf)
        loss = None
        if labels is not None:
            self.check_labels(labels, loss_weights, logits)
            loss = self.weighted_loss(logits, labels, loss_weights, **kwargs)
        elif loss_weights is not None:
            raise ValueError("`loss_weights` need `labels`, got none.")
        return AOARMMaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def check_labels(self, labels: torch.Tensor, loss_weights: torch.Tensor | None, logits: torch.Tensor) -> None:
        """Raises a ValueError for labels or weights that do not fit the rows, and for the mask token as a label."""
        for name, value in (("labels", labels), ("loss_weights", loss_weights)):
            if value is not None and value.shape != logits.shape[:2]:
                raise ValueError(
                    f"`{name}` must have the shape [batch, rows], here {list(logits.shape[:2])}; got "
                    f"{list(value.shape)}."
                )
        if not torch.compiler.is_compiling():
            require(
                (labels != self.config.mask_token_id).all(),
                f"`labels` must not hold the mask token ({self.config.mask_token_id}), which has probability 0; label "
                "rows that are not to be learned -100.",
                waits=labels.device.type == "cpu" or not self.training,
            )

    def weighted_loss(
        self, logits: torch.Tensor, labels: torch.Tensor, loss_weights: torch.Tensor | None, **kwargs
    ) -> torch.Tensor:
        """The weighted cross-entropy, nats per label; without weights it is the library's loss."""
        if loss_weights is None:
            return self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        weights = loss_weights.to(logits.device, torch.float32).flatten()
        labels = labels.to(logits.device).flatten()
        # Rows of weight 0 may hold any label, also one of infinite loss.
        scored = labels.where(weights != 0, -100)
        losses = nn.functional.cross_entropy(logits.float().flatten(0, 1), scored, reduction="none")
        count = kwargs.get("num_items_in_batch")
        if count is None:
            count = labels.ne(-100).sum().clamp(min=1)
        elif isinstance(count, torch.Tensor):
            count = count.to(logits.device)
        return (weights * losses).sum() / count

    def _check_canvas_call(
        self,
        inputs: Any,
        generation_config: Any,
        logits_processor: Any,
        streamer: Any,
        library_arguments: dict[str, Any],
        cache: Any,
        kwargs: dict[str, Any],
    ) -> None:
        checked = inputs, generation_config, logits_processor, streamer, library_arguments, cache, kwargs
        super()._check_canvas_call(*checked)
        if cache is not None:
            raise ValueError(
                "`past_key_values` must not be given for attention_variant='bidirectional', which has no cache; got "
                f"{type(cache).__name__}."
            )

    def _reader(
        self, generation_config: GenerationConfig, rows: CanvasRows, plan: DecodingPlan, cache: None, copies: int
    ) -> tuple[MaskedReader, torch.Tensor]:
        """What reads the canvases, and how many of each example's rows it has read: none."""
        if plan.draft_length:
            raise ValueError(
                "`draft_length` needs rows in generation order, of which one pass verifies several, so another variant "
                f"than attention_variant='bidirectional'; got {plan.draft_length}."
            )
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise ValueError(
                "`cache_implementation` must not be given for attention_variant='bidirectional', which has no cache; "
                f"got {generation_config.cache_implementation!r}."
            )
        return MaskedReader(self), torch.zeros_like(rows.given)


__all__ = ["AOARMForMaskedLM"]
