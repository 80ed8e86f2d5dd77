# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Trainings that are killed at one change of their folder after the other, and resumed.

    python tests/crashes.py (trainer | pretrain) FOLDER [STEP]

writes FOLDER/report.json: the run that was left alone, and for each change before which a run was killed the resumed
one. With STEP, only before every STEP-th change and before renames. A program of its own, because it
forks: that is safe where nothing has computed yet.
"""

import hashlib
import json
import os
import re
import shutil
import signal
import sys
import traceback
from pathlib import Path

import torch
import transformers.modeling_utils
from scripts import REPOSITORY
from test_configuration import pretrain
from test_training import CURRICULUM, make_trainer

from modeling_aoarm.training import callbacks


CHANGES = ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree")
PRETRAIN = [str(REPOSITORY / "configuration" / "recipes" / "pretrain_tiny.yaml"), "--cpu_threads", "1"]
PRETRAIN += ["--disable_tqdm", "true", "--use_cpu", "true", "--sample_rows", "0"]


class Killer:
    """Records what changes in a folder, and kills this process before change number `fatal`.

    Libraries written in other languages report no changes: for them it is a change to have written half of a file.
    """

    def __init__(self, folder: Path, fatal: int | None):
        self.folder, self.fatal = str(folder) + "/", fatal
        self.changes = []
        sys.addaudithook(self.on_event)
        torch.save = self.halving(torch.save)
        for module, name in (
            (transformers.modeling_utils, "safe_save_file"),
            (callbacks, "save_file"),
        ):
            setattr(module, name, self.halving(getattr(module, name)))

    def on_event(self, event, arguments):
        if event not in CHANGES or not str(arguments[0]).startswith(self.folder):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        self.add(f"{event} {str(arguments[0]).removeprefix(self.folder)}")

    def halving(self, save):
        def saving(value, path, *args, **kwargs):
            save(value, path, *args, **kwargs)
            if str(path).startswith(self.folder):
                if len(self.changes) == self.fatal:
                    os.truncate(path, os.path.getsize(path) // 2)
                self.add(f"half {str(path).removeprefix(self.folder)}")

        return saving

    def add(self, change):
        if len(self.changes) == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        # The process's number is in names of temporary files.
        self.changes.append(re.sub(r"\.\d+\.tmp", ".tmp", change))


def forked(run, *arguments) -> int:
    """The signal that ended a forked process, or 0 where it ended well."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try:
            run(*arguments)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit(f"{run.__name__}{arguments} failed")
    return os.WTERMSIG(status)


def with_trainer(folder: Path, results: Path, fatal: int | None, resume: bool) -> None:
    killer = Killer(folder, fatal)
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}
    trainer, recorder = make_trainer(folder, ema=0.8, order=CURRICULUM, **settings)
    try:
        trainer.train(resume_from_checkpoint=resume)
    except ValueError as error:
        if "found none. Start the training anew" not in str(error):
            raise
        trainer.train()
    trainer.save_model()
    trainer.save_state()
    write(results, killer, folder, trainer.state.log_history, 6 - len(recorder.weights))


def with_pretrain(folder: Path, results: Path, fatal: int | None, resume: bool) -> None:
    killer = Killer(folder, fatal)
    # Killed before its first checkpoint it starts again as it was started.
    flags = ["--resume_from_checkpoint", "true"] if resume and any(folder.glob("checkpoint-*")) else []
    pretrain.main([*PRETRAIN, "--output_dir", str(folder), *flags])
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    figures = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    write(results, killer, folder, state["log_history"], figures["training"]["first_step"], figures["any_order"])


def write(results: Path, killer: Killer, folder: Path, log_history: list, first_step: int, figures=None) -> None:
    record = {
        "changes": list(killer.changes),
        "first_step": first_step,
        "losses": [[log["step"], log["loss"]] for log in log_history if "loss" in log],
        "evaluations": [[log["step"], log["eval_loss"]] for log in log_history if "eval_loss" in log],
        "figures": figures,
        "weights": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        "left": sorted(path.name for path in folder.iterdir()),
    }
    results.write_text(json.dumps(record), encoding="utf-8")


def chosen(changes: list[str], way: str) -> list[int]:
    """Numbers of the changes before which to kill: those after which a resumed run could find something else."""
    if way == "pretrain":
        wanted = ["os.rename _incomplete/checkpoint-6", "half _incomplete/checkpoint-12/optimizer.pt"]
        wanted += ["os.rename _replacement/model.safetensors", "os.rename .results.json.tmp"]
        return [changes.index(change) for change in wanted]
    published = [changes.index(f"os.rename _incomplete/checkpoint-{step}") for step in (2, 4, 6)]
    # All of the second checkpoint, with the end of the first one; the end of the last one and all of the model.
    numbers = [*range(published[0] - 1, published[1] + 4), *range(published[2] - 1, len(changes))]
    # Copies of code are as good as one, and so are folders that are made again.
    numbers = [number for number in numbers if not changes[number].endswith(".py")]
    return [number for number in numbers if number == changes.index(changes[number])]


def main(way: str, folder: Path, step: int = 1) -> None:
    torch.set_num_threads(1)
    run = {"trainer": with_trainer, "pretrain": with_pretrain}[way]
    forked(run, folder / "whole", folder / "whole.json", None, False)
    whole = json.loads((folder / "whole.json").read_text(encoding="utf-8"))
    killed = {}
    for index, number in enumerate(chosen(whole["changes"], way)):
        if index % step and not whole["changes"][number].startswith("os.rename"):
            continue
        place, results = folder / "killed", folder / "killed.json"
        ended_by = forked(run, place, results, number, False)
        if ended_by == signal.SIGKILL:
            forked(run, place, results, None, True)
            killed[number] = json.loads(results.read_text(encoding="utf-8"))
            results.unlink()
        shutil.rmtree(place)
    (folder / "report.json").write_text(json.dumps({"whole": whole, "killed": killed, "step": step}), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))
