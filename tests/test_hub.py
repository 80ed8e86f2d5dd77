# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Models, tokenizers, generation configs and adapters go to a Hub and come from it, by the client that users have."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from clean_process import run_clean_process
from hub_server import TOKEN, HubServer
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from scripts import run_script
from test_remote_code import LETTERS
from variants import random_rows, tiny_model

from modeling_aoarm import infill, lora_config
from modeling_aoarm.data.tokenizers import character_tokenizer
from modeling_aoarm.model_card import make_model_card, write_model_card


REPOSITORY = Path(__file__).resolve().parents[1]
INPUTS = ("input_ids", "position_ids", "target_position_ids")

PUSH = """
from huggingface_hub import HfApi
from peft import PeftModel
from transformers import AutoTokenizer

first, second = (AutoModelForCausalLM.from_pretrained(f"{folder}/{name}") for name in ("first", "second"))
pushed = [first.push_to_hub("me/model"), second.push_to_hub("me/model")]
pushed.append(AutoTokenizer.from_pretrained(f"{folder}/first").push_to_hub("me/model"))
second.generation_config.decoding_order = "random"
pushed.append(second.generation_config.push_to_hub("me/model"))
report["commits"] = [commit.oid for commit in pushed]
base = AutoModelForCausalLM.from_pretrained("me/model")
PeftModel.from_pretrained(base, f"{folder}/adapter").push_to_hub("me/adapter")
report["files"] = {name: sorted(HfApi().list_repo_files(name)) for name in ("me/model", "me/adapter")}
"""

PUSH_THAT_DIES = """
third = AutoModelForCausalLM.from_pretrained(f"{folder}/third")
try:
    third.push_to_hub("me/model")
except Exception as error:
    report["error"] = type(error).__name__
"""

LOAD_BY_NAME = """
import os

from huggingface_hub import snapshot_download
from peft import PeftModel
from transformers import AutoTokenizer, pipeline

try:
    AutoModelForCausalLM.from_pretrained("me/model")
except ValueError as error:
    report["refusal"] = str(error)
results = {}
with torch.no_grad():
    model = AutoModelForCausalLM.from_pretrained("me/model", **trust)
    body = AutoModel.from_pretrained("me/model", **trust)
    second = AutoModelForCausalLM.from_pretrained("me/model", **trust)
    results["second"] = model(**inputs).logits
    report["same body"] = torch.equal(model.lm_head(body(**inputs).last_hidden_state), results["second"])
    old = AutoModelForCausalLM.from_pretrained("me/model", revision=rows["old revision"], **trust)
    results["first"] = old(**inputs).logits
    snapshot = snapshot_download("me/model")
    results["snapshot"] = AutoModelForCausalLM.from_pretrained(snapshot, **trust)(**inputs).logits
    adapted = AutoModelForCausalLM.from_pretrained("me/adapter", **trust)
    results["adapter by transformers"] = adapted(**inputs).logits
    results["adapter"] = PeftModel.from_pretrained(second, "me/adapter")(**inputs).logits
    torch.manual_seed(3)
    # In the order of the generation config.
    filled = model.generate(rows["input_ids"], generation_mask=rows["generation_mask"], do_sample=True)
# From here to the Hub again.
model.push_to_hub("me/copy", token=rows["token"])
copy = AutoModelForCausalLM.from_pretrained("me/copy", **trust)
with torch.no_grad():
    results["copy"] = copy(**inputs).logits
report["module of the copy"] = type(copy).__module__
torch.save({**results, "filled": filled}, sys.argv[2] + ".out")
report["module"] = type(model).__module__
report["tokens"] = AutoTokenizer.from_pretrained("me/model", **trust)("abcd").input_ids
[written] = pipeline("text-generation", "me/model", **trust)("abcd", max_new_tokens=4, return_tensors=True)
report["written"] = len(written["generated_token_ids"])
filler = pipeline("infilling", "me/model", **trust)
report["filled by the pipeline"] = filler("ab<blank:2>cd", decoding_order="left_to_right")["filled_text"]
report["module of the pipeline"] = type(filler).__module__
report["snapshot"] = sorted(path for path in os.listdir(snapshot) if not path.startswith("."))
"""


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Three models that differ in their weights, an adapter of the second, and rows with their logits."""
    folder = tmp_path_factory.mktemp("saved")
    for seed, name in enumerate(("first", "second", "third")):
        model = tiny_model("two_stream", seed=seed)
        model.save_pretrained(folder / name)
        character_tokenizer([LETTERS]).save_pretrained(folder / name)
    base = tiny_model("two_stream", seed=1)
    adapted = get_peft_model(base, lora_config(base, init_lora_weights=False))
    adapted.save_pretrained(folder / "adapter")
    return folder


def logits_of(model, rows):
    with torch.no_grad():
        return model.eval()(**{name: rows[name] for name in INPUTS}).logits


def test_what_is_pushed_loads_by_name_in_a_clean_process(hub, saved, tmp_path):
    """Also what was pushed before, and not what was being pushed when the connection broke."""
    rows = random_rows("two_stream", 2, 6)
    rows["generation_mask"] = torch.tensor([[False, False, True, True, True, True]] * 2)
    torch.save(rows, tmp_path / "rows")
    mine = hub.environment(tmp_path / "home")
    report = run_clean_process(saved, tmp_path / "rows", "with", PUSH, **mine)
    repository = hub.repositories["me/model"]
    assert len(set(report["commits"])) == 4 and repository.refs == {"main": report["commits"][-1]}
    code = {path.name for path in (saved / "first").glob("*.py")}
    expected = {"config.json", "model.safetensors", "generation_config.json", "tokenizer.json"}
    assert {"modeling_aoarm.py", *code, *expected} <= set(report["files"]["me/model"])
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(report["files"]["me/adapter"])

    hub.broken = "/commit/"
    report["broken"] = run_clean_process(saved, tmp_path / "rows", "with", PUSH_THAT_DIES, **mine)
    hub.broken = None
    assert report["broken"]["error"] and repository.refs == {"main": report["commits"][-1]}
    # The weights had arrived.
    assert (saved / "third" / "model.safetensors").read_bytes() in hub.large_files.values()

    torch.save({**rows, "old revision": report["commits"][0], "token": TOKEN}, tmp_path / "rows")
    somebody = hub.environment(tmp_path / "another home", token=None)
    loaded = run_clean_process("-", tmp_path / "rows", "without", LOAD_BY_NAME, **somebody)
    assert "`trust_remote_code=True`" in loaded["refusal"]
    assert loaded["module"].startswith("transformers_modules.me.model.") and loaded["same body"]
    results = torch.load(tmp_path / "rows.out")
    first, second = (tiny_model("two_stream", seed=seed) for seed in (0, 1))
    adapted = PeftModel.from_pretrained(tiny_model("two_stream", seed=1), saved / "adapter")
    expected = {
        "first": logits_of(first, rows),
        "second": logits_of(second, rows),
        "snapshot": logits_of(second, rows),
        "copy": logits_of(second, rows),
        "adapter": logits_of(adapted, rows),
        "adapter by transformers": logits_of(adapted, rows),
    }
    assert (expected["adapter"] - expected["second"]).abs().max() > 0.1
    for name, logits in expected.items():
        torch.testing.assert_close(results[name], logits, atol=1e-5, rtol=0, msg=name)
    torch.manual_seed(3)
    filled = second.generate(
        rows["input_ids"], generation_mask=rows["generation_mask"], do_sample=True, decoding_order="random"
    )
    assert torch.equal(results["filled"], filled)
    assert loaded["tokens"] == [5, 6, 7, 8] and loaded["written"] == 8
    assert loaded["module of the pipeline"].startswith("transformers_modules.me.model.")
    filled = infill(second, character_tokenizer([LETTERS]), "ab<blank:2>cd", decoding_order="left_to_right")
    assert loaded["filled by the pipeline"] == filled
    # What a process without the package pushes has all its code, and names no other repository.
    assert loaded["module of the copy"].startswith("transformers_modules.me.copy.")
    copy = hub.repositories["me/copy"].commits[hub.repositories["me/copy"].refs["main"]]
    assert code <= set(copy) and json.loads(copy["config.json"])["auto_map"] == first.config.auto_map
    assert loaded["snapshot"] == [name for name in report["files"]["me/model"] if not name.startswith(".")]


def trained_folder(saved, folder):
    """What `examples/pretrain.py` leaves."""
    shutil.copytree(saved / "first", folder)
    card = make_model_card(
        tiny_model("two_stream").config, {}, model_id=str(folder), curve="loss_curve.png", license="mit"
    )
    write_model_card(folder, card)
    shutil.copytree(folder, folder / "checkpoint-7")
    others = (
        "training_args.bin",
        "trainer_state.json",
        "optimizer.pt",
        "checkpoint-7/optimizer.pt",
        "checkpoint-7/merges.txt",
        "notes.txt",
    )
    for name in ("loss_curve.png", "loss_curve.json", "results.json", *others):
        (folder / name).write_text("{}")


def test_the_example_pushes_a_trained_folder_in_one_private_commit(hub, saved, tmp_path):
    folder = tmp_path / "trained"
    trained_folder(saved, folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    mine = hub.environment(tmp_path / "home")
    command = ("examples/push_to_hub.py", folder, "me/trained", "--private", "true")
    process = run_script(*command, from_scratch=True, **mine)
    assert process.returncode == 0, process.stderr
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    repository = hub.repositories["me/trained"]
    assert repository.private and len(repository.commits) == 2
    files = repository.commits[repository.refs["main"]]
    known = ("loss_curve.png", "loss_curve.json", "results.json", "README.md")
    assert set(files) == {".gitattributes", *known, *(path.name for path in (saved / "first").iterdir())}
    assert str(folder) not in files["README.md"].decode() and '"me/trained"' in files["README.md"].decode()
    assert f"{hub.url}/me/trained/commit/{repository.refs['main']}" in process.stdout

    rows = random_rows("two_stream", 2, 6)
    torch.save(rows, tmp_path / "rows")
    snippet = process.stdout[process.stdout.index("from transformers") :]
    program = f"{snippet}\ntorch.save(model(**inputs).logits.detach(), sys.argv[2] + '.out')"
    run_clean_process("-", tmp_path / "rows", "without", program, **hub.environment(tmp_path / "another home"))
    torch.testing.assert_close(torch.load(tmp_path / "rows.out"), logits_of(tiny_model("two_stream"), rows))


PUSH_BY_THE_EXAMPLE = """
import contextlib, io, runpy

main = runpy.run_path(rows["example"])["main"]
report["answers"] = answers = []
for argv in rows["pushes"]:
    try:
        with contextlib.redirect_stdout(io.StringIO()) as output:
            main(argv)
        answers.append(output.getvalue())
    except ValueError as error:
        answers.append(f"ValueError: {error}")
"""


def push_by_the_example(tmp_path, hub, *pushes):
    rows = {**random_rows("two_stream", 2, 6), "example": str(REPOSITORY / "examples" / "push_to_hub.py")}
    torch.save({**rows, "pushes": [[str(word) for word in argv] for argv in pushes]}, tmp_path / "rows")
    mine = hub.environment(tmp_path / "home")
    return run_clean_process("-", tmp_path / "rows", "with", PUSH_BY_THE_EXAMPLE, **mine)["answers"]


def test_the_example_refuses_what_would_not_load_before_it_asks_the_hub(hub, saved, tmp_path):
    cases = {}

    def case(name, message, source="first"):
        cases[name] = message
        return Path(shutil.copytree(saved / source, tmp_path / name))

    (case("no code", "no file named positions_aoarm.py|positions_aoarm.py") / "positions_aoarm.py").unlink()
    (case("no weights", "no file named model.safetensors") / "model.safetensors").unlink()
    weights = case("half of the weights", "does not load") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    weights = case("other weights", "must hold the weights of its config")
    tiny_model("two_stream", num_hidden_layers=2).save_pretrained(tmp_path / "smaller")
    shutil.copy(tmp_path / "smaller" / "model.safetensors", weights)
    character_tokenizer([LETTERS + "xyz"]).save_pretrained(
        case("too large a tokenizer", "ids go up to 25, the model has 23")
    )
    for path in case("no tokenizer", "must hold the model's tokenizer").glob("tokenizer*"):
        path.unlink()
    adapter_config = case("adapter of a folder", "--base_model", "adapter") / "adapter_config.json"
    values = json.loads(adapter_config.read_text())
    adapter_config.write_text(json.dumps(values | {"base_model_name_or_path": str(saved / "second")}))
    pushes = [(tmp_path / name, "me/refused") for name in cases]
    pushes += [(saved / "first", "me/refused", "--revision", "a", "--create_pr", "true")]
    pushes += [(saved / "first", "me/refused", "--base_model", "me/model")]
    cases |= {"both": "--revision must not be given", "base": "--base_model is for adapters"}
    for (name, message), answer in zip(cases.items(), push_by_the_example(tmp_path, hub, *pushes), strict=True):
        assert answer.startswith("ValueError: ") and re.search(message, answer), (name, answer)
    assert not hub.repositories and not hub.log


@pytest.mark.full
def test_the_example_pushes_adapters_branches_and_requests_and_leaves_no_stale_weights(hub, saved, tmp_path):
    folder = tmp_path / "sharded"
    shutil.copytree(saved / "second", folder)
    (folder / "model.safetensors").unlink()
    tiny_model("two_stream", seed=1).save_pretrained(folder, max_shard_size="40KB")
    adapter = Path(shutil.copytree(saved / "adapter", tmp_path / "adapter"))
    values = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(values | {"base_model_name_or_path": str(folder)}))
    card = make_model_card(
        tiny_model("two_stream").config, {}, model_id=str(adapter), base_model=str(folder), adapter=True
    )
    write_model_card(adapter, card)
    incomplete = Path(shutil.copytree(saved / "adapter", tmp_path / "incomplete"))
    weights = load_file(incomplete / "adapter_model.safetensors")
    save_file(dict(list(weights.items())[1:]), incomplete / "adapter_model.safetensors")
    answers = push_by_the_example(
        tmp_path,
        hub,
        (saved / "first", "me/model"),
        (folder, "me/model", "--commit_message", "In shards"),
        (adapter, "me/adapter", "--base_model", "me/model"),
        (saved / "third", "me/model", "--revision", "third"),
        (saved / "third", "me/model", "--create_pr", "true"),
        (saved / "third", "me/model", "--private", "true"),
        (incomplete, "me/incomplete", "--base_model", "me/model"),
        (adapter, "me/elsewhere", "--base_model", "me/nothing"),
    )
    model, adapters = hub.repositories["me/model"], hub.repositories["me/adapter"]
    assert set(model.refs) == {"main", "third", "refs/pr/1"}
    files = {ref: model.commits[oid] for ref, oid in model.refs.items()}
    assert model.messages[model.refs["main"]] == "In shards"
    assert "model.safetensors" not in files["main"] and "model.safetensors.index.json" in files["main"]
    third = (saved / "third" / "model.safetensors").read_bytes()
    for ref in ("third", "refs/pr/1"):
        assert files[ref]["model.safetensors"] == third and "model.safetensors.index.json" not in files[ref]
    assert 'revision="third"' in answers[3]
    assert 'revision="refs/pr/1"' in answers[4] and f"{hub.url}/me/model/discussions/1" in answers[4]
    assert answers[5].startswith("ValueError: --private true") and len(model.commits) == 1 + 2 + 2
    assert "must hold the weights of its adapter, got none for" in answers[6] and "me/nothing" in answers[7]
    assert set(hub.repositories) == {"me/model", "me/adapter"}
    files = adapters.commits[adapters.refs["main"]]
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "me/model"
    # Nothing in it is about this disk.
    assert not [name for name, content in files.items() if str(tmp_path).encode() in content]
    assert 'AutoModelForCausalLM.from_pretrained("me/model"' in answers[2] and '"me/adapter"' in answers[2]
