# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Data collators that draw an order for each example: sentences in, batches of rows in generation order out."""

import hashlib
import os
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ..canvas_aoarm import CONTEXT_ORDERS
from .orders import OrderCurriculum, OrderMixture, OrderSpec, as_integer, parse_order


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


IGNORED = -100


class Sentence(NamedTuple):
    """One example, checked, in sentence order.

    Args:
        tokens: int64 `[columns]`, without the beginning-of-sentence token.
        is_context: bool `[columns]`, the columns labelled -100.
    """

    tokens: np.ndarray
    is_context: np.ndarray


@dataclass
class DataCollatorWithOrders:
    """What [`DataCollatorForAnyOrderLM`] and [`DataCollatorForMaskedDiffusion`] share: features, orders and a clock.

    A feature is a mapping with

    - `input_ids`: the sentence's tokens, in sentence order. Where the tokenizer has a beginning-of-sentence token and
      the sentence does not start with it, it is prepended. It is always given, at position 0, column c of the sentence
      then has position c + 1. Without such a token column c has position c and the order's first token is given, not
      predicted;
    - `example_index`: the example's number in the data set, see [`with_example_index`]. Its order is a function of
      `seed`, the epoch and this number, so batches, workers and processes change nothing;
    - `attention_mask` (optional): 0 marks padding, at either end, which is dropped;
    - `labels` (optional): equal to `input_ids`, or -100 for tokens that are given. Given tokens come first, in sentence
      order, and the order is drawn for the others;
    - `order` (optional): the example's own order, a permutation of the sentence's columns, and `num_context`
      (optional), how many of its first columns are given (default: as many as have the label -100). It needs no
      `example_index`.

    Other keys are ignored, and so are values of `None`. Batches are padded on the right.

    A curriculum needs a clock: call [`start_epoch`] at the start of each pass over the data.

    Args:
        tokenizer: gives the ids of the special tokens.
        order: what [`OrderMixture.parse`] reads, or an [`OrderCurriculum`].
        seed: the seed of all orders.
        max_length: the largest number of rows of an example, with the beginning-of-sentence token. Longer examples are
            an error, never cut.
        pad_to_multiple_of: the number of rows becomes a multiple of this.
        pad_with_eos: sentences are continued with end-of-sentence tokens up to `max_length` rows. These take part in
            the order and in the loss, which teaches the model lengths.
        packing: the whole batch becomes one row `[1, rows]`, with `segment_ids` in place of the attention mask: 0, 1,
            ... for the examples, and a further segment for the padding that `pad_to_multiple_of` asks for.
        vocab_size: the model's; larger ids are an error here rather than in its embedding. `AnyOrderTrainer` sets it.

    Raises:
        ValueError: for a tokenizer without a special token that is needed, for options out of range, and, when called,
            for features that break the rules above (the message names the example).
    """

    tokenizer: PreTrainedTokenizerBase
    order: OrderSpec = "uniform"
    seed: int = 0
    max_length: int | None = None
    pad_to_multiple_of: int | None = None
    pad_with_eos: bool = False
    packing: bool = False
    vocab_size: int | None = None

    def __post_init__(self):
        self.order = parse_order(self.order)
        for name in ("max_length", "pad_to_multiple_of", "vocab_size"):
            value = getattr(self, name)
            if value is not None and as_integer(name, value) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        pads = not self.packing or self.pad_to_multiple_of is not None
        if pads and self.tokenizer.pad_token_id is None:
            raise ValueError(
                "Padding needs a pad token, but `tokenizer.pad_token_id` is None; set it, for example with "
                "`tokenizer.pad_token = tokenizer.eos_token` (padding never enters the loss)."
            )
        if self.pad_with_eos and self.tokenizer.eos_token_id is None:
            raise ValueError("`pad_with_eos=True` needs an EOS token, but `tokenizer.eos_token_id` is None.")
        if self.pad_with_eos and self.max_length is None:
            raise ValueError(
                "`pad_with_eos=True` needs `max_length`, the number of rows to fill, got None (padding to the longest "
                "example of the batch would make an example depend on its neighbours)."
            )
        self._clock = _Clock()

    def start_epoch(
        self,
        epoch: int,
        first_step: int = 0,
        total_steps: int | None = None,
        gradient_accumulation_steps: int = 1,
    ) -> None:
        """Starts a pass over the data: sets the epoch that orders depend on, and the curriculum's clock.

        The next batch belongs to optimiser step `first_step`. Workers, also those already running, count along: call it
        before the data loader is iterated. (After a pass that was broken off use a new loader: persistent workers may
        still be busy with batches of the old pass and would count them.)

        Args:
            epoch: the pass over the data, >= 0.
            first_step: number of optimiser steps done before the first batch of this pass. Where a run resumes in the
                middle of a pass, the batches that are skipped without being collated are not counted.
            total_steps: optimiser steps of the whole training, at least 1; a curriculum needs it.
            gradient_accumulation_steps: batches per optimiser step.

        Raises:
            TypeError: for numbers that are not integers.
            ValueError: for numbers out of range.
        """
        self._clock.start(epoch, first_step, total_steps, gradient_accumulation_steps)

    @property
    def batches_seen(self) -> int:
        """Batches made in this process since the pass started. Set it back where other batches came in between."""
        return self._clock.batches_seen

    @batches_seen.setter
    def batches_seen(self, count: int) -> None:
        self._clock.batches_seen = count

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Makes a batch; see the class."""
        if len(features) == 0:
            raise ValueError("`features` must hold at least one example, got none.")
        mixture = self.order
        if isinstance(mixture, OrderCurriculum):
            mixture = mixture.at(self._clock.progress())
        examples = []
        for number, feature in enumerate(features):
            index = feature.get("example_index")
            name = f"feature {number} of the batch" if index is None else f"example {index}"
            sentence = self._sentence(feature, name)
            min_context = 0 if self.tokenizer.bos_token_id is not None else 1
            order = self._order(feature, name, mixture, sentence.is_context, min_context)
            examples.append(self._rows(feature, name, mixture, sentence, *order))
        batch = self._packed(examples) if self.packing else self._padded(examples)
        self._clock.batches_seen += 1
        return {name: torch.from_numpy(values) for name, values in batch.items()}

    def _rows(
        self,
        feature: Mapping[str, Any],
        name: str,
        mixture: OrderMixture,
        sentence: Sentence,
        columns: np.ndarray,
        num_context: int,
    ) -> dict[str, np.ndarray]:
        """One example of a batch, `[rows]` each, beginning-of-sentence token included.

        Args:
            feature, name, mixture: where it comes from.
            sentence: its tokens.
            columns: int64 `[columns]`, the sentence's columns in generation order.
            num_context: how many of them are given.
        """
        raise NotImplementedError

    def _with_bos(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens behind the beginning-of-sentence token, where there is one."""
        bos = self.tokenizer.bos_token_id
        return tokens if bos is None else np.concatenate([[bos], tokens])

    def _sentence(self, feature: Mapping[str, Any], name: str) -> Sentence:
        if feature.get("input_ids") is None:
            raise ValueError(f"Every feature needs `input_ids`; {name} has the keys {sorted(feature)}.")
        tokens = _as_integers("input_ids", feature["input_ids"], name)
        if len(tokens) and tokens.min() < 0:
            raise ValueError(f"`input_ids` must be >= 0, got {tokens.min()} in {name}.")
        if self.vocab_size is not None and len(tokens) and tokens.max() >= self.vocab_size:
            raise ValueError(
                f"`input_ids` must be below the model's vocab_size={self.vocab_size}, got {tokens.max()} in {name}; "
                f"the collator's tokenizer has {len(self.tokenizer)} tokens. Tokenise with the model's own tokenizer, "
                "or call `model.resize_token_embeddings` before training."
            )
        labels = tokens
        if feature.get("labels") is not None:
            labels = _as_integers("labels", feature["labels"], name, length=len(tokens))
        if feature.get("attention_mask") is not None:
            kept = _kept(_as_integers("attention_mask", feature["attention_mask"], name, length=len(tokens)), name)
            tokens, labels = tokens[kept], labels[kept]
        is_context = labels == IGNORED
        if ((labels != tokens) & ~is_context).any():
            raise ValueError(
                f"`labels` must equal `input_ids` or be {IGNORED}, unshifted and in sentence order; {name} has others."
            )

        bos = self.tokenizer.bos_token_id
        if bos is not None and len(tokens) and tokens[0] == bos:
            tokens, is_context = tokens[1:], is_context[1:]
        rows = len(tokens) + (bos is not None)
        if rows == 0:
            raise ValueError(f"Without a BOS token an example needs at least one token; {name} is empty.")
        if self.max_length is not None and rows > self.max_length:
            raise ValueError(
                f"`max_length` is {self.max_length} rows (BOS counts), but {name} has {rows}; cut the data into pieces "
                "before training."
            )
        if self.pad_with_eos:
            missing = self.max_length - rows
            tokens = np.pad(tokens, (0, missing), constant_values=self.tokenizer.eos_token_id)
            is_context = np.pad(is_context, (0, missing), constant_values=False)
        return Sentence(tokens, is_context)

    def _order(
        self, feature: Mapping[str, Any], name: str, mixture: OrderMixture, is_context: np.ndarray, min_context: int
    ) -> tuple[np.ndarray, int]:
        """The example's columns in generation order, and how many of them are given."""
        if feature.get("order") is not None:
            return _own_order(feature, name, is_context, min_context)
        if feature.get("num_context") is not None:
            raise ValueError(f"`num_context` belongs to an `order` of the example's own; {name} has no `order`.")
        given, free = is_context.nonzero()[0], (~is_context).nonzero()[0]
        drawn, num_drawn_context = mixture.draw(
            len(free),
            **self._stream(feature, name),
            min_context=max(min_context - len(given), 0),
        )
        columns = np.concatenate([given, free[drawn]])
        num_context = len(given) + num_drawn_context
        columns[:num_context].sort()
        return columns, num_context

    def _stream(self, feature: Mapping[str, Any], name: str) -> dict[str, int]:
        """What an example's random numbers are a function of."""
        if feature.get("example_index") is None:
            raise ValueError(
                f"Orders are drawn by example, but {name} has no `example_index`. Add the column with "
                "`dataset = with_example_index(dataset)`, and with the Trainer set `remove_unused_columns=False`. "
                f"The feature has the keys {sorted(feature)}."
            )
        index = as_integer("example_index", feature["example_index"])
        return {"example_index": index, "seed": self.seed, "epoch": self._clock.epoch}

    def _padding(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Rows of padding, `name` being one of a batch's entries."""
        if name == "loss_weights":
            return np.zeros(shape, dtype=np.float32)
        if name in ("position_ids", "target_position_ids"):
            # No position may come twice: padding goes on counting.
            return np.broadcast_to(np.arange(shape[-1]) + (name == "target_position_ids"), shape).copy()
        fillers = {"input_ids": self.tokenizer.pad_token_id, "labels": IGNORED}
        return np.full(shape, fillers[name], dtype=np.int64)

    def _padded(self, examples: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        lengths = np.array([len(example["input_ids"]) for example in examples])
        shape = len(examples), self._round_up(lengths.max())
        batch = {name: self._padding(name, shape) for name in examples[0]}
        batch["attention_mask"] = (np.arange(shape[1]) < lengths[:, None]).astype(np.int64)
        for number, example in enumerate(examples):
            rows = slice(lengths[number])
            for name, values in example.items():
                batch[name][number, rows] = values
        return batch

    def _packed(self, examples: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        total = sum(len(example["input_ids"]) for example in examples)
        padding = self._round_up(total) - total
        if padding:
            examples = [*examples, {name: self._padding(name, (padding,)) for name in examples[0]}]
        batch = {name: np.concatenate([example[name] for example in examples])[None] for name in examples[0]}
        lengths = [len(example["input_ids"]) for example in examples]
        return batch | {"segment_ids": np.repeat(np.arange(len(examples)), lengths)[None]}

    def _round_up(self, rows: int) -> int:
        multiple = self.pad_to_multiple_of or 1
        return -(-rows // multiple) * multiple


@dataclass
class DataCollatorForAnyOrderLM(DataCollatorWithOrders):
    """Draws an order for each example and makes batches whose rows are in generation order.

    Features, arguments and errors are those of [`DataCollatorWithOrders`]. Batches hold `input_ids`, `attention_mask`,
    `position_ids`, `target_position_ids` and `labels`, each int64 `[batch, rows]`. The beginning-of-sentence token is
    always row 0. Labels are -100 for given tokens, the beginning-of-sentence token and padding; the model's loss shifts
    them. Padding is on the right and goes on counting positions, so that a causal model needs no mask for it.

    Args:
        context_order: how given tokens come, as in `generate`: `"left_to_right"` or `"suffix_first"`. An `order` of the
            example's own stays as it is.

    Raises:
        ValueError: for another `context_order`.
    """

    context_order: str = "left_to_right"

    def __post_init__(self):
        super().__post_init__()
        if self.context_order not in CONTEXT_ORDERS:
            names = " or ".join(map(repr, CONTEXT_ORDERS))
            raise ValueError(f"`context_order` must be {names}, got {self.context_order!r}.")

    def _order(
        self, feature: Mapping[str, Any], name: str, mixture: OrderMixture, is_context: np.ndarray, min_context: int
    ) -> tuple[np.ndarray, int]:
        columns, num_context = super()._order(feature, name, mixture, is_context, min_context)
        if self.context_order == "left_to_right" or feature.get("order") is not None:
            return columns, num_context
        given, blanks = columns[:num_context], columns[num_context:]
        # Without a beginning-of-sentence token, the first token of the sentence is column 0.
        is_left = (given < blanks.min(initial=len(columns))) & (given >= min_context)
        return np.concatenate([given[np.argsort(is_left, kind="stable")], blanks]), num_context

    def _rows(
        self,
        feature: Mapping[str, Any],
        name: str,
        mixture: OrderMixture,
        sentence: Sentence,
        columns: np.ndarray,
        num_context: int,
    ) -> dict[str, np.ndarray]:
        input_ids = self._with_bos(sentence.tokens[columns])
        first = len(input_ids) - len(columns)
        labels = input_ids.copy()
        labels[: first + num_context] = IGNORED
        position_ids = np.concatenate([np.zeros(first, dtype=np.int64), columns + first])
        return {
            "input_ids": input_ids,
            "position_ids": position_ids,
            "target_position_ids": np.append(position_ids[1:], position_ids[-1] + 1),
            "labels": labels,
        }


class _Clock:
    """Epoch and training progress, seen by all worker processes.

    The main process writes a tensor in shared memory; each worker reads it and counts its own batches. A loader hands
    batches to its workers in turn, so the n-th batch of worker w of W is the pass's batch w + n * W.
    """

    def __init__(self):
        # Starts so far, epoch, first optimiser step, total steps (0: unknown), batches per step.
        self.shared = torch.tensor([0, 0, 0, 0, 1], dtype=torch.int64).share_memory_()
        self.count = 0
        self.counted = self._now()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # Pickled to a worker the tensor stays shared; pickled or copied otherwise it is a new one.
        self.shared.share_memory_()

    def _now(self) -> tuple[int, int]:
        """What a count belongs to: one start, in one process (a forked worker inherits its parent's count)."""
        return int(self.shared[0]), os.getpid()

    def start(self, epoch: int, first_step: int, total_steps: int | None, gradient_accumulation_steps: int) -> None:
        numbers = {
            "epoch": (epoch, 0),
            "first_step": (first_step, 0),
            "total_steps": (1 if total_steps is None else total_steps, 1),
            "gradient_accumulation_steps": (gradient_accumulation_steps, 1),
        }
        for name, (value, smallest) in numbers.items():
            if as_integer(name, value) < smallest:
                raise ValueError(f"`{name}` must be at least {smallest}, got {value}.")
        starts = int(self.shared[0]) + 1
        self.shared.copy_(torch.tensor([starts, epoch, first_step, total_steps or 0, gradient_accumulation_steps]))

    @property
    def epoch(self) -> int:
        return int(self.shared[1])

    @property
    def batches_seen(self) -> int:
        return self.count if self.counted == self._now() else 0

    @batches_seen.setter
    def batches_seen(self, count: int) -> None:
        if as_integer("batches_seen", count) < 0:
            raise ValueError(f"`batches_seen` must be at least 0, got {count}.")
        self.count = count
        self.counted = self._now()

    def progress(self) -> float:
        """The share of training that is done when the next batch is used.

        Above 1 for batches that a loader makes ahead and training never reaches.
        """
        _, _, first_step, total_steps, batches_per_step = self.shared.tolist()
        if total_steps == 0:
            raise ValueError(
                "An OrderCurriculum needs to know how far training is. Call `collator.start_epoch(epoch, first_step, "
                "total_steps)` before each pass over the data; AnyOrderTrainer does."
            )
        worker = torch.utils.data.get_worker_info()
        batch = self.batches_seen if worker is None else worker.id + self.batches_seen * worker.num_workers
        return (first_step + batch // batches_per_step) / total_steps


def _as_integers(key: str, values: Any, name: str, length: int | None = None) -> np.ndarray:
    """`values` as int64 `[length]`, or a ValueError that names the key and the example."""
    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{key}` must be a flat sequence of integers, which fails in {name}: {error}") from None
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        raise ValueError(
            f"`{key}` must be a flat sequence of integers, got the shape {list(array.shape)} and dtype {array.dtype} "
            f"in {name}."
        )
    if length is not None and len(array) != length:
        raise ValueError(f"`{key}` must have the length {length} of `input_ids`, got {len(array)} in {name}.")
    return array.astype(np.int64, copy=False)


def _kept(attention_mask: np.ndarray, name: str) -> slice:
    """The one run of ones in the mask."""
    ones = np.flatnonzero(attention_mask)
    kept = slice(ones[0], ones[-1] + 1) if len(ones) else slice(0)
    if (attention_mask[kept] != 1).any():
        raise ValueError(f"`attention_mask` must be one run of ones with zeros around it, which fails in {name}.")
    return kept


def _own_order(
    feature: Mapping[str, Any], name: str, is_context: np.ndarray, min_context: int
) -> tuple[np.ndarray, int]:
    """The order that the feature brings along, checked, and the number of given columns at its front."""
    order = _as_integers("order", feature["order"], name)
    columns = len(is_context)
    if not np.array_equal(np.sort(order), np.arange(columns)):
        raise ValueError(
            f"`order` must be a permutation of the {columns} columns 0 ... {columns - 1} (BOS is not counted, EOS of "
            f"`pad_with_eos` is), got {order.tolist()} in {name}."
        )
    labelled = int(is_context.sum())
    num_context = feature.get("num_context")
    num_context = labelled if num_context is None else as_integer("num_context", num_context)
    if not 0 <= num_context <= columns:
        raise ValueError(f"`num_context` must lie between 0 and the {columns} columns, got {num_context} in {name}.")
    if is_context[order[num_context:]].any():
        raise ValueError(
            f"Tokens labelled {IGNORED} are given, so they must be among the first `num_context` ({num_context}) "
            f"entries of `order`, got {order.tolist()} in {name}."
        )
    return order, max(num_context, min_context)


def with_example_index(dataset: "Dataset | IterableDataset") -> "Dataset | IterableDataset":
    """Adds the column `example_index`, by which [`DataCollatorForAnyOrderLM`] draws orders.

    Call it last. Parts that are numbered and then put together (`concatenate_datasets`, `interleave_datasets`) have
    examples with the same number, which share their orders; [`check_example_index`] refuses that.

    A `Dataset` is numbered 0, 1, 2, .... An `IterableDataset` has no numbers that hold for any number of workers (each
    counts its own shards), so there the index is a 63-bit hash of the example's `input_ids`: tokenise before. Equal
    examples then share their order within an epoch.

    Args:
        dataset: one split.

    Raises:
        TypeError: for anything but a `datasets.Dataset` or `datasets.IterableDataset`.
        ValueError: where the column exists already or, in an `IterableDataset`, examples have no `input_ids`.
    """
    from datasets import Dataset, Features, IterableDataset, Value

    if not isinstance(dataset, (Dataset, IterableDataset)):
        raise TypeError(
            "`dataset` must be a datasets.Dataset or datasets.IterableDataset (one split, not a dictionary of splits), "
            f"got {type(dataset).__name__}."
        )
    if "example_index" in (dataset.column_names or ()):
        raise ValueError(
            "`dataset` has the column `example_index` already; to number it anew, first use "
            '`dataset.remove_columns("example_index")`.'
        )
    if isinstance(dataset, Dataset):
        return dataset.add_column("example_index", np.arange(len(dataset)))
    features = dataset.features
    if features is not None:
        features = Features({**features, "example_index": Value("int64")})
    return dataset.map(_hashed_index, features=features)


def _hashed_index(example: Mapping[str, Any]) -> dict[str, int]:
    if example.get("input_ids") is None:
        raise ValueError(
            f"`with_example_index` hashes `input_ids`, so tokenise first; the example has the keys {sorted(example)}."
        )
    tokens = _as_integers("input_ids", example["input_ids"], "an example of the data set").astype("<i8")
    # One bit less than 64: the column is a signed integer.
    return {"example_index": int.from_bytes(hashlib.blake2b(tokens.tobytes(), digest_size=8).digest(), "little") >> 1}


def check_example_index(dataset: Any) -> None:
    """Checks that no two examples of a `datasets.Dataset` have the same `example_index`; others are not read.

    Raises:
        ValueError: two examples have the same one, as where numbered data sets are concatenated.
    """
    if not isinstance(dataset, Sized) or "example_index" not in (getattr(dataset, "column_names", None) or ()):
        return
    indices, counts = np.unique(dataset.with_format("numpy")["example_index"][:], return_counts=True)
    if (counts > 1).any():
        raise ValueError(
            f"`example_index` must differ between examples, or they share their orders; got {indices[counts.argmax()]} "
            f"in {counts.max()} of them. Number the data set after its parts are put together: "
            '`with_example_index(dataset.remove_columns("example_index"))`.'
        )


__all__ = ["DataCollatorForAnyOrderLM", "DataCollatorWithOrders", "check_example_index", "with_example_index"]
