# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The model type `aoarm` of the LM Evaluation Harness, against plain loops over orders and against the harness's `hf`.

The tasks in `lm_eval_tasks` need no network. Paths in them are relative to the repository's root.
"""

import itertools
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import lm_eval
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from scipy.stats import chisquare
from variants import tiny_model
from warm_python import run_python

from modeling_aoarm import infill
from modeling_aoarm.__main__ import main
from modeling_aoarm.data.tokenizers import character_tokenizer
from modeling_aoarm.evaluation.lm_eval import AnyOrderLM


ROOT = Path(__file__).parents[1]
TASKS = Path("tests", "lm_eval_tasks")
SENTENCES = [json.loads(line) for line in (ROOT / TASKS / "sentences.jsonl").read_text().splitlines()]
LEFT_TO_RIGHT_TASKS = ["aoarm_choice", "aoarm_continue", "aoarm_last_word", "aoarm_text"]

pytestmark = pytest.mark.usefixtures("restored_logging", "root")


@pytest.fixture
def root(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def tokenizer():
    return character_tokenizer(json.dumps(each) for each in SENTENCES)


@pytest.fixture(scope="module")
def models(tokenizer):
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 72, "num_hidden_layers": 2}
    return {name: tiny_model(name, **sizes, **special) for name in ("two_stream", "decoupled_rope", "causal")}


@pytest.fixture(scope="module")
def folder(models, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    models["two_stream"].save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


any_order_models = pytest.mark.parametrize("variant", ["two_stream", "decoupled_rope"])
every_model = pytest.mark.parametrize("variant", ["two_stream", "decoupled_rope", "causal"])


def request_for(*arguments, kind="loglikelihood", doc_id=0):
    return Instance(kind, {}, arguments, 0, ("task", doc_id, 1))


def log_likelihoods(model, before, scored, after=()):
    """log p(scored | rest) and whether each token is the likeliest, for each order: one call of the model per token."""
    tokens = torch.tensor([*before, *scored, *after])
    places = range(len(before), len(before) + len(scored))
    context = [column for column in range(len(tokens)) if column not in places]
    results = []
    for order in itertools.permutations(places):
        total, is_greedy = 0.0, True
        for number, place in enumerate(order):
            rows = torch.tensor([*context, *order[:number]])
            targets = torch.cat([rows[1:], torch.tensor([place])])
            with torch.no_grad():
                logits = model(tokens[rows][None], position_ids=rows[None], target_position_ids=targets[None]).logits
            log_probs = logits[0, -1].double().log_softmax(-1)
            total += float(log_probs[tokens[place]])
            is_greedy &= int(log_probs.argmax()) == int(tokens[place])
        results.append((total, is_greedy))
    return results


def mean(values):
    return sum(values) / len(values)


def log_mean(values):
    return math.log(mean([math.exp(value) for value in values]))


def evaluate(model, tokenizer, tasks, kind=AnyOrderLM, limit=None, num_fewshot=None, **arguments):
    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    own = kind(model, tokenizer=tokenizer, **arguments)
    return lm_eval.simple_evaluate(
        own, tasks=tasks, task_manager=manager, bootstrap_iters=0, limit=limit, num_fewshot=num_fewshot
    )


def responses(results):
    """What the model answered to each request."""
    samples = {task: sorted(each, key=lambda sample: sample["doc_id"]) for task, each in results["samples"].items()}
    return {task: [sample["resps"] for sample in each] for task, each in samples.items()}


# Log-likelihoods in orders


@any_order_models
@pytest.mark.parametrize("context", ["A set", "A set<blank> of names", "<blank> of names"])
def test_all_orders_of_short_continuations(variant, context, models, tokenizer):
    """Three tokens have six orders: both ensembles against the enumeration, also with text behind the blank."""
    model, continuation = models[variant], " is"
    before, _, after = context.partition("<blank>")
    first = [] if before else [tokenizer.bos_token_id]
    expected = log_likelihoods(
        model, first + tokenizer.encode(before), tokenizer.encode(continuation), tokenizer.encode(after)
    )
    for ensemble, join in (("mean", mean), ("log_mean", log_mean)):
        lm = AnyOrderLM(model, tokenizer=tokenizer, decoding_order="random", num_orders=6, ensemble=ensemble)
        [(log_likelihood, _)] = lm.loglikelihood([request_for(context, continuation)], disable_tqdm=True)
        assert log_likelihood == pytest.approx(join([value for value, _ in expected]), abs=1e-4)
    [(log_likelihood, _)] = AnyOrderLM(model, tokenizer=tokenizer).loglikelihood([request_for(context, continuation)])
    # The first permutation is the identity.
    assert log_likelihood == pytest.approx(expected[0][0], abs=1e-4)


def test_drawn_orders_are_uniform_and_joined_as_stated(models, tokenizer):
    """Fewer orders than there are: drawn for each document, all alike; the two ensembles are of the same orders."""
    model = models["decoupled_rope"]
    values = [value for value, _ in log_likelihoods(model, tokenizer.encode("A set"), tokenizer.encode(" is"))]
    assert min(abs(a - b) for a, b in itertools.combinations(values, 2)) > 1e-3
    requests = [request_for("A set", " is", doc_id=number) for number in range(300)]

    def scores(**arguments):
        lm = AnyOrderLM(model, tokenizer=tokenizer, batch_size=100, decoding_order="random", **arguments)
        return [score for score, _ in lm.loglikelihood(requests, disable_tqdm=True)]

    drawn = [min(range(6), key=lambda order: abs(values[order] - score)) for score in scores()]
    for score, order in zip(scores(), drawn, strict=True):
        assert score == pytest.approx(values[order], abs=1e-4)
    assert chisquare([drawn.count(order) for order in range(6)]).pvalue > 0.01
    assert scores(seed=1) != scores(seed=0)
    pairs = [(mean(pair), log_mean(pair)) for pair in itertools.product(values, repeat=2)]
    both = zip(scores(num_orders=2), scores(num_orders=2, ensemble="log_mean"), strict=True)
    found = {min(range(36), key=lambda pair: math.dist(pairs[pair], score)) for score in both}
    both = zip(scores(num_orders=2), scores(num_orders=2, ensemble="log_mean"), strict=True)
    assert all(min(math.dist(pair, score) for pair in pairs) < 1e-3 for score in both)
    assert len(found) > 15


@every_model
def test_results_do_not_depend_on_the_batch(variant, models, tokenizer):
    """Nor on the order of requests, nor on which others there are; and choices of a document have the same orders."""
    is_causal = variant == "causal"
    order = {} if is_causal else {"decoding_order": "random", "num_orders": 3}
    contexts = ["A set", "The del statement deletes", ""] + ([] if is_causal else ["A<blank> of it", "<blank> is one"])
    continuations = [" is", " x", " of seven letters"]
    requests = [
        request_for(context, continuation, doc_id=number)
        for number, context in enumerate(contexts)
        for continuation in continuations
    ]
    texts = [request_for(each["before"] * times, doc_id=times) for each in SENTENCES[:3] for times in (1, 5)]
    single = AnyOrderLM(models[variant], tokenizer=tokenizer, batch_size=1, **order)
    several = AnyOrderLM(models[variant], tokenizer=tokenizer, batch_size=7, **order)
    for name, own in (("loglikelihood", requests), ("loglikelihood_rolling", texts)):
        expected = getattr(single, name)(own, disable_tqdm=True)
        torch.testing.assert_close(
            getattr(several, name)(own[::-1], disable_tqdm=True)[::-1], expected, atol=1e-4, rtol=0
        )
        torch.testing.assert_close(
            getattr(several, name)(own[-2:], disable_tqdm=True), expected[-2:], atol=1e-4, rtol=0
        )
    twice = [request_for("A set", " of seven letters"), request_for("A set", " of seven letters")]
    [(first, _), (second, _)] = several.loglikelihood(twice, disable_tqdm=True)
    assert first == pytest.approx(second, abs=1e-5)
    [(other, _)] = several.loglikelihood([request_for("A set", " of seven letters", doc_id=9)], disable_tqdm=True)
    assert is_causal == (other == pytest.approx(first, abs=1e-3))


@any_order_models
def test_greedy_flags(variant, models, tokenizer):
    """Of all continuations of two tokens, those are greedy that decoding fills in, in each of the orders."""
    letters = [token for token in range(len(tokenizer)) if token not in tokenizer.all_special_ids]
    for context in ("A set", "A set<blank> of names"):
        before, _, after = context.partition("<blank>")
        before, after = tokenizer.encode(before), tokenizer.encode(after)
        canvas = torch.tensor([before + [0, 0] + after])
        blanks = torch.zeros_like(canvas, dtype=torch.bool)
        blanks[0, len(before) : len(before) + 2] = True
        orders = torch.tensor([[[len(before), len(before) + 1]], [[len(before) + 1, len(before)]]])
        greedy = [
            models[variant]
            .generate(canvas, generation_mask=blanks, decoding_order=order, eos_token_id=None, do_sample=False)[blanks]
            .tolist()
            for order in orders
        ]
        strings = [*itertools.product(letters, repeat=2)]
        requests = [request_for(context, tokenizer.decode(string)) for string in strings]
        for orders_of_it, arguments in ((greedy[:1], {}), (greedy, {"decoding_order": "random", "num_orders": 2})):
            lm = AnyOrderLM(models[variant], tokenizer=tokenizer, batch_size=256, **arguments)
            flags = [flag for _, flag in lm.loglikelihood(requests, disable_tqdm=True)]
            assert flags == [all(list(string) == each for each in orders_of_it) for string in strings]


def test_a_continuation_that_is_greedy_in_every_order(models, tokenizer):
    """Where a bias alone decides, decoding fills in the same token everywhere, in any order."""
    model = tiny_model("two_stream", vocab_size=len(tokenizer), max_position_embeddings=72)
    [letter] = tokenizer.encode("e")
    model.lm_head = torch.nn.Linear(model.config.hidden_size, len(tokenizer))
    torch.nn.init.zeros_(model.lm_head.weight)
    model.lm_head.bias.data = torch.eye(len(tokenizer))[letter]
    lm = AnyOrderLM(model, tokenizer=tokenizer, batch_size=4, decoding_order="random", num_orders=5)
    requests = [request_for("A s<blank>t", "e" * length) for length in (1, 2, 9)] + [request_for("A", "eeeee ee")]
    assert [flag for _, flag in lm.loglikelihood(requests, disable_tqdm=True)] == [True, True, True, False]


@every_model
def test_a_blank_at_the_end_changes_nothing(variant, models, tokenizer):
    """Two ways to the same number: the harness's own, and `score`."""
    lm = AnyOrderLM(models[variant], tokenizer=tokenizer, batch_size=3)
    pairs = [(each["before"], f" {each['answer']}") for each in SENTENCES]
    plain = lm.loglikelihood([request_for(*pair) for pair in pairs], disable_tqdm=True)
    marked = lm.loglikelihood([request_for(f"{context}<blank>", text) for context, text in pairs], disable_tqdm=True)
    torch.testing.assert_close(marked, plain, atol=1e-4, rtol=0)


def test_a_space_before_a_blank_belongs_to_the_continuation(models, tokenizer):
    lm = AnyOrderLM(models["two_stream"], tokenizer=tokenizer, add_bos_token=True)
    requests = [request_for("A <blank> of names", "set"), request_for("A<blank> of names", " set")]
    first, second = lm.loglikelihood(requests, disable_tqdm=True)
    assert first == second
    requests = [request_for("  <blank> of names", "set"), request_for("<blank> of names", "  set")]
    first, second = lm.loglikelihood(requests, disable_tqdm=True)
    assert first == second
    plain = AnyOrderLM(models["two_stream"], tokenizer=tokenizer, infilling=False)
    [(as_text, _)] = plain.loglikelihood([request_for("A <blank> of names", " set")], disable_tqdm=True)
    context = tokenizer.encode("A <blank> of names")
    assert as_text == pytest.approx(
        log_likelihoods(models["two_stream"], context, tokenizer.encode(" set"))[0][0], abs=1e-4
    )


def test_contexts_that_are_too_long_are_cut(models, tokenizer):
    """The left end of what is before a blank goes first, then the right end of what is behind it."""
    model, room = models["decoupled_rope"], models["decoupled_rope"].config.max_position_embeddings
    lm = AnyOrderLM(model, tokenizer=tokenizer, decoding_order="random", num_orders=2)
    long = (SENTENCES[0]["before"] + SENTENCES[3]["before"]) * 3
    for before, after, cut_before, cut_after in (
        (long, "", long[2 - room :], ""),
        (long, " of", long[5 - room :], " of"),
        ("A set", long, "t", long[: room - 3]),
    ):
        [(log_likelihood, _)] = lm.loglikelihood([request_for(f"{before}<blank>{after}", " x")], disable_tqdm=True)
        ids = [tokenizer.encode(each) for each in (cut_before, " x", cut_after)]
        assert log_likelihood == pytest.approx(mean([value for value, _ in log_likelihoods(model, *ids)]), abs=1e-4)


# Perplexity


@any_order_models
def test_windows_in_all_their_orders(variant, models, tokenizer):
    """Windows of three tokens, the last one with the context that there is room for."""
    model = models[variant]
    tokens = tokenizer.encode("A set is")
    windows = [
        ([tokenizer.bos_token_id], tokens[:3]),
        (tokens[2:3], tokens[3:6]),
        (tokens[4:6], tokens[6:8]),
    ]
    parts = [[value for value, _ in log_likelihoods(model, *window)] for window in windows]
    for join, arguments in (
        (mean, {"decoding_order": "random", "num_orders": 6}),
        (log_mean, {"decoding_order": "random", "num_orders": 6, "ensemble": "log_mean"}),
        (lambda values: values[0], {}),
    ):
        for bos in (None, True, False):
            lm = AnyOrderLM(model, tokenizer=tokenizer, max_length=3, batch_size=2, add_bos_token=bos, **arguments)
            [log_likelihood] = lm.loglikelihood_rolling([request_for("A set is")], disable_tqdm=True)
            assert log_likelihood == pytest.approx(sum(map(join, parts)), abs=1e-4)


@every_model
def test_every_token_is_predicted_once(variant, models, tokenizer):
    """Where all tokens are equally likely a text's log-likelihood tells how many were predicted."""
    model = tiny_model(variant, vocab_size=len(tokenizer), max_position_embeddings=16)
    torch.nn.init.zeros_(model.lm_head.weight)
    order = {} if variant == "causal" else {"decoding_order": "random", "num_orders": 2}
    lm = AnyOrderLM(model, tokenizer=tokenizer, batch_size=4, **order)
    texts = ["", "A", *((SENTENCES[0]["before"] * 3)[:length] for length in (14, 15, 16, 17, 30, 31, 80))]
    sums = lm.loglikelihood_rolling([request_for(text) for text in texts], disable_tqdm=True)
    assert [total / -math.log(len(tokenizer)) for total in sums] == pytest.approx(
        [len(text) for text in texts], abs=1e-3
    )


# Generation


def test_blanks_are_filled_as_by_infill(models, tokenizer):
    model = models["two_stream"]
    lm = AnyOrderLM(model, tokenizer=tokenizer, batch_size=2)
    prompts = ["A <blank:5> is", "<blank:2>The if", "The del <blank:3-5> statement", "A tuple has <blank:4>"]
    for order in ("left_to_right", "confidence"):
        arguments = {"until": [], "do_sample": False, "decoding_order": order, "max_gen_toks": 5}
        expected = infill(model, tokenizer, prompts, decoding_order=order, do_sample=False)
        for what in ("text", "blank"):
            requests = [request_for(prompt, {**arguments, "infill_return": what}, kind="") for prompt in prompts]
            results = lm.generate_until(requests, disable_tqdm=True)
            pieces = [re.split("<blank.*>", prompt) for prompt in prompts]
            if what == "blank":
                results = [before + result + after for result, (before, after) in zip(results, pieces, strict=True)]
            assert results == expected
    two = request_for("A<blank> is<blank:2>", {"until": [], "infill_return": "text"}, kind="")
    assert lm.generate_until([two], disable_tqdm=True) == [
        infill(model, tokenizer, "A<blank> is<blank:2>", do_sample=False)
    ]


@pytest.mark.parametrize("order", ["left_to_right", "random"])
def test_a_backslash_makes_a_blank_text(order, models, tokenizer):
    """In contexts, in prompts that are filled, and in prompts that are continued."""
    lm = AnyOrderLM(models["two_stream"], tokenizer=tokenizer, decoding_order=order)
    plain = AnyOrderLM(models["two_stream"], tokenizer=tokenizer, decoding_order=order, infilling=False)
    for context, literal in (("A \\<blank> is", "A <blank> is"), ("A <Blank> is", "A <Blank> is")):
        marked, expected = (
            each.loglikelihood([request_for(text, " set", doc_id=0)], disable_tqdm=True)[0]
            for each, text in ((lm, context), (plain, literal))
        )
        assert marked == (pytest.approx(expected[0], abs=1e-4), expected[1])
        continued = request_for(context, {"until": [], "max_gen_toks": 5}, kind="")
        expected = plain.generate_until([request_for(literal, continued.args[1], kind="")], disable_tqdm=True)
        assert lm.generate_until([continued], disable_tqdm=True) == expected
    [both] = lm.loglikelihood([request_for("A \\<blank> is<blank> of", " set")], disable_tqdm=True)
    assert isinstance(both[0], float)
    prompt = "A \\<blank> is<blank:3> of"
    [filled] = lm.generate_until([request_for(prompt, {"until": []}, kind="")], disable_tqdm=True)
    assert f"A <blank> is{filled} of" == infill(models["two_stream"], tokenizer, prompt, do_sample=False)


def test_a_filled_blank_ends_at_a_stop_string(models, tokenizer):
    lm = AnyOrderLM(models["two_stream"], tokenizer=tokenizer)
    [whole] = lm.generate_until([request_for("A <blank:8> is", {"until": []}, kind="")], disable_tqdm=True)
    stop = next(letter for letter in whole if letter != whole[0])
    [cut] = lm.generate_until([request_for("A <blank:8> is", {"until": [stop]}, kind="")], disable_tqdm=True)
    assert cut == whole[: whole.index(stop)] and 0 < len(cut) < len(whole)
    text = request_for("A <blank:8> is", {"until": [stop, "A"], "infill_return": "text"}, kind="")
    assert lm.generate_until([text], disable_tqdm=True) == [f"A {whole} is"]


def test_samples_belong_to_their_requests(models, tokenizer):
    """Whatever the batch is, and the mixture of requests; a request that is repeated is sampled anew."""
    sampled = {"until": [], "do_sample": True, "temperature": 1.0, "decoding_order": "random"}
    lengths = {**sampled, "candidate_order": "random"}
    requests = [
        request_for(f"{each['before']} <blank:6>", sampled, kind="", doc_id=n) for n, each in enumerate(SENTENCES)
    ]
    requests += [request_for("A <blank:2-4> is", lengths, kind="", doc_id=n) for n in range(4)]
    requests += [request_for("A set", {"until": ["."], "max_gen_toks": 4}, kind="")] + [requests[0]] * 3
    single = AnyOrderLM(models["two_stream"], tokenizer=tokenizer, batch_size=1)
    several = AnyOrderLM(models["two_stream"], tokenizer=tokenizer, batch_size=5)
    torch.manual_seed(3)
    expected = single.generate_until(requests, disable_tqdm=True)
    after = torch.rand(1)
    assert several.generate_until(requests, disable_tqdm=True) == expected
    assert several.generate_until(requests[12:0:-1], disable_tqdm=True) == expected[12:0:-1]
    assert len({expected[0], *expected[-3:]}) == 4
    other = AnyOrderLM(models["two_stream"], tokenizer=tokenizer, batch_size=5, seed=1)
    assert other.generate_until(requests, disable_tqdm=True) != expected
    # The global random numbers are as they would be without.
    torch.manual_seed(3)
    assert torch.rand(1) == after


# Wrong input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decoding_order": "confidence"}, "`decoding_order`.*'confidence'"),
        ({"ensemble": "median", "decoding_order": "random"}, "`ensemble`.*'median'"),
        ({"num_orders": 0, "decoding_order": "random"}, "`num_orders`.*0"),
        ({"num_orders": 2}, "`num_orders` must be 1.*2"),
        ({"seed": "x"}, "`seed`.*'x'"),
        ({"infilling": "no"}, "`infilling`.*'no'"),
        ({"max_length": 72, "decoding_order": "random"}, "`max_length` must be at most 71.*72"),
        ({"max_length": 73}, "`max_length` must be at most 72.*73"),
    ],
)
def test_wrong_arguments(arguments, message, models, tokenizer):
    with pytest.raises(ValueError, match=message):
        AnyOrderLM(models["two_stream"], tokenizer=tokenizer, **arguments)


@pytest.mark.parametrize(
    ("context", "continuation", "message"),
    [
        ("A <blank> is<blank>", " x", "one blank.*<blank> and <blank>.*fewshot_config"),
        ("A <blank:2> is", " x", "one blank.*<blank:2>"),
        ("A <blank><blank> is", " x", "one blank.*<blank><blank>"),
        ("A <blank:99999999999> is", " x", "one blank.*<blank:99999999999>"),
        ("A <blank> is", "", "at least one token"),
        ("A <blank> is", "x" * 72, "at most 71 tokens.*72"),
    ],
)
def test_wrong_requests(context, continuation, message, models, tokenizer):
    lm = AnyOrderLM(models["two_stream"], tokenizer=tokenizer)
    context = context.replace("A ", "A")
    with pytest.raises(ValueError, match=message):
        lm.loglikelihood([request_for(context, continuation)], disable_tqdm=True)


@pytest.mark.parametrize(
    ("prompt", "arguments", "message"),
    [
        ("A set", {"decoding_order": "random"}, "`decoding_order`.*blanks.*A set"),
        ("A <blank:3>", {"infill_return": "both"}, "`infill_return`.*'both'"),
        ("A <blank:3> is <blank>", {}, "`infill_return` must be 'text'.*2"),
        ("A <blank:70-71>", {}, "max_position_embeddings=72 tokens.*74"),
        ("A <blank:99999999999>", {}, "max_position_embeddings=72.*<blank:99999999999>"),
        ("A <blank:0>", {}, "at least one token long.*<blank:0>"),
        ("A <blank:3>", {"beam": 3}, "beam"),
    ],
)
def test_wrong_prompts(prompt, arguments, message, models, tokenizer):
    lm = AnyOrderLM(models["two_stream"], tokenizer=tokenizer)
    with pytest.raises(ValueError, match=message):
        lm.generate_until([request_for(prompt, {"until": [], **arguments}, kind="")], disable_tqdm=True)


def test_what_a_causal_model_cannot_do(models, tokenizer):
    with pytest.raises(ValueError, match="`decoding_order` must be 'left_to_right' for .*'causal', got 'random'"):
        AnyOrderLM(models["causal"], tokenizer=tokenizer, decoding_order="random")
    lm = AnyOrderLM(models["causal"], tokenizer=tokenizer)
    with pytest.raises(ValueError, match="'causal' cannot read text behind a blank; got ' is'"):
        lm.loglikelihood([request_for("A<blank> is", " x")], disable_tqdm=True)


# Tasks, `hf` and the command


@every_model
def test_left_to_right_is_hf(variant, models, tokenizer):
    own = evaluate(models[variant], tokenizer, LEFT_TO_RIGHT_TASKS, batch_size=3)
    harness = evaluate(models[variant], tokenizer, LEFT_TO_RIGHT_TASKS, HFLM, batch_size=3)
    own, harness = responses(own), responses(harness)
    for task in ("aoarm_choice", "aoarm_continue", "aoarm_last_word"):
        assert own[task] == harness[task]
    # The harness makes other batches of windows.
    for mine, others in zip(own["aoarm_text"], harness["aoarm_text"], strict=True):
        assert mine[0][0] == pytest.approx(others[0][0], rel=1e-5)


HARNESS = """
import runpy, sys


class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "modeling_aoarm":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Refuse())
sys.argv[0] = "lm_eval"
runpy.run_module("lm_eval", run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def run_command(monkeypatch, tmp_path, folder):
    """Runs the command on one saved model, and returns its results and samples by task."""
    # The harness's own tasks take long to look through, and none is meant.
    own = TaskManager.__init__
    monkeypatch.setattr(TaskManager, "__init__", lambda *args, **kwargs: own(*args, **kwargs, include_defaults=False))

    def run(*arguments, model_args=""):
        output = tmp_path / str(len(list(tmp_path.iterdir())))
        command = ["lm-eval", "--model", "aoarm", "--model_args", f"pretrained={folder}{model_args}", "--device", "cpu"]
        command += ["--include_path", str(TASKS), "--output_path", str(output), *map(str, arguments)]
        assert main(command) == 0
        [path] = output.rglob("results_*.json")
        samples = {
            path.name.removeprefix("samples_").rpartition("_")[0]: sorted(
                map(json.loads, path.read_text().splitlines()), key=lambda sample: sample["doc_id"]
            )
            for path in output.rglob("samples_*.jsonl")
        }
        return json.loads(path.read_text()), samples

    return run


def test_the_harness_runs_a_saved_folder_without_this_package(folder, tmp_path, run_command, capsys):
    """`lm_eval --model hf`, as it is, with the code of the saved folder; the command here gives the same numbers."""
    arguments = [
        *("--model", "hf", "--model_args", f"pretrained={folder},trust_remote_code=True", "--device", "cpu"),
        *("--include_path", TASKS, "--tasks", ",".join(LEFT_TO_RIGHT_TASKS), "--batch_size", "4"),
        *("--output_path", tmp_path / "hf"),
    ]
    process = run_python("-c", HARNESS, *arguments)
    assert process.returncode == 0, process.stderr
    [path] = (tmp_path / "hf").rglob("results_*.json")
    harness = json.loads(path.read_text())["results"]
    assert set(harness) == set(LEFT_TO_RIGHT_TASKS)
    own, samples = run_command("--tasks", ",".join(LEFT_TO_RIGHT_TASKS), "--batch_size", 3)
    for task, metrics in harness.items():
        for metric, value in metrics.items():
            is_number = isinstance(value, float)
            assert own["results"][task][metric] == (pytest.approx(value, rel=1e-3) if is_number else value), metric
    assert not samples
    table = capsys.readouterr().out
    assert all(f"|{task}" in table for task in LEFT_TO_RIGHT_TASKS)


def test_choices_in_the_middle_with_examples(run_command, models, tokenizer):
    """The command, from the prompt to the accuracy: filled examples, then a blank with its right context."""
    command = ["--tasks", "aoarm_middle_choice", "--log_samples"]
    # Many orders, so that two models with other orders would hardly agree.
    settings = {"decoding_order": "random", "num_orders": 4, "ensemble": "log_mean", "seed": 5, "max_length": 71}
    settings["add_bos_token"] = True
    model_args = "".join(f",{name}={value}" for name, value in settings.items())
    results, samples = run_command(*command, "--limit", 4, model_args=model_args)
    assert results["config"]["model_args"].items() >= settings.items()
    lm = AnyOrderLM(models["two_stream"], tokenizer=tokenizer, **settings)
    hits = []
    for sample, sentence in zip(samples["aoarm_middle_choice"], SENTENCES, strict=False):
        contexts, choices = zip(*(each.values() for each in sample["arguments"].values()), strict=True)
        assert set(contexts) == {sentence["before"] + "<blank>" + sentence["after"]}
        assert choices == tuple(f" {choice}" for choice in sentence["choices"])
        requests = [
            Instance("loglikelihood", {}, pair, 0, ("aoarm_middle_choice", sample["doc_id"], 1))
            for pair in zip(contexts, choices, strict=True)
        ]
        expected = [value for value, _ in lm.loglikelihood(requests, disable_tqdm=True)]
        assert [float(each[0][0]) for each in sample["resps"]] == pytest.approx(expected, abs=1e-4)
        hits.append(expected.index(max(expected)) == sentence["label"])
    assert len(hits) == 4 and results["results"]["aoarm_middle_choice"]["acc,none"] == mean(hits)
    _, samples = run_command(*command, "--limit", 0.25, "--num_fewshot", 2, model_args=model_args)
    samples = samples["aoarm_middle_choice"]
    assert len(samples) == 2
    for sample in samples:
        *examples, last = sample["arguments"]["gen_args_0"]["arg_0"].split("\n\n")
        filled = {each["before"] + " " + each["answer"] + each["after"] for each in SENTENCES}
        assert len(examples) == 2 and set(examples) < filled and last.count("<blank>") == 1


def test_blanks_of_a_task(run_command, models, tokenizer):
    """`--gen_kwargs` goes over what the task says, and reaches `infill`."""
    command = ["--tasks", "aoarm_infill", "--batch_size", 5, "--log_samples"]
    prompts = [f"{each['before']} <blank:{len(each['answer'])}>{each['after']}" for each in SENTENCES]
    for gen_kwargs, order in (
        ([], "confidence"),
        (["--gen_kwargs", "infill_return=text,decoding_order=left_to_right"], "left_to_right"),
    ):
        _, samples = run_command(*command, *gen_kwargs)
        filled = infill(models["two_stream"], tokenizer, prompts, decoding_order=order, do_sample=False)
        answers = [sample["resps"][0][0] for sample in samples["aoarm_infill"]]
        if not gen_kwargs:
            answers = [
                f"{each['before']} {answer}{each['after']}" for each, answer in zip(SENTENCES, answers, strict=True)
            ]
        assert answers == filled


def test_wrong_arguments_of_the_model_are_one_line_and_status_2(folder, capsys):
    arguments = ["--model_args", f"pretrained={folder},num_orders=3", "--tasks", "aoarm_text", "--device", "cpu"]
    assert main(["lm-eval", "--model", "aoarm", "--include_path", str(TASKS), *arguments]) == 2
    [error] = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert re.fullmatch("python -m modeling_aoarm lm-eval: error: .*`num_orders` must be 1.*3.*", error)


def test_help_is_that_of_the_harness(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["lm-eval", "run", "--help"])
    assert stop.value.code == 0 and "--num_fewshot" in capsys.readouterr().out


WITHOUT = """
import sys
import modeling_aoarm, modeling_aoarm.cli, modeling_aoarm.evaluation

assert "lm_eval" not in sys.modules
sys.modules["lm_eval"] = None
sys.exit(modeling_aoarm.cli.main(["lm-eval", "--model", "aoarm", "--tasks", "aoarm_text"]))
"""


def test_without_the_harness():
    """It is not needed by anything else, and its absence is named."""
    process = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert process.returncode == 2 and process.stderr.count("\n") == 1, process.stderr
    assert "lm-eval needs the packages of `lm-eval[hf]`" in process.stderr


def test_a_tokenizer_that_leaves_the_first_token_out_is_named(models, tokenizer, caplog):
    AnyOrderLM(models["two_stream"], tokenizer=tokenizer)
    assert "add_bos_token=True" in caplog.text
    caplog.clear()
    for choice in (True, False):
        AnyOrderLM(models["two_stream"], tokenizer=tokenizer, add_bos_token=choice)
    assert "add_bos_token" not in caplog.text
