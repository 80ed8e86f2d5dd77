# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Training on a stream: each process and worker reads a part of its own, pass after pass."""

import itertools
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from accelerate.data_loader import prepare_data_loader
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from ..compat import is_split_by_node
from ..data.collators import DataCollatorWithOrders


if TYPE_CHECKING:
    from datasets import IterableDataset


logger = logging.getLogger(__name__)

_LOADER_OPTIONS = ("pin_memory", "persistent_workers", "prefetch_factor", "multiprocessing_context", "in_order")


class StreamPart(torch.utils.data.IterableDataset):
    """One process's part of a stream, pass after pass without end.

    A stream that ended would end at another step in each process, and those that go on would wait for the others for
    ever. `Trainer` also cannot resume in a second pass over a stream: it takes `max_steps` as the length of a pass.

    The parts of a pass are disjoint, and together they are the stream: whole shards (files) if the processes can share
    them out evenly, else every n-th row of all shards. Workers of a data loader share the shards of the part.

    Args:
        dataset: the whole stream.
        rank: the process.
        world_size: the number of processes.
    """

    def __init__(self, dataset: "IterableDataset", rank: int, world_size: int):
        super().__init__()
        self.dataset, self.rank, self.world_size = dataset, rank, world_size

    def start_pass(self, epoch: int = 0) -> "IterableDataset":
        """Returns the part, at the start of a pass. The epoch changes how the stream is shuffled."""
        # A new object for each pass: workers share the epoch of an old one, and may be in different passes.
        part = split_dataset_by_node(self.dataset, self.rank, self.world_size)
        part.set_epoch(epoch)
        return part

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields rows with `example_epoch`, the pass, which the order depends on.

        Raises:
            ValueError: there is no row in the part of a process or a worker.
        """
        for epoch in itertools.count():
            row = None
            for row in self.start_pass(epoch):
                yield {**row, "example_epoch": epoch}
            if row is None:
                raise ValueError(
                    "train_dataset must have rows for each process and worker, got none in a part of the stream "
                    f"(process {self.rank} of {self.world_size}): use fewer processes or workers, or more text."
                )


def make_stream_loader(
    dataset: "IterableDataset", collator: DataCollatorWithOrders, args: TrainingArguments, batch_size: int
) -> DataLoader:
    """Makes the training loader of a process, which reads its own part of the stream.

    Args:
        dataset: the whole stream, the same in all processes.
        collator: makes the batches.
        args: the arguments of the training.
        batch_size: examples of a batch of one process.

    Raises:
        ValueError: `dataset` is already a process's part.
    """
    if is_split_by_node(dataset):
        raise ValueError(
            "train_dataset must be the whole stream, got a part by `split_dataset_by_node`: the trainer gives each "
            "process its part. Leave the call out."
        )
    part = StreamPart(dataset, args.process_index, args.world_size)
    shards, workers = part.start_pass().num_shards, args.dataloader_num_workers
    if dataset.num_shards % args.world_size:
        logger.warning(
            "The stream has %s shards (files) for %s processes, so each process reads all of it and keeps its share of "
            "the rows. A multiple is faster.",
            dataset.num_shards,
            args.world_size,
        )
    if workers > shards:
        # Idle workers would be counted as working by the clock of a curriculum.
        logger.warning("Uses %s of %s dataloader_num_workers, one for each shard of a process.", shards, workers)
        workers = shards
    options = {name: getattr(args, f"dataloader_{name}", None) for name in _LOADER_OPTIONS}
    loader = DataLoader(
        part,
        batch_size,
        collate_fn=collator,
        num_workers=workers,
        **{name: value for name, value in options.items() if value is not None},
    )
    # For accelerate it is the loader of one process. Told of all of them, it would read the first process's part alone
    # and send its rows to the others (`dispatch_batches`, its default for streams), or split each part again.
    return prepare_data_loader(
        loader, args.device, num_processes=1, process_index=0, put_on_device=True, dispatch_batches=False
    )
