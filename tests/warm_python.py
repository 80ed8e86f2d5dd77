# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Programs in processes of their own that need not import the libraries again.

Importing torch and its companions takes several seconds. One interpreter does it once, and forks a process for each
program: that is safe where nothing has computed yet. It has no module of this package. With `FRESH_PYTHON=1`, which
`pytest --all` sets, every program gets an interpreter from scratch.
"""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path


REPOSITORY = Path(__file__).resolve().parents[1]
SECONDS = 300
# On one thread, whatever the machine has, and without a network.
VARIABLES = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


class WarmPython:
    """An interpreter that has imported the libraries under some environment variables, which they read then."""

    def __init__(self, variables: tuple):
        self.modules = tempfile.mkdtemp()
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            env={**os.environ, **dict(variables), "HF_MODULES_CACHE": f"{self.modules}/modules"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        weakref.finalize(self, _close, self.process, self.modules)

    def run(self, command: list[str], cwd: Path, text: str) -> subprocess.CompletedProcess:
        # Code that another program has loaded from a model's folder must not be found.
        shutil.rmtree(f"{self.modules}/modules", ignore_errors=True)
        with tempfile.TemporaryDirectory() as folder:
            streams = [Path(folder, name) for name in ("in", "out", "err")]
            streams[0].write_text(text, encoding="utf-8")
            request = {"command": command, "cwd": str(cwd), "streams": list(map(str, streams))}
            print(json.dumps(request), file=self.process.stdin, flush=True)
            returncode = json.loads(self.process.stdout.readline())
            stdout, stderr = (path.read_text(encoding="utf-8") for path in streams[1:])
        return subprocess.CompletedProcess(command, returncode, stdout, stderr)


def _close(process: subprocess.Popen, modules: str) -> None:
    process.stdin.close()
    process.wait()
    shutil.rmtree(modules, ignore_errors=True)


# One for all, and one for a test module with variables of its own.
warm_python = functools.lru_cache(maxsize=2)(WarmPython)


def run_python(*command, cwd=REPOSITORY, text="", from_scratch=False, **variables) -> subprocess.CompletedProcess:
    """Runs `python FILE ...`, `python -c PROGRAM ...` or `python -m MODULE ...`; nobody answers its questions.

    Args:
        text: what the program reads from its standard input.
        from_scratch: where it matters what the program imports, or no other program has the same variables.
        variables: environment variables besides `VARIABLES` and those of this process.
    """
    command, variables = [str(part) for part in command], {**VARIABLES, **variables}
    if not from_scratch and "FRESH_PYTHON" not in os.environ:
        return warm_python(tuple(sorted(variables.items()))).run(command, cwd, text)
    with tempfile.TemporaryDirectory() as modules:
        return subprocess.run(
            [sys.executable, *command],
            cwd=cwd,
            env={**os.environ, "HF_MODULES_CACHE": modules, **variables},
            input=text,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )


def _wait_for_programs() -> list[str]:
    """Forks a process for each request; returns the command in that process."""
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            signal.alarm(SECONDS)
            os.chdir(request["cwd"])
            for number, path in enumerate(request["streams"]):
                file = os.open(path, os.O_RDWR | os.O_CREAT)
                os.dup2(file, number)
                os.close(file)
            return request["command"]
        print(json.dumps(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])), flush=True)
    return []


if __name__ == "__main__":
    import gc
    import runpy

    import accelerate  # noqa: F401
    import datasets  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import peft  # noqa: F401
    from transformers import AutoModelForCausalLM, Trainer, pipeline  # noqa: F401

    # Or each child would walk through all that was imported, and copy it, when it ends.
    gc.freeze()
    command = _wait_for_programs()
    # From here on as in an interpreter of its own, to its end.
    if command[:1] == ["-c"]:
        sys.argv, sys.path[0] = ["-c", *command[2:]], ""
        exec(compile(command[1], "<string>", "exec"), {"__name__": "__main__"})
    elif command[:1] == ["-m"]:
        sys.argv, sys.path[0] = command[1:], os.getcwd()
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    elif command:
        sys.argv, sys.path[0] = command, str(Path(command[0]).parent)
        runpy.run_path(command[0], run_name="__main__")
