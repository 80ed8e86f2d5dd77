# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Loads text, holds some of it out, and turns it into rows of tokens."""

import itertools
import math
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, IterableDataset, load_dataset
from transformers import PreTrainedTokenizerBase

from .collators import with_example_index


# Shorter passages recur by chance.
SHARED_PASSAGE_CHARACTERS = 50

_COMPRESSIONS = {".bz2", ".gz", ".xz", ".zst"}
_BUILDERS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".txt": "text"}


def reference_texts() -> list[str]:
    """Returns English text that ships with CPython: the topics of `pydoc`'s help, about 465,000 characters.

    The text differs a little between Python versions.
    """
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def hold_out(texts: list[str], fraction: float, seed: int = 0) -> tuple[list[str], list[str]]:
    """Splits whole texts into training texts and held-out texts that do not overlap.

    Texts that share a passage of 50 characters (all white space counts as one space), directly or through other texts,
    form a group and stay on the same side. Groups are shuffled and held out while they fit. Many topics of
    `reference_texts` repeat others.

    Args:
        texts: the texts. Their order only decides the order of the result.
        fraction: the largest share of all characters that is held out.
        seed: seed of the shuffle.

    Returns:
        Training texts and held-out texts, each in the order of `texts`.

    Raises:
        ValueError: `fraction` is outside (0, 1), or so small that no group fits.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie in (0, 1), got {fraction}.")
    group_of = list(range(len(texts)))

    def find(index: int) -> int:
        while group_of[index] != index:
            index = group_of[index]
        return index

    first_with = {}
    for index, text in enumerate(texts):
        text = " ".join(text.split())
        for start in range(len(text) - SHARED_PASSAGE_CHARACTERS + 1):
            passage = text[start : start + SHARED_PASSAGE_CHARACTERS]
            group_of[find(index)] = find(first_with.setdefault(passage, index))
    groups = {}
    for index in range(len(texts)):
        groups.setdefault(find(index), []).append(index)

    # Sorted by content, so the order of `texts` does not change the split.
    shuffled = sorted(groups.values(), key=lambda group: min(texts[index] for index in group))
    random.Random(seed).shuffle(shuffled)
    room = fraction * sum(map(len, texts))
    held = set()
    for group in shuffled:
        size = sum(len(texts[index]) for index in group)
        if size <= room:
            held.update(group)
            room -= size
    if not held:
        raise ValueError(f"fraction must leave room for a text that shares nothing with the others, got {fraction}.")
    return [t for i, t in enumerate(texts) if i not in held], [t for i, t in enumerate(texts) if i in held]


@dataclass
class TextArguments:
    """Where text comes from and how much of it is held out, for `HfArgumentParser` or in code."""

    dataset_name: str | None = field(default=None, metadata={"help": "A dataset on the Hub, or a folder of one."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    train_file: str | None = field(
        default=None,
        metadata={"help": ".txt (a text per line), .json, .jsonl, .csv or .parquet, also as .xz, .gz, .bz2, .zst."},
    )
    validation_file: str | None = field(default=None, metadata={"help": "The same for held-out text."})
    text_column: str = field(default="text", metadata={"help": "Name of the column with the text."})
    validation_fraction: float = field(
        default=0.06, metadata={"help": "Held-out share if the data has no validation part of its own."}
    )
    split_seed: int = field(default=0, metadata={"help": "Seed of the choice of held-out texts."})

    @property
    def text_source(self) -> str:
        """The data's name, for reports."""
        return self.dataset_name or self.train_file or "pydoc_data.topics"

    def load(self) -> DatasetDict:
        """Loads the splits `train` and `validation`, each with the column `text`.

        The source is `dataset_name`, `train_file` or, if neither is given, [`reference_texts`]. Without a validation
        split or `validation_file`, `validation_fraction` of the texts is held out: the end of a `.txt` file, whole
        topics of `reference_texts` (see [`hold_out`]), and otherwise texts at random. Training texts that equal a
        held-out text of at least 50 characters are dropped.

        Raises:
            ValueError: there are two sources, a file type is unknown, `text_column` is missing, the fraction is outside
                (0, 1), or there is only one text to split.
            FileNotFoundError: a file does not exist.
        """
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must lie in (0, 1), got {self.validation_fraction}.")
        loaded = self._open_source()
        if loaded is None:
            parts = hold_out(reference_texts(), self.validation_fraction, self.split_seed)
            splits = zip(("train", "validation"), parts, strict=True)
            return DatasetDict({split: Dataset.from_dict({"text": texts}) for split, texts in splits})

        train = loaded["train"]
        self._check_column(train.column_names)
        if "validation" not in loaded:
            if len(train) < 2:
                raise ValueError("a single text cannot be split: give validation_file, or a file with several texts.")
            is_text_file = self.train_file is not None and _find_builder(self.train_file) == "text"
            parts = train.train_test_split(self.validation_fraction, seed=self.split_seed, shuffle=not is_text_file)
            loaded = {"train": parts["train"], "validation": parts["test"]}
        loaded = DatasetDict({split: self._select_text(loaded[split]) for split in ("train", "validation")})
        held = {text for text in loaded["validation"]["text"] if len(text) >= SHARED_PASSAGE_CHARACTERS}
        loaded["train"] = loaded["train"].filter(lambda row: row["text"] not in held)
        return loaded

    def _open_source(self, **options) -> dict | None:
        """Opens the named source with `load_dataset`; `None` if none is named."""
        if self.dataset_name is not None and self.train_file is not None:
            raise ValueError(f"give dataset_name or train_file, not both, got {self.dataset_name}, {self.train_file}.")
        if self.validation_file is not None and self.train_file is None:
            raise ValueError(f"validation_file needs train_file, got {self.validation_file} alone.")
        if self.dataset_name is not None:
            loaded = load_dataset(self.dataset_name, self.dataset_config_name, **options)
        elif self.train_file is not None:
            builder = _find_builder(self.train_file)
            files = {"train": self.train_file}
            if self.validation_file:
                files["validation"] = self.validation_file
            for file in files.values():
                if not Path(file).is_file():
                    raise FileNotFoundError(f"train_file and validation_file must exist, got {file}.")
            loaded = load_dataset(builder, data_files=files, **options)
        else:
            return None
        if "train" not in loaded:
            raise ValueError(f"the dataset must have a split named train, got {', '.join(loaded)}.")
        return loaded

    def _check_column(self, columns: Iterable[str]) -> None:
        if self.text_column not in columns:
            raise ValueError(f"text_column must be one of {', '.join(columns)}, got {self.text_column!r}.")

    def _select_text(self, dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
        dataset = dataset.select_columns(self.text_column)
        return dataset if self.text_column == "text" else dataset.rename_column(self.text_column, "text")


@dataclass
class StreamingTextArguments(TextArguments):
    """[`TextArguments`] of a script that trains, which may read the training text as a stream."""

    streaming: bool = field(
        default=False,
        metadata={"help": "Read the training text as a stream: at once, in constant memory, without a copy on disk."},
    )
    shuffle_buffer_size: int = field(
        default=10_000, metadata={"help": "With --streaming: rows of the buffer that shuffles; 1 for no shuffling."}
    )
    validation_texts: int | None = field(
        default=None,
        metadata={
            "help": "With --streaming: most held-out texts, the first of the validation part or, if there is none, of "
            "the training text. Default: 1,000."
        },
    )

    def load(self) -> DatasetDict | dict[str, Dataset | IterableDataset]:
        """Loads the splits `train` and `validation`, each with the column `text`.

        Without `streaming`, see [`TextArguments.load`]. With it, `train` is an `IterableDataset` and nothing reads it
        as a whole; `validation` is a `Dataset` in memory with at most `validation_texts` texts. They are the first of
        the validation split or `validation_file`. If there is neither, they are the first of the training text, which
        must have more. As the stream passes by, training texts that equal a held-out one are dropped: those of at
        least 50 characters, or all if the texts were taken from the training text.

        `shuffle_buffer_size` is for the rows, which are not made here: `rows.shuffle(seed, buffer_size=...)` after
        [`tokenize_and_chunk`].

        Raises:
            ValueError: as in [`TextArguments.load`]; there is no text to stream; `shuffle_buffer_size` or
                `validation_texts` is below 1; an option is given that does not go with `streaming`, or only with it.
            FileNotFoundError: a file does not exist.
        """
        if not self.streaming:
            if self.validation_texts is not None:
                raise ValueError(
                    f"validation_texts is for streaming, got {self.validation_texts}: give validation_fraction."
                )
            return super().load()
        count = 1000 if self.validation_texts is None else self.validation_texts
        for name, value in (("shuffle_buffer_size", self.shuffle_buffer_size), ("validation_texts", count)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if self.validation_fraction != TextArguments.validation_fraction:
            raise ValueError(
                f"validation_fraction needs the whole text, got {self.validation_fraction} with streaming: give "
                "validation_texts, which holds out the first texts, or validation_file."
            )
        loaded = self._open_source(streaming=True)
        if loaded is None:
            raise ValueError("streaming needs a text to stream, got none: give dataset_name or train_file.")
        # A stream knows its columns only from its rows.
        self._check_column(next(iter(loaded["train"]), {}))
        train = self._select_text(loaded["train"])
        is_own = "validation" not in loaded
        source = train if is_own else self._select_text(loaded["validation"])
        held = [row["text"] for row in source.take(count + is_own)]
        if is_own and len(held) <= count:
            raise ValueError(
                f"validation_texts must leave texts to train on, got {count} of {len(held)}: give fewer, or "
                "validation_file."
            )
        held = held[:count]
        # Not `skip`: it would skip a part of the texts in each of several shards, and train on the others.
        shortest = 1 if is_own else SHARED_PASSAGE_CHARACTERS
        dropped = frozenset(text for text in held if text and len(text) >= shortest)
        train = train.filter(_is_kept, fn_kwargs={"dropped": dropped})
        return {"train": train, "validation": Dataset.from_dict({"text": held})}


def _is_kept(row: dict[str, str], dropped: frozenset[str]) -> bool:
    return row["text"] not in dropped


def _find_builder(path: str) -> str:
    suffixes = [suffix for suffix in Path(path).suffixes if suffix not in _COMPRESSIONS]
    if not suffixes or suffixes[-1] not in _BUILDERS:
        raise ValueError(f"files must end in one of {', '.join(sorted(_BUILDERS))} (also compressed), got {path}.")
    return _BUILDERS[suffixes[-1]]


def tokenize_and_chunk(
    dataset: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
    join_with: str | None = None,
    num_proc: int | None = None,
) -> Dataset | IterableDataset:
    """Tokenises the column `text` and cuts it into rows of at most `block_size` tokens. No token is lost.

    A stream gives the rows of the `Dataset` with the same texts, as they are asked for.

    Args:
        dataset: a data set with a column `text`.
        tokenizer: a fast tokenizer. Text that spells a special token is tokenised as ordinary text.
        block_size: the largest number of tokens in a row, BOS not counted. The last row of a text is shorter.
        join_with: `None` cuts each text separately. A string is put between consecutive texts, and rows then run across
            the ends of texts (within each 1,000 texts; in a stream of several files also within each file).
        num_proc: processes that share the work. Not for a stream, which the workers of a data loader tokenise.

    Returns:
        Rows with `input_ids` (no special tokens), `example_index` (see [`with_example_index`]) and `num_characters`,
        the number of characters that the row's predicted tokens spell. If the tokenizer has no BOS, the first token of
        a row is not predicted and does not count.

    Raises:
        ValueError: `block_size` is below 2, the tokenizer is not fast (character counts need offsets), or `num_proc` is
            given for a stream.
    """
    if block_size < 2:
        raise ValueError(f"block_size must be at least 2, got {block_size}.")
    if not tokenizer.is_fast:
        raise ValueError(f"tokenizer must be a fast tokenizer, got {type(tokenizer).__name__}.")
    dataset = dataset.select_columns("text")
    if not isinstance(dataset, IterableDataset):
        options = {"num_proc": num_proc, "desc": "Tokenising"}
    elif num_proc is None:
        # Batches are held in memory. Where texts are not joined, their size does not change the rows.
        options = {"batch_size": 100 if join_with is None else 1000}
    else:
        raise ValueError(
            f"num_proc must be None for a stream, got {num_proc}: its rows are tokenised by the workers of the data "
            "loader (dataloader_num_workers)."
        )
    rows = dataset.map(
        _cut_rows,
        batched=True,
        remove_columns=["text"],
        fn_kwargs={"tokenizer": tokenizer, "block_size": block_size, "join_with": join_with},
        **options,
    )
    return with_example_index(rows)


def _cut_rows(
    batch: dict[str, list], tokenizer: PreTrainedTokenizerBase, block_size: int, join_with: str | None
) -> dict[str, list]:
    texts = batch["text"]
    if join_with is not None:
        texts = [text + join_with for text in texts[:-1]] + texts[-1:]
    tokenised = [_tokenize(text, tokenizer) for text in texts if text]
    if join_with is not None and tokenised:
        offsets = np.cumsum([0, *(len(text) for text in texts if text)])[:-1]
        ends = np.concatenate([ends + offset for (_, ends), offset in zip(tokenised, offsets, strict=True)])
        tokenised = [(np.concatenate([ids for ids, _ in tokenised]), ends)]
    rows = {"input_ids": [], "num_characters": []}
    for ids, ends in tokenised:
        # Characters before token i: ends[i - 1]. Without BOS the first token of a row is not predicted.
        before = np.concatenate([[0], ends])[tokenizer.bos_token_id is None :]
        for start in range(0, len(ids), block_size):
            stop = min(start + block_size, len(ids))
            # A copy: in a stream's shuffle buffer a view would keep the whole text in memory.
            rows["input_ids"].append(ids[start:stop].copy())
            rows["num_characters"].append(int(ends[stop - 1] - before[start]))
    return rows


def _tokenize(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[np.ndarray, np.ndarray]:
    """Returns ids and the number of characters of `text` up to each token's end; the last one is the text's length."""
    encoded = tokenizer(
        text,
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        split_special_tokens=True,
        verbose=False,
    )
    ends = np.maximum.accumulate(np.array([end for _, end in encoded["offset_mapping"]], dtype=np.int64))
    ends[-1:] = len(text)
    return np.array(encoded["input_ids"], dtype=np.int32), ends


def count_characters(dataset: Dataset) -> int:
    """Counts the characters of the column `text`."""
    batches = dataset.with_format("arrow").iter(1000)
    return sum(pc.sum(pc.utf8_length(batch["text"])).as_py() or 0 for batch in batches)


def sample_texts(dataset: Dataset | IterableDataset, characters: int = 10_000_000) -> list[str]:
    """Takes every k-th text of a data set, about `characters` in total, or all texts if they have fewer.

    Of a stream it takes the first texts and reads no further.
    """
    if isinstance(dataset, IterableDataset):
        texts, count = [], 0
        for row in dataset:
            texts.append(row["text"])
            count += len(row["text"])
            if count >= characters:
                break
        return texts
    step = max(1, math.ceil(count_characters(dataset) / characters))
    return dataset[::step]["text"]


def unigram_bits(train: Iterable[str], held: Iterable[str]) -> dict[str, float]:
    """Computes the bits per character of a model without context, the reference that a model must beat.

    Args:
        train: training texts, see [`sample_texts`].
        held: held-out texts.

    Returns:
        `unigram_entropy_all`, the entropy of the characters of all texts; `unigram_cross_entropy_held_out`, of the
        held-out text under the frequencies of the training text (one added to every count); and `characters`, their
        number in all texts.
    """
    counters = [Counter(itertools.chain.from_iterable(texts)) for texts in (train, held)]
    characters = sorted(counters[0] | counters[1])
    train_counts, held_counts = np.array([[each[c] for c in characters] for each in counters], dtype=np.float64)
    shares = (train_counts + held_counts) / (train_counts + held_counts).sum()
    smoothed = (train_counts + 1) / (train_counts + 1).sum()
    return {
        "unigram_entropy_all": float(-(shares * np.log2(shares)).sum()),
        "unigram_cross_entropy_held_out": float(-(held_counts / held_counts.sum() * np.log2(smoothed)).sum()),
        "characters": sum(each.total() for each in counters),
    }
