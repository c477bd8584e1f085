"""Loading of configs: mmengine's text style with ``_base_`` lists, linked and strictly checked.

What :func:`load_config` adds to ``mmengine.Config.fromfile``:

* overrides of keys that do not exist are errors;
* the top-level ``processor`` and ``data_root`` are handed to the model and to every data set, so
  that each is written once; a part's own keys win over them. A pretrained tokenizer without a
  ``path`` is that of ``model.mllm.pretrained``;
* every key is checked against what reads it (:mod:`projects.sa2va.config_check`), and the parts
  against one another (:mod:`projects.sa2va.config_rules`).
"""

from __future__ import annotations

import ast
import copy
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.config.utils import ConfigParsingError

from .config_check import Checker, child_slot
from .config_processors import check_processors
from .config_rules import check_rules
from .config_schema import ROOT, Slot, find_type, schema_of
from .errors import ConfigError, listing, suggest

CONFIG_DIR = Path(__file__).parent / "configs"
SPLITS = ("train", "val", "test")
# Switches and numbers that a word may stand for too.
_WORDS = {
    "model.mllm.gradient_checkpointing": ("cpu",),
    **{f"{split}_dataloader.dataset.absent": ("all",) for split in SPLITS},
}


def load_config(
    path: str | Path, cfg_options: Mapping[str, Any] | None = None, *, check: bool = True
) -> Config:
    """Loads, overrides, links and checks a config.

    Args:
        path: a config file.
        cfg_options: overrides, from a key with dots (``param_scheduler.0.end``) to its value.
        check: False skips the check of keys and rules, for tools that only look at a config.

    Raises:
        ConfigError: the file cannot be read, an override has no such key, a key or ``type`` is
            unknown, a required key is missing, or a rule between keys is broken.
    """
    path = Path(path)
    cfg = _read(path)
    for name in list(cfg):
        if name.startswith("_") or isinstance(cfg[name], type):
            cfg.pop(name)  # helper variables, and classes imported for computing one
    override(cfg, cfg_options or {})
    if check:
        checker = Checker(str(path))
        checker.check(cfg._cfg_dict)
        check_rules(cfg, str(path))
        check_processors(cfg.get("processor") or {}, dict(_processors(cfg)), str(path))
    return cfg


def override(cfg: Config, cfg_options: Mapping[str, Any]) -> Config:
    """Overrides keys in place, and links what is written once; see :func:`load_config`.

    Args:
        cfg: a config, or one that was saved with its linked copies.
        cfg_options: from a key with dots to its value.

    Returns:
        ``cfg``.

    Raises:
        ConfigError: there is no such key.
    """
    if cfg_options:
        # A saved config holds linked copies, which would hide an override of their original.
        _unlink(cfg)
        for key, value in cfg_options.items():
            _override(cfg, key, value)
    _link(cfg)
    return cfg


def dump_config(cfg: Config, path: str | Path) -> None:
    """Writes a config that loads back equal, linked values included.

    Raises:
        ConfigError: it holds a value that cannot be written as text, such as infinity.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        text = cfg.pretty_text
        path.write_text(text, encoding="utf-8")
        same = Config.fromfile(path, import_custom_modules=False).to_dict() == cfg.to_dict()
    except (SyntaxError, NameError, KeyError) as error:
        raise _not_writable(path, str(error)) from error
    if not same:
        raise _not_writable(path, "it does not load back equal")


def _not_writable(path: Path, reason: str) -> ConfigError:
    return ConfigError(
        found=f"a config that cannot be written to {path}: {reason}",
        expected="plain data: finite numbers, text without '{{ }}', lists, dicts, None",
        fix="tools/print_config.py CONFIG shows all values; replace the one in question",
    )


def dataset_configs(cfg: Mapping) -> dict[str, ConfigDict]:
    """The data set dict of each split (``train``, ``val``, ``test``) that the config has."""
    loaders = {split: _group(cfg, f"{split}_dataloader") for split in SPLITS}
    return {split: loader["dataset"] for split, loader in loaders.items() if "dataset" in loader}


def _group(node: Any, key: str) -> Mapping:
    """The dict under ``key``; an empty one where there is none, or something else."""
    value = node.get(key)
    return value if isinstance(value, Mapping) else {}


def flatten(node: Any, path: str = "") -> dict[str, Any]:
    """``{'model.lora.r': 8, 'param_scheduler.0.end': 10, ...}``; plain lists stay whole."""
    if isinstance(node, Config):
        node = node.to_dict()
    if isinstance(node, Mapping) and node:
        items = node.items()
    elif isinstance(node, (list, tuple)) and any(isinstance(i, (Mapping, list)) for i in node):
        items = enumerate(node)
    else:
        return {path: node}
    flat: dict[str, Any] = {}
    for key, value in items:
        flat |= flatten(value, f"{path}.{key}" if path else str(key))
    return flat


# ------------------------------------------------------------------------------------- reading


def _read(path: Path) -> Config:
    """Reads ``path`` and its bases; every way in which that fails is a :class:`ConfigError`."""
    if not path.is_file():
        raise _no_such_file(path)
    try:
        if Config._is_lazy_import(str(path)):
            raise _wrong_style(path)
        return Config.fromfile(path)
    except SyntaxError as error:
        raise _syntax_error(path, error) from error
    except FileNotFoundError as error:
        raise ConfigError(
            found=f"{path}: {error}",
            expected="every file named in _base_, relative to the file that names it",
            fix="correct its _base_ list",
        ) from error
    except RecursionError as error:
        raise ConfigError(
            found=f"{path}: its _base_ files include each other in a circle",
            expected="bases that do not include the configs built on them",
            fix="remove one of them from a _base_ list",
        ) from error
    except (ConfigParsingError, RuntimeError) as error:
        raise _wrong_style(path, f": {error}") from error
    except (NameError, KeyError, TypeError, ValueError, AttributeError, OSError, ImportError) as e:
        # The config's own lines raised it, or mmengine's merging of the bases.
        lines = [f for f in traceback.extract_tb(e.__traceback__) if "mmengine" not in f.filename]
        line = lines[-1].lineno if Path(lines[-1].filename).resolve() != Path(__file__) else None
        where = f"{lines[-1].filename}, line {line}" if line else str(path)
        raise ConfigError(
            found=f"{where}: {type(e).__name__}: {e}",
            expected="a config that can be executed and merged with its bases",
            fix="correct that line; _delete_=True in a dict replaces the base's instead of merging",
        ) from e


def _no_such_file(path: Path) -> ConfigError:
    near = sorted(path.parent.glob("*.py")) + sorted(CONFIG_DIR.rglob("*.py"))
    by_stem = {file.stem: file for file in reversed(near)}
    hint = suggest(path.stem, by_stem)
    if hint:
        hint = f" (did you mean '{by_stem[hint.split(chr(39))[1]]}'?)"
    return ConfigError(
        found=f"no config file {path}{hint}",
        expected=f"a .py file, for instance {listing(sorted(CONFIG_DIR.glob('*.py')), 5)}",
        fix="correct the path; it is relative to the current folder",
    )


def _wrong_style(path: Path, reason: str = "") -> ConfigError:
    return ConfigError(
        found=f"{path}: it imports classes or uses read_base(){reason}",
        expected="mmengine's text style: _base_ = ['../base.py'], type='Name', standard library "
        "imports only",
        fix="name classes as text, and their modules in custom_imports=dict(imports=[...])",
    )


def _syntax_error(path: Path, error: SyntaxError) -> ConfigError:
    """Finds which file of the chain of bases has the error: mmengine reads temporary copies."""
    where = f"{path}, line {error.lineno}"
    for file in _with_bases(path):
        try:
            ast.parse(file.read_text(encoding="utf-8"))
        except SyntaxError as own:
            error, where = own, f"{file}, line {own.lineno}"
            break
    text = (error.text or "").strip()
    return ConfigError(
        found=f"{where}: {error.msg}" + (f": {text}" if text else ""),
        expected="valid Python",
        fix=f"correct {where}",
    )


def _with_bases(path: Path) -> Iterator[Path]:
    """``path`` and those of its bases that can be found; a file that cannot be parsed has none."""
    yield path
    try:
        statements = ast.parse(path.read_text(encoding="utf-8")).body
    except SyntaxError:
        return
    for node in statements:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_base_":
            named = ast.literal_eval(node.value)
            for base in [named] if isinstance(named, str) else named:
                if (path.parent / base).is_file():
                    yield from _with_bases(path.parent / base)


# --------------------------------------------------------------------------------- overriding


def _override(cfg: Config, key: str, value: Any) -> None:
    """Sets one key with dots, which must exist or be accepted by what reads its group."""
    checker = Checker(f"--cfg-options {key}")
    slot, node = Slot(schema=ROOT), cfg._cfg_dict
    parts = key.split(".")
    for depth, part in enumerate(parts):
        group, path = ".".join(parts[:depth]), ".".join(parts[: depth + 1])
        last = depth == len(parts) - 1
        if isinstance(node, (list, tuple)):
            if not (part.isdigit() and int(part) < len(node)):
                raise ConfigError(
                    found=f"--cfg-options {key}: no element {part!r} in '{group}'",
                    expected=f"a number from 0 to {len(node) - 1}",
                    fix="correct the number, or give the whole list: key=[a,b]",
                )
            parent, name = node, int(part)
        elif isinstance(node, Mapping):
            schema = checker.schema(node, slot, group)
            if part not in node:
                if schema is None or not schema.accepts(part):
                    raise _no_such_key(key, path, node, schema)
                if not last:
                    node[part] = ConfigDict()
            slot = child_slot(schema, node, part)
            parent, name = node, part
        else:
            raise ConfigError(
                found=f"--cfg-options {key}: '{group}' is {node!r}, not a group",
                expected="a key of a group",
                fix=f"override '{group}' itself",
            )
        node = parent[name] if isinstance(parent, (list, tuple)) else parent.get(name)
        if node is None and not last:
            node = parent[name] = ConfigDict()  # a group that was switched off by None
            node = parent[name]
    if isinstance(parent, tuple):
        raise ConfigError(
            found=f"--cfg-options {key}: it is an element of the tuple {parent}",
            expected="an override of the whole tuple",
            fix=f'{group}="({",".join(map(str, parent))})"',
        )
    _check_kind(key, node, value)
    if isinstance(value, Mapping) and isinstance(node, Mapping):
        value = Config._merge_a_into_b({"x": dict(value)}, {"x": node}, allow_list_keys=True)["x"]
    parent[name] = ConfigDict(value) if isinstance(value, Mapping) else value


def _no_such_key(key: str, path: str, node: Mapping, schema: Any) -> ConfigError:
    known = dict.fromkeys([*node, *(schema.names if schema else ())])
    group, _, name = path.rpartition(".")
    return ConfigError(
        found=f"--cfg-options {key}: no key '{path}'{suggest(name, known)}",
        expected=f"a key of {group or 'the config'}: {listing(known, 40)}",
        fix="correct the key; tools/print_config.py CONFIG shows all keys",
    )


def _check_kind(key: str, old: Any, new: Any) -> None:
    """A group is not replaced by a value, nor a number or switch by text."""
    if new in _WORDS.get(key, ()):
        return
    number = isinstance(old, (int, float))
    if (isinstance(old, Mapping) and not isinstance(new, (Mapping, type(None)))) or (
        number and isinstance(new, str)
    ):
        kind = "a switch (True or False)" if isinstance(old, bool) else "a number"
        raise ConfigError(
            found=f"--cfg-options {key}={new!r}",
            expected=f"{kind}, as in {key}={old}" if number else f"a key below the group {key}",
            fix=f"{key}={old}" if number else f"{key}.<key>=<value>",
        )


# ------------------------------------------------------------------------------------ linking


def _readers(cfg: Config) -> Iterator[tuple[str, ConfigDict, tuple[str, ...]]]:
    """Each dict that shares top-level keys: its key, itself, and the names of those it accepts."""
    places = [
        (f"{split}_dataloader.dataset", node, ("DATASETS",), ("processor", "data_root"))
        for split, node in dataset_configs(cfg).items()
        if isinstance(node, Mapping)
    ]
    if isinstance(cfg.get("model"), Mapping):
        places.append(("model", cfg.model, ("MODELS",), ("processor",)))
    for path, node, registries, shared in places:
        found = find_type(node.get("type"), registries)
        if found is not None:  # an unknown type is for the check to report
            schema = schema_of(found[0])
            yield path, node, tuple(name for name in shared if schema.accepts(name))


def _link(cfg: Config) -> None:
    """Hands ``processor`` and ``data_root`` down; keys that a part has of its own win."""
    tokenizer, pretrained = _pretrained_tokenizer(cfg)
    if tokenizer is not None and pretrained is not None:
        tokenizer.setdefault("path", pretrained)
    for _, node, shared in _readers(cfg):
        if "data_root" in shared and cfg.get("data_root") is not None:
            node.setdefault("data_root", cfg.data_root)
        if "processor" in shared and isinstance(cfg.get("processor"), Mapping):
            own = _group(node, "processor")
            node["processor"] = ConfigDict({**copy.deepcopy(cfg.processor), **own})


def _unlink(cfg: Config) -> None:
    """Removes what :func:`_link` would add again."""
    top = _group(cfg, "processor")
    tokenizer, pretrained = _pretrained_tokenizer(cfg)
    follows = tokenizer is not None and tokenizer.get("path") == pretrained
    for _, node, shared in _readers(cfg):
        if "data_root" in shared and node.get("data_root") == cfg.get("data_root"):
            node.pop("data_root", None)
        own = _group(node, "processor") if "processor" in shared else {}
        for key in [k for k in own if k in top and own[k] == top[k]]:
            own.pop(key)
        if not own and "processor" in shared:
            node.pop("processor", None)
    if follows:
        tokenizer.pop("path", None)


def _pretrained_tokenizer(cfg: Config) -> tuple[ConfigDict | None, str | None]:
    """The processor's tokenizer dict if it is a pretrained one, and where the MLLM comes from."""
    tokenizer = _group(_group(cfg, "processor"), "tokenizer")
    model = _group(cfg, "model")
    pretrained = model.get("pretrained") or _group(model, "mllm").get("pretrained")
    return tokenizer if tokenizer.get("type") == "pretrained" else None, pretrained


def _processors(cfg: Config) -> Iterator[tuple[str, Mapping]]:
    for path, node, shared in _readers(cfg):
        if "processor" in shared and isinstance(node.get("processor"), Mapping):
            yield f"{path}.processor", node["processor"]
