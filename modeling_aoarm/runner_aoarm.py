# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""One pass of a model over rows of canvases: their slots in the cache, their mask, and several targets of a row.

A row can ask about several targets. In `two_stream` it does so by further query streams, and its keys do not depend on
any of them. In a single stream it does so by copies of the row. A copy sees the rows that its row sees and is not kept.
The row itself asks about its first target, to which its cached key then belongs. Copies also serve `two_stream` where
only the last rows of a pass ask, because query streams are streams of all rows.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers.generation import GenerationConfig
from transformers.utils.generic import is_flash_attention_requested

from .cache_aoarm import CacheView, CanvasCache, align
from .canvas_aoarm import CanvasRows, RowInputs, RowSpan
from .compat_aoarm import compiled_call, input_device, needs_all_processes


# The attention score of hidden keys: weight 0 in every dtype, and finite, because autocast may round it.
HIDDEN = -3e4

# A masked model reads one canvas for each question. One call of it reads at most so many columns.
COLUMNS_PER_CALL = 16384

# How many logits a pass holds at once where it can do with parts of them: 128 MiB in float32.
LOGITS_AT_ONCE = 2**25

# Reads predictions from states `[..., hidden]` and the function that maps them to logits `[..., vocab]`.
LogitsReader = Callable[[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]], Any]


def rows_at_once(vocab_size: int) -> int:
    """How many rows of logits a pass holds at once where it can do with parts of them."""
    return max(1, LOGITS_AT_ONCE // vocab_size)


class ModelRunner:
    """Counts the passes of a model, and keeps several processes together where each pass needs all of them.

    Args:
        model: the model.
    """

    cache: CanvasCache | None = None
    has_read = False

    def __init__(self, model: Any):
        self.model = model
        # Whether each pass needs all processes, some of which may make more passes than this one.
        self.is_synced = False
        self.passes = 0

    @property
    def has_fixed_shapes(self) -> bool:
        """Whether shapes stay the same from pass to pass."""
        return self.cache is not None and self.cache.is_fixed

    @classmethod
    def for_generation(
        cls,
        model: Any,
        generation_config: GenerationConfig,
        rows: CanvasRows,
        way: Any,
        cache: CanvasCache | None,
        copies: int,
    ) -> tuple["ModelRunner", torch.Tensor]:
        """Makes a runner for one call of `generate`.

        Args:
            model: the model.
            generation_config: says which cache to use.
            rows: the rows of all sequences.
            way: the [`~modeling_aoarm.decoding_aoarm.DecodingWay`].
            cache: what an earlier call returned, or `None`.
            copies: how many sequences are returned for each example of `cache`.

        Returns:
            The runner, and how many rows of each sequence it has read, int64 `[batch]`.

        Raises:
            ValueError: the model has no such cache, or its attention takes no masks where one is needed.
        """
        raise NotImplementedError

    def ask(
        self,
        rows: CanvasRows,
        span: RowSpan,
        asking: int = 1,
        targets: int = 1,
        scored_ids: torch.Tensor | None = None,
        read: LogitsReader | None = None,
    ) -> Any:
        """Predicts the next rows after each asking row.

        Args:
            rows: the rows of all canvases.
            span: which of them the pass reads.
            asking: how many rows of the span ask, counted from the last.
            targets: how many of the next rows each of them asks about.
            scored_ids: int64 `[batch, asking]`, tokens of each asking row's only target, to be scored.
            read: reads predictions from states `[batch, asking, targets, hidden]`, so that not all logits need exist at
                once. For targets behind the last row they have no meaning.

        Returns:
            What `read` returns; without it, logits `[batch, asking, targets, vocab]`. Where tokens are scored: their
            log-probabilities in nats, float32, and whether each is the likeliest, bool, both `[batch, asking]`.
        """
        raise NotImplementedError

    def read_logits(self, model: Any, read: LogitsReader | None, arrange: Callable, **inputs) -> Any:
        """Makes a pass and reads its predictions.

        Args:
            model: the model, or its compiled form.
            read: see [`ask`]. Default: logits.
            arrange: brings states `[batch, kept, ..., hidden]` to the shape `[batch, asking, targets, hidden]`.
            **inputs: the model's.
        """
        if read is None:
            return arrange(self.call(model, **inputs).logits)
        if self.is_synced or model is not self.model or getattr(model, "_compiled_call_impl", None) is not None:
            # The head runs once in every process, and compiled code takes no function as an argument.
            return read(arrange(self.call(model, **inputs).logits), torch.nn.Identity())

        def reader(states: torch.Tensor, compute_logits: Callable[[torch.Tensor], torch.Tensor]) -> Any:
            return read(arrange(states), compute_logits)

        return self.call(model, **inputs, logits_reader=reader).readings

    def sync_processes(self, synced_gpus: bool | None) -> None:
        """Says whether all processes make their passes together. Default: where weights are shared out among them."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            self.is_synced = needs_all_processes(self.model) if synced_gpus is None else synced_gpus

    def call(self, model: Any, **inputs) -> Any:
        """Makes one pass."""
        if self.is_synced:
            self.is_any_process_running(True)
        self.passes += 1
        return model(**inputs)

    def wait_for_others(self) -> None:
        """Makes passes without a purpose until all processes have finished, where each pass needs all of them."""
        while self.is_synced and self.is_any_process_running(False):
            self.model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=input_device(self.model)), use_cache=False)

    def is_any_process_running(self, is_running: bool) -> bool:
        """Whether some process makes a pass now. All processes have to call this."""
        running = torch.tensor(int(is_running), device=input_device(self.model))
        torch.distributed.all_reduce(running, torch.distributed.ReduceOp.MAX)
        return bool(running)


class RowRunner(ModelRunner):
    """Runs a model whose rows are in generation order.

    Args:
        model: the model.
        cache: an empty cache, or one that holds the first rows; `None` to read all rows again in each pass.
        has_read: whether the cache holds rows already.
        compiled_model: the compiled model for passes after the first, if there is one.
    """

    def __init__(
        self, model: Any, cache: CanvasCache | None = None, has_read: bool = False, compiled_model: Any = None
    ):
        super().__init__(model)
        self.cache, self.has_read, self.compiled_model = cache, has_read, compiled_model
        self.is_two_stream = model.config.attention_variant == "two_stream"

    @classmethod
    def for_generation(cls, model, generation_config, rows, way, cache, copies):
        nothing = torch.zeros_like(rows.totals)
        if generation_config.use_cache is False:
            if cache is not None:
                raise ValueError("`past_key_values` needs a cache, got use_cache=False.")
            return cls(model), nothing
        implementation = generation_config.cache_implementation
        if implementation not in (None, "dynamic", "static"):
            raise ValueError(
                "`cache_implementation` must be 'dynamic' or 'static' together with `generation_mask`, got "
                f"{implementation!r}."
            )
        is_fixed = implementation == "static"
        if is_fixed and way.chooses_lengths:
            raise ValueError(
                "`draft_length='auto'` changes the shapes of passes, which cache_implementation='static' keeps equal; "
                "give a number."
            )
        if way.asks_about_several or is_fixed or cache is not None:
            check_backend(model)
        capacity = rows.columns.shape[1] - 1 + way.extra_slots(model.config.attention_variant == "two_stream")
        if is_fixed:
            # Steps are compiled for each capacity: canvases of about the same length share them.
            capacity = max(-(-capacity // 64) * 64, generation_config.max_cache_len or 0)
        if cache is None:
            own, cached = CanvasCache(model.config.num_hidden_layers, capacity, is_fixed), nothing
        else:
            cached = cache.lengths.repeat_interleave(copies, 0)
            examples = torch.arange(len(cache.lengths), device=cached.device).repeat_interleave(copies, 0)
            own = cache.select(examples, capacity, is_fixed)
        compiled_model = compiled_call(model, generation_config, own) if is_fixed else None
        return cls(model, own, cache is not None, compiled_model), cached

    def ask(
        self,
        rows: CanvasRows,
        span: RowSpan,
        asking: int = 1,
        targets: int = 1,
        scored_ids: torch.Tensor | None = None,
        read: LogitsReader | None = None,
    ) -> Any:
        inputs = rows.read(span, targets, self.model.config.starts_from_neighbors)
        has_streams = self.is_two_stream and asking == span.width and targets > 1
        copies = 0 if has_streams else asking * (targets - 1)
        model = self.compiled_model if self.compiled_model is not None and self.has_read else self.model
        attention_mask, cache = self.place(inputs, span, asking, copies)
        inputs = model_inputs(inputs, asking, has_streams) | {
            "attention_mask": attention_mask,
            "past_key_values": cache,
            "use_cache": cache is not None,
            "logits_to_keep": asking + copies,
        }
        if scored_ids is not None:
            output = self.call(model, **inputs, scored_ids=scored_ids)
            return output.token_log_probs, output.token_is_likeliest

        def arrange(states: torch.Tensor) -> torch.Tensor:
            if has_streams:
                return states
            own, copied = states[:, :asking, None], states[:, asking:]
            return torch.cat([own, copied.unflatten(1, (asking, -1))], dim=2) if copies else own

        return self.read_logits(model, read, arrange, **inputs)

    def place(
        self, inputs: RowInputs, span: RowSpan, asking: int, copies: int
    ) -> tuple[torch.Tensor | None, CacheView | None]:
        """Gives rows and copies their slots in the cache, and says what they see.

        Returns:
            The mask: `None` where each row sees all rows up to its own; `[batch, keys]`, 0 for padding; or, for
            anything else, additive `[batch, 1, rows + copies, keys]`. And the cache of this call, if there is one.
        """
        had_read, self.has_read = self.has_read, self.cache is not None
        width, device = span.width, inputs.numbers.device
        if span.is_aligned and not copies and (not had_read or (width == 1 and not self.has_fixed_shapes)):
            # Rows stand side by side in all examples, so no mask is needed.
            slots = slice(span.longest - width, span.longest)
            return None, self.view(slots, width, span.longest if had_read else None)
        copy_numbers = torch.arange(copies, device=device).expand(len(span.end), -1)
        nowhere = 0 if self.cache is None else self.cache.capacity
        slots = inputs.numbers.where(inputs.is_real, nowhere)
        if had_read:
            # A row is the key in its slot. Copies stand behind the last row.
            keys, copy_keys = slots, span.end[:, None] + copy_numbers
            visible = align(self.cache.capacity if self.has_fixed_shapes else span.longest + copies)
            view = self.view(torch.cat([slots, copy_keys], dim=1), width + copies, visible)
            if width == 1 and not copies and is_flash_attention_requested(self.model.config):
                # Flash kernels take no other mask. The library reads this one, which waits for the device.
                return (torch.arange(visible, device=device) <= keys).long(), view
        else:
            # The rows of this call see only each other: row i is key i.
            keys, copy_keys = torch.arange(width, device=device).expand_as(slots), width + copy_numbers
            visible = width + copies
            view = self.view(torch.nn.functional.pad(slots, (0, copies), value=nowhere), width + copies, None)
            if not copies:
                return inputs.is_real.long(), view
        index = torch.arange(visible, device=device)
        sees = index <= keys[..., None]
        if copies:
            # A copy sees the rows before the row that it repeats, and itself.
            repeated = keys[:, -asking:].repeat_interleave(copies // asking, 1)
            sees = torch.cat([sees, index < repeated[..., None]], dim=1)
        if not had_read:
            sees &= torch.nn.functional.pad(inputs.is_real, (0, copies), value=True)[:, None]
        if copies:
            sees[:, width:] |= index == copy_keys[..., None]
        return torch.zeros(sees.shape, dtype=self.model.dtype, device=device).masked_fill(~sees, HIDDEN)[:, None], view

    def view(self, slots: torch.Tensor | slice, rows: int, visible: int | None) -> CacheView | None:
        """The cache of one call, see [`CacheView`]; `None` without a cache."""
        return None if self.cache is None else CacheView(self.cache, slots, rows, visible)


def model_inputs(inputs: RowInputs, asking: int, has_streams: bool) -> dict[str, torch.Tensor]:
    """The arguments of the model for rows, followed by copies of the asking ones where targets are not streams."""
    by_row = {"input_ids": inputs.input_ids, "position_ids": inputs.position_ids}
    by_target = {"target_position_ids": inputs.target_position_ids}
    if inputs.query_input_ids is not None:
        by_target["query_input_ids"] = inputs.query_input_ids
    further = inputs.target_position_ids.shape[2] - 1
    if has_streams:
        return by_row | by_target
    if not further:
        return by_row | {name: each[..., 0] for name, each in by_target.items()}
    # Each copy has one of the further targets.
    by_row = {
        name: torch.cat([each, each[:, -asking:].repeat_interleave(further, 1)], dim=1) for name, each in by_row.items()
    }
    return by_row | {
        name: torch.cat([each[..., 0], each[:, -asking:, 1:].flatten(1)], dim=1) for name, each in by_target.items()
    }


class MaskedRunner(ModelRunner):
    """Runs a masked model, which reads whole canvases in sentence order; nothing is kept from pass to pass.

    The order and the number of committed rows say which tokens are masked, never a token's id. Columns without a row
    (padding, what a marginal leaves out, blanks that an end of sentence has closed) are left out of the input.
    """

    @classmethod
    def for_generation(cls, model, generation_config, rows, way, cache, copies):
        if way.draft_length:
            raise ValueError(
                "`draft_length` needs rows in generation order, of which one pass verifies several, so another variant "
                f"than attention_variant='bidirectional'; got {way.draft_length}."
            )
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise ValueError(
                "`cache_implementation` must not be given for attention_variant='bidirectional', which has no cache; "
                f"got {generation_config.cache_implementation!r}."
            )
        return cls(model), torch.zeros_like(rows.totals)

    def ask(
        self,
        rows: CanvasRows,
        span: RowSpan,
        asking: int = 1,
        targets: int = 1,
        scored_ids: torch.Tensor | None = None,
        read: LogitsReader | None = None,
    ) -> Any:
        # Each asking row needs a canvas of its own, in which the rows after it are masked.
        known = span.end[:, None] + torch.arange(1 - asking, 1, device=span.end.device)
        per_call = max(1, COLUMNS_PER_CALL // rows.columns.numel())
        parts = known.split(per_call, dim=1)
        if read is not None:
            return self.predict(rows, known, targets, read=read)
        if scored_ids is None:
            return torch.cat([self.predict(rows, part, targets) for part in parts], dim=1)
        scored = [
            self.predict(rows, part, 1, ids[..., None])
            for part, ids in zip(parts, scored_ids.split(per_call, dim=1), strict=True)
        ]
        return tuple(torch.cat(each, dim=1)[..., 0] for each in zip(*scored, strict=True))

    def predict(
        self,
        rows: CanvasRows,
        known: torch.Tensor,
        targets: int,
        scored_ids: torch.Tensor | None = None,
        read: LogitsReader | None = None,
    ) -> Any:
        """Runs the model once.

        Args:
            rows: the rows of all canvases.
            known: int64 `[batch, questions]`, how many rows, counted from the first, have tokens that are seen.
            targets: how many of the rows after them to predict.
            scored_ids: int64 `[batch, questions, targets]`, tokens to be scored there.
            read: see [`ask`].

        Returns:
            Logits `[batch, questions, targets, vocab]`, or what `read` reads from states of this shape. Or the
            log-probabilities of `scored_ids` and whether each is the likeliest, both `[batch, questions, targets]`.
        """
        questions, is_row = known.shape[1], rows.columns >= 0
        # Rows in sentence order, padding behind them. The last row is always padding and is left out.
        in_sentence_order = rows.columns.where(is_row, rows.num_columns).argsort(dim=1, stable=True)
        ranks = in_sentence_order.argsort(dim=1)
        in_sentence_order = in_sentence_order[:, :-1]
        tokens, position_ids, is_row = (
            each.gather(1, in_sentence_order) for each in (rows.tokens, rows.positions, is_row)
        )
        is_known = in_sentence_order[:, None] < known[..., None]
        input_ids = tokens[:, None].where(is_known & is_row[:, None], self.model.config.mask_token_id)
        asked = (known[..., None] + torch.arange(targets, device=known.device)).clamp(max=tokens.shape[1] - 1)
        asked = ranks.gather(1, asked.flatten(1)).view(*known.shape, targets)
        inputs = {
            "input_ids": input_ids.flatten(0, 1),
            "attention_mask": is_row.long().repeat_interleave(questions, 0),
            "position_ids": position_ids.clamp(min=0).repeat_interleave(questions, 0),
            "logits_to_keep": asked.flatten(0, 1),
        }
        if scored_ids is not None:
            output = self.call(self.model, **inputs, scored_ids=scored_ids.flatten(0, 1))
            scored = output.token_log_probs, output.token_is_likeliest
            return tuple(each.unflatten(0, known.shape) for each in scored)
        return self.read_logits(self.model, read, lambda states: states.unflatten(0, known.shape), **inputs)


def check_backend(model: Any) -> None:
    """Raises a ValueError for attention kernels without masks."""
    if is_flash_attention_requested(model.config):
        raise ValueError(
            "`tokens_per_step`, `draft_length`, adaptive orders, static and continued caches need an attention "
            "implementation that takes masks; load the model with attn_implementation='sdpa'. Got "
            f"{model.config._attn_implementation!r}."
        )


__all__ = [
    "COLUMNS_PER_CALL",
    "LOGITS_AT_ONCE",
    "LogitsReader",
    "MaskedRunner",
    "ModelRunner",
    "RowRunner",
    "check_backend",
    "rows_at_once",
]
