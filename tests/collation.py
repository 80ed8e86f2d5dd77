# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Examples, a tokenizer and collators for the tests of the data collator."""

import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from modeling_aoarm.data.collators import DataCollatorForAnyOrderLM
from modeling_aoarm.data.orders import OrderCurriculum


PAD, BOS, EOS, FIRST = 0, 1, 2, 3
CURRICULUM = OrderCurriculum("local(0)", "0.5*local(64)+0.5*lattice", until=0.9)


def make_tokenizer(pad=True, bos=True, eos=True):
    vocabulary = {"<pad>": PAD, "<s>": BOS, "</s>": EOS} | {chr(97 + i): FIRST + i for i in range(26)}
    names = {"pad_token": ("<pad>", pad), "bos_token": ("<s>", bos), "eos_token": ("</s>", eos)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="a")),
        **{name: token for name, (token, used) in names.items() if used},
    )


def make_collator(order="uniform", bos=True, **kwargs):
    return DataCollatorForAnyOrderLM(make_tokenizer(bos=bos), order=order, **kwargs)


def make_examples(count, seed=0, shortest=1, longest=12):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(shortest, longest, count, endpoint=True)
    return [
        {"input_ids": rng.integers(FIRST, FIRST + 26, length).tolist(), "example_index": index}
        for index, length in enumerate(lengths)
    ]


def sentence_of(batch, row):
    """The sentence of an example, from its rows."""
    rows = batch["attention_mask"][row].bool()
    positions, tokens = batch["position_ids"][row][rows], batch["input_ids"][row][rows]
    assert positions.sort().values.tolist() == list(range(len(positions)))
    return tokens[positions.argsort()].tolist()


def given_of(batch, row):
    """The positions of an example's given rows, in generation order."""
    rows = batch["attention_mask"][row].bool()
    return batch["position_ids"][row][rows & (batch["labels"][row] == -100)].tolist()


def assert_equal_batches(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def assert_all_equal(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert_equal_batches(one, other)


EXAMPLES = make_examples(50, shortest=6)
