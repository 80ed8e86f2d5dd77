# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Text for training: where it comes from, what is held out, and how it becomes rows of tokens."""

import itertools
import math
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, load_dataset

from .collators import with_example_index


# Shorter passages recur by chance.
SHARED_PASSAGE_CHARACTERS = 50

_COMPRESSIONS = {".bz2", ".gz", ".xz", ".zst"}
_BUILDERS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".txt": "text"}


def reference_texts() -> list[str]:
    """English reference text that ships inside CPython: the topics of `pydoc`'s help (about 465,000 characters).

    The text differs a little from one Python version to the next.
    """
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def hold_out(texts: list[str], fraction: float, seed: int = 0) -> tuple[list[str], list[str]]:
    """Splits whole texts into training and held-out texts without any overlap.

    Texts that share a passage of 50 characters (any white space counting as one space), directly or through other
    texts, stay on the same side, so nothing that is held out is also trained on. Such groups of texts are shuffled and
    taken while they fit. (`reference_texts` needs this: many topics repeat others.)

    Args:
        texts: the texts; order decides nothing but the order of the result.
        fraction: at most this share of all characters is held out.
        seed: seed of the shuffle.

    Returns:
        Training texts and held-out texts, each in the order of `texts`.

    Raises:
        ValueError: `fraction` outside (0, 1), or so small that no group fits.
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

    # Sorted by content, so that the order of `texts` decides nothing.
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


def load_texts(
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    train_file: str | None = None,
    validation_file: str | None = None,
    text_column: str = "text",
    validation_fraction: float = 0.05,
    seed: int = 0,
) -> DatasetDict:
    """Training and validation texts with one column, `text`.

    Sources: `dataset_name` (a Hub dataset, or a folder `datasets` can load), or `train_file` (`.txt`, `.json`,
    `.jsonl`, `.csv` or `.parquet`, also compressed as `.xz`, `.gz`, `.bz2` or `.zst`; each line of a `.txt` file is a
    text), or neither: `reference_texts`.

    Without a validation split or `validation_file`, `validation_fraction` of the texts is held out: of `.txt` files the
    last part in one piece, of `reference_texts` whole topics by `hold_out`, else whole texts at random. Training texts
    that are equal to a held-out text of at least 50 characters are dropped.

    Raises:
        ValueError: more than one source, a file type that is not known, no column `text_column`, a fraction outside
            (0, 1), or a single text, of which nothing can be held out.
        FileNotFoundError: no such file.
    """
    if dataset_name is not None and train_file is not None:
        raise ValueError(f"give dataset_name or train_file, not both, got {dataset_name} and {train_file}.")
    if validation_file is not None and train_file is None:
        raise ValueError(f"validation_file needs train_file, got {validation_file} alone.")
    if not 0 < validation_fraction < 1:
        raise ValueError(f"validation_fraction must lie in (0, 1), got {validation_fraction}.")

    if dataset_name is None and train_file is None:
        train, validation = hold_out(reference_texts(), validation_fraction, seed)
        return DatasetDict(train=Dataset.from_dict({"text": train}), validation=Dataset.from_dict({"text": validation}))

    if dataset_name is not None:
        loaded = load_dataset(dataset_name, dataset_config_name)
        in_file_order = False
    else:
        builder = _builder(train_file)
        files = {"train": train_file} | ({"validation": validation_file} if validation_file else {})
        for path in files.values():
            if not Path(path).is_file():
                raise FileNotFoundError(f"train_file and validation_file must exist, got {path}.")
        loaded = load_dataset(builder, data_files=files)
        in_file_order = builder == "text"
    if "train" not in loaded:
        raise ValueError(f"the dataset must have a split named train, got {', '.join(loaded)}.")
    if text_column not in loaded["train"].column_names:
        raise ValueError(f"text_column must be one of {', '.join(loaded['train'].column_names)}, got {text_column!r}.")
    if "validation" not in loaded:
        if len(loaded["train"]) < 2:
            raise ValueError("a single text cannot be split: give validation_file, or a file with several texts.")
        parts = loaded["train"].train_test_split(validation_fraction, seed=seed, shuffle=not in_file_order)
        loaded = DatasetDict(train=parts["train"], validation=parts["test"])
    loaded = DatasetDict({name: loaded[name].select_columns(text_column) for name in ("train", "validation")})
    if text_column != "text":
        loaded = loaded.rename_column(text_column, "text")
    held = {text for text in loaded["validation"]["text"] if len(text) >= SHARED_PASSAGE_CHARACTERS}
    loaded["train"] = loaded["train"].filter(lambda row: row["text"] not in held)
    return loaded


@dataclass
class TextArguments:
    """Where text comes from: the arguments of [`load_texts`], for `HfArgumentParser`."""

    dataset_name: str | None = field(default=None, metadata={"help": "A dataset on the Hub, or a folder of one."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    train_file: str | None = field(
        default=None,
        metadata={"help": ".txt (a text per line), .json, .jsonl, .csv or .parquet, also as .xz, .gz, .bz2, .zst."},
    )
    validation_file: str | None = field(default=None, metadata={"help": "The same for held-out text."})
    text_column: str = field(default="text", metadata={"help": "Name of the column with the text."})
    validation_fraction: float = field(
        default=0.06, metadata={"help": "Held-out share where the data has no validation part of its own."}
    )
    split_seed: int = field(default=0, metadata={"help": "Seed of the choice of held-out texts."})

    @property
    def text_source(self) -> str:
        """The data's name, for reports."""
        return self.dataset_name or self.train_file or "pydoc_data.topics"

    def load(self) -> DatasetDict:
        """Training and validation texts."""
        return load_texts(
            self.dataset_name,
            self.dataset_config_name,
            self.train_file,
            self.validation_file,
            self.text_column,
            self.validation_fraction,
            self.split_seed,
        )


def tokenize_and_chunk(
    dataset: Dataset, tokenizer, block_size: int, join_with: str | None = None, num_proc: int | None = None
) -> Dataset:
    """Tokenises the column `text` and cuts it into rows of at most `block_size` tokens; no token is lost.

    Args:
        dataset: with a column `text`.
        tokenizer: a fast tokenizer. Text that spells a special token is tokenised as ordinary text.
        block_size: most tokens in a row, BOS not counted. The last row of a text is shorter.
        join_with: None cuts each text on its own. A string is put between consecutive texts, and rows then run over
            the ends of texts (within each 1,000 texts).
        num_proc: processes that share the work.

    Returns:
        Rows with `input_ids` (no special tokens), `example_index` (the row's number) and `num_characters`: how many
        characters of text the row's predicted tokens stand for. Without a BOS in the tokenizer the first token of a row
        is not predicted and does not count.

    Raises:
        ValueError: `block_size` is below 2, or the tokenizer is not a fast one (character counts need offsets).
    """
    if block_size < 2:
        raise ValueError(f"block_size must be at least 2, got {block_size}.")
    if not tokenizer.is_fast:
        raise ValueError(f"tokenizer must be a fast tokenizer, got {type(tokenizer).__name__}.")
    rows = dataset.map(
        _blocks,
        batched=True,
        remove_columns=dataset.column_names,
        fn_kwargs={"tokenizer": tokenizer, "block_size": block_size, "join_with": join_with},
        num_proc=num_proc,
        desc="Tokenising",
    )
    return with_example_index(rows)


def _blocks(batch: dict[str, list], tokenizer, block_size: int, join_with: str | None) -> dict[str, list]:
    pieces = batch["text"]
    if join_with is not None:
        pieces = [text + join_with for text in pieces[:-1]] + pieces[-1:]
    tokenised = [_tokens_and_ends(piece, tokenizer) for piece in pieces if piece]
    if join_with is not None and tokenised:
        lengths = np.cumsum([0] + [len(piece) for piece in pieces if piece][:-1])
        ids = np.concatenate([ids for ids, _ in tokenised])
        tokenised = [(ids, np.concatenate([ends + at for (_, ends), at in zip(tokenised, lengths, strict=True)]))]
    rows = {"input_ids": [], "num_characters": []}
    for ids, ends in tokenised:
        for start in range(0, len(ids), block_size):
            stop = min(start + block_size, len(ids))
            # Where the row's first token is not predicted, its characters do not count.
            uncounted = start - 1 if tokenizer.bos_token_id is not None else start
            rows["input_ids"].append(ids[start:stop])
            rows["num_characters"].append(int(ends[stop - 1] - (ends[uncounted] if uncounted >= 0 else 0)))
    return rows


def _tokens_and_ends(text: str, tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Ids, and how many characters of `text` lie before each token's end; the last end is the text's length."""
    encoded = tokenizer(
        text,
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        split_special_tokens=True,
        verbose=False,
    )
    ends = np.maximum.accumulate(np.array([end for _, end in encoded["offset_mapping"]], dtype=np.int64))
    if len(ends):
        ends[-1] = len(text)
    return np.array(encoded["input_ids"], dtype=np.int32), ends


def count_characters(dataset: Dataset) -> int:
    """How many characters the column `text` has."""
    batches = dataset.with_format("arrow").iter(1000)
    return sum(pc.sum(pc.utf8_length(batch["text"])).as_py() or 0 for batch in batches)


def sample_texts(dataset: Dataset, characters: int = 10_000_000) -> list[str]:
    """Every k-th text of a data set, about `characters` long together; all texts where there are no more."""
    step = max(1, math.ceil(count_characters(dataset) / characters))
    return dataset[::step]["text"]


def unigram_bits(train: Iterable[str], held: Iterable[str]) -> dict[str, float]:
    """What characters cost without any context, in bits per character: the reference that a model has to beat.

    Args:
        train: training texts; of a large data set those of [`sample_texts`].
        held: held-out texts, likewise.

    Returns:
        `unigram_entropy_all` of the empirical distribution of both texts together, `unigram_cross_entropy_held_out`
        of the held-out text under the training text's character frequencies (one added to every count), and
        `characters`, how many were counted.
    """
    counts_train, counts_held = (Counter(itertools.chain.from_iterable(texts)) for texts in (train, held))
    characters = sorted(counts_train | counts_held)
    of_train = np.array([counts_train[character] for character in characters], dtype=np.float64)
    of_held = np.array([counts_held[character] for character in characters], dtype=np.float64)
    of_all = (of_train + of_held) / (of_train + of_held).sum()
    smoothed = (of_train + 1) / (of_train + 1).sum()
    return {
        "unigram_entropy_all": float(-(of_all * np.log2(of_all)).sum()),
        "unigram_cross_entropy_held_out": float(-(of_held / of_held.sum() * np.log2(smoothed)).sum()),
        "characters": counts_train.total() + counts_held.total(),
    }


def _builder(path: str) -> str:
    suffixes = [suffix for suffix in Path(path).suffixes if suffix not in _COMPRESSIONS]
    if not suffixes or suffixes[-1] not in _BUILDERS:
        raise ValueError(f"files must end in one of {', '.join(sorted(_BUILDERS))} (also compressed), got {path}.")
    return _BUILDERS[suffixes[-1]]
