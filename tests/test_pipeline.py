# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""`pipeline("infilling")`: `infill` for users of pipelines, from a saved folder alone or with the package."""

import copy
import json

import pytest
import torch
from clean_process import run_clean_process
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, pipeline
from transformers.pipelines import PIPELINE_REGISTRY, clean_custom_task
from transformers.pipelines.pt_utils import KeyDataset
from variants import any_order_variants, every_variant, random_rows, tiny_model

from modeling_aoarm import AOARMConfig, InfillingPipeline, infill
from modeling_aoarm.data.tokenizers import character_tokenizer
from modeling_aoarm.infilling_aoarm import read_blanks
from modeling_aoarm.pipeline_aoarm import fill_chat, write_chat


ALPHABET = "abcdefghijklmnopqrstuvwxyz <>:\\|[]\n"
# In every turn the role and the content without white space around it, between special characters.
TEMPLATE = "{% for m in messages %}|{{ m['role'] }}>{{ m['content'] | trim }}|\n{% endfor %}"
TEXTS = ["the <blank:3> sat", "a<blank:1-2>d<blank>", "no blank", "<blank:2>", "\\<blank> at <blank:2>"]
CHAT = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "what is <blank>"},
    {"role": "assistant", "content": "it is <blank:2> and <blank:1-2>"},
]


@pytest.fixture(scope="module")
def tokenizer():
    made = character_tokenizer([ALPHABET])
    made.chat_template = TEMPLATE
    return made


def model_for(variant, tokenizer, **changes):
    ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "pad")}
    return tiny_model(variant, vocab_size=len(tokenizer), max_position_embeddings=128, **ends, **changes)


def expected_output(infilling, return_candidates=True):
    """What the pipeline says of an `Infilling`."""
    candidates = [
        {
            "filled_text": each.text,
            "fillings": list(each.fillings),
            "blank_lengths": list(each.blank_lengths),
            "log_probability": pytest.approx(each.log_probability, abs=1e-4),
        }
        for each in infilling.candidates
    ]
    best = candidates[0]
    if not return_candidates:
        return {name: best[name] for name in ("filled_text", "fillings")}
    return {**{name: best[name] for name in ("filled_text", "fillings", "log_probability")}, "candidates": candidates}


# A folder alone

WITHOUT_THE_PACKAGE = """
from pathlib import Path

from transformers import pipeline


def refusal(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


for variant in rows["variants"]:
    place = f"{folder}/{variant}"
    own = report[variant] = {}
    own["refusals"] = [refusal(pipeline, "infilling", place, **kwargs) for kwargs in ({}, {"trust_remote_code": False})]
    filler = pipeline("infilling", model=place, **trust)
    own["module"] = type(filler).__module__
    own["by default"] = type(pipeline(model=place, **trust)).__name__
    own["filled"] = [filler(text) for text in rows["texts"]]
    own["batched"] = filler(rows["texts"], batch_size=2, return_candidates=True)
    own["generator"] = list(filler((text for text in rows["texts"]), batch_size=2))
    own["random"] = filler(rows["texts"], generator=torch.Generator().manual_seed(1), **rows["way"])
    own["chat"] = filler(rows["chat"])
    own["chats"] = filler([rows["chat"], rows["chat"][1:]], batch_size=2)
    own["errors"] = [refusal(filler, text) for text in rows["wrong"]]
    # Saved after the library has put classes into the config.
    filler.save_pretrained(f"{place} again")
    own["config"] = json.loads(Path(f"{place} again", "config.json").read_text())["custom_pipelines"]
    again = pipeline("infilling", model=f"{place} again", device="cpu", dtype=torch.bfloat16, **trust)
    own["dtype"] = str(again.model.dtype)
    again.model.float()
    own["again"] = again(rows["texts"])
    own["code"] = [sorted(path.name for path in Path(each).glob("*.py")) for each in (place, f"{place} again")]
    Path(place, "tokenizer.json").unlink()
    Path(place, "tokenizer_config.json").unlink()
    own["without a tokenizer"] = refusal(pipeline, "infilling", place, **trust)
"""


def test_a_folder_is_enough(tokenizer, tmp_path):
    """In a process that cannot import the package, for both heads: the results of `infill`, its errors, and trust."""
    wrong = ["a <blank:0>", "a <blank:6-2>", "a <blank:200>", 3]
    # One generator for all texts, which they use one after the other.
    way = {"decoding_order": "random", "do_sample": True, "temperature": 0.7}
    variants = ["two_stream", "bidirectional"]
    rows = {**random_rows("two_stream", 1, 4), "texts": TEXTS, "chat": CHAT, "wrong": wrong, "way": way}
    torch.save({**rows, "variants": variants}, tmp_path / "rows")
    models = {}
    for variant in variants:
        model = models[variant] = model_for(variant, tokenizer)
        # Weights that bfloat16 holds too.
        for weight in model.parameters():
            weight.data = weight.data.bfloat16().float()
        model.save_pretrained(tmp_path / "models" / variant)
        tokenizer.save_pretrained(tmp_path / "models" / variant)
    report = run_clean_process(tmp_path / "models", tmp_path / "rows", "without", WITHOUT_THE_PACKAGE)
    for variant, model in models.items():
        own = report[variant]
        assert all(each.startswith("ValueError") and "`trust_remote_code=True`" in each for each in own["refusals"])
        assert own["module"].startswith("transformers_modules.") and own["by default"] == "InfillingPipeline"
        expected = infill(model, tokenizer, TEXTS, return_candidates=True)
        short = [expected_output(each, return_candidates=False) for each in expected]
        assert own["filled"] == own["generator"] == own["again"] == short
        assert own["batched"] == [expected_output(each) for each in expected]
        generator = torch.Generator().manual_seed(1)
        sampled = [infill(model, tokenizer, text, generator=generator, **way) for text in TEXTS]
        assert [each["filled_text"] for each in own["random"]] == sampled
        assert own["chat"] == pipeline("infilling", model=model, tokenizer=tokenizer)(CHAT) == own["chats"][0]
        for error, text in zip(own["errors"], wrong, strict=True):
            if text == 3:
                assert error.startswith("TypeError: An input of the infilling pipeline must be a text or a chat")
                continue
            with pytest.raises(ValueError) as raised:
                infill(model, tokenizer, text)
            assert error == f"ValueError: {raised.value}"
        head = "AutoModelForMaskedLM" if variant == "bidirectional" else "AutoModelForCausalLM"
        task = {"impl": "pipeline_aoarm.InfillingPipeline", "pt": [head], "type": "text"}
        assert own["config"] == {"infilling": task} and own["dtype"] == "torch.bfloat16"
        assert own["code"][0] == own["code"][1] and "pipeline_aoarm.py" in own["code"][0]
        assert "okenizer" in own["without a tokenizer"]


# With the package


def test_the_package_registers_the_task(tokenizer, tmp_path):
    """A folder's pipeline is then the package's own, which needs no trust."""
    assert PIPELINE_REGISTRY.check_task("infilling")[1]["impl"] is InfillingPipeline
    for variant in ("two_stream", "bidirectional"):
        model = model_for(variant, tokenizer)
        expected = [expected_output(each, False) for each in infill(model, tokenizer, TEXTS, return_candidates=True)]
        assert pipeline("infilling", model=model, tokenizer=tokenizer)(TEXTS) == expected
        for folder in (tmp_path / variant, tmp_path / variant / "again"):
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            filler = pipeline("infilling", model=str(folder))
            assert type(filler) is InfillingPipeline and filler(TEXTS) == expected
            model = filler.model
        filler.save_pretrained(tmp_path / variant / "by the pipeline")
        saved = json.loads((tmp_path / variant / "by the pipeline" / "config.json").read_text())
        assert saved == json.loads((tmp_path / variant / "config.json").read_text())


class EchoPipeline(InfillingPipeline):
    """A pipeline of a user's own."""


def test_pipelines_of_others_are_saved_beside_it(tokenizer, tmp_path):
    filler = EchoPipeline(model_for("two_stream", tokenizer), tokenizer)
    try:
        PIPELINE_REGISTRY.register_pipeline("echo", EchoPipeline, pt_model=LlamaForCausalLM)
        filler.save_pretrained(tmp_path)
    finally:
        del PIPELINE_REGISTRY.supported_tasks["echo"], EchoPipeline._registered_impl
    saved = json.loads((tmp_path / "config.json").read_text())["custom_pipelines"]
    assert saved["echo"] == {"impl": "test_pipeline.EchoPipeline", "pt": ["LlamaForCausalLM"]}
    assert saved["infilling"]["impl"] == "pipeline_aoarm.InfillingPipeline"
    # The task whose class is registered is found in the registry.
    config = AOARMConfig.from_pretrained(tmp_path)
    assert set(config.custom_pipelines) == {"echo"}
    # As `pipeline` does it: it leaves classes in the config.
    clean_custom_task(config.custom_pipelines["echo"])
    assert config.custom_pipelines["echo"]["pt"] == (LlamaForCausalLM,)
    assert json.loads(config.to_json_string())["custom_pipelines"] == saved


@every_variant
def test_it_says_what_infill_says(variant, tokenizer):
    """Whatever the form of the input, and in every way of decoding; and pieces and fillings make the text."""
    model = model_for(variant, tokenizer)
    texts = ["the <blank:3>", "a<blank:1-2>", "no blank"] if variant == "causal" else TEXTS
    filler = pipeline("infilling", model=model, tokenizer=tokenizer, return_candidates=True)
    results = infill(model, tokenizer, texts, return_candidates=True)
    expected = [expected_output(each) for each in results]
    for text, one in zip(texts, expected, strict=True):
        assert filler(text) == one
        assert filler(text, return_candidates=False) == {name: one[name] for name in ("filled_text", "fillings")}
        pieces, _, _ = read_blanks(text)
        for each in one["candidates"]:
            joined = pieces[0] + "".join(
                filling + piece for filling, piece in zip(each["fillings"], pieces[1:], strict=True)
            )
            assert joined == each["filled_text"]
    for batch_size in (1, 2, 8):
        assert filler(texts, batch_size=batch_size) == expected
    dataset = Dataset.from_dict({"text": texts})
    assert filler(tuple(texts)) == filler(dataset["text"]) == list(filler(KeyDataset(dataset, "text"))) == expected
    assert list(filler(text for text in texts)) == expected and filler([]) == []
    ways = [{"max_candidates": 9, "score_end": True}, {"suppress_tokens": [5, 6, 7]}]
    if variant != "causal":
        ways += [{"decoding_order": "confidence", "tokens_per_step": 2}, {"candidate_order": "left_to_right"}]
    for way in ways:
        assert filler(texts, **way) == [
            expected_output(each) for each in infill(model, tokenizer, texts, return_candidates=True, **way)
        ]
        assert pipeline("infilling", model=model, tokenizer=tokenizer, **way)(texts[0]) == expected_output(
            infill(model, tokenizer, texts[0], return_candidates=True, **way), return_candidates=False
        )


# Chats


def template_of(tokenizer, messages):
    return tokenizer.apply_chat_template(messages, tokenize=False)


@any_order_variants
def test_a_filled_chat_is_the_templates_text_of_it(variant, tokenizer):
    """The law of chats: the model fills the text that the template writes, and nothing but the blanks changes."""
    model = model_for(variant, tokenizer)
    plain = set(range(len(tokenizer))) - set(tokenizer("abc").input_ids)
    filler = pipeline("infilling", model=model, tokenizer=tokenizer, suppress_tokens=sorted(plain))
    text = "|system>be brief|\n|user>what is \\<blank>|\n|assistant>it is <blank:2> and <blank:1-2>|\n"
    expected = infill(model, tokenizer, text, return_candidates=True, suppress_tokens=sorted(plain))
    output = filler(CHAT, return_candidates=True)
    assert output["log_probability"] == pytest.approx(expected.log_probability, abs=1e-4)
    for mine, theirs in zip(output["candidates"], expected.candidates, strict=True):
        assert template_of(tokenizer, mine["filled_text"]) == theirs.text
        assert mine["filled_text"][:2] == CHAT[:2]
        assert mine["filled_text"][2]["content"] == "it is {} and {}".format(*mine["fillings"])
        assert (mine["fillings"], mine["blank_lengths"]) == (list(theirs.fillings), list(theirs.blank_lengths))
    assert output["filled_text"] == output["candidates"][0]["filled_text"]


@pytest.mark.parametrize(
    "answers",
    [
        ["<blank>"],
        ["a <blank> b<blank:2><blank:3>", "and <blank:1-4>."],
        [" <blank:2> ", "\\<blank> \\\\<blank>\\", "no blank"],
        ["\\<blank:3> is no <blank>"],
    ],
)
def test_blanks_stand_in_the_assistants_turns_alone(tokenizer, answers):
    """Filled with known texts, chat and template agree, whatever other turns spell and the template trims."""
    other = {"role": "user", "content": "\\<blank> <blank:2> \\\\<blank:9>", "name": "z"}
    chat = [message for answer in answers for message in (other, {"role": "assistant", "content": answer})]
    before = copy.deepcopy(chat)
    text, turns = write_chat(tokenizer, chat)
    pieces, lengths, _ = read_blanks(text)
    assert lengths == [length for answer in answers for length in read_blanks(answer)[1]]
    fillings = [f"filling {number}" for number in range(len(lengths))]
    filled = fill_chat(chat, turns, fillings)
    joined = pieces[0] + "".join(filling + piece for filling, piece in zip(fillings, pieces[1:], strict=True))
    assert template_of(tokenizer, filled) == joined
    assert filled[::2] == chat[::2] == [other] * len(answers) and chat == before


def test_a_chat_without_blanks_comes_back(tokenizer):
    model = model_for("two_stream", tokenizer)
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    filler = pipeline("infilling", model=model, tokenizer=tokenizer)
    assert filler(chat) == {"filled_text": chat, "fillings": []}
    tools = [*chat, {"role": "assistant", "content": None, "tool_calls": []}, chat[0]]
    filler.tokenizer = copy.deepcopy(tokenizer)
    filler.tokenizer.chat_template = TEMPLATE.replace("m['content']", "(m['content'] or '')")
    assert filler(tools)["filled_text"] == tools


@pytest.mark.parametrize(
    ("chat", "template", "message"),
    [
        ([{"role": "user", "content": "a <blank>"}], TEMPLATE, "role 'assistant', got blanks only.*'user'"),
        ([{"role": "assistant", "content": "a <blank:0>"}], TEMPLATE, "at least one token.*<blank:0>"),
        (CHAT, TEMPLATE + "{{ messages[-1]['content'] }}", r"each of the chat's 2 blanks once.*\[0, 1, 0, 1\]"),
        (CHAT, "{{ messages[1]['content'] }}", r"each of the chat's 2 blanks once.*\[\].*put no blanks there"),
        (
            [{"role": "assistant", "content": "<blank>"}] * 2,
            "{% for m in messages %}{{ m['content'] }}{% endfor %}",
            r"2 blanks once.*apart.*\[0, 1\]",
        ),
        (CHAT, None, "chat_template"),
    ],
)
def test_chats_that_cannot_be_filled_are_refused(tokenizer, chat, template, message):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    filler = pipeline("infilling", model=model_for("two_stream", tokenizer), tokenizer=tokenizer)
    with pytest.raises(ValueError, match=message):
        filler(chat)
    if template == TEMPLATE:
        # A blank of another turn is text where the assistant has one, or behind a backslash.
        escaped = [{**chat[0], "content": "a \\" + chat[0]["content"][2:]}]
        assert filler(escaped)["fillings"] == []


# Bad input


@pytest.mark.parametrize(
    ("text", "kwargs", "error", "message"),
    [
        ({"role": "user"}, {}, TypeError, "a text or a chat.*dict"),
        (None, {}, TypeError, "a text or a chat.*NoneType"),
        (["a <blank>", 3], {}, TypeError, "a text or a chat.*int"),
        ("a <blank>", {"num_return_sequences": 2}, ValueError, "num_return_sequences"),
        ("a <blank>", {"max_new_tokens": 2}, ValueError, "max_new_tokens.*blank at the end"),
        ("a <blank>", {"decoding_order": "inwards"}, ValueError, "inwards"),
        ("a <blank:1-9>", {"max_candidates": 3}, ValueError, "max_candidates=3"),
        (["a <blank>"] * 2, {"generator": [torch.Generator()] * 2}, ValueError, "one entry for each of 1 texts"),
    ],
)
def test_what_cannot_be_filled_is_refused_as_infill_does(tokenizer, text, kwargs, error, message):
    filler = pipeline("infilling", model=model_for("two_stream", tokenizer), tokenizer=tokenizer)
    with pytest.raises(error, match=message):
        filler(text, **kwargs)


def test_a_model_and_its_tokenizer_are_needed(tokenizer):
    model = model_for("two_stream", tokenizer)
    with pytest.raises(ValueError, match="`tokenizer` must be the model's tokenizer, got None"):
        InfillingPipeline(model)
    llama = LlamaForCausalLM(
        LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)
    )
    for other in (model.model, llama):
        with pytest.raises(TypeError, match=f"any-order model.*{type(other).__name__}.*convert_causal_lm"):
            pipeline("infilling", model=other, tokenizer=tokenizer)
