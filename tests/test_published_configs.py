# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Configs as they are published: each is converted exactly, or refused by the field that its entry names.

`data/published_configs.json` has the fields of each, where they are from, and the outcome; docs/conversion.md shows the
outcomes.
"""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from modeling_aoarm.conversion import FAMILIES, convert_causal_lm, convert_config


PUBLISHED = json.loads((Path(__file__).parent / "data" / "published_configs.json").read_text(encoding="utf-8"))
CONVERTED = [entry for entry in PUBLISHED if entry["outcome"] == "converted"]
REFUSED = [entry for entry in PUBLISHED if entry["outcome"] == "refused"]
LAYERS, VOCABULARY = 2, 64

pytestmark = pytest.mark.usefixtures("restored_logging")


def load_config(folder, fields):
    (folder / "config.json").write_text(json.dumps(fields))
    return AutoConfig.from_pretrained(folder)


def shrink(fields):
    """The same kind of model in small: sizes, lists over layers and token ids change, everything else stays."""
    heads, groups = fields["num_attention_heads"], fields.get("num_key_value_heads", fields["num_attention_heads"])
    width = fields["hidden_size"] // heads
    small = fields | {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 4 if groups == heads else 2,
        "vocab_size": VOCABULARY,
        # Large enough for every part of the model to matter to the logits.
        "initializer_range": 0.2,
    }
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        token_ids = fields.get(name)
        if isinstance(token_ids, list):
            small[name] = [token_id % VOCABULARY for token_id in token_ids]
        elif token_ids is not None and token_ids >= 0:
            small[name] = token_ids % VOCABULARY
    if "head_dim" in fields:
        small["head_dim"] = 8 if fields["head_dim"] == width else 16
    if "layer_types" in fields:
        small["layer_types"] = fields["layer_types"][:LAYERS]
    return small


@pytest.mark.parametrize("entry", CONVERTED, ids=lambda entry: entry["name"])
def test_published_configs_convert_exactly(entry, tmp_path):
    fields = entry["config"]
    config = load_config(tmp_path, fields)
    converted = convert_config(config)
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings", "rope_parameters"):
        assert getattr(converted, name) == getattr(config, name)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(converted, name) == (None if fields.get(name) == -1 else getattr(config, name))

    torch.manual_seed(0)
    source = FAMILIES[config.model_type].model_class(load_config(tmp_path, shrink(fields))).eval()
    for parameter in source.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    input_ids = torch.randint(VOCABULARY, (2, 24))
    with torch.no_grad():
        expected = source(input_ids).logits
        assert expected.std() > 0.1
        for variant in ("decoupled_rope", "two_stream"):
            model = convert_causal_lm(source, variant)
            torch.testing.assert_close(model(input_ids).logits, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("entry", REFUSED, ids=lambda entry: entry["name"])
def test_published_configs_are_refused_by_name(entry, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(entry["config"]))
    with pytest.raises(ValueError, match=f"`{entry['field']}` must"):
        convert_causal_lm(tmp_path)


def test_the_page_shows_these_outcomes():
    page = (Path(__file__).parents[1] / "docs" / "conversion.md").read_text(encoding="utf-8").splitlines()
    rows = []
    for entry in PUBLISHED:
        why = entry["why"] if entry["outcome"] == "converted" else f"`{entry['field']}`: {entry['why']}"
        rows.append(f"| {entry['name']} | {entry['config']['model_type']} | {entry['outcome']} | {why} |")
    start = page.index(rows[0])
    assert page[start : start + len(rows) + 1] == [*rows, ""]
