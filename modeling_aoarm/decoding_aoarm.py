# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Filling blanks pass by pass: in fixed and adaptive orders, one or several a pass, and by speculation.

Each example's rows stand behind each other: context, then blanks in the order in which they are filled. The first
`decided` rows have their final tokens, the first `cached` of them are in the cache. A pass reads the decided rows that
are not in the cache yet, and its last rows ask for the places of the rows that come next. The ways of decoding differ
in how many rows ask, for how many targets, and in which answers are kept:

| way                      | rows that ask                        | targets                              |
| ------------------------ | ------------------------------------ | ------------------------------------ |
| one by one, fixed order  | the last decided one                 | the next                             |
| several a pass           | the last decided one                 | the next few                         |
| adaptive orders          | the last decided one                 | all that are left                    |
| speculation              | the last decided one and the drafts  | the next, to verify; more, to draft  |
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import generation as library
from transformers.generation import LogitsProcessorList

from .cache_aoarm import CanvasCache
from .canvas_aoarm import CanvasRows
from .compat_aoarm import require
from .runner_aoarm import RowReader


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


def check_order_free(processors: LogitsProcessorList, custom: LogitsProcessorList | None) -> None:
    """Raises a ValueError naming a processor that needs left-to-right order, unless the caller brought it himself."""
    own = [] if custom is None else custom
    for processor in processors:
        if not isinstance(processor, ORDER_FREE_PROCESSORS) and all(processor is not each for each in own):
            raise ValueError(
                f"{type(processor).__name__}, set by the generation config, cannot be combined with "
                "`generation_mask`: it may read the tokens so far as the text to the left. Got "
                f"{processor.__dict__}."
            )


NO_TOKEN = (
    "`generate` must be left at least one token with a finite logit for each blank: the model's logits are NaN, or "
    "logits processors, `temperature`, `token_sets` and `eos_token_id` leave no token."
)


class TokenSampler:
    """Turns logits into distributions over tokens, and uniform numbers into tokens.

    Args:
        processors: applied to the logits; they are given the rows so far in generation order.
        do_sample: whether tokens are drawn; the likeliest is taken otherwise.
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

    def uniforms(self, examples: torch.Tensor, active: list[int | None]) -> torch.Tensor:
        """One pass's uniform numbers in [0, 1), float64 `[examples, most draws]`; 0 where nothing is to be drawn.

        From one generator they are drawn for the whole batch, so that what an example gets does not depend on which
        others are done; examples that are done take none from generators of their own.

        Args:
            examples: int64 `[examples]`, numbers in the whole batch.
            active: the same numbers as the host knows them, `None` for examples that are done.
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
        for row, example in enumerate(active):
            if example is not None:
                own, count = self.generator[example], self.draws[example]
                drawn[row, :count].uniform_(generator=own)
        return drawn.to(device, non_blocking=True)

    def forbid_end(self, logits: torch.Tensor, is_forbidden: torch.Tensor) -> torch.Tensor:
        """`logits` `[..., vocab]` without the tokens that end a sentence where `is_forbidden` `[...]`."""
        if self.eos_token_ids is None:
            return logits
        scores = logits.clone()
        ends = scores[..., self.eos_token_ids].masked_fill(is_forbidden[..., None], -torch.inf)
        scores[..., self.eos_token_ids] = ends
        return scores

    def process(self, scores: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        """Processed scores.

        Args:
            scores: float32 `[examples, places, vocab]`.
            rows: int64 `[examples, places, rows]`, the tokens before each place; `None` if there are no processors.
        """
        if self.processors:
            scores = self.processors(rows.flatten(0, 1), scores.flatten(0, 1)).view(scores.shape)
        require(scores.amax(-1).isfinite().all(), NO_TOKEN, waits=scores.device.type == "cpu")
        return scores

    def draw(self, scores: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        """Tokens int64 `[...]` from processed scores `[..., vocab]` and uniform numbers `[...]`."""
        return draw_from(scores.softmax(-1), uniforms) if self.do_sample else scores.argmax(-1)

    def draw_from(self, distribution: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        """Tokens int64 `[...]` from what `distribution` returns, or from other weights `[..., vocab]`."""
        return draw_from(distribution, uniforms) if self.do_sample else distribution.argmax(-1)

    def distribution(self, scores: torch.Tensor) -> torch.Tensor:
        """The probabilities that `draw` draws from, `[..., vocab]`; greedy choice has a single one."""
        if self.do_sample:
            return scores.softmax(-1)
        return torch.zeros_like(scores).scatter(-1, scores.argmax(-1, keepdim=True), 1.0)


def draw_from(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Tokens drawn in proportion to non-negative `weights` `[..., vocab]` by inversion, in the uniforms' precision.

    Uniform numbers are multiples of half the precision's epsilon below 1, so no threshold is rounded up to the total,
    behind which there is no token.
    """
    cumulated = weights.to(uniforms.dtype).cumsum(-1)
    return torch.searchsorted(cumulated, uniforms[..., None] * cumulated[..., -1:], right=True)[..., 0]


def log_probs_of(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The log-probabilities (nats) of `tokens` `[...]` under `logits` `[..., vocab]`."""
    return logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]


# How many logits are looked at together when the surest places are sought: what a processor's cache holds, or what is
# little memory for an accelerator.
LOGITS_AT_ONCE = {"cpu": 2**19}
LOGITS_AT_ONCE_ELSEWHERE = 2**25


@dataclass
class DecodingPlan:
    """How blanks are filled.

    Args:
        adaptive: `"confidence"`, `"entropy"` or `"margin"` where the tokens decide the order, else `None`.
        sizes: for each example, how many blanks each pass fills.
        draft_length: how many drafts a pass verifies, 0 for none.
    """

    adaptive: str | None
    sizes: list[list[int]]
    draft_length: int

    def sizes_by_round(self, device: torch.device) -> torch.Tensor:
        """`sizes` as int64 `[batch, rounds]`, each example's last one repeated."""
        rounds = max(1, *map(len, self.sizes))
        return on_device([sizes + (sizes or [0])[-1:] * (rounds - len(sizes)) for sizes in self.sizes], device)

    @functools.cached_property
    def most(self) -> int:
        """The most blanks that a pass fills by plan."""
        return max(max(sizes, default=0) for sizes in self.sizes)

    @property
    def asks_ahead(self) -> bool:
        """Whether a row asks for several targets in some pass."""
        return self.adaptive is not None or self.draft_length > 0 or self.most > 1

    @property
    def draws(self) -> list[int]:
        """How many random numbers a pass takes for each example, whatever the rest of the batch is."""
        if self.draft_length:
            # For the acceptance of each draft, the token after them, and each new draft.
            return [2 * self.draft_length + 1] * len(self.sizes)
        return [max(sizes, default=0) for sizes in self.sizes]


def on_device(values: list, device: torch.device) -> torch.Tensor:
    """Integers known on the host as int64 on the device, without waiting for it."""
    return torch.tensor(values, dtype=torch.int64).to(device, non_blocking=True)


# About minus the logarithm of the smallest positive number: surer than any other place, and finite.
SUREST = 100.0


def certainty(logits: torch.Tensor, rule: str) -> torch.Tensor:
    """How sure a model is at each place, `[...]` from logits `[..., vocab]`; adaptive orders fill the surest first.

    `"confidence"` is the largest probability, `"entropy"` minus the entropy, `"margin"` the gap between the two largest
    probabilities, all of the model's own distribution, before any processing. They are returned on scales that tell
    sure places apart and have rounding errors of about 1e-5 everywhere: the log-odds of the likeliest token, minus the
    logarithm of the entropy in nats, and minus the logarithm of 1 - the gap.

    They are rounded to three decimals. Behind a single given token all places look the same to a model, and rounding
    errors, which depend on the batch, should not choose among them.
    """
    largest, likeliest = logits.max(dim=-1, keepdim=True)
    logits = logits - largest
    # What the other tokens weigh, that of the likeliest being 1: in single precision 1 - p would lose their sum.
    others = (logits.exp() if rule == "entropy" else logits.exp_()).scatter_(-1, likeliest, 0.0)
    rest = others.sum(-1)
    if rule == "confidence":
        sure = -rest.log()
    elif rule == "entropy":
        # Forbidden tokens have weight 0 and logit -inf, whose product would be NaN.
        spread = -(others * logits.clamp_(min=torch.finfo(logits.dtype).min)).sum(-1)
        sure = -(rest.log1p() + spread / (1 + rest)).log()
    else:
        sure = -((rest + others.amax(-1)) / (1 + rest)).log()
    # Where there is one token only, no place is surer.
    return sure.clamp(max=SUREST).round(decimals=3)


class CanvasFilling:
    """A batch of canvases while their blanks are filled.

    Examples that are done leave the batch, unless its shape has to stay as it is. Tensors are about the examples that
    are left; `examples` are their numbers in the whole batch.

    Args:
        reader: runs the model on rows.
        canvas: int64 `[batch, columns]`.
        rows: the canvases' rows. Adaptive orders move the blanks among them.
        plan: how to decode.
        sampler: draws tokens.
        pad_token: what closed blanks hold; `None` where no token ends a sentence.
        cached: int64 `[batch]`, how many rows the cache has read.
        restriction: sets of tokens, bool `[sets, vocab]`, the last of all tokens, and the set of each column, int64
            `[batch, columns]`; `None` where any token may stand everywhere.
        keeps_batch: whether examples that are done stay in the batch.
        keeps_cache: whether the cache of all examples is wanted in the end.
        streamer: is shown the canvases, or `None`.
        progress_bar: whether to show how many blanks are filled.
    """

    # What is about one example each, and which of it is wanted in the end.
    STATE = (
        *("examples", "canvas", "columns", "places", "left_columns", "given", "sizes", "logprobs", "steps"),
        *("decided", "total", "cached", "rightmost", "drafted", "column_sets"),
    )
    RESULTS = ("canvas", "columns", "logprobs", "steps", "decided", "cached", "drafted")

    def __init__(
        self,
        reader: RowReader,
        canvas: torch.Tensor,
        rows: CanvasRows,
        plan: DecodingPlan,
        sampler: TokenSampler,
        pad_token: torch.Tensor | None,
        cached: torch.Tensor,
        restriction: tuple[torch.Tensor, torch.Tensor] | None = None,
        keeps_batch: bool = False,
        keeps_cache: bool = False,
        streamer: Any = None,
        progress_bar: bool = False,
    ):
        self.reader, self.plan, self.sampler, self.pad_token = reader, plan, sampler, pad_token
        batch, width = rows.columns.shape
        device = canvas.device
        # One place more in each: what is to be written nowhere goes there.
        self.canvas = torch.nn.functional.pad(canvas, (0, 1))
        self.columns = torch.nn.functional.pad(rows.columns, (0, 1), value=-1)
        self.logprobs = torch.zeros(batch, width + 1, dtype=torch.float32, device=device)
        self.steps = torch.full((batch, width + 1), -1, device=device)
        self.places, self.left_columns, self.given = rows.places, rows.left, rows.given
        self.sizes = plan.sizes_by_round(device)
        self.known_rows: CanvasRows | None = None
        self.examples = torch.arange(batch, device=device)
        self.decided, self.cached = rows.given.clone(), cached
        self.token_sets, column_sets = (None, torch.zeros_like(canvas)) if restriction is None else restriction
        self.column_sets = torch.nn.functional.pad(column_sets, (0, 1), value=-1)
        self.total = (rows.columns >= 0).sum(1)
        is_given = torch.arange(width, device=device) < rows.given[:, None]
        self.rightmost = rows.columns.masked_fill(~is_given, -1).amax(1)
        # How many drafts stand behind the decided rows, and the weights that they were drawn by.
        self.drafted = torch.zeros_like(self.decided)
        self.draft_weights: torch.Tensor | None = None
        self.results = {name: getattr(self, name).clone() for name in self.RESULTS}
        self.keeps_batch, self.keeps_cache = keeps_batch, keeps_cache
        self.left_caches: list[tuple[torch.Tensor, CanvasCache]] = []
        # Known on the host too, so that no pass waits for the device to know its shapes.
        self.numbers = list(range(batch))
        self.left = (self.total - self.decided).tolist()
        self.lengths, read = self.decided.tolist(), self.cached.tolist()
        self.most_blanks = max(self.left)
        sizes = [
            (decided, decided - cached)
            for decided, cached, left in zip(self.lengths, read, self.left, strict=True)
            if left or keeps_batch
        ]
        self.most_unread = max((unread for _, unread in sizes), default=0)
        self.most_drafted = 0
        # Whether all examples have equally many rows, so that there is no padding.
        self.is_in_step = len(set(sizes)) == 1
        self.rounds = 0
        self.streamer = streamer
        self.bar = tqdm(total=sum(self.left), unit="token", disable=not progress_bar, desc="Filling blanks")

    @property
    def rows(self) -> CanvasRows:
        """The rows as they are; the same object as long as they stay as they are."""
        if self.known_rows is None or self.known_rows.columns is not self.columns:
            self.known_rows = CanvasRows(self.columns, self.places, self.left_columns, self.given)
        return self.known_rows

    @property
    def most_decided(self) -> int:
        """A bound of `decided` that is known on the host."""
        return max(self.lengths)

    def run(self) -> None:
        """Fills all blanks."""
        step = self.speculate if self.plan.draft_length else self.fill
        self.leave()
        with self.bar:
            while any(self.left):
                step()
                self.rounds += 1
                self.show()
                self.leave()
        self.reader.finish()
        self.store()

    # Ways of decoding

    def fill(self) -> None:
        """Fills as many blanks of each example as its plan says: the next ones, or those that are surest."""
        sizes = [self.plan.sizes[number] for number in self.numbers]
        wanted = [
            min(each[min(self.rounds, len(each) - 1)], left) if left else 0
            for each, left in zip(sizes, self.left, strict=True)
        ]
        is_fixed, adaptive = self.reader.is_fixed, self.plan.adaptive
        most = self.plan.most if is_fixed else max(wanted)
        targets = most
        if adaptive:
            targets = self.most_blanks if is_fixed else max(self.left)
        # A row that is asked for several targets in a single stream may have to be read again.
        again = int(adaptive is not None and not self.reader.is_two_stream)
        if targets > 1 and self.reader.cache is not None and self.rounds == 0 and self.most_unread > 1:
            # Only the last row asks: the others are read before, with one target each.
            self.ask(self.most_unread - 1, 1, 1, ahead=-1)
            self.cached = self.decided - 1
            self.most_unread = most + again if is_fixed else 1
        answers = self.ask(self.most_unread, 1, targets)[:, 0]
        # One blank of each example, all of which have equally many rows.
        in_step = self.is_in_step and most == 1 and self.sampler.eos_token_ids is None
        if adaptive or not in_step:
            count = torch.minimum(self.sizes[:, min(self.rounds, self.sizes.shape[1] - 1)], self.total - self.decided)
        if adaptive:
            answers = self.bring_surest_forward(answers, count, most)
        answers = answers.float()
        scores = self.sampler.process(self.restrict_next(answers), self.rows_before(most))
        tokens = self.sampler.draw(scores, self.uniforms(most))
        logprobs, was_decided = log_probs_of(answers, tokens), self.decided
        if in_step:
            self.commit_in_step(tokens, logprobs)
        else:
            self.commit(self.next_rows(most), tokens, logprobs, count)
        if self.reader.cache is not None:
            # The last row has a target once the next blank is chosen, so it is read again where none was filled.
            is_next = in_step and not again
            self.cached = was_decided if is_next else torch.minimum(was_decided - again, self.decided - 1)
        if self.sampler.eos_token_ids is None:
            left, lengths = (
                [each + sign * filled for each, filled in zip(known, wanted, strict=True)]
                for known, sign in ((self.left, -1), (self.lengths, 1))
            )
        else:
            left, lengths = torch.stack([self.total - self.decided, self.decided]).tolist()
        self.note(left, lengths)
        self.most_unread = most + again if self.reader.cache is not None else self.most_decided
        self.is_in_step &= most == 1

    def bring_surest_forward(self, answers: torch.Tensor, count: torch.Tensor, most: int) -> torch.Tensor:
        """Puts the blanks that the model is surest about next; the others stay in sentence order behind them.

        Args:
            answers: `[active, targets, vocab]`, about the rows that come next.
            count: int64 `[active]`, how many blanks are wanted.
            most: the largest of them.

        Returns:
            The answers about the rows that now come next, `[active, most, vocab]`.
        """
        columns = self.next_columns(answers.shape[1])
        sure = []
        # In parts: float32 copies of the logits about all blanks of all examples would be the largest tensors by far.
        at_once = LOGITS_AT_ONCE.get(answers.device.type, LOGITS_AT_ONCE_ELSEWHERE)
        size = max(1, at_once // (len(answers) * answers.shape[2]))
        for part, places in zip(answers.split(size, 1), columns.split(size, 1), strict=True):
            allowed = self.restrict(part.float(), places, self.rightmost[:, None])
            sure.append(certainty(allowed, self.plan.adaptive))
        sure = torch.cat(sure, dim=1).masked_fill(columns < 0, -torch.inf)
        # The first is the leftmost of the surest.
        ranks = sure.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        choice = torch.minimum(ranks, count[:, None]).argsort(dim=1, stable=True)
        self.columns = self.columns.scatter(1, self.next_rows(answers.shape[1]), columns.gather(1, choice))
        return answers.gather(1, choice[:, :most, None].expand(-1, -1, answers.shape[2]))

    def speculate(self) -> None:
        """One round of any-subset speculative decoding (2504.20456) in a single pass.

        The pass reads the last decided row and the drafts behind it. Row i of these gives the distribution p of the
        blank after it, by which the draft there is accepted with probability min(1, p / q) or replaced by one from the
        residual max(0, p - q); what is filled follows p exactly. The rows also ask for the blanks further on: the last
        row whose successor is decided draws the next drafts from these answers, before it knows that successor. Such
        drafts are a little worse than those of a pass of their own, and cost none.
        """
        length, is_fixed = self.plan.draft_length, self.reader.is_fixed
        most = min(length, (self.most_blanks if is_fixed else max(self.left)) - 1)
        drafts = 0 if self.rounds == 0 else most if is_fixed else self.most_drafted
        answers = self.ask(self.most_unread + drafts, 1 + drafts, 1 + most, ahead=drafts).float()
        examples = torch.arange(len(answers), device=answers.device)
        uniforms = self.uniforms(2 * length + 1)

        logits = answers[:, :, 0]
        scores = self.restrict_next(logits)
        p = self.sampler.distribution(self.sampler.process(scores, self.rows_before(1 + drafts, follows_drafts=True)))
        rows = self.next_rows(1 + drafts)
        tokens = self.canvas.gather(1, self.place_of(self.columns.gather(1, rows)))
        accepted = torch.zeros_like(self.decided)
        weights = p[:, 0]
        if drafts:
            q = self.draft_weights[:, :drafts]
            drawn = tokens[:, :drafts, None]
            passes = accepts(p[:, :drafts].gather(2, drawn)[..., 0], q.gather(2, drawn)[..., 0], uniforms[:, :drafts])
            passes &= torch.arange(drafts, device=passes.device) < self.drafted[:, None]
            accepted = passes.long().cumprod(1).sum(1)
            rejected = q[examples, accepted.clamp(max=drafts - 1)] * (accepted < self.drafted)[:, None]
            p_next = p[examples, accepted]
            residual = (p_next - rejected).clamp(min=0)
            # Rounding can reject a draft where p and q are equal.
            weights = torch.where(residual.sum(-1, keepdim=True) > 0, residual, p_next)
        new = self.sampler.draw_from(weights, uniforms[:, length])
        tokens = tokens.scatter(1, accepted[:, None], new[:, None])
        ended = self.commit(rows, tokens, log_probs_of(logits, tokens), accepted + 1)
        self.lengths = [length + 1 + drafts for length in self.lengths]

        if self.reader.cache is not None:
            self.cached = self.decided - 1
        self.drafted = torch.zeros_like(self.decided)
        if most:
            columns = self.next_columns(most)
            scores = self.restrict_next(answers[examples, accepted, 1:])
            scores = self.sampler.process(scores, self.rows_before(most))
            self.draft_weights = q = self.sampler.distribution(scores)
            drawn = self.sampler.draw_from(q, uniforms[:, length + 1 : length + 1 + most])
            # Behind a sentence end the blanks that are left are not those that were asked for.
            self.drafted = (columns >= 0).sum(1).masked_fill(ended, 0)
            is_draft = torch.arange(most, device=drawn.device) < self.drafted[:, None]
            self.canvas.scatter_(1, self.place_of(columns.masked_fill(~is_draft, -1)), drawn)
        left, lengths, drafted = torch.stack([self.total - self.decided, self.decided, self.drafted]).tolist()
        self.note(left, lengths)
        self.most_drafted = max(drafted)
        self.most_unread = 1 if self.reader.cache is not None else self.most_decided
        self.is_in_step = len(self.left) == 1

    # Rows

    def ask(self, width: int, asking: int, targets: int, ahead: int = 0) -> torch.Tensor:
        """Reads the `width` rows that end `ahead` rows behind the last decided one; the last `asking` of them ask.

        Returns:
            The answers `[active, asking, targets, vocab]`, in the model's dtype.
        """
        return self.reader.ask(
            self.canvas,
            self.rows,
            first=self.cached,
            stop=self.decided + self.drafted,
            end=self.decided + ahead,
            width=width,
            asking=asking,
            targets=targets,
            longest=self.most_decided + ahead,
            is_in_step=self.is_in_step,
        )

    def uniforms(self, draws: int) -> torch.Tensor:
        """The pass's random numbers, float64 `[active, draws]`."""
        active = [number if left else None for number, left in zip(self.numbers, self.left, strict=True)]
        return self.sampler.uniforms(self.examples, active)[:, :draws]

    def next_rows(self, count: int) -> torch.Tensor:
        """The numbers of the next rows, int64 `[active, count]`; one beyond all rows where there are no more."""
        rows = self.decided[:, None] + torch.arange(count, device=self.decided.device)
        return rows.where(rows < self.total[:, None], self.columns.shape[1] - 1)

    def next_columns(self, count: int) -> torch.Tensor:
        """The columns of the next rows, int64 `[active, count]`, -1 where there are no more."""
        return self.columns.gather(1, self.next_rows(count))

    def place_of(self, columns: torch.Tensor) -> torch.Tensor:
        """Where in the canvas columns are, with the place that is read by nobody for -1."""
        return columns.where(columns >= 0, self.canvas.shape[1] - 1)

    def restrict(self, logits: torch.Tensor, columns: torch.Tensor, rightmost: torch.Tensor) -> torch.Tensor:
        """Logits without the tokens that may not stand in a column: sentence ends left of a token, other sets' tokens.

        Args:
            logits: `[active, places, vocab]`.
            columns: int64 `[active, places]`, the columns that they are about.
            rightmost: int64 `[active, places or 1]`, the last column that holds a token when these are filled.
        """
        scores = self.sampler.forbid_end(logits, columns < rightmost)
        if self.token_sets is None:
            return scores
        is_allowed = self.token_sets[self.column_sets.gather(1, self.place_of(columns))]
        return scores.masked_fill(~is_allowed, -torch.inf)

    def restrict_next(self, logits: torch.Tensor) -> torch.Tensor:
        """`restrict` for the next blanks, which are filled one after the other: `[active, places, vocab]`."""
        columns = self.next_columns(logits.shape[1])
        rightmost = torch.cat([self.rightmost[:, None], columns[:, :-1]], dim=1).cummax(1).values
        return self.restrict(logits, columns, rightmost)

    def rows_before(self, places: int, follows_drafts: bool = False) -> torch.Tensor | None:
        """The tokens of the rows before each of the next places, for processors: int64 `[active, places, rows]`.

        Shorter examples repeat their first row in front. Where places follow drafts, place i has i of them before it.
        """
        if not self.sampler.processors:
            return None
        ahead = torch.arange(places if follows_drafts else 1, device=self.decided.device)
        stop = (self.decided[:, None] + ahead).expand(-1, places)
        width = self.most_decided + len(ahead) - 1
        rows = (stop[..., None] + torch.arange(-width, 0, device=stop.device)).clamp(min=0)
        # Behind the last draft there is nothing to read.
        rows = rows.where(rows < (self.decided + self.drafted)[:, None, None], 0)
        return self.canvas.gather(1, self.columns.gather(1, rows.flatten(1))).view(rows.shape)

    def commit(
        self, rows: torch.Tensor, tokens: torch.Tensor, logprobs: torch.Tensor, count: torch.Tensor
    ) -> torch.Tensor:
        """Makes the first `count` of the tokens for the next rows final, but none behind an end of sentence.

        Args:
            rows: int64 `[active, places]`, their numbers, see [`next_rows`].
            tokens: int64 `[active, places]`.
            logprobs: float32 `[active, places]`, nats.
            count: int64 `[active]`.

        Returns:
            In which examples a sentence ended, bool `[active]`.
        """
        places = torch.arange(tokens.shape[1], device=tokens.device)
        count = torch.minimum(count, self.total - self.decided)
        ends = self.sampler.eos_token_ids
        if ends is not None:
            is_end = torch.isin(tokens, ends) & (places < count[:, None])
            ended = is_end.any(1)
            count = torch.where(ended, is_end.long().argmax(1) + 1, count)
        is_taken = places < count[:, None]
        columns = self.columns.gather(1, rows).masked_fill(~is_taken, -1)
        rows = rows.where(is_taken, self.columns.shape[1] - 1)
        self.canvas.scatter_(1, self.place_of(columns), tokens)
        self.logprobs.scatter_(1, rows, logprobs)
        self.steps.scatter_(1, rows, self.reader.passes - 1)
        self.decided = self.decided + count
        if ends is None:
            return torch.zeros_like(is_taken[:, 0])
        self.rightmost = torch.maximum(self.rightmost, columns.amax(1))
        self.close_blanks(columns.gather(1, (count - 1).clamp(min=0)[:, None]).masked_fill(~ended[:, None], 1 << 60))
        return ended

    def commit_in_step(self, tokens: torch.Tensor, logprobs: torch.Tensor) -> None:
        """`commit` of one token of each example, all of which have equally many rows; with less work."""
        row = slice(self.most_decided, self.most_decided + 1)
        self.canvas.scatter_(1, self.columns[:, row], tokens)
        self.logprobs[:, row], self.steps[:, row] = logprobs, self.reader.passes - 1
        self.decided = self.decided + 1

    def close_blanks(self, end: torch.Tensor) -> None:
        """Takes the blanks to the right of column `end` `[active, 1]` out of the order, and pads them."""
        numbers = torch.arange(self.columns.shape[1], device=end.device)
        is_closed = (numbers >= self.decided[:, None]) & (self.columns > end)
        closed = self.place_of(self.columns.masked_fill(~is_closed, -1))
        self.canvas.scatter_(1, closed, self.pad_token.expand_as(closed))
        kept_first = is_closed.long().argsort(dim=1, stable=True)
        self.columns = self.columns.masked_fill(is_closed, -1).gather(1, kept_first)
        self.total = (self.columns >= 0).sum(1)

    # The batch

    def note(self, left: list[int], lengths: list[int]) -> None:
        """Takes down how many blanks of each example are left, and how many of its rows are decided."""
        self.bar.update(sum(self.left) - sum(left))
        self.left, self.lengths = left, lengths

    def store(self) -> None:
        """Writes what is known of the active examples to the results of the whole batch."""
        for name, whole in self.results.items():
            whole[self.examples] = getattr(self, name)

    def leave(self) -> None:
        """Takes the examples that are done out of the batch, once they are a quarter of it: the cache is copied."""
        if all(self.left) or not any(self.left):
            return
        if self.keeps_batch or 4 * self.left.count(0) < len(self.left):
            self.is_in_step = False
            return
        self.store()
        cache, device = self.reader.cache, self.examples.device
        staying = [index for index, left in enumerate(self.left) if left]
        leaving = [index for index, left in enumerate(self.left) if not left]
        stays, leaves = on_device(staying, device), on_device(leaving, device)
        if self.reader.is_read:
            if self.keeps_cache:
                self.left_caches.append((self.examples[leaves], cache.take(leaves)))
            cache.keep(stays)
        for name in self.STATE:
            setattr(self, name, getattr(self, name)[stays])
        if self.draft_weights is not None:
            self.draft_weights = self.draft_weights[stays]
        self.numbers, self.left, self.lengths = (
            [each[index] for index in staying] for each in (self.numbers, self.left, self.lengths)
        )

    def whole_cache(self) -> CanvasCache | None:
        """The cache of all examples, those that have left included; `None` if nothing was read."""
        batch = len(self.results["decided"])
        if not self.reader.is_read:
            return None
        if len(self.examples) == batch:
            return self.reader.cache
        whole = self.reader.cache.take(torch.zeros(batch, dtype=torch.int64))
        for examples, part in [*self.left_caches, (self.examples, self.reader.cache)]:
            whole.put(examples, part)
        return whole

    def show(self) -> None:
        """Shows the canvases as they are to the streamer."""
        if self.streamer is None or not hasattr(self.streamer, "put_draft"):
            return
        self.store()
        canvas = self.results["canvas"][:, :-1].cpu()
        if not getattr(self.streamer, "_takes_canvas_state", False):
            self.streamer.put_draft(value=canvas)
            return
        columns = self.results["columns"].cpu()
        decided, drafted = (self.results[name].cpu()[:, None] for name in ("decided", "drafted"))
        numbers = torch.arange(columns.shape[1])
        # Rows of padding write behind the last column.
        places = columns.where(columns >= 0, canvas.shape[1])
        by_row = {
            "filled": numbers < decided,
            "steps": self.results["steps"].cpu(),
            "confidence": self.results["logprobs"].cpu().exp(),
            "drafted": (numbers >= decided) & (numbers < decided + drafted),
        }
        # Padded and closed columns have no row, and nothing to wait for.
        by_column = {
            name: torch.full((len(canvas), canvas.shape[1] + 1), empty, dtype=by_row[name].dtype)
            .scatter(1, places, by_row[name])
            .narrow(1, 0, canvas.shape[1])
            for name, empty in (("filled", True), ("steps", -1), ("confidence", torch.nan), ("drafted", False))
        }
        by_column["confidence"].masked_fill_(by_column["steps"] < 0, torch.nan)
        self.streamer.put_draft(value=canvas, **by_column)


def accepts(p: torch.Tensor, q: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Whether drafts are accepted, bool `[...]`: with probability min(1, p / q) of the draft's two probabilities."""
    return uniforms * q < p


__all__ = [
    "CanvasFilling",
    "DecodingPlan",
    "TokenSampler",
    "certainty",
    "check_order_free",
    "draw_from",
    "log_probs_of",
]
