# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""The accelerator benchmark at toy size on a CPU: counted operations, cells that are kept, what follows from them."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from statistics import median
from types import SimpleNamespace

import pytest
import torch
from scripts import REPOSITORY, load_script, run_script
from torch.utils.flop_counter import FlopCounterMode
from variants import SIZES as TINY
from variants import VARIANTS

from modeling_aoarm import AOARMConfig, model_class_for


SCRIPT = REPOSITORY / "examples" / "benchmarks" / "accelerator.py"
# A script finds the modules beside it.
sys.path.insert(0, str(SCRIPT.parent))
benchmark = load_script(SCRIPT)

from gpu import decoding, kernels, models, training  # noqa: E402


CPU = torch.device("cpu")
TRAINED = {f"training/16/{model}" for model in training.TRAINED[:6]}
DECODED = {f"decoding/2/{way}" for way in decoding.list_ways(["two_stream"])}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that was killed behind its first cells and called again: both contents of the file, and what it printed."""
    folder = tmp_path_factory.mktemp("accelerator")
    arguments = ["--quick", "--output_dir", folder, "--peak_tflops", "0.1"]
    process = subprocess.Popen(
        [sys.executable, SCRIPT, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    path, started = folder / "accelerator.json", time.monotonic()
    while not path.exists() and process.poll() is None and time.monotonic() - started < 120:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed = json.loads(path.read_text(encoding="utf-8"))
    again = run_script(SCRIPT, *arguments)
    assert again.returncode == 0, again.stderr
    return killed, json.loads(path.read_text(encoding="utf-8")), folder, again.stdout


@pytest.mark.full
def test_a_killed_run_goes_on_behind_its_finished_cells(finished):
    killed, content, folder, printed = finished
    assert 1 <= len(killed["cells"]) < len(content["cells"])
    assert {name: content["cells"][name] for name in killed["cells"]} == killed["cells"]
    assert {cell["run"] for cell in content["cells"].values()} == {0, 1} and len(content["runs"]) == 2
    assert all("git_commit" in run and "machine" in run for run in content["runs"])
    assert set(content["cells"]) == TRAINED | DECODED
    assert not [name for name, cell in content["cells"].items() if "tokens_per_second" not in cell]
    assert "All cells are measured" in printed
    assert {path.name for path in folder.iterdir()} == {"accelerator.json", "accelerator.png"}
    assert (folder / "accelerator.png").read_bytes().startswith(b"\x89PNG")


def test_training_figures_follow_from_raw_ones(finished):
    _, content, _, _ = finished
    for name in TRAINED:
        cell, follows = content["cells"][name], content["compared"]["training"][name]
        seconds = median(cell["milliseconds_per_step"]) / 1000
        assert len(cell["milliseconds_per_step"]) == 2
        assert cell["examples"] * cell["accumulation"] * 16 == cell["tokens_per_step"] == 64
        assert cell["tokens_per_second"] == pytest.approx(64 / seconds)
        useful = sum(cell["useful_flops_per_step"].values()) / seconds / 1e12
        assert cell["useful_tflops_per_second"] == pytest.approx(useful)
        assert follows["utilisation"] == pytest.approx(useful / 0.1)
        llama = content["cells"][f"training/16/{models.LLAMA_WITHOUT_MASK}"]["tokens_per_second"]
        assert follows["to_llama"] == pytest.approx(cell["tokens_per_second"] / llama)
        assert cell["takes_flash"] and cell["flash_share"] == 1
        assert 2 < cell["loss"] < 6


def test_decoding_figures_follow_from_raw_ones(finished):
    _, content, _, _ = finished
    passes = {"two_stream, 4 a pass": 8, decoding.UNCACHED: 4}
    for name in DECODED:
        cell, follows = content["cells"][name], content["compared"]["decoding"][name]
        blanks = 4 if cell["way"] == decoding.UNCACHED else 31
        assert (cell["measured_blanks"], cell["blanks"], cell["extrapolated"]) == (blanks, 31, blanks < 31)
        assert cell["tokens_per_second"] == pytest.approx(2 * blanks / median(cell["seconds"]))
        assert cell["tokens_per_pass"] == pytest.approx(blanks / median(cell["forward_passes"]))
        if "drafts" in cell["way"]:
            assert all(7 <= made <= 31 for made in cell["forward_passes"])
        else:
            assert set(cell["forward_passes"]) == {passes.get(cell["way"], 31)}
        uncached = content["cells"][f"decoding/2/{decoding.UNCACHED}"]["tokens_per_second"]
        assert follows["to_uncached"] == pytest.approx(cell["tokens_per_second"] / uncached)


# Operations


@pytest.mark.parametrize("variant", [*VARIANTS, "bidirectional"])
def test_useful_operations_are_those_that_torch_counts(variant):
    fields = VARIANTS.get(variant, {"attention_variant": variant, "mask_token_id": 22})
    config = AOARMConfig(**TINY | fields)
    # Plain matrix products, all of which the counter sees.
    config._attn_implementation = "eager"
    model = model_class_for(config)(config).train()
    examples, rows = 3, 10
    batch = training.draw_batch(config.attention_variant, config.vocab_size, examples, rows, CPU)
    with FlopCounterMode(display=False) as counter:
        model(**batch).loss.backward()
    by_module = counter.get_flop_counts()
    # Angles are a product of positions and frequencies.
    rotations = sum(sum(counts.values()) for name, counts in by_module.items() if name.endswith("rotary_emb"))
    useful = models.count_useful_flops(config, examples, rows)
    # Eager attention multiplies what is masked, too.
    whole = useful["attention"] * rows**2 / models.count_attention_pairs(config.attention_variant, rows)
    assert counter.get_total_flops() - rotations == useful["linear"] + whole


def test_llama_has_the_useful_operations_of_causal():
    llama, causal = (models.make_model(name, 0, 32, models.TOY_SIZES, CPU).config for name in (models.LLAMA, "causal"))
    assert models.count_useful_flops(llama, 2, 32) == models.count_useful_flops(causal, 2, 32)


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_pairs_of_rows_that_see_each_other(rows):
    assert models.count_attention_pairs("two_stream", rows) == torch.ones(rows, rows).tril().sum()
    assert models.count_attention_pairs("bidirectional", rows) == torch.ones(rows, rows).sum()


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("AMD EPYC", None),
        (None, None),
    ],
)
def test_peaks_by_the_name_of_the_device(name, peak):
    assert models.find_peak_tflops(name) == peak


# Models and data


@pytest.mark.parametrize("name", [name for name in training.TRAINED if name != models.LLAMA])
def test_compiled_training_has_no_mask_tensor(name):
    found = []

    def recording(graph, example_inputs):
        found.extend(node.kwargs for node in graph.graph.nodes if "scaled_dot_product" in str(node.target))
        return graph.forward

    torch._dynamo.reset()
    arguments = SimpleNamespace(seed=0, compile_backend=recording)
    training.TrainingSteps(name, 16, 2, 1, arguments, models.TOY_SIZES, CPU).run(1)
    assert [each["attn_mask"] for each in found] == [None, None]
    assert [each["is_causal"] for each in found] == [name != "bidirectional"] * 2


def test_llama_without_a_mask_tensor_is_llama():
    tokens = torch.randint(64, (2, 16))
    stock, unmasked = (
        models.make_model(name, 0, 16, models.TOY_SIZES, CPU) for name in (models.LLAMA, models.LLAMA_WITHOUT_MASK)
    )
    torch.testing.assert_close(unmasked(tokens).logits, stock(tokens).logits)


def test_training_batches():
    torch.manual_seed(0)
    batch = training.draw_batch("two_stream", 64, 5, 16, CPU)
    assert batch["position_ids"].sort(dim=1).values.equal(torch.arange(16).expand(5, -1))
    assert (batch["position_ids"][:, 0] == 0).all() and batch["position_ids"].unique(dim=0).shape[0] == 5
    assert set(training.draw_batch("causal", 64, 5, 16, CPU)) == {"input_ids", "labels"}
    masked = training.draw_batch("bidirectional", 64, 500, 4, CPU)
    is_blank = masked["input_ids"] == 63
    assert (is_blank == (masked["labels"] != -100)).all() and is_blank.any(1).all() and (masked["labels"] != 63).all()
    # The number of blanks is uniform, but for those that would have none and get one.
    shares = is_blank.sum(1).bincount(minlength=5)[1:] / 500
    torch.testing.assert_close(shares, torch.tensor([0.4, 0.2, 0.2, 0.2]), atol=0.08, rtol=0)


@pytest.mark.parametrize("scattered", [True, False])
def test_canvases_have_their_blanks(scattered):
    canvas, mask = decoding.draw_canvas(6, 20, 7, 64, CPU, scattered)
    assert (mask.sum(1) == 7).all() and not mask[:, 0].any() and (canvas[:, 0] == decoding.BOS).all()
    assert mask[:, -7:].all() == (not scattered)
    assert canvas.max() < 63


# Batches, waits, kernels


def test_the_largest_batch_that_fits_is_taken():
    tried = []

    def attempt(examples):
        tried.append(examples)
        if examples > 4:
            raise torch.OutOfMemoryError("full")
        return f"{examples} examples"

    assert training.find_largest_batch(32, attempt, CPU) == (4, "4 examples")
    assert tried == [32, 16, 8, 4]


def test_not_even_one_example_fits():
    def attempt(examples):
        raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError):
        training.find_largest_batch(4, attempt, CPU)


def test_accumulated_parts_have_the_gradients_of_the_whole_batch(monkeypatch):
    batch = training.draw_batch("two_stream", 64, 4, 16, CPU)
    arguments = SimpleNamespace(seed=0, compile_backend="eager")
    gradients = []
    for accumulation in (1, 4):
        steps = training.TrainingSteps(
            "two_stream", 16, 4 // accumulation, accumulation, arguments, models.TOY_SIZES, CPU
        )
        parts = iter(range(accumulation))

        def part(*_, parts=parts, size=4 // accumulation):
            number = next(parts)
            return {name: value[number * size : (number + 1) * size] for name, value in batch.items()}

        monkeypatch.setattr(training, "draw_batch", part)
        monkeypatch.setattr(steps.optimizer, "zero_grad", lambda set_to_none: None)
        steps.run(1)
        gradients.append(steps.model.model.layers[0].mlp.up_proj.weight.grad)
    torch.testing.assert_close(gradients[1], gradients[0], atol=2e-4, rtol=0.05)


def test_waits_are_counted_by_pass_and_place(monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def run(blanks):
        passes = blanks // 4
        for _ in range(3):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        for _ in range(2 * passes):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
        return passes

    counted = kernels.count_host_waits(torch.device("cuda"), run, 16)
    assert counted["per_pass"] == 2 and modes == ["warn", 0, "warn", 0]
    assert list(counted["places"].values()) == [2] and "test_accelerator_benchmark.py:" in next(iter(counted["places"]))
    assert kernels.count_host_waits(CPU, run, 16) is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("void pytorch_flash::flash_fwd_splitkv_kernel<Flash_fwd_kernel_traits<64, 64, 256, 4> >", "flash"),
        ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<...>", "flash"),
        ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80(PyTorchMemEffAttention::...)", "efficient"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x64", "cudnn"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "flash"),
        ("nvjet_tst_128x256_64x4_1x2_h_bz_coopB_TNT", None),
        ("triton_per_fused__log_softmax_3", None),
    ],
)
def test_attention_kernels_are_known_by_their_names(name, kind):
    assert kernels.find_kind(name) == kind


def test_a_mask_keeps_flash_away_where_nothing_else_is_allowed():
    query = torch.randn(1, 2, 4, 8)
    attend = torch.nn.functional.scaled_dot_product_attention
    assert kernels.finds_flash(lambda: attend(query, query, query, is_causal=True))
    # Flash takes no dropout on a CPU.
    assert not kernels.finds_flash(lambda: attend(query, query, query, dropout_p=0.5))
    with pytest.raises(RuntimeError, match="other"):
        kernels.finds_flash(lambda: (_ for _ in ()).throw(RuntimeError("other")))


# Cells


class Clock:
    """A clock that only moves when a cell is measured."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def cell(self, seconds, outcome=None):
        def measure():
            self.now += seconds
            if isinstance(outcome, Exception):
                raise outcome
            return {"tokens_per_second": 1.0}

        return measure


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(benchmark, "time", clock)
    return clock


def fill(path, ways, time_limit=100.0, retry=False):
    cells = benchmark.Cells(path, {"seed": 0})
    return cells.fill(ways, SimpleNamespace(device=CPU, header=dict), time_limit, retry), cells.measured


def test_no_cell_is_begun_that_would_end_behind_the_limit(tmp_path, clock):
    ways = {f"training/1/{number}": clock.cell(30) for number in range(8)}
    left, measured = fill(tmp_path / "cells.json", ways)
    # A fourth would end at 120 seconds.
    assert list(measured) == list(ways)[:3] and left == list(ways)[3:]
    left, measured = fill(tmp_path / "cells.json", ways)
    assert list(measured) == list(ways)[:6] and left == list(ways)[6:]
    assert {cell["run"] for cell in measured.values()} == {0, 1}
    assert fill(tmp_path / "cells.json", ways)[0] == []


def test_the_first_cell_of_a_call_is_always_measured(tmp_path, clock):
    ways = {f"decoding/1/{number}": clock.cell(300) for number in range(2)}
    assert fill(tmp_path / "cells.json", ways)[0] == ["decoding/1/1"]
    assert fill(tmp_path / "cells.json", ways)[0] == []


def test_cells_of_the_other_part_say_nothing_about_seconds(tmp_path, clock):
    ways = {"training/1/a": clock.cell(80), "decoding/1/a": clock.cell(5), "decoding/1/b": clock.cell(5)}
    assert fill(tmp_path / "cells.json", ways)[0] == []


def test_failures_are_kept_and_errors_measured_again_when_wanted(tmp_path, clock):
    path = tmp_path / "cells.json"
    ways = {
        "training/1/a": clock.cell(1, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")),
        "training/1/b": clock.cell(1, ValueError("broken")),
        "training/1/c": clock.cell(1),
    }
    _, measured = fill(path, ways)
    assert measured["training/1/a"]["out_of_memory"] == "CUDA out of memory"
    assert measured["training/1/b"]["error"] == "ValueError: broken"
    assert measured["training/1/c"]["tokens_per_second"] == 1
    repaired = {name: clock.cell(1) for name in ways}
    assert set(fill(path, repaired)[1]["training/1/b"]) == {"error", "cell_seconds", "run"}
    _, measured = fill(path, repaired, retry=True)
    assert measured["training/1/b"]["tokens_per_second"] == 1 and "out_of_memory" in measured["training/1/a"]
    assert measured["training/1/c"]["run"] == 0


def test_cells_of_other_settings_are_refused_and_left_alone(tmp_path, clock):
    path = tmp_path / "cells.json"
    fill(path, {"training/1/a": clock.cell(1)})
    before = path.read_bytes()
    with pytest.raises(ValueError, match="seed=0 and not 1"):
        benchmark.Cells(path, {"seed": 1})
    assert path.read_bytes() == before
    path.write_text('{"cells": {', encoding="utf-8")
    with pytest.raises(ValueError, match="move it away"):
        benchmark.Cells(path, {"seed": 0})
    assert path.read_text(encoding="utf-8") == '{"cells": {'


def test_choices_of_cells_are_no_settings():
    sizes = models.TOY_SIZES
    one = benchmark.AcceleratorArguments(part="training", training_rows=[1024], time_limit=60, retry=True)
    assert one.settings(sizes, "H100") == benchmark.AcceleratorArguments().settings(sizes, "H100")
    for changes in ({"canvas": 512}, {"seed": 1}, {"attention_priority": "cudnn"}):
        assert benchmark.AcceleratorArguments(**changes).settings(sizes, "H100") != one.settings(sizes, "H100")


def test_targets_are_judged():
    cells = {
        "training/1024/two_stream": {"tokens_per_second": 50.0, "useful_tflops_per_second": 46.0},
        "training/4096/two_stream": {"tokens_per_second": 50.0, "useful_tflops_per_second": 44.0},
        "training/1024/Llama": {"tokens_per_second": 90.0, "useful_tflops_per_second": 50.0},
        "decoding/32/bidirectional, uncached": {"tokens_per_second": 2.0},
        "decoding/32/two_stream, one by one": {"tokens_per_second": 41.0},
        "decoding/32/two_stream, one by one, static": {"tokens_per_second": 39.0},
        "decoding/1/two_stream, one by one": {"tokens_per_second": 41.0},
        "decoding/32/two_stream, confidence": {"out_of_memory": "full"},
    }
    compared = benchmark.compare(cells, 100.0)
    judged = {entry["what"]: (entry["value"], entry["met"]) for entry in compared["targets"]}
    assert judged == {
        "two_stream training, 1024 rows": (0.46, True),
        "two_stream training, 4096 rows": (0.44, False),
        "two_stream, one by one, batch 32": (20.5, True),
        "two_stream, one by one, static, batch 32": (19.5, False),
    }
    assert compared["decoding"]["decoding/1/two_stream, one by one"]["to_uncached"] is None
    assert not [entry for entry in benchmark.compare(cells, None)["targets"] if "training" in entry["what"]]


# The command line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokens_per_step", "3000"], "--tokens_per_step must be a power of two times each of --training_rows"),
        (["--training_rows", "1"], "--training_rows must be at least 2"),
        (["--training_models", "nothing"], "--training_models must be of"),
        (["--decoding_variants", "causal"], "--decoding_variants must be of two_stream"),
        (["--canvas", "40"], "--canvas must be at least 48"),
        (["--few_blanks", "4"], "--few_blanks must be at least 8"),
        (["--attention_priority", "math"], "invalid choice"),
    ],
)
def test_bad_arguments_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
def test_full_sizes_need_an_accelerator(tmp_path):
    for arguments in (["--output_dir", str(tmp_path)], ["--quick"]):
        with pytest.raises(SystemExit, match="There is no accelerator here"):
            benchmark.main(arguments)
    assert not list(tmp_path.iterdir())
