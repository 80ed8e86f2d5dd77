# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Generation orders for training: distributions over orders, mixtures of them, and curricula between mixtures.

A *column* is a 0-based index into a sentence (a beginning-of-sentence token is not counted). An order is a permutation
of a sentence's columns. Its first `num_context` entries are context: given in sentence order, not predicted.

| specification | order | context | source |
| --- | --- | --- | --- |
| `uniform` | every permutation equally likely | none | XLNet (1906.08237), AO-GPT (2506.19935) |
| `left_to_right` | 0, 1, 2, ... | none | |
| `lattice` | context sorted, the rest sorted | a random subset of random size | MAC (2205.13554), ASSD (2504.20456) |
| `block` | context sorted, then the blanks sorted | all but a few random spans | practical infilling |
| `fractal` | midpoints of a binary tree, breadth first | none | sigma-GPT (2404.09562) |
| `strided(D)` | 0, D, 2D, ..., 1, D + 1, ... | none | |
| `windowed(b)` | blocks of b columns left to right, uniform inside | none | |
| `local(w)` | argsort of column + w * N(0, 1); from left to right (w = 0) to uniform (w large) | none | |

The order of an example is a function of the seed, the epoch and the example's index. Batches, workers and processes
change nothing. (numpy does not promise equal draws from one of its versions to the next.)
"""

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch


# The most spans that `block` leaves blank.
MAX_BLANK_SPANS = 4


def _uniform(rng: np.random.Generator, length: int, min_context: int, parameter: None) -> tuple[np.ndarray, int]:
    return rng.permutation(length), min_context


def _left_to_right(rng: np.random.Generator, length: int, min_context: int, parameter: None) -> tuple[np.ndarray, int]:
    return np.arange(length), min_context


def _lattice(rng: np.random.Generator, length: int, min_context: int, parameter: None) -> tuple[np.ndarray, int]:
    """Size k of the context uniform on min_context ... length - 1, each subset of that size equally likely."""
    num_context = int(rng.integers(min_context, max(min_context, length - 1), endpoint=True))
    shuffled = rng.permutation(length)
    return np.concatenate([np.sort(shuffled[:num_context]), np.sort(shuffled[num_context:])]), num_context


def _block(rng: np.random.Generator, length: int, min_context: int, parameter: None) -> tuple[np.ndarray, int]:
    """A few contiguous spans are blank.

    The number of blank columns b is uniform on 1 ... length - min_context; the number of spans s is uniform on
    1 ... min(`MAX_BLANK_SPANS`, b, length - b + 1); then each of the C(b - 1, s - 1) * C(length - b + 1, s) ways to
    place s spans of b columns in all, with at least one given column between spans, is equally likely.
    """
    if length == min_context:
        return np.arange(length), length
    blanks = int(rng.integers(1, length - min_context, endpoint=True))
    gaps = length - blanks + 1
    spans = int(rng.integers(1, min(MAX_BLANK_SPANS, blanks, gaps), endpoint=True))
    cuts = np.sort(rng.choice(blanks - 1, spans - 1, replace=False)) + 1
    span_lengths = np.diff(cuts, prepend=0, append=blanks)
    # Each span goes into a gap of its own before, between or after the given columns.
    span_gaps = np.sort(rng.choice(gaps, spans, replace=False))
    blank_columns = np.arange(blanks) + np.repeat(span_gaps, span_lengths)
    given_columns = np.delete(np.arange(length), blank_columns)
    return np.concatenate([given_columns, blank_columns]), length - blanks


def _fractal(rng: np.random.Generator, length: int, min_context: int, parameter: None) -> tuple[np.ndarray, int]:
    """The middle (from above) of 0 ... length - 1, then the middles of the two halves, ...; a level from left to right.

    The released sigma-GPT code walks the same levels from alternating sides.
    """
    starts, ends = np.array([0]), np.array([length])
    levels = [np.arange(0)]
    while (nonempty := starts < ends).any():
        starts, ends = starts[nonempty], ends[nonempty]
        middles = (starts + ends) // 2
        levels.append(middles)
        starts, ends = np.stack([starts, middles + 1], axis=1).ravel(), np.stack([middles, ends], axis=1).ravel()
    return np.concatenate(levels), min_context


def _strided(rng: np.random.Generator, length: int, min_context: int, stride: int) -> tuple[np.ndarray, int]:
    return np.argsort(np.arange(length) % stride, kind="stable"), min_context


def _windowed(rng: np.random.Generator, length: int, min_context: int, window: int) -> tuple[np.ndarray, int]:
    return np.lexsort((rng.random(length), np.arange(length) // window)), min_context


def _local(rng: np.random.Generator, length: int, min_context: int, width: float) -> tuple[np.ndarray, int]:
    return np.argsort(np.arange(length) + width * rng.standard_normal(length), kind="stable"), min_context


class _Parameter(NamedTuple):
    name: str
    kind: type
    smallest: int


_DRAW: dict[str, Callable[..., tuple[np.ndarray, int]]] = {
    "uniform": _uniform,
    "left_to_right": _left_to_right,
    "lattice": _lattice,
    "block": _block,
    "fractal": _fractal,
    "strided": _strided,
    "windowed": _windowed,
    "local": _local,
}
_PARAMETERS = {
    "strided": _Parameter("stride", int, 1),
    "windowed": _Parameter("block size", int, 1),
    "local": _Parameter("width", float, 0),
}


def as_integer(name: str, value: object) -> int:
    """`value` as an int, whether it came as an int, a numpy integer or an integer tensor; else a TypeError."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"`{name}` must hold integers, got {value!r}.") from None


def _shortest(number: float) -> str:
    return repr(number).removesuffix(".0")


def _known_orders() -> str:
    return ", ".join(f"{name}({_PARAMETERS[name].name})" if name in _PARAMETERS else name for name in _DRAW)


@dataclass(frozen=True)
class OrderDistribution:
    """One distribution over orders.

    Args:
        name: `uniform`, `left_to_right`, `lattice`, `block`, `fractal`, `strided`, `windowed` or `local`.
        parameter: `strided`'s stride and `windowed`'s block size (int >= 1), `local`'s width (float >= 0), all in
            columns; `None` for the others.

    Raises:
        ValueError: for an unknown name, or a parameter that is missing, superfluous or out of range.
    """

    name: str
    parameter: int | float | None = None

    def __post_init__(self):
        if self.name not in _DRAW:
            raise ValueError(f"Unknown order {self.name!r}; known are {_known_orders()}.")
        if self.name not in _PARAMETERS:
            if self.parameter is not None:
                raise ValueError(f"The order {self.name!r} takes no parameter, got {self.parameter!r}.")
            return
        what, kind, smallest = _PARAMETERS[self.name]
        is_number = isinstance(self.parameter, (int, float)) and not isinstance(self.parameter, bool)
        is_valid = is_number and math.isfinite(self.parameter) and self.parameter >= smallest
        if not is_valid or kind(self.parameter) != self.parameter:
            rule = f"a whole number >= {smallest}" if kind is int else f"a finite number >= {smallest}"
            raise ValueError(f"The order {self.name!r} needs a {what} that is {rule}, got {self.parameter!r}.")
        object.__setattr__(self, "parameter", kind(self.parameter))

    @classmethod
    def parse(cls, text: str) -> "OrderDistribution":
        """Reads `"uniform"` or `"local(8)"`.

        Raises:
            ValueError: where `text` is neither.
        """
        match = re.fullmatch(r"\s*(\w+)\s*(?:\(\s*([^()\s]+)\s*\))?\s*", str(text))
        if match is None:
            raise ValueError(f"Cannot read the order {text!r}; known are {_known_orders()}.")
        name, parameter = match.groups()
        try:
            return cls(name, None if parameter is None else float(parameter))
        except ValueError as error:
            raise ValueError(f"In the order {text!r}: {error}") from None

    def __str__(self) -> str:
        return self.name if self.parameter is None else f"{self.name}({_shortest(self.parameter)})"

    def draw(self, rng: np.random.Generator, length: int, min_context: int = 0) -> tuple[np.ndarray, int]:
        """Draws one order.

        Args:
            rng: the source of randomness.
            length: number of columns n.
            min_context: the least number of context entries, at most `length`.

        Returns:
            The columns, int64 `[length]`, and the number of context entries in front.
        """
        return _DRAW[self.name](rng, length, min_context, self.parameter)


@dataclass(frozen=True)
class OrderMixture:
    """A mixture of order distributions. Each example draws its own component.

    Args:
        distributions: the components, all different.
        weights: their probabilities, >= 0, of sum 1 (within 1e-6). Components of weight 0 are dropped.

    Raises:
        ValueError: for weights that are no probabilities of sum 1, and for repeated components.
    """

    distributions: tuple[OrderDistribution, ...]
    weights: tuple[float, ...] = (1.0,)

    def __post_init__(self):
        if len(self.weights) != len(self.distributions):
            raise ValueError(
                f"A mixture needs one weight for each distribution, got {len(self.weights)} weights for "
                f"{len(self.distributions)} distributions."
            )
        if not all(math.isfinite(weight) and weight >= 0 for weight in self.weights):
            raise ValueError(f"The weights of a mixture must be finite and >= 0, got {list(self.weights)}.")
        if abs(sum(self.weights) - 1) > 1e-6:
            raise ValueError(
                f"The weights of a mixture must sum to 1, got {list(self.weights)} with the sum {sum(self.weights):g}."
            )
        if len(set(self.distributions)) < len(self.distributions):
            names = ", ".join(str(each) for each in self.distributions)
            raise ValueError(f"A mixture must not repeat a component, got {names}.")
        kept = [(each, float(w)) for each, w in zip(self.distributions, self.weights, strict=True) if w > 0]
        object.__setattr__(self, "distributions", tuple(each for each, _ in kept))
        object.__setattr__(self, "weights", tuple(w for _, w in kept) if len(kept) > 1 else (1.0,))

    @classmethod
    def parse(cls, spec: "str | Mapping[str, float] | OrderMixture") -> "OrderMixture":
        """Reads a mixture from its specification. `str()` of the result reads back as an equal mixture.

        Args:
            spec: `"uniform"`, `"local(8)"`, `"0.9*uniform+0.1*left_to_right"`, or a mapping from the name (with
                parameter) to the weight such as `{"uniform": 0.9, "left_to_right": 0.1}`. A mixture is returned as is.

        Raises:
            TypeError: for a `spec` of another type.
            ValueError: for unknown orders, bad parameters, and weights that do not sum to 1.
        """
        if isinstance(spec, OrderMixture):
            return spec
        if isinstance(spec, str):
            # A plus sign inside parentheses belongs to a parameter such as 1e+3.
            terms = [term.rpartition("*") for term in re.split(r"\+(?![^()]*\))", spec)]
            pairs = [(name, weight if star else "1") for weight, star, name in terms]
        elif isinstance(spec, Mapping):
            pairs = list(spec.items())
        else:
            raise TypeError(f"`order` must be a string, a mapping or an OrderMixture, got {type(spec).__name__}.")
        try:
            weights = tuple(float(weight) for _, weight in pairs)
        except (TypeError, ValueError):
            raise ValueError(
                f"Cannot read the weights of the order {spec!r}; write for example '0.9*uniform+0.1*left_to_right'."
            ) from None
        return cls(tuple(OrderDistribution.parse(name) for name, _ in pairs), weights)

    def __str__(self) -> str:
        if len(self.distributions) == 1:
            return str(self.distributions[0])
        terms = zip(self.weights, self.distributions, strict=True)
        return "+".join(f"{_shortest(weight)}*{distribution}" for weight, distribution in terms)

    def draw(
        self, length: int, *, example_index: int, seed: int = 0, epoch: int = 0, min_context: int = 0
    ) -> tuple[np.ndarray, int]:
        """Draws the order of one example, a function of `(seed, epoch, example_index)`.

        Args:
            length: number of columns n.
            example_index: the example's number in the data set, in `[0, 2**64)`; so are `seed` and `epoch`.
            seed: the run's seed.
            epoch: the pass over the data.
            min_context: the least number of context entries. A sentence without a beginning-of-sentence token needs 1.

        Returns:
            The columns, int64 `[length]`, and the number of context entries in front.

        Raises:
            TypeError: for numbers that are not integers.
            ValueError: where a number is out of range or `length` is below `min_context`.
        """
        if not 0 <= min_context <= length:
            raise ValueError(
                f"`min_context` must lie between 0 and the example's length, got {min_context} for the length {length} "
                f"of example {example_index}."
            )
        rng = _example_generator(seed, epoch, example_index)
        return self._component(rng).draw(rng, length, min_context)

    def component_of(self, *, example_index: int, seed: int = 0, epoch: int = 0) -> OrderDistribution:
        """The component that [`draw`] takes for one example; arguments and errors as there."""
        return self._component(_example_generator(seed, epoch, example_index))

    def _component(self, rng: np.random.Generator) -> OrderDistribution:
        # Drawn first, and always: a curriculum moves this threshold and keeps the rest of the stream.
        threshold = rng.random() * sum(self.weights)
        return self.distributions[int(np.searchsorted(np.cumsum(self.weights[:-1]), threshold, side="right"))]


def _example_generator(seed: int, epoch: int, example_index: int) -> np.random.Generator:
    """The example's own random stream: Philox keyed by seed and epoch, its 2**256 counter starting at the example.

    Distinct triples can share no draw, which hashing a triple into one seed would not promise.
    """
    words = []
    for name, value in (("seed", seed), ("epoch", epoch), ("example_index", example_index)):
        words.append(as_integer(name, value))
        if not 0 <= words[-1] < 2**64:
            raise ValueError(f"`{name}` must lie in [0, 2**64), got {value}.")
    key = np.array(words[:2], dtype=np.uint64)
    counter = np.array([0, 0, 0, words[2]], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


@dataclass(frozen=True)
class OrderCurriculum:
    """A mixture that changes during training: weights and parameters are interpolated linearly.

    A component that is in both mixtures keeps its place. A name that is in both with different parameters, such as
    `local(0)` and `local(64)`, has its parameter interpolated as well (rounded where it is a whole number). Any other
    component fades in or out.

    Args:
        start: the mixture at progress 0, in any form that [`OrderMixture.parse`] reads.
        end: the mixture at progress `until` and after it.
        until: the share of training after which nothing changes any more, in (0, 1].

    Raises:
        ValueError: for an `until` out of range, bad mixtures, and parameters that could be matched in several ways.
    """

    start: OrderMixture
    end: OrderMixture
    until: float = 1.0

    def __post_init__(self):
        if not 0 < self.until <= 1:
            raise ValueError(f"`until` must lie in (0, 1], got {self.until}.")
        object.__setattr__(self, "start", OrderMixture.parse(self.start))
        object.__setattr__(self, "end", OrderMixture.parse(self.end))
        object.__setattr__(self, "_pairs", self._match())

    def __str__(self) -> str:
        return f"{self.start} to {self.end} until {self.until:g} of the training"

    def _match(self) -> list[tuple[OrderDistribution, float, OrderDistribution, float]]:
        """Each component's distribution and weight at the start and at the end."""
        start = dict(zip(self.start.distributions, self.start.weights, strict=True))
        end = dict(zip(self.end.distributions, self.end.weights, strict=True))
        pairs = []
        for before, weight in start.items():
            leaving = [each for each in start if each.name == before.name and each not in end]
            arriving = [each for each in end if each.name == before.name and each not in start]
            if before in end or not arriving:
                after = before
            elif len(leaving) == len(arriving) == 1:
                after = arriving[0]
            else:
                raise ValueError(
                    f"A curriculum cannot tell which {before.name!r} of {str(self.start)!r} becomes which of "
                    f"{str(self.end)!r}; at most one parameter of a name may change."
                )
            pairs.append((before, weight, after, end.pop(after, 0.0)))
        return pairs + [(after, 0.0, after, weight) for after, weight in end.items()]

    def at(self, progress: float) -> OrderMixture:
        """The mixture at a point of training.

        Args:
            progress: the share of training that is done, >= 0.

        Raises:
            ValueError: for a negative `progress` or NaN.
        """
        if not progress >= 0:
            raise ValueError(f"`progress` must be >= 0, got {progress}.")
        share = min(progress / self.until, 1.0)
        # Two components may meet at one parameter on the way.
        weights: dict[OrderDistribution, float] = {}
        for before, start_weight, after, end_weight in self._pairs:
            distribution = before
            if before != after:
                parameter = (1 - share) * before.parameter + share * after.parameter
                kind = _PARAMETERS[before.name].kind
                distribution = OrderDistribution(before.name, round(parameter) if kind is int else parameter)
            weight = (1 - share) * start_weight + share * end_weight
            weights[distribution] = weights.get(distribution, 0.0) + weight
        return OrderMixture(tuple(weights), tuple(weights.values()))


class SampledOrders(NamedTuple):
    """Orders of a batch.

    Args:
        columns: int64 `[batch, longest length]`, each example's columns in generation order, -1 on the right.
        num_context: int64 `[batch]`, how many of them are given and not predicted.
    """

    columns: torch.Tensor
    num_context: torch.Tensor


OrderSpec = str | Mapping[str, float] | OrderMixture | OrderCurriculum


def parse_order(order: OrderSpec) -> OrderMixture | OrderCurriculum:
    """A curriculum as it is; anything else through [`OrderMixture.parse`]."""
    return order if isinstance(order, OrderCurriculum) else OrderMixture.parse(order)


def sample_orders(
    order: OrderSpec,
    lengths: Sequence[int] | torch.Tensor,
    *,
    example_indices: Sequence[int] | torch.Tensor,
    seed: int = 0,
    epoch: int = 0,
    progress: float = 0.0,
    min_context: int = 0,
) -> SampledOrders:
    """Draws one order for each example.

    Args:
        order: a specification (see [`OrderMixture.parse`]), a mixture or a curriculum.
        lengths: `[batch]`, the number of columns of each example.
        example_indices: `[batch]`, each example's number in the data set. An example's order depends on
            `(seed, epoch, example_index)` and on nothing else of the batch.
        seed: the run's seed.
        epoch: the pass over the data.
        progress: the share of training that is done, for a curriculum.
        min_context: the least number of context entries of each example; 1 for sentences without a
            beginning-of-sentence token. Context is in sentence order where the distribution has a context of its own;
            elsewhere the first `min_context` entries of the order become context.

    Raises:
        TypeError: for an `order` of another type, and for numbers that are not integers.
        ValueError: for a bad `order`, lengths and indices that do not match, or numbers out of range.
    """
    parsed = parse_order(order)
    mixture = parsed.at(progress) if isinstance(parsed, OrderCurriculum) else parsed
    lengths = [as_integer("lengths", length) for length in lengths]
    example_indices = [as_integer("example_indices", index) for index in example_indices]
    if len(lengths) != len(example_indices):
        raise ValueError(
            f"`example_indices` must have one entry for each of the {len(lengths)} lengths, got {len(example_indices)}."
        )
    columns = np.full((len(lengths), max(lengths, default=0)), -1, dtype=np.int64)
    num_context = np.zeros(len(lengths), dtype=np.int64)
    for row, (length, index) in enumerate(zip(lengths, example_indices, strict=True)):
        columns[row, :length], num_context[row] = mixture.draw(
            length, example_index=index, seed=seed, epoch=epoch, min_context=min_context
        )
    return SampledOrders(torch.from_numpy(columns), torch.from_numpy(num_context))


__all__ = [
    "MAX_BLANK_SPANS",
    "OrderCurriculum",
    "OrderDistribution",
    "OrderMixture",
    "OrderSpec",
    "SampledOrders",
    "as_integer",
    "parse_order",
    "sample_orders",
]
