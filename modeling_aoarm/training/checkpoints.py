# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The folders that a training writes, which are complete or absent, and the checkpoint to resume from.

A checkpoint is written to the folder `_incomplete` of the output folder and renamed when it is complete. Nothing reads
the `_incomplete` folder of a killed run, and the next run removes it.

A model is in the output folder itself, beside checkpoints and reports, so one rename cannot replace it. A complete new
model is renamed to `_replacement`. Then the old weights are removed and the new files are moved in. The file that
loading needs comes last. If the run is killed in between, the folder does not load until the next run that writes to it
moves the other files.
"""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import gather_object
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from transformers import TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

from ..io import reaching_disk


logger = logging.get_logger(__name__)

# The library does not push names that begin with an underscore to the Hub.
INCOMPLETE = "_incomplete"
REPLACEMENT = "_replacement"
# A tokenizer, an adapter or a model does not load without these files. (A model's class loads without `config.json`.)
ENTRIES = ("tokenizer.json", "adapter_config.json", "model.safetensors", "model.safetensors.index.json")
LOCK = "_training.lock"
# The lock of a killed run lasts until the workers of its data loader end, which check every five seconds.
LOCK_SECONDS = 10.0

# A checkpoint has a file of each group. `global_step*` is DeepSpeed's.
WEIGHTS = ("model.safetensors*", "adapter_model.safetensors", "*/adapter_model.safetensors")
WEIGHTS += ("pytorch_model_fsdp*", "global_step*")
RESUME_STATE = (("optimizer.pt", "*optimizer*", "global_step*"), ("scheduler.pt", "global_step*"), ("rng_state*.pth",))


def check_checkpoint(folder: str | os.PathLike, *, weights_only: bool = False, required: Sequence[str] = ()) -> int:
    """Checks that the files of a `Trainer`'s checkpoint exist and that JSON files and headers of weights can be read.

    Headers tell the size of their files, so truncated weights are found. Tensors and other states are not read.

    Args:
        folder: the checkpoint.
        weights_only: whether the states of optimiser, schedule and random numbers may be missing (`save_only_model`).
        required: names of more files that must exist.

    Returns:
        The optimiser step of the checkpoint.

    Raises:
        ValueError: a file is missing or damaged. The message names it.
    """
    folder = Path(folder)

    def refuse(file: str | os.PathLike, reason: object):
        raise ValueError(f"{folder} is not a complete checkpoint: {file} {reason}.")

    groups = ((TRAINER_STATE_NAME,), WEIGHTS, *(() if weights_only else RESUME_STATE), *((name,) for name in required))
    for group in groups:
        if not any(any(folder.glob(pattern)) for pattern in group):
            refuse(group[0].replace("safetensors*", "safetensors"), "is missing")
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
    try:
        return int(TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME)).global_step)
    except (ValueError, TypeError) as error:
        refuse(TRAINER_STATE_NAME, f"is damaged, or of another version of transformers ({error})")


def resolve_checkpoint(
    args: TrainingArguments, resume_from_checkpoint: str | bool | None, required: Sequence[str] = ()
) -> str | None:
    """Finds the checkpoint that a training resumes from, the same in all processes. All processes must call it.

    Args:
        args: the arguments of the training.
        resume_from_checkpoint: the folder of a checkpoint; True for the last one in `args.output_dir` that is complete
            on every node, with a warning for each later one; None or False for a new training.
        required: as in [`check_checkpoint`].

    Raises:
        ValueError: the folder is not a complete checkpoint, the output folder has none (the message names missing and
            damaged files), or the checkpoint is beyond `args.max_steps`.
    """
    if not resume_from_checkpoint:
        return None
    wants_last = resume_from_checkpoint is True
    folders = _find_checkpoints(args.output_dir) if wants_last else {0: Path(resume_from_checkpoint)}
    # One process of each node checks its files and reports a step or a problem for each folder.
    report: dict[int, int | str] = {}
    for number, folder in folders.items() if args.local_process_index == 0 else ():
        try:
            report[number] = check_checkpoint(folder, weights_only=args.save_only_model, required=required)
        except ValueError as error:
            report[number] = str(error)
    reports = gather_object([report] if args.local_process_index == 0 else [])

    problems = []
    for number in sorted({number for report in reports for number in report}, reverse=True):
        found = {report.get(number, f"checkpoint-{number} is missing on some node.") for report in reports}
        wrong = sorted(each for each in found if isinstance(each, str))
        if not wrong:
            break
        problems += wrong
    else:
        if not wants_last:
            raise ValueError(f"resume_from_checkpoint must be True or a complete checkpoint: {' '.join(problems)}")
        raise ValueError(
            f"resume_from_checkpoint=True needs a complete checkpoint in {args.output_dir}, found none. "
            + (" ".join(problems) or "Start the training anew.")
        )
    if args.process_index == 0:
        for problem in problems:
            logger.warning("Ignored: %s", problem)
    step = max(found)
    if 0 < args.max_steps < step:
        raise ValueError(f"{folders[number]} is at step {step}, which is beyond max_steps={args.max_steps}.")
    return str(folders[number])


def starting_checkpoint(
    args: TrainingArguments, overwrite_output_dir: bool, required: Sequence[str] = ()
) -> str | None:
    """Finds the checkpoint that a script's `--resume_from_checkpoint` and `--overwrite_output_dir` ask for.

    Args:
        args: the arguments of the training. `resume_from_checkpoint` is a folder, "true", "false" or `None`.
        overwrite_output_dir: whether a new run may write into a folder that is not empty.
        required: as in [`check_checkpoint`].

    Returns:
        The checkpoint, or `None` for a new run.

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
    """Removes an earlier run's checkpoints from the output folder. All processes must call it."""
    if args.process_index == 0:
        with exclusive(args.output_dir):
            for old in _find_checkpoints(args.output_dir).values():
                shutil.rmtree(old)
    PartialState().wait_for_everyone()


def _find_checkpoints(output_dir: str | os.PathLike) -> dict[int, Path]:
    """Returns the checkpoints by the steps in their names."""
    paths = Path(output_dir).iterdir() if Path(output_dir).is_dir() else ()
    matches = {path: re.fullmatch(r"checkpoint-(\d+)", path.name) for path in paths if path.is_dir()}
    return {int(match[1]): path for path, match in matches.items() if match}


def is_unused(output_dir: str | os.PathLike) -> bool:
    """Returns whether a folder is new or empty, or its run was killed before the first checkpoint."""
    return not Path(output_dir).is_dir() or set(os.listdir(output_dir)) <= {INCOMPLETE, LOCK}


@contextlib.contextmanager
def exclusive(output_dir: str | os.PathLike) -> Iterator[None]:
    """Locks a folder that a training writes to, and cleans up after a killed run. The lock ends with the process.

    Raises:
        ValueError: another process holds the lock.
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
        logger.warning("Other runs are not kept out of %s, where files cannot be locked: %s", output_dir, error)
    try:
        discard_incomplete(output_dir)
        finish_replacement(output_dir)
        # Files of `replacing`. Folders with such names belong to `replacing_folder` in another process.
        for file in Path(output_dir).glob(".*.[0-9]*.tmp"):
            if file.is_file():
                file.unlink()
        yield
    finally:
        lock.release()


def discard_incomplete(output_dir: str | os.PathLike) -> None:
    """Removes the folder of incomplete checkpoints and models."""
    shutil.rmtree(Path(output_dir) / INCOMPLETE, ignore_errors=True)


def publish(temporary: Path, path: Path) -> None:
    """Renames a complete folder to `path`. An older folder there is moved away."""
    if path.exists():
        os.rename(path, temporary.with_name(f"replaced-{path.name}"))
    os.rename(temporary, path)


@contextlib.contextmanager
def replacing_files(folder: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary folder for a model. Its files replace those of `folder` if the block succeeds.

    Old weights that no new file replaces are removed. If the block fails, `folder` does not change. If the process is
    killed, `folder` has the old model, the new one, or files that do not load until [`finish_replacement`] is called.
    A mixture never loads.
    """
    folder = Path(folder)
    temporary = folder / INCOMPLETE / "model"
    discard_incomplete(folder)
    finish_replacement(folder)
    temporary.mkdir(parents=True)
    try:
        with reaching_disk(temporary, folder):
            if (folder / "README.md").is_file():
                # Adapters add to an existing model card.
                shutil.copy(folder / "README.md", temporary)
            yield temporary
        os.rename(temporary, folder / REPLACEMENT)
        finish_replacement(folder)
    finally:
        discard_incomplete(folder)


def finish_replacement(folder: str | os.PathLike) -> None:
    """Moves a complete new model from `_replacement` into the folder. Continues after a killed process."""
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
    # The config is moved first. As long as it is in `_replacement`, all weights in the folder are the old model's.
    for old in folder.glob("model*.safetensors*") if config else ():
        old.unlink()
    # The new model loads when its last file is in place.
    for file in [*config, *(file for file in files if file not in config + entries), *entries]:
        (folder / file).parent.mkdir(exist_ok=True, parents=True)
        os.replace(source / file, folder / file)
    shutil.rmtree(source)
