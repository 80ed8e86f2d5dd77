# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Where text and blanks meet: `infill` with tokenizers of all kinds."""

import gc
import json
import random
import re
import weakref

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from variants import tiny_model

from modeling_aoarm import infill
from modeling_aoarm.data.tokenizers import byte_tokenizer, character_tokenizer, train_bpe_tokenizer
from modeling_aoarm.infilling_aoarm import make_canvases, read_vocabulary, write_blanks
from modeling_aoarm.streaming import TokenTexts


SENTENCES = [
    "the cat sat on the mat, and the dog ran to the cat.",
    "walking cats see running dogs; the cats sit, the dogs run.",
    "def run(cat):\n    return cat\n",
    "on the mat\tthe cat 🎉 é",
]
LONGEST = 64


def byte_fallback_tokenizer():
    """As Llama 2's: a space is put in front of every text, and unknown characters are bytes."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=special, limit_alphabet=30, show_progress=False)
    trained.train_from_iterator(SENTENCES[:2] * 10, trainer)
    model = json.loads(trained.to_str())["model"]
    vocabulary = list(model["vocab"]) + [f"<0x{byte:02X}>" for byte in range(256)]
    merges = [tuple(pair) for pair in model["merges"]]
    vocabulary = {token: index for index, token in enumerate(vocabulary)}
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **names)


def word_piece_tokenizer():
    """As BERT's: tokens hold no spaces, and `##` begins those that go on with a word."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    names = {"unk_token": "[UNK]", "bos_token": "[CLS]", "eos_token": "[SEP]", "pad_token": "[PAD]"}
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=list(names.values()), show_progress=False)
    backend.train_from_iterator(SENTENCES * 10 + ["q z x k"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **names)


TOKENIZERS = {
    "byte-level BPE": train_bpe_tokenizer(SENTENCES * 10, 330),
    "byte fallback": byte_fallback_tokenizer(),
    "WordPiece": word_piece_tokenizer(),
    "characters": character_tokenizer(SENTENCES),
    "bytes": byte_tokenizer(),
}
SUBWORDS = ["byte-level BPE", "byte fallback", "WordPiece"]
LOSSLESS = ["byte-level BPE", "byte fallback", "bytes"]
every_kind = pytest.mark.parametrize("kind", list(TOKENIZERS))
subword_kinds = pytest.mark.parametrize("kind", SUBWORDS)


def model_for(tokenizer, **changes):
    ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    return tiny_model("two_stream", **{"vocab_size": len(tokenizer), **ends, **changes})


def encode(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False)


def canvas_of(tokenizer, text):
    [canvas] = make_canvases(tokenizer, text, LONGEST, max_candidates=1)
    return canvas


def continuing(tokenizer, before, text):
    """The ids of `text` where it follows `before`."""
    return encode(tokenizer, before + text)[len(encode(tokenizer, before)) :]


@subword_kinds
@pytest.mark.parametrize(
    "text", ["the _ sat", "_ sat on the _", "the _ _ sat", "the\n_ sat", "the cat and _, the dog", "the  _", " _ sat"]
)
def test_a_natural_filling_has_the_tokens_of_the_whole_text(kind, text):
    """What the model reads is what it would read if the text had been tokenised without blanks."""
    tokenizer = TOKENIZERS[kind]
    whole = text.replace("_", "cat")
    fillings = []
    for before in text.split("_")[:-1]:
        # A space before the word is in the word's token, and so is the one in front of the text.
        joins = before.endswith(" ") or kind == "WordPiece" or (kind == "byte fallback" and not before)
        fillings.append(continuing(tokenizer, "the", " cat") if joins else continuing(tokenizer, "\n", "cat"))
    pieces = text.split("_")
    written = "".join(f"{piece}<blank:{len(ids)}>" for piece, ids in zip(pieces, fillings, strict=False)) + pieces[-1]
    canvas = canvas_of(tokenizer, written)
    canvas.fillings = fillings
    assert canvas.join_ids()[0] == [tokenizer.bos_token_id, *encode(tokenizer, whole)]
    assert canvas.write_text(canvas.decode_fillings(tokenizer)) == whole


@pytest.mark.parametrize("kind", ["characters", "bytes"])
def test_nothing_is_moved_where_nothing_is_joined(kind):
    tokenizer = TOKENIZERS[kind]
    pieces = canvas_of(tokenizer, "the <blank:3> sat\n<blank>").pieces
    assert all(piece.moved == "" and piece.ids == piece.unmoved_ids for piece in pieces)
    assert pieces[1].ids == encode(tokenizer, " sat\n")


class Records:
    """Passes calls on to a model and keeps what it was asked."""

    def __init__(self, model):
        self.model, self.config, self.device = model, model.config, model.device
        self.generated, self.scored = [], []

    def generate(self, input_ids, **kwargs):
        self.generated.append({"input_ids": input_ids, **kwargs})
        return self.model.generate(input_ids, **kwargs)

    def score(self, input_ids, attention_mask, **kwargs):
        self.scored += [ids[real.bool()].tolist() for ids, real in zip(input_ids, attention_mask, strict=True)]
        return self.model.score(input_ids, attention_mask=attention_mask, **kwargs)


@subword_kinds
def test_the_first_token_of_a_blank_begins_with_the_space_before_it(kind):
    """Of one token it is more than the space. Elsewhere any token may stand."""
    tokenizer = TOKENIZERS[kind]
    model = Records(model_for(tokenizer))
    infill(model, tokenizer, ["the <blank> sat", "the <blank:2> sat", "the<blank:2> sat"])
    [call] = model.generated
    first = len(encode(tokenizer, "the")) + 1
    sets, numbers = call["token_sets"], call["column_sets"]
    assert (numbers >= 0).nonzero().tolist() == [[0, first], [1, first]]
    texts = [tokenizer.decode([*encode(tokenizer, "the"), index])[3:] for index in range(len(tokenizer))]
    one, several = sets[numbers[0, first]].tolist(), sets[numbers[1, first]].tolist()
    assert one == [text[:1] == " " and len(text) > 1 and index > 3 for index, text in enumerate(texts)]
    assert several == [text[:1] == " " and index > 3 for index, text in enumerate(texts)]
    assert 3 < sum(one) < len(tokenizer) - 20
    assert infill(model, tokenizer, "the<blank> sat") and "token_sets" not in model.generated[-1]


def test_a_word_piece_behind_a_space_begins_a_word():
    """It is shown with the one space that is given, whatever the model likes best."""
    tokenizer = TOKENIZERS["WordPiece"]
    model = model_for(tokenizer)
    for seed in range(20):
        torch.manual_seed(seed)
        filled = infill(model, tokenizer, "The <blank> sat", do_sample=True)
        assert re.fullmatch(r"The [^\s#]+ sat", filled)


def test_a_word_piece_behind_a_blank_ends_its_word():
    tokenizer = TOKENIZERS["WordPiece"]
    ids, other_ids = (canvas_of(tokenizer, text).pieces[1].ids for text in ("walk<blank>ing dogs", "<blank> dogs"))
    assert tokenizer.convert_ids_to_tokens(ids)[0].startswith("##")
    assert "".join(tokenizer.decode(ids).split("##")) == "ing dogs"
    assert not tokenizer.convert_ids_to_tokens(other_ids)[0].startswith("##")


def test_indentation_is_joined_as_in_code():
    """The last space of several belongs to the next word, the others and the line break do not."""
    tokenizer = TOKENIZERS["byte-level BPE"]
    before, after = canvas_of(tokenizer, "def run(cat):\n    <blank> cat\n").pieces
    assert before.moved == " "
    assert tokenizer.decode(before.ids[1:]) == "def run(cat):\n   "
    assert after.ids == encode(tokenizer, " cat\n")


@pytest.mark.parametrize("kind", SUBWORDS)
def test_a_blank_that_an_end_of_sentence_closed_leaves_its_space(kind):
    """The text is shown with it, so it is scored with it."""
    tokenizer = TOKENIZERS[kind]
    canvas = canvas_of(tokenizer, "the<blank> <blank>")
    canvas.fillings = [continuing(tokenizer, "the", " cat"), []]
    assert canvas.write_text(canvas.decode_fillings(tokenizer)) == "the cat "
    assert canvas.join_ids()[0] == canvas.pieces[0].unmoved_ids + canvas.fillings[0] + canvas.pieces[1].unmoved_ids


def test_a_text_keeps_its_first_token():
    """Without a beginning-of-sentence token, a space that begins a text is what its other tokens are predicted from."""
    tokenizer = train_bpe_tokenizer(SENTENCES * 10, 330)
    tokenizer.bos_token = None
    model = model_for(tokenizer)
    for text in (" <blank:1-2> sat", " <blank:1-2>"):
        first = make_canvases(tokenizer, text, LONGEST)[0].pieces[0]
        assert (first.ids, first.moved) == (encode(tokenizer, " "), "")
        before, after = text.split("<blank:1-2>")
        assert infill(model, tokenizer, text).startswith(before) and infill(model, tokenizer, text).endswith(after)


def test_the_bytes_of_a_character_behind_one_of_bytes():
    """Llama 2 writes rare characters as bytes. Bytes that are no character leave the text around them as it is."""
    tokenizer = TOKENIZERS["byte fallback"]
    ids = [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in "😀".encode()]
    for before, after in (("love it 🎉", " ok"), ("🎉", "🎉"), ("the ", "🎉"), ("", ""), ("🎉 ", " 🎉")):
        canvas = canvas_of(tokenizer, f"{before}<blank:4>{after}")
        canvas.fillings = [ids]
        assert canvas.write_text(canvas.decode_fillings(tokenizer)) == f"{before}😀{after}"
        for part in (ids[:3], ids[1:], ids[:1], ids[1:2] * 3):
            canvas.fillings = [part]
            shown = canvas.write_text(canvas.decode_fillings(tokenizer))
            assert shown == before + "\ufffd" * len(part) + after


def test_pictures_show_bytes_as_texts_do():
    """Bytes that are no character leave the characters around them as they are, before them and behind a blank."""
    tokenizer = TOKENIZERS["byte fallback"]
    texts = TokenTexts(tokenizer)
    party, smile = ([tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in each.encode()] for each in "🎉😀")
    cat = continuing(tokenizer, "the", " cat")
    assert texts(party + smile + cat) == ["", "", "", "🎉", "", "", "", "😀", " cat"]
    assert texts(party + smile[:2] + cat) == ["", "", "", "🎉", "\ufffd", "\ufffd", " cat"]
    assert texts(cat + party + cat, [False] + [True] * 5) == [None, "", "", "", "🎉", " cat"]


def test_the_space_behind_a_special_token_is_shown():
    """Decoding without special tokens would take the filling for the start of a text, and drop its space."""
    tokenizer = TOKENIZERS["byte fallback"]
    canvas = canvas_of(tokenizer, "the<blank><pad><blank> cat")
    canvas.fillings = [continuing(tokenizer, "the", " cat"), continuing(tokenizer, "the", " cat")]
    assert canvas.write_text(canvas.decode_fillings(tokenizer)) == "the cat<pad> cat cat"


def test_a_vocabulary_is_read_once_and_again_when_it_grows():
    tokenizer = train_bpe_tokenizer(SENTENCES * 10, 330)
    vocabulary = read_vocabulary(tokenizer)
    assert read_vocabulary(tokenizer) is vocabulary
    tokenizer.add_tokens([" new"])
    assert len(tokenizer) - 1 in read_vocabulary(tokenizer).find_spaced(" ", has_more=True)
    alive = weakref.ref(tokenizer), weakref.ref(read_vocabulary(tokenizer))
    del tokenizer, vocabulary
    gc.collect()
    assert [each() for each in alive] == [None, None]


FRAGMENTS = [*"thecas", " the", " cat", "dog", " ", " ", "  ", "\n", "\n    ", "\t", "é", "e\u0301", "\u0301", "🎉"]
FRAGMENTS += ["👩\u200d👧", "中", ",", "(", "5", "\\", "<blank>", "<blank", "Ġ", "##", "\u00a0", "\ufeff", "\u3000"]
BLANKS = ["<blank>", "<blank:2>", "<blank:3>", "<blank:1-2>"]


def random_text(rng):
    """Pieces of text, and the text that they make with runs of blanks between them."""
    pieces = ["".join(rng.choices(FRAGMENTS, k=rng.randrange(4))) for _ in range(rng.randrange(2, 5))]
    # Blanks that nothing stands between are one.
    pieces[1:-1] = [piece or " " for piece in pieces[1:-1]]
    blanks = ["".join(rng.choices(BLANKS, k=rng.choice((1, 1, 2)))) for _ in pieces[1:]]
    return pieces, write_blanks(pieces, blanks)


WAYS = {
    "greedy, left to right": {"decoding_order": "left_to_right"},
    "greedy, random order": {"decoding_order": "random"},
    "sampled, left to right": {"decoding_order": "left_to_right", "do_sample": True},
    "sampled, random order": {"decoding_order": "random", "do_sample": True},
    "sampled, confidence": {"decoding_order": "confidence", "do_sample": True, "tokens_per_step": 2},
    "sampled, drafted": {"decoding_order": "random", "do_sample": True, "draft_length": 2},
}


@every_kind
@pytest.mark.parametrize("way", list(WAYS))
def test_text_around_blanks_comes_back_as_it_is(kind, way):
    """Random texts. With tokenizers that lose nothing, the scored tokens are those of the text that is shown."""
    tokenizer = TOKENIZERS[kind]
    rng = random.Random(f"{kind} {way}")
    model = Records(model_for(tokenizer, max_position_embeddings=128))
    part_of_a_character = [index for index in range(len(tokenizer)) if "\ufffd" in tokenizer.decode([index])]
    torch.manual_seed(0)
    compared = 0
    for suppressed in ([], part_of_a_character):
        cases = [random_text(rng) for _ in range(20)]
        texts, kwargs = [text for _, text in cases], WAYS[way] | {"suppress_tokens": suppressed or None}
        results = infill(model, tokenizer, texts, return_candidates=True, **kwargs)
        read = {""} | {tokenizer.decode(ids[1:], clean_up_tokenization_spaces=False) for ids in model.scored}
        for (pieces, _), result in zip(cases, results, strict=True):
            for candidate in result.candidates:
                assert re.fullmatch("(.*)".join(map(re.escape, pieces)), candidate.text, flags=re.DOTALL), pieces
                if kind in LOSSLESS and "\ufffd" not in candidate.text:
                    assert candidate.text in read, pieces
                    compared += 1
    assert compared > 15 or kind not in LOSSLESS
