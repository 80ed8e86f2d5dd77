# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Tokenizers made from the data keep every character and survive a save."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from modeling_aoarm.data.tokenizers import byte_tokenizer, character_tokenizer, train_bpe_tokenizer


TEXTS = ["The cat  sat .\n\n\tIt didn't , mind !", "naïve café – 漢字 😀\r\n", " leading and trailing "]
TOKENIZERS = {
    "character": character_tokenizer(TEXTS),
    "byte": byte_tokenizer(),
    "bpe": train_bpe_tokenizer(TEXTS, 300),
}


@pytest.fixture(params=sorted(TOKENIZERS))
def tokenizer(request):
    return TOKENIZERS[request.param]


def test_round_trip_is_exact(tokenizer):
    for text in TEXTS:
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_round_trip_is_exact_after_reload_through_auto_tokenizer(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    assert reloaded.special_tokens_map == tokenizer.special_tokens_map
    for text in TEXTS:
        assert reloaded(text).input_ids == tokenizer(text).input_ids
        assert reloaded.decode(reloaded(text).input_ids) == text


@settings(max_examples=50, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_byte_and_bpe_round_trip_any_text_even_one_that_spells_a_special_token(text):
    for name in ("byte", "bpe"):
        ids = TOKENIZERS[name](text + "<mask>", split_special_tokens=True).input_ids
        assert TOKENIZERS[name].decode(ids) == text + "<mask>"


def test_special_tokens_have_their_names_and_no_text_token_their_ids(tokenizer):
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    assert (tokenizer.pad_token, tokenizer.mask_token) == ("<pad>", "<mask>")
    assert len(set(tokenizer.all_special_ids)) == len(tokenizer.all_special_tokens)
    used = {token for text in TEXTS for token in tokenizer(text).input_ids}
    assert not used & set(tokenizer.all_special_ids)


def test_encoding_adds_no_special_token(tokenizer):
    assert tokenizer("").input_ids == []


def test_character_level_is_one_token_per_character_and_unknown_for_the_rest():
    tokenizer = TOKENIZERS["character"]
    for text in TEXTS:
        assert len(tokenizer(text).input_ids) == len(text)
    assert len(tokenizer) == 5 + len(set("".join(TEXTS)))
    unseen = tokenizer("Qat").input_ids
    assert unseen[0] == tokenizer.unk_token_id and tokenizer.unk_token_id not in unseen[1:]


def test_byte_level_is_one_token_per_byte_with_256_of_them():
    tokenizer = TOKENIZERS["byte"]
    for text in TEXTS:
        assert len(tokenizer(text).input_ids) == len(text.encode())
    assert len(tokenizer) == 256 + 4


def test_bpe_learns_merges_up_to_its_size_and_the_same_ones_each_time():
    texts = ["the cat and the dog and the hen"] * 5
    tokenizer = train_bpe_tokenizer(texts, 280)
    assert 260 < len(tokenizer) <= 280
    assert len(tokenizer(texts[0]).input_ids) < len(texts[0])
    assert train_bpe_tokenizer(texts, 280).get_vocab() == tokenizer.get_vocab()


def test_bad_input_is_named():
    with pytest.raises(TypeError, match=r"single string"):
        character_tokenizer("abc")
    with pytest.raises(TypeError, match="got int"):
        character_tokenizer([1])
    with pytest.raises(ValueError, match="at least one character"):
        character_tokenizer([""])
    with pytest.raises(ValueError, match="at least 260.*got 100"):
        train_bpe_tokenizer(["abc"], 100)
