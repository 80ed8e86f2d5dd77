# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""How canvases are filled: the defaults that are saved with a model."""

import math
import re

from transformers.generation import GenerationConfig

from .canvas import ADAPTIVE_ORDERS, CONTEXT_ORDERS, check_count, is_named
from .compat_aoarm import generation_config_values


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


__all__ = ["AOARMGenerationConfig"]
