# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""
Publish a trained any-order model, or a PEFT adapter, on the Hugging Face Hub.

One commit holds everything that others need to load it (weights, configs, the model's code, tokenizer) and the facts
about it (model card, loss curve, results), without checkpoints and optimiser state. The folder is first loaded as its
users will load it, with its own code. If something is missing or does not fit, nothing is created on the Hub. It takes
seconds on a CPU, plus the upload.

    hf auth login                                                        # once, with a token that may write
    python examples/push_to_hub.py outputs/pretrain me/any-order-small [--private true]

An adapter belongs to the model that it was trained on. If that is a folder, publish it first, and name it:

    python examples/push_to_hub.py outputs/adapt_decoder/adapted me/infilling-adapter --base_model me/any-order-small

`--revision NAME` pushes to a branch, `--create_pr true` opens a pull request. Pushing again makes a new commit, and
earlier commits can still be loaded with `revision=`. An interrupted upload changes nothing: start it again.
"""

import json
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi, ModelCard
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from modeling_aoarm.model_card import rename_model_card


ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MODEL_WEIGHTS = ["model*.safetensors", "model.safetensors.index.json"]
SHARED = ["tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model"]
SHARED += ["chat_template.jinja", "README.md", "LICENSE*", "loss_curve.png", "loss_curve.json", "results.json"]
MODEL = ["config.json", "generation_config.json", "*.py", *MODEL_WEIGHTS, *SHARED]
ADAPTER = [ADAPTER_CONFIG, ADAPTER_WEIGHTS, *SHARED]


@dataclass
class PushArguments:
    """The destination of the folder."""

    private: bool = field(default=False, metadata={"help": "Create a repository that only you can see."})
    revision: str | None = field(default=None, metadata={"help": "Branch, created from main if it does not exist."})
    create_pr: bool = field(default=False, metadata={"help": "Open a pull request instead of changing the branch."})
    commit_message: str | None = field(default=None, metadata={"help": "Default: the content of the folder."})
    base_model: str | None = field(
        default=None, metadata={"help": "Name on the Hub of the model that an adapter was trained on."}
    )

    def __post_init__(self):
        if self.create_pr and self.revision is not None:
            raise ValueError(f"--create_pr asks to change main, so --revision must not be given, got {self.revision}.")


def check_model(folder: Path) -> str:
    """Loads a model with its own code and its tokenizer. Returns the name of its head's Auto class.

    Raises:
        ValueError: something is missing, damaged or does not fit; the message says what.
    """
    try:
        auto_map = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("auto_map", {})
        # Masked diffusion has another head than the other variants.
        head = "AutoModelForMaskedLM" if "AutoModelForMaskedLM" in auto_map else "AutoModelForCausalLM"
        if missing := {"AutoConfig", head} - set(auto_map):
            raise ValueError(f"the config's auto_map does not have {', '.join(sorted(missing))}")
        # The Auto classes would use the installed code.
        own_code = {name: get_class_from_dynamic_module(auto_map[name], str(folder)) for name in auto_map}
        model, loading = own_code[head].from_pretrained(
            folder, dtype="auto", use_safetensors=True, output_loading_info=True
        )
    except Exception as error:
        # The folder's code may raise anything.
        raise ValueError(f"{folder} must hold a model with its code, and this one does not load: {error}") from error
    if wrong := {kind: sorted(map(str, names)) for kind, names in loading.items() if names}:
        raise ValueError(f"{folder} must hold the weights of its config, no more and no less, got {wrong}.")
    check_tokenizer(folder, model.config.vocab_size)
    return head


def check_adapter(folder: Path, base_model: str | None) -> str:
    """Loads an adapter onto its base model. Returns the name of the base model.

    Raises:
        ValueError: the base model is not on the Hub; something is missing, damaged or does not fit.
    """
    # Only adapters need PEFT.
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict

    try:
        base_model = base_model or PeftConfig.from_pretrained(folder).base_model_name_or_path
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
    """Raises a ValueError if there is no tokenizer, or one with ids that the model does not have."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:
        raise ValueError(f"{folder} must hold the model's tokenizer, and there is none that loads: {error}") from error
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocab_size:
        raise ValueError(
            f"{folder} must hold the model's tokenizer: its ids go up to {largest}, the model has {vocab_size} tokens."
        )


def stage(folder: Path, staged: Path, repo_id: str, base_model: str | None) -> None:
    """Copies the files to push. Names of local folders become names on the Hub."""
    for pattern in MODEL if base_model is None else ADAPTER:
        for path in folder.glob(pattern):
            if path.is_file():
                shutil.copy(path, staged)
    card = ModelCard.load(staged / "README.md") if (staged / "README.md").exists() else None
    if card is not None and card.data.model_name:
        card = rename_model_card(card, repo_id)
    if base_model is not None:
        adapter_config = json.loads((staged / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        trained_on = adapter_config["base_model_name_or_path"]
        (staged / ADAPTER_CONFIG).write_text(json.dumps(adapter_config | {"base_model_name_or_path": base_model}))
        if card is not None and trained_on:
            name = rf"(?<![\w./-]){re.escape(trained_on)}(?![\w/-])"
            card = ModelCard(re.sub(name, lambda _: base_model, card.content))
    if card is not None:
        card.save(staged / "README.md")


def push(folder: Path, repo_id: str, args: PushArguments, base_model: str | None) -> tuple[str, CommitInfo]:
    """Creates the repository if it does not exist, and one commit. Returns the full name and the commit.

    Raises:
        ValueError: `--private` was given for a repository that is public.
        huggingface_hub.errors.HfHubHTTPError: the Hub refuses; nothing has changed then.
    """
    api = HfApi()
    # None instead of False: organisations have defaults of their own.
    repo_id = api.create_repo(repo_id, private=args.private or None, exist_ok=True).repo_id
    if args.private and not api.repo_info(repo_id).private:
        raise ValueError(f"--private true needs a new or a private repository, got {repo_id}, which is public.")
    if args.revision is not None:
        api.create_branch(repo_id, branch=args.revision, exist_ok=True)
    content = "model, its code and tokenizer" if base_model is None else f"adapter of {base_model}"
    with tempfile.TemporaryDirectory() as staged:
        stage(folder, Path(staged), repo_id, base_model)
        commit = api.upload_folder(
            folder_path=staged,
            repo_id=repo_id,
            commit_message=args.commit_message or f"Upload {content}",
            revision=args.revision,
            create_pr=args.create_pr,
            # Weights of an earlier push, in other files, might be loaded instead of these.
            delete_patterns=MODEL_WEIGHTS if base_model is None else None,
        )
    return repo_id, commit


def main(argv: list[str]) -> None:
    parser = HfArgumentParser(PushArguments, description="Publish a model or an adapter on the Hugging Face Hub.")
    parser.add_argument("folder", type=Path, help="Folder of a saved model, or of a PEFT adapter.")
    parser.add_argument("repo_id", help="Name on the Hub, as owner/name.")
    args, positional = parser.parse_args_into_dataclasses(argv)
    folder, head, base_model = positional.folder, "AutoModelForCausalLM", None
    if (folder / ADAPTER_CONFIG).is_file():
        base_model = check_adapter(folder, args.base_model)
    elif args.base_model is not None:
        raise ValueError(f"--base_model is for adapters, and {folder} holds none, got {args.base_model}.")
    else:
        head = check_model(folder)
    repo_id, commit = push(folder, positional.repo_id, args, base_model)

    revision = commit.pr_revision or args.revision
    pushed = f'"{repo_id}"' if revision is None else f'"{repo_id}", revision="{revision}"'
    base = pushed if base_model is None else f'"{base_model}"'
    print(f"Pushed to {commit.pr_url or commit.commit_url}. To load it:\n")
    print(f"from transformers import {head}, AutoTokenizer\n")
    print(f"model = {head}.from_pretrained({base}, trust_remote_code=True)")
    if base_model is not None:
        print(f"\nfrom peft import PeftModel\n\nmodel = PeftModel.from_pretrained(model, {pushed})")
    tokenizer = pushed if any(folder.glob("tokenizer*")) else base
    print(f"tokenizer = AutoTokenizer.from_pretrained({tokenizer}, trust_remote_code=True)")


if __name__ == "__main__":
    main(sys.argv[1:])
