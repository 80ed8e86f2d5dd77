# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Data collators that draw an order for each example and turn sentences into batches of rows."""

import hashlib
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import get_worker_info
from transformers import PreTrainedTokenizerBase

from ..canvas_aoarm import CONTEXT_ORDERS
from .orders import OrderCurriculum, OrderMixture, OrderSpec, as_integer, parse_order


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


IGNORED = -100


@dataclass(frozen=True)
class OrderedExample:
    """A checked example with its order. Columns count the beginning-of-sentence token.

    Args:
        name: the example's name in messages.
        stream: seed, epoch and example index, which its random numbers depend on; `None` without an index.
        tokens: int64 `[columns]`, in sentence order.
        columns: int64 `[columns]`, in generation order.
        num_context: how many columns at the front of `columns` are given.
        mixture: where the order was drawn from; `None` if the example brought its own.
    """

    name: str
    stream: dict[str, int] | None
    tokens: np.ndarray
    columns: np.ndarray
    num_context: int
    mixture: OrderMixture | None


@dataclass
class DataCollatorWithOrders:
    """Base class of [`DataCollatorForAnyOrderLM`] and [`DataCollatorForMaskedDiffusion`]: features, orders and a clock.

    A feature is a mapping with these keys. Other keys and values of `None` are ignored.

    - `input_ids`: the tokens of a sentence, in sentence order. A missing beginning-of-sentence token (BOS) is
      prepended, if the tokenizer has one. BOS is always given. Without BOS the first token of the order is given.
    - `example_index`: the example's index in the data set, see [`with_example_index`]. The order is a function of
      `seed`, the epoch and this index, so batches, workers and processes do not change it.
    - `example_epoch` (optional): the pass over the data that the example belongs to. `AnyOrderTrainer` adds it to
      streams, which it repeats without telling the collator. Default: the epoch of [`start_epoch`].
    - `attention_mask` (optional): 0 marks padding at either end, which is dropped.
    - `labels` (optional): equal to `input_ids`, or -100 for given tokens. Given tokens come first, in sentence order.
      The order is drawn for the others.
    - `order` (optional): the example's own order, a permutation of 0 ... n - 1 for its n tokens without BOS. It
      replaces the drawn order, so `example_index` is not needed.
    - `num_context` (optional, with `order`): how many entries of `order` are given. Default: as many as have the
      label -100.

    Batches are padded on the right. With a curriculum, call [`start_epoch`] before each pass over the data.

    Args:
        tokenizer: gives the ids of the special tokens.
        order: a specification that [`OrderMixture.parse`] reads, or an [`OrderCurriculum`].
        seed: the seed of all orders.
        max_length: the largest number of rows of an example, BOS included. Longer examples are an error.
        pad_to_multiple_of: the number of rows becomes a multiple of this.
        pad_with_eos: extend sentences with end-of-sentence tokens to `max_length` rows. These tokens are part of the
            order and of the loss, which teaches the model lengths.
        packing: make the whole batch one row `[1, rows]`, with `segment_ids` in place of the attention mask: 0, 1, ...
            for the examples, and one more segment for the padding that `pad_to_multiple_of` needs.
        vocab_size: the model's vocabulary size. Larger ids are an error. `AnyOrderTrainer` sets it.

    Raises:
        ValueError: the tokenizer lacks a special token that is needed, an option is out of range, or (when called) a
            feature breaks the rules above. The message names the example.
    """

    tokenizer: PreTrainedTokenizerBase
    order: OrderSpec = "uniform"
    seed: int = 0
    max_length: int | None = None
    pad_to_multiple_of: int | None = None
    pad_with_eos: bool = False
    packing: bool = False
    vocab_size: int | None = None

    # Whether examples with an order of their own need an index, too.
    always_needs_index = False

    def __post_init__(self):
        self.order = parse_order(self.order)
        for name in ("max_length", "pad_to_multiple_of", "vocab_size"):
            value = getattr(self, name)
            if value is not None:
                as_integer(name, value, smallest=1)
        needs_padding = not self.packing or self.pad_to_multiple_of is not None
        if needs_padding and self.tokenizer.pad_token_id is None:
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
        self._clock = _OrderClock()

    def start_epoch(
        self,
        epoch: int,
        first_step: int = 0,
        total_steps: int | None = None,
        gradient_accumulation_steps: int = 1,
    ) -> None:
        """Starts a pass over the data: sets the epoch that orders depend on, and the clock of a curriculum.

        Worker processes follow, even if they are already running. Call it before iterating over the data loader. After
        a pass that was not finished, use a new loader, because persistent workers can still be making its batches.

        Args:
            epoch: the pass over the data, >= 0.
            first_step: the optimiser step that the next batch belongs to. Batches that a resumed run skips without
                collating them do not count.
            total_steps: optimiser steps of the whole training, at least 1. A curriculum needs it.
            gradient_accumulation_steps: batches per optimiser step.

        Raises:
            TypeError: a number is not an integer.
            ValueError: a number is out of range.
        """
        as_integer("epoch", epoch, smallest=0)
        as_integer("first_step", first_step, smallest=0)
        as_integer("gradient_accumulation_steps", gradient_accumulation_steps, smallest=1)
        if total_steps is not None:
            as_integer("total_steps", total_steps, smallest=1)
        self._clock.start(epoch, first_step, total_steps or 0, gradient_accumulation_steps)

    @property
    def batches_seen(self) -> int:
        """Batches made in this process since the pass started. Set it back after batches that are not of the pass."""
        return self._clock.batches_seen

    @batches_seen.setter
    def batches_seen(self, count: int) -> None:
        self._clock.batches_seen = count

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Makes a batch. See the class for features, contents and errors."""
        if len(features) == 0:
            raise ValueError("`features` must hold at least one example, got none.")
        mixture = self.order
        if isinstance(mixture, OrderCurriculum):
            mixture = mixture.at(self._clock.progress())
        examples = [self._make_rows(self._order_example(*each, mixture)) for each in enumerate(features)]
        batch = self._pack(examples) if self.packing else self._pad(examples)
        self._clock.batches_seen += 1
        return {name: torch.from_numpy(values) for name, values in batch.items()}

    def _make_rows(self, example: OrderedExample) -> dict[str, np.ndarray]:
        """Makes the rows of one example, `[rows]` for each entry of the batch."""
        raise NotImplementedError

    def _order_example(self, number: int, feature: Mapping[str, Any], mixture: OrderMixture) -> OrderedExample:
        """Checks a feature and gives it an order."""
        index = feature.get("example_index")
        name = f"feature {number} of the batch" if index is None else f"example {index}"
        has_order = feature.get("order") is not None
        stream = None
        if index is not None:
            index = as_integer("example_index", index)
            epoch = feature.get("example_epoch")
            epoch = self._clock.epoch if epoch is None else as_integer("example_epoch", epoch, smallest=0)
            stream = {"example_index": index, "seed": self.seed, "epoch": epoch}
        elif self.always_needs_index or not has_order:
            raise ValueError(
                f"Orders are drawn by example, but {name} has no `example_index`. Add the column with "
                "`dataset = with_example_index(dataset)`, and with the Trainer set `remove_unused_columns=False`. "
                f"The feature has the keys {sorted(feature)}."
            )
        tokens, is_given = self._read_tokens(feature, name)
        if has_order:
            columns, num_context = _read_order(feature, name, is_given, self.tokenizer.bos_token_id is not None)
            return OrderedExample(name, stream, tokens, columns, num_context, None)
        if feature.get("num_context") is not None:
            raise ValueError(f"`num_context` belongs to an `order` of the example's own; {name} has no `order`.")
        # A BOS is one of the given tokens. Without any, the first token of the order is given.
        given, free = is_given.nonzero()[0], (~is_given).nonzero()[0]
        drawn, num_drawn = mixture.draw(len(free), **stream, min_context=max(1 - len(given), 0))
        columns, num_context = np.concatenate([given, free[drawn]]), len(given) + num_drawn
        columns[:num_context].sort()
        return OrderedExample(name, stream, tokens, columns, num_context, mixture)

    def _read_tokens(self, feature: Mapping[str, Any], name: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the tokens, int64 `[columns]`, and which are given, bool `[columns]`. Both start with BOS, if any."""
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
            mask = _as_integers("attention_mask", feature["attention_mask"], name, length=len(tokens))
            ones = np.flatnonzero(mask)
            real = slice(ones[0], ones[-1] + 1) if len(ones) else slice(0)
            if (mask[real] != 1).any():
                raise ValueError(f"`attention_mask` must be one run of ones with zeros around it, fails in {name}.")
            tokens, labels = tokens[real], labels[real]
        is_given = labels == IGNORED
        if ((labels != tokens) & ~is_given).any():
            raise ValueError(
                f"`labels` must equal `input_ids` or be {IGNORED}, unshifted and in sentence order; {name} has others."
            )

        bos = self.tokenizer.bos_token_id
        if bos is not None:
            start = int(len(tokens) > 0 and tokens[0] == bos)
            tokens = np.concatenate([[bos], tokens[start:]])
            is_given = np.concatenate([[True], is_given[start:]])
        if len(tokens) == 0:
            raise ValueError(f"Without a BOS token an example needs at least one token; {name} is empty.")
        if self.max_length is not None and len(tokens) > self.max_length:
            raise ValueError(
                f"`max_length` is {self.max_length} rows (BOS counts), but {name} has {len(tokens)}; cut the data into "
                "pieces before training."
            )
        if self.pad_with_eos:
            missing = self.max_length - len(tokens)
            tokens = np.pad(tokens, (0, missing), constant_values=self.tokenizer.eos_token_id)
            is_given = np.pad(is_given, (0, missing), constant_values=False)
        return tokens, is_given

    def _append_padding(self, rows: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
        """Appends rows of padding to an example."""
        if count == 0:
            return rows
        # Positions go on counting, because a position must not occur twice.
        positions = np.arange(count) + len(rows["input_ids"])
        padding = {
            "input_ids": np.full(count, self.tokenizer.pad_token_id),
            "labels": np.full(count, IGNORED),
            "loss_weights": np.zeros(count, dtype=np.float32),
            "position_ids": positions,
            "target_position_ids": positions + 1,
        }
        return {name: np.concatenate([values, padding[name]]) for name, values in rows.items()}

    def _pad(self, examples: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        lengths = np.array([len(example["input_ids"]) for example in examples])
        longest = self._round_up(int(lengths.max()))
        padded = [self._append_padding(each, longest - len(each["input_ids"])) for each in examples]
        batch = {name: np.stack([example[name] for example in padded]) for name in padded[0]}
        return batch | {"attention_mask": (np.arange(longest) < lengths[:, None]).astype(np.int64)}

    def _pack(self, examples: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        total = sum(len(example["input_ids"]) for example in examples)
        if padding := self._round_up(total) - total:
            empty = {name: values[:0] for name, values in examples[0].items()}
            examples = [*examples, self._append_padding(empty, padding)]
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
    `position_ids`, `target_position_ids` and `labels`, each int64 `[batch, rows]`. BOS is always row 0. Labels are -100
    for given tokens, BOS and padding; the model's loss shifts them. Padding is on the right and its positions go on
    counting, so causal attention needs no mask for it.

    Args:
        context_order: the order of given tokens, as in `generate`: `"left_to_right"` or `"suffix_first"`. An example's
            own `order` is not changed.

    Raises:
        ValueError: `context_order` has another value.
    """

    context_order: str = "left_to_right"

    def __post_init__(self):
        super().__post_init__()
        if self.context_order not in CONTEXT_ORDERS:
            names = " or ".join(map(repr, CONTEXT_ORDERS))
            raise ValueError(f"`context_order` must be {names}, got {self.context_order!r}.")

    def _make_rows(self, example: OrderedExample) -> dict[str, np.ndarray]:
        columns, num_context = example.columns, example.num_context
        if self.context_order == "suffix_first" and example.mixture is not None:
            given, blanks = columns[:num_context], columns[num_context:]
            # As in `canvas_aoarm.resolve_context_order`; tests/test_data_collator.py compares the two.
            is_left = (given > 0) & (given < blanks.min(initial=len(columns)))
            columns = np.concatenate([given[np.argsort(is_left, kind="stable")], blanks])
        input_ids = example.tokens[columns]
        labels = input_ids.copy()
        labels[:num_context] = IGNORED
        return {
            "input_ids": input_ids,
            "position_ids": columns,
            "target_position_ids": np.append(columns[1:], columns[-1] + 1),
            "labels": labels,
        }


class _OrderClock:
    """Epoch and training progress, seen by all worker processes.

    The main process writes a tensor in shared memory. Each worker reads it and counts its own batches. A loader hands
    batches to its workers in turn, so batch n of worker w of W is batch w + n * W of the pass.
    """

    def __init__(self):
        # Passes started, epoch, first optimiser step, total steps (0: unknown), batches per step.
        self.shared = torch.tensor([0, 0, 0, 0, 1]).share_memory_()
        self.batches_seen = 0

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # The tensor stays shared if a worker unpickles it. Any other copy is a new tensor.
        self.shared.share_memory_()

    def start(self, *numbers: int) -> None:
        self.shared.copy_(torch.tensor([int(self.shared[0]) + 1, *numbers]))

    @property
    def epoch(self) -> int:
        return int(self.shared[1])

    @property
    def batches_seen(self) -> int:
        # A new pass starts at 0, and so does a worker, which may inherit the main process's count.
        return self._count if self._counted_in == self._current_pass() else 0

    @batches_seen.setter
    def batches_seen(self, count: int) -> None:
        self._count, self._counted_in = count, self._current_pass()

    def _current_pass(self) -> tuple[int, int | None]:
        worker = get_worker_info()
        return int(self.shared[0]), None if worker is None else worker.id

    def progress(self) -> float:
        """Returns the share of training that is done when the next batch is used.

        It can exceed 1, because loaders make batches ahead that training does not use.
        """
        _, _, first_step, total_steps, batches_per_step = self.shared.tolist()
        if total_steps == 0:
            raise ValueError(
                "An OrderCurriculum needs to know how far training is. Call `collator.start_epoch(epoch, first_step, "
                "total_steps)` before each pass over the data; AnyOrderTrainer does."
            )
        worker = get_worker_info()
        batch = self.batches_seen if worker is None else worker.id + self.batches_seen * worker.num_workers
        return (first_step + batch // batches_per_step) / total_steps


def _as_integers(key: str, values: Any, name: str, length: int | None = None) -> np.ndarray:
    """Converts values to int64 `[length]`, or raises a ValueError that names the key and the example."""
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


def _read_order(feature: Mapping[str, Any], name: str, is_given: np.ndarray, has_bos: bool) -> tuple[np.ndarray, int]:
    """Returns the example's own order as columns, BOS first, and the number of given columns at its front."""
    order = _as_integers("order", feature["order"], name)
    length = len(is_given) - has_bos
    if not np.array_equal(np.sort(order), np.arange(length)):
        raise ValueError(
            f"`order` must be a permutation of the {length} columns 0 ... {length - 1} (BOS is not counted, EOS of "
            f"`pad_with_eos` is), got {order.tolist()} in {name}."
        )
    num_context = feature.get("num_context")
    num_context = is_given.sum() - has_bos if num_context is None else as_integer("num_context", num_context)
    if not 0 <= num_context <= length:
        raise ValueError(f"`num_context` must lie between 0 and the {length} columns, got {num_context} in {name}.")
    columns = np.concatenate([[0], order + 1]) if has_bos else order
    if is_given[columns[num_context + has_bos :]].any():
        raise ValueError(
            f"Tokens labelled {IGNORED} are given, so they must be among the first `num_context` ({num_context}) "
            f"entries of `order`, got {order.tolist()} in {name}."
        )
    return columns, max(int(num_context) + has_bos, 1)


def with_example_index(dataset: "Dataset | IterableDataset") -> "Dataset | IterableDataset":
    """Adds the column `example_index`, which collators draw orders by.

    Call it last: numbering parts and then joining them (`concatenate_datasets`, `interleave_datasets`) gives examples
    the same index and so the same orders, which [`check_example_index`] refuses.

    The index of a `Dataset` is 0, 1, 2, .... In an `IterableDataset` each worker counts its own shards, so a number
    would depend on the number of workers. There the index is a 63-bit hash of `input_ids`. Tokenise first. Equal
    examples share their order within an epoch.

    Args:
        dataset: one split.

    Raises:
        TypeError: `dataset` is not a `datasets.Dataset` or `datasets.IterableDataset`.
        ValueError: the column exists already, or examples of an `IterableDataset` have no `input_ids`.
    """
    from datasets import Dataset, Features, IterableDataset, Value

    if not isinstance(dataset, (Dataset, IterableDataset)):
        raise TypeError(
            "`dataset` must be a datasets.Dataset or datasets.IterableDataset (one split, not a dictionary of splits), "
            f"got {type(dataset).__name__}."
        )
    if "example_index" in (dataset.column_names or ()):
        raise ValueError(
            "`dataset` has the column `example_index` already; to number it again, first use "
            '`dataset.remove_columns("example_index")`.'
        )
    if isinstance(dataset, Dataset):
        return dataset.add_column("example_index", np.arange(len(dataset)))
    features = dataset.features and Features({**dataset.features, "example_index": Value("int64")})
    return dataset.map(_hash_tokens, features=features)


def _hash_tokens(example: Mapping[str, Any]) -> dict[str, int]:
    if example.get("input_ids") is None:
        raise ValueError(
            f"`with_example_index` hashes `input_ids`, so tokenise first; the example has the keys {sorted(example)}."
        )
    digest = hashlib.blake2b(np.asarray(example["input_ids"], dtype="<i8").tobytes(), digest_size=8).digest()
    # The column is a signed integer, so one bit is dropped.
    return {"example_index": int.from_bytes(digest, "little") >> 1}


def check_example_index(dataset: Any) -> None:
    """Checks that all examples of a `datasets.Dataset` have different indices. Other data sets are not read.

    Raises:
        ValueError: two examples have the same index, for example after joining numbered data sets.
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
