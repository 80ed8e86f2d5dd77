# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Text: nothing held out is trained on, no character is lost on the way to rows of tokens."""

import gzip
import json
import lzma
import math

import pytest
from datasets import Dataset

from modeling_aoarm.data.text import (
    TextArguments,
    count_characters,
    hold_out,
    reference_texts,
    sample_texts,
    tokenize_and_chunk,
    unigram_bits,
)
from modeling_aoarm.data.tokenizers import byte_tokenizer, character_tokenizer, train_bpe_tokenizer


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def passages(texts):
    spaced = [" ".join(text.split()) for text in texts]
    return {text[start : start + 50] for text in spaced for start in range(len(text) - 49)}


def test_no_passage_of_the_reference_text_is_on_both_sides():
    texts = reference_texts()
    assert len(texts) > 70 and sum(map(len, texts)) > 400_000
    for seed in range(3):
        train, held = hold_out(texts, 0.06, seed)
        assert sorted(train + held) == sorted(texts)
        assert 0.05 < sum(map(len, held)) / sum(map(len, texts)) <= 0.06
        assert not passages(train) & passages(held)
    # The texts do repeat each other, so whole topics alone would not do.
    assert len(passages(texts)) < 0.95 * sum(len(passages([text])) for text in texts)


def test_the_split_depends_on_the_seed_and_not_on_the_order_of_the_texts():
    texts = reference_texts()
    held = hold_out(texts, 0.06, 0)[1]
    assert sorted(hold_out(texts[::-1], 0.06, 0)[1]) == sorted(held)
    assert sorted(hold_out(texts, 0.06, 1)[1]) != sorted(held)


def test_texts_that_share_a_passage_through_others_stay_together():
    first, second = "x" * 50, "y" * 50
    chain = [f"a{first}b", f"{first}c{second}", f"d{second}"]
    for seed in range(5):
        train, held = hold_out([*chain, "z" * 240], 0.55, seed)
        assert set(chain) <= set(train) or set(chain) <= set(held)


def test_white_space_does_not_hide_a_shared_passage_and_short_ones_do_not_count():
    words = "one two three four five six seven eight nine ten eleven"
    texts = [words, words.replace(" ", "\n  "), "p" * 49 + "1" * 80, "p" * 49 + "2" * 80]
    sides = [hold_out(texts, 0.6, seed)[1] for seed in range(20)]
    assert all((texts[0] in held) == (texts[1] in held) for held in sides)
    assert any((texts[2] in held) != (texts[3] in held) for held in sides)


TOKENIZERS = {
    "character": character_tokenizer(["abcdefgh \nü漢"]),
    "byte": byte_tokenizer(),
    "bpe": train_bpe_tokenizer(["abc abc abd abd ü"] * 3, 270),
}
TEXTS = ["abc abd ü漢 abc", "", "a", "hgfedcba\nabc abc"]


@pytest.mark.parametrize("name", sorted(TOKENIZERS))
@pytest.mark.parametrize("join_with", [None, "\n"])
def test_blocks_hold_every_token_once_and_count_every_character(name, join_with):
    tokenizer = TOKENIZERS[name]
    dataset = Dataset.from_dict({"text": TEXTS, "other": [1, 2, 3, 4]})
    rows = tokenize_and_chunk(dataset, tokenizer, 4, join_with)
    assert sorted(rows.column_names) == ["example_index", "input_ids", "num_characters"]
    expected = "".join(TEXTS) if join_with is None else join_with.join(TEXTS)
    assert tokenizer.decode([token for ids in rows["input_ids"] for token in ids]) == expected
    assert sum(rows["num_characters"]) == len(expected)
    assert max(map(len, rows["input_ids"])) == 4
    assert rows["example_index"] == list(range(len(rows)))
    if name == "character":
        assert rows["num_characters"] == [len(ids) for ids in rows["input_ids"]]


def test_rows_run_over_the_ends_of_texts_only_when_they_are_joined():
    dataset = Dataset.from_dict({"text": ["abcde", "fg"]})
    tokenizer = TOKENIZERS["character"]
    assert [len(ids) for ids in tokenize_and_chunk(dataset, tokenizer, 4)["input_ids"]] == [4, 1, 2]
    assert [len(ids) for ids in tokenize_and_chunk(dataset, tokenizer, 4, "")["input_ids"]] == [4, 3]


def test_without_bos_the_first_token_of_a_row_is_not_counted():
    tokenizer = character_tokenizer(["abcdefgh"])
    tokenizer.bos_token = None
    rows = tokenize_and_chunk(Dataset.from_dict({"text": ["abcdefg"]}), tokenizer, 4)
    assert rows["num_characters"] == [3, 2]


def test_text_that_spells_a_special_token_is_text():
    tokenizer = byte_tokenizer()
    rows = tokenize_and_chunk(Dataset.from_dict({"text": ["</s><mask>"]}), tokenizer, 20)
    assert len(rows["input_ids"][0]) == 10


DOCUMENTS = [f"document number {number} with a text of its own, long enough" for number in range(20)]


def write(path, text):
    opener = {".xz": lzma.open, ".gz": gzip.open}.get(path.suffix, open)
    with opener(path, "wt", encoding="utf-8") as file:
        file.write(text)
    return str(path)


def json_lines(texts, column="text"):
    return "".join(json.dumps({column: text, "id": index}) + "\n" for index, text in enumerate(texts))


@pytest.mark.parametrize("name", ["a.jsonl", "b.jsonl.xz", "c.json.gz"])
def test_json_files_are_split_at_random_without_overlap(tmp_path, name):
    path = write(tmp_path / name, json_lines([*DOCUMENTS, DOCUMENTS[0]], column="body"))
    splits = TextArguments(train_file=path, text_column="body", validation_fraction=0.3, split_seed=1).load()
    train, held = (list(splits[part]["text"]) for part in ("train", "validation"))
    assert set(train) | set(held) == set(DOCUMENTS) and not set(train) & set(held)
    other = TextArguments(train_file=path, text_column="body", validation_fraction=0.3, split_seed=2).load()
    assert list(other["train"]["text"]) != train


@pytest.mark.parametrize("name", ["a.txt", "b.txt.xz", "c.txt.gz"])
def test_the_end_of_a_text_file_is_held_out(tmp_path, name):
    path = write(tmp_path / name, "\n".join(DOCUMENTS))
    splits = TextArguments(train_file=path, validation_fraction=0.25).load()
    assert list(splits["train"]["text"]) == DOCUMENTS[:15]
    assert list(splits["validation"]["text"]) == DOCUMENTS[15:]


def test_a_validation_file_is_used_whole_and_its_texts_are_not_trained_on(tmp_path):
    train = write(tmp_path / "train.jsonl", json_lines(DOCUMENTS))
    held = write(tmp_path / "held.jsonl.xz", json_lines(DOCUMENTS[:3]))
    splits = TextArguments(train_file=train, validation_file=held).load()
    assert list(splits["validation"]["text"]) == DOCUMENTS[:3]
    assert list(splits["train"]["text"]) == DOCUMENTS[3:]


def test_characters_are_counted_and_texts_sampled_without_reading_all_into_python():
    texts = ["ab", "", "é—🎉", "line\nbreak "] * 250
    dataset = Dataset.from_dict({"text": texts}).shuffle(seed=0).select(range(999))
    assert count_characters(dataset) == sum(map(len, dataset["text"]))
    assert count_characters(Dataset.from_dict({"text": ["", ""]})) == 0
    assert sample_texts(dataset) == list(dataset["text"])
    sample = sample_texts(dataset, 800)
    assert sample == list(dataset["text"])[:: math.ceil(count_characters(dataset) / 800)]
    assert 600 < sum(map(len, sample)) < 1000


def test_unigram_bits_are_entropies_of_characters():
    bits = unigram_bits(["aab"], ["b"])
    assert bits["unigram_entropy_all"] == pytest.approx(1.0) and bits["characters"] == 4
    assert bits["unigram_cross_entropy_held_out"] == pytest.approx(-math.log2(2 / 5))
    train, held = hold_out(reference_texts(), 0.06)
    assert unigram_bits(train, held)["unigram_entropy_all"] == pytest.approx(4.69, abs=0.1)


def test_bad_input_is_named(tmp_path):
    path = write(tmp_path / "a.jsonl", json_lines(DOCUMENTS))
    with pytest.raises(ValueError, match="not both"):
        TextArguments(dataset_name="x", train_file=path).load()
    with pytest.raises(ValueError, match="validation_file needs train_file"):
        TextArguments(validation_file=path).load()
    with pytest.raises(ValueError, match=r"validation_fraction must lie in \(0, 1\), got 1"):
        TextArguments(train_file=path, validation_fraction=1.0).load()
    with pytest.raises(ValueError, match="must be one of text, id, got 'body'"):
        TextArguments(train_file=path, text_column="body").load()
    with pytest.raises(ValueError, match="files must end in one of .*got .*a.pdf"):
        TextArguments(train_file="a.pdf").load()
    with pytest.raises(FileNotFoundError, match="missing.jsonl"):
        TextArguments(train_file="missing.jsonl").load()
    with pytest.raises(ValueError, match="single text cannot be split"):
        TextArguments(train_file=write(tmp_path / "b.txt", "one line")).load()
    with pytest.raises(ValueError, match=r"fraction must lie in \(0, 1\), got 0"):
        hold_out(["a", "b"], 0)
    with pytest.raises(ValueError, match="leave room for a text"):
        hold_out(["aaaa", "bbbb"], 0.1)
    with pytest.raises(ValueError, match="block_size must be at least 2, got 1"):
        tokenize_and_chunk(Dataset.from_dict({"text": ["a"]}), TOKENIZERS["byte"], 1)
