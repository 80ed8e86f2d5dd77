# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Generation in any order, on a key-value cache: a mixin that goes before the library's `GenerationMixin`."""

import copy
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.generation import GenerationConfig, LogitsProcessorList
from transformers.utils import ModelOutput

from .cache_aoarm import CanvasCache
from .canvas_aoarm import (
    ADAPTIVE_ORDERS,
    CONTEXT_ORDERS,
    CanvasRows,
    check_canvas,
    check_count,
    check_generators,
    check_token_sets,
    is_named,
    resolve_context_order,
    resolve_order,
)
from .compat_aoarm import (
    CACHE_NAME,
    compiled_call,
    generation_config_values,
    logits_processors,
    needs_all_processes,
    prepare_generation_config,
    prompt_learning_of,
    special_tokens,
    the_cache,
)
from .decoding_aoarm import CanvasFilling, DecodingPlan, TokenSampler, check_order_free
from .infilling_aoarm import Infilling, infill
from .runner_aoarm import RowReader, check_backend


DECODING_ORDERS = ("left_to_right", "random", *ADAPTIVE_ORDERS)
SCHEDULE = re.compile(r"(linear|cosine)\((\d{1,9})\)")


class AOARMGenerationConfig(GenerationConfig):
    """The library's [`GenerationConfig`] and the defaults of any-order generation.

    A plain `GenerationConfig` with entries of these names is read alike.

    Args:
        decoding_order: `"left_to_right"` (used when `None`), `"random"`, `"confidence"`, `"entropy"` or `"margin"`.
        tokens_per_step: how many blanks one forward pass fills: a number (1 when `None`), or `"linear(n)"` or
            `"cosine(n)"`, which fill each canvas in n passes, with equally many blanks or with few at first (MaskGIT,
            2202.04200); a sentence end that cuts a pass short can make it more.
        draft_length: how many drafts one forward pass verifies in speculative decoding; `None` for none.
        context_order: the order of the given tokens, also in `score`: `"left_to_right"` (used when `None`) or
            `"suffix_first"`, see `generate`.
        **kwargs: the library's own.

    Raises:
        ValueError: for values that are none of these, and for drafts together with an adaptive order or with several
            tokens per step.
    """

    def __init__(
        self,
        decoding_order: str | None = None,
        tokens_per_step: int | str | None = None,
        draft_length: int | None = None,
        context_order: str | None = None,
        **kwargs,
    ):
        self.decoding_order = decoding_order
        self.tokens_per_step = tokens_per_step
        self.draft_length = draft_length
        self.context_order = context_order
        super().__init__(**kwargs)

    def validate(self, *args, **kwargs) -> None:
        if self.decoding_order is not None and self.decoding_order not in DECODING_ORDERS:
            names = ", ".join(map(repr, DECODING_ORDERS))
            raise ValueError(f"`decoding_order` must be {names} or None, got {self.decoding_order!r}.")
        if self.context_order is not None and self.context_order not in CONTEXT_ORDERS:
            names = ", ".join(map(repr, CONTEXT_ORDERS))
            raise ValueError(f"`context_order` must be {names} or None, got {self.context_order!r}.")
        check_steps(self.decoding_order, self.tokens_per_step, self.draft_length)
        super().validate(*args, **kwargs)

    @classmethod
    def from_model_config(cls, model_config) -> "AOARMGenerationConfig":
        # The library compares with a plain config's attributes, which has none of ours.
        return cls.from_dict(generation_config_values(GenerationConfig.from_model_config(model_config)))


def default_context_order(*configs: GenerationConfig | None) -> str:
    """The context order that generation configs give, the first one that has some; else from left to right."""
    named = (getattr(config, "context_order", None) for config in configs)
    return next((each for each in named if each is not None), "left_to_right")


def check_steps(decoding_order: object, tokens_per_step: int | str | None, draft_length: int | None) -> None:
    """Checks how many blanks a pass fills, and that drafts come in an order that is known before.

    Raises:
        ValueError: see [`AOARMGenerationConfig`].
    """
    is_schedule = isinstance(tokens_per_step, str) and (match := SCHEDULE.fullmatch(tokens_per_step)) and int(match[2])
    is_number = isinstance(tokens_per_step, int) and not isinstance(tokens_per_step, bool) and tokens_per_step >= 1
    if tokens_per_step is not None and not is_schedule and not is_number:
        raise ValueError(
            "`tokens_per_step` must be an integer of at least 1, 'linear(n)' or 'cosine(n)' with n passes, got "
            f"{tokens_per_step!r}."
        )
    if draft_length is None:
        return
    check_count("draft_length", draft_length)
    if is_named(decoding_order, *ADAPTIVE_ORDERS):
        raise ValueError(
            f"`draft_length` needs an order that is known before, got decoding_order={decoding_order!r}, which depends "
            f"on the tokens, with draft_length={draft_length}."
        )
    if tokens_per_step not in (None, 1):
        raise ValueError(
            "`draft_length` and `tokens_per_step` above 1 exclude each other: drafts keep the one-by-one distribution, "
            f"several tokens a step do not. Got draft_length={draft_length} and tokens_per_step={tokens_per_step!r}."
        )


def choose_ways(*levels: dict[str, object]) -> dict[str, object]:
    """How to decode, from what the call says, the generation config of the call, and the model's.

    What comes first wins, also over a later setting that it excludes: a call with drafts does not use a config's
    adaptive order or tokens per step, nor one with `tokens_per_step` (1 among them) a config's drafts.

    Args:
        *levels: `decoding_order`, `tokens_per_step` and `draft_length`, `None` for what is left open.

    Raises:
        ValueError: see [`check_steps`].
    """
    chosen: dict[str, object] = {"decoding_order": None, "tokens_per_step": None, "draft_length": None}
    for level in levels:
        check_steps(**level)
        excluded = set()
        if chosen["draft_length"] is not None:
            excluded = {"tokens_per_step"}
            if is_named(level["decoding_order"], *ADAPTIVE_ORDERS):
                excluded |= {"decoding_order"}
        if chosen["tokens_per_step"] is not None or is_named(chosen["decoding_order"], *ADAPTIVE_ORDERS):
            excluded |= {"draft_length"}
        chosen |= {name: value for name, value in level.items() if chosen[name] is None and name not in excluded}
    return chosen


def step_sizes(tokens_per_step: int | str | None, blanks: int) -> list[int]:
    """How many of an example's blanks each forward pass fills; the numbers sum to `blanks`.

    A schedule over n passes fills at least one blank in each, so that short canvases are done before.
    """
    schedule = SCHEDULE.fullmatch(tokens_per_step) if isinstance(tokens_per_step, str) else None
    sizes, done = [], 0
    while done < blanks:
        if schedule is None:
            size = tokens_per_step or 1
        else:
            share = (len(sizes) + 1) / int(schedule[2])
            filled = share if schedule[1] == "linear" else 1 - math.cos(math.pi / 2 * share)
            size = max(1, round(blanks * min(filled, 1.0)) - done)
        sizes.append(min(size, blanks - done))
        done += sizes[-1]
    return sizes


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
        draft_length: int | None = None,
        context_order: str | torch.Tensor | None = None,
        token_sets: torch.Tensor | None = None,
        column_sets: torch.Tensor | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        progress_bar: bool = False,
        **kwargs,
    ) -> AOARMGenerateOutput | torch.LongTensor | Any:
        """Fills the blanks of canvases in any order, on a key-value cache.

        Without blanks, and without an argument here that asks for more than left-to-right text, this is the library's
        `generate`, with all its parameters and modes. What a call leaves out comes from the generation config. The
        model's own `decoding_order`, `tokens_per_step` and `draft_length` are defaults for canvases: text without
        blanks is continued from left to right. Other values in a `generation_config` of the call ask for canvases, with
        its `max_new_tokens` blanks where there is no mask. (Pipelines give a model's own values back in each call.)

        Args:
            inputs (or `input_ids`): int64 `[batch, columns]`, canvases in sentence order. What stands in a blank is not
                read, and no token id means "blank".
            generation_config, logits_processor, **kwargs: as in the library: `do_sample`, `temperature`, `top_k`,
                `top_p` and the other warpers that do not depend on order, `num_return_sequences`, `use_cache`,
                `cache_implementation` (`"dynamic"` or `"static"`, whose passes have equal shapes and are compiled where
                the library compiles), `return_dict_in_generate`, ... Processors get the rows so far in generation
                order, one entry for each place that is asked about: where a pass fills one blank these are the
                examples of the batch, otherwise places follow each other example by example.
            synced_gpus: whether all processes make their passes together, each with canvases of its own. Default: where
                the weights are shared out among them (FSDP, ZeRO-3). All of them have to call `generate`.
            streamer: its `put` gets the canvases as they are given and as they are in the end, its `put_draft`, where
                it has one, the canvases after each pass (see [`~modeling_aoarm.streaming.CanvasStreamer`]).
            generation_mask: bool `[batch, columns]`, True for blanks. Examples may have different numbers of them.
            decoding_order: `"left_to_right"` (the default); `"random"` (drawn for each example); `"confidence"`,
                `"entropy"` or `"margin"`, with which each pass fills the blanks that the model is surest about, see
                [`~modeling_aoarm.decoding_aoarm.certainty`]; or int64 `[batch, blanks]`, blank columns in the order in
                which to fill them, -1 on the right.
            tokens_per_step: how many blanks one pass fills, see [`AOARMGenerationConfig`]. Tokens of one pass do not
                see each other: above 1 this is fast and approximate.
            draft_length: how many drafts one pass verifies in any-subset speculative decoding (2504.20456), for orders
                that are known before. The samples follow the one-by-one distribution of that order exactly. Of these
                three, what the call says wins over the generation config, also where one excludes the other.
            context_order: the order of the given tokens, which are the rows before all blanks: `"left_to_right"`;
                `"suffix_first"`, which is the first token, then what is right of the first blank, then what is left of
                it; or int64 `[batch, given]`, columns, -1 on the right. Results depend on it. Default: the generation
                config's, else from left to right.
            token_sets: bool `[sets, vocab]`, sets of tokens that blanks may be restricted to.
            column_sets: int64 `[batch, columns]`, the set that each blank's token comes from, -1 for any token.
            generator: the source of all random numbers: one generator, or one for each sequence, which is then a
                function of its generator whatever the batch is. Default: the global random numbers.
            progress_bar: whether to show one.
            attention_mask (in `kwargs`): `[batch, columns]`, 0 for padding, on either side. It defines the positions.
            max_new_tokens (in `kwargs`): appends so many blanks to each canvas, in new columns on the right. Together
                with `generation_mask` only the call's own counts, never a generation config's.
            past_key_values or cache (in `kwargs`): the cache that an earlier call returned, for canvases that continue
                its result. The rows that it knows come first, in their order, then the other given tokens from left to
                right. It stays as it is.

        An end-of-sentence token (`eos_token_id`) may be filled in only to the right of every token that is there; it
        closes the blanks to its right, which become padding. `eos_token_id=None` in the call switches this off.

        Returns:
            The filled canvases, int64 `[batch, columns]` (times `num_return_sequences`), or [`AOARMGenerateOutput`].

        Raises:
            ValueError: for malformed canvases and orders, for modes and processors that need left-to-right order
                together with blanks, for drafts in adaptive orders or with several tokens per step, and for what
                `causal`, which knows no targets, cannot do.
        """
        library_arguments = {
            "stopping_criteria": stopping_criteria,
            "prefix_allowed_tokens_fn": prefix_allowed_tokens_fn,
            "assistant_model": assistant_model,
            "negative_prompt_ids": negative_prompt_ids,
            "negative_prompt_attention_mask": negative_prompt_attention_mask,
            "custom_generate": custom_generate,
        }
        called = {
            "decoding_order": decoding_order,
            "tokens_per_step": tokens_per_step,
            "draft_length": draft_length,
        }
        check_steps(**called)
        cache = the_cache(kwargs.pop("past_key_values", None), kwargs.pop("cache", None), kwargs)
        holds_canvases = getattr(cache, "holds_canvases", False)
        if "paged" in (kwargs.get("cache_implementation"), getattr(generation_config, "cache_implementation", None)):
            self.init_continuous_batching()
        # What the config of the call asks for, beyond the defaults that the model has anyway.
        configured = {name: getattr(generation_config, name, None) for name in called}
        for name, value in configured.items():
            if value == getattr(self.generation_config, name, None):
                configured[name] = None
        asked = choose_ways(called, configured)
        is_left_to_right = asked["decoding_order"] is None or is_named(asked["decoding_order"], "left_to_right")
        is_plain = is_left_to_right and asked["tokens_per_step"] in (None, 1) and asked["draft_length"] is None
        is_plain &= self.continues_text
        if generation_mask is None and is_plain and not holds_canvases:
            for name, is_given in (
                ("generator", generator is not None),
                ("context_order", not (context_order is None or is_named(context_order, "left_to_right"))),
                ("token_sets", token_sets is not None),
                ("column_sets", column_sets is not None),
                ("progress_bar", progress_bar),
            ):
                if is_given:
                    raise ValueError(f"`{name}` needs blanks, which `generation_mask` marks; got it without a mask.")
            library_arguments |= {"streamer": streamer, "synced_gpus": synced_gpus}
            if cache is not None:
                kwargs[CACHE_NAME] = cache
            return super().generate(inputs, generation_config, logits_processor, **library_arguments, **kwargs)
        self._check_canvas_call(inputs, generation_config, logits_processor, streamer, library_arguments, cache, kwargs)
        max_new_tokens, copies = kwargs.pop("max_new_tokens", None), kwargs.pop("num_return_sequences", None)
        canvas = inputs if inputs is not None else kwargs.pop("input_ids", None)
        configs = [each for each in (generation_config, self.generation_config) if each is not None]
        if generation_mask is None and max_new_tokens is None:
            max_new_tokens = getattr(generation_config, "max_new_tokens", None)
        if generation_config is not None:
            # The library would mix the ways of the two configs, of which one may exclude the other's.
            generation_config = copy.copy(generation_config)
            for name in called:
                setattr(generation_config, name, None)
        generation_config, model_kwargs = prepare_generation_config(self, generation_config, kwargs)
        attention_mask = model_kwargs.pop("attention_mask", None)
        for name, value in model_kwargs.items():
            if value is not None and not name.startswith("output_"):
                raise ValueError(f"`{name}` cannot be combined with `generation_mask`: rows and cache are made here.")
        for name in UNUSED_OPTIONS:
            if value := getattr(generation_config, name, None):
                raise ValueError(f"`{name}` has no meaning together with `generation_mask`, got {value}.")

        if generation_mask is None and max_new_tokens is None:
            asked["decoding_order"] = (
                "a tensor" if isinstance(decoding_order, torch.Tensor) else asked["decoding_order"]
            )
            raise ValueError(
                "`decoding_order`, `tokens_per_step`, `draft_length` and the cache of canvases need blanks: "
                "`generation_mask`, which says where they are, or `max_new_tokens` (not `max_length`), in the call or "
                f"its generation config. Got neither, with {asked}."
            )
        canvas, generation_mask, real = self._canvas(canvas, generation_mask, attention_mask, max_new_tokens)
        copies = check_count("num_return_sequences", copies or generation_config.num_return_sequences or 1)
        check_generators(generator, len(canvas) * copies)
        ways = choose_ways(called, *({name: getattr(config, name, None) for name in called} for config in configs))
        if decoding_order is None:
            decoding_order = ways["decoding_order"] or "left_to_right"
        if isinstance(decoding_order, torch.Tensor):
            order = resolve_order("decoding_order", decoding_order, generation_mask).repeat_interleave(copies, 0)
        if isinstance(column_sets, torch.Tensor) and max_new_tokens is not None:
            column_sets = torch.nn.functional.pad(column_sets, (0, max_new_tokens), value=-1)
        restriction = check_token_sets(token_sets, column_sets, generation_mask, self.config.vocab_size)
        if restriction is not None:
            restriction = restriction[0], restriction[1].repeat_interleave(copies, 0)
        positions = real.long().cumsum(1) - 1
        if context_order is None and cache is None:
            context_order = default_context_order(*configs)
        context = self._context(context_order, canvas, positions, generation_mask, real, cache)
        canvas, generation_mask, real, context = (
            each.repeat_interleave(copies, 0) for each in (canvas, generation_mask, real, context)
        )
        if isinstance(decoding_order, str):
            # Drawn for each sequence, so after the canvases are repeated.
            order = resolve_order("decoding_order", decoding_order, generation_mask, generator, DECODING_ORDERS)
        rows = CanvasRows.lay_out(real, context, order)
        plan = DecodingPlan(
            adaptive=decoding_order if is_named(decoding_order, *ADAPTIVE_ORDERS) else None,
            sizes=[step_sizes(ways["tokens_per_step"], blanks) for blanks in generation_mask.sum(1).tolist()],
            # No canvas has more blanks than there are positions.
            draft_length=min(ways["draft_length"] or 0, self.config.max_position_embeddings),
        )
        rows.check_order(self.config.attention_variant)
        if plan.asks_ahead and self.config.attention_variant == "causal":
            ways["decoding_order"] = plan.adaptive or "a fixed one"
            raise ValueError(
                "attention_variant='causal' knows no target but the next place: `tokens_per_step`, `draft_length` and "
                f"adaptive orders need another variant. Got {ways}."
            )

        eos_token_ids, pad_token = special_tokens(self, generation_config, attention_mask is not None, canvas.device)
        processors = self._order_free_processors(generation_config, logits_processor, canvas)
        reader, cached = self._reader(generation_config, rows, plan, cache, copies)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            reader.is_synced = needs_all_processes(self) if synced_gpus is None else synced_gpus
        if eos_token_ids is not None:
            # As in the library, an id that is no token (-1) never ends anything.
            eos_token_ids = eos_token_ids[(eos_token_ids >= 0) & (eos_token_ids < self.config.vocab_size)]
            eos_token_ids = eos_token_ids if len(eos_token_ids) else None
        filling = CanvasFilling(
            reader,
            canvas,
            rows,
            plan,
            TokenSampler(processors, generation_config.do_sample, eos_token_ids, generator, plan.draws),
            pad_token,
            cached,
            restriction,
            # Processors of the caller's own may tell examples by their place in the batch.
            keeps_batch=reader.is_fixed or bool(logits_processor),
            keeps_cache=generation_config.return_dict_in_generate,
            streamer=streamer,
            progress_bar=progress_bar,
        )
        if streamer is not None:
            streamer.put(canvas.cpu())
        try:
            filling.run()
            if streamer is not None:
                streamer.put(filling.results["canvas"][:, :-1].cpu())
        finally:
            if streamer is not None:
                streamer.end()
        if not generation_config.return_dict_in_generate:
            return filling.results["canvas"][:, :-1]
        return self._output(filling, rows)

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
        """Raises a ValueError for arguments of the library's `generate` that have no meaning for canvases."""
        for name, value in library_arguments.items():
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
        if (method := prompt_learning_of(self)) is not None:
            raise ValueError(
                "Prompt learning puts tokens without positions in front of the rows, which canvases cannot have; use "
                f"LoRA or another method that changes weights. Got {method}."
            )

    def _canvas(
        self,
        canvas: torch.Tensor,
        generation_mask: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        max_new_tokens: int | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The canvas with the blanks that are appended, its blanks, and which of its columns are not padding."""
        appended = 0 if max_new_tokens is None else check_count("max_new_tokens", max_new_tokens)
        if generation_mask is None and isinstance(canvas, torch.Tensor):
            generation_mask = torch.zeros(canvas.shape, dtype=torch.bool, device=canvas.device)
        limits = self.config.vocab_size, self.config.max_position_embeddings
        real = check_canvas(canvas, generation_mask, attention_mask, *limits, appended=appended)
        canvas, generation_mask, real = (
            torch.nn.functional.pad(each, (0, appended), value=True) for each in (canvas.long(), generation_mask, real)
        )
        # What stands in blanks is not read, but streamers show it.
        return canvas.masked_fill(generation_mask, self.config.mask_token_id or 0), generation_mask, real

    def _context(
        self,
        context_order: str | torch.Tensor | None,
        canvas: torch.Tensor,
        positions: torch.Tensor,
        blanks: torch.Tensor,
        real: torch.Tensor,
        cache: CanvasCache | None,
    ) -> torch.Tensor:
        """The given columns in the order of their rows, int64 `[batch, given]`: those that the cache knows first."""
        given = real & ~blanks
        if cache is None:
            return resolve_context_order(context_order, given, blanks, real)
        if not getattr(cache, "holds_canvases", False) or cache.columns is None:
            raise ValueError(
                "`past_key_values` must be what `generate` returned for canvases together with `generation_mask`, got "
                f"{type(cache).__name__}."
            )
        if context_order is not None and not is_named(context_order, "left_to_right"):
            raise ValueError("`context_order` cannot be given together with `past_key_values`, which has an order.")
        mine = self.config.attention_variant, self.config.num_hidden_layers
        if (cache.attention_variant, len(cache.layers)) != mine:
            raise ValueError(
                f"`past_key_values` must come from a model of the same variant and depth, here {mine}; got "
                f"{(cache.attention_variant, len(cache.layers))}."
            )
        known, is_row = cache.columns.clamp(min=0), cache.columns >= 0
        if len(known) != len(canvas) or int(known.max()) >= canvas.shape[1]:
            raise ValueError(
                f"`past_key_values` must belong to the canvases that are continued: it knows {len(known)} of up to "
                f"{int(known.max()) + 1} columns, got `input_ids` of shape {list(canvas.shape)}."
            )
        for name, values, expected in (
            ("given tokens", given.gather(1, known), is_row),
            ("the same tokens", canvas.gather(1, known), cache.tokens),
            ("the same positions", positions.gather(1, known), cache.positions),
        ):
            broken = ((values != expected) & is_row).any(1)
            if broken.any():
                raise ValueError(
                    f"`past_key_values` must find {name} in the columns that it knows; broken by example(s) "
                    f"{broken.nonzero().flatten().tolist()}."
                )
        # Padding of the cache's columns marks a column of its own, which is cut off again.
        is_known = torch.nn.functional.pad(torch.zeros_like(given), (0, 1))
        is_known = is_known.scatter(1, known.where(is_row, given.shape[1]), True)[:, :-1]
        rest = resolve_order("context_order", "left_to_right", given & ~is_known)
        return torch.cat([cache.columns, rest], dim=1)

    def _reader(
        self,
        generation_config: GenerationConfig,
        rows: CanvasRows,
        plan: DecodingPlan,
        cache: CanvasCache | None,
        copies: int,
    ) -> tuple[RowReader, torch.Tensor]:
        """What reads the rows, and how many of each example's rows it has read, int64 `[batch]`."""
        nothing = torch.zeros_like(rows.given)
        if generation_config.use_cache is False:
            if cache is not None:
                raise ValueError("`past_key_values` needs a cache, got use_cache=False.")
            return RowReader(self, None, is_read=False), nothing
        implementation = generation_config.cache_implementation
        if implementation not in (None, "dynamic", "static"):
            raise ValueError(
                "`cache_implementation` must be 'dynamic' or 'static' together with `generation_mask`, got "
                f"{implementation!r}."
            )
        is_fixed = implementation == "static"
        if plan.asks_ahead or is_fixed or cache is not None:
            check_backend(self)
        most_blanks = int((rows.columns >= 0).sum(1).sub(rows.given).max())
        drafts = min(plan.draft_length, max(most_blanks - 1, 0))
        # Rows, drafts, and the copies of rows that ask for several targets.
        copies_of_drafts = 0 if self.config.attention_variant == "two_stream" else (1 + drafts) * drafts
        targets = most_blanks if plan.adaptive else plan.most
        capacity = rows.columns.shape[1] + drafts + max(copies_of_drafts, targets - 1, 0)
        if is_fixed:
            # Steps are compiled for each capacity: canvases of about the same length share them.
            capacity = max(-(-capacity // 64) * 64, generation_config.max_cache_len or 0)
        if cache is None:
            new = CanvasCache(self.config.num_hidden_layers, capacity, is_fixed)
            reader, cached = RowReader(self, new, is_read=False), nothing
        else:
            cached = cache.lengths.repeat_interleave(copies, 0)
            examples = torch.arange(len(cache.lengths), device=cached.device).repeat_interleave(copies, 0)
            reader = RowReader(self, cache.take(examples, capacity, is_fixed), is_read=True)
        if is_fixed:
            reader.compiled_call = compiled_call(self, generation_config, reader.cache)
        return reader, cached

    def _output(self, filling: CanvasFilling, rows: CanvasRows) -> AOARMGenerateOutput:
        """The results in the form that callers get."""
        results, given = filling.results, rows.given
        filled = results["decided"] - given
        blanks = torch.arange(int(filled.max()), device=given.device)
        numbers = (given[:, None] + blanks).clamp(max=results["columns"].shape[1] - 1)
        is_blank = blanks < filled[:, None]
        order, logprobs, steps = (results[name].gather(1, numbers) for name in ("columns", "logprobs", "steps"))
        steps = steps.masked_fill(~is_blank, -1)
        passes = steps.amax(1) + 1 if len(blanks) else torch.zeros_like(filled)
        canvas, cache = results["canvas"][:, :-1], filling.whole_cache()
        if cache is not None:
            columns = results["columns"][:, :-1]
            read = columns.clamp(min=0)
            tokens, positions = canvas.gather(1, read), rows.places.gather(1, read)
            cache.describe(self.config.attention_variant, columns, tokens, positions, results["cached"])
        return AOARMGenerateOutput(
            sequences=canvas,
            decoding_order=order.masked_fill(~is_blank, -1),
            logprobs=logprobs.masked_fill(~is_blank, 0.0),
            decoding_steps=steps,
            forward_passes=filling.reader.passes,
            tokens_per_forward=filled.float() / passes.clamp(min=1),
            cache=cache,
        )

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
        processors = logits_processors(self, generation_config, custom, canvas)
        check_order_free(processors, custom)
        return processors


__all__ = ["AOARMGenerateOutput", "AOARMGenerationConfig", "AOARMGenerationMixin"]
