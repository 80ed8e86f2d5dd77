# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The README's Python code runs as it stands, in its order, next to a trained model's folder."""

import re
from pathlib import Path

from variants import tiny_model
from warm_python import run_python

from modeling_aoarm.data.tokenizers import character_tokenizer


ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_blocks_run(tmp_path):
    """In a fresh process, next to an untrained model in `outputs/pretrain`; what is printed has its blanks filled."""
    tokenizer = character_tokenizer([README])
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad", "mask")}
    folder = tmp_path / "outputs" / "pretrain"
    tiny_model("two_stream", vocab_size=len(tokenizer), max_position_embeddings=128, **special).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) >= 4
    (tmp_path / "readme.py").write_text("\n".join(blocks), encoding="utf-8")
    process = run_python("readme.py", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("The ") and "<blank" not in process.stdout
    assert "statement is used to" in process.stdout


def test_every_path_that_is_named_exists():
    paths = set(re.findall(r"(?<![\w/])(?:modeling_aoarm|configuration|examples|tests|model_cards)/[\w./]*", README))
    assert len(paths) > 10
    missing = [path for path in paths if not (ROOT / path.rstrip(".")).exists()]
    assert missing == []
