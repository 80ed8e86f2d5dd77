# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Text as a stream: the rows of the text that is read as a whole, in parts that share it out, and runs that resume."""

import itertools
import json
import lzma
from collections import Counter

import numpy as np
import pytest
import torch
from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node
from test_training import make_trainer
from torch.utils.data import DataLoader

from modeling_aoarm.data.collators import DataCollatorForAnyOrderLM
from modeling_aoarm.data.orders import OrderCurriculum, sample_orders
from modeling_aoarm.data.text import StreamingTextArguments, TextArguments, sample_texts, tokenize_and_chunk
from modeling_aoarm.data.tokenizers import character_tokenizer
from modeling_aoarm.training.streams import StreamPart


LETTERS = "abcdefghijklmnopqr"
TOKENIZER = character_tokenizer([LETTERS])
# Long enough to be known again, all different, and so are their rows of 8.
TEXTS = ["".join(np.random.default_rng(number).choice(list(LETTERS), 50 + number % 7)) for number in range(60)]
HELD = ["".join(np.random.default_rng(1000 + number).choice(list(LETTERS), 55)) for number in range(5)]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def write_files(folder, texts, files, column="text"):
    """Texts as compressed JSON lines in several files, which are the shards of a stream."""
    folder.mkdir(exist_ok=True)
    for number in range(files):
        with lzma.open(folder / f"train-{number}.jsonl.xz", "wt", encoding="utf-8") as file:
            for text in texts[number * len(texts) // files : (number + 1) * len(texts) // files]:
                file.write(json.dumps({column: text, "id": 0}) + "\n")
    return str(folder) if files > 1 else str(folder / "train-0.jsonl.xz")


def stream_rows(folder, files, block_size=8, buffer_size=None, texts=TEXTS):
    path = write_files(folder, texts, files)
    source = {"dataset_name": path} if files > 1 else {"train_file": path}
    with lzma.open(folder / "validation-0.jsonl.xz", "wt", encoding="utf-8") as file:
        file.write("".join(json.dumps({"text": text, "id": 0}) + "\n" for text in HELD))
    if files == 1:
        source["validation_file"] = str(folder / "validation-0.jsonl.xz")
    stream = StreamingTextArguments(**source, streaming=True).load()["train"]
    rows = tokenize_and_chunk(stream, TOKENIZER, block_size)
    return rows if buffer_size is None else rows.shuffle(seed=0, buffer_size=buffer_size)


def count_rows(rows):
    return Counter((tuple(map(int, row["input_ids"])), row["num_characters"]) for row in rows)


@pytest.mark.parametrize("join_with", [None, "ab"])
@pytest.mark.parametrize("name", ["text.jsonl", "text.jsonl.xz", "text.txt", "text.csv"])
def test_a_stream_has_the_rows_of_the_text_that_is_read_as_a_whole(name, join_with, tmp_path):
    train = [*TEXTS, HELD[1], "a", "", "a"] if name.startswith("text.jsonl") else [*TEXTS, HELD[1], "a", "b", "a"]
    paths = {}
    for part, texts in (("train", train), ("held", HELD)):
        lines = [json.dumps({"text": text}) for text in texts] if "jsonl" in name else texts
        lines = ["text", *lines] if name.endswith("csv") else lines
        paths[part] = tmp_path / f"{part}-{name}"
        with (lzma.open if name.endswith("xz") else open)(paths[part], "wt", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))
    files = {"train_file": str(paths["train"]), "validation_file": str(paths["held"])}
    whole, streamed = TextArguments(**files).load(), StreamingTextArguments(**files, streaming=True).load()
    assert isinstance(streamed["train"], IterableDataset)
    assert list(streamed["validation"]["text"]) == list(whole["validation"]["text"]) == HELD
    expected, rows = (tokenize_and_chunk(texts["train"], TOKENIZER, 8, join_with) for texts in (whole, streamed))
    rows = list(rows)
    assert count_rows(rows) == count_rows(expected) and len(rows) > 300
    assert [tuple(row["input_ids"]) for row in rows] == [tuple(ids) for ids in expected["input_ids"]]
    # In the buffer that shuffles, a view would keep its whole text.
    assert all(row["input_ids"].base is None for row in rows)
    shuffled = list(tokenize_and_chunk(streamed["train"], TOKENIZER, 8, join_with).shuffle(seed=1, buffer_size=50))
    assert count_rows(shuffled) == count_rows(rows)
    assert [row["example_index"] for row in shuffled] != [row["example_index"] for row in rows]


def read_parts(rows, processes, workers, count):
    """`count` rows of each process, by process."""
    parts = []
    for rank in range(processes):
        loader = DataLoader(StreamPart(rows, rank, processes), batch_size=None, num_workers=workers)
        parts.append(list(itertools.islice(loader, count)))
    return parts


@pytest.mark.parametrize("buffer_size", [None, 40])
@pytest.mark.parametrize(("files", "processes", "workers"), [(4, 2, 2), (1, 2, 1), (3, 2, 0), (3, 2, 3), (2, 1, 2)])
def test_processes_and_workers_share_out_the_stream(files, processes, workers, buffer_size, tmp_path):
    rows = stream_rows(tmp_path / "text", files, buffer_size=buffer_size)
    expected = count_rows(rows)
    assert len(expected) == sum(expected.values()) > 400
    # Workers take turns, so after as many rows as there are, each has been through its part.
    parts = read_parts(rows, processes, workers, max(workers, 1) * sum(expected.values()))
    first = [[row for row in part if row["example_epoch"] == 0] for part in parts]
    assert all(any(row["example_epoch"] > 0 for row in part) for part in parts)
    assert sum((count_rows(part) for part in first), Counter()) == expected
    sizes = [len(part) for part in first]
    assert min(sizes) > 0.8 * sum(expected.values()) / processes
    # An example has one number, whoever reads it.
    numbers = {(tuple(map(int, row["input_ids"])), row["example_index"]) for part in parts for row in part}
    assert len(numbers) == len(expected)


def test_passes_are_shuffled_anew_and_orders_follow_them(tmp_path):
    rows = stream_rows(tmp_path / "text", 1, buffer_size=100)
    count = len(list(rows))
    passes = list(itertools.islice(iter(StreamPart(rows, 0, 1)), 2 * count))
    first, second = passes[:count], passes[count:]
    assert {row["example_epoch"] for row in first} == {0} and {row["example_epoch"] for row in second} == {1}
    indices = [[row["example_index"] for row in each] for each in (first, second)]
    assert sorted(indices[0]) == sorted(indices[1]) and indices[0] != indices[1]
    collator = DataCollatorForAnyOrderLM(TOKENIZER, seed=3)
    collator.start_epoch(7)
    for epoch, each in enumerate((first, second)):
        long = [row for row in each if len(row["input_ids"]) == 8][:20]
        expected = sample_orders(
            "uniform", [8] * 20, example_indices=[row["example_index"] for row in long], seed=3, epoch=epoch
        )
        assert torch.equal(collator(long)["position_ids"][:, 1:], expected.columns + 1)
    # Without a pass of its own an example belongs to the collator's.
    bare = [{name: row[name] for name in ("input_ids", "example_index")} for row in long]
    expected = sample_orders(
        "uniform", [8] * 20, example_indices=[row["example_index"] for row in bare], seed=3, epoch=7
    )
    assert torch.equal(collator(bare)["position_ids"][:, 1:], expected.columns + 1)


def test_held_out_texts_of_the_stream_itself_are_in_no_part(tmp_path):
    """`skip` would leave some of them in where the shards are shared out."""
    path = write_files(tmp_path / "text", [*TEXTS, TEXTS[0], "a"], 4, column="body")
    for count in (1, 12):
        arguments = StreamingTextArguments(
            dataset_name=path, text_column="body", streaming=True, validation_texts=count
        )
        splits = arguments.load()
        assert list(splits["validation"]["text"]) == TEXTS[:count]
        parts = read_parts(splits["train"], 2, 2, 200)
        assert {row["text"] for part in parts for row in part} == {*TEXTS[count:], "a"}


def test_most_texts_of_a_validation_part_that_are_held_out(tmp_path):
    train, held = (write_files(tmp_path / name, texts, 1) for name, texts in (("a", TEXTS), ("b", TEXTS[:9])))
    splits = StreamingTextArguments(train_file=train, validation_file=held, streaming=True, validation_texts=4).load()
    assert list(splits["validation"]["text"]) == TEXTS[:4]
    assert [row["text"] for row in splits["train"]] == TEXTS[4:]


def test_a_stream_is_read_no_further_than_it_is_used(tmp_path):
    """A stream without an end: whatever reads it as a whole never returns."""

    def endless():
        for number in itertools.count():
            yield {"text": TEXTS[number % 60] + LETTERS[number % 18] * (number // 1000)}

    stream = IterableDataset.from_generator(endless)
    sample = sample_texts(stream, 1000)
    assert sample == TEXTS[: len(sample)] and 1000 <= sum(map(len, sample)) < 1060
    rows = tokenize_and_chunk(stream, TOKENIZER, 8).shuffle(seed=0, buffer_size=20)
    trainer, recorder = make_trainer(tmp_path, max_steps=2)
    trainer.train_dataset = rows
    trainer.train()
    assert len(recorder.batches) == 2


CURRICULUM = OrderCurriculum("local(0)", "local(4)", until=1.0)


def train_on_stream(folder, stream, checkpoint=None, **changes):
    settings = {"max_steps": 9, "order": CURRICULUM, "save_strategy": "steps", "save_steps": 2, **changes}
    trainer, recorder = make_trainer(folder, per_device_train_batch_size=4, **settings)
    trainer.train_dataset = stream
    trainer.train(checkpoint and str(folder / checkpoint))
    return trainer, recorder


@pytest.mark.parametrize(("workers", "accumulation"), [(0, 1), (2, 1), pytest.param(0, 2, marks=pytest.mark.full)])
def test_a_run_resumes_in_any_pass_over_the_stream_with_the_same_batches(workers, accumulation, tmp_path):
    """The stream has 14 rows: 9 steps of 4 go into its third pass."""
    stream = stream_rows(tmp_path / "text", 2, buffer_size=5, texts=[text[:50] for text in TEXTS[:2]])
    assert len(list(stream)) == 14
    settings = {"dataloader_num_workers": workers, "gradient_accumulation_steps": accumulation}
    folder = tmp_path / "run"
    whole, recorded = train_on_stream(folder, stream, **settings)
    assert len(recorded.batches) == 9 * accumulation
    history = [log["loss"] for log in whole.state.log_history if "loss" in log]
    for step in (2, 6):
        resumed, again = train_on_stream(folder, stream, f"checkpoint-{step}", **settings)
        assert len(again.batches) == (9 - step) * accumulation
        for before, after in zip(recorded.batches[step * accumulation :], again.batches, strict=True):
            assert torch.equal(before["input_ids"], after["input_ids"])
            assert torch.equal(before["position_ids"], after["position_ids"])
        assert [log["loss"] for log in resumed.state.log_history if "loss" in log] == history
        for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
            assert torch.equal(one, other)


def test_orders_do_not_depend_on_the_number_of_workers(tmp_path):
    stream = stream_rows(tmp_path / "text", 3, texts=TEXTS[:12])
    orders = []
    for workers in (0, 2, 5):
        _, recorder = train_on_stream(
            tmp_path / "run", stream, order="uniform", dataloader_num_workers=workers, save_strategy="no"
        )
        found = {}
        for batch in recorder.batches:
            for ids, positions in zip(batch["input_ids"].tolist(), batch["position_ids"].tolist(), strict=True):
                found[tuple(token for _, token in sorted(zip(positions, ids, strict=True)))] = positions
        orders.append(found)
    for other in orders[1:]:
        common = orders[0].keys() & other.keys()
        assert len(common) >= 8 and all(orders[0][row] == other[row] for row in common)


def test_the_curriculum_counts_the_batches_of_workers_that_have_a_shard(tmp_path):
    """Of five workers two have a shard."""
    stream = stream_rows(tmp_path / "text", 2)
    _, recorder = train_on_stream(tmp_path / "run", stream, dataloader_num_workers=5, save_strategy="no")
    for step, batch in enumerate(recorder.batches):
        for ids, positions in zip(batch["input_ids"], batch["position_ids"], strict=True):
            rows = int((ids != TOKENIZER.pad_token_id).sum())
            tokens = ids[1:rows][positions[1:rows].argsort()].numpy()
            [row] = [row for row in stream if np.array_equal(row["input_ids"], tokens)]
            expected = sample_orders(
                CURRICULUM,
                [rows - 1],
                example_indices=[row["example_index"]],
                seed=3,
                progress=step / 9,
                first_column=1,
            )
            assert positions[1:rows].tolist() == expected.columns[0].tolist()


def test_bad_input_is_named(tmp_path):
    path = write_files(tmp_path / "text", TEXTS, 1)
    for settings, message in (
        ({}, "streaming needs a text to stream, got none: give dataset_name or train_file"),
        (
            {"train_file": path, "validation_fraction": 0.1},
            r"validation_fraction needs the whole text, got 0.1 .*give v",
        ),
        ({"train_file": path, "validation_texts": 60}, "validation_texts must leave texts to train on, got 60 of 60"),
        ({"train_file": path, "validation_texts": 0}, "validation_texts must be at least 1, got 0"),
        ({"train_file": path, "shuffle_buffer_size": 0}, "shuffle_buffer_size must be at least 1, got 0"),
        ({"train_file": path, "text_column": "body"}, "text_column must be one of text, id, got 'body'"),
    ):
        with pytest.raises(ValueError, match=message):
            StreamingTextArguments(streaming=True, **settings).load()
    with pytest.raises(ValueError, match="validation_texts is for streaming, got 5: give validation_fraction"):
        StreamingTextArguments(train_file=path, validation_texts=5).load()
    stream = StreamingTextArguments(train_file=path, validation_texts=5, streaming=True).load()["train"]
    with pytest.raises(ValueError, match="num_proc must be None for a stream, got 2"):
        tokenize_and_chunk(stream, TOKENIZER, 8, num_proc=2)
    with pytest.raises(ValueError, match=r"must have rows for each process and worker.*process 1 of 2"):
        list(StreamPart(tokenize_and_chunk(stream.take(1), TOKENIZER, 60), 1, 2))
    trainer, _ = make_trainer(tmp_path / "run")
    trainer.train_dataset = split_dataset_by_node(tokenize_and_chunk(stream, TOKENIZER, 8), 0, 2)
    with pytest.raises(ValueError, match="train_dataset must be the whole stream, got a part"):
        trainer.train()
