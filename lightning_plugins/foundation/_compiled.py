"""How hooks and torch.compile live together."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def forget_compiled() -> None:
    """Has everything compiled anew at its next call.

    A graph that was compiled before a hook was added to one of its modules never runs that hook, and says nothing:
    a model that has run before the fit, or a second fit. Nothing happens where nothing was compiled.
    """
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is not None:
        dynamo.reset()


@contextmanager
def uncompiled() -> Iterator[None]:
    """Inside, compiled modules run as they were written: for a few calls, with hooks that no graph should hold.

    Before torch 2.6 there is no such switch; graphs are compiled for these calls then.
    """
    if not hasattr(torch.compiler, "set_stance"):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
