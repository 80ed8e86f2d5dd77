# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The loop that fills blanks pass by pass, and the sampler that turns logits into tokens.

Each example's rows stand behind each other: context, then blanks in the order in which they are filled. The first
`committed` rows have their final tokens, and the first `cached` of them are in the cache. A pass reads the committed
rows that are not in the cache yet, and its last rows ask about the rows that come next. How many rows ask, about how
many targets, and what is committed, is up to the way of decoding, see [`~modeling_aoarm.decoding_aoarm`].
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from tqdm.auto import tqdm
from transformers import generation as library
from transformers.generation import LogitsProcessorList

from .cache_aoarm import CanvasCache
from .canvas_aoarm import CanvasRows, RowSpan
from .compat_aoarm import require
from .runner_aoarm import LogitsReader, ModelRunner, rows_at_once


# Processors whose meaning does not depend on where tokens stand. Others read the rows before as the text to the left.
ORDER_FREE_PROCESSORS = (
    library.EpsilonLogitsWarper,
    library.EtaLogitsWarper,
    library.InfNanRemoveLogitsProcessor,
    library.LogitNormalization,
    library.MinPLogitsWarper,
    library.RepetitionPenaltyLogitsProcessor,
    library.SuppressTokensLogitsProcessor,
    library.TemperatureLogitsWarper,
    library.TopHLogitsWarper,
    library.TopKLogitsWarper,
    library.TopPLogitsWarper,
    library.TypicalLogitsWarper,
)

NO_TOKEN = (
    "`generate` must be left at least one token with a finite logit for each blank: the model's logits are NaN, or "
    "logits processors, `temperature`, `token_sets` and `eos_token_id` leave no token."
)


def check_order_free(processors: LogitsProcessorList, custom: LogitsProcessorList) -> None:
    """Raises a ValueError naming a processor that needs left-to-right order, unless the caller brought it himself."""
    for processor in processors:
        if not isinstance(processor, ORDER_FREE_PROCESSORS) and all(processor is not each for each in custom):
            raise ValueError(
                f"{type(processor).__name__}, set by the generation config, cannot be combined with "
                "`generation_mask`: it may read the tokens so far as the text to the left. Got "
                f"{processor.__dict__}."
            )


def valid_ends(ends: torch.Tensor | None, vocab_size: int) -> torch.Tensor | None:
    """The ids that can end a sentence, int64 `[ends]`; `None` if there are none. As in the library, -1 is no token."""
    if ends is None:
        return None
    ends = ends[(ends >= 0) & (ends < vocab_size)]
    return ends if len(ends) else None


class TokenSampler:
    """Turns logits into distributions over tokens, and uniform numbers into tokens.

    Args:
        processors: applied to the logits. They are given the rows so far in generation order.
        do_sample: whether tokens are drawn. Otherwise the likeliest token is taken.
        eos_token_ids: int64 `[ends]`, or `None` where no token ends a sentence.
        generator: `None` for the global random numbers, one generator for the batch, or one for each example.
        draws: how many random numbers each example of the whole batch takes in each pass.
    """

    def __init__(
        self,
        processors: LogitsProcessorList,
        do_sample: bool,
        eos_token_ids: torch.Tensor | None,
        generator: torch.Generator | Sequence[torch.Generator] | None,
        draws: list[int],
    ):
        self.processors, self.do_sample, self.eos_token_ids = processors, do_sample, eos_token_ids
        self.generator, self.draws = generator, draws

    def draw_uniforms(self, examples: torch.Tensor, active: list[int | None]) -> torch.Tensor:
        """Draws one pass's uniform numbers in [0, 1), float64 `[examples, most draws]`; 0 where nothing is drawn.

        One generator draws for the whole batch, so that an example's numbers do not depend on which others are done.
        With a generator for each example, examples that are done draw nothing.

        Args:
            examples: int64 `[examples]`, their numbers in the whole batch.
            active: the same numbers as known on the host, `None` for examples that are done.
        """
        device = examples.device
        dtype = torch.float32 if device.type == "mps" else torch.float64
        most = max(self.draws)
        if not self.do_sample:
            return torch.zeros(len(examples), most, dtype=dtype, device=device)
        if self.generator is None or isinstance(self.generator, torch.Generator):
            source = device if self.generator is None else self.generator.device
            drawn = torch.rand(len(self.draws), most, generator=self.generator, dtype=dtype, device=source)
            return drawn.to(device, non_blocking=True)[examples]
        # All examples' numbers move to the device together.
        drawn = torch.zeros(len(active), most, dtype=dtype, device=self.generator[0].device)
        for index, example in enumerate(active):
            if example is not None:
                own, count = self.generator[example], self.draws[example]
                drawn[index, :count].uniform_(generator=own)
        return drawn.to(device, non_blocking=True)

    def forbid_end(self, logits: torch.Tensor, is_forbidden: torch.Tensor) -> torch.Tensor:
        """Takes out the tokens that end a sentence, from logits `[..., vocab]` where `is_forbidden`, bool `[...]`."""
        if self.eos_token_ids is None:
            return logits
        scores = logits.clone()
        ends = scores[..., self.eos_token_ids].masked_fill(is_forbidden[..., None], -torch.inf)
        scores[..., self.eos_token_ids] = ends
        return scores

    def process(self, scores: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        """Applies the processors.

        Args:
            scores: float32 `[examples, targets, vocab]`.
            rows: int64 `[examples, targets, rows]`, the tokens before each target; `None` without processors.

        Raises:
            ValueError: no token is left for some target.
        """
        if self.processors:
            scores = self.processors(rows.flatten(0, 1), scores.flatten(0, 1)).view(scores.shape)
        require(scores.amax(-1).isfinite().all(), NO_TOKEN, waits=scores.device.type == "cpu")
        return scores

    def draw(self, scores: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        """Draws tokens, int64 `[...]`, from processed scores `[..., vocab]` with uniform numbers `[...]`."""
        return draw_from(scores.softmax(-1), uniforms) if self.do_sample else scores.argmax(-1)

    def draw_from(self, weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        """Draws tokens, int64 `[...]`, in proportion to weights `[..., vocab]`; the likeliest without sampling."""
        return draw_from(weights, uniforms) if self.do_sample else weights.argmax(-1)

    def distribution(self, scores: torch.Tensor) -> torch.Tensor:
        """The probabilities that `draw` draws from, `[..., vocab]`. Without sampling one token has probability 1."""
        if self.do_sample:
            return scores.softmax(-1)
        return torch.zeros_like(scores).scatter(-1, scores.argmax(-1, keepdim=True), 1.0)


def draw_from(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Draws tokens in proportion to non-negative `weights` `[..., vocab]` by inversion, in the uniforms' precision.

    Uniform numbers are multiples of half the precision's epsilon below 1. So no threshold is rounded up to the total,
    behind which there is no token.
    """
    cumulated = weights.to(uniforms.dtype).cumsum(-1)
    return torch.searchsorted(cumulated, uniforms[..., None] * cumulated[..., -1:], right=True)[..., 0]


class Filled(NamedTuple):
    """Tokens for the next rows of each example.

    Args:
        tokens: int64 `[active, targets]`.
        log_probs: float32 `[active, targets]`, nats, of the model's own distribution.
        is_likeliest: bool `[active, targets]`, whether the model finds no token likelier.
    """

    tokens: torch.Tensor
    log_probs: torch.Tensor
    is_likeliest: torch.Tensor

    @classmethod
    def by(cls, logits: torch.Tensor, tokens: torch.Tensor) -> "Filled":
        """Tokens `[active, targets]` with what float32 `logits` `[active, targets, vocab]` say about them."""
        log_probs = logits.gather(-1, tokens[..., None])[..., 0] - logits.logsumexp(-1)
        return cls(tokens, log_probs, logits.argmax(-1) == tokens)


def on_device(values: list, device: torch.device) -> torch.Tensor:
    """Moves integers known on the host to the device, as int64, without waiting for it."""
    return torch.tensor(values, dtype=torch.int64).to(device, non_blocking=True)


class Progress(NamedTuple):
    """What the host knows of an example, so that no pass waits for the device to know its shapes.

    Args:
        example: its number in the whole batch.
        committed: how many of its rows are committed, the context included.
        remaining: how many of its blanks remain.
        cached: how many of its rows are in the cache.
        drafted: how many drafts stand behind its committed rows.
    """

    example: int
    committed: int
    remaining: int
    cached: int
    drafted: int = 0


class CanvasFilling:
    """A batch of canvases while their blanks are filled.

    Examples that are done leave the batch, unless its shape has to stay as it is. Tensors are about the examples that
    are left. `examples` holds their numbers in the whole batch.

    Args:
        runner: runs the model on rows.
        rows: the canvases' rows.
        num_context: int64 `[batch]`, how many rows, counted from the first, are context.
        way: how to decode, a [`~modeling_aoarm.decoding_aoarm.DecodingWay`].
        sampler: draws tokens.
        background: int64 `[batch, columns]`, the tokens of columns without a row: padding, and closed blanks.
        cached: int64 `[batch]`, how many rows the cache has read.
        holds_answers: whether the blanks hold their tokens already, which are scored instead of drawn. Then an end of
            sentence closes no blanks.
        restriction: sets of tokens, bool `[sets, vocab]`, the last of all tokens, and the set of each column, int64
            `[batch, columns]`; `None` where any token may stand everywhere.
        keeps_batch: whether examples that are done stay in the batch.
        keeps_cache: whether the cache of all examples is returned.
        streamer: is shown the canvases, or `None`.
        progress_bar: whether to show how many blanks are filled.
    """

    # The tensors with an entry for each example, and those that are results.
    RESULTS = ("logprobs", "is_likeliest", "steps", "committed", "cached", "drafted")
    STATE = (*RESULTS, "examples", "rightmost", "column_sets")

    def __init__(
        self,
        runner: ModelRunner,
        rows: CanvasRows,
        num_context: torch.Tensor,
        way: Any,
        sampler: TokenSampler,
        background: torch.Tensor,
        cached: torch.Tensor,
        holds_answers: bool = False,
        restriction: tuple[torch.Tensor, torch.Tensor] | None = None,
        keeps_batch: bool = False,
        keeps_cache: bool = False,
        streamer: Any = None,
        progress_bar: bool = False,
    ):
        self.runner, self.way, self.sampler, self.background = runner, way, sampler, background
        self.holds_answers = holds_answers
        self.token_sets, column_sets = (None, torch.zeros_like(background)) if restriction is None else restriction
        # One more entry, for the column of padding rows.
        self.column_sets = torch.nn.functional.pad(column_sets, (0, 1), value=-1)
        self.examples = torch.arange(len(cached), device=cached.device)
        self.all_rows, self.rows = rows, rows.select(self.examples)
        self.logprobs = torch.zeros_like(rows.tokens, dtype=torch.float32)
        self.is_likeliest = torch.zeros_like(rows.tokens, dtype=torch.bool)
        self.steps = torch.full_like(rows.tokens, -1)
        self.num_context = num_context
        self.committed, self.cached, self.drafted = num_context, cached, torch.zeros_like(cached)
        # The last column that holds a token.
        is_given = torch.arange(rows.columns.shape[1], device=cached.device) < num_context[:, None]
        self.rightmost = rows.columns.masked_fill(~is_given, -1).amax(1)
        self.results = {name: getattr(self, name).clone() for name in self.RESULTS}
        self.keeps_batch, self.keeps_cache = keeps_batch, keeps_cache
        self.finished_caches: list[tuple[torch.Tensor, CanvasCache]] = []
        self.round = 0
        counts = torch.stack([self.committed, rows.totals - self.committed, self.cached]).tolist()
        self.progress = [Progress(*each) for each in zip(range(len(cached)), *counts, strict=True)]
        # An upper bound of `committed`.
        self.most_committed = max(each.committed for each in self.progress)
        self.streamer = streamer
        total, title = sum(each.remaining for each in self.progress), "Scoring" if holds_answers else "Filling"
        self.bar = tqdm(total=total, unit="token", disable=not progress_bar, desc=f"{title} blanks")

    @property
    def most_remaining(self) -> int:
        """The most blanks that remain in an example."""
        return max(each.remaining for each in self.progress)

    def run(self) -> None:
        """Fills all blanks."""
        if self.streamer is not None:
            self.streamer.put(self.canvases().cpu())
        try:
            self.drop_finished()
            with self.bar:
                while self.most_remaining:
                    self.way.step(self)
                    self.round += 1
                    self.show()
                    self.drop_finished()
            self.runner.wait_for_others()
            self.store()
            if self.streamer is not None:
                self.streamer.put(self.canvases().cpu())
        finally:
            if self.streamer is not None:
                self.streamer.end()

    # Steps of a pass, for ways of decoding

    def ask(
        self, targets: int, asking: int = 1, drafts: int = 0, most_unread: int = 1, read: LogitsReader | None = None
    ) -> Any:
        """Makes a pass over the rows that are not in the cache yet.

        Args:
            targets: how many of the next rows each asking row asks about.
            asking: how many rows ask, counted from the last.
            drafts: how many rows of drafts are read behind the committed ones.
            most_unread: the most rows that a pass leaves unread. Passes of fixed shapes always read so many.
            read: reads predictions from states `[active, asking, targets, hidden]` and the function from states to
                logits, so that not all logits need exist at once.

        Returns:
            What `read` returns. Without it, logits `[active, asking, targets, vocab]`, in the model's dtype.
        """
        width = max(each.committed - each.cached for each in self.progress)
        if self.runner.has_fixed_shapes and self.runner.has_read:
            width = max(width, most_unread)
        return self.runner.ask(self.rows, self.span(width + drafts, drafts), asking, targets, read=read)

    def logits_in_parts(
        self, states: torch.Tensor, compute_logits: Callable[[torch.Tensor], torch.Tensor]
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """Computes logits about targets, a part of the targets at a time: float32 copies of all would be large.

        Args:
            states: `[active, targets, hidden]`.
            compute_logits: maps states to logits.

        Yields:
            Which targets, and their logits `[active, part, vocab]` in the model's dtype.
        """
        size = max(1, rows_at_once(self.runner.model.config.vocab_size) // len(states))
        if self.keeps_batch:
            # The caller's processors get all targets together.
            size = states.shape[1]
        for start in range(0, states.shape[1], size):
            logits = compute_logits(states[:, start : start + size])
            yield slice(start, start + logits.shape[1]), logits.to(self.committed.device)

    def fill(
        self,
        states: torch.Tensor,
        compute_logits: Callable[[torch.Tensor], torch.Tensor],
        uniforms: torch.Tensor,
    ) -> Filled:
        """Draws tokens for the next rows, none of which sees another; or scores the tokens that they hold.

        Args:
            states: `[active, targets, hidden]`, about the next rows.
            compute_logits: maps states to logits.
            uniforms: `[active, targets]`, random numbers in [0, 1).
        """
        held, parts = self.rows.tokens.gather(1, self.next_rows(states.shape[1])), []
        for part, logits in self.logits_in_parts(states, compute_logits):
            logits = logits.float()
            if self.holds_answers:
                tokens = held[:, part]
            else:
                tokens = self.sampler.draw(self.process_next(logits, part.start), uniforms[:, part])
            parts.append(Filled.by(logits, tokens))
        return parts[0] if len(parts) == 1 else Filled(*(torch.cat(each, dim=1) for each in zip(*parts, strict=True)))

    def span(self, width: int, ahead: int = 0) -> RowSpan:
        """The `width` rows that end `ahead` rows behind the last committed one."""
        lengths = {(each.committed, each.cached, each.drafted) for each in self.progress}
        stop = self.committed + self.drafted if self.way.draft_length else self.committed
        end, longest = self.committed + ahead, self.most_committed + ahead
        return RowSpan(self.cached, stop, end, width, longest, is_aligned=len(lengths) == 1)

    def read_context(self) -> None:
        """Reads all context rows but the last, so that further targets are only asked for by the last one."""
        width = max(each.committed - each.cached for each in self.progress) - 1
        if self.runner.cache is None or self.round or width == 0:
            return
        self.runner.ask(self.rows, self.span(width, ahead=-1))
        self.cached = self.committed - 1
        self.progress = [each._replace(cached=each.committed - 1) for each in self.progress]

    def draw_uniforms(self, count: int) -> torch.Tensor:
        """The pass's random numbers, float64 `[active, count]`."""
        active = [each.example if each.remaining else None for each in self.progress]
        return self.sampler.draw_uniforms(self.examples, active)[:, :count]

    def next_rows(self, count: int) -> torch.Tensor:
        """The numbers of the next rows, int64 `[active, count]`; numbers of padding where there are no more."""
        rows = self.committed[:, None] + torch.arange(count, device=self.committed.device)
        return rows.clamp(max=self.rows.columns.shape[1] - 1)

    def next_columns(self, count: int) -> torch.Tensor:
        """The columns of the next rows, int64 `[active, count]`, -1 where there are no more."""
        return self.rows.columns.gather(1, self.next_rows(count))

    def put_next(self, order: torch.Tensor) -> None:
        """Rearranges the next rows: int64 `[active, targets]`, their numbers, counted from the next row."""
        next_rows = self.next_rows(order.shape[1])
        numbers = torch.arange(self.rows.columns.shape[1], device=order.device).expand(len(order), -1)
        self.rows = self.rows.rearrange(numbers.scatter(1, next_rows, next_rows.gather(1, order)))

    def restrict(self, logits: torch.Tensor, columns: torch.Tensor, rightmost: torch.Tensor) -> torch.Tensor:
        """Takes out the tokens that may not stand in a column: sentence ends left of a token, other sets' tokens.

        Args:
            logits: `[active, targets, vocab]`.
            columns: int64 `[active, targets]`, the targets' columns.
            rightmost: int64 `[active, targets or 1]`, the last column that holds a token when they are filled.
        """
        scores = self.sampler.forbid_end(logits, columns < rightmost)
        if self.token_sets is None:
            return scores
        sets = self.column_sets.gather(1, columns.remainder(self.column_sets.shape[1]))
        return scores.masked_fill(~self.token_sets[sets], -torch.inf)

    def process_next(self, logits: torch.Tensor, start: int = 0, follows_drafts: bool = False) -> torch.Tensor:
        """Restricts and processes logits about the next rows, which are filled one after the other.

        Args:
            logits: float32 `[active, targets, vocab]`.
            start: how many of the next rows come before the first target.
            follows_drafts: whether target i is predicted with i drafts before it, instead of none.
        """
        targets = logits.shape[1]
        if self.sampler.eos_token_ids is not None or self.token_sets is not None:
            columns = self.next_columns(start + targets)
            rightmost = torch.cat([self.rightmost[:, None], columns[:, :-1]], dim=1).cummax(1).values
            logits = self.restrict(logits, columns[:, start:], rightmost[:, start:])
        rows = self.tokens_before(targets, follows_drafts) if self.sampler.processors else None
        return self.sampler.process(logits, rows)

    def tokens_before(self, targets: int, follows_drafts: bool) -> torch.Tensor:
        """The tokens of the rows before each of the next targets, for processors: int64 `[active, targets, rows]`.

        Shorter examples repeat their first row in front.
        """
        ahead = torch.arange(targets if follows_drafts else 1, device=self.committed.device)
        stop = (self.committed[:, None] + ahead).expand(-1, targets)
        width = self.most_committed + len(ahead) - 1
        rows = (stop[..., None] + torch.arange(-width, 0, device=stop.device)).clamp(min=0)
        # There is nothing to read behind the last draft.
        rows = rows.where(rows < (self.committed + self.drafted)[:, None, None], 0)
        return self.rows.tokens.gather(1, rows.flatten(1)).view(rows.shape)

    def commit(self, filled: Filled, count: torch.Tensor, read: torch.Tensor) -> torch.Tensor | None:
        """Makes the first tokens for the next rows final, except those behind an end of sentence.

        An end of sentence closes the blanks to its right: they leave the order.

        Args:
            filled: tokens for the next rows.
            count: int64 `[active]`, how many of them are committed.
            read: int64 `[active]`, how many rows the cache now holds with their right tokens and targets.

        Returns:
            In which examples a sentence ended, bool `[active]`; `None` where no token ends a sentence.
        """
        tokens, has_ended = filled.tokens, None
        rows, numbers = self.next_rows(tokens.shape[1]), torch.arange(tokens.shape[1], device=tokens.device)
        ends = self.sampler.eos_token_ids
        if ends is not None and not self.holds_answers:
            is_end = torch.isin(tokens, ends) & (numbers < count[:, None])
            has_ended = is_end.any(1)
            count = torch.where(has_ended, is_end.long().argmax(1) + 1, count)
        is_committed = numbers < count[:, None]
        # The last row absorbs discarded writes.
        written = rows.where(is_committed, self.rows.columns.shape[1] - 1)
        self.rows.tokens.scatter_(1, written, tokens)
        self.logprobs.scatter_(1, written, filled.log_probs)
        self.is_likeliest.scatter_(1, written, filled.is_likeliest)
        self.steps.scatter_(1, written, self.runner.passes - 1)
        self.committed = self.committed + count
        self.most_committed += tokens.shape[1]
        if self.runner.cache is not None:
            # The last row has no target yet.
            self.cached = torch.minimum(read, self.committed - 1)
        if ends is not None:
            columns = self.rows.columns.gather(1, rows).masked_fill(~is_committed, -1)
            self.rightmost = torch.maximum(self.rightmost, columns.amax(1))
        if has_ended is not None:
            last = columns.gather(1, (count - 1).clamp(min=0)[:, None])
            self.close_blanks(last.masked_fill(~has_ended[:, None], self.rows.num_columns))
        return has_ended

    def close_blanks(self, end: torch.Tensor) -> None:
        """Takes the remaining blanks to the right of column `end`, int64 `[active, 1]`, out of the order."""
        numbers = torch.arange(self.rows.columns.shape[1], device=end.device)
        self.rows = self.rows.drop((numbers >= self.committed[:, None]) & (self.rows.columns > end))

    def note_progress(self, counts: list[int] | None = None, reread: int = 0) -> None:
        """Notes the progress of a pass on the host, after [`commit`].

        Args:
            counts: how many tokens each active example was to commit, if the host knows. An end of sentence can make it
                fewer, so where there may be one, and without `counts`, the device is asked.
            reread: how many of the rows that were committed before have to be read again.
        """
        if counts is None or self.sampler.eos_token_ids is not None:
            remaining = self.rows.totals - self.committed
            read = torch.stack([self.committed, remaining, self.cached, self.drafted]).tolist()
            examples = [each.example for each in self.progress]
            progress = [Progress(*each) for each in zip(examples, *read, strict=True)]
        else:
            progress = []
            for each, count in zip(self.progress, counts, strict=True):
                committed = each.committed + count
                cached = 0 if self.runner.cache is None else min(each.committed - reread, committed - 1)
                progress.append(Progress(each.example, committed, each.remaining - count, cached))
        self.bar.update(sum(each.remaining for each in self.progress) - sum(each.remaining for each in progress))
        self.progress = progress
        self.most_committed = max(each.committed for each in progress)

    # The batch

    def store(self) -> None:
        """Writes the state of the active examples to the results of the whole batch."""
        for name, whole in self.results.items():
            whole[self.examples] = getattr(self, name)
        self.all_rows.insert(self.examples, self.rows)

    def drop_finished(self) -> None:
        """Takes the examples that are done out of the batch, once they are a quarter of it: the cache is copied."""
        done = [each.remaining == 0 for each in self.progress]
        if self.keeps_batch or all(done) or 4 * sum(done) < len(done):
            return
        self.store()
        device = self.examples.device
        staying = on_device([index for index, is_done in enumerate(done) if not is_done], device)
        if self.runner.has_read:
            if self.keeps_cache:
                leaving = on_device([index for index, is_done in enumerate(done) if is_done], device)
                self.finished_caches.append((self.examples[leaving], self.runner.cache.select(leaving)))
            self.runner.cache.keep(staying)
        for name in self.STATE:
            setattr(self, name, getattr(self, name)[staying])
        self.rows = self.rows.select(staying)
        self.way.keep(staying)
        self.progress = [each for each in self.progress if each.remaining]
        self.most_committed = max(each.committed for each in self.progress)

    def whole_cache(self) -> CanvasCache | None:
        """The cache of all examples, those that have left included; `None` if nothing was read."""
        batch = len(self.results["committed"])
        if not self.runner.has_read:
            return None
        if len(self.examples) == batch:
            return self.runner.cache
        whole = self.runner.cache.select(torch.zeros(batch, dtype=torch.int64))
        for examples, part in [*self.finished_caches, (self.examples, self.runner.cache)]:
            whole.insert(examples, part)
        return whole

    def of_blanks(self, values: torch.Tensor) -> torch.Tensor:
        """Entries of the whole batch's blanks in the order in which they were filled, `[batch, most filled]`.

        Args:
            values: `[batch, rows + 1]`. Examples with fewer filled blanks have entries without a meaning on the right.
        """
        most = int((self.results["committed"] - self.num_context).max())
        numbers = self.num_context[:, None] + torch.arange(most, device=values.device)
        return values.gather(1, numbers.clamp(max=values.shape[1] - 1))

    def realised_order(self) -> torch.Tensor:
        """The columns in the order in which they were filled, int64 `[batch, most filled]`, -1 on the right."""
        filled = self.results["committed"] - self.num_context
        columns = self.of_blanks(self.all_rows.columns)
        return columns.masked_fill(torch.arange(columns.shape[1], device=columns.device) >= filled[:, None], -1)

    def canvases(self) -> torch.Tensor:
        """The canvases of the whole batch as they are stored, int64 `[batch, columns]`."""
        return self.all_rows.to_columns(self.all_rows.tokens, self.background)

    def show(self) -> None:
        """Shows the canvases as they are to the streamer."""
        if not hasattr(self.streamer, "put_draft"):
            return
        self.store()
        canvas = self.canvases().cpu()
        if not getattr(self.streamer, "_takes_canvas_state", False):
            self.streamer.put_draft(value=canvas)
            return
        committed, drafted, steps = (self.results[name] for name in ("committed", "drafted", "steps"))
        numbers = torch.arange(steps.shape[1], device=steps.device)
        is_committed = numbers < committed[:, None]
        is_drafted = ~is_committed & (numbers < (committed + drafted)[:, None])
        confidence = self.results["logprobs"].exp().masked_fill(steps < 0, torch.nan)
        # Padded and closed columns have no row, and nothing to wait for.
        states = {
            name: self.all_rows.to_columns(values, torch.full_like(self.background, empty, dtype=values.dtype)).cpu()
            for name, values, empty in (
                ("filled", is_committed, True),
                ("steps", steps, -1),
                ("confidence", confidence, torch.nan),
                ("drafted", is_drafted, False),
            )
        }
        self.streamer.put_draft(value=canvas, **states)


__all__ = [
    "CanvasFilling",
    "Filled",
    "Progress",
    "TokenSampler",
    "check_order_free",
    "draw_from",
    "on_device",
    "valid_ends",
]
