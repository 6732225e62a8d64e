"""Libraries that only some scores need: they come with an extra of this package."""

import importlib
from typing import Any


def optional(module: str, who: str, *, extra: str = "sklearn") -> Any:
    """Imports a module that an extra brings.

    Raises:
        ImportError: if it is absent, with `who` needs it and what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        library = {"sklearn": "scikit-learn"}.get(module.partition(".")[0], module.partition(".")[0])
        raise ImportError(f'{who} needs {library}: pip install "legibility[{extra}]".') from error
