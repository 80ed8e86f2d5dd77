# Copyright 2026 The modeling-aoarm authors. Licensed under the Apache License, Version 2.0.
"""Programs in processes of their own that need not import the libraries again.

Importing torch and its companions takes several seconds. One interpreter does it once, and forks a process for each
program: that is safe where nothing has computed yet. It has no module of this package. With `FRESH_PYTHON=1`, which
`pytest --all` sets, every program gets an interpreter from scratch.
"""

import atexit
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path


SECONDS = 300


class WarmPython:
    """An interpreter that has imported the libraries under some environment variables, which they read then."""

    def __init__(self, variables: tuple):
        self.modules = tempfile.mkdtemp()
        environment = {**os.environ, **dict(variables), "HF_MODULES_CACHE": f"{self.modules}/modules"}
        self.process = subprocess.Popen(
            [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        atexit.register(self.close)

    def run(self, command: list[str], cwd: Path) -> subprocess.CompletedProcess:
        # Code that another program has loaded from a model's folder must not be found.
        shutil.rmtree(f"{self.modules}/modules", ignore_errors=True)
        with tempfile.TemporaryDirectory() as folder:
            request = {"command": command, "cwd": str(cwd), "outputs": [f"{folder}/out", f"{folder}/err"]}
            print(json.dumps(request), file=self.process.stdin, flush=True)
            returncode = json.loads(self.process.stdout.readline())
            stdout, stderr = (Path(path).read_text(encoding="utf-8") for path in request["outputs"])
        return subprocess.CompletedProcess(command, returncode, stdout, stderr)

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        shutil.rmtree(self.modules, ignore_errors=True)


warm_python = functools.lru_cache(WarmPython)


def run_python(*command, cwd: Path, variables: dict, from_scratch: bool = False) -> subprocess.CompletedProcess:
    """Runs `python FILE ARGUMENTS` or `python -c PROGRAM ARGUMENTS`; nobody answers its questions.

    Args:
        variables: environment variables besides those of this process.
        from_scratch: for what a program imports, and for variables that no other program will have.
    """
    command = [str(part) for part in command]
    if not from_scratch and "FRESH_PYTHON" not in os.environ:
        return warm_python(tuple(sorted(variables.items()))).run(command, cwd)
    with tempfile.TemporaryDirectory() as modules:
        return subprocess.run(
            [sys.executable, *command],
            cwd=cwd,
            env={**os.environ, "HF_MODULES_CACHE": modules, **variables},
            stdin=subprocess.DEVNULL,
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
            places = [os.devnull, *request["outputs"]]
            for number, path in enumerate(places):
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
    elif command:
        sys.argv, sys.path[0] = command, str(Path(command[0]).parent)
        runpy.run_path(command[0], run_name="__main__")
