# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Private and changing API of the libraries: each test says what a release has changed, and what of ours needs it."""

import ast
import dataclasses
import importlib.metadata
import inspect
from pathlib import Path

import pytest
import torch
import transformers
from transformers import GenerationMixin, Trainer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from variants import tiny_model

from modeling_aoarm import compat, compat_aoarm


PACKAGE = Path(compat.__file__).parent


def release(library):
    return f"{library} {importlib.metadata.version(library)}"


def check_function(library, owner, name, needed):
    """`owner.name` is a function that takes arguments of these names, in this order."""
    function = getattr(owner, name, None)
    assert function is not None, f"{release(library)} has no {owner.__name__}.{name} any more"
    parameters = list(inspect.signature(function).parameters)
    missing = [each for each in needed if each not in parameters]
    assert not missing, f"{owner.__name__}.{name} of {release(library)} takes {parameters}, without {missing}"
    indices = [parameters.index(each) for each in needed]
    assert indices == sorted(indices), f"{owner.__name__}.{name} of {release(library)} takes {parameters} in this order"


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("_prepare_generation_config", ["generation_config", "kwargs"]),
        ("_validate_model_kwargs", ["model_kwargs"]),
        ("_prepare_special_tokens", ["generation_config", "kwargs_has_attention_mask", "device"]),
        (
            "_get_logits_processor",
            ["generation_config", "input_ids_seq_length", "encoder_input_ids", "prefix_allowed_tokens_fn"]
            + ["logits_processor", "device", "model_kwargs"],
        ),
        ("_valid_auto_compile_criteria", ["model_kwargs", "generation_config"]),
        ("adjust_generation_fn", []),
        ("prepare_inputs_for_generation", ["input_ids", "attention_mask", "inputs_embeds", "kwargs"]),
        ("init_continuous_batching", []),
        ("generate_batch", []),
        ("continuous_batching_context_manager", []),
    ],
)
def test_generation_mixin(name, needed):
    check_function("transformers", GenerationMixin, name, needed)


def test_generation_configs_have_the_tensors_of_special_tokens():
    model = tiny_model("two_stream", eos_token_id=2, pad_token_id=1)
    config, left = compat_aoarm.prepare_generation_config(model, None, {"max_new_tokens": 3})
    ends, padding = compat_aoarm.special_tokens(model, config, True, torch.device("cpu"))
    assert ends.tolist() == [2] and int(padding) == 1, f"{release('transformers')} keeps special tokens elsewhere"
    assert "max_new_tokens" not in left


def test_the_cache_has_one_name_in_outputs_and_calls_of_the_library():
    name = compat_aoarm.CACHE_NAME
    for output in (BaseModelOutputWithPast, CausalLMOutputWithPast):
        fields = [field.name for field in dataclasses.fields(output)]
        assert name in fields, f"{output.__name__} of {release('transformers')} has no field {name}: {fields}"
    model = tiny_model("causal")
    seen = []
    forward = model.model.forward

    def spy(*args, **kwargs):
        seen.append(kwargs.get("past_key_values"))
        return forward(*args, **kwargs)

    model.model.forward = spy
    model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert all(cache is seen[0] is not None for cache in seen), (
        f"generate of {release('transformers')} gives the cache under a new name"
    )


def test_layers_get_the_cache_under_a_name_that_checkpointing_does_not_drop():
    source = inspect.getsource(transformers.modeling_layers.GradientCheckpointingLayer)
    assert '"key_values"' not in source, f"{release('transformers')} drops an argument named key_values"


def test_label_smoothing_looks_up_class_names():
    source = inspect.getsource(Trainer.compute_loss)
    assert "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES" in source and "_get_name" in source, (
        f"Trainer of {release('transformers')} decides in another way whose labels it shifts"
    )


def test_wrappers_of_peft_are_noticed_as_modules():
    """PEFT keeps the model of prompt learning as `base_model`, and asks for `active_peft_config`."""
    peft = pytest.importorskip("peft")
    source = inspect.getsource(peft.PeftModel.__init__)
    assert "self.base_model = model" in source, f"{release('peft')} keeps the model under another name"
    assert hasattr(peft.PeftModel, "active_peft_config"), f"{release('peft')} names the active config otherwise"


def test_sharded_models_have_classes_of_torchs_own():
    from torch.distributed.fsdp import FSDPModule

    class Sharded(FSDPModule, type(tiny_model("causal"))):
        pass

    Sharded.__module__ = FSDPModule.__module__
    assert FSDPModule.__module__.startswith("torch."), f"{release('torch')} has FSDP elsewhere"
    model = tiny_model("causal")
    own = type(model)
    model.__class__ = Sharded
    assert compat_aoarm.class_without_sharding(model) is own and model._get_name() == own.__name__
    assert compat_aoarm.needs_all_processes(model)


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("_run_epoch", []),
        ("_get_output_dir", ["trial"]),
        ("_save_checkpoint", ["model", "trial"]),
        ("_push_from_checkpoint", ["checkpoint_folder"]),
        ("save_model", ["output_dir", "_internal_call"]),
    ],
)
def test_trainer(name, needed):
    check_function("transformers", Trainer, name, needed)


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("_loglikelihood_tokens", ["requests", "disable_tqdm"]),
        ("_encode_pair", ["context", "continuation"]),
        ("_detect_batch_size", []),
    ],
)
def test_lm_eval(name, needed):
    HFLM = pytest.importorskip("lm_eval.models.huggingface").HFLM
    check_function("lm_eval", HFLM, name, needed)


def test_the_command_of_lm_eval():
    module = pytest.importorskip("lm_eval.__main__")
    assert callable(getattr(module, "cli_evaluate", None)), f"{release('lm_eval')} has no cli_evaluate any more"


def test_tables_of_peft():
    constants = pytest.importorskip("peft.utils.constants")
    tables = compat.peft_target_tables()
    assert "TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING" in tables, f"{release('peft')} has other tables"
    assert all(getattr(constants, name)["llama"] for name in tables)


PRIVATE = {
    "_attn_implementation": "a config's attention backend, which the library's own models read too",
    "_auto_class": "set by register_for_auto_class",
}


def private_attributes(path):
    """Names `x._name` of objects that are not `self`, and of `super()`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Attribute) or not node.attr.startswith("_") or node.attr.startswith("__"):
            continue
        if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
            continue
        yield node.attr


def test_private_api_is_used_in_two_modules_only():
    ours = {
        node.name
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    }
    assigned = {
        node.attr
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    found = {
        f"{path.relative_to(PACKAGE)}: {name}"
        for path in PACKAGE.rglob("*.py")
        if path.name not in ("compat.py", "compat_aoarm.py")
        for name in private_attributes(path)
        # The underscore of a named tuple's `_replace` only keeps it apart from fields.
        if name not in ours | assigned | set(PRIVATE) | {"_replace"}
    }
    assert not found
