"""A run's folder: what lies in it, who may write there, what counts as finished and what as failed."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from legibility.tradeoff.model_page import page_path, picture_path

RECORD, CHECKPOINT, CONFIG, DIGEST, ERROR, LOG, ORIGIN = (
    "record.json",
    "last.ckpt",
    "config.yaml",
    "digest.txt",
    "error.txt",
    "log.txt",
    "origin.json",
)
_LOCK = ".lock"
_PARTS = ("*.part", f".{RECORD}.*.tmp")  # ours, and those of `save_record`
_WANDB = "wandb"
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)

BY_ANOTHER = "by another process"
"""What is said of a run that this process found finished when it came to it."""


def write(path: Path, text: str) -> None:
    """Writes all or nothing: a process that is killed meanwhile leaves the file as it was."""
    temporary = path.with_name(f"{path.name}.part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def clean(folder: Path) -> None:
    """Takes away what an earlier run left, finished or killed half-way; the digest, which says "finished", goes first.

    The offline data of W&B goes too: synchronised later, it would show a run that never ended.
    """
    for name in (DIGEST, ORIGIN, RECORD, CHECKPOINT, ERROR, page_path(RECORD).name, picture_path(RECORD).name):
        (folder / name).unlink(missing_ok=True)
    for pattern in _PARTS:
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
    shutil.rmtree(folder / _WANDB, ignore_errors=True)


def write_origin(folder: Path, recipe: str, library: str) -> None:
    """Writes down which recipe a run is of, by name or path, and the digest of the library's code that makes it."""
    write(folder / ORIGIN, json.dumps({"recipe": recipe, "library": library}) + "\n")


def read_origin(folder: Path) -> dict[str, str]:
    """What :func:`write_origin` wrote; nothing for runs of a time when it wasn't written."""
    path = folder / ORIGIN
    found: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def write_failure(folder: Path, digest: str, text: str) -> None:
    """Writes down that the run with this digest failed, and why."""
    write(folder / ERROR, f"run {digest}\n{text.rstrip()}\n")


def read_failure(folder: Path, digest: str) -> str | None:
    """The last line of what :func:`write_failure` wrote for this very run; None if it did not fail."""
    try:
        first, _, text = (folder / ERROR).read_text(encoding="utf-8").partition("\n")
    except OSError:
        return None
    return (text.strip().splitlines() or [""])[-1] if first == f"run {digest}" else None


@contextlib.contextmanager
def claimed(folder: Path, waiting: Callable[[str], None]) -> Iterator[bool]:
    """While inside, no other process is in the same folder's claim. The system ends the claim of a process that dies.

    A disk without locks, such as Lustre mounted without `flock`, knows no claims: nothing is waited for there.

    Args:
        folder: Made if it does not exist.
        waiting: Called with the process that has to be waited for.

    Yields:
        Whether another process had to be waited for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("a+", encoding="utf-8") as file:
        waited = False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited = True
            file.seek(0)
            waiting(file.read().strip() or "another process")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield waited
