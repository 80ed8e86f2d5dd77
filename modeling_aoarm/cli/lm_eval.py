# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""`python -m modeling_aoarm lm-eval`: tasks of the LM Evaluation Harness with an any-order model."""

import argparse
import json
from pathlib import Path

from ..io import write_json
from .common import add_command, add_loading_arguments, check_is_there, find_device, keep_quiet


DESCRIPTION = """\
Evaluate an any-order model on tasks of the LM Evaluation Harness (lm-eval), and print the harness's table.

From left to right the numbers are those of `lm_eval --model hf`. In random orders the tokens of each continuation, and
of each window of a text, are scored in --num-orders orders. `<blank>` in the prompt of a task says where the
continuation goes, and prompts with <blank:3> are filled.
"""

EXAMPLES = """\
examples:
  python -m modeling_aoarm lm-eval outputs/pretrain --include-path tests/lm_eval_tasks --tasks aoarm_text,aoarm_choice
  python -m modeling_aoarm lm-eval outputs/pretrain --tasks lambada_openai --decoding-order random --num-orders 8
  python -m modeling_aoarm lm-eval outputs/pretrain --include-path tests/lm_eval_tasks --tasks aoarm_infill \\
      --gen-kwargs decoding_order=confidence --output-path results.json --log-samples

Exit status: 0, or 2 with one line on stderr.
"""


def add_lm_eval_command(subparsers) -> None:
    """Declares `lm-eval` among argparse's `subparsers`."""
    summary = "evaluate a model on tasks of the LM Evaluation Harness"
    parser = add_command(subparsers, "lm-eval", run_lm_eval, summary, DESCRIPTION, EXAMPLES)
    parser.add_argument(
        "model", metavar="MODEL", help="folder of a saved model and its tokenizer, or a name on the Hub"
    )

    tasks = parser.add_argument_group("tasks")
    tasks.add_argument(
        "--tasks", required=True, metavar="T1,T2", help="names of tasks, groups and tags, * for any letters"
    )
    tasks.add_argument("--include-path", metavar="DIR", help="a folder with more tasks, as YAML files")
    tasks.add_argument("--num-fewshot", type=int, metavar="N", help="examples before each prompt (as the task says)")
    tasks.add_argument("--limit", type=float, metavar="N", help="documents of each task, or their share if below 1")
    tasks.add_argument(
        "--gen-kwargs", default="", metavar="K=V,K=V", help="of generation, over those of the tasks: do_sample=True,..."
    )
    tasks.add_argument("--apply-chat-template", action="store_true", help="write prompts as the tokenizer's chats")

    orders = parser.add_argument_group("orders of scored tokens")
    orders.add_argument(
        "--decoding-order",
        choices=("left_to_right", "random"),
        default="left_to_right",
        help="the order in which the tokens of a continuation are predicted (%(default)s)",
    )
    orders.add_argument(
        "--num-orders", type=int, default=1, metavar="K", help="random orders of each continuation (%(default)s)"
    )
    orders.add_argument(
        "--ensemble",
        choices=("mean", "log_mean"),
        default="mean",
        help="join orders by the mean of their log-likelihoods, or by the log of their mean likelihood (%(default)s)",
    )
    orders.add_argument(
        "--seed", type=int, default=1234, metavar="S", help="of orders, samples and few-shot examples (%(default)s)"
    )

    running = parser.add_argument_group("output and loading")
    running.add_argument("--output-path", metavar="FILE", help="write the results as JSON")
    running.add_argument("--log-samples", action="store_true", help="with each document's results; needs --output-path")
    running.add_argument("--batch-size", default="1", metavar="N", help="requests at once, or auto (%(default)s)")
    add_loading_arguments(running)
    running.add_argument(
        "--add-bos-token",
        action="store_true",
        default=None,
        help="put the beginning-of-sentence token in front, where the tokenizer does not",
    )
    running.add_argument(
        "--model-args", default="", metavar="K=V,K=V", help="more arguments of lm-eval's hf: peft=DIR, max_length=512"
    )


def run_lm_eval(arguments: argparse.Namespace) -> None:
    """Prints the harness's table of results, and writes them.

    Raises:
        OSError: for a model, a folder of tasks or data that is not there.
        ValueError: without the package `lm_eval`, for unknown tasks, and for what the harness or
            [`~modeling_aoarm.evaluation.lm_eval.AnyOrderLM`] refuses.
    """
    output = None if arguments.output_path is None else Path(arguments.output_path)
    if arguments.log_samples and output is None:
        raise ValueError("--log-samples needs --output-path, got it without.")
    if output is not None and output.is_dir():
        raise ValueError(f"--output-path must be a file, got the folder {output}.")
    if arguments.batch_size != "auto" and not (arguments.batch_size.isdecimal() and int(arguments.batch_size)):
        raise ValueError(f"--batch-size must be auto or a number of at least 1, got {arguments.batch_size}.")
    if arguments.limit is not None and not arguments.limit > 0:
        raise ValueError(f"--limit must be above 0, got {arguments.limit:g}.")
    check_is_there("MODEL", arguments.model)
    device = find_device(arguments.device)
    if arguments.include_path is not None and not Path(arguments.include_path).is_dir():
        raise FileNotFoundError(f"--include-path must be a folder, got {arguments.include_path}.")
    keep_quiet()
    try:
        import jinja2
        import lm_eval
        import yaml
        from datasets.exceptions import DatasetsError
        from lm_eval.utils import handle_non_serializable, make_table, simple_parse_args_string

        from ..evaluation.lm_eval import AnyOrderLM
    except ImportError as error:
        raise ValueError(f"lm-eval needs the packages of `lm-eval[hf]`: {error}") from error

    model_args = {
        "pretrained": arguments.model,
        "trust_remote_code": arguments.trust_remote_code,
        "dtype": arguments.dtype,
        "decoding_order": arguments.decoding_order,
        "num_orders": arguments.num_orders,
        "ensemble": arguments.ensemble,
        "seed": arguments.seed,
        "add_bos_token": arguments.add_bos_token,
    }
    more = simple_parse_args_string(arguments.model_args)
    if twice := sorted(set(more) & {*model_args, "batch_size", "device"}):
        raise ValueError(f"--model-args must not hold what has a flag of its own, got {', '.join(twice)}.")
    model_args |= more
    if output is not None:
        # Not after hours of evaluation.
        output.parent.mkdir(parents=True, exist_ok=True)
    # What the harness raises for wrong tasks and data.
    harness_errors = (AssertionError, DatasetsError, jinja2.TemplateError, yaml.YAMLError)
    try:
        task_manager, tasks = _find_tasks(arguments.tasks.split(","), arguments.include_path, model_args)
        try:
            model = AnyOrderLM(**model_args, batch_size=arguments.batch_size, device=str(device))
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"MODEL {arguments.model} cannot be evaluated: {error}") from error
        results = lm_eval.simple_evaluate(
            model=model,
            model_args=model_args,
            tasks=tasks,
            num_fewshot=arguments.num_fewshot,
            batch_size=arguments.batch_size,
            device=str(device),
            limit=arguments.limit,
            log_samples=arguments.log_samples,
            apply_chat_template=arguments.apply_chat_template,
            gen_kwargs=simple_parse_args_string(arguments.gen_kwargs) or None,
            task_manager=task_manager,
            random_seed=arguments.seed,
            numpy_random_seed=arguments.seed,
            torch_random_seed=arguments.seed,
            fewshot_random_seed=arguments.seed,
        )
    except harness_errors as error:
        raise ValueError(f"lm-eval: {type(error).__name__}: {error}") from error
    if results is None:
        # A process of several that is not the first.
        return
    if output is not None:
        write_json(output, json.loads(json.dumps(results, default=handle_non_serializable)))
    print(make_table(results))
    if results.get("groups"):
        print(make_table(results, "groups"))


def _find_tasks(names: list[str], include_path: str | None, metadata: dict):
    """The harness's task manager, and the names of the tasks, groups and tags that `names` match.

    Raises:
        ValueError: for a name that matches nothing.
    """
    from lm_eval.tasks import TaskManager

    if include_path is not None:
        # The harness's own tasks are very many: they are looked through only where they may be meant.
        manager = TaskManager(include_path=include_path, include_defaults=False, metadata=metadata)
        matches = [manager.match_tasks([name]) for name in names]
        found = {task for match in matches for task in match}
        if all(matches) and not found & {*manager.all_groups}:
            return manager, sorted(found)
    manager = TaskManager(include_path=include_path, metadata=metadata)
    matches = {name: manager.match_tasks([name]) for name in names}
    if unknown := [name for name, match in matches.items() if not match]:
        where = f" or in {include_path}" if include_path is not None else ""
        raise ValueError(f"--tasks must name tasks of lm-eval{where}, got {', '.join(unknown)}.")
    return manager, sorted({task for match in matches.values() for task in match})


__all__ = ["add_lm_eval_command", "run_lm_eval"]
