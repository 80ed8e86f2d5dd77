# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Generation orders for training: distributions over orders, mixtures of distributions, curricula between mixtures.

An order is a permutation of the tokens of a sentence. Its first `num_context` entries are context: they are given in
sentence order and not predicted.

| specification | order | context | source |
| --- | --- | --- | --- |
| `uniform` | every permutation is equally likely | none | XLNet (1906.08237), AO-GPT (2506.19935) |
| `left_to_right` | 0, 1, 2, ... | none | |
| `lattice` | context sorted, then the rest sorted | a random subset | MAC (2205.13554), ASSD (2504.20456) |
| `block` | context sorted, then the blanks sorted | everything except a few random spans | practical infilling |
| `block(n)` | the same | everything except a few random spans of at most n tokens | practical infilling |
| `fractal` | midpoints of a binary tree, breadth first | none | sigma-GPT (2404.09562) |
| `strided(D)` | 0, D, 2D, ..., 1, D + 1, ... | none | |
| `windowed(b)` | blocks of b tokens from left to right, uniform inside a block | none | |
| `local(w)` | argsort of index + w * N(0, 1): left to right at w = 0, uniform at large w | none | |

The order of an example is a function of the seed, the epoch and the example's index. Batches, workers and processes do
not change it. numpy does not promise the same draws in every version.
"""

import math
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch


# The largest number of spans that `block` leaves blank.
MAX_BLANK_SPANS = 4


def _draw_lattice(rng: np.random.Generator, length: int, min_context: int, parameter: None) -> tuple[np.ndarray, int]:
    """The context size is uniform on min_context ... length - 1, and each subset of that size is equally likely."""
    num_context = int(rng.integers(min_context, max(min_context, length - 1), endpoint=True))
    shuffled = rng.permutation(length)
    return np.concatenate([np.sort(shuffled[:num_context]), np.sort(shuffled[num_context:])]), num_context


def _draw_block(rng: np.random.Generator, length: int, min_context: int, longest: int | None) -> tuple[np.ndarray, int]:
    """Leaves a few contiguous spans blank.

    Without `longest`, the number of blanks b is uniform on 1 ... length - min_context, the number of spans s is uniform
    on 1 ... min(`MAX_BLANK_SPANS`, b, length - b + 1), and each of the C(b - 1, s - 1) ways to share b blanks out to s
    spans is equally likely. With `longest`, s is uniform on 1 ... `MAX_BLANK_SPANS` and the length of each span is
    uniform on 1 ... `longest`. Blanks beyond length - min_context are cut off, and the last spans are left out if there
    are too few given tokens to separate them.

    Each of the C(length - b + 1, s) ways to place the spans, separated by at least one given token, is equally likely.
    """
    most = length - min_context
    if most == 0:
        return np.arange(length), length
    if longest is None:
        num_blanks = int(rng.integers(1, most, endpoint=True))
        # Each span goes into its own gap before, between or after the given tokens.
        num_gaps = length - num_blanks + 1
        num_spans = int(rng.integers(1, min(MAX_BLANK_SPANS, num_blanks, num_gaps), endpoint=True))
        cuts = np.sort(rng.choice(num_blanks - 1, num_spans - 1, replace=False)) + 1
        span_lengths = np.diff(cuts, prepend=0, append=num_blanks)
    else:
        drawn = rng.integers(1, longest, size=int(rng.integers(1, MAX_BLANK_SPANS, endpoint=True)), endpoint=True)
        span_lengths = np.diff(np.minimum(drawn.cumsum(), most), prepend=0)
        span_lengths = span_lengths[span_lengths > 0]
        while len(span_lengths) - 1 > length - span_lengths.sum():
            span_lengths = span_lengths[:-1]
        num_blanks = int(span_lengths.sum())
    span_gaps = np.sort(rng.choice(length - num_blanks + 1, len(span_lengths), replace=False))
    blanks = np.arange(num_blanks) + np.repeat(span_gaps, span_lengths)
    return np.concatenate([np.delete(np.arange(length), blanks), blanks]), length - num_blanks


def _make_fractal(length: int) -> np.ndarray:
    """The upper middle of 0 ... length - 1, then the middles of both halves, ..., each level from left to right.

    The released sigma-GPT code walks the same levels from alternating sides.
    """
    starts, ends = np.array([0]), np.array([length])
    levels = [np.arange(0)]
    while (nonempty := starts < ends).any():
        starts, ends = starts[nonempty], ends[nonempty]
        middles = (starts + ends) // 2
        levels.append(middles)
        starts, ends = np.stack([starts, middles + 1], axis=1).ravel(), np.stack([middles, ends], axis=1).ravel()
    return np.concatenate(levels)


_WITH_CONTEXT = {"lattice": _draw_lattice, "block": _draw_block}
_WITHOUT_CONTEXT = {
    "uniform": lambda rng, length, _: rng.permutation(length),
    "left_to_right": lambda rng, length, _: np.arange(length),
    "fractal": lambda rng, length, _: _make_fractal(length),
    "strided": lambda rng, length, stride: np.argsort(np.arange(length) % stride, kind="stable"),
    "windowed": lambda rng, length, size: np.lexsort((rng.random(length), np.arange(length) // size)),
    "local": lambda rng, length, width: np.argsort(
        np.arange(length) + width * rng.standard_normal(length), kind="stable"
    ),
}
# Name, type and smallest value of the parameter, in tokens.
_PARAMETERS = {
    "block": ("longest span", int, 1),
    "strided": ("stride", int, 1),
    "windowed": ("block size", int, 1),
    "local": ("width", float, 0),
}
_OPTIONAL_PARAMETERS = ("block",)
_KNOWN_ORDERS = ", ".join(
    [
        *(f"{name}({_PARAMETERS[name][0]})" if name in _PARAMETERS else name for name in _WITHOUT_CONTEXT),
        *_WITH_CONTEXT,
        *(f"{name}({_PARAMETERS[name][0]})" for name in _OPTIONAL_PARAMETERS),
    ]
)


def as_integer(name: str, value: object, smallest: int | None = None) -> int:
    """Converts an int, a numpy integer or an integer tensor to int.

    Raises:
        TypeError: `value` is not an integer.
        ValueError: `value` is below `smallest`.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"`{name}` must hold integers, got {value!r}.") from None
    if smallest is not None and number < smallest:
        raise ValueError(f"`{name}` must be at least {smallest}, got {value}.")
    return number


def _format_number(number: float) -> str:
    return repr(number).removesuffix(".0")


@dataclass(frozen=True)
class OrderDistribution:
    """One distribution over orders.

    Args:
        name: `uniform`, `left_to_right`, `lattice`, `block`, `fractal`, `strided`, `windowed` or `local`.
        parameter: the stride of `strided`, the block size of `windowed` and the longest span of `block` (int >= 1), the
            width of `local` (float >= 0), all in tokens. `None` for the others, and for `block` without a longest span.

    Raises:
        ValueError: `name` is unknown, or the parameter is missing, superfluous or out of range.
    """

    name: str
    parameter: int | float | None = None

    def __post_init__(self):
        if self.name not in _WITHOUT_CONTEXT and self.name not in _WITH_CONTEXT:
            raise ValueError(f"Unknown order {self.name!r}; known are {_KNOWN_ORDERS}.")
        if self.name not in _PARAMETERS:
            if self.parameter is not None:
                raise ValueError(f"The order {self.name!r} takes no parameter, got {self.parameter!r}.")
            return
        if self.parameter is None and self.name in _OPTIONAL_PARAMETERS:
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
        """Reads a name such as `"uniform"`, or a name with its parameter such as `"local(8)"`.

        Raises:
            ValueError: `text` has another form.
        """
        match = re.fullmatch(r"\s*(\w+)\s*(?:\(\s*([^()\s]+)\s*\))?\s*", str(text))
        if match is None:
            raise ValueError(f"Cannot read the order {text!r}; known are {_KNOWN_ORDERS}.")
        name, parameter = match.groups()
        try:
            return cls(name, None if parameter is None else float(parameter))
        except ValueError as error:
            raise ValueError(f"In the order {text!r}: {error}") from None

    def __str__(self) -> str:
        return self.name if self.parameter is None else f"{self.name}({_format_number(self.parameter)})"

    def draw(self, rng: np.random.Generator, length: int, min_context: int = 0) -> tuple[np.ndarray, int]:
        """Draws one order.

        Args:
            rng: the source of randomness.
            length: number of tokens.
            min_context: the smallest number of context entries, at most `length`.

        Returns:
            A permutation of 0 ... length - 1, int64 `[length]`, and the number of context entries at its front.
        """
        if self.name in _WITH_CONTEXT:
            return _WITH_CONTEXT[self.name](rng, length, min_context, self.parameter)
        return _WITHOUT_CONTEXT[self.name](rng, length, self.parameter), min_context


@dataclass(frozen=True)
class OrderMixture:
    """A mixture of order distributions. Each example draws its own component.

    Args:
        distributions: the components, all different.
        weights: their probabilities, >= 0 with sum 1 (within 1e-6). Components of weight 0 are dropped.

    Raises:
        ValueError: the weights are not probabilities with sum 1, or a component is repeated.
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
            names = ", ".join(map(str, self.distributions))
            raise ValueError(f"A mixture must not repeat a component, got {names}.")
        kept = [(each, float(w)) for each, w in zip(self.distributions, self.weights, strict=True) if w > 0]
        object.__setattr__(self, "distributions", tuple(each for each, _ in kept))
        object.__setattr__(self, "weights", tuple(w for _, w in kept) if len(kept) > 1 else (1.0,))

    @classmethod
    def parse(cls, spec: "str | Mapping[str, float] | OrderMixture") -> "OrderMixture":
        """Reads a mixture from its specification. `str()` of the result reads back as an equal mixture.

        Args:
            spec: `"uniform"`, `"local(8)"`, `"0.9*uniform+0.1*left_to_right"`, or a mapping from names with parameters
                to weights such as `{"uniform": 0.9, "left_to_right": 0.1}`. A mixture is returned unchanged.

        Raises:
            TypeError: `spec` has another type.
            ValueError: an order is unknown, a parameter is bad, or the weights do not sum to 1.
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
        return "+".join(f"{_format_number(weight)}*{distribution}" for weight, distribution in terms)

    def draw(
        self, length: int, *, example_index: int, seed: int = 0, epoch: int = 0, min_context: int = 0
    ) -> tuple[np.ndarray, int]:
        """Draws the order of one example, a function of `(seed, epoch, example_index)`.

        Args:
            length: number of tokens.
            example_index, seed, epoch: see [`sample_orders`]; each in `[0, 2**64)`.
            min_context: the smallest number of context entries.

        Returns:
            As [`OrderDistribution.draw`].

        Raises:
            TypeError: a number is not an integer.
            ValueError: a number is out of range, or `length` is below `min_context`.
        """
        if not 0 <= min_context <= length:
            raise ValueError(
                f"`min_context` must lie between 0 and the example's length, got {min_context} for the length {length} "
                f"of example {example_index}."
            )
        rng = _example_generator(seed, epoch, example_index)
        return self._draw_component(rng).draw(rng, length, min_context)

    def component_of(self, *, example_index: int, seed: int = 0, epoch: int = 0) -> OrderDistribution:
        """Returns the component that [`draw`] uses for an example. Arguments and errors are those of [`draw`]."""
        return self._draw_component(_example_generator(seed, epoch, example_index))

    def _draw_component(self, rng: np.random.Generator) -> OrderDistribution:
        # Always the first draw, so a curriculum moves this threshold and leaves the rest of the stream as it is.
        threshold = rng.random() * sum(self.weights)
        return self.distributions[int(np.searchsorted(np.cumsum(self.weights[:-1]), threshold, side="right"))]


def _example_generator(seed: int, epoch: int, example_index: int) -> np.random.Generator:
    """Makes the random stream of an example: Philox keyed by seed and epoch, its counter starting at the example.

    The counter has 256 bits. The example sets the highest 64, so streams share no draws.
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
    """A mixture that changes during training. Weights and parameters are interpolated linearly.

    A component of both mixtures stays. If a name has different parameters in the two mixtures, such as `local(0)` and
    `local(64)`, the parameter is interpolated too, and rounded if whole. Other components fade in or out.

    Args:
        start: the mixture at progress 0, in any form that [`OrderMixture.parse`] reads.
        end: the mixture from progress `until` on.
        until: the share of training after which the mixture stays the same, in (0, 1].

    Raises:
        ValueError: `until` is out of range, a mixture is bad, or parameters could be matched in several ways.
    """

    start: OrderMixture
    end: OrderMixture
    until: float = 1.0

    def __post_init__(self):
        if not 0 < self.until <= 1:
            raise ValueError(f"`until` must lie in (0, 1], got {self.until}.")
        object.__setattr__(self, "start", OrderMixture.parse(self.start))
        object.__setattr__(self, "end", OrderMixture.parse(self.end))
        object.__setattr__(self, "_pairs", self._pair_components())

    def __str__(self) -> str:
        return f"{self.start} to {self.end} until {self.until:g} of the training"

    def _pair_components(self) -> list[tuple[OrderDistribution, float, OrderDistribution, float]]:
        """Returns each component's distribution and weight at the start and at the end."""
        start = dict(zip(self.start.distributions, self.start.weights, strict=True))
        end = dict(zip(self.end.distributions, self.end.weights, strict=True))
        pairs = []
        for before, weight in start.items():
            leaving = [each for each in start if each.name == before.name and each not in end]
            arriving = [each for each in end if each.name == before.name and each not in start]
            # `block` without a parameter fades, because there is nothing to interpolate.
            fades = any(each.parameter is None for each in leaving + arriving)
            if before in end or not arriving or fades:
                after = before
            elif len(leaving) == len(arriving) == 1:
                after = arriving[0]
            else:
                raise ValueError(
                    f"A curriculum cannot tell which {before.name!r} of {str(self.start)!r} becomes which of "
                    f"{str(self.end)!r}; at most one parameter of a name may change."
                )
            pairs.append((before, weight, after, end.get(after, 0.0)))
        paired = {after for _, _, after, _ in pairs}
        return pairs + [(after, 0.0, after, weight) for after, weight in end.items() if after not in paired]

    def at(self, progress: float) -> OrderMixture:
        """Returns the mixture at a point of training.

        Args:
            progress: the share of training that is done, >= 0.

        Raises:
            ValueError: `progress` is negative or NaN.
        """
        if not progress >= 0:
            raise ValueError(f"`progress` must be >= 0, got {progress}.")
        share = min(progress / self.until, 1.0)
        # Weights are added up, because two components can meet at the same parameter on the way.
        weights: dict[OrderDistribution, float] = {}
        for before, start_weight, after, end_weight in self._pairs:
            distribution = before
            if before != after:
                parameter = (1 - share) * before.parameter + share * after.parameter
                is_whole = _PARAMETERS[before.name][1] is int
                distribution = OrderDistribution(before.name, round(parameter) if is_whole else parameter)
            weight = (1 - share) * start_weight + share * end_weight
            weights[distribution] = weights.get(distribution, 0.0) + weight
        return OrderMixture(tuple(weights), tuple(weights.values()))


OrderSpec = str | Mapping[str, float] | OrderMixture | OrderCurriculum


def parse_order(order: OrderSpec) -> OrderMixture | OrderCurriculum:
    """Returns a curriculum unchanged and reads everything else with [`OrderMixture.parse`]."""
    return order if isinstance(order, OrderCurriculum) else OrderMixture.parse(order)


class SampledOrders(NamedTuple):
    """Orders of a batch.

    Args:
        columns: int64 `[batch, longest length]`, the columns of each example in generation order, -1 on the right.
        num_context: int64 `[batch]`, how many of them are given and not predicted.
    """

    columns: torch.Tensor
    num_context: torch.Tensor


def sample_orders(
    order: OrderSpec,
    lengths: Sequence[int] | torch.Tensor,
    *,
    example_indices: Sequence[int] | torch.Tensor,
    seed: int = 0,
    epoch: int = 0,
    progress: float = 0.0,
    min_context: int = 0,
    first_column: int = 0,
) -> SampledOrders:
    """Draws one order for each example.

    Args:
        order: a specification (see [`OrderMixture.parse`]), a mixture or a curriculum.
        lengths: `[batch]`, how many tokens of each example are ordered. A beginning-of-sentence token (BOS) does not
            count, because it is always first.
        example_indices: `[batch]`, each example's index in the data set. An example's order depends on
            `(seed, epoch, example_index)` and on nothing else in the batch.
        seed: the seed of the run.
        epoch: the pass over the data.
        progress: the share of training that is done, for a curriculum.
        min_context: the smallest number of context entries of each example; 1 for sentences without BOS. Distributions
            with a context of their own give it in sentence order. For others the first `min_context` entries of the
            order become the context.
        first_column: the column of the first ordered token; 1 if BOS is in column 0.

    Raises:
        TypeError: `order` has another type, or a number is not an integer.
        ValueError: `order` is bad, lengths and indices do not match, or a number is out of range.
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
    for number, (length, index) in enumerate(zip(lengths, example_indices, strict=True)):
        drawn, num_context[number] = mixture.draw(
            length, example_index=index, seed=seed, epoch=epoch, min_context=min_context
        )
        columns[number, :length] = drawn + first_column
    return SampledOrders(torch.from_numpy(columns), torch.from_numpy(num_context))
