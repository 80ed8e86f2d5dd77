# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The attention mass of each head by semantic and by structural distance, and how heads specialise."""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from ..data.orders import as_integer
from ..io import convert_for_json
from .rows import AttendedRows, attention_batches, attention_modules, eager_evaluation, stream_names


# Number of bins whose ranges double. The last one has no end.
OCTAVES = 20


@dataclass(frozen=True)
class Specialisation:
    """Whether heads attend to rows near their target or to recent rows; see [`specialisation_score`].

    Attributes:
        heads: float64 `[layers, heads]` in [-1, 1]; NaN for a head that attends to neither.
        score: the score of all heads together, in [-1, 1], or NaN.
        spread: weighted standard deviation of the heads' scores around `score`: 0 if all heads are alike, 1 if half of
            the mass belongs to heads with 1 and half to heads with -1.
    """

    heads: torch.Tensor
    score: float
    spread: float


def specialisation_score(nearest: torch.Tensor, recent: torch.Tensor) -> Specialisation:
    """Scores heads by the mass on the rows nearest to the target against the mass on the most recent rows.

    A head's score is (s - t) / (s + t). s is its mean mass on rows that are among the m nearest to the target but not
    among the m most recent, and t the reverse: 1 attends by meaning alone, -1 by recency alone. Each row has as many
    rows of one kind as of the other, so uniform attention scores exactly 0 at any length. On average over uniform
    orders, so does attention that depends on neither. The score of several heads is the ratio of their sums, which is
    the mean of their scores weighted by s + t. It is NaN if the nearest rows are the most recent ones, as from left to
    right.

    Args:
        nearest: float64 `[layers, heads]`, s.
        recent: float64 `[layers, heads]`, t.
    """
    weight = nearest + recent
    heads = (nearest - recent) / weight
    score = (nearest - recent).sum() / weight.sum()
    spread = (weight * (heads - score) ** 2).nansum() / weight.sum()
    return Specialisation(heads, float(score), math.sqrt(spread))


@dataclass(frozen=True)
class AttentionMass:
    """Mean attention mass of the rows that predict (see [`AttendedRows`]), by stream, layer, head and distance.

    Streams are `"prediction"` and, in `two_stream`, `"content"`, which has one layer less because its last layer makes
    only keys and values. Distances of row r from key k are

    - `"target"`, the semantic distance |target position of r - content position of k|, although the content stream does
      not know its row's target;
    - `"own"`, the semantic distance |content position of r - content position of k|;
    - `"rows"`, the structural distance r - k in rows, 0 for the row itself.

    `bidirectional` has only the first: its rows predict their own tokens and are in no order.

    Attributes:
        bins: labels of the bins. `"first row"` is the first visible row at any distance (unused attention rests there).
            Then come the distances 0, 1, ..., `linear`, each in its own bin, then ranges that double, up to the last
            one with keys. `bidirectional` also has `"blank"`: all blanks, whose tokens are unknown.
        rows: number of rows that predict.
        near: m, the number of rows that count as nearest and as most recent.
        own_row: whether a row could be among its own most recent rows.
        mass: by stream and distance, float64 `[layers, heads, bins]`; sums to 1 over bins.
        uniform: by distance, float64 `[bins]`: the mass if every row attended equally to all visible rows.
        keys: by distance, int64 `[bins]`: the number of keys of all rows together.
        nearest, recent: by stream, float64 `[layers, heads]`: s and t of [`specialisation_score`]. Empty for
            `bidirectional`.
    """

    bins: tuple[str, ...]
    rows: int
    near: int
    own_row: bool
    mass: dict[str, dict[str, torch.Tensor]]
    uniform: dict[str, torch.Tensor]
    keys: dict[str, torch.Tensor]
    nearest: dict[str, torch.Tensor]
    recent: dict[str, torch.Tensor]

    @property
    def streams(self) -> tuple[str, ...]:
        """`("prediction",)` or `("prediction", "content")`."""
        return tuple(self.mass)

    @property
    def distances(self) -> tuple[str, ...]:
        return tuple(self.uniform)

    def lift(self, stream: str, distance: str) -> torch.Tensor:
        """Mass over uniform mass, float64 `[layers, heads, bins]`; NaN in bins without keys."""
        return self.mass[stream][distance] / self.uniform[distance]

    def specialisation(self, stream: str) -> Specialisation:
        """[`specialisation_score`] of a stream's heads.

        Raises:
            ValueError: for `bidirectional`, whose rows are in no order.
        """
        if stream not in self.nearest:
            raise ValueError(f"`stream` must be one of {list(self.nearest)} to be scored, got {stream!r}.")
        return specialisation_score(self.nearest[stream], self.recent[stream])

    @property
    def dissociation(self) -> float | None:
        """Half the prediction stream's score minus the content stream's, in [-1, 1]; `None` for a single stream.

        1: the prediction stream attends by meaning alone and the content stream by recency alone.
        """
        if "content" not in self.nearest:
            return None
        return (self.specialisation("prediction").score - self.specialisation("content").score) / 2

    def to_dict(self) -> dict[str, Any]:
        """The numbers as lists, `None` for NaN, with lift and specialisation."""
        lift = {stream: {name: self.lift(stream, name) for name in self.distances} for stream in self.streams}
        scores = {stream: vars(self.specialisation(stream)) for stream in self.nearest}
        numbers = {name: getattr(self, name) for name in ("rows", "near", "own_row", "mass", "uniform", "keys")}
        numbers |= {"bins": list(self.bins), "lift": lift, "specialisation": scores, "dissociation": self.dissociation}
        return convert_for_json(numbers)


def attention_mass(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, torch.Tensor]],
    *,
    linear: int = 16,
    near: int = 4,
    own_row: bool = False,
    progress: bool = True,
) -> AttentionMass:
    """Measures where a model's heads attend, on batches as its `forward` takes them.

    The model runs with eager attention in evaluation mode; both are then restored. The attention weights of a layer are
    counted and freed before the next layer runs. A layer that is applied several times counts as several layers.

    Args:
        model: an [`AOARMModel`] or one of its heads, any variant.
        batches: see [`attention_batches`].
        linear: the largest distance with its own bin.
        near: number of rows that count as nearest to the target, and as most recent, in [`specialisation_score`].
        own_row: whether a row counts among its own most recent rows. Attention to itself does not summarise other rows,
            and may be the only attention to recent rows.
        progress: whether to show a progress bar.

    Raises:
        TypeError: a number is not an integer, or the model is not one of this package's.
        ValueError: `linear` or `near` is below 1, no row predicts, or as in [`attention_batches`].
    """
    as_integer("linear", linear, smallest=1)
    as_integer("near", near, smallest=1)
    measured = _MassCounter(linear, near, own_row)
    handles = [module.register_forward_hook(measured.count_layer) for module in attention_modules(model)]
    try:
        with eager_evaluation(model):
            for inputs, rows in attention_batches(batches, model, "attention mass", progress):
                measured.start(rows)
                model.base_model(**inputs, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return measured.result(stream_names(model))


class _MassCounter:
    """Sums masses: [`start`] is called before a batch, and [`count_layer`], a forward hook, in each layer."""

    def __init__(self, linear: int, near: int, own_row: bool):
        self.linear, self.near, self.own_row = linear, near, own_row
        # The largest distance of each bin.
        self.bounds = torch.cat([torch.arange(linear + 1), linear * 2 ** torch.arange(1, OCTAVES + 1)])
        self.rows, self.has_blanks = 0, False
        # By name, and for `mass` by name, stream and layer: float64 `[heads, bins]` or `[heads]`.
        self.uniform, self.keys, self.mass = defaultdict(float), defaultdict(float), defaultdict(float)

    def start(self, rows: AttendedRows) -> None:
        self.layer = 0
        self.predicting = predicting = rows.predicting
        self.rows += int(predicting.sum())
        self.has_blanks = not rows.in_order
        visible, first = rows.visible[predicting], rows.first[predicting]
        blank = rows.blank[:, None, :].expand_as(rows.visible)[predicting]
        share = visible.double() / visible.sum(-1, keepdim=True)
        # Bins: first row, distances, blanks.
        self.bins = {}
        for name, distance in rows.distances.items():
            number = 1 + torch.bucketize(distance[predicting], self.bounds[:-1].to(distance.device))
            self.bins[name] = number.masked_fill(first, 0).masked_fill(blank, len(self.bounds) + 1)
            self.uniform[name] += self._sum_bins(share[:, None], self.bins[name])[0]
            self.keys[name] += self._sum_bins(visible[:, None].double(), self.bins[name])[0]
        self.is_near = {}
        if rows.in_order:
            is_nearest, is_recent = (
                rows.ranks(choice, self.own_row)[predicting] < self.near for choice in ("nearest", "recent")
            )
            self.is_near = {"nearest": is_nearest & ~is_recent, "recent": is_recent & ~is_nearest}

    def count_layer(self, module: torch.nn.Module, arguments: tuple, output: tuple[torch.Tensor | None, ...]) -> None:
        # The content stream ends before the last layer.
        for stream, weights in (("prediction", output[1]), ("content", output[2])):
            if weights is None:
                continue
            # [rows that predict, heads, keys]
            weights = weights.transpose(1, 2)[self.predicting].float()
            for name, number in self.bins.items():
                self.mass[name, stream, self.layer] += self._sum_bins(weights, number)
            for name, is_near in self.is_near.items():
                mass = torch.einsum("nhk,nk->nh", weights, is_near.float())
                self.mass[name, stream, self.layer] += mass.sum(0, dtype=torch.float64).cpu()
        self.layer += 1

    def _sum_bins(self, mass: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
        """Sums mass `[rows, heads, keys]` over rows by bin `[rows, keys]`: float64 `[heads, bins]`."""
        binned = mass.new_zeros(*mass.shape[:2], len(self.bounds) + 2)
        binned.scatter_add_(2, number[:, None].expand_as(mass), mass)
        return binned.sum(0, dtype=torch.float64).cpu()

    def result(self, streams: tuple[str, ...]) -> AttentionMass:
        if self.rows == 0:
            raise ValueError("`batches` must hold rows that predict something, got none.")
        last = max(int(keys[:-1].nonzero().max()) for keys in self.keys.values())
        kept = [*range(last + 1), *([-1] if self.has_blanks else [])]
        doubled = [f"{low + 1}–{high}" for low, high in itertools.pairwise(self.bounds[self.linear :].tolist())]
        labels = ["first row", *map(str, range(self.linear + 1)), *doubled, "blank"]

        def layers(name: str, stream: str) -> torch.Tensor:
            parts = [part for key, part in self.mass.items() if key[:2] == (name, stream)]
            return torch.stack(parts) / self.rows

        # The predicting stream first.
        streams = streams[::-1]
        return AttentionMass(
            bins=tuple(labels[number] for number in kept),
            rows=self.rows,
            near=self.near,
            own_row=self.own_row,
            mass={stream: {name: layers(name, stream)[..., kept] for name in self.uniform} for stream in streams},
            uniform={name: part[kept] / self.rows for name, part in self.uniform.items()},
            keys={name: part[kept].long() for name, part in self.keys.items()},
            nearest={stream: layers("nearest", stream) for stream in streams if self.is_near},
            recent={stream: layers("recent", stream) for stream in streams if self.is_near},
        )
