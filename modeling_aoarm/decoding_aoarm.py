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

import math
import re

import torch
from transformers.generation import GenerationConfig

from .canvas_aoarm import CONTEXT_ORDERS, check_count, is_named
from .compat_aoarm import generation_config_values
from .decoding_loop_aoarm import CanvasFilling, on_device


# How many logits are compared at once to find the most certain targets: what fits into a CPU's cache, and for
# accelerators what takes little memory.
LOGITS_AT_ONCE = {"cpu": 2**19}
LOGITS_AT_ONCE_ELSEWHERE = 2**25

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
    # How many drafts a pass verifies.
    draft_length = 0

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
        count = on_device(counts, filling.committed.device)
        logits = self.predict_next(filling, most, count).float()
        tokens = filling.sampler.draw(filling.process_next(logits), filling.draw_uniforms(most))
        reread = self.rows_to_reread(filling)
        filling.commit(tokens, logits, count, read=filling.committed - reread)
        filling.note_progress(counts, reread)

    def predict_next(self, filling: CanvasFilling, most: int, count: torch.Tensor) -> torch.Tensor:
        """Makes the pass. Returns logits about the next rows, `[active, most, vocab]`; `count` of them are filled."""
        if most > 1:
            filling.read_context()
        return filling.ask(most, most_unread=self.most)[:, 0]

    def rows_to_reread(self, filling: CanvasFilling) -> int:
        """How many rows of a pass are read again by the next one."""
        return 0


class AdaptiveOrder(FixedOrder):
    """Fills the blanks that the model is most certain about, by one of the rules of [`certainty`]."""

    rule = "confidence"

    def __init__(self, sizes: list[list[int]]):
        super().__init__(sizes)
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

    def predict_next(self, filling: CanvasFilling, most: int, count: torch.Tensor) -> torch.Tensor:
        targets = self.blanks if filling.runner.has_fixed_shapes else filling.most_remaining
        if targets > 1:
            filling.read_context()
        logits = filling.ask(targets, most_unread=self.most + self.rows_to_reread(filling))[:, 0]
        return self.select_most_certain(filling, logits, most, count)

    def select_most_certain(
        self, filling: CanvasFilling, logits: torch.Tensor, most: int, count: torch.Tensor
    ) -> torch.Tensor:
        """Puts the most certain blanks next; the others stay in sentence order behind them.

        Args:
            filling: the canvases.
            logits: `[active, targets, vocab]`, about the rows that come next.
            most: the largest of `count`.
            count: int64 `[active]`, how many blanks are wanted.

        Returns:
            The logits about the rows that now come next, `[active, most, vocab]`.
        """
        columns = filling.next_columns(logits.shape[1])
        certain = []
        # In parts: float32 copies of all logits would be the largest tensors by far.
        at_once = LOGITS_AT_ONCE.get(logits.device.type, LOGITS_AT_ONCE_ELSEWHERE)
        size = max(1, at_once // (len(logits) * logits.shape[2]))
        for part, own in zip(logits.split(size, 1), columns.split(size, 1), strict=True):
            certain.append(self.certainty(filling.restrict(part.float(), own, filling.rightmost[:, None])))
        certain = torch.cat(certain, dim=1).masked_fill(columns < 0, -torch.inf)
        # The leftmost of equally certain blanks comes first.
        ranks = certain.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        choice = torch.minimum(ranks, count[:, None]).argsort(dim=1, stable=True)
        next_rows = filling.next_rows(logits.shape[1])
        in_order = torch.arange(filling.rows.columns.shape[1], device=choice.device).expand(len(choice), -1)
        filling.rows = filling.rows.rearrange(in_order.scatter(1, next_rows, next_rows.gather(1, choice)))
        return logits.gather(1, choice[:, :most, None].expand(-1, -1, logits.shape[2]))


class EntropyOrder(AdaptiveOrder):
    """[`AdaptiveOrder`] by the smallest entropy."""

    rule = "entropy"


class MarginOrder(AdaptiveOrder):
    """[`AdaptiveOrder`] by the largest gap between the two largest probabilities."""

    rule = "margin"


# The values of `decoding_order` whose orders depend on the tokens.
ADAPTIVE_ORDERS: dict[str, type[DecodingWay]] = {
    "confidence": AdaptiveOrder,
    "entropy": EntropyOrder,
    "margin": MarginOrder,
}


class Speculation(DecodingWay):
    """Any-subset speculative decoding (2504.20456), one pass a round, in an order that is known before.

    A pass reads the last committed row and the drafts behind it. Row i of these gives the distribution p of the blank
    after it. By p the draft there, which was drawn from q, is accepted with probability min(1, p / q), or replaced by a
    draw from the residual max(0, p - q). So tokens follow p exactly. The rows also ask about the blanks further on. The
    last row with an accepted token draws the next drafts from these logits, before it knows its own successor. Such
    drafts are a little worse than those of a pass of their own, and cost none.

    Args:
        draft_length: how many drafts a pass verifies.
        blanks: how many blanks each example has.
    """

    asks_about_several = True

    def __init__(self, draft_length: int, blanks: list[int]):
        self.draft_length, self.blanks = draft_length, blanks
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
        length, is_fixed, sampler = self.draft_length, filling.runner.has_fixed_shapes, filling.sampler
        most = min(length, (self.most_blanks if is_fixed else filling.most_remaining) - 1)
        drafts = most if is_fixed and filling.round else max(each.drafted for each in filling.progress)
        logits = filling.ask(1 + most, asking=1 + drafts, drafts=drafts).float()
        uniforms = filling.draw_uniforms(2 * length + 1)
        p = sampler.distribution(filling.process_next(logits[:, :, 0], follows_drafts=True))
        tokens = filling.rows.tokens.gather(1, filling.next_rows(1 + drafts))
        accepted, weights = self.verify(p, tokens[:, :drafts], filling.drafted, uniforms[:, :drafts])
        new = sampler.draw_from(weights, uniforms[:, length])
        tokens = tokens.scatter(1, accepted[:, None], new[:, None])
        count = torch.minimum(accepted + 1, filling.rows.totals - filling.committed)
        has_ended = filling.commit(tokens, logits[:, :, 0], count, read=filling.committed + accepted)
        filling.drafted = torch.zeros_like(filling.drafted)
        if most:
            examples = torch.arange(len(logits), device=logits.device)
            self.make_drafts(filling, logits[examples, accepted, 1:], uniforms[:, length + 1 :][:, :most], has_ended)
        filling.note_progress()

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


def check_decoding_options(decoding_order: object, tokens_per_step: int | str | None, draft_length: int | None) -> None:
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

    A schedule over n passes fills at least one blank in each, so short canvases need fewer passes.
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


def way_of_decoding(
    decoding_order: str | torch.Tensor, tokens_per_step: int | str | None, draft_length: int, blanks: list[int]
) -> DecodingWay:
    """The way that options ask for, for canvases with so many blanks each; the options are checked."""
    if draft_length:
        return Speculation(draft_length, blanks)
    sizes = [step_sizes(tokens_per_step, count) for count in blanks]
    adaptive = decoding_order if is_named(decoding_order, *ADAPTIVE_ORDERS) else None
    return FixedOrder(sizes) if adaptive is None else ADAPTIVE_ORDERS[adaptive](sizes)


class AOARMGenerationConfig(GenerationConfig):
    """The library's [`GenerationConfig`] with the defaults of any-order generation.

    A plain `GenerationConfig` with entries of these names has the same effect.

    Args:
        decoding_order: `"left_to_right"` (used when `None`), `"random"`, `"confidence"`, `"entropy"` or `"margin"`.
        tokens_per_step: how many blanks one forward pass fills: a number (1 when `None`), or `"linear(n)"` or
            `"cosine(n)"`, which fill each canvas in n passes, with equally many blanks or with few at first (MaskGIT,
            2202.04200). A sentence end that cuts a pass short can make it more passes.
        draft_length: how many drafts one forward pass verifies in speculative decoding; `None` for none.
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
    "EntropyOrder",
    "FixedOrder",
    "MarginOrder",
    "Speculation",
    "certainty",
    "check_decoding_options",
    "decoding_orders",
    "default_context_order",
    "resolve_decoding_options",
    "step_sizes",
    "way_of_decoding",
]
