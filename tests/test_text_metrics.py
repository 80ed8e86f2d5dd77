# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Figures of sampled text against hand-computed values, and the same as metrics of the library `evaluate`."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from scripts import REPOSITORY
from transformers import GPT2Config, GPT2LMHeadModel
from variants import tiny_model

from modeling_aoarm.data.tokenizers import character_tokenizer
from modeling_aoarm.evaluation.stats import estimate_ratio
from modeling_aoarm.evaluation.text_metrics import (
    collect_vocabulary,
    count_coherent_words,
    measure_coherence,
    measure_diversity,
    measure_generative_perplexity,
    measure_sample_entropy,
    split_words,
)


# 18 characters and 5 special tokens: the tiny models' vocabulary.
TOKENIZER = character_tokenizer(["abcdefghijklmnopqr"])
TEXTS = ["abcdef", "rq", "", "aabbccddeeff", "k"]


def test_words_are_runs_of_letters_in_lower_case():
    assert split_words("Don't stop2go, ÄRA_x\n") == ["don", "t", "stop", "go", "ära", "x"]
    assert split_words(" 12 _ - ") == []
    assert collect_vocabulary(["a B", "b c"]) == {"a", "b", "c"}


def test_coherence_counts_long_words_of_all_texts_together():
    vocabulary = {"this", "that", "cat"}
    # Of this, tiny, blah, that, xyzw two are known; cat is too short.
    assert count_coherent_words("This tiny cat blah", vocabulary) == (1, 3)
    assert measure_coherence(["This tiny cat blah", "that xyzw"], vocabulary) == pytest.approx(2 / 5)
    assert measure_coherence(["This tiny cat blah", "that xyzw"], vocabulary, min_letters=3) == pytest.approx(3 / 6)
    assert measure_coherence(["this xyzw", "that"], ["this", "that"]) == pytest.approx(2 / 3)
    assert math.isnan(measure_coherence(["cat", ""], vocabulary)) and math.isnan(measure_coherence([], vocabulary))


def test_diversity_is_of_exactly_so_many_words():
    texts = ["the cat the", "dog The cat sat"]
    assert measure_diversity(texts) == pytest.approx(4 / 7)
    assert measure_diversity(texts, 3) == pytest.approx(2 / 3)
    assert measure_diversity(texts, 4) == pytest.approx(3 / 4)
    assert measure_diversity(texts, 7) == measure_diversity(texts)
    assert math.isnan(measure_diversity(["", "1"]))
    with pytest.raises(ValueError, match="num_words must be at most the 7 words that the texts have, got 8"):
        measure_diversity(texts, 8)


def test_sample_entropy_is_that_of_the_histogram_of_tokens():
    entropies = measure_sample_entropy([[1, 1, 2, 2], [5, 6, 5, 5], [7, 7], []])
    assert entropies[0] == pytest.approx(math.log(2))
    assert entropies[1] == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert entropies[2] == 0 and math.copysign(1, entropies[2]) == 1
    assert math.isnan(entropies[3])
    assert measure_sample_entropy(torch.tensor([[3, 4, 3, 4]])) == [pytest.approx(math.log(2))]


def gpt2(**changes):
    torch.manual_seed(0)
    special = dict.fromkeys(("bos_token_id", "eos_token_id"), 0)
    sizes = {"vocab_size": 23, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 16, "initializer_range": 0.3}
    return GPT2LMHeadModel(GPT2Config(**{**sizes, **special, **changes})).eval()


JUDGES = {name: lambda name=name: tiny_model(name) for name in ("causal", "two_stream", "adaptive_norm")}
JUDGES["GPT-2"] = gpt2


@pytest.mark.parametrize("name", JUDGES)
def test_generative_perplexity_is_the_loss_of_each_text_alone(name):
    model = JUDGES[name]()
    nll, tokens = [], []
    for text in TEXTS:
        rows = torch.tensor([[TOKENIZER.bos_token_id, *TOKENIZER(text).input_ids]])
        with torch.no_grad():
            nll.append(model(rows, labels=rows).loss.item() * len(text) if text else 0)
        tokens.append(len(text))
    for batch_size in (1, 3, 100):
        result = measure_generative_perplexity(TEXTS, model, TOKENIZER, batch_size=batch_size)
        np.testing.assert_allclose(result.sample_nll, nll, atol=1e-4)
        assert result.sample_tokens.tolist() == tokens
        assert result.perplexity == pytest.approx(math.exp(sum(nll) / sum(tokens)), rel=1e-5)
        assert result.nll == estimate_ratio(result.sample_nll, result.sample_tokens)


def test_without_a_bos_the_first_token_is_not_judged():
    model, tokenizer = tiny_model("causal"), character_tokenizer(["abcdefghijklmnopqr"])
    tokenizer.bos_token = None
    result = measure_generative_perplexity(["abc", "k"], model, tokenizer)
    rows = torch.tensor([tokenizer("abc").input_ids])
    with torch.no_grad():
        loss = model(rows, labels=rows).loss.item()
    assert result.sample_tokens.tolist() == [2, 0]
    np.testing.assert_allclose(result.sample_nll, [2 * loss, 0], atol=1e-5)


def test_text_that_spells_a_special_token_is_ordinary_text():
    tokenizer = character_tokenizer(["ab</s>"])
    result = measure_generative_perplexity(["a</s>"], tiny_model("causal"), tokenizer)
    assert result.sample_tokens.tolist() == [5]


def test_the_judge_keeps_its_mode_and_drops_nothing_out():
    model = gpt2(resid_pdrop=0.5).train()
    first, second = (measure_generative_perplexity(TEXTS, model, TOKENIZER).sample_nll for _ in range(2))
    assert model.training and torch.equal(first, second)


def test_a_ratio_of_sums_and_its_standard_error():
    # With equal counts it is a mean, and has the standard error of one.
    totals = np.array([1.0, 4.0, 7.0, 9.0])
    value, error = estimate_ratio(totals, np.full(4, 2))
    assert value == pytest.approx(totals.mean() / 2)
    assert error == pytest.approx(totals.std(ddof=1) / 2 / math.sqrt(4))
    # Totals that are in proportion to the counts have no error, however different they are.
    assert estimate_ratio([2.0, 20.0], [1, 10]) == (2.0, 0.0)
    # By hand: ratio 5 / 4, residuals 2 - 5/4 and 3 - 15/4.
    value, error = estimate_ratio([2.0, 3.0, 0.0], [1, 3, 0])
    assert value == 1.25 and error == pytest.approx(math.sqrt(2 * (0.75**2 + 0.75**2)) / 4)
    assert estimate_ratio([3.0], [2]) == (1.5, None) and estimate_ratio([math.inf, 1.0], [1, 1]) == (math.inf, None)
    value, error = estimate_ratio([0.0], [0])
    assert math.isnan(value) and error is None


def test_bad_input_is_named():
    model = tiny_model("causal")
    of_texts = (measure_diversity, collect_vocabulary)
    for call in (measure_coherence, *(lambda texts, _, call=call: call(texts) for call in of_texts)):
        with pytest.raises(TypeError, match=r"texts must be an iterable of strings, got a single string"):
            call("abc", {"a"})
        with pytest.raises(TypeError, match="texts must hold strings, got int"):
            call([1], {"a"})
    with pytest.raises(TypeError, match="vocabulary must be a collection of words, got str"):
        measure_coherence(["abc"], "abc")
    with pytest.raises(ValueError, match="vocabulary must hold at least one word"):
        measure_coherence(["abc"], [])
    with pytest.raises(ValueError, match="`min_letters` must be an integer of at least 1, got 0"):
        measure_coherence(["abc"], {"abc"}, min_letters=0)
    with pytest.raises(ValueError, match="`num_words` must be an integer of at least 1, got 0"):
        measure_diversity(["abc"], 0)
    with pytest.raises(TypeError, match="text must be a string, got bytes"):
        split_words(b"abc")
    with pytest.raises(ValueError, match="texts must hold at least one text with a token to predict, got 2 without"):
        measure_generative_perplexity(["", ""], model, TOKENIZER)
    with pytest.raises(ValueError, match="at most max_position_embeddings=16 of the judge's tokens, got 17 in text 1"):
        measure_generative_perplexity(["a", "a" * 16], gpt2(), TOKENIZER)
    with pytest.raises(ValueError, match="ids below the judge's vocab_size=20, got 22 in text 0"):
        measure_generative_perplexity(["r"], tiny_model("causal", vocab_size=20), TOKENIZER)
    with pytest.raises(
        ValueError, match="must predict from left to right, got one of attention_variant='bidirectional"
    ):
        measure_generative_perplexity(["r"], tiny_model("bidirectional"), TOKENIZER)
    with pytest.raises(ValueError, match="totals and counts must have one shape"):
        estimate_ratio([1.0], [1, 2])
    with pytest.raises(ValueError, match="counts must be at least 0, got -1"):
        estimate_ratio([1.0], [-1])


# In a process of its own, in which a network connection is an error.
METRICS = """
import json, socket, sys

def refuse(*args):
    raise AssertionError(f"a connection to {args[-1]}")

socket.socket.connect = socket.getaddrinfo = refuse
import modeling_aoarm.evaluation
loaded = sorted({"evaluate", "datasets", "lm_eval", "matplotlib"} & set(sys.modules))
sys.path.insert(0, sys.argv[1])
import evaluate
from variants import tiny_model
from modeling_aoarm.evaluation import metrics
from modeling_aoarm.data.tokenizers import character_tokenizer

texts = ["abba abba cd", "feed"]
tokenizer = character_tokenizer(["abcdefghijklmnopq "])
model = {"model": tiny_model("causal"), "tokenizer": tokenizer}
vocabulary = {"abba", "cd"}
of_texts = [
    metrics.Coherence(vocabulary=vocabulary),
    metrics.Diversity(num_words=3),
    metrics.GenerativePerplexityMetric(**model),
    metrics.OrderLikelihood(order="left_to_right", draws=1, **model),
]
results = {"loaded": loaded, "alone": {}, "combined": evaluate.combine(of_texts).compute(predictions=texts)}
for metric in of_texts:
    results["alone"] |= metric.compute(predictions=texts)
results["short"] = metrics.Coherence(vocabulary=vocabulary, min_letters=2).compute(predictions=texts)
one_by_one = metrics.Coherence(vocabulary=vocabulary)
for text in texts:
    one_by_one.add(prediction=text)
results["added"] = one_by_one.compute()
results["entropy"] = metrics.SampleEntropy().compute(predictions=[[1, 1, 2, 2], [3]])
infilling = metrics.InfillingAccuracy()
results["infilling"] = infilling.compute(predictions=[[1, 2], [3, 4], [5]], references=[[1, 2], [3, 9], [6]])
errors = {
    "string": (lambda: metrics.Coherence(vocabulary=vocabulary).compute(predictions="abba")),
    "vocabulary": (lambda: metrics.Coherence(vocabulary=[]).compute(predictions=texts)),
    "lengths": (lambda: infilling.compute(predictions=[[1]], references=[[1, 2]])),
}
for name, call in errors.items():
    try:
        call()
    except (TypeError, ValueError) as error:
        results[name] = str(error)
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Results of the metrics, in a process that has neither a cache nor a network."""
    home = tmp_path_factory.mktemp("home")
    process = subprocess.run(
        [sys.executable, "-c", METRICS, REPOSITORY / "tests"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        cwd=home,
        env={"PATH": "", "HOME": str(home), "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def test_the_package_alone_loads_no_library_of_the_metrics(measured):
    assert measured["loaded"] == []


def test_metrics_are_the_functions_alone_and_combined(measured):
    texts, tokenizer = ["abba abba cd", "feed"], character_tokenizer(["abcdefghijklmnopq "])
    judged = measure_generative_perplexity(texts, tiny_model("causal"), tokenizer)
    assert measured["alone"] == measured["combined"]
    assert measured["combined"] == {
        "coherence": pytest.approx(2 / 3),
        "diversity": pytest.approx(2 / 3),
        "generative_perplexity": pytest.approx(judged.perplexity, rel=1e-5),
        "sample_nlls": pytest.approx(judged.sample_nll.tolist(), abs=1e-4),
        "sample_tokens": [12, 4],
        # A causal model's only order, so it is the judge's figure.
        "order_nll": pytest.approx(judged.nll.value, abs=1e-5),
        "order_nll_standard_error": None,
        "example_nlls": pytest.approx(judged.sample_nll.tolist(), abs=1e-4),
    }
    assert measured["short"] == {"coherence": pytest.approx(3 / 4)}
    assert measured["added"] == {"coherence": pytest.approx(2 / 3)}
    assert measured["entropy"]["sample_entropies"] == [pytest.approx(math.log(2)), 0]
    assert measured["entropy"]["sample_entropy"] == pytest.approx(math.log(2) / 2)
    assert measured["infilling"] == {
        "infilling_accuracy": pytest.approx(1 / 3),
        "token_accuracy": pytest.approx(3 / 5),
    }


def test_metrics_name_bad_input(measured):
    assert measured["string"] == "predictions must be a list of strings, got a single string; pass [text]."
    assert measured["vocabulary"] == "vocabulary must hold at least one word, got none."
    assert "as many tokens as the original ones, at least one; got 1 for 2 in blank 0" in measured["lengths"]
