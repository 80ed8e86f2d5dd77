# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Nothing is lost: killed trainings resume, broken checkpoints are passed over, full disks and misfits are errors."""

import contextlib
import errno
import json
import logging
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from scripts import REPOSITORY, losses, run_script
from test_configuration import pretrain
from test_conversion import source_model
from test_pretrain import TINY
from test_training import CURRICULUM, TOKENIZER, make_trainer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainerState
from transformers.trainer_jit_checkpoint import CheckpointManager
from variants import tiny_model

from modeling_aoarm import AOARMForCausalLM, DataCollatorForAnyOrderLM, infill
from modeling_aoarm.__main__ import main
from modeling_aoarm.data.tokenizers import character_tokenizer
from modeling_aoarm.io import replacing_folder, write_json
from modeling_aoarm.training.checkpoints import (
    LOCK,
    check_checkpoint,
    discard_checkpoints,
    exclusive,
    finish_replacement,
    is_unused,
    replacing_files,
    resolve_checkpoint,
)


SAVING = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}


def loss_curve(trainer):
    return [(log["step"], log["loss"]) for log in trainer.state.log_history if "loss" in log]


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@contextlib.contextmanager
def largest_file(size):
    """No file grows beyond `size` bytes: a disk that is full for large files only, of which the system keeps a record.

    The error is another one than that of a full disk, but comes from the same calls.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def crashes(tmp_path_factory, pytestconfig):
    """Reports of `crashes.py`, made once for each way: with every fourth change, or with all of them."""
    made, step = {}, 1 if pytestconfig.getoption("--all") else 4

    def report(way):
        if way not in made:
            folder = tmp_path_factory.mktemp(way)
            process = run_script("tests/crashes.py", way, folder, step)
            assert process.returncode == 0, process.stderr
            made[way] = json.loads((folder / "report.json").read_text(encoding="utf-8")), folder / "whole"
        return made[way]

    return report


@pytest.mark.parametrize(("way", "points"), [("trainer", 30), ("pretrain", 4)])
def test_a_training_killed_at_any_moment_resumes_from_its_last_complete_checkpoint(way, points, crashes):
    report, _ = crashes(way)
    whole, killed = report["whole"], report["killed"]
    assert len(killed) >= points / report["step"]
    published = {}
    for number, change in enumerate(whole["changes"]):
        if change.startswith("os.rename _incomplete/checkpoint-"):
            published[number] = int(change.rpartition("-")[2])
    for number, resumed in killed.items():
        change = whole["changes"][int(number)]
        last = max((step for other, step in published.items() if other < int(number)), default=0)
        assert resumed["first_step"] == last, change
        for name in ("losses", "evaluations", "figures", "weights"):
            assert resumed[name] == whole[name], (change, name)
        # A checkpoint more is left where it was killed before it deleted the old one.
        assert {name for name in resumed["left"] if name not in whole["left"]} <= {"checkpoint-4"}, change


@pytest.mark.full
def test_two_processes_killed_from_outside_resume_with_the_same_losses(crashes, tmp_path):
    _, whole = crashes("pretrain")

    def launch(*flags):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
        command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        command += ["--main_process_port", str(port), "examples/pretrain.py", *TINY, "--sample_rows", "0"]
        command += ["--output_dir", str(tmp_path), "--per_device_train_batch_size", "4", *flags]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        with open(tmp_path.parent / "output.txt", "w") as output:
            return subprocess.Popen(
                command, cwd=REPOSITORY, env=environment, stdout=output, stderr=output, start_new_session=True
            )

    process = launch()
    while not (tmp_path / "checkpoint-6").exists() and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "results.json").exists()
    resumed = launch("--resume_from_checkpoint", "true")
    assert resumed.wait(300) == 0, (tmp_path.parent / "output.txt").read_text()
    assert json.loads((tmp_path / "results.json").read_text())["training"]["first_step"] >= 6
    for two, one in zip(losses(tmp_path), losses(whole), strict=True):
        assert two == pytest.approx(one, abs=2e-5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Checkpoints 2 and 4 of a training with averaged weights, and its loss curve."""
    folder = tmp_path_factory.mktemp("trained")
    trainer, _ = make_trainer(folder, ema=0.8, order=CURRICULUM, **SAVING)
    trainer.train()
    return folder, loss_curve(trainer)


@pytest.fixture
def folder(trained, tmp_path):
    for path, content in contents(trained[0]).items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    return tmp_path


def shorten(path):
    path.write_bytes(path.read_bytes()[:-7])


def split_weights(checkpoint):
    model = AOARMForCausalLM.from_pretrained(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    model.save_pretrained(checkpoint, max_shard_size="40KB")
    return sorted(checkpoint.glob("model-*.safetensors"))


DAMAGES = {
    "model.safetensors is damaged": lambda folder: shorten(folder / "model.safetensors"),
    "model.safetensors is missing": lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
    "model-00002-of-.*.safetensors is missing": lambda folder: split_weights(folder)[1].unlink(),
    "model-00002-of-.*.safetensors is damaged": lambda folder: shorten(split_weights(folder)[1]),
    "index.json is damaged": lambda folder: split_weights(folder) and shorten(folder / "model.safetensors.index.json"),
    "ema.safetensors is missing": lambda folder: (folder / "ema.safetensors").unlink(),
    "ema.safetensors is damaged": lambda folder: (folder / "ema.safetensors").write_bytes(b""),
    "optimizer.pt is missing": lambda folder: (folder / "optimizer.pt").unlink(),
    "scheduler.pt is missing": lambda folder: (folder / "scheduler.pt").unlink(),
    "rng_state\\*.pth is missing": lambda folder: (folder / "rng_state.pth").unlink(),
    "trainer_state.json is missing": lambda folder: (folder / "trainer_state.json").unlink(),
    "trainer_state.json is damaged": lambda folder: shorten(folder / "trainer_state.json"),
    "trainer_state.json is .*another version.*'novel'": lambda folder: write_json(
        folder / "trainer_state.json", json.loads((folder / "trainer_state.json").read_text()) | {"novel": 1}
    ),
}


@pytest.mark.parametrize("problem", DAMAGES)
def test_damaged_checkpoints_are_named_and_passed_over(problem, folder, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("modeling_aoarm"), "propagate", True)
    DAMAGES[problem](folder / "checkpoint-4")
    args = make_trainer(folder, **SAVING)[0].args
    message = f"{folder}/checkpoint-4 is not a complete checkpoint: .*{problem}"
    with pytest.raises(ValueError, match=f"resume_from_checkpoint must be .*{message}"):
        resolve_checkpoint(args, str(folder / "checkpoint-4"), ["ema.safetensors"])
    assert resolve_checkpoint(args, True, ["ema.safetensors"]) == str(folder / "checkpoint-2")
    [warning] = [record.getMessage() for record in caplog.records if "Ignored" in record.getMessage()]
    pytest.raises(ValueError, check_checkpoint, folder / "checkpoint-4", required=["ema.safetensors"])
    assert f"{folder}/checkpoint-4 is not a complete checkpoint" in warning
    (folder / "checkpoint-2" / "trainer_state.json").unlink()
    with pytest.raises(ValueError, match=f"found none.*{message}.*checkpoint-2.*trainer_state.json is missing"):
        resolve_checkpoint(args, True, ["ema.safetensors"])


def test_nodes_go_back_to_the_last_checkpoint_that_all_of_them_have(folder, monkeypatch):
    args = make_trainer(folder, **SAVING)[0].args
    assert resolve_checkpoint(args, True) == str(folder / "checkpoint-4")
    gather_with_another_node = "modeling_aoarm.training.checkpoints.gather_object"
    monkeypatch.setattr(gather_with_another_node, lambda reports: [*reports, {2: 2}])
    assert resolve_checkpoint(args, True) == str(folder / "checkpoint-2")
    monkeypatch.setattr(gather_with_another_node, lambda reports: [*reports, {2: "damaged", 6: 6}])
    with pytest.raises(ValueError, match="checkpoint-6 is missing on some node.*checkpoint-4 is missing.*damaged"):
        resolve_checkpoint(args, True)


def test_resuming_from_the_last_complete_one_is_the_uninterrupted_run(folder, trained):
    shorten(folder / "checkpoint-4" / "ema.safetensors")
    trainer, recorder = make_trainer(folder, ema=0.8, order=CURRICULUM, **SAVING)
    trainer.train(resume_from_checkpoint=True)
    assert loss_curve(trainer) == trained[1] and len(recorder.weights) == 2
    assert check_checkpoint(folder / "checkpoint-4") == 4
    assert contents(folder / "checkpoint-4")[Path("ema.safetensors")] == (
        (trained[0] / "checkpoint-4" / "ema.safetensors").read_bytes()
    )


def test_a_finished_training_is_finished_without_another_step(tmp_path):
    # In the middle of an epoch, where Trainer would go on.
    settings = {**SAVING, "max_steps": 3, "ema": 0.8}
    whole, _ = make_trainer(tmp_path, **settings)
    whole.train()
    trainer, recorder = make_trainer(tmp_path, **settings)
    trainer.train(resume_from_checkpoint=True)
    assert recorder.weights == [] and trainer.state.global_step == 3 and loss_curve(trainer) == loss_curve(whole)
    for name, weight in trainer.model.named_parameters():
        assert torch.equal(weight, dict(whole.model.named_parameters())[name])
    trainer.args.max_steps = 2
    with pytest.raises(ValueError, match="checkpoint-3 is at step 3, which is beyond max_steps=2"):
        trainer.train(resume_from_checkpoint=True)


def test_checkpoints_of_other_layouts_are_complete(folder, tmp_path_factory):
    checkpoint = folder / "checkpoint-4"
    split_weights(checkpoint)
    assert check_checkpoint(checkpoint) == 4
    # Shards of FSDP, then of DeepSpeed.
    for path in (*checkpoint.glob("model*"), checkpoint / "optimizer.pt"):
        path.unlink()
    for name in ("pytorch_model_fsdp_0", "optimizer_0"):
        with pytest.raises(ValueError, match="is missing"):
            check_checkpoint(checkpoint)
        (checkpoint / name).mkdir()
    assert check_checkpoint(checkpoint) == 4
    for path in (*checkpoint.glob("*_0"), checkpoint / "scheduler.pt"):
        path.rmdir() if path.is_dir() else path.unlink()
    (checkpoint / "global_step4").mkdir()
    assert check_checkpoint(checkpoint) == 4
    # Adapters, resumed.
    curves = []
    for resume in (False, str(tmp_path_factory.getbasetemp() / "adapters" / "checkpoint-2")):
        adapted, _ = make_trainer(tmp_path_factory.getbasetemp() / "adapters", ema=0.8, **SAVING)
        torch.manual_seed(0)
        model = get_peft_model(adapted.model, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
        trainer, _ = make_trainer(tmp_path_factory.getbasetemp() / "adapters", ema=0.8, model=model, **SAVING)
        trainer.train(resume_from_checkpoint=resume)
        curves.append(loss_curve(trainer))
    assert curves[0] == curves[1]


def test_weights_alone_are_a_checkpoint_where_only_they_were_asked_for(tmp_path):
    make_trainer(tmp_path, save_only_model=True, **SAVING)[0].train()
    trainer, _ = make_trainer(tmp_path, **SAVING)
    with pytest.raises(ValueError, match="optimizer.pt is missing"):
        trainer.train(resume_from_checkpoint=True)
    trainer, recorder = make_trainer(tmp_path, save_only_model=True, **SAVING)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert len(recorder.weights) == 2


def test_paths_of_best_checkpoints_are_their_own(tmp_path):
    settings = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "save_strategy": "steps", "max_steps": 6}
    # The third is the best.
    values = iter([5.0, 3.0, 1.0, 2.0, 2.0, 2.0])
    trainer, recorder = make_trainer(tmp_path, load_best_model_at_end=True, save_total_limit=1, **settings)

    def evaluate(*args, **kwargs):
        metrics = {"eval_loss": next(values)}
        trainer.control = trainer.callback_handler.on_evaluate(trainer.args, trainer.state, trainer.control, metrics)
        return metrics

    trainer.evaluate = evaluate
    trainer.train()
    best = tmp_path / "checkpoint-3"
    assert trainer.state.best_model_checkpoint == str(best) and check_checkpoint(best) == 3
    for name, weight in trainer.model.named_parameters():
        assert torch.equal(weight, recorder.weights[2][name])
    assert TrainerState.load_from_json(str(best / "trainer_state.json")).best_model_checkpoint == str(best)


def test_what_is_pushed_has_its_name_and_is_complete(tmp_path, monkeypatch):
    pushed = []
    monkeypatch.setattr(
        Trainer, "_push_from_checkpoint", lambda self, path: pushed.append((path, check_checkpoint(path)))
    )
    trainer, _ = make_trainer(tmp_path, save_total_limit=1, **SAVING)
    trainer.args.push_to_hub = True
    trainer._finish_current_push = lambda: None
    trainer.train()
    assert pushed == [(str(tmp_path / f"checkpoint-{step}"), step) for step in (2, 4)]


def test_a_checkpoint_on_a_signal_is_complete(tmp_path):
    """`enable_jit_checkpoint` of `TrainingArguments`, which puts a mark into the checkpoint's folder first."""

    class Signalled(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                CheckpointManager(trainer).execute_jit_checkpoint()

    trainer, _ = make_trainer(tmp_path, ema=0.8, callbacks=[Signalled()])
    trainer.train()
    assert check_checkpoint(tmp_path / "checkpoint-3", required=["ema.safetensors"]) == 3
    assert not (tmp_path / "_incomplete").exists()


class Full(TrainerCallback):
    """From a step on the disk takes only small files."""

    def __init__(self, step, size):
        self.step, self.limit = step, largest_file(size)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.limit.__enter__()


@pytest.mark.parametrize(
    ("size", "library"),
    [
        pytest.param(20_000, "File too large", marks=pytest.mark.full, id="code"),
        pytest.param(100_000, "serializing", id="safetensors"),
        pytest.param(150_000, "inline_container", marks=pytest.mark.full, id="torch"),
    ],
)
def test_a_full_disk_while_saving_leaves_the_checkpoint_before(size, library, trained, tmp_path):
    full = Full(3, size)
    trainer, _ = make_trainer(tmp_path, ema=0.8, order=CURRICULUM, callbacks=[full], save_total_limit=1, **SAVING)
    try:
        with pytest.raises(
            OSError, match=f"(?s){tmp_path}/checkpoint-4 could not be written.*bytes are free.*{library}"
        ):
            trainer.train()
    finally:
        full.limit.__exit__(None, None, None)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-2", LOCK}
    assert check_checkpoint(tmp_path / "checkpoint-2") == 2
    resumed, _ = make_trainer(tmp_path, ema=0.8, order=CURRICULUM, save_total_limit=1, **SAVING)
    resumed.train(resume_from_checkpoint=True)
    assert loss_curve(resumed) == trained[1]
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-4", LOCK}


def test_the_last_files_of_a_checkpoint_count_too(tmp_path, monkeypatch):
    trainer, _ = make_trainer(tmp_path, ema=0.8, **SAVING)

    def fail(checkpoint):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(trainer.ema, "save", fail)
    with pytest.raises(OSError, match="checkpoint-2 could not be written.*No space left") as error:
        trainer.train()
    assert error.value.errno == errno.ENOSPC and {path.name for path in tmp_path.iterdir()} == {LOCK}
    assert is_unused(tmp_path)


def test_a_full_disk_leaves_the_model_and_the_figures_before(tmp_path):
    trainer, _ = make_trainer(tmp_path)
    trainer.save_model()
    trainer.save_state()
    write_json(tmp_path / "results.json", {"one": 1})
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"left by a larger model")
    before = contents(tmp_path)
    with torch.no_grad():
        trainer.model.lm_head.weight.zero_()
    with largest_file(100_000), pytest.raises(OSError, match=f"{tmp_path} could not be written"):
        trainer.save_model()
    with largest_file(10), pytest.raises(OSError, match="results.json could not be written"):
        write_json(tmp_path / "results.json", {"one": 2, "two": 2})
    with largest_file(10), pytest.raises(OSError, match="trainer_state.json could not be written"):
        trainer.save_state()
    assert contents(tmp_path) == before
    trainer.save_model()
    assert not load_file(tmp_path / "model.safetensors")["lm_head.weight"].any()
    assert not (tmp_path / "model-00001-of-00002.safetensors").exists()


class Killed(BaseException):
    pass


class KilledAt:
    """From change number `fatal` in a folder on, every change fails: nothing is cleaned up, as after SIGKILL."""

    def __init__(self):
        self.folder, self.changes, self.fatal = None, 0, None
        sys.addaudithook(self.on_event)

    def on_event(self, event, arguments):
        is_change = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")
        if self.folder is None or not is_change:
            return
        if self.changes == self.fatal:
            raise Killed
        self.changes += 1

    @contextlib.contextmanager
    def armed(self, folder, fatal):
        self.folder, self.changes, self.fatal = folder, 0, fatal
        try:
            yield
        except Killed:
            pass
        finally:
            self.folder = None


@pytest.fixture(scope="module")
def killed_at():
    return KilledAt()


def save_model(folder, letters, max_shard_size):
    tokenizer = character_tokenizer([letters])
    tiny_model("two_stream", vocab_size=len(tokenizer)).save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)


def save_adapter(folder, letters, rank):
    model = get_peft_model(tiny_model("two_stream"), LoraConfig(r=rank, target_modules=["q_proj"]))
    model.save_pretrained(folder)
    (folder / "second").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(folder / name, folder / "second")
    character_tokenizer([letters]).save_pretrained(folder)


def loaded(folder):
    """What loads from a folder: shapes of a model or of adapters, and the size of the vocabulary."""
    found = {}
    if any(folder.rglob("adapter_model.safetensors")):
        for name in (".", "second"):
            with contextlib.suppress(OSError, ValueError):
                config = LoraConfig.from_pretrained(folder / name)
                tensors = load_file(folder / name / "adapter_model.safetensors").values()
                found[name] = config.r, max(min(tensor.shape) for tensor in tensors)
    else:
        with contextlib.suppress(OSError):
            found["model"] = AOARMForCausalLM.from_pretrained(folder).lm_head.weight.shape
    # The library has several errors for it.
    with contextlib.suppress(Exception):
        found["tokenizer"] = len(AutoTokenizer.from_pretrained(folder)), folder.joinpath("config.json").exists()
    return found


@pytest.mark.parametrize(
    ("save", "old", "new"),
    [
        (save_model, ("abc", "40KB"), ("abcdefg", "1GB")),
        (save_model, ("abcdefg", "1GB"), ("abc", "40KB")),
        (save_model, ("abc", "20KB"), ("abcdefg", "20KB")),
        (save_adapter, ("abc", 2), ("abcdefg", 4)),
    ],
    ids=["shards-file", "file-shards", "shards-shards", "adapter"],
)
def test_a_model_that_is_replaced_is_the_old_one_or_the_new_one(save, old, new, killed_at, tmp_path):
    save(tmp_path / "old", *old)
    save(tmp_path / "new", *new)
    before, after = loaded(tmp_path / "old"), loaded(tmp_path / "new")
    seen = []
    for fatal in range(200):
        folder = tmp_path / str(fatal)
        shutil.copytree(tmp_path / "old", folder)
        with killed_at.armed(folder, fatal), replacing_files(folder) as temporary:
            shutil.copytree(tmp_path / "new", temporary, dirs_exist_ok=True)
        was_killed = killed_at.changes == fatal
        found = loaded(folder)
        assert found in (before, after) or found.items() < after.items() or found.items() < before.items(), fatal
        seen.append("old" if found == before else "new" if found == after else "neither")
        is_new = found == after or (folder / "_replacement").is_dir()
        # The next writer finishes it, and may be killed as well.
        with killed_at.armed(folder, fatal % 3):
            finish_replacement(folder)
        with exclusive(folder):
            assert loaded(folder) == (after if is_new else before), fatal
        weights, expected = (
            {path.relative_to(place) for path in place.rglob("*.safetensors*")}
            for place in (folder, tmp_path / ("new" if is_new else "old"))
        )
        assert weights == expected, fatal
        if not was_killed:
            break
    order = ["old", "neither", "new"]
    assert {*seen} == {*order} and seen == sorted(seen, key=order.index)


@pytest.mark.usefixtures("restored_logging")
def test_a_full_disk_leaves_nothing_of_a_conversion(tmp_path, capsys):
    source_model("llama", vocab_size=len(TOKENIZER)).save_pretrained(tmp_path / "source")
    TOKENIZER.save_pretrained(tmp_path / "source")
    capsys.readouterr()
    # The code, which is written first, fits; the weights do not.
    code = max(path.stat().st_size for path in (REPOSITORY / "modeling_aoarm").glob("*.py"))
    assert code < (tmp_path / "source" / "model.safetensors").stat().st_size
    with largest_file(code):
        assert main(["convert", str(tmp_path / "source"), str(tmp_path / "new")]) == 2
    assert capsys.readouterr().err.startswith(
        f"python -m modeling_aoarm convert: error: {tmp_path}/new could not be written"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.fixture
def saved(tmp_path):
    tiny_model("two_stream").save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("loader", [AOARMForCausalLM, AutoModelForCausalLM])
def test_damaged_weights_are_an_error_that_names_their_folder(loader, saved):
    shorten(saved / "model.safetensors")
    with pytest.raises(OSError, match=f"Weights of {saved} are truncated or damaged"):
        loader.from_pretrained(saved)
    (saved / "model.safetensors").unlink()
    tiny_model("two_stream").save_pretrained(saved, max_shard_size="40KB")
    shards = sorted(saved.glob("model-*"))
    shorten(saved / "model.safetensors.index.json")
    with pytest.raises(OSError, match=f"Weights of {saved} are truncated or damaged"):
        loader.from_pretrained(saved)
    tiny_model("two_stream").save_pretrained(saved, max_shard_size="40KB")
    shards[0].unlink()
    with pytest.raises(OSError, match=f"{shards[0].name}"):
        loader.from_pretrained(saved)


@pytest.mark.parametrize("loader", [AOARMForCausalLM, AutoModelForCausalLM])
def test_models_are_loaded_from_safetensors_only(loader, saved, monkeypatch):
    def unpickle(*args, **kwargs):
        raise AssertionError("unpickled")

    monkeypatch.setattr(torch, "load", unpickle)
    torch.save(tiny_model("two_stream").state_dict(), saved / "pytorch_model.bin")
    loader.from_pretrained(saved)
    (saved / "model.safetensors").unlink()
    with pytest.raises(OSError, match="no file named model.safetensors"):
        loader.from_pretrained(saved)
    with pytest.raises(ValueError, match="`use_safetensors` must not be False"):
        loader.from_pretrained(saved, use_safetensors=False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attention_variant": "four_stream"}, "attention_variant.*two_stream.*got four_stream"),
        ({"rope_parameters": {"rope_type": "novel", "rope_theta": 1e4}}, "rope_type.*must be one of.*got 'novel'"),
    ],
)
def test_configs_of_the_future_are_refused_by_field_and_value(fields, message, saved):
    config = json.loads((saved / "config.json").read_text()) | {"transformers_version": "99.0.0"}
    (saved / "config.json").write_text(json.dumps(config | fields))
    for loader in (AutoConfig, AutoModelForCausalLM):
        with pytest.raises(StrictDataclassError, match=f"(?s){message}"):
            loader.from_pretrained(saved)


def test_tokenizers_that_do_not_fit_the_vocabulary_are_refused(tmp_path):
    larger = character_tokenizer(["abcdefghijklmnopqrstuvwxyz"])
    model = tiny_model("two_stream")
    assert len(TOKENIZER) == 23 and len(larger) == 31
    # The first letters have the same ids in both.
    assert infill(model, larger, "abc<blank>d").startswith("abc")
    message = r"vocab_size=23, got one of 31 tokens that gives the id 30 \('z'\).*resize_token_embeddings\(31\)"
    for text in ("z<blank>", "<blank>z", ["ab<blank>", "abz"]):
        with pytest.raises(ValueError, match=message):
            infill(model, larger, text)

    collator = DataCollatorForAnyOrderLM(larger, vocab_size=23)
    with pytest.raises(ValueError, match="vocab_size=23, got 30 in example 7.*has 31 tokens"):
        collator([{"input_ids": [5, 30], "example_index": 7}])
    collator([{"input_ids": [5, 22], "example_index": 7}])

    trainer, recorder = make_trainer(tmp_path)
    trainer.data_collator.tokenizer = larger
    with pytest.raises(ValueError, match=r"vocab_size=23, got 31 tokens.*resize_token_embeddings\(31\)"):
        trainer.train()
    trainer.model.resize_token_embeddings(31)
    trainer.train()
    trainer.data_collator.tokenizer = TOKENIZER
    trainer.train_dataset = trainer.train_dataset.map(lambda example: {"input_ids": [*example["input_ids"], 31]})
    with pytest.raises(ValueError, match="vocab_size=31, got 31 in example"):
        trainer.train()


HOLD = (
    "import fcntl, sys; file = open(sys.argv[1], 'a'); fcntl.flock(file, fcntl.LOCK_EX); print(1, flush=True); input()"
)


def test_two_trainings_do_not_write_into_one_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("modeling_aoarm.training.checkpoints.LOCK_SECONDS", 0.1)
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / LOCK)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    other.stdout.readline()
    trainer, recorder = make_trainer(tmp_path, **SAVING)
    try:
        with pytest.raises(ValueError, match=f"no other run is writing to, got {tmp_path}"):
            trainer.train()
    finally:
        other.kill()
        other.communicate()
    assert recorder.weights == []
    with exclusive(tmp_path):
        # The same process may.
        trainer.train()
    assert len(recorder.weights) == 4


def test_a_disk_without_locks_is_no_reason_not_to_train(tmp_path, monkeypatch):
    def refuse(self):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    trainer, recorder = make_trainer(tmp_path, **SAVING)
    trainer.train()
    assert len(recorder.weights) == 4


def test_a_training_leaves_the_folders_of_others_alone(tmp_path):
    """A conversion that was killed, or is running, has a folder beside its destination."""
    conversion, archive = tmp_path / ".converted.123.tmp", tmp_path / "checkpoint-2.zip"
    conversion.mkdir()
    (conversion / "config.json").touch()
    archive.touch()
    (tmp_path / ".results.json.123.tmp").touch()
    (tmp_path / "checkpoint-9").mkdir()
    trainer, recorder = make_trainer(tmp_path, **SAVING)
    discard_checkpoints(trainer.args)
    assert {path.name for path in tmp_path.iterdir()} == {conversion.name, archive.name, LOCK}
    trainer.train()
    assert len(recorder.weights) == 4 and (conversion / "config.json").exists() and archive.exists()


def test_a_folder_of_a_killed_process_with_the_same_number_is_replaced(tmp_path):
    left = tmp_path / f".new.{os.getpid()}.tmp"
    left.mkdir()
    (left / "half").touch()
    (tmp_path / "new").mkdir()
    write_a_folder(tmp_path / "new")
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "file"]


def test_overwriting_deletes_nothing_before_the_arguments_are_checked(folder):
    before = contents(folder)
    flags = ["--output_dir", str(folder), "--overwrite_output_dir", "true", "--load_best_model_at_end", "true"]
    with pytest.raises(ValueError, match="load_best_model_at_end=True"):
        pretrain.main([str(REPOSITORY / TINY[0]), *TINY[1:], *flags])
    assert contents(folder) == before


@pytest.mark.parametrize("replace", [write_json, lambda path, value: write_a_folder(path)])
def test_a_disk_that_tells_only_in_the_end_that_it_is_full_is_heard(replace, tmp_path, monkeypatch):
    """Systems that allocate late accept writes, and fail when the file has to be on the disk."""

    def refuse(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="could not be written, what was there before is as it was") as caught:
        replace(tmp_path / "new", 1)
    assert caught.value.errno == errno.ENOSPC and not list(tmp_path.iterdir())


def write_a_folder(path):
    with replacing_folder(path) as folder:
        (folder / "file").write_text("1")
