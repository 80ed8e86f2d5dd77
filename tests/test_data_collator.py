# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The collator: rows in generation order, and orders that depend on nothing but seed, epoch, example and progress."""

import datasets
import numpy as np
import pytest
import torch
from collation import (
    BOS,
    CURRICULUM,
    EOS,
    EXAMPLES,
    FIRST,
    PAD,
    assert_equal_batches,
    given_of,
    make_collator,
    make_examples,
    make_tokenizer,
    sentence_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from modeling_aoarm import AOARMConfig, AOARMForCausalLM
from modeling_aoarm.canvas_aoarm import resolve_context_order
from modeling_aoarm.data.collators import DataCollatorForAnyOrderLM, with_example_index
from modeling_aoarm.data.orders import sample_orders


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("order", ["uniform", "lattice", "block", "0.5*fractal+0.5*local(4)"])
def test_rows_hold_each_sentence_in_its_order_with_labels_on_what_is_predicted(order, bos):
    examples = make_examples(20)
    batch = make_collator(order, bos=bos, seed=3)(examples)
    lengths = [len(example["input_ids"]) for example in examples]
    orders = sample_orders(
        order, lengths, example_indices=range(20), seed=3, min_context=1 - bos, first_column=int(bos)
    )
    longest = max(lengths) + bos
    for name in ("input_ids", "attention_mask", "position_ids", "target_position_ids", "labels"):
        assert batch[name].shape == (20, longest) and batch[name].dtype == torch.int64
    assert set(batch) == {"input_ids", "attention_mask", "position_ids", "target_position_ids", "labels"}
    for row, example in enumerate(examples):
        rows = len(example["input_ids"]) + bos
        assert batch["attention_mask"][row].tolist() == [1] * rows + [0] * (longest - rows)
        assert sentence_of(batch, row) == [BOS] * bos + example["input_ids"]
        assert torch.equal(batch["position_ids"][row, bos:rows], orders.columns[row, : rows - bos])
        positions = batch["position_ids"][row, :rows].tolist()
        assert batch["target_position_ids"][row, :rows].tolist() == [*positions[1:], positions[-1] + 1]
        first_predicted = int(orders.num_context[row]) + bos
        assert first_predicted >= 1
        assert (batch["labels"][row, :first_predicted] == -100).all()
        predicted = slice(first_predicted, rows)
        assert torch.equal(batch["labels"][row, predicted], batch["input_ids"][row, predicted])
        assert (batch["input_ids"][row, rows:] == PAD).all()
        # Padding goes on counting, so that no position comes twice.
        assert batch["position_ids"][row, rows:].tolist() == list(range(rows, longest))
        assert (batch["labels"][row, rows:] == -100).all()


def test_a_sentence_that_starts_with_bos_gets_no_second_one():
    examples = make_examples(6)
    with_bos = [{**example, "input_ids": [BOS, *example["input_ids"]]} for example in examples]
    collator = make_collator()
    assert_equal_batches(collator(examples), collator(with_bos))
    double = collator([{"input_ids": [BOS, BOS, 5], "example_index": 0}])
    assert sentence_of(double, 0) == [BOS, BOS, 5]


def test_an_empty_sentence_is_its_bos_alone():
    batch = make_collator()([{"input_ids": [], "example_index": 0}])
    assert batch["input_ids"].tolist() == [[BOS]] and batch["labels"].tolist() == [[-100]]


@pytest.mark.parametrize("kind", [tuple, np.array, torch.tensor, lambda ids: np.array(ids, dtype=np.uint16)])
def test_lists_arrays_and_tensors_are_taken_alike(kind):
    examples = make_examples(5)
    others = [{"input_ids": kind(e["input_ids"]), "example_index": torch.tensor(e["example_index"])} for e in examples]
    collator = make_collator("lattice")
    assert_equal_batches(collator(examples), collator(others))


def test_other_keys_and_values_of_none_are_ignored():
    examples = make_examples(5)
    none = dict.fromkeys(["attention_mask", "labels", "order", "num_context"])
    collator = make_collator()
    assert_equal_batches(collator(examples), collator([{**example, **none, "text": "abc"} for example in examples]))


@pytest.mark.parametrize("bos_given", [True, False])
@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_padding_on_either_side_of_a_feature_is_dropped(side, bos_given):
    plain, padded = make_examples(8), []
    for example in plain:
        tokens = [BOS] * bos_given + example["input_ids"]
        left, right = (3 if side != "right" else 0), (2 if side != "left" else 0)
        labels = [token if token % 3 else -100 for token in tokens]
        example["labels"] = labels[bos_given:]
        padded.append(
            {
                "input_ids": [PAD] * left + tokens + [PAD] * right,
                "attention_mask": [0] * left + [1] * len(tokens) + [0] * right,
                "labels": [-100] * left + labels + [-100] * right,
                "example_index": example["example_index"],
            }
        )
    collator = make_collator()
    assert_equal_batches(collator(plain), collator(padded))


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("order", ["uniform", "left_to_right", "lattice", "block"])
def test_tokens_labelled_minus_100_come_first_in_sentence_order_and_the_order_acts_on_the_others(order, bos):
    examples = make_examples(30, shortest=4)
    for example in examples:
        ids = example["input_ids"]
        example["labels"] = [-100 if token % 2 else token for token in ids]
    batch = make_collator(order, bos=bos)(examples)
    for row, example in enumerate(examples):
        ids = example["input_ids"]
        labelled = [c for c, label in enumerate(example["labels"]) if label == -100]
        free = [c for c, label in enumerate(example["labels"]) if label != -100]
        # A given token serves as the one that a sentence without BOS needs.
        drawn = sample_orders(order, [len(free)], example_indices=[row], min_context=0 if bos or labelled else 1)
        num_drawn = int(drawn.num_context[0])
        columns = [free[c] for c in drawn.columns[0].tolist()]
        context = sorted(labelled + columns[:num_drawn])
        assert sentence_of(batch, row) == [BOS] * bos + ids
        assert given_of(batch, row) == [0] * bos + [c + bos for c in context]
        assert batch["position_ids"][row, bos : len(ids) + bos].tolist() == [
            c + bos for c in context + columns[num_drawn:]
        ]


@pytest.mark.parametrize("bos", [True, False])
def test_an_example_may_bring_its_own_order(bos):
    collator = make_collator(bos=bos)
    ids = [7, 8, 9, 10]
    own = {"input_ids": ids, "order": [2, 0, 3, 1]}
    batch = collator([own, {**own, "num_context": 2}, {**own, "labels": [7, 8, -100, 10]}])
    for row, context in enumerate([[2] * (not bos), [2, 0], [2]]):
        assert sentence_of(batch, row) == [BOS] * bos + ids
        assert batch["position_ids"][row, bos:].tolist() == [c + bos for c in own["order"]]
        assert given_of(batch, row) == [0] * bos + [c + bos for c in context]
    # With BOS in the sentence the columns count from the token after it.
    if bos:
        assert_equal_batches(collator([own]), collator([{**own, "input_ids": [BOS, *ids]}]))


def test_own_orders_and_drawn_orders_may_share_a_batch():
    examples = make_examples(3)
    mixed = [examples[0], {"input_ids": [4, 5, 6], "order": [2, 1, 0]}, examples[2]]
    alone, together = make_collator()(examples[:1]), make_collator()(mixed)
    rows = alone["input_ids"].shape[1]
    assert torch.equal(together["position_ids"][:1, :rows], alone["position_ids"])


def test_pad_to_multiple_of_adds_padding_rows():
    examples = make_examples(4)
    plain, padded = make_collator()(examples), make_collator(pad_to_multiple_of=8)(examples)
    rows = plain["input_ids"].shape[1]
    assert padded["input_ids"].shape[1] % 8 == 0 and rows <= padded["input_ids"].shape[1] < rows + 8
    for name in plain:
        assert torch.equal(padded[name][:, :rows], plain[name])
    assert (padded["attention_mask"][:, rows:] == 0).all() and (padded["labels"][:, rows:] == -100).all()
    for row in padded["position_ids"]:
        assert sorted(row.tolist()) == list(range(len(row)))


@pytest.mark.parametrize("bos", [True, False])
def test_pad_with_eos_makes_eos_part_of_the_sentence_its_order_and_its_loss(bos):
    examples = make_examples(20, longest=11)
    batch = make_collator(bos=bos, max_length=12, pad_with_eos=True)(examples)
    columns = 12 - bos
    orders = sample_orders(
        "uniform", [columns] * 20, example_indices=range(20), min_context=1 - bos, first_column=int(bos)
    )
    assert torch.equal(batch["position_ids"][:, bos:], orders.columns)
    assert (batch["attention_mask"] == 1).all()
    for row, example in enumerate(examples):
        missing = columns - len(example["input_ids"])
        assert sentence_of(batch, row) == [BOS] * bos + example["input_ids"] + [EOS] * missing
        assert given_of(batch, row) == ([0] if bos else [int(orders.columns[row, 0])])
    own = {"input_ids": [5, 6], "order": list(range(columns))[::-1]}
    batch = make_collator(bos=bos, max_length=12, pad_with_eos=True)([own])
    assert sentence_of(batch, 0) == [BOS] * bos + [5, 6] + [EOS] * (columns - 2)


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("multiple", [None, 16])
def test_packing_puts_the_same_rows_behind_each_other(bos, multiple):
    examples = make_examples(7)
    padded = make_collator("lattice", bos=bos)(examples)
    packed = make_collator("lattice", bos=bos, packing=True, pad_to_multiple_of=multiple)(examples)
    assert set(packed) == {"input_ids", "position_ids", "target_position_ids", "labels", "segment_ids"}
    real = padded["attention_mask"].bool()
    total = int(real.sum())
    rows = total if multiple is None else -(-total // multiple) * multiple
    for name, values in packed.items():
        assert values.shape == (1, rows) and values.dtype == torch.int64
        if name != "segment_ids":
            assert torch.equal(values[0, :total], padded[name][real])
    segments = packed["segment_ids"][0]
    assert torch.equal(segments[:total], real.nonzero()[:, 0])
    assert (segments[total:] == 7).all()
    assert (packed["labels"][0, total:] == -100).all()
    assert packed["position_ids"][0, total:].tolist() == list(range(rows - total))
    first_rows = [0] + (segments.diff().nonzero().flatten() + 1).tolist()
    assert (packed["labels"][0, first_rows] == -100).all()


@pytest.mark.parametrize("order", ["uniform", "block"])
def test_the_model_takes_padded_and_packed_batches_and_gives_them_the_same_loss(order):
    config = AOARMConfig(
        vocab_size=29,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    torch.manual_seed(0)
    model = AOARMForCausalLM(config).eval()
    examples = make_examples(6)
    collators = [make_collator(order, **options) for options in ({}, {"packing": True}, {"pad_to_multiple_of": 16})]
    collators.append(make_collator(order, packing=True, pad_to_multiple_of=16))
    with torch.no_grad():
        losses = [model(**collator(examples)).loss for collator in collators]
    assert torch.allclose(torch.stack(losses), losses[0], atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    st.permutations(range(10)), st.integers(1, 10), st.sampled_from([CURRICULUM, "lattice", "0.5*uniform+0.5*block"])
)
def test_an_example_is_the_same_in_every_batch(arrangement, size, order):
    examples = make_examples(10)
    collator = make_collator(order, seed=1)
    for number in range(0, 10, size):
        chosen = arrangement[number : number + size]
        collator.start_epoch(4, first_step=3, total_steps=10)
        together = collator([examples[i] for i in chosen])
        for row, i in enumerate(chosen):
            collator.start_epoch(4, first_step=3, total_steps=10)
            alone = collator([examples[i]])
            for name in alone:
                assert torch.equal(together[name][row, : alone[name].shape[1]], alone[name][0])


def test_seed_epoch_and_example_change_orders_and_sentences_do_not():
    example = {"input_ids": list(range(FIRST, FIRST + 12)), "example_index": 0}

    def positions(seed=0, epoch=0, index=0):
        collator = make_collator(seed=seed)
        collator.start_epoch(epoch)
        return tuple(collator([{**example, "example_index": index}])["position_ids"][0].tolist())

    assert len({positions(), positions(seed=1), positions(epoch=1), positions(index=1)}) == 4
    other = make_collator()([{"input_ids": example["input_ids"][::-1], "example_index": 0}])
    assert tuple(other["position_ids"][0].tolist()) == positions()


# Errors.

INDEXED = {"example_index": 17}


@pytest.mark.parametrize(
    ("options", "feature", "message"),
    [
        (
            {},
            {"input_ids": [3]},
            r"feature 1 of the batch has no `example_index`.*dataset = with_example_index\(dataset\)",
        ),
        ({}, {"text": "a", **INDEXED}, "needs `input_ids`; example 17 has the keys"),
        (
            {},
            {"input_ids": [3.5], **INDEXED},
            "`input_ids` must be a flat sequence of integers, .*float64 in example 17",
        ),
        ({}, {"input_ids": [[3]], **INDEXED}, r"`input_ids` must be a flat .* shape \[1, 1\]"),
        ({}, {"input_ids": [[3], [4, 5]], **INDEXED}, "`input_ids` must be a flat .* example 17"),
        ({}, {"input_ids": ["a"], **INDEXED}, "`input_ids` must be a flat"),
        ({}, {"input_ids": [3, -1], **INDEXED}, "`input_ids` must be >= 0, got -1 in example 17"),
        ({}, {"input_ids": [3], "labels": [3, 4], **INDEXED}, "`labels` must have the length 1 .* got 2 in example 17"),
        ({}, {"input_ids": [3, 4], "labels": [4, -100], **INDEXED}, "`labels` must equal `input_ids` or be -100.*17"),
        ({}, {"input_ids": [3], "attention_mask": [], **INDEXED}, "`attention_mask` must have the length 1"),
        ({}, {"input_ids": [3, 4, 5], "attention_mask": [1, 0, 1], **INDEXED}, "one run of ones .* in example 17"),
        ({}, {"input_ids": [3, 4], "attention_mask": [2, 1], **INDEXED}, "one run of ones"),
        (
            {"bos": False},
            {"input_ids": [], **INDEXED},
            "Without a BOS token .* at least one token; example 17 is empty",
        ),
        (
            {"bos": False},
            {"input_ids": [3], "attention_mask": [0], **INDEXED},
            "Without a BOS token .* at least one token; example 17 is empty",
        ),
        ({"max_length": 3}, {"input_ids": [3, 4, 5], **INDEXED}, "`max_length` is 3 rows .*example 17 has 4"),
        ({}, {"input_ids": [3, 4], "order": [0]}, "permutation of the 2 columns 0 ... 1 .* got .0. in feature 1"),
        ({}, {"input_ids": [3, 4], "order": [0, 0]}, "permutation of the 2 columns"),
        ({}, {"input_ids": [3, 4], "order": [1, 2]}, "permutation of the 2 columns"),
        ({"max_length": 4, "pad_with_eos": True}, {"input_ids": [3], "order": [0]}, "permutation of the 3 columns"),
        ({}, {"input_ids": [3], "order": [0], "num_context": 2}, "`num_context` must lie between 0 and the 1 columns"),
        ({}, {"input_ids": [3], "order": [0], "num_context": -1}, "`num_context` must lie between .* got -1"),
        ({}, {"input_ids": [3], "num_context": 1, **INDEXED}, "`num_context` belongs to an `order`.*example 17"),
        (
            {},
            {"input_ids": [3, 4], "labels": [-100, 4], "order": [1, 0]},
            "labelled -100 are given.*first `num_context`",
        ),
        ({}, {"input_ids": [3, 4], "labels": [-100, 4], "order": [0, 1], "num_context": 0}, "labelled -100 are given"),
        ({}, {"input_ids": [3], "example_index": -1}, "`example_index` must lie in"),
    ],
)
def test_bad_features_are_refused_with_the_reason_and_the_example(options, feature, message):
    collator = make_collator(**options)
    with pytest.raises(ValueError, match=message):
        collator([{"input_ids": [3], "example_index": 0}, feature])


def test_bad_options_are_refused_with_the_reason():
    with pytest.raises(ValueError, match="`tokenizer.pad_token_id` is None; set it"):
        DataCollatorForAnyOrderLM(make_tokenizer(pad=False))
    with pytest.raises(ValueError, match="`tokenizer.pad_token_id` is None; set it"):
        DataCollatorForAnyOrderLM(make_tokenizer(pad=False), packing=True, pad_to_multiple_of=8)
    with pytest.raises(ValueError, match="`tokenizer.eos_token_id` is None"):
        DataCollatorForAnyOrderLM(make_tokenizer(eos=False), pad_with_eos=True, max_length=4)
    with pytest.raises(ValueError, match="`pad_with_eos=True` needs `max_length`"):
        make_collator(pad_with_eos=True)
    for name in ("max_length", "pad_to_multiple_of"):
        with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got 0"):
            make_collator(**{name: 0})
        with pytest.raises(TypeError, match=f"`{name}` must hold integers, got 2.5"):
            make_collator(**{name: 2.5})
    with pytest.raises(ValueError, match="Unknown order 'sideways'"):
        make_collator("sideways")
    with pytest.raises(TypeError, match="`example_index` must hold integers, got '3'"):
        make_collator()([{"input_ids": [3], "example_index": "3"}])
    with pytest.raises(ValueError, match="`features` must hold at least one example"):
        make_collator()([])


def test_packing_without_padding_needs_no_pad_token():
    collator = DataCollatorForAnyOrderLM(make_tokenizer(pad=False), packing=True)
    assert collator(EXAMPLES)["segment_ids"].max() == 49


# with_example_index.


def test_a_dataset_is_numbered_and_keeps_its_numbers_through_shuffles_and_selections():
    dataset = datasets.Dataset.from_list([{"input_ids": example["input_ids"]} for example in EXAMPLES])
    indexed = with_example_index(dataset)
    assert indexed["example_index"][:] == list(range(50))
    shuffled = indexed.shuffle(seed=0).select(range(10))
    collator = make_collator()
    assert_equal_batches(
        collator([shuffled[i] for i in range(10)]), collator([EXAMPLES[i] for i in shuffled["example_index"][:]])
    )
    assert_equal_batches(
        collator([shuffled.with_format("torch")[i] for i in range(3)]), collator([shuffled[i] for i in range(3)])
    )


@pytest.mark.parametrize("known_features", [True, False])
def test_an_iterable_dataset_gets_indices_that_do_not_depend_on_the_number_of_workers(known_features):
    dataset = datasets.Dataset.from_list([{"input_ids": example["input_ids"]} for example in EXAMPLES])
    stream = dataset.to_iterable_dataset(num_shards=4)
    if not known_features:
        stream = stream.map(lambda example: example)
    indexed = with_example_index(stream)
    by_workers = []
    for num_workers in (0, 1, 2):
        loader = DataLoader(indexed, batch_size=None, num_workers=num_workers)
        by_workers.append(sorted((e["example_index"], tuple(e["input_ids"])) for e in loader))
    assert by_workers[0] == by_workers[1] == by_workers[2]
    indices = [index for index, _ in by_workers[0]]
    assert len(set(indices)) == 50 and all(0 <= index < 2**63 for index in indices)
    assert sorted(tokens for _, tokens in by_workers[0]) == sorted(tuple(e["input_ids"]) for e in EXAMPLES)
    make_collator()(list(indexed))


def test_data_that_cannot_be_indexed_is_refused_with_the_reason():
    dataset = datasets.Dataset.from_list([{"text": "a"}])
    with pytest.raises(TypeError, match="`dataset` must be a datasets.Dataset .* got list"):
        with_example_index([{"input_ids": [3]}])
    with pytest.raises(TypeError, match="one split.* got DatasetDict"):
        with_example_index(datasets.DatasetDict(train=dataset))
    with pytest.raises(ValueError, match="has the column `example_index` already"):
        with_example_index(with_example_index(dataset))
    with pytest.raises(ValueError, match="tokenise first; the example has the keys .*text"):
        list(with_example_index(dataset.to_iterable_dataset()))


# The order of the context


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("order", ["block", "lattice", "uniform"])
def test_the_suffix_comes_first_where_it_is_asked_for(order, bos):
    """As in `generate`: the first token, what is right of the first blank, what is left of it; blanks as they were."""
    examples = make_examples(60)
    # Some have given tokens of their own.
    for example in examples[::3]:
        ids = example["input_ids"]
        example["labels"] = [-100 if column % 4 == 1 else token for column, token in enumerate(ids)]
    plain = make_collator(order, bos=bos)(examples)
    batch = make_collator(order, bos=bos, context_order="suffix_first")(examples)
    changed = 0
    for row in range(len(examples)):
        assert sentence_of(batch, row) == sentence_of(plain, row)
        given, in_order = given_of(batch, row), given_of(plain, row)
        assert in_order == sorted(in_order)
        blanks = batch["position_ids"][row][batch["labels"][row] != -100]
        assert torch.equal(blanks, plain["position_ids"][row][plain["labels"][row] != -100])
        first = int(blanks.min()) if len(blanks) else len(examples[row]["input_ids"]) + bos
        right = [position for position in given if position > first]
        left = [position for position in given if 0 < position < first]
        assert given == [position for position in given if position == 0] + right + left
        assert right == sorted(right) and left == sorted(left)
        changed += given != in_order
        targets = batch["target_position_ids"][row, : len(given) + len(blanks)].tolist()
        assert targets[:-1] == [*given, *blanks.tolist()][1:]
    assert changed or order == "uniform"


@pytest.mark.parametrize("bos", [True, False])
def test_suffix_first_is_the_order_that_generate_and_score_use(bos):
    """The collator has the rule in numpy for one order, `resolve_context_order` in torch for masks of a batch."""
    examples = make_examples(60)
    for example in examples[::3]:
        ids = example["input_ids"]
        example["labels"] = [-100 if column % 3 == 1 else token for column, token in enumerate(ids)]
    batch = make_collator("block", bos=bos, context_order="suffix_first")(examples)
    real, is_given = batch["attention_mask"].bool(), batch["labels"] == -100
    by_column = batch["position_ids"].argsort(dim=1)
    given = (real & is_given).gather(1, by_column)
    expected = resolve_context_order("suffix_first", given, real & ~given, real)
    assert [given_of(batch, row) for row in range(60)] == [
        [column for column in columns if column >= 0] for columns in expected.tolist()
    ]


def test_orders_of_an_examples_own_keep_their_context():
    example = {"input_ids": [5, 6, 7, 8], "order": [3, 0, 2, 1], "num_context": 2}
    batch = make_collator(context_order="suffix_first")([example])
    assert batch["position_ids"].tolist() == [[0, 4, 1, 3, 2]]


def test_an_unknown_context_order_is_refused():
    with pytest.raises(ValueError, match="context_order.*'left_to_right' or 'suffix_first', got 'random'"):
        make_collator(context_order="random")
