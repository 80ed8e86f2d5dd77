# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Everything in configuration/ can be used: folders build models, recipes name real flags."""

import pytest
import torch
import yaml
from scripts import REPOSITORY, load_script
from transformers import AutoConfig, AutoModelForCausalLM

from modeling_aoarm import AOARMConfig, model_class_for
from modeling_aoarm.data.masked_diffusion import collator_class_for
from modeling_aoarm.data.tokenizers import character_tokenizer


FOLDERS = sorted(path.parent for path in (REPOSITORY / "configuration").glob("*/config.json"))
RECIPES = sorted((REPOSITORY / "configuration" / "recipes").glob("pretrain_*.yaml"))

pretrain = load_script("examples/pretrain.py")


def test_there_is_one_folder_per_variant_named_after_it():
    variants = AOARMConfig.__dataclass_fields__["attention_variant"].type.__args__
    assert [folder.name for folder in FOLDERS] == sorted(variants)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_folder_loads_by_auto_config_and_builds_its_variant(folder):
    config = AutoConfig.from_pretrained(folder)
    assert isinstance(config, AOARMConfig) and config.attention_variant == folder.name
    with torch.device("meta"):
        model = model_class_for(config)(config)
    assert config.architectures == [type(model).__name__]
    assert 5e5 < model.num_parameters() < 1e7


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_recipe_parses_and_its_model_builds(recipe, tmp_path):
    model_args, data_args, eval_args, args, _ = pretrain.parse_arguments([str(recipe), "--output_dir", str(tmp_path)])
    written = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    for name, value in written.items():
        owner = next(group for group in (model_args, data_args, eval_args, args) if hasattr(group, name))
        if name != "output_dir":
            assert getattr(owner, name) == value, name
    assert args.output_dir == str(tmp_path)
    tokenizer = character_tokenizer(["abcdefghijklmnopqrstuvwxyz "])
    config = pretrain.build_config(model_args, tokenizer, data_args.block_size + 1)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    if recipe.name == "pretrain_small.yaml":
        assert 7.5e6 < model.num_parameters() < 8.5e6


def test_overrides_reach_derived_fields_and_wrong_ones_are_named(tmp_path):
    tokenizer = character_tokenizer(["abc"])

    def build(**arguments):
        return pretrain.build_config(pretrain.ModelArguments(**arguments), tokenizer, 10)

    config = build(config_overrides="hidden_size=64, num_attention_heads=2,tie_word_embeddings=true")
    assert (config.hidden_size, config.head_dim, config.num_key_value_heads) == (64, 32, 2)
    assert config.tie_word_embeddings is True
    assert (config.vocab_size, config.bos_token_id, config.mask_token_id) == (8, 0, 3)
    assert build(model_config=str(REPOSITORY / "configuration" / "causal")).attention_variant == "causal"
    with pytest.raises(ValueError, match="with overrides='no_such_field=1' cannot be built: .*no_such_field"):
        build(config_overrides="no_such_field=1")
    with pytest.raises(ValueError, match="with overrides='hidden_size' cannot be built"):
        build(config_overrides="hidden_size")
    with pytest.raises(ValueError, match="need 10 positions, got max_position_embeddings=8"):
        build(config_overrides="max_position_embeddings=8")


def test_recipes_are_checked_and_flags_win(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("learning_rate: 1e-4\nmax_steps: 7\nbf16: false\n")
    args = pretrain.parse_arguments([str(recipe), "--max_steps", "9", "--use_cpu", "true"])[3]
    # YAML 1.1 reads 1e-4 as a string.
    assert (args.learning_rate, args.max_steps, args.bf16) == (1e-4, 9, False)
    recipe.write_text("learning_rat: 1.0e-4\n")
    with pytest.raises(ValueError, match="must name flags of this script, got learning_rat"):
        pretrain.parse_arguments([str(recipe)])


@pytest.mark.parametrize(
    "variant, flags, expected",
    [
        ("two_stream", {}, "left_to_right to uniform until 0.4 of the training"),
        ("two_stream", {"start_order": "none"}, "uniform"),
        ("two_stream", {"order": "block"}, "block"),
        (
            "two_stream",
            {"order": "lattice", "start_order": "local(2)"},
            "local(2) to lattice until 0.4 of the training",
        ),
        ("causal", {}, "left_to_right"),
        ("bidirectional", {}, "uniform"),
        (
            "bidirectional",
            {"order": "lattice", "start_order": "uniform"},
            "uniform to lattice until 0.4 of the training",
        ),
    ],
)
def test_training_orders_follow_the_flags(variant, flags, expected):
    tokenizer = character_tokenizer(["abc"])
    config = AOARMConfig(attention_variant=variant, mask_token_id=tokenizer.mask_token_id)
    collator = pretrain.build_collator(pretrain.DataArguments(**flags), tokenizer, config)
    assert str(collator.order) == expected and isinstance(collator, collator_class_for(config))
