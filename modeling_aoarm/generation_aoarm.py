# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""`generate` for canvases with blanks, in any order, on a key-value cache."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.generation import GenerationConfig, LogitsProcessorList
from transformers.utils import ModelOutput

from .cache_aoarm import CanvasCache, holds_canvases
from .canvas_aoarm import (
    CanvasRows,
    check_canvas,
    check_count,
    check_generators,
    is_named,
    resolve_context_order,
    resolve_order,
    resolve_token_sets,
)
from .compat_aoarm import (
    CACHE_NAME,
    generation_config_values,
    logits_processors,
    prepare_generation_config,
    prompt_learning_of,
    special_tokens,
    the_cache,
)
from .decoding_aoarm import (
    DECODING_OPTIONS,
    check_decoding_options,
    check_way,
    decoding_orders,
    default_context_order,
    parse_limit,
    resolve_decoding_options,
    way_of_decoding,
)
from .decoding_loop_aoarm import CanvasFilling, TokenSampler, check_order_free, valid_ends
from .infilling_aoarm import Infilling, infill
from .runner_aoarm import ModelRunner, RowRunner


if TYPE_CHECKING:
    # Saved folders get this file through this line; only `pipeline` imports it.
    from .pipeline_aoarm import InfillingPipeline  # noqa: F401

# Options of the library's generation that have no meaning for canvases. They are refused instead of ignored.
UNUSED_OPTIONS = (
    "assistant_early_exit constraints dola_layers force_words_ids max_time output_attentions "
    "output_hidden_states output_logits output_scores penalty_alpha prompt_lookup_num_tokens stop_strings "
    "token_healing"
).split()


@dataclass
class AOARMGenerateOutput(ModelOutput):
    """What `generate` returns for canvases when `return_dict_in_generate=True`.

    Args:
        sequences: int64 `[batch, columns]`, the filled canvases in sentence order. Blanks closed by an end of sentence
            hold the padding token.
        decoding_order: int64 `[batch, blanks]`, the columns in the order in which they were filled, -1 on the right.
        logprobs: float32 `[batch, blanks]`, the model's log-probability (nats, before any processing) of each filled
            token, aligned with `decoding_order`, 0 where that is -1. Where each pass fills one blank, and in
            speculation, a token's is given the context and all tokens before it, and a row's sum is the log-probability
            of its filling; tokens of the same pass do not see each other.
        decoding_steps: int64 `[batch, blanks]`, the number (from 0) of the forward pass in which each was filled, -1 on
            the right.
        forward_passes: how many times the model ran. Where the first blanks are several or have to be chosen, a pass of
            its own reads the context before.
        tokens_per_forward: float32 `[batch]`, an example's filled blanks divided by the passes up to its last one.
        cache (or `past_key_values`): what the model has read, for a call that continues the canvases; `None` without a
            cache.
    """

    sequences: torch.LongTensor | None = None
    decoding_order: torch.LongTensor | None = None
    logprobs: torch.FloatTensor | None = None
    decoding_steps: torch.LongTensor | None = None
    forward_passes: int | None = None
    tokens_per_forward: torch.FloatTensor | None = None
    cache: CanvasCache | None = None

    @property
    def past_key_values(self) -> CanvasCache | None:
        return self.cache


class AOARMGenerationMixin:
    """`generate` for canvases with blanks. Without blanks it is the library's own `generate`, left to right."""

    # Whether the library's own `generate` has a meaning for the model.
    continues_text = True
    runner_class: type[ModelRunner] = RowRunner

    def adjust_generation_fn(self, *args, **kwargs) -> None:
        # The library loads its own class here, which keeps our entries but does not check them.
        super().adjust_generation_fn(*args, **kwargs)
        values = generation_config_values(self.generation_config)
        self.generation_config = self.generation_config_class.from_dict(values)

    def init_continuous_batching(self, *args, **kwargs) -> None:
        """Raises a ValueError: the library's paged cache is laid out for its own models."""
        raise ValueError(
            "Continuous batching (`generate_batch`, `cache_implementation='paged'`, `transformers serve`) needs the "
            "library's paged cache, which these models do not read. Call `generate` with a padded batch."
        )

    generate_batch = continuous_batching_context_manager = init_continuous_batching

    def infill(
        self, tokenizer: PreTrainedTokenizerBase, text: str | Sequence[str], **kwargs
    ) -> str | list[str] | Infilling | list[Infilling]:
        """Fills the blanks of text, such as `"The <blank:3> sat."`: [`~modeling_aoarm.infill`] as a method."""
        return infill(self, tokenizer, text, **kwargs)

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
        tokens_per_step: int | str | None = None,
        draft_length: int | str | None = None,
        context_order: str | torch.Tensor | None = None,
        token_sets: torch.Tensor | None = None,
        column_sets: torch.Tensor | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        progress_bar: bool = False,
        **kwargs,
    ) -> AOARMGenerateOutput | torch.LongTensor | Any:
        """Fills the blanks of canvases in any order, on a key-value cache.

        1. Canvases become rows in generation order: the given tokens (`context_order`), then the blanks
           (`decoding_order`).
        2. A pass of the model reads the rows that the cache does not hold yet. Its last rows ask about the positions
           of the next rows.
        3. The way of decoding commits tokens: those of the next blanks, those of the most certain blanks, or the
           drafts that speculation accepts. An end of sentence closes the blanks to its right.
        4. Steps 2 and 3 repeat until no blank remains. Examples that are done leave the batch.
        5. The tokens go back to their columns.

        Without blanks, and without an argument here that asks for more than left-to-right text, this is the library's
        `generate`, with all its parameters and modes. Options that a call leaves out come from the generation config.
        The model's own `decoding_order`, `tokens_per_step` and `draft_length` are defaults for canvases only: text
        without blanks is continued from left to right. Other values in a `generation_config` of the call ask for
        canvases, with its `max_new_tokens` blanks where there is no mask. (Pipelines give a model's own values back in
        each call.)

        Args:
            inputs (or `input_ids`): int64 `[batch, columns]`, canvases in sentence order. The tokens in blanks are not
                read, and no token id means "blank".
            generation_config, logits_processor, **kwargs: as in the library: `do_sample`, `temperature`, `top_k`,
                `top_p` and the other warpers that do not depend on order, `num_return_sequences`, `use_cache`,
                `cache_implementation` (`"dynamic"` or `"static"`, whose passes have equal shapes and are compiled where
                the library compiles), `return_dict_in_generate`, ... Processors get the rows so far in generation
                order, with one entry for each target: the examples of the batch where a pass fills one blank, otherwise
                the targets of the first example, then those of the second, and so on.
            synced_gpus: whether all processes make their passes together, each with canvases of its own. Default: where
                the weights are shared out among them (FSDP, ZeRO-3). All of them have to call `generate`.
            streamer: its `put` gets the canvases before and after filling. Its `put_draft`, where it has one, gets the
                canvases after each pass (see [`~modeling_aoarm.streaming.CanvasStreamer`]).
            generation_mask: bool `[batch, columns]`, True for blanks. Examples may have different numbers of them.
            decoding_order: `"left_to_right"` (the default); `"random"` (drawn for each example); `"confidence"`,
                `"entropy"` or `"margin"`, with which each pass fills the blanks that the model is most certain about,
                see [`~modeling_aoarm.decoding_aoarm.certainty`]; or int64 `[batch, blanks]`, blank columns in the order
                in which to fill them, -1 on the right.
            tokens_per_step: how many blanks one pass fills: a number, a schedule, or as many as the model is sure of,
                see [`AOARMGenerationConfig`]. Tokens of one pass do not see each other: above 1 this is fast and
                approximate.
            draft_length: how many drafts one pass verifies in any-subset speculative decoding (2504.20456), for orders
                that are known before; `"auto"` for as many as pay. The samples follow the one-by-one distribution of
                that order exactly. The call's values of these three win over the generation config, also where one
                excludes the other.
            context_order: the order of the given tokens, which are the rows before all blanks: `"left_to_right"`;
                `"suffix_first"`, which is the first token, then the tokens right of the first blank, then those left of
                it; or int64 `[batch, given]`, columns, -1 on the right. Results depend on it. Default: the generation
                config's, else from left to right.
            token_sets: bool `[sets, vocab]`, sets of tokens that blanks may be restricted to.
            column_sets: int64 `[batch, columns]`, the set that each blank's token comes from, -1 for any token.
            generator: the source of all random numbers: one generator, or one for each sequence. With one for each
                sequence, samples do not depend on the batch. Default: the global random numbers.
            progress_bar: whether to show one.
            attention_mask (in `kwargs`): `[batch, columns]`, 0 for padding, on either side. It defines the positions.
            max_new_tokens (in `kwargs`): appends so many blanks to each canvas, in new columns on the right. Together
                with `generation_mask` only the call's own counts, never a generation config's.
            past_key_values or cache (in `kwargs`): the cache that an earlier call returned, for canvases that continue
                its result. The rows that it knows come first, in their order, then the other given tokens from left to
                right. The cache is not changed.

        An end-of-sentence token (`eos_token_id`) may be filled in only to the right of every token that is there. The
        blanks to its right become padding. `eos_token_id=None` in the call switches this off.

        Returns:
            The filled canvases, int64 `[batch, columns]` (times `num_return_sequences`), or [`AOARMGenerateOutput`].

        Raises:
            ValueError: for malformed canvases and orders, for modes and processors that need left-to-right order
                together with blanks, for drafts in adaptive orders or with several tokens per step, and for targets
                that `causal` cannot be asked about.
        """
        library_arguments = {
            "stopping_criteria": stopping_criteria,
            "prefix_allowed_tokens_fn": prefix_allowed_tokens_fn,
            "assistant_model": assistant_model,
            "negative_prompt_ids": negative_prompt_ids,
            "negative_prompt_attention_mask": negative_prompt_attention_mask,
            "custom_generate": custom_generate,
        }
        called = dict(zip(DECODING_OPTIONS, (decoding_order, tokens_per_step, draft_length), strict=True))
        check_decoding_options(**called)
        cache = the_cache(kwargs.pop("past_key_values", None), kwargs.pop("cache", None), kwargs)
        if "paged" in (kwargs.get("cache_implementation"), getattr(generation_config, "cache_implementation", None)):
            self.init_continuous_batching()
        asked = self._asked_options(called, generation_config)
        if generation_mask is None and self._is_text(asked, cache):
            _refuse_without_blanks(
                generator=generator,
                context_order=None if is_named(context_order, "left_to_right") else context_order,
                token_sets=token_sets,
                column_sets=column_sets,
                progress_bar=progress_bar or None,
            )
            library_arguments |= {"streamer": streamer, "synced_gpus": synced_gpus}
            if cache is not None:
                kwargs[CACHE_NAME] = cache
            return super().generate(inputs, generation_config, logits_processor, **library_arguments, **kwargs)
        self._check_canvas_call(inputs, generation_config, logits_processor, streamer, library_arguments, cache, kwargs)
        canvas = inputs if inputs is not None else kwargs.pop("input_ids", None)
        appended = _count_appended(kwargs.pop("max_new_tokens", None), generation_mask, generation_config, asked)
        copies = kwargs.pop("num_return_sequences", None)
        configs = generation_config, self.generation_config
        options = resolve_decoding_options(called, *(_options_of(config) for config in configs))
        order, limit = options["decoding_order"], parse_limit(options["tokens_per_step"])
        if order is None:
            order = "left_to_right" if limit is None else limit.rule
        if context_order is None and cache is None:
            context_order = default_context_order(*configs)
        generation_config, attention_mask = self._prepare_canvas_config(generation_config, kwargs)
        copies = check_count("num_return_sequences", copies or generation_config.num_return_sequences or 1)

        # 1. From canvases to rows.
        canvas, blanks, real = self._append_blanks(canvas, generation_mask, attention_mask, appended)
        check_generators(generator, len(canvas) * copies)
        restriction = resolve_token_sets(token_sets, column_sets, blanks, self.config.vocab_size, appended, copies)
        context = self._order_context(context_order, canvas, blanks, real, cache)
        decoding_order = _order_blanks(order, blanks, copies, generator)
        canvas, blanks, real, context = (each.repeat_interleave(copies, 0) for each in (canvas, blanks, real, context))
        num_context = (context >= 0).sum(1)
        rows = CanvasRows.lay_out(canvas, real, context, decoding_order)
        draft_length = options["draft_length"]
        if isinstance(draft_length, int):
            # No canvas has more blanks than there are positions.
            draft_length = min(draft_length, self.config.max_position_embeddings)
        way = way_of_decoding(order, options["tokens_per_step"], draft_length, blanks.sum(1).tolist())
        check_way(way, rows, self.config.attention_variant, **options)

        # 2. to 4. Passes that fill the rows.
        runner, cached = self.runner_class.for_generation(self, generation_config, rows, way, cache, copies)
        runner.sync_processes(synced_gpus)
        sampler, pad_token = self._make_sampler(
            generation_config, logits_processor, canvas, attention_mask is not None, generator, way.draws()
        )
        filling = CanvasFilling(
            runner,
            rows,
            num_context,
            way,
            sampler,
            # A blank without a row has been closed.
            background=canvas if pad_token is None else torch.where(blanks, pad_token, canvas),
            cached=cached,
            restriction=restriction,
            # The caller's own processors may tell examples by their index in the batch.
            keeps_batch=runner.has_fixed_shapes or bool(logits_processor),
            keeps_cache=generation_config.return_dict_in_generate,
            streamer=streamer,
            progress_bar=progress_bar,
        )
        filling.run()

        # 5. Back to columns.
        canvas = filling.canvases()
        return self._output(filling, canvas) if generation_config.return_dict_in_generate else canvas

    def _asked_options(self, called: dict[str, Any], generation_config: Any) -> dict[str, Any]:
        """What the call and its generation config ask for beyond the defaults that the model has anyway."""
        configured, own = _options_of(generation_config), _options_of(self.generation_config)
        different = {name: None if value == own[name] else value for name, value in configured.items()}
        return resolve_decoding_options(called, different)

    def _is_text(self, asked: dict[str, Any], cache: Any) -> bool:
        """Whether a call without blanks is the library's own, which continues text from left to right."""
        is_left_to_right = asked["decoding_order"] is None or is_named(asked["decoding_order"], "left_to_right")
        is_one_by_one = asked["tokens_per_step"] in (None, 1) and asked["draft_length"] is None
        return self.continues_text and is_left_to_right and is_one_by_one and not holds_canvases(cache)

    def _check_canvas_call(self, inputs, generation_config, logits_processor, streamer, library, cache, kwargs) -> None:
        """Raises a ValueError for arguments of the library's `generate` that have no meaning for canvases."""
        for name, value in library.items():
            if value is not None and value is not False:
                raise ValueError(f"`{name}` cannot be combined with `generation_mask`: it needs left-to-right text.")
        for name in ("min_new_tokens", "max_length", "min_length"):
            if kwargs.get(name) is not None:
                raise ValueError(f"`{name}` cannot be combined with `generation_mask`: the canvas has its own length.")
        if inputs is not None and kwargs.get("input_ids") is not None:
            raise ValueError("`inputs` and `input_ids` name the same argument; give one of them.")
        if generation_config is not None and not isinstance(generation_config, GenerationConfig):
            raise ValueError(f"`generation_config` must be a GenerationConfig, got {type(generation_config).__name__}.")
        if logits_processor is not None and not isinstance(logits_processor, list):
            raise ValueError(
                f"`logits_processor` must be a LogitsProcessorList, got {type(logits_processor).__name__}."
            )
        if streamer is not None and not (hasattr(streamer, "put") and hasattr(streamer, "end")):
            raise ValueError(f"`streamer` must have the methods `put` and `end`, got {type(streamer).__name__}.")
        if cache is not None and self.config.attention_variant == "bidirectional":
            raise ValueError(
                "`past_key_values` must not be given for attention_variant='bidirectional', which has no cache; got "
                f"{type(cache).__name__}."
            )
        if (method := prompt_learning_of(self)) is not None:
            raise ValueError(
                "Prompt learning puts tokens without positions in front of the rows, which canvases cannot have; use "
                f"LoRA or another method that changes weights. Got {method}."
            )

    def _prepare_canvas_config(
        self, generation_config: GenerationConfig | None, kwargs: dict[str, Any]
    ) -> tuple[GenerationConfig, torch.Tensor | None]:
        """The generation config with the call's arguments, and the attention mask; everything else is refused."""
        if generation_config is not None:
            # The library would mix the options of two configs, one of which may exclude the other's.
            generation_config = copy.copy(generation_config)
            for name in DECODING_OPTIONS:
                setattr(generation_config, name, None)
        generation_config, model_kwargs = prepare_generation_config(self, generation_config, kwargs)
        attention_mask = model_kwargs.pop("attention_mask", None)
        for name, value in model_kwargs.items():
            if value is not None and not name.startswith("output_"):
                raise ValueError(f"`{name}` cannot be combined with `generation_mask`: rows and cache are made here.")
        for name in UNUSED_OPTIONS:
            if value := getattr(generation_config, name, None):
                raise ValueError(f"`{name}` has no meaning together with `generation_mask`, got {value}.")
        return generation_config, attention_mask

    def _append_blanks(
        self,
        canvas: torch.Tensor,
        generation_mask: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        appended: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Checks canvases and appends blanks. Returns tokens, blanks, and which columns are not padding."""
        if generation_mask is None and isinstance(canvas, torch.Tensor):
            generation_mask = torch.zeros(canvas.shape, dtype=torch.bool, device=canvas.device)
        limits = self.config.vocab_size, self.config.max_position_embeddings
        real = check_canvas(canvas, generation_mask, attention_mask, *limits, appended=appended)
        canvas, generation_mask, real = (
            torch.nn.functional.pad(each, (0, appended), value=True) for each in (canvas.long(), generation_mask, real)
        )
        # The tokens in blanks are not read, but streamers show them.
        return canvas.masked_fill(generation_mask, self.config.mask_token_id or 0), generation_mask, real

    def _order_context(
        self,
        context_order: str | torch.Tensor | None,
        canvas: torch.Tensor,
        blanks: torch.Tensor,
        real: torch.Tensor,
        cache: CanvasCache | None,
    ) -> torch.Tensor:
        """The given columns in the order of their rows, int64 `[batch, given]`: those that the cache knows first."""
        given = real & ~blanks
        if cache is None:
            return resolve_context_order(context_order, given, blanks, real)
        if not holds_canvases(cache) or cache.columns is None:
            raise ValueError(
                "`past_key_values` must be what `generate` returned for canvases together with `generation_mask`, got "
                f"{type(cache).__name__}."
            )
        if context_order is not None and not is_named(context_order, "left_to_right"):
            raise ValueError("`context_order` cannot be given together with `past_key_values`, which has an order.")
        cache.check_continues(self.config, canvas, given, real)
        return cache.order_context(given)

    def _make_sampler(
        self,
        generation_config: GenerationConfig,
        logits_processor: LogitsProcessorList | None,
        canvas: torch.Tensor,
        has_attention_mask: bool,
        generator: torch.Generator | Sequence[torch.Generator] | None,
        draws: list[int],
    ) -> tuple[TokenSampler, torch.Tensor | None]:
        """What draws tokens, and the padding id, if there is one. Refuses what needs left-to-right text."""
        if (beams := generation_config.num_beams or 1) > 1:
            raise ValueError(
                f"`num_beams` must be 1 with `generation_mask`: beams need left-to-right text; got {beams}."
            )
        custom = LogitsProcessorList() if logits_processor is None else logits_processor
        ends, pad_token = special_tokens(self, generation_config, has_attention_mask, canvas.device)
        processors = logits_processors(self, generation_config, custom, canvas)
        check_order_free(processors, custom)
        ends = valid_ends(ends, self.config.vocab_size)
        return TokenSampler(processors, generation_config.do_sample, ends, generator, draws), pad_token

    def _output(self, filling: CanvasFilling, canvas: torch.Tensor) -> AOARMGenerateOutput:
        """The results in the form that callers get."""
        results, rows = filling.results, filling.all_rows
        filled, order = results["committed"] - filling.num_context, filling.realised_order()
        is_filled = order >= 0
        logprobs, steps = (filling.of_blanks(results[name]) for name in ("logprobs", "steps"))
        steps = steps.masked_fill(~is_filled, -1)
        passes = steps.amax(1) + 1 if steps.shape[1] else torch.zeros_like(filled)
        cache = filling.whole_cache()
        if cache is not None:
            cache.attention_variant, cache.lengths = self.config.attention_variant, results["cached"]
            cache.columns, cache.tokens, cache.positions = (
                each[:, :-1] for each in (rows.columns, rows.tokens, rows.positions)
            )
        return AOARMGenerateOutput(
            sequences=canvas,
            decoding_order=order,
            logprobs=logprobs.masked_fill(~is_filled, 0.0),
            decoding_steps=steps,
            forward_passes=filling.runner.passes,
            tokens_per_forward=filled.float() / passes.clamp(min=1),
            cache=cache,
        )


def _refuse_without_blanks(**canvas_arguments: Any) -> None:
    """Raises a ValueError for arguments that only canvases have."""
    for name, value in canvas_arguments.items():
        if value is not None:
            raise ValueError(f"`{name}` needs blanks, which `generation_mask` marks; got it without a mask.")


def _count_appended(
    max_new_tokens: int | None, generation_mask: Any, generation_config: Any, asked: dict[str, Any]
) -> int:
    """How many blanks are appended. Raises a ValueError where a call has no blanks at all."""
    if max_new_tokens is None and generation_mask is None:
        max_new_tokens = getattr(generation_config, "max_new_tokens", None)
        if max_new_tokens is None:
            shown = {name: "a tensor" if isinstance(value, torch.Tensor) else value for name, value in asked.items()}
            raise ValueError(
                "`decoding_order`, `tokens_per_step`, `draft_length` and the cache of canvases need blanks: "
                "`generation_mask`, which says where they are, or `max_new_tokens` (not `max_length`), in the call or "
                f"its generation config. Got neither, with {shown}."
            )
    return 0 if max_new_tokens is None else check_count("max_new_tokens", max_new_tokens)


def _order_blanks(order: str | torch.Tensor, blanks: torch.Tensor, copies: int, generator: Any) -> torch.Tensor:
    """The blanks of each returned sequence in decoding order, int64 `[batch * copies, blanks]`, -1 on the right."""
    if isinstance(order, torch.Tensor):
        return resolve_order("decoding_order", order, blanks).repeat_interleave(copies, 0)
    return resolve_order("decoding_order", order, blanks.repeat_interleave(copies, 0), generator, decoding_orders())


def _options_of(config: Any) -> dict[str, Any]:
    """The decoding options of a generation config; `None` for those that it lacks."""
    return {name: getattr(config, name, None) for name in DECODING_OPTIONS}


__all__ = ["AOARMGenerateOutput", "AOARMGenerationMixin"]
