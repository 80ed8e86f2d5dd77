# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""`infill`: text in, text out."""

import copy
import re

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from variants import any_order_variants, tiny_model

from modeling_aoarm import AOARMConfig, AOARMGenerateOutput, infill
from modeling_aoarm.data.tokenizers import byte_tokenizer, character_tokenizer, train_bpe_tokenizer
from modeling_aoarm.infilling_aoarm import write_blanks


TEXTS = ["the cat sat on the mat. ", "a dog barks at night, loudly!\n"]


@pytest.fixture(scope="module")
def tokenizer():
    return character_tokenizer(TEXTS)


def model_for(variant, tokenizer, **changes):
    ends = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return tiny_model(variant, vocab_size=len(tokenizer), **ends, **changes)


class Writes:
    """Stands in for a model whose filling is known: it writes a given text's tokens into the blanks."""

    device = torch.device("cpu")

    def __init__(self, tokenizer, texts):
        self.config = AOARMConfig(vocab_size=len(tokenizer))
        self.tokens = [tokenizer.encode(text, add_special_tokens=False) for text in texts]

    def generate(self, input_ids, generation_mask, attention_mask, **kwargs):
        self.call = {"input_ids": input_ids, "generation_mask": generation_mask, "attention_mask": attention_mask}
        self.call["kwargs"] = kwargs
        filled = input_ids.clone()
        order = torch.full((len(input_ids), int(generation_mask.sum(1).max())), -1)
        for row, tokens in enumerate(self.tokens):
            filled[row, generation_mask[row]] = torch.tensor(tokens, dtype=torch.int64)
            order[row, : len(tokens)] = generation_mask[row].nonzero()[:, 0]
        return AOARMGenerateOutput(sequences=filled, decoding_order=order)


@any_order_variants
def test_blanks_get_their_lengths_and_the_rest_stays(variant, tokenizer):
    model = model_for(variant, tokenizer)
    texts = ["the <blank:3> sat on<blank>the mat", "no blank here", "<blank:2><blank:3>dog <blank>"]
    torch.manual_seed(0)
    first, second, third = infill(model, tokenizer, texts, decoding_order="random", do_sample=True)
    special = len(tokenizer) - len(set("".join(TEXTS)))
    assert special > 0 and second == "no blank here"
    assert first.startswith("the ") and " sat on" in first and first.endswith("the mat")
    assert "dog " in third
    # Special tokens that an untrained model writes are not text, so a blank may come out shorter, never longer.
    assert len(first) <= len("the cat sat on the mat") and len(third) <= len("12345dog 1")
    assert isinstance(infill(model, tokenizer, texts[0]), str)


def test_each_blank_is_written_where_it_stands(tokenizer):
    writer = Writes(tokenizer, ["cat ", "abog!"])
    filled = infill(
        writer, tokenizer, ["the <blank:3> sat on<blank>the mat", "<blank><blank:2>d<blank>g<blank>"], top_k=4
    )
    assert filled == ["the cat sat on the mat", "abodgg!"]
    assert writer.call["generation_mask"].sum(1).tolist() == [4, 5]
    assert writer.call["attention_mask"].sum(1).tolist() == [1 + 22, 1 + 7]
    assert (writer.call["input_ids"][:, 0] == tokenizer.bos_token_id).all()
    assert writer.call["kwargs"] == {"top_k": 4, "return_dict_in_generate": True, "num_return_sequences": 1}


def test_closed_blanks_leave_no_trace(tokenizer):
    writer = Writes(tokenizer, ["it"])
    writer.tokens[0] += [tokenizer.eos_token_id, tokenizer.pad_token_id]
    assert infill(writer, tokenizer, "the <blank:4>") == "the it"


@any_order_variants
def test_closed_blanks_leave_no_trace_whatever_pads_them(variant, tokenizer):
    """A full stop ends the sentence and pads it too, as it does where the tokenizer has no padding token."""
    model = model_for(variant, tokenizer)
    full_stop = tokenizer.convert_tokens_to_ids(".")

    def end(rows, scores):
        return torch.full_like(scores, -torch.inf).index_fill_(1, torch.tensor([full_stop]), 0.0)

    ends = {"eos_token_id": full_stop, "pad_token_id": full_stop, "logits_processor": [end]}
    assert infill(model, tokenizer, ["the <blank:4>", "a <blank:2>"], **ends) == ["the .", "a ."]


def test_a_token_that_becomes_special_is_shown_no_more(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    assert infill(Writes(tokenizer, ["at"]), tokenizer, "c<blank:2>") == "cat"
    tokenizer.pad_token = "t"
    assert infill(Writes(tokenizer, ["at"]), tokenizer, "c<blank:2>") == "ca"


def test_blanks_side_by_side_may_share_a_characters_bytes():
    tokenizer = byte_tokenizer()
    assert infill(Writes(tokenizer, ["é"]), tokenizer, "caf<blank><blank>!") == "café!"


@pytest.mark.parametrize(
    "text",
    ["<blank:-1>", "<blank:2->", "<blank: 3>", "< Blank>", "<Blank>", "<blanket>", '<Blankslate title="t">']
    + ["<blank/>", "<blank:>", "<blank:٣>", "<BLANK:2>", "<blank", "blank>", "\\", "\\\\t"],
)
def test_only_the_documented_forms_are_blanks(tokenizer, text):
    model = model_for("two_stream", tokenizer)
    assert infill(model, tokenizer, text) == text
    writer = Writes(tokenizer, ["at"])
    assert infill(writer, tokenizer, f"{text} c<blank:2>{text}") == f"{text} cat{text}"


@pytest.mark.parametrize("form", ["<blank>", "<blank:2>", "<blank:1-3>", "<blank:0>", "<blank:6-2>"])
def test_a_backslash_makes_a_form_text(tokenizer, form):
    """Backslashes before a form are read in pairs. Elsewhere they are what they are."""
    model = model_for("two_stream", tokenizer)
    assert infill(model, tokenizer, f"\\t \\{form} \\\\t") == f"\\t {form} \\\\t"
    for pairs in range(3):
        backslashes = "\\" * pairs
        assert infill(model, tokenizer, f"a{backslashes * 2}\\{form}") == f"a{backslashes}{form}"
        writer = Writes(tokenizer, ["at"])
        assert infill(writer, tokenizer, f"{backslashes * 2}<blank:2>\\{form}") == f"{backslashes}at{form}"
    # Text between two blanks, if only one character, keeps them apart.
    assert infill(Writes(tokenizer, ["at"]), tokenizer, "<blank>\\\\<blank>") == "a\\t"


def test_blanks_can_be_written_between_any_texts(tokenizer):
    model = model_for("two_stream", tokenizer)
    for text in ("", "the cat", "\\", "a\\\\", "<blank>", "\\<blank:2>\\", "<blank><blank:0> \\t\\\\<blank:1-2>\\"):
        assert infill(model, tokenizer, write_blanks([text], [])) == text
        written = write_blanks([text, f"{text}c", text], ["<blank>", "<blank:2>"])
        assert infill(Writes(tokenizer, ["bat"]), tokenizer, written) == f"{text}b{text}cat{text}"


def test_a_text_that_begins_with_its_first_token_gets_no_second(tokenizer):
    """As chat templates write it."""
    for text in ("<s>the <blank>", "the <blank>", "<s><blank>", "<blank>", "<s><s><blank>"):
        writer = Writes(tokenizer, ["a"])
        filled = infill(writer, tokenizer, text)
        read = writer.call["input_ids"][0].tolist()
        given = tokenizer.encode(text.replace("<blank>", ""))
        assert read[:-1] == (given if text.startswith("<s>") else [tokenizer.bos_token_id, *given])
        assert filled == text.replace("<blank>", "a")


@any_order_variants
def test_ids_without_a_token_are_never_filled_in(variant, tokenizer):
    """Models are made larger than their tokenizer, in whole blocks; a tokenizer may have holes as well."""
    model = model_for(variant, tokenizer)
    model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64)
    assert model.config.vocab_size == 64
    # Such rows are made like the mean of the others. Here they are the likeliest everywhere.
    head = model.get_output_embeddings()
    with torch.no_grad():
        head.weight[len(tokenizer) :] = 100 * head.weight[: 64 - len(tokenizer)]
    kwargs = {"suppress_tokens": list(tokenizer.all_special_ids), "return_candidates": True}
    for way in (
        {},
        {"do_sample": True, "decoding_order": "random"},
        {"do_sample": True, "decoding_order": "confidence", "tokens_per_step": 2},
        {"do_sample": True, "draft_length": 2},
    ):
        result = infill(model, tokenizer, "the <blank:6> sat<blank:1-2>", **kwargs, **way)
        for candidate in result.candidates:
            assert len(candidate.text) == len("the  sat") + sum(candidate.blank_lengths)


def test_holes_in_a_tokenizers_ids_are_never_filled_in():
    backend = Tokenizer(models.WordLevel({"<s>": 0, "<unk>": 1, "a": 2, "b": 5, " ": 9}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<unk>")
    model = tiny_model("two_stream", vocab_size=10)
    torch.manual_seed(0)
    filled = infill(model, tokenizer, ["a <blank:9> b"] * 20, do_sample=True, suppress_tokens=[0, 1])
    assert all(re.fullmatch("a [ab ]{9} b", text) for text in filled)


def test_nothing_is_cleaned_up(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.clean_up_tokenization_spaces = True
    assert infill(Writes(tokenizer, ["."]), tokenizer, "on <blank>t") == "on .t"


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_spaces_and_other_alphabets_survive(kind):
    tokenizer = byte_tokenizer() if kind == "bytes" else train_bpe_tokenizer(TEXTS * 20, 300)
    for middle in (" sat on", "größer", " ", "\n\n"):
        # The space before a blank belongs to the blank's first token, where tokens hold more than one byte.
        middle_with_space = middle if kind == "bytes" else " " + middle
        tokens = tokenizer.encode(middle_with_space, add_special_tokens=False)
        writer = Writes(tokenizer, [middle_with_space])
        text = f"der Kater <blank:{len(tokens)}> – jetzt"
        assert infill(writer, tokenizer, text) == f"der Kater {middle} – jetzt"


def test_a_tokenizer_that_strips_spaces_keeps_them_inside_text():
    """Metaspace tokenizers (Llama's, T5's) drop the space before the first token that they decode."""
    words = ["<s>", "<pad>", "<unk>", "▁the", "▁cat", "▁sat"]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", pad_token="<pad>", clean_up_tokenization_spaces=False
    )
    writer = Writes(tokenizer, ["cat"])
    assert infill(writer, tokenizer, "the<blank> sat") == "the cat sat"
    assert tokenizer.convert_ids_to_tokens(writer.call["input_ids"][0].tolist())[1::2] == ["▁the", "▁sat"]
    # A tokenizer of whole words has no form for the end of one, but loses none.
    infill(writer, tokenizer, "the<blank>sat")
    assert tokenizer.convert_ids_to_tokens(writer.call["input_ids"][0].tolist())[1::2] == ["▁the", "▁sat"]
    assert infill(Writes(tokenizer, ["cat sat"]), tokenizer, "the<blank> sat<blank>") == "the cat sat sat"


def sentencepiece_like(kind):
    """BPE whose tokens carry the space before a word, which every text gets in front (`never`: it does not)."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    if kind == "llama2":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        steps = [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        backend.decoder = decoders.Sequence(steps)
    elif kind == "gpt2":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        backend.decoder = decoders.ByteLevel()
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind)
        backend.decoder = decoders.Metaspace(prepend_scheme=kind)
    special = {"bos_token": "<s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(special.values()), initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(["the cat sat on the mat", "walking cats, running dogs"] * 10, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **special)


@pytest.mark.parametrize("kind", ["llama2", "gpt2", "always", "first", "never"])
def test_text_behind_a_blank_continues_it(kind):
    """What the model reads behind blanks, decoded, is the text as written, with no space in front of it."""
    tokenizer = sentencepiece_like(kind)
    for text, fillings in (
        ("the<blank> sat", [" cat"]),
        ("walk<blank>ing", ["k"]),
        ("on<blank>, dogs", ["the"]),
        ("cat<blank> <blank>s", ["s", "dog"]),
        ("<blank> cats", ["the"]),
    ):
        tokens = [tokenizer.encode(filling, add_special_tokens=False)[-1:] for filling in fillings]
        writer = Writes(tokenizer, [])
        writer.tokens = [sum(tokens, [])]
        infill(writer, tokenizer, text)
        blanks = writer.call["generation_mask"][0]
        ids = writer.call["input_ids"][0].where(~blanks, tokenizer.convert_tokens_to_ids("<unk>"))
        read = tokenizer.decode(ids[1:], clean_up_tokenization_spaces=False)
        # The space before a blank is in the blank.
        assert read.removeprefix(" ") == text.replace(" <blank>", "<unk>").replace("<blank>", "<unk>")


@any_order_variants
def test_a_saved_tokenizer_and_model_fill_the_same(variant, tokenizer, tmp_path):
    model = model_for(variant, tokenizer)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=True)
    text = "the <blank:3> sat <blank:5>"
    assert infill(type(model).from_pretrained(tmp_path), again, text) == infill(model, tokenizer, text)


@pytest.mark.parametrize(
    ("text", "kwargs", "error", "message"),
    [
        ("a <blank:0>", {}, ValueError, "at least one token.*<blank:0>"),
        ("a <blank:6-2>", {}, ValueError, "m <= n.*<blank:6-2>"),
        ("a <blank:0-2>", {}, ValueError, "at least one token.*<blank:0-2>"),
        ("a <blank:65>", {}, ValueError, "max_position_embeddings=64.*<blank:65>"),
        ("a <blank:9999999999>", {}, ValueError, "max_position_embeddings=64.*<blank:9999999999>"),
        ("a <blank:1-9999999999>", {}, ValueError, "max_position_embeddings=64.*<blank:1-9999999999>"),
        (f"a <blank:{'9' * 5000}>", {}, ValueError, "max_position_embeddings=64.*<blank:9{73}\\.\\.\\."),
        ("<blank:40><blank:40>", {}, ValueError, "max_position_embeddings=64.*81, of which 1.*<blank:40><blank:40>"),
        ("a" * 50 + "<blank:9> b<blank:9>", {}, ValueError, "=64.*71, of which 53.*<blank:9>, <blank:9>"),
        ("a <blank:1-62>", {}, ValueError, "=64.*65, of which 3.*<blank:1-62>"),
        ("a <blank:1-61>", {"score_end": True, "max_candidates": 99}, ValueError, "=64.*65, of which 4"),
        ("a <blank>", {"token_sets": torch.ones(1, 28).bool()}, ValueError, "token_sets.*`infill`.*suppress_tokens"),
        (3, {}, TypeError, "text.*int"),
        (["a", None], {}, TypeError, "text.*NoneType"),
        ("a <blank>", {"num_return_sequences": 2}, ValueError, "num_return_sequences"),
        ("a <blank>", {"max_new_tokens": 2}, ValueError, "max_new_tokens.*blank at the end.*2"),
        ("a <blank>", {"return_dict_in_generate": True}, ValueError, "return_dict_in_generate"),
        ("a <blank>", {"decoding_order": "inwards"}, ValueError, "decoding_order.*inwards"),
    ],
)
def test_bad_texts_and_arguments_are_refused(tokenizer, text, kwargs, error, message):
    with pytest.raises(error, match=message):
        infill(model_for("two_stream", tokenizer), tokenizer, text, **kwargs)
