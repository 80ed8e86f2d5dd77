# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Generation in any order, on a key-value cache: a mixin that goes before the library's `GenerationMixin`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache
from transformers.generation import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    GenerationConfig,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)
from transformers.utils import ModelOutput

from .canvas import CanvasRows, check_canvas, resolve_decoding_order


# Processors whose meaning does not depend on where tokens stand. Others read the rows before as the text to the left.
ORDER_FREE_PROCESSORS = (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

# Options of the library's generation that canvases have no use for: refused, so that nobody waits for their effect.
UNUSED_OPTIONS = (
    "assistant_early_exit",
    "constraints",
    "dola_layers",
    "force_words_ids",
    "max_time",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "penalty_alpha",
    "prompt_lookup_num_tokens",
    "stop_strings",
    "token_healing",
)


@dataclass
class AOARMGenerateOutput(ModelOutput):
    """What `generate` returns for canvases when `return_dict_in_generate=True`.

    Args:
        sequences: int64 `[batch, columns]`, the filled canvases in sentence order. Blanks closed by an end of sentence
            hold the padding token.
        decoding_order: int64 `[batch, blanks]`, the columns in the order in which they were filled, -1 on the right.
        logprobs: `[batch, blanks]`, the model's log-probability (nats, before any processing) of each filled token,
            aligned with `decoding_order`, 0 where that is -1. A row's sum is the log-probability of its filling.
        forward_passes: how many times the model ran.
    """

    sequences: torch.LongTensor | None = None
    decoding_order: torch.LongTensor | None = None
    logprobs: torch.FloatTensor | None = None
    forward_passes: int | None = None


class AOARMGenerationMixin:
    """`generate` for canvases with blanks. Without blanks it is the library's own `generate`, left to right."""

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: Any | None = None,
        prefix_allowed_tokens_fn: Callable[[int, torch.Tensor], list[int]] | None = None,
        synced_gpus: bool | None = None,
        assistant_model: Any | None = None,
        streamer: Any | None = None,
        negative_prompt_ids: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        custom_generate: str | Callable | None = None,
        *,
        generation_mask: torch.Tensor | None = None,
        decoding_order: str | torch.Tensor | None = None,
        **kwargs,
    ) -> AOARMGenerateOutput | torch.LongTensor | Any:
        """Fills the blanks of canvases, one per forward pass, in any order, on a key-value cache.

        Without `generation_mask` this is the library's `generate`, with all its parameters and modes.

        Args:
            inputs (or `input_ids`): int64 `[batch, columns]`, canvases in sentence order. What stands in a blank is not
                read, and no token id means "blank".
            generation_config, logits_processor, **kwargs: as in the library: `do_sample`, `temperature`, `top_k`,
                `top_p` and the other warpers that do not depend on order, `num_return_sequences`, `use_cache`,
                `cache_implementation`, `return_dict_in_generate`, ... Custom processors are given the rows so far in
                generation order.
            generation_mask: bool `[batch, columns]`, True for blanks. Examples may have different numbers of them.
            decoding_order: `"left_to_right"`, `"random"` (drawn for each example from the global random numbers), or
                int64 `[batch, blanks]`, blank columns in the order in which to fill them, -1 on the right. Default:
                `generation_config.decoding_order` where there is one, else `"left_to_right"`.
            attention_mask (in `kwargs`): `[batch, columns]`, 0 for padding, on either side. It defines the positions.

        Given tokens are the rows before all blanks, in sentence order. An end-of-sentence token (`eos_token_id`) may be
        filled in only to the right of every token that is there; it closes the blanks to its right, which become
        padding. `eos_token_id=None` in the call switches this off.

        Returns:
            The filled canvases, int64 `[batch, columns]` (times `num_return_sequences`), or [`AOARMGenerateOutput`].

        Raises:
            ValueError: for malformed canvases and orders, for modes and processors that need left-to-right order
                together with blanks, and for orders that `causal` cannot follow.
        """
        library_arguments = {
            "stopping_criteria": stopping_criteria,
            "prefix_allowed_tokens_fn": prefix_allowed_tokens_fn,
            "synced_gpus": synced_gpus,
            "assistant_model": assistant_model,
            "streamer": streamer,
            "negative_prompt_ids": negative_prompt_ids,
            "negative_prompt_attention_mask": negative_prompt_attention_mask,
            "custom_generate": custom_generate,
        }
        if generation_mask is None:
            named_order = None if isinstance(decoding_order, torch.Tensor) else decoding_order
            if decoding_order is not None and named_order != "left_to_right":
                raise ValueError(
                    "`decoding_order` needs `generation_mask`, which says where the blanks are; without blanks text "
                    f"grows from left to right. Got decoding_order={decoding_order!r} and no mask."
                )
            return super().generate(inputs, generation_config, logits_processor, **library_arguments, **kwargs)

        for name, value in library_arguments.items():
            if value is not None and value is not False:
                raise ValueError(f"`{name}` cannot be combined with `generation_mask`: it needs left-to-right text.")
        for name in ("max_new_tokens", "min_new_tokens", "max_length", "min_length"):
            if kwargs.get(name) is not None:
                raise ValueError(f"`{name}` cannot be combined with `generation_mask`: the canvas has its own length.")
        if inputs is not None and kwargs.get("input_ids") is not None:
            raise ValueError("`inputs` and `input_ids` name the same argument; give one of them.")
        canvas = inputs if inputs is not None else kwargs.pop("input_ids", None)
        generation_config, model_kwargs = self._prepare_generation_config(generation_config, **kwargs)
        self._validate_model_kwargs(model_kwargs.copy())
        attention_mask = model_kwargs.pop("attention_mask", None)
        for name, value in model_kwargs.items():
            if value is not None and not name.startswith("output_"):
                raise ValueError(f"`{name}` cannot be combined with `generation_mask`: rows and cache are made here.")
        for name in UNUSED_OPTIONS:
            if value := getattr(generation_config, name, None):
                raise ValueError(f"`{name}` has no meaning together with `generation_mask`, got {value}.")
        if self.training and self.is_gradient_checkpointing:
            # Layers that are to be computed again drop the cache.
            generation_config.use_cache = False

        real = check_canvas(
            canvas,
            generation_mask,
            attention_mask,
            self.config.vocab_size,
            self.config.max_position_embeddings,
        )
        canvas = canvas.long()
        if decoding_order is None:
            decoding_order = getattr(generation_config, "decoding_order", None) or "left_to_right"
        copies = generation_config.num_return_sequences or 1
        batch = canvas.shape[0]
        if isinstance(decoding_order, torch.Tensor):
            order = resolve_decoding_order(decoding_order, generation_mask).repeat_interleave(copies, 0)
        canvas, generation_mask, real = (t.repeat_interleave(copies, 0) for t in (canvas, generation_mask, real))
        if not isinstance(decoding_order, torch.Tensor):
            # Drawn for each sequence, so after the canvases are repeated.
            order = resolve_decoding_order(decoding_order, generation_mask)
        rows = CanvasRows.lay_out(real, real & ~generation_mask, order)
        rows.check_order(self.config.attention_variant)

        self._prepare_special_tokens(generation_config, attention_mask is not None, device=canvas.device)
        processors = self._order_free_processors(generation_config, logits_processor, canvas)
        cache_kwargs = {}
        self._prepare_cache_for_generation(generation_config, cache_kwargs, None, batch, rows.columns.shape[1])
        output = self._fill_blanks(canvas, rows, generation_config, processors, cache_kwargs.get("past_key_values"))
        return output if generation_config.return_dict_in_generate else output.sequences

    def _fill_blanks(
        self,
        canvas: torch.Tensor,
        rows: CanvasRows,
        generation_config: GenerationConfig,
        processors: LogitsProcessorList,
        cache: Cache | None,
    ) -> AOARMGenerateOutput:
        """Fills one blank of every example per forward pass, until all are filled or closed."""
        canvas = canvas.clone()
        order = rows.columns[:, rows.context :]
        logprobs = torch.zeros(order.shape, device=canvas.device)
        rightmost = rows.columns[:, : rows.context].amax(1)
        step = 0
        while step < order.shape[1] and (order[:, step] >= 0).any():
            column = order[:, step]
            active = column >= 0
            stop = rows.context + step
            start = stop - 1 if cache is not None and step > 0 else 0
            arguments = rows.call_arguments(canvas, start, stop)
            logits = self(**arguments, past_key_values=cache, use_cache=cache is not None, logits_to_keep=1).logits
            logits = logits[:, -1].float()
            scores = self._forbid_early_end(logits, column < rightmost, generation_config._eos_token_tensor)
            scores = processors(rows.tokens(canvas, 0, stop), scores)
            if generation_config.do_sample:
                token = torch.multinomial(scores.softmax(-1), 1)[:, 0]
            else:
                token = scores.argmax(-1)
            place = column.clamp(min=0)[:, None]
            canvas.scatter_(1, place, torch.where(active[:, None], token[:, None], canvas.gather(1, place)))
            logprob = logits.log_softmax(-1).gather(1, token[:, None])[:, 0]
            logprobs[:, step] = torch.where(active, logprob, 0.0)
            rightmost = torch.maximum(rightmost, column)
            step += 1
            if generation_config._eos_token_tensor is not None:
                ended = active & torch.isin(token, generation_config._eos_token_tensor)
                if ended.any():
                    self._close_blanks(canvas, order, step, ended, column, generation_config._pad_token_tensor)
        most = int((order >= 0).sum(1).max()) if order.shape[1] else 0
        return AOARMGenerateOutput(
            sequences=canvas,
            decoding_order=order[:, :most].clone(),
            logprobs=logprobs[:, :most],
            forward_passes=step,
        )

    @staticmethod
    def _forbid_early_end(
        logits: torch.Tensor, is_early: torch.Tensor, eos_token_ids: torch.Tensor | None
    ) -> torch.Tensor:
        """`logits` `[batch, vocab]` without the end of sentence where a token already stands further right."""
        if eos_token_ids is None:
            return logits
        scores = logits.clone()
        scores[:, eos_token_ids] = scores[:, eos_token_ids].masked_fill(is_early[:, None], -torch.inf)
        return scores

    @staticmethod
    def _close_blanks(
        canvas: torch.Tensor,
        order: torch.Tensor,
        step: int,
        ended: torch.Tensor,
        column: torch.Tensor,
        pad_token: torch.Tensor,
    ) -> None:
        """Takes the blanks right of a new end of sentence out of `order` (in place) and pads them in `canvas`."""
        coming = order[:, step:]
        closed = ended[:, None] & (coming > column[:, None])
        for example in closed.any(1).nonzero().flatten().tolist():
            canvas[example, coming[example, closed[example]]] = pad_token
        kept_first = closed.long().argsort(dim=1, stable=True)
        coming.copy_(coming.masked_fill(closed, -1).gather(1, kept_first))

    def _order_free_processors(
        self, generation_config: GenerationConfig, logits_processor: LogitsProcessorList | None, canvas: torch.Tensor
    ) -> LogitsProcessorList:
        """The library's processors for this generation config, or a ValueError naming one that needs left-to-right."""
        beams = generation_config.num_beams or 1
        if beams > 1:
            raise ValueError(
                f"`num_beams` must be 1 with `generation_mask`: beams need left-to-right text; got {beams}."
            )
        custom = LogitsProcessorList() if logits_processor is None else logits_processor
        processors = self._get_logits_processor(
            generation_config=generation_config,
            input_ids_seq_length=canvas.shape[1],
            encoder_input_ids=canvas,
            prefix_allowed_tokens_fn=None,
            logits_processor=custom,
            device=canvas.device,
            model_kwargs={},
        )
        for processor in processors:
            if not isinstance(processor, ORDER_FREE_PROCESSORS) and all(processor is not own for own in custom):
                raise ValueError(
                    f"{type(processor).__name__}, set by the generation config, cannot be combined with "
                    "`generation_mask`: it may read the tokens so far as the text to the left. Got "
                    f"{processor.__dict__}."
                )
        return processors


__all__ = ["AOARMGenerateOutput", "AOARMGenerationMixin"]
