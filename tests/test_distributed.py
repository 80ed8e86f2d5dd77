# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Two real processes do what one does: data parallel, fully sharded, and tensor parallel."""

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import distributed_worker as worker
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from scripts import load_script
from variants import ANY_ORDER, tiny_model

from modeling_aoarm import AOARMForCausalLM


REPOSITORY = Path(__file__).resolve().parents[1]
CONFIGS = REPOSITORY / "configuration" / "accelerate"
PAGE = (CONFIGS / "README.md").read_text(encoding="utf-8")
SHARDED_VARIANTS = ("two_stream", "decoupled_rope")
SHARDINGS = list(worker.SHARDINGS)


def start(*command):
    # Without GPUs, and one thread each: results do not depend on the machine.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", *command]
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(results, processes):
    """What each worker wrote, when the launchers are done."""
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(outputs)[-20000:]
    return [torch.load(path) for path in sorted(results.glob("rank*.pt"))]


def accelerate(config, processes, *flags):
    command = ["accelerate.commands.launch", "--config_file", str(CONFIGS / f"{config}.yaml")]
    # The tests compare with float32.
    command += ["--num_processes", str(processes), "--mixed_precision", "no", "--num_cpu_threads_per_process", "1"]
    return [*command, *flags, str(REPOSITORY / "tests" / "distributed_worker.py"), "train"]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    for variant in SHARDED_VARIANTS:
        tiny_model(variant, qk_norm=True).save_pretrained(folder / variant)
    return folder


# Weights that are shared out from the start (`DistributedConfig`)


@pytest.fixture(scope="module")
def sharded(sources, tmp_path_factory):
    results = tmp_path_factory.mktemp("sharded")
    torchrun = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = [str(REPOSITORY / "tests" / "distributed_worker.py"), "sharded", str(sources), str(results)]
    return finish(results, [start(*torchrun, *script)]), results


@pytest.fixture(scope="module")
def whole(sources):
    """The same by one process."""
    return {
        variant: worker.check_model(AOARMForCausalLM.from_pretrained(sources / variant), variant, None)
        for variant in SHARDED_VARIANTS
    }


def check_filled(filled, expected):
    assert len(filled) == len(expected) == len(worker.WAYS)
    for one, other in zip(filled, expected, strict=True):
        for name in ("sequences", "decoding_order", "decoding_steps"):
            assert torch.equal(one[name], other[name]), name
        torch.testing.assert_close(one["logprobs"], other["logprobs"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("variant", SHARDED_VARIANTS)
def test_each_process_has_a_part_of_the_weights(variant, sharding, sharded, sources):
    ranks, _ = sharded
    assert [rank["world_size"] for rank in ranks] == [2, 2]
    one, other = (rank[f"{variant}-{sharding}"]["local_shapes"] for rank in ranks)
    weights = dict(AOARMForCausalLM.from_pretrained(sources / variant).named_parameters())
    if sharding == "fsdp":
        assert set(one) == set(weights)
    for name in ("embed_tokens", *(f"layers.1.self_attn.{p}_proj" for p in "qkvo"), "layers.2.mlp.down_proj"):
        assert f"model.{name}.weight" in one
    for name in one:
        assert torch.Size(one[name]).numel() + torch.Size(other[name]).numel() == weights[name].numel(), name
        if weights[name].shape[0] > 1:
            assert torch.Size(one[name]).numel() < weights[name].numel(), name


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("variant", SHARDED_VARIANTS)
def test_sharded_weights_predict_and_fill_as_whole_ones(variant, sharding, sharded, whole):
    for rank in sharded[0]:
        results = rank[f"{variant}-{sharding}"]
        torch.testing.assert_close(results["logits"], whole[variant]["logits"], atol=1e-5, rtol=0)
        check_filled(results["filled"], whole[variant]["filled"])


@pytest.mark.parametrize("variant", SHARDED_VARIANTS)
def test_processes_with_unequal_canvases_wait_for_each_other(variant, sharded, whole):
    for number, rank in enumerate(sharded[0]):
        shares = rank[f"{variant}-fsdp"]["filled_shares"]
        assert list(shares) == [number]
        for filled, expected in zip(shares[number], whole[variant]["filled_shares"][number], strict=True):
            check_filled(filled, expected)


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("variant", SHARDED_VARIANTS)
def test_evaluations_with_batches_that_cannot_be_shared_out_evenly(variant, sharding, sharded, whole):
    for rank in sharded[0]:
        for one, other in zip(rank[f"{variant}-{sharding}"]["evaluations"], whole[variant]["evaluations"], strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("variant", SHARDED_VARIANTS)
def test_training_steps_are_those_of_one_process(variant, sharding, sharded, whole):
    expected = whole[variant]
    assert expected["losses"][1] < expected["losses"][0]
    for rank in sharded[0]:
        results = rank[f"{variant}-{sharding}"]
        assert results["losses"] == pytest.approx(expected["losses"], abs=1e-5)
        for name in ("gradients", "weights"):
            assert set(results[name]) == set(expected[name])
            for parameter, value in results[name].items():
                torch.testing.assert_close(value, expected[name][parameter], atol=1e-5, rtol=1e-5, msg=parameter)


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("variant", SHARDED_VARIANTS)
def test_a_sharded_model_is_saved_whole_and_with_its_code(variant, sharding, sharded, whole, sources):
    folder = sharded[1] / f"{variant}-{sharding}"
    for name, weight in AOARMForCausalLM.from_pretrained(folder).named_parameters():
        torch.testing.assert_close(weight.detach(), whole[variant]["weights"][name], atol=1e-5, rtol=1e-5)
    check_code(folder, sources / variant)


def check_code(folder, source):
    """A folder loads without this package as the one does from which its model was loaded."""
    code, expected = ({path.name: path.read_text() for path in each.glob("*.py")} for each in (folder, source))
    assert "modeling_aoarm.py" in code and code == expected
    configs = [AOARMForCausalLM.config_class.from_pretrained(each).to_dict() for each in (folder, source)]
    assert configs[0]["auto_map"] == configs[1]["auto_map"]
    assert configs[0]["architectures"] == ["AOARMForCausalLM"]


# The trainer, launched with the accelerate configs


@pytest.fixture(scope="module")
def one_process(sources, tmp_path_factory):
    """The training by one process, and its folder."""
    folder = tmp_path_factory.mktemp("one")
    trainer, _ = worker.run_training(AOARMForCausalLM.from_pretrained(sources / "two_stream"), folder, batch=4)
    return worker.training_results(trainer), folder


def check_training(results, expected):
    assert len(expected["loss"]) == 6 and len(expected["eval_any_order_nll"]) == 2
    for name, values in expected.items():
        assert results[name] == pytest.approx(values, abs=2e-5), name


def check_weights(folder, expected):
    weights = [dict(AOARMForCausalLM.from_pretrained(each).named_parameters()) for each in (folder, expected)]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], atol=2e-4, rtol=1e-4, msg=name)


@pytest.mark.full
def test_two_machines_train_as_one_process_which_resumes_them(sources, one_process, tmp_path):
    expected, whole = one_process
    results, output, port = tmp_path / "results", tmp_path / "output", free_port()
    results.mkdir()
    machines = [
        ["--num_machines", "2", "--machine_rank", rank, "--main_process_ip", "127.0.0.1", "--main_process_port", port]
        for rank in ("0", "1")
    ]
    arguments = [str(sources / "two_stream"), str(results), str(output), "2"]
    ranks = finish(results, [start(*accelerate("ddp", 2, *flags), *arguments) for flags in machines])
    assert [(rank["world_size"], rank["distributed_type"]) for rank in ranks] == [(2, "MULTI_CPU")] * 2
    check_training(ranks[0], expected)
    check_weights(output, whole)

    resumed = tmp_path / "resumed"
    shutil.copytree(output / "checkpoint-3", resumed / "checkpoint-3")
    model = AOARMForCausalLM.from_pretrained(sources / "two_stream")
    trainer, recorder = worker.run_training(model, resumed, 4, checkpoint=str(resumed / "checkpoint-3"))
    assert len(recorder.weights) == 3
    check_training(worker.training_results(trainer), expected)
    check_weights(resumed, whole)


@pytest.mark.full
def test_fsdp2_trains_as_one_process_which_resumes_it(sources, one_process, tmp_path):
    expected, whole = one_process
    results, output, resumed = (tmp_path / name for name in ("results", "output", "resumed"))
    results.mkdir()
    source, port = str(sources / "two_stream"), ["--main_process_port", "0"]
    ranks = finish(results, [start(*accelerate("fsdp2", 2, *port), source, str(results), str(output), "2")])
    assert [(rank["world_size"], rank["distributed_type"]) for rank in ranks] == [(2, "FSDP")] * 2
    shares = [sum(torch.Size(shape).numel() for shape in rank["local_shapes"].values()) for rank in ranks]
    total = AOARMForCausalLM.from_pretrained(source).num_parameters()
    # The one learned vector of the query stream cannot be cut.
    assert sum(shares) == total and abs(shares[0] - shares[1]) < total / 10
    check_training(ranks[0], expected)
    check_weights(output, whole)
    check_code(output, whole)

    shutil.copytree(output / "checkpoint-3", resumed / "checkpoint-3")
    arguments = [source, str(results), str(resumed), "4", str(resumed / "checkpoint-3")]
    (results / "rank1.pt").unlink()
    [rank] = finish(results, [start(*accelerate("fsdp2", 1, *port), *arguments)])
    assert (rank["world_size"], rank["distributed_type"]) == (1, "FSDP")
    check_training(rank, expected)
    check_weights(resumed, whole)


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs `pip install deepspeed`")
@pytest.mark.parametrize("config", ["deepspeed_zero2", "deepspeed_zero3"])
def test_deepspeed_trains_as_one_process(config, sources, one_process, tmp_path, monkeypatch):
    expected, whole = one_process
    results, output = tmp_path / "results", tmp_path / "output"
    results.mkdir()
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    flags = ["--main_process_port", "0"]
    arguments = [str(sources / "two_stream"), str(results), str(output), "2"]
    ranks = finish(results, [start(*accelerate(config, 2, *flags), *arguments)])
    assert [(rank["world_size"], rank["distributed_type"]) for rank in ranks] == [(2, "DEEPSPEED")] * 2
    check_training(ranks[0], expected)
    check_weights(output, whole)
    check_code(output, whole)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_configs_are_read_by_accelerate_and_name_our_classes(path):
    config = load_config_from_file(str(path))
    assert config.num_machines == 1 and config.mixed_precision == "bf16" and not config.use_cpu
    wrapped = (config.fsdp_config or {}).get("fsdp_transformer_layer_cls_to_wrap")
    assert (wrapped is not None) == (config.distributed_type == "FSDP")
    if wrapped is not None:
        named = {"adaptive_norm": "AdaptiveNormDecoderLayer"}
        assert f"# {named['adaptive_norm']} for the variant adaptive_norm." in path.read_text(encoding="utf-8")
        for variant in ANY_ORDER:
            model, expected = tiny_model(variant), named.get(variant, wrapped)
            assert {type(layer).__name__ for layer in model.model.layers} == {expected}
            assert model._no_split_modules == model.model._no_split_modules == {expected}
    assert (config.deepspeed_config or {}).get("zero_stage") == (int(path.stem[-1]) if "zero" in path.stem else None)


# The page


@pytest.fixture(scope="module")
def memory():
    return load_script("examples/benchmarks/memory.py")


def test_the_page_has_the_tables_that_are_counted(memory):
    formulas, figures = memory.format_tables(processes=8, tokens=8192).split("\n\n")
    assert formulas in PAGE and figures in PAGE


@pytest.mark.parametrize("variant", SHARDED_VARIANTS)
def test_activations_of_another_model_and_length_are_what_the_formula_says(variant, memory):
    sizes = {"hidden_size": 120, "intermediate_size": 200, "num_attention_heads": 6, "num_key_value_heads": 3}
    config = tiny_model(variant, **sizes, num_hidden_layers=4, max_position_embeddings=512).config
    for under_autocast in (False, True):
        formula = memory.measure_formula(variant, under_autocast)
        short, long = (memory.count_saved_bytes(config, rows, under_autocast) for rows in (96, 384))
        expected = sum(a * b for a, b in zip(formula, memory.list_sizes(config), strict=True))
        assert long - short == 288 * expected


def test_states_have_the_bytes_of_the_formula(memory):
    model = tiny_model("two_stream").train()
    optimizer = torch.optim.AdamW(model.parameters())
    model(**worker.training_batch("two_stream")).loss.backward()
    optimizer.step()
    states = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    held = [*model.parameters(), *(weight.grad for weight in model.parameters()), *states]
    assert sum(each.nbytes for each in held) == memory.count_state_bytes(
        memory.count_parameters(model.config), "DDP", 8
    )


def test_the_page_names_files_that_exist():
    paths = set(re.findall(r"(?:configuration|examples)/[\w./]+\w", PAGE))
    assert len(paths) >= 4
    assert [path for path in paths if not (REPOSITORY / path).exists()] == []
    assert set(re.findall(r"`(\w+\.yaml)`", PAGE)) == {path.name for path in CONFIGS.glob("*.yaml")}
