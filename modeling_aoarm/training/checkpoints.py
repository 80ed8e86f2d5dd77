# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Folders that a training writes: complete under their own names or not there, and the checkpoint to go on from.

What is being written lies in the folder `_incomplete` of the output folder, until it is complete. A run that is killed
leaves it there; nothing reads it, and the next run removes it.

A model lies in the output folder itself, beside checkpoints and reports, so it cannot be replaced by one rename. A
complete new model is renamed to `_replacement`. Then the old weights are removed, the new files are moved in, and the
file without which nothing loads comes last. A run that is killed in between leaves a folder that does not load, and the
next run that writes to it moves the rest in.
"""

import contextlib
import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import gather_object
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from transformers import TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

from ..io import flush, naming_disk_errors, reaching_disk


logger = logging.get_logger(__name__)

# The library does not push names that begin with an underscore to the Hub.
INCOMPLETE = "_incomplete"
REPLACEMENT = "_replacement"
# Without these files a tokenizer, an adapter or a model does not load. (A model's class loads without `config.json`.)
ENTRIES = ("tokenizer.json", "adapter_config.json", "model.safetensors", "model.safetensors.index.json")
LOCK = "_training.lock"
# A lock outlives a killed run as long as its data loader's workers, which look every five seconds.
LOCK_SECONDS = 10.0

# One of each group is in every checkpoint, with DeepSpeed (`global_step*`), FSDP, adapters or neither.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
    "*/adapter_model.safetensors",
    "pytorch_model_fsdp*",
    "global_step*",
)
RESUME_STATE = (("optimizer.pt", "*optimizer*", "global_step*"), ("scheduler.pt", "global_step*"), ("rng_state*.pth",))
# What `torch.save` writes are zip archives, whose table of contents is at the end.
ARCHIVES = (
    "*optimizer*",
    "scheduler.pt",
    "scaler.pt",
    "rng_state*.pth",
    "pytorch_model_fsdp*.bin",
    "global_step*/*.pt",
)
# The library's own sign of a checkpoint that a signal has begun.
SENTINEL = "checkpoint-is-incomplete.txt"


def check_checkpoint(folder: str | os.PathLike, *, weights_only: bool = False, required: Sequence[str] = ()) -> int:
    """Checks that a checkpoint of `Trainer` is complete: names, headers and sizes. No weights or states are read.

    Damage inside a file of the right size is not found.

    Args:
        folder: the checkpoint.
        weights_only: whether states of optimiser, schedule and random numbers may be missing (`save_only_model`).
        required: names of further files that have to be there.

    Returns:
        Its optimiser step.

    Raises:
        ValueError: it is not complete; the message names the file.
    """
    folder = Path(folder)

    def refuse(file: str | os.PathLike, reason: object):
        raise ValueError(f"{folder} is not a complete checkpoint: {file} {reason}.")

    if (folder / SENTINEL).exists():
        refuse(SENTINEL, "is there, so saving was interrupted")
    groups = ((TRAINER_STATE_NAME,), WEIGHTS, *(() if weights_only else RESUME_STATE), *((name,) for name in required))
    for group in groups:
        if not any(any(folder.glob(pattern)) for pattern in group):
            refuse(group[0], "is missing")
    for index in folder.rglob("*.safetensors.index.json"):
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            refuse(index.relative_to(folder), f"is damaged ({error!r})")
        for shard in sorted(shards):
            if not index.with_name(shard).is_file():
                refuse(index.with_name(shard).relative_to(folder), "is missing")
    for file in folder.rglob("*.safetensors"):
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            refuse(file.relative_to(folder), f"is damaged ({error})")
    for file in {file for pattern in ARCHIVES for file in folder.glob(pattern) if file.is_file()}:
        try:
            with zipfile.ZipFile(file):
                pass
        except (zipfile.BadZipFile, OSError) as error:
            refuse(file.name, f"is damaged ({error})")
    # Sharded states of FSDP: their table of contents is written last.
    for shards in (path for pattern in ("pytorch_model_fsdp_*", "optimizer_*") for path in folder.glob(pattern)):
        if shards.is_dir() and not (shards / ".metadata").is_file():
            refuse(f"{shards.name}/.metadata", "is missing")
    try:
        return int(TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME)).global_step)
    except (ValueError, TypeError) as error:
        refuse(TRAINER_STATE_NAME, f"is damaged, or of another version of transformers ({error})")


def resolve_checkpoint(
    args: TrainingArguments, resume_from_checkpoint: str | bool | None, required: Sequence[str] = ()
) -> str | None:
    """The checkpoint that a training goes on from, the same in all processes, which all have to call this.

    Args:
        args: of the training.
        resume_from_checkpoint: a checkpoint's folder; True for the last one in `args.output_dir` that is complete (on
            every node), with a warning for each one after it; None or False for a new training.
        required: names of files that have to be there besides those of `Trainer`.

    Raises:
        ValueError: the folder is not a complete checkpoint, there is none in the output folder (the message names what
            is missing or damaged), or it is further than `args.max_steps`.
    """
    if resume_from_checkpoint is None or resume_from_checkpoint is False:
        return None
    if resume_from_checkpoint is True:
        folders = _checkpoints(args.output_dir)
    else:
        folders = {0: Path(resume_from_checkpoint)}
    # One process of each node looks at the files: what it finds is a step or what is wrong.
    is_looking = args.local_process_index == 0
    checked: dict[int, int | str] = {}

    def last_complete(bound: int) -> int:
        for number in sorted((number for number in folders if number <= bound), reverse=True):
            if number not in checked:
                try:
                    checked[number] = check_checkpoint(
                        folders[number], weights_only=args.save_only_model, required=required
                    )
                except ValueError as error:
                    checked[number] = str(error)
            if isinstance(checked[number], int):
                return number
        return -1

    number, agreed = max(folders, default=-1), False
    while not agreed:
        # Where nodes find another last one, they go back to the earlier.
        found = gather_object([last_complete(number)] if is_looking else [])
        number, agreed = min(found), len(set(found)) == 1
    wrong = [found for found in checked.values() if isinstance(found, str)]
    problems = list(dict.fromkeys(gather_object(wrong)))
    if number < 0 and resume_from_checkpoint is not True:
        raise ValueError(f"resume_from_checkpoint must be True or a complete checkpoint: {' '.join(problems)}")
    if number < 0:
        raise ValueError(
            f"resume_from_checkpoint=True needs a complete checkpoint in {args.output_dir}, found none. "
            + (" ".join(problems) or "Start the training anew.")
        )
    if args.process_index == 0:
        for problem in problems:
            logger.warning("Ignored: %s", problem)
    [step, *_] = gather_object([checked[number]] if is_looking else [])
    if 0 < args.max_steps < step:
        raise ValueError(f"{folders[number]} is at step {step}, which is beyond max_steps={args.max_steps}.")
    return str(folders[number])


def starting_checkpoint(
    args: TrainingArguments, overwrite_output_dir: bool, required: Sequence[str] = ()
) -> str | None:
    """What `--resume_from_checkpoint` and `--overwrite_output_dir` of a script ask for: a checkpoint, or a new run.

    Args:
        args: of the training; `resume_from_checkpoint` is a folder, "true", "false" or `None`.
        overwrite_output_dir: whether a new run may write into a folder that is not empty.
        required: as in [`resolve_checkpoint`].

    Returns:
        The checkpoint to go on from, or `None` for a new run.

    Raises:
        ValueError: as in [`resolve_checkpoint`], and for a new run into a folder that is not empty.
    """
    wanted = args.resume_from_checkpoint
    if wanted is not None and wanted.lower() != "false":
        return resolve_checkpoint(args, True if wanted.lower() == "true" else wanted, required)
    if not is_unused(args.output_dir) and not overwrite_output_dir:
        raise ValueError(
            f"--output_dir {args.output_dir} is not empty. Give another folder, continue the run in it with "
            "--resume_from_checkpoint true, or replace it with --overwrite_output_dir true."
        )
    return None


def discard_checkpoints(args: TrainingArguments) -> None:
    """Removes what an earlier run has left in the output folder, before a new one; all processes have to call this."""
    if args.process_index == 0:
        with exclusive(args.output_dir):
            for old in _checkpoints(args.output_dir).values():
                shutil.rmtree(old)
    PartialState().wait_for_everyone()


def _checkpoints(output_dir: str | os.PathLike) -> dict[int, Path]:
    """Checkpoints by the steps in their names."""
    paths = Path(output_dir).iterdir() if Path(output_dir).is_dir() else ()
    matches = {path: re.fullmatch(r"checkpoint-(\d+)", path.name) for path in paths if path.is_dir()}
    return {int(match[1]): path for path, match in matches.items() if match}


def is_unused(output_dir: str | os.PathLike) -> bool:
    """Whether a folder is new, empty, or holds only what a run leaves that was killed before its first checkpoint."""
    return not Path(output_dir).is_dir() or set(os.listdir(output_dir)) <= {INCOMPLETE, LOCK}


@contextlib.contextmanager
def exclusive(output_dir: str | os.PathLike) -> Iterator[None]:
    """Keeps other processes out of a folder that a training writes to, and puts right what a killed one left there.

    The lock goes with the process, however it ends.

    Raises:
        ValueError: another process is in it.
    """
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    lock = FileLock(Path(output_dir) / LOCK, timeout=LOCK_SECONDS, is_singleton=True)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"output_dir must be a folder that no other run is writing to, got {output_dir}, where one is training."
        ) from None
    except OSError as error:
        logger.warning("Nothing keeps other runs out of %s, where files cannot be locked: %s", output_dir, error)
    try:
        discard_incomplete(output_dir)
        finish_replacement(output_dir)
        # Files that `replacing` was writing. Folders of such names belong to `replacing_folder`, in another process.
        for file in Path(output_dir).glob(".*.[0-9]*.tmp"):
            if file.is_file():
                file.unlink()
        yield
    finally:
        lock.release()


def discard_incomplete(output_dir: str | os.PathLike) -> None:
    """Removes the folder of what is not complete."""
    shutil.rmtree(Path(output_dir) / INCOMPLETE, ignore_errors=True)


def publish(temporary: Path, path: Path) -> None:
    """Gives a complete folder its name, at once. A folder that has the name goes."""
    with naming_disk_errors(path):
        flush(temporary)
    if path.exists():
        os.rename(path, temporary.with_name(f"replaced-{path.name}"))
    os.rename(temporary, path)


@contextlib.contextmanager
def replacing_files(folder: str | os.PathLike) -> Iterator[Path]:
    """A temporary folder for a model. When the block ends well its files replace those of `folder`, with weights of
    the old model that have no successor; else `folder` stays as it was.

    A process may be killed at any moment: `folder` then holds the old model, the new one, or one that does not load
    until [`finish_replacement`] is called. It never holds a mixture that loads.
    """
    folder = Path(folder)
    temporary = folder / INCOMPLETE / "model"
    discard_incomplete(folder)
    finish_replacement(folder)
    temporary.mkdir(parents=True)
    try:
        with reaching_disk(temporary, folder):
            if (folder / "README.md").is_file():
                # Adapters add to a model card that is there.
                shutil.copy(folder / "README.md", temporary)
            yield temporary
        os.rename(temporary, folder / REPLACEMENT)
        finish_replacement(folder)
    finally:
        discard_incomplete(folder)


def finish_replacement(folder: str | os.PathLike) -> None:
    """Moves a complete new model from `_replacement` to its place; again where a process was killed doing so."""
    folder = Path(folder)
    source = folder / REPLACEMENT
    if not source.is_dir():
        return
    files = sorted(file.relative_to(source) for file in source.rglob("*") if file.is_file())
    entries = [file for file in files if file.name in ENTRIES]
    config = [file for file in files if file == Path("config.json")]
    # From here on the old model does not load.
    for file in entries:
        (folder / file).unlink(missing_ok=True)
    # The config is moved first: while it is still here, all weights in the folder are the old model's.
    for old in folder.glob("model*.safetensors*") if config else ():
        old.unlink()
    # The new model loads when its last file is in place.
    for file in [*config, *(file for file in files if file not in config + entries), *entries]:
        (folder / file).parent.mkdir(exist_ok=True, parents=True)
        os.replace(source / file, folder / file)
    shutil.rmtree(source)
