# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Filling blanks in text, of known and of unknown length: `"The <blank:3> sat on the <blank:1-4>."`."""

import heapq
import itertools
import math
import re
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .canvas_aoarm import check_count, padded_rows
from .compat_aoarm import input_device


BLANK = re.compile(r"<blank(?::([0-9]+)(?:-([0-9]+))?)?>")

# Text to decode tokens behind: a letter, which no tokenizer makes of bytes.
ANCHOR = "a"
# What stands in a blank while the text behind it is tokenised: a character that merges with no other, or letters for
# tokenizers that do not know it.
STAND_INS = "☺qzxk"
# How many words are tried to find out whether the tokenizer joins them with the white space before them.
PROBES = 3


def read_blanks(text: str) -> tuple[list[str], list[range], list[str]]:
    r"""Splits a text at its blanks.

    Args:
        text: `<blank>`, `<blank:n>` and `<blank:m-n>` are blanks, everything else is text. Backslashes directly before
            one of these forms are read in pairs, each of which stands for one; a single one that is left makes the form
            text: `\<blank>`.

    Returns:
        The text before, between and after blanks, one piece more than there are blanks; the lengths, in tokens, that
        each blank may have; and the blanks as they are written. Blanks side by side are one.

    Raises:
        ValueError: for a blank without tokens, and one whose shortest length is above its longest.
    """
    pieces, lengths, written, end = [""], [], [], 0
    for match in BLANK.finditer(text):
        before = text[end : match.start()]
        backslashes = len(before) - len(before.rstrip("\\"))
        pieces[-1] += before[: len(before) - (backslashes + 1) // 2]
        end = match.end()
        if backslashes % 2:
            pieces[-1] += match[0]
            continue
        shortest = 1 if match[1] is None else _number(match[1])
        longest = shortest if match[2] is None else _number(match[2])
        if not 1 <= shortest <= longest:
            raise ValueError(
                "A blank of `text` must be written <blank>, <blank:n> or <blank:m-n> with m <= n, and be at least one "
                rf"token long, got {_cut(match[0])}. Write \{_cut(match[0])} for these characters themselves."
            )
        if lengths and not pieces[-1]:
            # A character's bytes may be shared out between blanks side by side.
            shortest, longest = shortest + lengths[-1][0], longest + lengths[-1][-1]
            lengths[-1], written[-1] = range(shortest, longest + 1), written[-1] + match[0]
        else:
            lengths.append(range(shortest, longest + 1))
            written.append(match[0])
            pieces.append("")
    pieces[-1] += text[end:]
    return pieces, lengths, written


def _number(digits: str) -> int:
    """Python does not read numbers of thousands of digits. 18 are more than any model has positions for."""
    digits = digits.lstrip("0") or "0"
    return int(digits) if len(digits) <= 18 else 10**18


def _cut(text: str) -> str:
    """`text`, cut to a length for messages."""
    return text if len(text) <= 80 else f"{text[:80]}..."


def write_blanks(pieces: Sequence[str], blanks: Sequence[str]) -> str:
    r"""Writes any pieces of text with blanks between them; [`read_blanks`] reads the same pieces.

    Backslashes are put where a piece has the form of a blank, and doubled directly before a blank.

    Args:
        pieces: one more than there are blanks.
        blanks: `<blank>`, `<blank:n>` or `<blank:m-n>`.
    """
    escaped = [_escape(piece) for piece in pieces]
    before = [_double_last_backslashes(piece) + blank for piece, blank in zip(escaped[:-1], blanks, strict=True)]
    return "".join(before) + escaped[-1]


def _escape(piece: str) -> str:
    escaped, end = "", 0
    for match in BLANK.finditer(piece):
        escaped += _double_last_backslashes(piece[end : match.start()]) + "\\" + match[0]
        end = match.end()
    return escaped + piece[end:]


def _double_last_backslashes(text: str) -> str:
    return text + text[len(text.rstrip("\\")) :]


def with_bos(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """`ids` behind the beginning-of-sentence token, unless they begin with it or the tokenizer has none."""
    bos = tokenizer.bos_token_id
    return ids if bos is None or ids[:1] == [bos] else [bos, *ids]


class Vocabulary:
    """A tokenizer's ids, and the text behind other text of those that begin with white space.

    Args:
        tokenizer: it is not kept.
    """

    _cache: "weakref.WeakKeyDictionary[PreTrainedTokenizerBase, Vocabulary]" = weakref.WeakKeyDictionary()

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.ids = sorted(set(tokenizer.get_vocab().values()))
        self.size = len(tokenizer)
        anchor = tokenizer.encode(ANCHOR, add_special_tokens=False)
        start = len(_decode(tokenizer, anchor))
        decoded = tokenizer.batch_decode([[*anchor, index] for index in self.ids], clean_up_tokenization_spaces=False)
        texts = ((index, text[start:]) for index, text in zip(self.ids, decoded, strict=True))
        self.spaced = {index: text for index, text in texts if text[:1].isspace()}
        self._probes: dict[str, list[str]] = {}
        self._beginning: dict[tuple[str, bool], list[int]] = {}

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "Vocabulary":
        """The tokenizer's vocabulary, made once for as long as no tokens are added."""
        known = cls._cache.get(tokenizer)
        if known is None or known.size != len(tokenizer):
            known = cls._cache[tokenizer] = cls(tokenizer)
        return known

    def probes(self, space: str) -> list[str]:
        """Words that tokens join with the white space before them, first those with the character `space`."""
        if space not in self._probes:
            words = (text for text in self.spaced.values() if text[1:].isalpha())
            shortest = heapq.nsmallest(PROBES, words, key=lambda text: (text[0] != space, len(text)))
            self._probes[space] = [text[1:] for text in shortest]
        return self._probes[space]

    def beginning_with(self, space: str, goes_on: bool) -> list[int]:
        """The ids whose text begins with `space`, and goes on behind it if `goes_on`."""
        key = space, goes_on
        if key not in self._beginning:
            self._beginning[key] = [
                index
                for index, text in self.spaced.items()
                if text.startswith(space) and not (goes_on and text == space)
            ]
        return self._beginning[key]


@dataclass
class TextTemplate:
    """A text with blanks.

    White space before a blank is a token of its own only where the tokenizer would not join it with the next word. It
    is moved into the blank otherwise, whose first token then begins with it.

    Args:
        pieces: the text before, between and after blanks: one more than there are blanks.
        piece_ids: the token ids of each piece, without white space that is moved; the first begins with the
            beginning-of-sentence token, if there is one.
        unmoved_ids: the token ids of each piece, with all of its white space.
        moved: the white space that is moved into each blank, which its first token begins with.
        lengths: the lengths, in tokens, that each blank may have.
        placeholder: the id that stands in blanks, which is never read.
    """

    pieces: list[str]
    piece_ids: list[list[int]]
    unmoved_ids: list[list[int]]
    moved: list[str]
    lengths: list[range]
    placeholder: int

    @classmethod
    def from_text(
        cls, tokenizer: PreTrainedTokenizerBase, text: str, max_length: int, appended: int = 0
    ) -> "TextTemplate":
        """Reads a text.

        Args:
            tokenizer: the model's.
            text: as in [`read_blanks`].
            max_length: the model's `max_position_embeddings`.
            appended: how many tokens will be appended to the text.

        Raises:
            ValueError: for blanks that may make the text longer than `max_length`, and as in [`read_blanks`].
        """
        pieces, lengths, written = read_blanks(text)
        piece_ids, unmoved_ids, moved = [], [], []
        for number, piece in enumerate(pieces):
            encode = encode_behind_blank if number else _encode
            unmoved = encode(tokenizer, piece)
            ids, space = unmoved, ""
            if number < len(lengths):
                ids, space = _move_space(tokenizer, encode, piece, unmoved)
            if number == 0:
                unmoved, ids = with_bos(tokenizer, unmoved), with_bos(tokenizer, ids)
                if not ids:
                    # The first token is what the others are predicted from.
                    ids, space = unmoved, ""
            piece_ids.append(ids)
            unmoved_ids.append(unmoved)
            moved.append(space)
        placeholder = 0 if tokenizer.mask_token_id is None else tokenizer.mask_token_id
        given = sum(map(len, piece_ids)) + appended
        longest = given + sum(each[-1] for each in lengths)
        if lengths and longest > max_length:
            raise ValueError(
                f"`text` must have at most max_position_embeddings={max_length} tokens with its blanks at their "
                f"longest; got {longest}, of which {given} are given, with {_cut(', '.join(written))}. Write shorter "
                "blanks or less text."
            )
        return cls(pieces, piece_ids, unmoved_ids, moved[: len(lengths)], lengths, placeholder)

    def canvases(self, max_candidates: int) -> Iterator["TextCanvas"]:
        """A canvas for each combination of lengths, the shorter first.

        Raises:
            ValueError: for more than `max_candidates` of them, and for more than one without a given first token.
        """
        number = math.prod(map(len, self.lengths))
        if number > max_candidates:
            raise ValueError(
                f"`text` must not have more than max_candidates={max_candidates} combinations of blank lengths, got "
                f"{number} for lengths from {[(each[0], each[-1]) for each in self.lengths]}."
            )
        if number > 1 and not self.piece_ids[0]:
            raise ValueError(
                "`text` must not begin with a blank where lengths are unknown and the tokenizer has no "
                "beginning-of-sentence token: candidates are compared given their first token, which must be the same."
            )
        for blank_lengths in itertools.product(*self.lengths):
            yield TextCanvas(self, blank_lengths)


@dataclass
class TextCanvas:
    """A text whose blanks have lengths, to be filled.

    Args:
        template: the text.
        blank_lengths: how many tokens each blank has.
        fillings: the token ids shown in each blank, once it is filled: as many as its length, or fewer.
        log_probability: nats, of the filled text, once it is scored.
    """

    template: TextTemplate
    blank_lengths: tuple[int, ...]
    fillings: list[list[int]] = field(default_factory=list)
    log_probability: float = 0.0

    def columns(self) -> tuple[list[int], list[range]]:
        """Token ids with placeholders in blanks, and the columns of each blank."""
        ids, blanks = list(self.template.piece_ids[0]), []
        for length, piece_ids in zip(self.blank_lengths, self.template.piece_ids[1:], strict=True):
            blanks.append(range(len(ids), len(ids) + length))
            ids += [self.template.placeholder] * length + piece_ids
        return ids, blanks

    def filled_ids(self) -> list[int]:
        """The token ids of the filled text."""
        template, ids = self.template, []
        for filling, piece_ids, unmoved_ids in zip(
            self.fillings, template.piece_ids[:-1], template.unmoved_ids[:-1], strict=True
        ):
            # An end of sentence may have closed the blank. No token of it holds the white space then.
            ids += piece_ids + filling if filling else unmoved_ids
        return ids + template.piece_ids[-1]

    def text(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """The filled text: the pieces as they were written, and the fillings decoded."""
        template = self.template
        text, before = template.pieces[0], template.piece_ids[0]
        if before[:1] == [tokenizer.bos_token_id]:
            before = before[1:]
        for filling, moved, piece, piece_ids in zip(
            self.fillings, template.moved, template.pieces[1:], template.piece_ids[1:], strict=True
        ):
            # A piece holds whole characters, so what is before it does not matter to what follows.
            text += _decode_behind(tokenizer, before, filling).removeprefix(moved) + piece
            before = piece_ids or before + filling
        return text


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def encode_behind_blank(tokenizer: PreTrainedTokenizerBase, piece: str) -> list[int]:
    """The ids of a piece of text that follows a blank, without a space that the tokenizer would put in front."""
    ids = _encode(tokenizer, piece)
    text = _decode_behind(tokenizer, _encode(tokenizer, ANCHOR), ids)
    continued = piece[: len(piece) - len(piece.lstrip())] + text.lstrip()
    if text == continued:
        return ids
    for stand_in in STAND_INS:
        before, both = _encode(tokenizer, stand_in), _encode(tokenizer, stand_in + piece)
        behind = both[len(before) :]
        if both == before + behind and _decode_behind(tokenizer, before, behind) == continued:
            return behind
    return ids


def _move_space(
    tokenizer: PreTrainedTokenizerBase,
    encode: Callable[[PreTrainedTokenizerBase, str], list[int]],
    piece: str,
    ids: list[int],
) -> tuple[list[int], str]:
    """The ids of a piece before a blank without the white space that a word there would join, and that white space.

    A word is put behind the piece. White space that its token begins with is what the tokenizer joins.
    """
    if not piece[-1:].isspace():
        return ids, ""
    vocabulary = Vocabulary.of(tokenizer)
    for word in vocabulary.probes(piece[-1]):
        *before, last = encode(tokenizer, piece + word)
        text = vocabulary.spaced.get(last, "")
        space = text.removesuffix(word)
        # Some decoders drop the space at the start of a text.
        is_shown = _decode_behind(tokenizer, before, [last]) in (text, word)
        if text.endswith(word) and space.isspace() and is_shown:
            return before, space
    return ids, ""


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def _decode_behind(tokenizer: PreTrainedTokenizerBase, before: list[int], ids: list[int]) -> str:
    """The text of `ids` where they follow `before`."""
    start, both = _decode(tokenizer, before), _decode(tokenizer, before + ids)
    # Bytes that are no character spoil a character before them that is made of bytes too. They are decoded alone then.
    return both[len(start) :] if both.startswith(start) else _decode(tokenizer, ids)


@dataclass
class Candidate:
    """One way to fill a text's blanks.

    Args:
        text: the filled text.
        blank_lengths: how many tokens each blank of the canvas had. What was filled in may be shorter: an end of
            sentence closes blanks, and special tokens are not shown.
        log_probability: nats, of the filled text given its first token (see [`infill`]).
    """

    text: str
    blank_lengths: tuple[int, ...]
    log_probability: float


@dataclass
class Infilling:
    """What `infill` returns for a text when `return_candidates=True`.

    Args:
        text: the best candidate's text.
        log_probability: nats, the best candidate's.
        candidates: all of them, the best first; equal ones in the order of their lengths, the shorter first.
    """

    text: str
    log_probability: float
    candidates: list[Candidate]


def infill(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str | Sequence[str],
    *,
    return_candidates: bool = False,
    candidate_order: str = "left_to_right",
    score_end: bool = False,
    max_candidates: int = 64,
    batch_size: int = 64,
    **generate_kwargs,
) -> str | list[str] | Infilling | list[Infilling]:
    r"""Fills the blanks of a text, or of a batch of texts with any numbers of blanks.

    A blank is written `<blank:n>`, n tokens long, `<blank>`, one token, or `<blank:m-n>`, from m to n tokens. Blanks
    side by side are one. Everything else is text and comes back as it was: `<Blank>`, `<blanket>`, also `\<blank>`,
    which stands for the characters `<blank>` (and `\\<blank>` for a backslash and a blank);
    [`~modeling_aoarm.infilling_aoarm.write_blanks`] puts blanks between any pieces of text. Where the tokenizer has a
    beginning-of-sentence token, it is put in front, unless the text begins with it.

    **Unknown lengths.** All combinations of a text's lengths are candidates. `generate` fills each of them, and the one
    with the highest log p(filled text | its first token) is returned. Two things to know about this comparison:

    - Log-probabilities of different lengths are compared as they are, so longer candidates pay for more tokens.
      Nothing is divided by the length: probabilities may be compared, their averages per token may not.
    - It is the probability that a text *begins with* these tokens. For a blank inside a text that is the question.
      A blank at the very end has almost always its shortest length then, since every continuation costs something.
      `score_end=True` appends the end-of-sentence token, and compares how probable the texts are as whole texts. It
      is not the default because only models that saw ends in training can tell (`pad_with_eos` of
      `DataCollatorForAnyOrderLM`); to others it adds noise.

    What is scored is the text that is shown, as the tokens that it was made of: tokens behind a filled-in end of
    sentence, it itself, and other special tokens in blanks are left out.

    **Spaces.** Write text as usual: `the <blank> sat`. Where the tokenizer joins a word with the space before it, the
    space before a blank belongs to the blank's first token. Text directly behind a blank continues it: `<blank>ing` is
    the end of a word, and `the<blank> sat` leaves it to the model whether a new word begins.

    Args:
        model: a model with `generate(..., generation_mask=...)` and `score`.
        tokenizer: its tokenizer.
        text: one text or several.
        return_candidates: return an [`Infilling`] for each text: its candidates with their log-probabilities. Texts
            without blanks of unknown length have one candidate.
        candidate_order: the order in which candidates are scored, the same for all: `"left_to_right"`, or `"random"`,
            one order drawn in each call from the global random numbers (every column draws its rank; a candidate uses
            the columns that it has). It is not the order of filling, which is `decoding_order`.
        score_end: score an end-of-sentence token behind the text too, see above.
        max_candidates: the most candidates that a text may have.
        batch_size: the most canvases in one call of `generate` or `score`.
        **generate_kwargs: passed to `generate`: `decoding_order`, `do_sample`, `temperature`, ... Orders given as
            tensors and lists of generators have an entry for each text with blanks. A generator is advanced by the
            call, so that the next call gives other samples.

    Returns:
        The filled text, or its [`Infilling`]; a list of them for several texts. A text without blanks comes back as it
        is.

    Raises:
        TypeError: if `text` is neither a string nor a sequence of strings.
        ValueError: for a blank of length 0 or whose lengths are reversed (`<blank:6-2>`), a text that may become longer
            than the model's `max_position_embeddings`, a text of blanks only with a tokenizer without a
            beginning-of-sentence token, too many candidates, several candidates for a text without a first token to
            condition on or with a tensor of columns as an order, a tokenizer that gives ids outside of the model's
            vocabulary, `return_dict_in_generate`, `num_return_sequences`, `max_new_tokens`, `token_sets` or
            `column_sets` among the arguments, and as in `generate` and `score`.
    """
    texts = [text] if isinstance(text, str) else text
    for each in texts if isinstance(texts, Sequence) else [texts]:
        if not isinstance(each, str):
            raise TypeError(f"`text` must be a string or a sequence of strings, got {type(each).__name__}.")
    for name, only in (("return_dict_in_generate", False), ("num_return_sequences", 1)):
        value = generate_kwargs.pop(name, only)
        if value != only:
            raise ValueError(f"`{name}` must be {only} in `infill`, which returns one text for each; got {value}.")
    if generate_kwargs.get("max_new_tokens") is not None:
        raise ValueError(
            "`max_new_tokens` has no place in `infill`: write a blank at the end of `text`; got "
            f"{generate_kwargs['max_new_tokens']}."
        )
    for name in ("token_sets", "column_sets"):
        if generate_kwargs.get(name) is not None:
            raise ValueError(
                f"`{name}` has no place in `infill`, which sets it itself, and knows no columns; use `suppress_tokens` "
                f"or `generate`. Got a {type(generate_kwargs[name]).__name__}."
            )
    for name, value in (("max_candidates", max_candidates), ("batch_size", batch_size)):
        check_count(name, value)
    if candidate_order not in ("left_to_right", "random"):
        raise ValueError(f"`candidate_order` must be 'left_to_right' or 'random', got {candidate_order!r}.")
    if score_end and tokenizer.eos_token_id is None:
        raise ValueError("`score_end=True` needs an end-of-sentence token, but `tokenizer.eos_token_id` is None.")

    end = [tokenizer.eos_token_id] if score_end else []
    max_length = model.config.max_position_embeddings
    templates = [TextTemplate.from_text(tokenizer, each, max_length, len(end)) for each in texts]
    canvases = [list(each.canvases(max_candidates)) for each in templates]
    largest = max([-1, *end, *(index for own in canvases for ids in own[0].template.piece_ids for index in ids)])
    if largest >= model.config.vocab_size:
        raise ValueError(
            f"`tokenizer` must fit the model's vocab_size={model.config.vocab_size}, got one of {len(tokenizer)} "
            f"tokens that gives the id {largest} ({tokenizer.convert_ids_to_tokens(largest)!r}). Take the model's own "
            f"tokenizer, or call `model.resize_token_embeddings({len(tokenizer)})` and train."
        )
    several = [own for own in canvases if len(own) > 1]
    for name in ("decoding_order", "context_order"):
        if several and isinstance(generate_kwargs.get(name), torch.Tensor):
            raise ValueError(
                f"`{name}` must be a name for blanks of unknown length, whose columns depend on the lengths; got a "
                "tensor."
            )
    # Drawn before anything is filled, so that sampling and `batch_size` have no part in it.
    ranks = torch.rand(max_length, dtype=torch.float32) if candidate_order == "random" else None
    with_blanks = [own for own in canvases if own[0].blank_lengths]
    generators = generate_kwargs.get("generator")
    if isinstance(generators, Sequence):
        if len(generators) != len(with_blanks):
            raise ValueError(
                f"`generator` must be one generator or one for each of {len(with_blanks)} texts with blanks, got "
                f"{len(generators)}."
            )
        # A text's candidates are filled with the same random numbers. The longest one's advance the caller's generator.
        generate_kwargs["generator"] = [
            generator if canvas is own[-1] else generator.clone_state()
            for generator, own in zip(generators, with_blanks, strict=True)
            for canvas in own
        ]
    _fill(model, tokenizer, [canvas for own in with_blanks for canvas in own], batch_size, generate_kwargs)
    scored = [canvas for own in (canvases if return_candidates else several) for canvas in own]
    log_probabilities = _log_probabilities(model, [canvas.filled_ids() + end for canvas in scored], ranks, batch_size)
    for canvas, log_probability in zip(scored, log_probabilities, strict=True):
        canvas.log_probability = log_probability

    results = []
    for own in canvases:
        own.sort(key=lambda canvas: -canvas.log_probability)
        if return_candidates:
            candidates = [Candidate(each.text(tokenizer), each.blank_lengths, each.log_probability) for each in own]
            results.append(Infilling(candidates[0].text, candidates[0].log_probability, candidates))
        else:
            results.append(own[0].text(tokenizer))
    return results[0] if isinstance(text, str) else results


def _fill(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    canvases: list[TextCanvas],
    batch_size: int,
    generate_kwargs: dict,
) -> None:
    """Gives canvases their `fillings`."""
    unseen = _special_ids(tokenizer)
    cut = {
        name: value
        for name, value in generate_kwargs.items()
        if name in ("decoding_order", "context_order", "generator")
        and isinstance(value, (torch.Tensor, list))
        and len(value) == len(canvases)
    }
    for start in range(0, len(canvases), batch_size):
        chunk = canvases[start : start + batch_size]
        own_kwargs = {name: value[start : start + batch_size] for name, value in cut.items()}
        columns = [canvas.columns() for canvas in chunk]
        input_ids, attention_mask = padded_rows([ids for ids, _ in columns])
        generation_mask = torch.zeros(input_ids.shape, dtype=torch.bool)
        for row, (_, blanks) in enumerate(columns):
            for blank in blanks:
                generation_mask[row, list(blank)] = True
        restriction = restriction_of(tokenizer, chunk, generation_mask, model.config.vocab_size)
        output = model.generate(
            input_ids.to(input_device(model)),
            generation_mask=generation_mask.to(input_device(model)),
            attention_mask=attention_mask.to(input_device(model)),
            return_dict_in_generate=True,
            num_return_sequences=1,
            **{name: value.to(input_device(model)) for name, value in restriction.items()},
            **(generate_kwargs | own_kwargs),
        )
        for canvas, (_, blanks), ids, filled in zip(
            chunk, columns, output.sequences.tolist(), output.decoding_order.tolist(), strict=True
        ):
            # Columns that an end of sentence closed are in no order. Their padding may be any token.
            shown = {column for column in filled if ids[column] not in unseen}
            canvas.fillings = [[ids[column] for column in blank if column in shown] for blank in blanks]


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The ids that are never shown."""
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


def restriction_of(
    tokenizer: PreTrainedTokenizerBase, canvases: list[TextCanvas], generation_mask: torch.Tensor, vocab_size: int
) -> dict[str, torch.Tensor]:
    """Which tokens may be filled in where, as arguments of `generate`; none where any token may stand everywhere.

    A blank that white space was moved into begins with it. Ids that the tokenizer does not have stand nowhere.

    Args:
        tokenizer: the canvases' own.
        canvases: the texts.
        generation_mask: bool `[batch, columns]`, their blanks.
        vocab_size: the model's.
    """
    vocabulary, special = Vocabulary.of(tokenizer), _special_ids(tokenizer)
    sets, numbers = [], {}
    if vocabulary.ids != list(range(vocab_size)):
        sets.append(vocabulary.ids)
    column_sets = torch.full(generation_mask.shape, len(sets) - 1)
    for row, canvas in enumerate(canvases):
        _, blanks = canvas.columns()
        for moved, blank in zip(canvas.template.moved, blanks, strict=True):
            if moved:
                # One token must hold more than the white space. Of several, the first need not.
                key = moved, len(blank) == 1
                if key not in numbers:
                    numbers[key] = len(sets)
                    sets.append([index for index in vocabulary.beginning_with(*key) if index not in special])
                column_sets[row, blank[0]] = numbers[key]
    if not sets:
        return {}
    token_sets = torch.zeros(len(sets), vocab_size, dtype=torch.bool)
    for number, ids in enumerate(sets):
        token_sets[number, [index for index in ids if index < vocab_size]] = True
    return {"token_sets": token_sets, "column_sets": column_sets}


def _log_probabilities(
    model: PreTrainedModel, rows: list[list[int]], ranks: torch.Tensor | None, batch_size: int
) -> list[float]:
    """log p(row | its first token), nats, from left to right or by rising `ranks` `[columns]` of the columns."""
    results = [0.0] * len(rows)
    # Where nothing follows the first token there is nothing to score.
    longer = [index for index, ids in enumerate(rows) if len(ids) > 1]
    for start in range(0, len(longer), batch_size):
        chunk = longer[start : start + batch_size]
        input_ids, attention_mask = padded_rows([rows[index] for index in chunk])
        order = "left_to_right"
        if ranks is not None:
            width = min(input_ids.shape[1], len(ranks))
            padding = attention_mask[:, 1:width] == 0
            # Padding is last, whatever its rank.
            places = ranks[1:width].expand(padding.shape).masked_fill(padding, torch.inf).argsort(dim=1, stable=True)
            counts = (~padding).sum(1, keepdim=True)
            order = (places + 1).masked_fill(torch.arange(width - 1) >= counts, -1).to(input_device(model))
        scores = model.score(
            input_ids.to(input_device(model)),
            attention_mask=attention_mask.to(input_device(model)),
            decoding_order=order,
        )
        for index, log_probability in zip(chunk, scores.log_likelihood[0].tolist(), strict=True):
            results[index] = log_probability
    return results


__all__ = [
    "Candidate",
    "Infilling",
    "TextCanvas",
    "TextTemplate",
    "Vocabulary",
    "encode_behind_blank",
    "infill",
    "read_blanks",
    "restriction_of",
    "with_bos",
    "write_blanks",
]
