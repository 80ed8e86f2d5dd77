# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""
Publish a trained any-order model, or a PEFT adapter, on the Hugging Face Hub.

Objective: one commit holds all that others need to load it (weights, configs, the model's code, tokenizer) and what is
known about it (model card, loss curve, results), and nothing else: no checkpoints, no state of the optimiser. The
folder is first loaded as its users will load it, with the code that is in it; when something is missing or does not
fit, nothing is created on the Hub. Nothing is trained; seconds on a CPU, plus the upload.

    hf auth login                                                        # once, with a token that may write
    python examples/push_to_hub.py outputs/pretrain me/any-order-small [--private true]

An adapter belongs to the model that it was trained on. Where that is a folder, publish it first, and name it:

    python examples/push_to_hub.py outputs/finetune_peft me/infilling-adapter --base_model me/any-order-small

`--revision NAME` pushes to a branch, `--create_pr true` opens a pull request. Pushing again makes a new commit, and
earlier ones stay loadable with `revision=`. An upload that is interrupted changes nothing: start it again.
"""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, HfArgumentParser
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from modeling_aoarm.model_card import renamed


ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MODEL_WEIGHTS = ("model*.safetensors", "model.safetensors.index.json")
TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "chat_template.jinja",
)
ABOUT = ("README.md", "LICENSE*", "loss_curve.png", "loss_curve.json", "results.json")
MODEL = ("config.json", "generation_config.json", "*.py", *MODEL_WEIGHTS, *TOKENIZER, *ABOUT)
ADAPTER = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, *TOKENIZER, *ABOUT)


@dataclass
class PushArguments:
    """Where the folder goes."""

    private: bool = field(default=False, metadata={"help": "Create a repository that only you can see."})
    revision: str | None = field(default=None, metadata={"help": "Branch, made from main when it is not there."})
    create_pr: bool = field(default=False, metadata={"help": "Open a pull request instead of changing the branch."})
    commit_message: str | None = field(default=None, metadata={"help": "Default: what the folder holds."})
    base_model: str | None = field(
        default=None, metadata={"help": "Name on the Hub of the model that an adapter was trained on."}
    )

    def __post_init__(self):
        if self.create_pr and self.revision is not None:
            raise ValueError(f"--create_pr asks to change main, so --revision must not be given, got {self.revision}.")


def head_of(auto_map: dict[str, str] | None) -> str:
    """The Auto class of a model's head: masked diffusion has another one than the other variants."""
    return "AutoModelForMaskedLM" if "AutoModelForMaskedLM" in (auto_map or {}) else "AutoModelForCausalLM"


def check_model(folder: Path) -> dict[str, str]:
    """Loads a model with its own code and its tokenizer. Returns its `auto_map`.

    Raises:
        ValueError: something is missing, damaged or does not fit; the message says what.
    """
    try:
        auto_map = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("auto_map", {})
        if missing := {"AutoConfig", head_of(auto_map)} - set(auto_map):
            raise ValueError(f"the config's auto_map does not have {', '.join(sorted(missing))}")
        # By the names in the config, because the Auto classes would take the code that is installed.
        own_code = {name: get_class_from_dynamic_module(auto_map[name], str(folder)) for name in auto_map}
        model, loading = own_code[head_of(auto_map)].from_pretrained(
            folder, dtype="auto", use_safetensors=True, output_loading_info=True
        )
    except Exception as error:
        # The folder's code may raise anything.
        raise ValueError(f"{folder} must hold a model with its code, and this one does not load: {error}") from error
    if wrong := {kind: sorted(map(str, names)) for kind, names in loading.items() if names}:
        raise ValueError(f"{folder} must hold the weights of its config, no more and no less, got {wrong}.")
    check_tokenizer(folder, model.config.vocab_size)
    return auto_map


def check_adapter(folder: Path, base_model: str | None) -> str:
    """Loads an adapter onto its base model. Returns the name of the base model.

    Raises:
        ValueError: the base model is not on the Hub; something is missing, damaged or does not fit.
    """
    # PEFT is needed for adapters only.
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict

    try:
        adapter_config = PeftConfig.from_pretrained(folder)
        base_model = base_model or adapter_config.base_model_name_or_path
        if base_model is None or Path(base_model).exists():
            raise ValueError(
                f"its base model must be on the Hub, got {base_model}. Publish that, and name it with --base_model."
            )
        base = AutoModelForCausalLM.from_pretrained(base_model)
        model = PeftModel.from_pretrained(base, folder)
        with safe_open(folder / ADAPTER_WEIGHTS, "pt") as weights:
            missing = set(get_peft_model_state_dict(model, save_embedding_layers=False)) - set(weights.keys())
    except Exception as error:
        raise ValueError(f"{folder} must hold a PEFT adapter, and this one does not load: {error}") from error
    if missing:
        raise ValueError(f"{folder} must hold the weights of its adapter, got none for {sorted(missing)}.")
    if any(folder.glob("tokenizer*")):
        check_tokenizer(folder, base.config.vocab_size)
    return base_model


def check_tokenizer(folder: Path, vocab_size: int) -> None:
    """Raises a ValueError where there is no tokenizer, or one with ids that the model does not have."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:
        raise ValueError(f"{folder} must hold the model's tokenizer, and there is none that loads: {error}") from error
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocab_size:
        raise ValueError(
            f"{folder} must hold the model's tokenizer: its ids go up to {largest}, the model has {vocab_size} tokens."
        )


def additions(folder: Path, patterns: Sequence[str], repo_id: str, base_model: str | None) -> list[CommitOperationAdd]:
    """The files to push. What names the folder, or the folder of an adapter's base model, gets the names on the Hub."""
    paths = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    files: dict[str, Path | bytes] = {path.name: path for path in paths}
    card = ModelCard.load(folder / "README.md") if "README.md" in files else None
    if card is not None and card.data.model_name:
        card = renamed(card, repo_id)
    if base_model is not None:
        adapter_config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        trained_on = adapter_config["base_model_name_or_path"]
        adapter_config["base_model_name_or_path"] = base_model
        files[ADAPTER_CONFIG] = json.dumps(adapter_config, indent=2).encode()
        if card is not None and trained_on:
            name = rf"(?<![\w./-]){re.escape(trained_on)}(?![\w/-])"
            card = ModelCard(re.sub(name, lambda _: base_model, card.content))
    if card is not None:
        files["README.md"] = str(card).encode()
    return [CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in files.items()]


def push(folder: Path, repo_id: str, args: PushArguments, base_model: str | None) -> tuple[str, CommitInfo]:
    """Makes the repository if it is not there, and one commit. Returns the whole name and the commit.

    Raises:
        ValueError: a private repository was asked for, and there is a public one.
        huggingface_hub.errors.HfHubHTTPError: the Hub refuses; nothing has changed then.
    """
    api = HfApi()
    # None, and not False: organisations have defaults of their own.
    repo_id = api.create_repo(repo_id, private=args.private or None, exist_ok=True).repo_id
    if args.private and not api.repo_info(repo_id).private:
        raise ValueError(f"--private true needs a new or a private repository, got {repo_id}, which is public.")
    if args.revision is not None:
        api.create_branch(repo_id, branch=args.revision, exist_ok=True)
    operations = additions(folder, MODEL if base_model is None else ADAPTER, repo_id, base_model)
    names = {operation.path_in_repo for operation in operations}
    stale = []
    if base_model is None:
        # Weights of an earlier push, in other files, might be loaded instead of these.
        there = set(api.list_repo_files(repo_id, revision=args.revision)) - names
        stale = sorted(
            name for name in there if "/" not in name and any(fnmatch(name, known) for known in MODEL_WEIGHTS)
        )
    what = f"adapter of {base_model}" if base_model is not None else "model, its code and tokenizer"
    commit = api.create_commit(
        repo_id,
        operations + [CommitOperationDelete(path_in_repo=name) for name in stale],
        commit_message=args.commit_message or f"Upload {what}",
        revision=args.revision,
        create_pr=args.create_pr,
    )
    if missing := names - set(api.list_repo_files(repo_id, revision=commit.oid)):
        raise RuntimeError(f"The commit {commit.commit_url} must have all files, it has not: {sorted(missing)}.")
    return repo_id, commit


def check_pushed(repo_id: str, oid: str, auto_map: dict[str, str] | None) -> None:
    """Loads the config of a commit: by the code in it, or an adapter's."""
    if auto_map is not None:
        get_class_from_dynamic_module(auto_map["AutoConfig"], repo_id, revision=oid).from_pretrained(
            repo_id, revision=oid
        )
    else:
        from peft import PeftConfig

        AutoConfig.from_pretrained(PeftConfig.from_pretrained(repo_id, revision=oid).base_model_name_or_path)


def how_to_load(repo_id: str, revision: str | None, head: str, base_model: str | None, has_tokenizer: bool) -> str:
    """The snippet that loads what was pushed."""
    at = f', revision="{revision}"' if revision is not None else ""
    lines = [f"from transformers import {head}, AutoTokenizer", ""]
    if base_model is None:
        lines += [f'model = {head}.from_pretrained("{repo_id}"{at}, trust_remote_code=True)']
    else:
        lines[0] = f"from peft import PeftModel\n{lines[0]}"
        lines += [f'model = AutoModelForCausalLM.from_pretrained("{base_model}", trust_remote_code=True)']
        lines += [f'model = PeftModel.from_pretrained(model, "{repo_id}"{at})']
    tokenizer = f'"{repo_id}"{at}' if has_tokenizer else f'"{base_model}"'
    return "\n".join([*lines, f"tokenizer = AutoTokenizer.from_pretrained({tokenizer}, trust_remote_code=True)"])


def main(argv: list[str]) -> None:
    parser = HfArgumentParser(PushArguments, description="Publish a model or an adapter on the Hugging Face Hub.")
    parser.add_argument("folder", type=Path, help="Folder of a saved model, or of a PEFT adapter.")
    parser.add_argument("repo_id", help="Name on the Hub, as owner/name.")
    args, positional = parser.parse_args_into_dataclasses(argv)
    folder = positional.folder
    auto_map = base_model = None
    if (folder / ADAPTER_CONFIG).is_file():
        base_model = check_adapter(folder, args.base_model)
    elif args.base_model is not None:
        raise ValueError(f"--base_model is for adapters, and {folder} holds none, got {args.base_model}.")
    else:
        auto_map = check_model(folder)
    repo_id, commit = push(folder, positional.repo_id, args, base_model)
    check_pushed(repo_id, commit.oid, auto_map)
    print(f"Pushed to {commit.pr_url or commit.commit_url}. To load it:\n")
    has_tokenizer = any(folder.glob("tokenizer*"))
    print(how_to_load(repo_id, commit.pr_revision or args.revision, head_of(auto_map), base_model, has_tokenizer))


if __name__ == "__main__":
    main(sys.argv[1:])
