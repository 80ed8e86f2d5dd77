# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""`CanvasStreamer`: what a terminal shows while canvases fill, and what a log file gets."""

import io
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from variants import tiny_model

from modeling_aoarm.data.tokenizers import byte_tokenizer, character_tokenizer, train_bpe_tokenizer
from modeling_aoarm.streaming import CanvasStreamer, TokenTexts, age_colour, confidence_colour


TEXTS = ["The café  is\n open, 漢字 too", "a  b"]
TOKENIZERS = {
    "character": character_tokenizer(TEXTS),
    "byte": byte_tokenizer(),
    "bpe": train_bpe_tokenizer(TEXTS, 280),
}
BYTES = TOKENIZERS["byte"]
CONTROL = re.compile(r"\x1b\[(\??)([\d;]*)([A-Za-z])")


class Screen:
    """A terminal that knows what live displays need: lines of (character, style) and a cursor."""

    def __init__(self):
        self.lines, self.row, self.column, self.style, self.cursor_was_hidden = [[]], 0, 0, "", False

    def feed(self, text):
        while text:
            control = CONTROL.match(text)
            if control:
                private, number, kind = control.groups()
                if kind == "m":
                    self.style = "" if number in ("", "0") else number
                elif kind == "A":
                    self.row -= int(number or 1)
                elif kind == "K" and number == "2":
                    self.lines[self.row] = []
                else:
                    assert private and number == "25", f"unknown control {control[0]!r}"
                    self.cursor_was_hidden |= kind == "l"
                text = text[control.end() :]
                continue
            character, text = text[0], text[1:]
            if character == "\n":
                self.row, self.column = self.row + 1, 0
                self.lines += [[] for _ in range(self.row + 1 - len(self.lines))]
            elif character == "\r":
                self.column = 0
            else:
                assert character != "\x1b" and self.row >= 0
                self.lines[self.row][self.column :] = [(character, self.style)]
                self.column += 1

    @property
    def text(self):
        return ["".join(character for character, _ in line).rstrip() for line in self.lines]

    def styles(self, line):
        """The style of each character of a line."""
        return {character: style for character, style in self.lines[line]}


class Show:
    """A streamer on a terminal, and what the terminal shows."""

    def __init__(self, tokenizer=BYTES, width=100, height=25, **arguments):
        self.file = io.StringIO()
        console = Console(
            file=self.file, force_terminal=True, color_system="truecolor", width=width, height=height, _environ={}
        )
        self.streamer = CanvasStreamer(tokenizer, console=console, **arguments)

    @property
    def screen(self):
        screen = Screen()
        screen.feed(self.file.getvalue())
        return screen


def code(colour):
    """The terminal's code for `#rrggbb`."""
    return "38;2;" + ";".join(str(int(colour[place : place + 2], 16)) for place in (1, 3, 5))


def batch_of(tokenizer, texts, left_padding=0):
    ids = [tokenizer.encode(text) for text in texts]
    width = max(map(len, ids))
    pad = tokenizer.pad_token_id
    return torch.tensor([[pad] * left_padding + each + [pad] * (width - len(each)) for each in ids])


def play(streamer, final, orders):
    """Calls a streamer as `generate` does, filling one blank of each canvas in each pass. Yields after each call."""
    given = final.clone()
    filled, steps = torch.ones_like(final, dtype=torch.bool), torch.full_like(final, -1)
    for example, order in enumerate(orders):
        given[example, order] = 0
        filled[example, order] = False
    canvas, confidence = given.clone(), torch.full(final.shape, torch.nan)
    streamer.put(given)
    yield
    for step in range(max(map(len, orders))):
        for example, order in enumerate(orders):
            if step < len(order):
                column = order[step]
                canvas[example, column], filled[example, column] = final[example, column], True
                steps[example, column], confidence[example, column] = step, 0.25
        streamer.put_draft(
            value=canvas.clone(), filled=filled.clone(), steps=steps.clone(), confidence=confidence.clone()
        )
        yield
    streamer.put(final)
    streamer.end()


@pytest.mark.parametrize("name", ["byte", "bpe"])
@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_texts_of_tokens_join_to_the_text(name, text):
    tokenizer = TOKENIZERS[name]
    ids = tokenizer(text, split_special_tokens=True).input_ids
    assert "".join(TokenTexts(tokenizer)(ids)) == text


@settings(max_examples=60, deadline=None)
@given(ids=st.lists(st.integers(0, len(BYTES) - 1), max_size=30))
def test_texts_of_any_bytes_join_to_what_the_tokenizer_decodes(ids):
    assert "".join(TokenTexts(BYTES)(ids)) == BYTES.decode(ids)


@settings(max_examples=60, deadline=None)
@given(tokens=st.lists(st.tuples(st.integers(0, len(BYTES) - 1), st.booleans()), max_size=30))
def test_blanks_have_no_text_and_all_other_tokens_have_one(tokens):
    ids, known = [token for token, _ in tokens], [is_known for _, is_known in tokens]
    assert [text is not None for text in TokenTexts(BYTES)(ids, known)] == known


def test_a_character_of_several_tokens_is_the_last_ones_text():
    ids = BYTES.encode("a漢é")
    assert TokenTexts(BYTES)(ids) == ["a", "", "", "漢", "", "é"]
    assert TokenTexts(BYTES)(ids, [True, True, True, False, True, True]) == ["a", "\ufffd", "", None, "", "é"]


def test_a_leading_space_survives_behind_a_blank():
    tokenizer = Tokenizer(models.WordLevel({"▁the": 0, "▁cat": 1, "s": 2}))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    texts = TokenTexts(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    assert texts([0, 1, 2, 1]) == ["the", " cat", "s", " cat"]
    assert texts([0, 1, 2, 1], [False, True, False, True]) == [None, " cat", None, " cat"]
    assert texts([0, 1, 2, 1], [False, False, True, True]) == [None, None, "s", " cat"]


@pytest.mark.parametrize("name", sorted(TOKENIZERS))
def test_the_terminal_shows_every_state_of_a_batch_and_nothing_else(name):
    tokenizer = TOKENIZERS[name]
    show, final = Show(tokenizer), batch_of(tokenizer, TEXTS)
    ends = [len(tokenizer.encode(text)) for text in TEXTS]
    orders = [list(range(ends[0]))[::-1], [1, 0]]
    for calls, _ in enumerate(play(show.streamer, final, orders)):
        if calls > 0:
            left = ends[0] - calls
            expected = "_" * left + "".join(TokenTexts(tokenizer)(final[0, left : ends[0]].tolist()))
            lines = show.screen.text
            shown = "\n".join(line[2:] for line in lines if not line.startswith("1 ") and "forward pass" not in line)
            assert shown.strip() == "\n".join(line.rstrip() for line in expected.split("\n")).strip()
            assert f"{calls} forward pass" in "\n".join(lines)
    lines = show.screen.text
    assert lines[:3] == ["0 The café  is", "   open, 漢字 too", "1 a  b"]
    blanks = sum(map(len, orders))
    assert lines[3].startswith(f"{ends[0]} forward passes, {blanks} of {blanks} blanks done | ")
    assert not any(lines[4:])


def test_one_canvas_has_no_number():
    show = Show()
    list(play(show.streamer, batch_of(BYTES, ["cat"]), [[1]]))
    assert show.screen.text[0] == "cat"


def test_colours_follow_the_age_and_given_text_has_none():
    show = Show()
    passes = play(show.streamer, batch_of(BYTES, ["abcd"]), [[1, 3, 2]])
    next(passes)
    for ages in ({"b": 0}, {"b": 1, "d": 0}, {"b": 2, "d": 1, "c": 0}):
        next(passes)
        styles = show.screen.styles(0)
        assert styles["a"] == ""
        for character, age in ages.items():
            assert styles[character].endswith(code(age_colour(age)))
            assert styles[character].startswith("1;") == (age == 0)
    assert len({age_colour(age) for age in range(10)}) == 10


def test_colours_follow_the_confidence_and_missing_ones_have_none():
    show = Show(colour_by="confidence")
    canvas = batch_of(BYTES, ["abcd"])
    show.streamer.put(canvas)
    steps, confidence = torch.tensor([[-1, 0, 0, 0]]), torch.tensor([[torch.nan, 0.1, 0.9, torch.nan]])
    show.streamer.put_draft(canvas, torch.ones(1, 4, dtype=torch.bool), steps, confidence)
    assert show.screen.styles(0) == {
        "a": "",
        "b": code(confidence_colour(0.1)),
        "c": code(confidence_colour(0.9)),
        "d": "",
    }
    assert confidence_colour(0) == "#d1242f" and confidence_colour(1) == "#1a7f37"


def test_drafts_are_italic_until_an_end_of_sentence_closes_them():
    show = Show()
    canvas = batch_of(BYTES, ["abcd"])
    show.streamer.put(canvas)
    filled = torch.tensor([[True, False, False, False]])
    drafted = torch.tensor([[False, False, True, True]])
    show.streamer.put_draft(canvas, filled, torch.full((1, 4), -1), drafted=drafted)
    assert show.screen.text[0] == "a_cd"
    assert "draft" in show.screen.text[1]
    assert show.screen.styles(0) == {"a": "", "_": "2", "c": "2;3", "d": "2;3"}
    final = torch.tensor([[canvas[0, 0], BYTES.eos_token_id, BYTES.pad_token_id, BYTES.pad_token_id]])
    show.streamer.put_draft(final, torch.ones_like(filled), torch.tensor([[-1, 1, -1, -1]]), drafted=drafted)
    assert show.screen.text[0] == "a</s>"
    assert "draft" not in show.screen.text[1]
    show.streamer.put(final)
    show.streamer.end()
    assert show.screen.text[0] == "a</s>"
    assert "draft" not in show.screen.text[1]
    assert "3 of 3 blanks" in show.screen.text[1]


@pytest.mark.parametrize("on_terminal", [True, False])
def test_padding_at_the_ends_is_left_out_but_a_blank_that_holds_its_id_is_not(on_terminal):
    show = Show()
    if not on_terminal:
        show.streamer.console = Console(file=show.file, width=20)
    final = batch_of(BYTES, ["abc", "abcdef"], left_padding=2)
    passes = play(show.streamer, final, [[3], [7]])
    next(passes)
    canvas = final.clone()
    canvas[1, 7] = BYTES.pad_token_id
    filled = torch.ones_like(final, dtype=torch.bool)
    filled[0, 3] = filled[1, 7] = False
    show.streamer.put_draft(canvas, filled, torch.full_like(final, -1))
    if on_terminal:
        assert show.screen.text[:2] == ["0 a_c", "1 abcde_"]
    else:
        assert show.file.getvalue() == "canvas 0, given: a_c\ncanvas 1, given: abcde_\n"


def test_a_log_file_gets_plain_lines():
    file = io.StringIO()
    # Narrower than the lines: they must not be broken.
    streamer = CanvasStreamer(BYTES, console=Console(file=file, width=10, color_system="truecolor"))
    final = batch_of(BYTES, ["[b]The café\nis\topen :smile: 漢字", "x\x1by"])
    length = len(BYTES.encode("[b]The café\nis\topen :smile: 漢字"))
    list(play(streamer, final, [[3, 4, length - 1], [2]]))
    assert file.getvalue() == (
        "canvas 0, given: [b]__e café\\nis\\topen :smile: 漢\ufffd_\n"
        "canvas 1, given: x\u241b_\n"
        "canvas 0, filled: [b]The café\\nis\\topen :smile: 漢字\n"
        "canvas 1, filled: x\u241by\n"
        "3 forward passes, 4 of 4 blanks done\n"
    )


def test_an_encoding_that_lacks_a_character_gets_a_question_mark():
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    list(play(CanvasStreamer(BYTES, console=Console(file=file)), batch_of(BYTES, ["é漢a"]), [[5]]))
    file.flush()
    assert raw.getvalue().decode("ascii").startswith("given: ??_\nfilled: ??a\n")


def test_control_characters_do_not_reach_the_terminal():
    show = Show()
    text = "a\x1b[2Jb\rc\x07\x7f\x9b"
    list(play(show.streamer, batch_of(BYTES, [text]), [[0]]))
    assert show.screen.text[0] == "a\u241b[2Jb\u240dc\u2407\u2421\ufffd"


def test_an_error_in_generate_leaves_the_terminal_and_the_streamer_in_order():
    show = Show()
    passes = play(show.streamer, batch_of(BYTES, ["first"]), [[1, 2, 3]])
    for _ in range(3):
        next(passes)
    passes.close()
    show.file.write("Traceback\n")
    screen = show.screen
    assert not screen.cursor_was_hidden
    assert screen.text[0] == "fir_t"
    assert screen.text[2] == "Traceback"
    # The next call of `generate` starts below.
    list(play(show.streamer, batch_of(BYTES, ["other"]), [[1, 2]]))
    assert [line for line in show.screen.text if line][2:4:1] == ["Traceback", "other"]
    assert show.screen.text[0] == "fir_t"
    assert "2 of 2 blanks" in show.screen.text[4]


def test_a_log_file_says_when_generate_stopped_half_way():
    file = io.StringIO()
    streamer = CanvasStreamer(BYTES, console=Console(file=file))
    passes = play(streamer, batch_of(BYTES, ["abc"]), [[1, 2]])
    for _ in range(2):
        next(passes)
    streamer.end()
    assert file.getvalue() == "given: a__\nso far: ab_\n1 forward pass, 1 of 2 blanks done\n"


def test_canvases_taller_than_the_terminal_are_cut_until_the_end():
    show = Show(height=6)
    text = "\n".join("abcdefgh")
    passes = play(show.streamer, batch_of(BYTES, [text]), [[0, 2]])
    next(passes), next(passes), next(passes)
    assert len(show.screen.lines) == 6 and show.screen.text[-1].strip() == "..."
    list(passes)
    assert show.screen.text[:8] == list("abcdefgh")


def test_drafts_without_any_state_show_what_changed():
    show = Show()
    show.streamer.put(batch_of(BYTES, ["abcd"]))
    show.streamer.put_draft(batch_of(BYTES, ["abXd"]))
    assert show.screen.text[0] == "abXd"
    show.streamer.put_draft(value=batch_of(BYTES, ["aYXd"]))
    styles = show.screen.styles(0)
    assert styles["a"] == styles["d"] == ""
    assert styles["Y"].endswith(code(age_colour(0))) and styles["X"].endswith(code(age_colour(1)))
    show.streamer.put(batch_of(BYTES, ["aYXZ"]))
    show.streamer.end()
    assert show.screen.text[0] == "aYXZ"


def test_the_last_canvas_counts_whatever_the_drafts_were():
    show, file = Show(), io.StringIO()
    for streamer in (show.streamer, CanvasStreamer(BYTES, console=Console(file=file))):
        passes = play(streamer, batch_of(BYTES, ["abc"]), [[1, 2]])
        next(passes), next(passes)
        streamer.put(batch_of(BYTES, ["abX"]))
        streamer.end()
    assert show.screen.text[0] == "abX"
    assert file.getvalue() == "given: a__\nfilled: abX\n1 forward pass, 2 of 2 blanks done\n"


def test_a_diffusion_model_that_writes_block_by_block_leaves_all_blocks_on_the_screen():
    show = Show()
    show.streamer.put(batch_of(BYTES, ["prompt"]))
    for block in ("first", "other"):
        show.streamer.put_draft(value=batch_of(BYTES, ["?????"]))
        show.streamer.put_draft(value=batch_of(BYTES, [block]))
        show.streamer.put(batch_of(BYTES, [block]))
    show.streamer.end()
    lines = [line for line in show.screen.text if line]
    assert lines[0::2] == ["first", "other"]
    assert all(line.startswith("2 forward passes") for line in lines[1::2])


def test_drafts_without_steps_count_the_passes_themselves():
    show = Show()
    canvas = batch_of(BYTES, ["abc"])
    show.streamer.put(canvas)
    # What stands in the blanks is already the token that comes.
    show.streamer.put_draft(canvas, filled=torch.tensor([[True, False, False]]))
    assert show.screen.text[0] == "a__"
    show.streamer.put_draft(canvas, filled=torch.tensor([[True, True, False]]))
    show.streamer.put_draft(canvas, filled=torch.tensor([[True, True, True]]))
    styles = show.screen.styles(0)
    assert styles["a"] == ""
    assert styles["b"].endswith(code(age_colour(1))) and styles["c"].endswith(code(age_colour(0)))


@pytest.mark.parametrize("order", ["left_to_right", "random"])
def test_generate_streams_its_own_result(order):
    show = Show(skip_special_tokens=True)
    model = tiny_model("two_stream", vocab_size=len(BYTES), pad_token_id=BYTES.pad_token_id)
    canvas = batch_of(BYTES, ["the cat", "a dog"])
    blanks = torch.tensor([[False, True, False, True, True, False, False], [False, False, True, True] + [False] * 3])
    output = model.generate(
        canvas,
        generation_mask=blanks,
        attention_mask=(canvas != BYTES.pad_token_id).long(),
        decoding_order=order,
        suppress_tokens=[token for token in range(len(BYTES)) if not BYTES.decode([token]).isalpha()],
        streamer=show.streamer,
    )
    expected = [f"{row} {BYTES.decode(ids, skip_special_tokens=True)}" for row, ids in enumerate(output)]
    assert show.screen.text[:2] == expected
    assert "3 forward passes, 5 of 5 blanks done" in show.screen.text[2]
    assert not show.screen.cursor_was_hidden


def test_left_to_right_generation_of_the_library_grows_the_canvas():
    show = Show()
    model = tiny_model("causal", vocab_size=len(BYTES), pad_token_id=BYTES.pad_token_id)
    letters = [token for token in range(len(BYTES)) if not BYTES.decode([token]).isalpha()]
    prompt = batch_of(BYTES, ["the "])
    output = model.generate(prompt, max_new_tokens=4, suppress_tokens=letters, streamer=show.streamer)
    assert show.screen.text[0] == BYTES.decode(output[0])
    assert [style == "" for _, style in show.screen.lines[0]][:8] == [True] * 4 + [False] * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"colour_by": "size"}, "colour_by.*'age', 'confidence'.*'size'"),
        ({"blank": ""}, "blank.*printable.*''"),
        ({"blank": "\n"}, "blank.*printable"),
        ({"blank": 3}, "blank.*printable.*3"),
        ({"sleep_time": -1}, "sleep_time.*at least 0.*-1"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        CanvasStreamer(BYTES, **arguments)


@pytest.mark.parametrize("shape", [(2,), (1, 2, 3), ()])
def test_values_that_are_no_canvases_are_refused(shape):
    with pytest.raises(ValueError, match=rf"value.*\[batch, columns\].*{re.escape(str(list(shape)))}"):
        CanvasStreamer(BYTES).put(torch.zeros(shape, dtype=torch.int64))
