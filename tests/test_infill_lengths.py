# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""`infill` with blanks of unknown length: which candidates there are, what they score, and which is returned."""

import itertools
import math

import pytest
import torch
from scripts import load_script
from variants import all_variants, any_order_variants, chain_log_probs, tiny_model

from modeling_aoarm import AOARMConfig, AOARMGenerateOutput, AOARMScoreOutput, infill
from modeling_aoarm.data.tokenizers import character_tokenizer


TEXTS = ["the <blank:1-3> sat on<blank:2-4>mat", "a dog <blank:2-5>barks", "no blank", "night<blank:1-2>"]


@pytest.fixture(scope="module")
def tokenizer():
    return character_tokenizer(["the cat sat on the mat. a dog barks at night, loudly!"])


def model_for(variant, tokenizer, **changes):
    ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    return tiny_model(variant, vocab_size=len(tokenizer), **{**ends, **changes})


def letters_only(tokenizer):
    """Arguments of `generate` with which every blank gets a character, so that a text's tokens are known."""
    return {"suppress_tokens": list(tokenizer.all_special_ids)}


def tokens_of(tokenizer, text, end=False):
    ids = [tokenizer.bos_token_id] + tokenizer.encode(text) + [tokenizer.eos_token_id] * end
    return torch.tensor([ids])


class Chain:
    """Stands in for a model: fills blanks with given texts by their number of tokens, and is a chain whose next token
    has a stated probability given the token before, 1/100 where none is stated."""

    device = torch.device("cpu")

    def __init__(self, tokenizer, writes, probabilities):
        self.config = AOARMConfig(vocab_size=len(tokenizer))
        self.writes = {len(tokens): tokens for tokens in map(tokenizer.encode, writes)}
        pairs = {tuple(tokenizer.convert_tokens_to_ids(pair)): p for pair, p in probabilities.items()}
        self.log_probability = lambda before, token: math.log(pairs.get((before, token), 0.01))
        self.generated, self.scored = [], []

    def generate(self, input_ids, generation_mask, attention_mask, **kwargs):
        self.generated.append(len(input_ids))
        filled = input_ids.clone()
        counts = generation_mask.sum(1).tolist()
        order = torch.full((len(input_ids), max(counts)), -1)
        for row, count in enumerate(counts):
            filled[row, generation_mask[row]] = torch.tensor(self.writes[count])
            order[row, :count] = generation_mask[row].nonzero()[:, 0]
        return AOARMGenerateOutput(sequences=filled, decoding_order=order)

    def score(self, input_ids, attention_mask, decoding_order):
        assert decoding_order == "left_to_right"
        rows = [ids[real.bool()].tolist() for ids, real in zip(input_ids, attention_mask, strict=True)]
        self.scored += rows
        sums = [sum(self.log_probability(*pair) for pair in itertools.pairwise(ids)) for ids in rows]
        return AOARMScoreOutput(log_likelihood=torch.tensor([sums], dtype=torch.float64))


CHAIN = {("<s>", "a"): 0.5, ("a", "t"): 0.25, ("t", "d"): 0.125, ("a", "o"): 0.5, ("o", "o"): 0.5, ("o", "d"): 0.5}


def test_the_best_length_by_hand(tokenizer):
    """P(a|<s>) = 1/2. at-d: 1/4 · 1/8. a-o-o-d: 1/2 · 1/2 · 1/2. a-t-t-t-d: 1/4 · 1/100 · 1/100 · 1/8."""
    chain = Chain(tokenizer, ["t", "oo", "ttt"], CHAIN)
    assert infill(chain, tokenizer, "a<blank:1-3>d") == "aood"
    result = infill(chain, tokenizer, "a<blank:1-3>d", return_candidates=True)
    assert [(each.text, each.blank_lengths) for each in result.candidates] == [
        ("aood", (2,)),
        ("atd", (1,)),
        ("atttd", (3,)),
    ]
    by_hand = [math.log(1 / 16), math.log(1 / 64), math.log(1 / 640000)]
    assert [each.log_probability for each in result.candidates] == pytest.approx(by_hand, abs=1e-9)
    assert (result.text, result.log_probability) == ("aood", result.candidates[0].log_probability)


def test_the_end_can_turn_the_comparison(tokenizer):
    """At the end of a text the shortest wins as a beginning, and the one that the model ends wins as a whole text."""
    chain = Chain(tokenizer, ["o", "oo", "ood"], {**CHAIN, ("d", "</s>"): 0.5})
    assert infill(chain, tokenizer, "a<blank:1-3>") == "ao"
    result = infill(chain, tokenizer, "a<blank:1-3>", score_end=True, return_candidates=True)
    assert result.text == "aood"
    by_hand = [1 / 2**5, 1 / 2**2 / 100, 1 / 2**3 / 100]
    assert [each.log_probability for each in result.candidates] == pytest.approx(list(map(math.log, by_hand)), abs=1e-9)


@pytest.mark.parametrize("end", [False, True])
def test_what_an_end_of_sentence_closed_is_not_scored(tokenizer, end):
    """Three tokens, of which the end of sentence closes two, are the shown text of one token; the end counts once."""
    chain = Chain(tokenizer, ["o"], CHAIN)
    chain.writes[2] = chain.writes[1] + [tokenizer.eos_token_id]
    chain.writes[3] = chain.writes[2] + [tokenizer.pad_token_id]
    result = infill(chain, tokenizer, "a<blank:1-3>", score_end=end, return_candidates=True)
    assert [each.text for each in result.candidates] == ["ao"] * 3
    # The shorter first where all are equal.
    assert [each.blank_lengths for each in result.candidates] == [(1,), (2,), (3,)]
    by_hand = math.log(1 / 4) + end * math.log(1 / 100)
    assert [each.log_probability for each in result.candidates] == pytest.approx([by_hand] * 3, abs=1e-9)
    assert chain.scored == tokens_of(tokenizer, "ao", end).tolist() * 3


@any_order_variants
@pytest.mark.parametrize("end", [False, True])
def test_log_probabilities_are_those_of_one_forward_pass(variant, tokenizer, end):
    model = model_for(variant, tokenizer)
    kwargs = letters_only(tokenizer)
    results = infill(model, tokenizer, TEXTS, return_candidates=True, score_end=end, **kwargs)
    assert [len(each.candidates) for each in results] == [9, 4, 1, 2]
    assert {each.blank_lengths for each in results[0].candidates} == set(itertools.product((1, 2, 3), (2, 3, 4)))
    assert results[2].candidates[0].blank_lengths == () and results[2].text == "no blank"
    for result in results:
        scores = [each.log_probability for each in result.candidates]
        assert scores == sorted(scores, reverse=True)
        assert (result.text, result.log_probability) == (result.candidates[0].text, scores[0])
        for each in result.candidates:
            ids = tokens_of(tokenizer, each.text, end)
            expected = chain_log_probs(model, ids, torch.arange(1, ids.shape[1]))
            assert each.log_probability == pytest.approx(float(expected), abs=1e-4)
    for each in results[0].candidates:
        assert len(each.text) == len("the  sat onmat") + sum(each.blank_lengths)
    assert infill(model, tokenizer, TEXTS, score_end=end, **kwargs) == [each.text for each in results]


@any_order_variants
def test_a_random_order_is_one_order_for_all_candidates(variant, tokenizer, monkeypatch):
    model = model_for(variant, tokenizer)
    kwargs = letters_only(tokenizer) | {"candidate_order": "random", "return_candidates": True}
    orders = []
    score = model.score

    def spy(*arguments, decoding_order, **kwargs):
        orders.extend([[column for column in order if column >= 0] for order in decoding_order.tolist()])
        return score(*arguments, decoding_order=decoding_order, **kwargs)

    monkeypatch.setattr(model, "score", spy)
    torch.manual_seed(0)
    result = infill(model, tokenizer, TEXTS[1], **kwargs)
    assert [len(order) for order in orders] == [11 + length for length in (2, 3, 4, 5)]
    longest = orders[-1]
    assert longest != sorted(longest)
    for order in orders:
        assert order == [column for column in longest if column <= len(order)]
    by_length = {each.blank_lengths: each for each in result.candidates}
    for length, order in zip((2, 3, 4, 5), orders, strict=True):
        candidate = by_length[(length,)]
        expected = chain_log_probs(model, tokens_of(tokenizer, candidate.text), torch.tensor(order))
        assert candidate.log_probability == pytest.approx(float(expected), abs=1e-4)
    # The next call draws another one, and one call draws the same for all its batches and texts.
    orders.clear()
    infill(model, tokenizer, [TEXTS[1]] * 2, batch_size=3, **kwargs)
    assert orders[:4] == orders[4:] and orders[3] != longest


@any_order_variants
def test_a_texts_candidates_do_not_depend_on_the_batch(variant, tokenizer, monkeypatch):
    model = model_for(variant, tokenizer)
    together = infill(model, tokenizer, TEXTS, return_candidates=True)
    alone = [infill(model, tokenizer, text, return_candidates=True) for text in TEXTS]
    sizes = []

    def count_sizes(call):
        return lambda input_ids, **kwargs: sizes.append(len(input_ids)) or call(input_ids, **kwargs)

    for name in ("generate", "score"):
        call = getattr(model, name)
        monkeypatch.setattr(model, name, count_sizes(call))
    for batch_size, expected in ((1, [1] * 31), (4, [4, 4, 4, 3] + [4, 4, 4, 4]), (100, [15, 16])):
        sizes.clear()
        limited = infill(model, tokenizer, TEXTS, return_candidates=True, batch_size=batch_size)
        assert sizes == expected
        for results in (alone, limited):
            for one, other in zip(together, results, strict=True):
                assert one.text == other.text
                by_length = [{each.blank_lengths: each for each in result.candidates} for result in (one, other)]
                assert by_length[0].keys() == by_length[1].keys()
                for lengths, candidate in by_length[0].items():
                    assert candidate.text == by_length[1][lengths].text
                    other_score = by_length[1][lengths].log_probability
                    assert candidate.log_probability == pytest.approx(other_score, abs=1e-4)


@any_order_variants
def test_a_tensor_of_orders_is_cut_into_batches(variant, tokenizer):
    model = model_for(variant, tokenizer)
    texts = ["a<blank:3>d", "no blank", "the <blank><blank> s", "n<blank>t"]
    order = torch.tensor([[4, 2, 3], [6, 5, -1], [2, -1, -1]])
    kwargs = letters_only(tokenizer)
    together = infill(model, tokenizer, texts, decoding_order=order, **kwargs)
    assert infill(model, tokenizer, texts, decoding_order=order, batch_size=1, **kwargs) == together
    with pytest.raises(ValueError, match=r"decoding_order.*\[4, 3\]|decoding_order.*4"):
        infill(model, tokenizer, texts, decoding_order=order[[0, 1, 2, 2]], batch_size=2, **kwargs)


@any_order_variants
def test_generators_make_samples_a_function_of_the_text(variant, tokenizer):
    """One for each text with blanks; a text's candidates get the same random numbers, whatever `batch_size` is."""
    model = model_for(variant, tokenizer)
    seeds = {TEXTS[0]: 5, TEXTS[1]: 6, "a<blank:7>d": 7}

    def sample(texts, batch_size=64):
        generators = [torch.Generator().manual_seed(seeds[text]) for text in texts if text in seeds]
        kwargs = letters_only(tokenizer) | {"do_sample": True, "decoding_order": "random", "generator": generators}
        results = infill(model, tokenizer, texts, return_candidates=True, batch_size=batch_size, **kwargs)
        return [sorted(each.text for each in result.candidates) for result in results]

    together = sample([TEXTS[0], "no blank", TEXTS[1], "a<blank:7>d"])
    assert sample([TEXTS[0], "no blank", TEXTS[1], "a<blank:7>d"], batch_size=2) == together
    assert sample([TEXTS[1]]) + sample([TEXTS[0]]) == [together[2], together[0]]
    seeds[TEXTS[0]] = 8
    assert sample([TEXTS[0]]) != [together[0]]
    with pytest.raises(ValueError, match="generator.*2 texts with blanks.*got 1"):
        infill(model, tokenizer, TEXTS[1::-1], generator=[torch.Generator()])


@pytest.mark.grid(pairs=False)
@pytest.mark.parametrize("text", ["a<blank:5-6>d", "a<blank:5>d", "a<blank:5-6>d<blank:1-2>"])
@pytest.mark.parametrize("in_a_list", [True, False])
@pytest.mark.parametrize("batch_size", [1, 64])
def test_each_call_gets_new_numbers_from_a_generator(tokenizer, text, in_a_list, batch_size):
    """The same seed gives the same sequence of results."""
    model = model_for("two_stream", tokenizer)

    def sequence(seed):
        own = torch.Generator().manual_seed(seed)
        generator = [own] if in_a_list else own
        kwargs = letters_only(tokenizer) | {"do_sample": True, "batch_size": batch_size, "generator": generator}
        return [infill(model, tokenizer, text, **kwargs) for _ in range(3)]

    assert len(set(sequence(0))) == 3
    assert sequence(0) == sequence(0) != sequence(1)


@all_variants
def test_the_end_of_a_text_is_open_to_every_variant(variant, tokenizer):
    model = model_for(variant, tokenizer)
    result = infill(model, tokenizer, "the <blank:1-3>", return_candidates=True, **letters_only(tokenizer))
    assert sorted(len(each.text) for each in result.candidates) == [5, 6, 7]
    if variant == "causal":
        with pytest.raises(ValueError, match="causal"):
            infill(model, tokenizer, "the <blank:1-3> sat")


def test_lengths_of_blanks_side_by_side_add_up(tokenizer):
    chain = Chain(tokenizer, ["oo", "ooo", "oooo", "ooooo"], CHAIN)
    result = infill(chain, tokenizer, "a<blank:1-2><blank><blank:2-2>d", return_candidates=True)
    assert sorted(each.blank_lengths for each in result.candidates) == [(4,), (5,)]


def test_texts_without_a_choice_are_not_scored_unless_asked(tokenizer):
    chain = Chain(tokenizer, ["o", "oo"], CHAIN)
    assert infill(chain, tokenizer, ["a<blank:2>d", "a<blank:2-2>d", "ad"]) == ["aood", "aood", "ad"]
    assert chain.generated == [2] and chain.scored == []
    assert infill(chain, tokenizer, ["a<blank>d", "a<blank:1-2>d"]) == ["aod", "aod"]
    assert chain.scored == [ids for text in ("aod", "aood") for ids in tokens_of(tokenizer, text).tolist()]


def test_nothing_is_certain(tokenizer):
    """A text of no token but the first has log-probability 0; a batch of no texts is none."""
    assert infill(model_for("two_stream", tokenizer), tokenizer, "", return_candidates=True).log_probability == 0.0
    assert infill(model_for("two_stream", tokenizer), tokenizer, []) == []


@pytest.mark.parametrize(
    ("text", "kwargs", "message"),
    [
        ("a <blank:1-5> b <blank:1-13>", {}, r"max_candidates=64.*65.*\(1, 5\), \(1, 13\)"),
        (["a", "a <blank:1-3>"], {"max_candidates": 2}, "max_candidates=2.*3"),
        ("a <blank:1-3>", {"max_candidates": 0}, "max_candidates.*at least 1.*0"),
        ("a <blank:1-3>", {"batch_size": 0}, "batch_size.*at least 1.*0"),
        ("a <blank:1-3>", {"batch_size": 2.0}, "batch_size.*integer.*2.0"),
        ("a <blank:1-3>", {"candidate_order": "inwards"}, "candidate_order.*'inwards'"),
        ("a <blank:1-3>", {"context_order": torch.tensor([[0]])}, "context_order.*unknown length.*tensor"),
        ("a <blank:1-3>", {"decoding_order": torch.tensor([[3]])}, "decoding_order.*unknown length.*tensor"),
    ],
)
def test_what_cannot_be_compared_is_refused(tokenizer, text, kwargs, message):
    with pytest.raises(ValueError, match=message):
        infill(model_for("two_stream", tokenizer), tokenizer, text, **kwargs)


def test_a_comparison_needs_a_first_token_and_an_end(tokenizer):
    bare = character_tokenizer(["the cat sat on the mat. a dog barks at night, loudly!"])
    bare.bos_token = bare.eos_token = None
    model = model_for("two_stream", tokenizer)
    kwargs = letters_only(tokenizer)
    for text in ("<blank:1-2> sat", "<blank> sat<blank:1-2>"):
        with pytest.raises(ValueError, match="begin with a blank.*beginning-of-sentence"):
            infill(model, bare, text, **kwargs)
    result = infill(model, bare, "the<blank:1-2> sat", return_candidates=True, **kwargs)
    ids = torch.tensor([bare.encode(result.text)])
    expected = chain_log_probs(model, ids, torch.arange(1, ids.shape[1]))
    assert result.log_probability == pytest.approx(float(expected), abs=1e-4)
    with pytest.raises(ValueError, match="score_end.*eos_token_id"):
        infill(model, bare, "the<blank:1-2> sat", score_end=True)


def example_script():
    return load_script("examples/infill.py")


@any_order_variants
def test_the_examples_choices_have_their_probabilities(variant, tokenizer):
    """The mean probability over 8 draws of a pair's two orders, which are the same for all choices."""
    model = model_for(variant, tokenizer)
    pairs = ["".join(pair) for pair in itertools.product("abet", repeat=2)]
    torch.manual_seed(0)
    scores = torch.tensor(example_script().score_choices(model, tokenizer, "the ", pairs, "mat"))
    ids = torch.tensor([[tokenizer.bos_token_id] + tokenizer.encode(f"the {pair}mat") for pair in pairs])
    context = [1, 2, 3, 4, 7, 8, 9]
    given = chain_log_probs(model, ids, torch.tensor(context))
    one, other = ((chain_log_probs(model, ids, torch.tensor(context + order)) - given) for order in ([5, 6], [6, 5]))
    mixtures = [(k / 8 * one.exp() + (1 - k / 8) * other.exp()).log() for k in range(9)]
    assert min((scores - mixture).abs().max() for mixture in mixtures) < 1e-4
    with pytest.raises(ValueError, match=r"same number of tokens.*\[1, 2\]"):
        example_script().score_choices(model, tokenizer, "the ", ["a", "at"], "mat")


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    example = example_script()
    texts = [*example.KNOWN, example.UNKNOWN, example.AT_THE_END]
    texts += [before + "".join(choices) + after for before, choices, after in example.CHOICES]
    tokenizer = character_tokenizer(texts)
    model_for("two_stream", tokenizer, max_position_embeddings=128).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    monkeypatch.setattr("sys.argv", ["infill.py", "--model", str(tmp_path)])
    example.main()
    output = capsys.readouterr().out
    assert all(title in output for title in ("1. Blanks", "2. A blank", "3. At the end", "4. Multiple choice"))
    monkeypatch.setattr("sys.argv", ["infill.py", "--model", str(tmp_path / "missing")])
    with pytest.raises(SystemExit, match="missing.*make pretrain"):
        example.main()
