"""Modules by the names that users know: without the wrappers', and chosen by shell patterns."""

import difflib
import fnmatch
import re
from collections.abc import Iterable, Sequence

from torch import nn

# Names that wrappers (torch.compile, FSDP, activation checkpointing) put into module paths.
_WRAPPERS = re.compile(r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def plain_name(name: str) -> str:
    """A module's name as the user wrote it, without the prefixes of wrappers.

    Example:
        >>> plain_name("net._orig_mod.blocks.0")
        'net.blocks.0'
    """
    return _WRAPPERS.sub("", name + ".").removesuffix(".")


def match_names(patterns: str | Sequence[str], names: Iterable[str], argument: str) -> list[str]:
    """The names that match any of the shell patterns, in their own order.

    Args:
        patterns: One pattern or several (``"encoder.layers.*"``).
        names: What there is.
        argument: The caller's argument, for the message.

    Raises:
        ValueError: A pattern matches nothing; the message lists near names.

    Example:
        >>> match_names("blocks.*", ["blocks", "blocks.0", "blocks.1", "head"], "taps")
        ['blocks.0', 'blocks.1']
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    names = [name for name in names if name]
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, n=5, cutoff=0.3) or names[:8]
            raise ValueError(
                f"`{argument}` pattern {pattern!r} matches no name. Near: {', '.join(near) or 'there are no names'}."
            )
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def modules_by_name(root: nn.Module) -> dict[str, nn.Module]:
    """Modules by the names that users know. A wrapper goes by the name of what it wraps: it is what is called."""
    modules: dict[str, nn.Module] = {}
    # A module that hangs in two places has two names.
    for name, module in root.named_modules(remove_duplicate=False):
        modules.setdefault(plain_name(name), module)
    return modules


def unwrapped(module: nn.Module) -> nn.Module:
    """The module within its wrappers; itself if there are none."""
    wrapped = [m for name, m in module.named_modules() if name and not plain_name(name)]
    return wrapped[-1] if wrapped else module
