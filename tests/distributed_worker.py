# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""What tests/test_distributed.py lets several processes do, and one process for comparison.

    torchrun --nproc_per_node 2 tests/distributed_worker.py sharded SOURCE RESULTS
    accelerate launch --config_file FILE tests/distributed_worker.py train SOURCE RESULTS OUTPUT BATCH [CHECKPOINT]

Each process writes RESULTS/rank<number>.pt.
"""

import faulthandler
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from canvases import ragged_canvases
from test_training import CURRICULUM, TOKENIZER, make_trainer, most_likely, share_right, streamed
from torch.distributed.tensor import DTensor
from transformers.distributed import DistributedConfig
from variants import pad_rows, random_rows, stack_rows

from modeling_aoarm import AOARMForCausalLM
from modeling_aoarm.evaluation.likelihood import evaluate_likelihood


# A process that waits for another in vain fails after so many seconds.
PATIENCE = 60
SHARDINGS = {"fsdp": {"fsdp_size": 2}, "tensor_parallel": {"tp_size": 2}}
WAYS = (
    {"decoding_order": "random"},
    {"decoding_order": "confidence"},
    {"decoding_order": "random", "do_sample": True, "draft_length": 2},
)
# The canvases (of `ragged_canvases`) that each process fills: with unequal numbers of passes, and none in one of them.
CANVAS_SHARES = (((0, 3), (1, 2)), ((0, 2, 3), (1,)))
# 5 rows make 3 batches, 2 and 1: two processes cannot share them out evenly.
EVALUATION_BATCHES = (2, 4, 100)
EVALUATION_ROWS = [{"input_ids": ids} for ids in TOKENIZER(["abcdef", "rq", "aabbccddeeff", "k", "pqrabc"]).input_ids]
TRAINING = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps", "eval_steps": 3}


def training_batch(variant: str) -> dict[str, torch.Tensor]:
    """Rows with padding, of which the first half has fewer labels than the second."""
    short, long = random_rows(variant, 2, 5), random_rows(variant, 2, 7, seed=1)
    batch = stack_rows([pad_rows(short, 7, "right"), pad_rows(long, 7, "right")])
    return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def fill(model, canvases: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    filled = []
    for way in WAYS:
        generators = [torch.Generator().manual_seed(seed) for seed in range(len(canvases["input_ids"]))]
        output = model.generate(**canvases, **way, generator=generators, return_dict_in_generate=True)
        filled.append({name: output[name] for name in ("sequences", "decoding_order", "logprobs", "decoding_steps")})
    return filled


def fill_share(model, rank: int) -> list[list[dict[str, torch.Tensor]]]:
    """What one process fills where each has canvases of its own."""
    canvases = ragged_canvases()
    return [
        fill(model, {name: value[list(shares[rank])] for name, value in canvases.items()}) for shares in CANVAS_SHARES
    ]


def train_steps(model, optimizer, variant: str, is_shared: bool) -> dict[str, object]:
    """Two steps of gradient descent: losses of the whole batch, first gradients, weights in the end."""
    batch, processes = training_batch(variant), 1
    labels = int(batch["labels"][:, 1:].ne(-100).sum())
    if is_shared:
        # Gradients are averaged over the processes.
        rank, processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
        batch = {name: value.chunk(processes)[rank] for name, value in batch.items()}
    losses, gradients = [], None
    for _ in range(2):
        loss = model(**batch, num_items_in_batch=labels).loss
        (loss * processes).backward()
        loss = loss.detach().clone()
        if is_shared:
            torch.distributed.all_reduce(loss)
        losses.append(float(loss))
        gradients = gradients or {name: whole(weight.grad) for name, weight in model.named_parameters()}
        optimizer.step()
        optimizer.zero_grad()
    weights = {name: whole(weight) for name, weight in model.named_parameters()}
    return {"losses": losses, "gradients": gradients, "weights": weights}


def check_model(model, variant: str, accelerator: Accelerator | None, is_shared: bool = False) -> dict[str, object]:
    """Everything that a sharded model has to do as a whole one does. The same in one process, without accelerator."""
    # Before the first pass, after which FSDP2 has whole tensors among the parameters until the next one.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with torch.no_grad():
        logits = model(**random_rows(variant, 4, 7), use_cache=False).logits
    results = {"logits": logits, "filled": fill(model, ragged_canvases())}
    if accelerator is None or is_shared:
        ranks = range(2) if accelerator is None else [accelerator.process_index]
        results["filled_shares"] = {rank: fill_share(model, rank) for rank in ranks}
    results["evaluations"] = [
        evaluate_likelihood(
            model, EVALUATION_ROWS, TOKENIZER, draws=2, batch_size=size, accelerator=accelerator, progress=False
        ).example_nll
        for size in EVALUATION_BATCHES
    ]
    return {**results, **train_steps(model.train(), optimizer, variant, is_shared)}


def sharded(source: str, results: str) -> None:
    """Loads each model of `source` shared out in each way."""
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=PATIENCE))
    accelerator = Accelerator(cpu=True)
    measured = {"world_size": torch.distributed.get_world_size()}
    for folder in sorted(Path(source).iterdir()):
        for name, sizes in SHARDINGS.items():
            model = AOARMForCausalLM.from_pretrained(folder, distributed_config=DistributedConfig(**sizes))
            measured[f"{folder.name}-{name}"] = {
                "local_shapes": local_shapes(model),
                **check_model(model, folder.name, accelerator, is_shared=name == "fsdp"),
            }
            saved = Path(results) / f"{folder.name}-{name}"
            model.save_pretrained(saved, is_main_process=accelerator.is_main_process)
    torch.save(measured, Path(results) / f"rank{accelerator.process_index}.pt")
    torch.distributed.destroy_process_group()


def local_shapes(model) -> dict[str, list[int]]:
    """What of the weights lies in this process, for those that are shared out."""
    return {
        name: list(weight.to_local().shape) for name, weight in model.named_parameters() if isinstance(weight, DTensor)
    }


def run_training(model, output: str, batch: int, checkpoint: str | None = None, **changes):
    """A training of 6 steps with evaluations of a stream, its trainer and what that recorded."""
    settings = {**TRAINING, "per_device_train_batch_size": batch, "order": CURRICULUM, **changes}
    trainer, recorder = make_trainer(output, model=model, dataloader_drop_last=False, **settings)
    trainer.eval_dataset = streamed(trainer.eval_dataset)
    trainer.preprocess_logits_for_metrics, trainer.compute_metrics = most_likely, share_right
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    return trainer, recorder


def training_results(trainer) -> dict[str, object]:
    history = trainer.state.log_history
    names = ("loss", "grad_norm", "eval_any_order_nll", "eval_left_to_right_nll", "eval_right")
    return {name: [log[name] for log in history if name in log] for name in names}


def train(source: str, results: str, output: str, batch: str, checkpoint: str | None = None) -> None:
    """A training as it was launched; FSDP and DeepSpeed are made to work on a CPU."""
    is_sharded = "true" in (os.environ.get("ACCELERATE_USE_FSDP"), os.environ.get("ACCELERATE_USE_DEEPSPEED"))
    if is_sharded:
        # Accelerate knows them on accelerators only; on a CPU it would train with DDP.
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
        PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
    model = AOARMForCausalLM.from_pretrained(source)
    trainer, _ = run_training(model, output, int(batch), checkpoint, use_cpu=not is_sharded)
    measured = {
        "world_size": torch.distributed.get_world_size(),
        "distributed_type": AcceleratorState().distributed_type.value,
        "local_shapes": local_shapes(trainer.model),
        **training_results(trainer),
    }
    torch.save(measured, Path(results) / f"rank{trainer.args.process_index}.pt")


if __name__ == "__main__":
    faulthandler.dump_traceback_later(4 * PATIENCE, exit=True)
    {"sharded": sharded, "train": train}[sys.argv[1]](*sys.argv[2:])
