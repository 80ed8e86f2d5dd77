# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""`python -m modeling_aoarm parameters`: its counts are those of real models, and the variants are of one size."""

import pytest
from scripts import REPOSITORY
from transformers import AutoConfig
from variants import all_variants, tiny_model

from modeling_aoarm import model_class_for
from modeling_aoarm.__main__ import main
from modeling_aoarm.cli import PARTS, count_parameters


FOLDERS = {
    name: str(REPOSITORY / "configuration" / name)
    for name in ("two_stream", "decoupled_rope", "double_position", "adaptive_norm", "causal", "bidirectional")
}


def read_table(printed):
    """The numbers of the table by config."""
    header, *lines = (line.split("\t") for line in printed.splitlines())
    assert header == ["config", "attention_variant", "parameters", "to the first", *PARTS]
    return {line[1]: [float(cell.replace(",", "")) for cell in line[2:]] for line in lines}


@all_variants
def test_parts_sum_to_the_whole(variant):
    model = tiny_model(variant)
    counts = count_parameters(model.config)
    assert set(counts) == set(PARTS)
    assert sum(counts.values()) == sum(weight.numel() for weight in model.parameters())
    assert (counts["positions"] > 0) == (variant.startswith("double") or variant == "adaptive_norm")
    assert (counts["modulation"] > 0) == (variant == "adaptive_norm")


def test_the_variants_are_of_one_size(capsys):
    assert main(["parameters", *FOLDERS.values()]) == 0
    rows = read_table(capsys.readouterr().out)
    assert set(rows) == set(FOLDERS)
    for name, (total, ratio, *parts) in rows.items():
        config = AutoConfig.from_pretrained(FOLDERS[name])
        assert total == model_class_for(config)(config).num_parameters() == sum(parts)
        assert ratio == pytest.approx(total / rows["two_stream"][0], abs=6e-4) and abs(ratio - 1) <= 0.05


def test_fields_are_changed_and_what_follows_from_them_too(capsys):
    overrides = "hidden_size=64,num_attention_heads=2,num_hidden_layers=3"
    assert main(["parameters", FOLDERS["causal"], "--overrides", overrides]) == 0
    total = read_table(capsys.readouterr().out)["causal"][0]
    config = AutoConfig.from_pretrained(
        FOLDERS["causal"],
        hidden_size=64,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        num_hidden_layers=3,
    )
    assert total == model_class_for(config)(config).num_parameters()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["./nothing"], "CONFIG must be a folder or a name on the Hub"),
        ([FOLDERS["causal"], "--overrides", "width=3"], "width"),
        ([FOLDERS["causal"], "--overrides", "hidden_size=63"], "head_dim"),
    ],
)
def test_wrong_input_is_one_line(arguments, message, capsys):
    assert main(["parameters", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
