"""The config inside a checkpoint, read as data: a config is Python, and running it is no safer
than running a pickle."""

from __future__ import annotations

import ast
from typing import Any

from mmengine.config import Config
from mmengine.utils import import_modules_from_strings

from projects.sa2va.errors import CheckpointError


def read_stored_config(text: str, source: str, *, imports: bool = True) -> Config:
    """Reads what ``Config.pretty_text`` wrote, without executing anything of it.

    Args:
        text: ``key = value`` lines of literals and ``dict(...)``.
        source: the checkpoint, for messages.
        imports: also import the modules that it names in ``custom_imports``, as of any config;
            False for who only looks at a value.

    Raises:
        CheckpointError: the text holds anything else, or names a module that is not installed.
    """
    try:
        keys = {}
        for line in ast.parse(text).body:
            if not isinstance(line, ast.Assign) or not isinstance(line.targets[0], ast.Name):
                raise ValueError(f"line {line.lineno} is no 'key = value'")
            keys[line.targets[0].id] = _plain(line.value)
        if imports and keys.get("custom_imports"):
            import_modules_from_strings(**keys["custom_imports"])
    except (SyntaxError, ValueError, TypeError, ImportError) as error:
        raise CheckpointError(
            found=f"the config stored in {source} (meta.cfg) cannot be used: {error}",
            expected="the config that tools/train.py writes: plain data, and modules that are "
            "installed here",
            fix="give a checkpoint of tools/train.py, and install the modules that its config "
            "names in custom_imports",
        ) from error
    return Config(keys)


def _plain(node: ast.expr) -> Any:
    """The value of a literal in which ``dict(...)`` may stand for ``{...}``.

    Raises:
        ValueError: anything else.
    """
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        value = _plain(node.args[0]) if node.args else {}
        return {**value, **{str(word.arg): _plain(word.value) for word in node.keywords}}
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {_plain(k): _plain(v) for k, v in zip(node.keys, node.values, strict=True) if k}
    if isinstance(node, ast.List):
        return [_plain(item) for item in node.elts]
    if isinstance(node, ast.Tuple):
        return tuple(_plain(item) for item in node.elts)
    return ast.literal_eval(node)
