"""What Python files do: equal if a run would be the same, whatever their comments and docstrings say."""

import ast
import functools
import hashlib
from pathlib import Path

_LIBRARY = ("losses", "students", "scores", "lightning_plugins", "recipes")


def code_of(path: Path) -> str:
    """The syntax tree of a module without comments, docstrings and ``RECIPE``."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    tree.body = [node for node in tree.body if not assigns(node, "RECIPE")]
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                body[0].value = ast.Constant("")
    return ast.dump(tree)


@functools.cache
def code_of_library() -> str:
    """Digest of all code of this library that a run's result may depend on, as it was when first asked for.

    Example:
        >>> code_of_library() == code_of_library()
        True
    """
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(path for room in _LIBRARY for path in (root / room).rglob("*.py")):
        digest.update(f"{path.relative_to(root)} {code_of(path)}".encode())
    return digest.hexdigest()


def assigns(node: ast.stmt, name: str | None = None) -> bool:
    """Whether a statement assigns to a name, or to any."""
    targets: list[ast.expr]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return any(isinstance(target, ast.Name) and name in (None, target.id) for target in targets)
