"""Starts a test program twice, as the two ranks of one gloo group.

To import torch and Lightning takes longer than most of these programs run. So one process for each rank does it once, and
every program runs in a copy (a fork) of it, which has memory, environment and threads of its own. The two ranks are copies
of two processes, and change places from one program to the next: what Python draws anew for each process, as the order of
sets, differs between ranks, and between a program and the one that resumes what it saved.
"""

import atexit
import contextlib
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import loader

PREPARED = ("pytorch_lightning", "lightning.pytorch", "legibility.lightning_plugins")


class _Prepared:
    """A process that has imported what test programs need, and runs one after the other, each in a copy of itself."""

    def __init__(self) -> None:
        command, environment = [sys.executable, __file__], {**os.environ, "OMP_NUM_THREADS": "1"}
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}
        self._process = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)
        self.busy = False
        atexit.register(self.end)

    def start(self, arguments: list[str], environment: dict[str, str], printed: Path) -> None:
        """`python ARGUMENTS`; all that it prints goes into a file."""
        assert self._process.stdin is not None
        self.busy = True
        self._process.stdin.write(json.dumps([arguments, environment, str(printed), os.getcwd()]).encode() + b"\n")

    def wait(self, seconds: float) -> str:
        """How the program ended; empty if well."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            return f"it still ran after {seconds} s"
        self.busy = False
        code = int(self._process.stdout.readline())
        return f"exit code {code}" if code else ""

    def end(self) -> None:
        """Together with the program that still runs."""
        if self.busy:
            os.killpg(self._process.pid, signal.SIGKILL)
            self.busy = False
        self._process.communicate()


_prepared: list[_Prepared] = []


def two(
    program: Path, namespace: str, out: Path, *arguments: str, gpus: bool = False, world: int = 2
) -> list[dict[str, Any]]:
    """Runs `program NAMESPACE OUT ARGUMENTS` on two ranks, or more; returns what each saved as OUT-WORLD-RANK.pt."""
    path = os.pathsep.join(filter(None, [str(program.parent), os.environ.get("PYTHONPATH")]))
    base = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | ({} if gpus else {"CUDA_VISIBLE_DEVICES": ""})
    base |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "NODE_RANK": "0", "WORLD_SIZE": str(world)}
    while len(_prepared) < world:
        _prepared.append(_Prepared())
    _prepared.reverse()
    ranks = _prepared[:world]
    files = [Path(f"{out}-{world}-{rank}.txt") for rank in range(world)]
    try:
        for rank, (process, printed) in enumerate(zip(ranks, files, strict=True)):
            process.start([str(program), namespace, str(out), *arguments], base | {"LOCAL_RANK": str(rank)}, printed)
        failed = ""
        for process, printed in zip(ranks, files, strict=True):
            if end := process.wait(20 if failed else 270):  # pytest's own limit is 300 s
                failed += f"{end}: {printed.read_text()}\n"
        assert not failed, failed
    finally:
        for process in [process for process in ranks if process.busy]:
            process.end()  # one that waits for the other's death would wait for half an hour
            _prepared.remove(process)
    return [torch.load(f"{out}-{world}-{rank}.pt", weights_only=True) for rank in range(world)]


class Launched(dict[str, list[Any]]):
    """What the ranks of each scenario saw: several scenarios to a launch, when the first of them is asked for.

    Args:
        program: Takes names of scenarios, and saves what was seen by name.
        folder: For what it saves.
        launch: Scenario -> the namespace of its launch, and all names that belong to it.
    """

    def __init__(self, program: Path, folder: Path, launch: Callable[[str], tuple[str, list[str]]]) -> None:
        super().__init__()
        self._program, self._folder, self._launch = program, folder, launch
        self._begun: set[str] = set()

    def __missing__(self, name: str) -> list[Any]:
        namespace, names = self._launch(name)
        pytest.importorskip(namespace)
        assert namespace not in self._begun, "the launch failed"
        self._begun.add(namespace)
        both = two(self._program, namespace, self._folder / namespace, *names)
        self.update({each: [rank[each] for rank in both] for each in names})
        return self[name]


def _free_port() -> int:
    """Below the range that systems take ports for outgoing connections from: seconds pass until rank 0 listens."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port


def place() -> tuple[int, int]:
    """How many ranks there are, and which of them this process is."""
    return int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))


def part_of_each_batch(batches: int, together: int = 1) -> tuple[list[Any], int]:
    """This rank's rows of the same global batches of 16, and how many of each batch they are.

    Args:
        batches: How many.
        together: Of so many ranks in a row each gets the same rows.
    """
    world, rank = (number // together for number in place()) if place()[0] > 1 else (1, 0)
    data = loader(rows=batches * 16, batch_size=1).dataset
    share = 16 // world
    starts = range(rank * share, batches * 16, 16)
    return [data[i] for start in starts for i in range(start, start + share)], share


def _serve() -> None:
    """Imports, then runs what is asked for, line by line, until nobody asks."""
    for name in PREPARED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for line in sys.stdin:
        arguments, environment, printed, folder = json.loads(line)
        if (copy := os.fork()) == 0:
            os.environ.clear()
            os.environ.update(environment)
            os.chdir(folder)
            with open(printed, "w") as file:
                os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
            sys.argv, sys.path[0] = arguments, str(Path(arguments[0]).parent)
            runpy.run_path(arguments[0], run_name="__main__")
            sys.exit()
        print(os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1]), flush=True)


if __name__ == "__main__":
    _serve()
