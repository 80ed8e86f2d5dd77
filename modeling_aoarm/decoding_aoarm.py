# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The ways of decoding. They differ in how many rows of a pass ask, about how many targets, and in what they commit:

| way               | rows that ask                         | targets                             |
| ----------------- | ------------------------------------- | ----------------------------------- |
| [`FixedOrder`]    | the last committed one                | the next, or the next few           |
| [`AdaptiveOrder`] | the last committed one                | all that remain                     |
| [`Speculation`]   | the last committed one and the drafts | the next, to verify; more, to draft |

The loop that calls them is in [`~modeling_aoarm.decoding_loop_aoarm`]. A new way is a subclass of [`DecodingWay`] with
an entry in `ADAPTIVE_ORDERS`, see `docs/extending.md`.
"""

import functools
import math
import re
from collections.abc import Callable, Sequence

import torch
from transformers.generation import GenerationConfig

from .canvas_aoarm import CONTEXT_ORDERS, CanvasRows, is_count, is_named
from .compat_aoarm import generation_config_values
from .decoding_loop_aoarm import CanvasFilling, Filled, Progress, on_device


# How many logits are compared at once to find the most certain targets on a CPU: what fits into its cache.
LOGITS_IN_CACHE = 2**19

# About minus the logarithm of the smallest positive number: more certain than any other target, and finite.
MOST_CERTAIN = 100.0


def certainty(logits: torch.Tensor, rule: str) -> torch.Tensor:
    """How certain a model is about each target, `[...]` from logits `[..., vocab]`.

    `"confidence"` is the largest probability, `"entropy"` minus the entropy, `"margin"` the gap between the two largest
    probabilities, all of the model's own distribution, before any processing. They are returned on scales that tell
    certain targets apart and have rounding errors of about 1e-5 everywhere: the log-odds of the likeliest token, minus
    the logarithm of the entropy in nats, and minus the logarithm of 1 - the gap.

    They are rounded to three decimals. Behind a single given token all targets look the same to a model, and rounding
    errors, which depend on the batch, should not choose among them.

    Raises:
        ValueError: another rule.
    """
    largest, likeliest = logits.max(dim=-1, keepdim=True)
    logits = logits - largest
    # The weights of the other tokens relative to the likeliest: in single precision 1 - p would lose their sum.
    others = (logits.exp() if rule == "entropy" else logits.exp_()).scatter_(-1, likeliest, 0.0)
    rest = others.sum(-1)
    if rule == "confidence":
        certain = -rest.log()
    elif rule == "entropy":
        # Forbidden tokens have weight 0 and logit -inf, whose product would be NaN.
        spread = -(others * logits.clamp_(min=torch.finfo(logits.dtype).min)).sum(-1)
        certain = -(rest.log1p() + spread / (1 + rest)).log()
    elif rule == "margin":
        certain = -((rest + others.amax(-1)) / (1 + rest)).log()
    else:
        raise ValueError(f"`rule` must be 'confidence', 'entropy' or 'margin', got {rule!r}; or override `certainty`.")
    # Where only one token is possible, no target is more certain.
    return certain.clamp(max=MOST_CERTAIN).round(decimals=3)


class DecodingWay:
    """A way of decoding: which rows ask about which targets, and which tokens are committed.

    An object serves one call of `generate`.
    """

    # Whether a row asks about several targets in some pass.
    asks_about_several = False
    # How many drafts a pass verifies at most, and whether that changes from pass to pass.
    draft_length = 0
    chooses_lengths = False

    def draws(self) -> list[int]:
        """How many random numbers a pass takes for each example, whatever the rest of the batch is."""
        raise NotImplementedError

    def extra_slots(self, is_two_stream: bool) -> int:
        """How many slots of the cache a pass needs beyond those of the rows: for drafts and copies of rows."""
        raise NotImplementedError

    def step(self, filling: CanvasFilling) -> None:
        """Makes a pass and commits tokens of each example with remaining blanks."""
        raise NotImplementedError

    def keep(self, examples: torch.Tensor) -> None:
        """Drops all examples except these, int64 `[examples]`, from the way's own state."""


class FixedOrder(DecodingWay):
    """Fills the next blanks of an order that is known before: one or several a pass.

    Args:
        sizes: for each example, how many blanks each pass fills.
    """

    # Which blanks a pass fills, if that is up to the model.
    limit: "Limit | None" = None

    def __init__(self, sizes: list[list[int]]):
        self.sizes = sizes
        self.most = max(self.draws(), default=0)
        self.asks_about_several = self.most > 1

    def draws(self) -> list[int]:
        return [max(sizes, default=0) for sizes in self.sizes]

    def extra_slots(self, is_two_stream: bool) -> int:
        return max(self.most - 1, 0)

    def step(self, filling: CanvasFilling) -> None:
        counts = []
        for each in filling.progress:
            sizes = self.sizes[each.example]
            counts.append(min(sizes[min(filling.round, len(sizes) - 1)], each.remaining) if each.remaining else 0)
        most = self.most if filling.runner.has_fixed_shapes else max(counts)
        uniforms = filling.draw_uniforms(most)
        filled, count = self.fill_next(filling, on_device(counts, filling.committed.device), uniforms)
        reread = self.rows_to_reread(filling)
        filling.commit(filled, count, read=filling.committed - reread)
        filling.note_progress(counts if self.limit is None else None, reread)

    def fill_next(
        self, filling: CanvasFilling, count: torch.Tensor, uniforms: torch.Tensor
    ) -> tuple[Filled, torch.Tensor]:
        """Makes the pass.

        Args:
            filling: the canvases.
            count: int64 `[active]`, how many blanks are to be filled.
            uniforms: `[active, most]`, random numbers, as many as the largest count.

        Returns:
            Tokens for the next rows, `[active, most]`, and how many of them are committed, int64 `[active]`.
        """
        most = uniforms.shape[1]
        if most > 1:
            filling.read_context()
        read = functools.partial(self.read_next, filling, uniforms)
        return filling.ask(most, most_unread=self.most, read=read), count

    @staticmethod
    def read_next(
        filling: CanvasFilling, uniforms: torch.Tensor, states: torch.Tensor, compute_logits: Callable
    ) -> Filled:
        """Fills the next rows from the last row's states about them, `[active, 1, most, hidden]`."""
        return filling.fill(states[:, 0], compute_logits, uniforms)

    def rows_to_reread(self, filling: CanvasFilling) -> int:
        """How many rows of a pass are read again by the next one."""
        return 0


class AdaptiveOrder(FixedOrder):
    """Fills the blanks that the model is most certain about, by one of the rules of [`certainty`].

    Args:
        sizes: for each example, how many blanks each pass fills at most.
        limit: which of them it fills, if that is up to the model.
    """

    rule = "confidence"

    def __init__(self, sizes: list[list[int]], limit: "Limit | None" = None):
        super().__init__(sizes)
        self.limit = limit
        self.blanks = max(map(sum, sizes), default=0)
        self.asks_about_several = True

    def extra_slots(self, is_two_stream: bool) -> int:
        return max(self.blanks - 1, 0)

    def certainty(self, logits: torch.Tensor) -> torch.Tensor:
        """How certain the model is about each target, `[active, targets]` from logits `[active, targets, vocab]`."""
        return certainty(logits, self.rule)

    def rows_to_reread(self, filling: CanvasFilling) -> int:
        # In a single stream the last row's key belongs to its target, which is only chosen now.
        return int(filling.runner.model.config.attention_variant != "two_stream")

    def fill_next(
        self, filling: CanvasFilling, count: torch.Tensor, uniforms: torch.Tensor
    ) -> tuple[Filled, torch.Tensor]:
        targets = self.blanks if filling.runner.has_fixed_shapes else filling.most_remaining
        if targets > 1:
            filling.read_context()
        read = functools.partial(self.choose_and_fill, filling, count, uniforms)
        return filling.ask(targets, most_unread=self.most + self.rows_to_reread(filling), read=read)

    def choose_and_fill(
        self,
        filling: CanvasFilling,
        count: torch.Tensor,
        uniforms: torch.Tensor,
        states: torch.Tensor,
        compute_logits: Callable,
    ) -> tuple[Filled, torch.Tensor]:
        """Puts the blanks to be filled next, and fills them.

        Args:
            filling, count, uniforms: see [`fill_next`].
            states: `[active, 1, targets, hidden]`, the last row's about all remaining blanks.
            compute_logits: maps states to logits.
        """
        states, columns, measures = states[:, 0], filling.next_columns(states.shape[2]), []
        for part, logits in filling.logits_in_parts(states, compute_logits):
            measures.append(self.measure(filling, logits, columns[:, part]))
        if len(measures) == 1:
            # All logits are there.
            states, compute_logits = logits, torch.nn.Identity()
        certain, limited = (torch.cat(each, dim=1) for each in zip(*measures, strict=True))
        order, count = self.rank(certain, limited, columns >= 0, count)
        filling.put_next(order)
        chosen = order[:, : uniforms.shape[1]].to(states.device)
        states = states.gather(1, chosen[..., None].expand(-1, -1, states.shape[2]))
        return filling.fill(states, compute_logits, uniforms), count

    def measure(
        self, filling: CanvasFilling, logits: torch.Tensor, columns: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """How certain the model is about targets, by the order's rule and by the limit's, `[active, targets]` each.

        Args:
            filling: the canvases.
            logits: `[active, targets, vocab]`.
            columns: int64 `[active, targets]`, the targets' columns.
        """
        size = logits.shape[1]
        if logits.device.type == "cpu":
            size = max(1, LOGITS_IN_CACHE // (len(logits) * logits.shape[2]))
        # An order from outside may have a measure of its own.
        has_rule = type(self).certainty is AdaptiveOrder.certainty
        is_same, measures = self.limit is None or (has_rule and self.limit.rule == self.rule), []
        for part, own in zip(logits.split(size, 1), columns.split(size, 1), strict=True):
            scores = filling.restrict(part.float(), own, filling.rightmost[:, None])
            certain = self.certainty(scores)
            measures.append((certain, certain if is_same else certainty(scores, self.limit.rule)))
        return tuple(torch.cat(each, dim=1) for each in zip(*measures, strict=True))

    def rank(
        self, certain: torch.Tensor, limited: torch.Tensor, is_blank: torch.Tensor, count: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Puts the targets to be filled first, the surest before the others, and leaves the rest in sentence order.

        Args:
            certain, limited: see [`measure`].
            is_blank: bool `[active, targets]`; others are not filled.
            count: int64 `[active]`, how many are filled at most.

        Returns:
            The targets' numbers in their new order, int64 `[active, targets]`, and how many are filled, int64
            `[active]`.
        """
        # The leftmost of equally certain targets comes first.
        order = certain.masked_fill(~is_blank, -torch.inf).argsort(dim=1, descending=True, stable=True)
        if self.limit is not None:
            is_sure = self.limit.is_met(limited.gather(1, order)) & is_blank.gather(1, order)
            order = order.gather(1, (~is_sure).long().argsort(dim=1, stable=True))
            count = torch.minimum(is_sure.sum(1).clamp(min=1), count)
        return torch.minimum(order.argsort(dim=1), count[:, None]).argsort(dim=1, stable=True), count


class EntropyOrder(AdaptiveOrder):
    """[`AdaptiveOrder`] by the smallest entropy."""

    rule = "entropy"


class MarginOrder(AdaptiveOrder):
    """[`AdaptiveOrder`] by the largest gap between the two largest probabilities."""

    rule = "margin"


class Limit:
    """Says which blanks a pass fills, where that is up to the model. It fills at least the surest one.

    Args:
        bound: the number in `tokens_per_step="name(bound)"`.
    """

    # The rule of [`certainty`] that it reads, and the largest bound that has a meaning.
    rule = "confidence"
    largest_bound = math.inf

    def __init__(self, bound: float):
        self.bound = bound

    def is_met(self, certain: torch.Tensor) -> torch.Tensor:
        """Whether blanks are filled, bool `[active, targets]`, from their certainty by `rule`, the surest first.

        The surest by the decoding order come first, which may have another rule.
        """
        raise NotImplementedError


class Threshold(Limit):
    """All blanks are filled whose likeliest token has a probability above the bound (Fast-dLLM, 2505.22618)."""

    largest_bound = 1

    def is_met(self, certain: torch.Tensor) -> torch.Tensor:
        # Certainty is in log-odds, and finite.
        return certain > torch.tensor(self.bound, dtype=torch.float64).logit()


class EntropyBound(Limit):
    """The surest blanks are filled as long as the sum of their entropies without the largest is below the bound.

    In nats. What is lost by drawing tokens that do not see each other is their mutual information, which is at most
    that sum (entropy-bounded unmasking, 2505.24857).
    """

    rule = "entropy"

    def is_met(self, certain: torch.Tensor) -> torch.Tensor:
        entropies = (-certain).exp()
        return entropies.cumsum(1) - entropies.cummax(1).values < self.bound


# The names that `tokens_per_step` may have with a bound.
LIMITS: dict[str, type[Limit]] = {"threshold": Threshold, "entropy": EntropyBound}

# The values of `decoding_order` whose orders depend on the tokens.
ADAPTIVE_ORDERS: dict[str, type[DecodingWay]] = {
    "confidence": AdaptiveOrder,
    "entropy": EntropyOrder,
    "margin": MarginOrder,
}


# `draft_length="auto"` verifies at most so many drafts a pass.
MOST_DRAFTS = 8
# How many rows a pass computes, all streams of all examples together, in the time that it takes to read the weights.
# Measured for CPUs (`examples/benchmarks/speculation.py`); for accelerators an estimate.
FREE_ROWS = {"cpu": 24}
FREE_ROWS_ELSEWHERE = 256


class DraftPolicy:
    """Chooses how many drafts a pass makes for the next one, from how many were accepted so far.

    A draft is taken to be accepted with the same probability everywhere. It is estimated from the drafts of the last
    passes, and is high at first. The time of a pass is taken to grow linearly in its rows, besides a constant for
    drafts of any number. The policy chooses the number of drafts with the most tokens for the time, as long as all of
    them could be rejected without the whole filling taking more than `1 + LOSS` times the time of one by one.

    Args:
        blanks: how many blanks are filled, the most of any example.
        streams: how many rows a pass computes for a blank without drafts: 2 in `two_stream`, else 1.
        free_rows: how many rows double the time of a pass.
    """

    LOSS = 0.03
    # What a pass with drafts takes longer, however few they are, by the number of streams. One row of one stream is a
    # product with a vector, which is quicker than its share of a product with a matrix.
    OVERHEAD = {1: 0.65, 2: 0.15}
    # A pass's drafts count so much of what those of the pass after it do.
    MEMORY = 0.95
    # Drafts that count as accepted and as verified before there are any.
    PRIOR_ACCEPTED, PRIOR_VERIFIED = 2.0, 2.5

    def __init__(self, blanks: int, streams: int, free_rows: int):
        self.streams, self.free_rows = streams, free_rows
        self.credit = self.LOSS * blanks
        self.accepted = self.verified = 0.0

    def time(self, drafts: int, further: int, batch: int) -> float:
        """The time of a pass, relative to one without drafts.

        Args:
            drafts: how many drafts it verifies.
            further: how many drafts it makes for the next pass.
            batch: how many examples it reads.
        """
        rows = (1 + drafts) * (self.streams + further)
        overhead = self.OVERHEAD[self.streams] if drafts or further else 0.0
        return (self.free_rows + batch * rows) / (self.free_rows + batch * self.streams) + overhead

    def choose(self, drafts: int, most: int, batch: int) -> int:
        """How many drafts to make, at most `most`, in a pass that verifies `drafts`."""
        likely = (self.accepted + self.PRIOR_ACCEPTED) / (self.verified + self.PRIOR_VERIFIED)
        best, best_speed = 0, 1.0
        for length in range(1, most + 1):
            speed = sum(likely**index for index in range(length + 1)) / self.time(length, length, batch)
            risk = self.time(drafts, length, batch) + self.time(length, 0, batch) - 2
            if speed > best_speed and risk <= self.credit:
                best, best_speed = length, speed
        return best

    def learn(self, verified: int, accepted: int, filled: int, time: float) -> None:
        """Takes notice of a pass.

        Args:
            verified, accepted: how many drafts were verified up to the first rejected one of each example, and how many
                of them were accepted, summed over examples.
            filled: by how much the most blanks that an example has left went down.
            time: what the pass took, relative to one without drafts.
        """
        self.accepted = self.MEMORY * self.accepted + accepted
        self.verified = self.MEMORY * self.verified + verified
        self.credit += filled - time


class Speculation(DecodingWay):
    """Any-subset speculative decoding (2504.20456), one pass a round, in an order that is known before.

    A pass reads the last committed row and the drafts behind it. Row i of these gives the distribution p of the blank
    after it. By p the draft there, which was drawn from q, is accepted with probability min(1, p / q), or replaced by a
    draw from the residual max(0, p - q). So tokens follow p exactly. The rows also ask about the blanks further on. The
    last row with an accepted token draws the next drafts from these logits, before it knows its own successor. Such
    drafts are a little worse than those of a pass of their own, and cost none.

    Args:
        draft_length: how many drafts a pass verifies; `"auto"`: as many as a [`DraftPolicy`] chooses.
        blanks: how many blanks each example has.
    """

    asks_about_several = True

    def __init__(self, draft_length: int | str, blanks: list[int]):
        self.chooses_lengths = draft_length == "auto"
        self.draft_length, self.blanks = MOST_DRAFTS if self.chooses_lengths else draft_length, blanks
        # The policy of each example in the whole batch.
        self.policies: list[DraftPolicy] = []
        self.most_blanks = max(blanks, default=0)
        # The distributions that the drafts were drawn from, `[active, drafts, vocab]`.
        self.draft_probs: torch.Tensor | None = None

    def draws(self) -> list[int]:
        # For the acceptance of each draft, the token after them, and each new draft.
        return [2 * self.draft_length + 1] * len(self.blanks)

    def extra_slots(self, is_two_stream: bool) -> int:
        drafts = min(self.draft_length, max(self.most_blanks - 1, 0))
        # In a single stream each asking row has a copy for each draft.
        return drafts + (0 if is_two_stream else (1 + drafts) * drafts)

    def keep(self, examples: torch.Tensor) -> None:
        if self.draft_probs is not None:
            self.draft_probs = self.draft_probs[examples]

    def step(self, filling: CanvasFilling) -> None:
        length, is_fixed, before = self.draft_length, filling.runner.has_fixed_shapes, filling.progress
        lengths = self.choose_lengths(filling) if self.chooses_lengths else [length] * len(before)
        most = min(max(lengths), (self.most_blanks if is_fixed else filling.most_remaining) - 1)
        drafts = most if is_fixed and filling.round else max(each.drafted for each in before)
        uniforms = filling.draw_uniforms(2 * length + 1)
        if drafts or most:
            self.verify_and_draft(filling, uniforms, drafts, most)
            if self.chooses_lengths:
                filling.drafted = filling.drafted.minimum(on_device(lengths, filling.drafted.device))
        else:
            read = functools.partial(FixedOrder.read_next, filling, uniforms[:, length : length + 1])
            count = (filling.rows.totals - filling.committed).clamp(max=1)
            filling.commit(filling.ask(1, read=read), count, read=filling.committed)
        filling.note_progress()
        if self.chooses_lengths:
            self.learn(before, filling.progress, lengths)

    def verify_and_draft(self, filling: CanvasFilling, uniforms: torch.Tensor, drafts: int, most: int) -> None:
        """Makes a pass that verifies up to `drafts` drafts of each example and makes `most` for the next pass."""
        read = functools.partial(self.read_next, filling, uniforms)
        filled, accepted, logits = filling.ask(1 + most, asking=1 + drafts, drafts=drafts, read=read)
        count = torch.minimum(accepted + 1, filling.rows.totals - filling.committed)
        has_ended = filling.commit(filled, count, read=filling.committed + accepted)
        filling.drafted = torch.zeros_like(filling.drafted)
        if most:
            self.make_drafts(filling, logits, uniforms[:, self.draft_length + 1 :][:, :most], has_ended)

    def group(self, progress: list[Progress]) -> dict[DraftPolicy, list[int]]:
        """The active examples of each policy, by their numbers in `progress`."""
        groups: dict[DraftPolicy, list[int]] = {}
        for index, each in enumerate(progress):
            if each.remaining:
                groups.setdefault(self.policies[each.example], []).append(index)
        return groups

    def choose_lengths(self, filling: CanvasFilling) -> list[int]:
        """How many drafts this pass makes for the next one, for each example of the filling."""
        if not self.policies:
            # With a generator for each example, samples must not depend on the batch: each has a policy of its own.
            is_shared = not isinstance(filling.sampler.generator, Sequence)
            streams = 2 if filling.runner.model.config.attention_variant == "two_stream" else 1
            rows = FREE_ROWS.get(filling.committed.device.type, FREE_ROWS_ELSEWHERE)
            shared = DraftPolicy(self.most_blanks, streams, rows)
            self.policies = [shared if is_shared else DraftPolicy(each, streams, rows) for each in self.blanks]
        lengths = [0] * len(filling.progress)
        for policy, indices in self.group(filling.progress).items():
            own = [filling.progress[index] for index in indices]
            most = min(self.draft_length, max(each.remaining for each in own) - 1)
            length = policy.choose(max(each.drafted for each in own), most, len(own))
            for index in indices:
                lengths[index] = length
        return lengths

    def learn(self, before: list[Progress], after: list[Progress], lengths: list[int]) -> None:
        """Tells the policies what a pass did that made `lengths` drafts for the next one."""
        for policy, indices in self.group(before).items():
            was, now = ([progress[index] for index in indices] for progress in (before, after))
            accepted = [new.committed - old.committed - 1 for old, new in zip(was, now, strict=True)]
            verified = [min(old.drafted, own + 1) for old, own in zip(was, accepted, strict=True)]
            filled = max(each.remaining for each in was) - max(each.remaining for each in now)
            time = policy.time(max(each.drafted for each in was), lengths[indices[0]], len(was))
            policy.learn(sum(verified), sum(accepted), filled, time)

    def read_next(
        self, filling: CanvasFilling, uniforms: torch.Tensor, states: torch.Tensor, compute_logits: Callable
    ) -> tuple[Filled, torch.Tensor, torch.Tensor | None]:
        """Verifies the drafts, and draws the token behind the accepted ones.

        Args:
            filling: the canvases.
            uniforms: the pass's random numbers.
            states: `[active, drafts + 1, targets, hidden]`.
            compute_logits: maps states to logits.

        Returns:
            Tokens for the next rows, `[active, drafts + 1]`; how many of them are accepted drafts, int64 `[active]`;
            and float32 logits for the next drafts, `[active, targets - 1, vocab]`, `None` if there are none.
        """
        drafts, sampler, device = states.shape[1] - 1, filling.sampler, filling.committed.device
        logits = compute_logits(states[:, :, 0]).to(device).float()
        p = sampler.distribution(filling.process_next(logits, follows_drafts=True))
        tokens = filling.rows.tokens.gather(1, filling.next_rows(1 + drafts))
        accepted, weights = self.verify(p, tokens[:, :drafts], filling.drafted, uniforms[:, :drafts])
        new = sampler.draw_from(weights, uniforms[:, self.draft_length])
        filled = Filled.by(logits, tokens.scatter(1, accepted[:, None], new[:, None]))
        examples = torch.arange(len(states), device=states.device)
        further = states[examples, accepted.to(states.device), 1:]
        return filled, accepted, compute_logits(further).to(device).float() if further.shape[1] else None

    def verify(
        self, p: torch.Tensor, drafts: torch.Tensor, drafted: torch.Tensor, uniforms: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Accepts drafts from the first to the first rejected one.

        Args:
            p: `[active, drafts + 1, vocab]`, the distributions of the next blanks.
            drafts: int64 `[active, drafts]`.
            drafted: int64 `[active]`, how many of them there are.
            uniforms: float64 `[active, drafts]`.

        Returns:
            How many drafts are accepted, int64 `[active]`, and the weights of the token behind them, `[active, vocab]`.
        """
        if drafts.shape[1] == 0:
            return torch.zeros_like(drafted), p[:, 0]
        examples = torch.arange(len(p), device=p.device)
        q = self.draft_probs[:, : drafts.shape[1]]
        p_drafts, q_drafts = (each.gather(2, drafts[..., None])[..., 0] for each in (p[:, :-1], q))
        passes = accepts(p_drafts, q_drafts, uniforms)
        passes &= torch.arange(drafts.shape[1], device=p.device) < drafted[:, None]
        accepted = passes.long().cumprod(1).sum(1)
        rejected = q[examples, accepted.clamp(max=drafts.shape[1] - 1)] * (accepted < drafted)[:, None]
        p_next = p[examples, accepted]
        residual = (p_next - rejected).clamp(min=0)
        # Rounding can reject a draft where p and q are equal.
        return accepted, torch.where(residual.sum(-1, keepdim=True) > 0, residual, p_next)

    def make_drafts(
        self, filling: CanvasFilling, logits: torch.Tensor, uniforms: torch.Tensor, has_ended: torch.Tensor | None
    ) -> None:
        """Draws drafts for the next blanks from logits `[active, drafts, vocab]`."""
        count = logits.shape[1]
        self.draft_probs = filling.sampler.distribution(filling.process_next(logits))
        drawn = filling.sampler.draw_from(self.draft_probs, uniforms)
        filling.drafted = (filling.next_columns(count) >= 0).sum(1)
        if has_ended is not None:
            # The blanks that remain behind a sentence end are not those that were asked about.
            filling.drafted = filling.drafted.masked_fill(has_ended, 0)
        rows, is_draft = filling.next_rows(count), torch.arange(count, device=drawn.device) < filling.drafted[:, None]
        filling.rows.tokens.scatter_(1, rows.where(is_draft, filling.rows.columns.shape[1] - 1), drawn)


def accepts(p: torch.Tensor, q: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Whether drafts are accepted, bool `[...]`: with probability min(1, p / q) of the draft's two probabilities."""
    return uniforms * q < p


# Options of `generate`

DECODING_OPTIONS = ("decoding_order", "tokens_per_step", "draft_length")
SCHEDULE = re.compile(r"(linear|cosine)\((\d{1,9})\)")
BOUND = re.compile(r"(\w{1,99})\((\d{1,9}(?:\.\d{1,18})?|\.\d{1,18})\)")


def parse_limit(tokens_per_step: int | str | None) -> Limit | None:
    """What `"threshold(p)"` and `"entropy(bound)"` stand for; `None` for anything else."""
    match = BOUND.fullmatch(tokens_per_step) if isinstance(tokens_per_step, str) else None
    if match is None or match[1] not in LIMITS or float(match[2]) > LIMITS[match[1]].largest_bound:
        return None
    return LIMITS[match[1]](float(match[2]))


def check_decoding_options(
    decoding_order: object, tokens_per_step: int | str | None, draft_length: int | str | None
) -> None:
    """Checks how many blanks a pass fills, and that the options fit each other.

    Raises:
        ValueError: see [`AOARMGenerationConfig`].
    """
    is_schedule = isinstance(tokens_per_step, str) and (match := SCHEDULE.fullmatch(tokens_per_step)) and int(match[2])
    is_limit = parse_limit(tokens_per_step) is not None
    if tokens_per_step is not None and not is_schedule and not is_limit and not is_count(tokens_per_step):
        raise ValueError(
            "`tokens_per_step` must be an integer of at least 1, 'linear(n)' or 'cosine(n)' with n passes, "
            "'threshold(p)' with a probability such as 0.9, or 'entropy(bound)' with a number of nats such as 0.1; got "
            f"{tokens_per_step!r}."
        )
    if draft_length is not None and not is_named(draft_length, "auto") and not is_count(draft_length):
        raise ValueError(f"`draft_length` must be an integer of at least 1 or 'auto', got {draft_length!r}.")
    if conflict := find_conflict(decoding_order, tokens_per_step, draft_length):
        raise ValueError(conflict)


def find_conflict(
    decoding_order: object, tokens_per_step: int | str | None, draft_length: int | str | None
) -> str | None:
    """Says why checked options exclude each other; `None` if they do not."""
    is_adaptive, names = is_named(decoding_order, *ADAPTIVE_ORDERS), ", ".join(map(repr, ADAPTIVE_ORDERS))
    if parse_limit(tokens_per_step) is not None and decoding_order is not None and not is_adaptive:
        order = decoding_order if isinstance(decoding_order, str) else "a tensor"
        return (
            f"`tokens_per_step={tokens_per_step!r}` fills the blanks that the model is surest about, so "
            f"`decoding_order` must be {names} or left out, got {order!r}."
        )
    if draft_length is not None and is_adaptive:
        return (
            f"`draft_length` needs an order that is known before, got decoding_order={decoding_order!r}, which depends "
            f"on the tokens, with draft_length={draft_length}."
        )
    if draft_length is not None and tokens_per_step not in (None, 1):
        return (
            "`draft_length` and `tokens_per_step` above 1 exclude each other: drafts keep the one-by-one distribution, "
            f"several tokens a step do not. Got draft_length={draft_length} and tokens_per_step={tokens_per_step!r}."
        )
    return None


def resolve_decoding_options(*levels: dict[str, object]) -> dict[str, object]:
    """Merges what the call says, the generation config of the call, and the model's.

    The first level that sets an option wins. It also wins over a later level's option that it excludes: a call with
    drafts ignores a config's adaptive order and tokens per step, and a call with `tokens_per_step` (also 1) ignores a
    config's drafts.

    Args:
        *levels: `decoding_order`, `tokens_per_step` and `draft_length`, `None` for what is left open.

    Raises:
        ValueError: see [`check_decoding_options`].
    """
    chosen: dict[str, object] = dict.fromkeys(DECODING_OPTIONS)
    for level in levels:
        check_decoding_options(**level)
        excludes_drafts = chosen["tokens_per_step"] is not None
        for name, value in level.items():
            is_excluded = find_conflict(**chosen | {name: value}) or (name == "draft_length" and excludes_drafts)
            if chosen[name] is None and not is_excluded:
                chosen[name] = value
    return chosen


def step_sizes(tokens_per_step: int | str | None, blanks: int) -> list[int]:
    """How many of an example's blanks each forward pass fills, or may fill; the numbers sum to `blanks`.

    A schedule over n passes fills at least one blank in each, so short canvases need fewer passes.
    """
    if parse_limit(tokens_per_step) is not None:
        return [blanks] if blanks else []
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


def way_of_decoding(
    decoding_order: str | torch.Tensor,
    tokens_per_step: int | str | None,
    draft_length: int | str | None,
    blanks: list[int],
) -> DecodingWay:
    """The way that options ask for, for canvases with so many blanks each; the options are checked."""
    if draft_length:
        return Speculation(draft_length, blanks)
    sizes = [step_sizes(tokens_per_step, count) for count in blanks]
    if is_named(decoding_order, *ADAPTIVE_ORDERS):
        return ADAPTIVE_ORDERS[decoding_order](sizes, parse_limit(tokens_per_step))
    return FixedOrder(sizes)


def check_way(way: DecodingWay, rows: CanvasRows, attention_variant: str, **options: object) -> None:
    """Raises a ValueError for orders and targets that `causal` does not know.

    Args:
        way: how to decode.
        rows: what to decode.
        attention_variant: the model's.
        **options: what the way was asked for by, for the message.
    """
    rows.check_order(attention_variant)
    if way.asks_about_several and attention_variant == "causal":
        options = {name: "a tensor" if isinstance(each, torch.Tensor) else each for name, each in options.items()}
        raise ValueError(
            "attention_variant='causal' knows no target but the next position: `tokens_per_step`, `draft_length` and "
            f"adaptive orders need another variant. Got {options}."
        )


class AOARMGenerationConfig(GenerationConfig):
    """The library's [`GenerationConfig`] with the defaults of any-order generation.

    A plain `GenerationConfig` with entries of these names has the same effect.

    Args:
        decoding_order: `"left_to_right"` (used when `None`), `"random"`, `"confidence"`, `"entropy"` or `"margin"`.
        tokens_per_step: how many blanks one forward pass fills: a number (1 when `None`), or `"linear(n)"` or
            `"cosine(n)"`, which fill each canvas in n passes, with equally many blanks or with few at first (MaskGIT,
            2202.04200). A sentence end that cuts a pass short can make it more passes. In adaptive orders also as many
            as the model is sure of, and at least one: `"threshold(p)"` ([`Threshold`]) or `"entropy(bound)"`
            ([`EntropyBound`]), whose order is `"confidence"` or `"entropy"` when it is `None`.
        draft_length: how many drafts one forward pass verifies in speculative decoding; `"auto"` for as many as pay
            ([`DraftPolicy`]); `None` for none.
        context_order: the order of the given tokens, also in `score`: `"left_to_right"` (used when `None`) or
            `"suffix_first"`, see `generate`.
        **kwargs: the library's own.

    Raises:
        ValueError: for other values, and for drafts together with an adaptive order or with several tokens per step.
    """

    def __init__(
        self,
        decoding_order: str | None = None,
        tokens_per_step: int | str | None = None,
        draft_length: int | str | None = None,
        context_order: str | None = None,
        **kwargs,
    ):
        self.decoding_order = decoding_order
        self.tokens_per_step = tokens_per_step
        self.draft_length = draft_length
        self.context_order = context_order
        super().__init__(**kwargs)

    def validate(self, *args, **kwargs) -> None:
        for name, allowed in (("decoding_order", decoding_orders()), ("context_order", CONTEXT_ORDERS)):
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise ValueError(f"`{name}` must be {', '.join(map(repr, allowed))} or None, got {value!r}.")
        check_decoding_options(self.decoding_order, self.tokens_per_step, self.draft_length)
        super().validate(*args, **kwargs)

    @classmethod
    def from_model_config(cls, model_config) -> "AOARMGenerationConfig":
        # The library compares with a plain config's attributes, which lacks ours.
        return cls.from_dict(generation_config_values(GenerationConfig.from_model_config(model_config)))


def decoding_orders() -> tuple[str, ...]:
    """The names that `decoding_order` may have."""
    return ("left_to_right", "random", *ADAPTIVE_ORDERS)


def default_context_order(*configs: GenerationConfig | None) -> str:
    """The context order of the first generation config that has one, else `"left_to_right"`."""
    named = (getattr(config, "context_order", None) for config in configs)
    return next((each for each in named if each is not None), "left_to_right")


__all__ = [
    "AOARMGenerationConfig",
    "ADAPTIVE_ORDERS",
    "DECODING_OPTIONS",
    "AdaptiveOrder",
    "DecodingWay",
    "DraftPolicy",
    "EntropyBound",
    "EntropyOrder",
    "FixedOrder",
    "LIMITS",
    "Limit",
    "MarginOrder",
    "Speculation",
    "Threshold",
    "certainty",
    "check_decoding_options",
    "check_way",
    "decoding_orders",
    "default_context_order",
    "parse_limit",
    "resolve_decoding_options",
    "step_sizes",
    "way_of_decoding",
]
