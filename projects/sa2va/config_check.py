"""The strict check of a loaded config: every key is known, every ``type`` exists."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mmengine.utils import get_object_from_string

from .config_schema import (
    OPTIM_WRAPPER_CHILDREN,
    ROOT,
    SLOTS_BY_NAME,
    SUPPLIED,
    TAKEN_OUT,
    Schema,
    Slot,
    SubConfig,
    find_type,
    known_types,
    schema_of,
)
from .errors import ConfigError, listing, suggest

_EVERYWHERE = ("type", "_scope_")  # mmengine's own, in any dict
_PLAIN = (bool, int, float, str, type(None))


class Checker:
    """Checks one config.

    Args:
        source: the config's file (or what stands for it), named in every message.
    """

    def __init__(self, source: str) -> None:
        self.source = source

    def check(self, node: Any, slot: Slot | None = None, path: str = "") -> None:
        """Checks ``node`` and all below.

        Args:
            node: a config, or a part of one.
            slot: what may stand there; None for a whole config.
            path: the key of ``node``, with dots; empty for a whole config.

        Raises:
            ConfigError: an unknown key or ``type``, a missing key, a value of the wrong kind.
        """
        slot = slot or Slot(schema=ROOT)
        if isinstance(node, Mapping):
            self._check_dict(node, slot, path)
        elif isinstance(node, (list, tuple)):
            for index, item in enumerate(node):
                self.check(item, slot, _join(path, index))
        elif not isinstance(node, _PLAIN) and not (callable(node) and path.endswith(".type")):
            raise ConfigError(
                found=f"{self.source}: '{path}' is a {type(node).__name__}",
                expected="plain data (numbers, text, lists, dicts), which can be saved",
                fix=f"write '{path}' as text or a number, for instance str(...)",
            )
        elif node is not None and slot.is_group:
            raise ConfigError(
                found=f"{self.source}: '{path}' is {node!r}",
                expected="a group of keys, dict(...)",
                fix=f"write {path.rsplit('.')[-1]}=dict(...), or override one of its keys",
            )

    def _check_dict(self, node: Mapping, slot: Slot, path: str) -> None:
        schema = self.schema(node, slot, path)
        if schema is not None:
            self._check_keys(node, schema, path)
        if not slot.free:
            # The processor first: its copies elsewhere have the same mistakes.
            for key, value in sorted(node.items(), key=lambda item: item[0] != "processor"):
                self.check(value, child_slot(schema, node, str(key)), _join(path, key))

    def _check_keys(self, node: Mapping, schema: Schema, path: str) -> None:
        missing = [k for k in schema.names if k in schema.required and k not in node]
        for key in node:
            if key in _EVERYWHERE and path:
                continue
            if not schema.accepts(str(key)):
                raise self.unknown_key(_join(path, key), schema, [*missing, *schema.names])
        if missing:
            raise ConfigError(
                found=f"{self.source}: '{path}' ({schema.name}) lacks {listing(missing)}",
                expected=f"{schema.name} needs {listing(missing)}",
                fix=f"add {listing([_join(path, key) + '=...' for key in missing])}",
            )

    def unknown_key(self, path: str, schema: Schema, known: list[str]) -> ConfigError:
        """The error for the key ``path`` that ``schema`` does not accept."""
        name = path.rsplit(".", 1)[-1]
        fix = f"correct or remove '{path}'"
        if "." not in path:
            fix += "; a helper variable of your own begins with one underscore"
        return ConfigError(
            found=f"{self.source}: unknown key '{path}'{suggest(name, known)}",
            expected=f"one of the keys of {schema.name}: {listing(schema.names, 40)}",
            fix=fix,
        )

    def schema(self, node: Mapping, slot: Slot, path: str) -> Schema | None:
        """The schema of the dict ``node``, or None where its keys are free.

        Raises:
            ConfigError: ``type`` is missing or unknown.
        """
        if slot.free:
            return None
        if slot.schema is not None:
            return self._declared_schema(slot.schema, node, path)
        if "type" not in node and slot.registries == ("LOOPS",) and "by_epoch" in node:
            loop = "EpochBasedTrainLoop" if node["by_epoch"] else "IterBasedTrainLoop"
            schema = self._typed_schema(loop, slot, path)
            return replace(schema, names=(*schema.names, "by_epoch"))
        if "metrics" in node and "EVALUATOR" in slot.registries:
            slot = replace(slot, default="Evaluator")  # as mmengine's build_evaluator does
        kind = node.get("type", slot.default)
        if kind is not None:
            return self._typed_schema(kind, slot, path)
        if not slot.registries:
            return None
        raise ConfigError(
            found=f"{self.source}: '{path}' has no 'type'",
            expected=f"type='...', one of {listing(known_types(slot.registries), 40)}",
            fix=f"add {path}.type",
        )

    def _typed_schema(self, kind: Any, slot: Slot, path: str) -> Schema:
        found = find_type(kind, slot.registries)
        if found is None:
            raise self._unknown_type(kind, known_types(slot.registries), slot, path)
        owner, registry = found
        schema = schema_of(owner)
        supplied = {} if path == "model" else SUPPLIED.get(registry, {})
        names = tuple(dict.fromkeys((*schema.names, *TAKEN_OUT.get(registry, ()))))
        children = dict(schema.children)
        required = schema.required - supplied.keys()
        if registry == "FUNCTIONS":
            required -= {*schema.names[:1]}  # what it is called with: samples, or a worker's number
        if registry == "OPTIM_WRAPPERS":
            children = {**OPTIM_WRAPPER_CHILDREN, **children}
            required |= {"optimizer"}
        elif registry == "EVALUATOR":
            children = {"metrics": Slot(("METRICS",)), **children}
        return replace(schema, names=names, required=required, children=children)

    def _unknown_type(self, kind: Any, known: list[str], slot: Slot, path: str) -> ConfigError:
        elsewhere = find_type(kind) if slot.registries else None
        note = f" (it is registered in {elsewhere[1]})" if elsewhere and elsewhere[1] else ""
        where = f" registered in {' or '.join(slot.registries)}" if slot.registries else ""
        return ConfigError(
            found=f"{self.source}: unknown '{_join(path, 'type')}' {kind!r}"
            + (note or suggest(str(kind), known)),
            expected=f"a type{where}: {listing(known, 40)}",
            fix=f"correct {_join(path, 'type')}, or import its module in custom_imports",
        )

    def _declared_schema(self, declared: Any, node: Mapping, path: str) -> Schema:
        """Resolves a value of ``CONFIG_SCHEMAS`` for ``node``."""
        if isinstance(declared, Schema):
            return declared
        if isinstance(declared, Mapping):
            if node.get("type") not in declared:
                kinds = sorted(map(str, declared))
                raise self._unknown_type(node.get("type"), kinds, Slot(), path)
            return self._declared_schema(declared[node["type"]], node, path)
        if isinstance(declared, tuple):
            schema = self._declared_schema(declared[0], node, path)
            names = tuple(name for name in schema.names if name not in declared[1])
            return replace(schema, names=names, required=schema.required.difference(declared[1]))
        if isinstance(declared, str):
            owner = get_object_from_string(declared)
            if owner is None:
                raise TypeError(f"CONFIG_SCHEMAS names {declared}, which cannot be imported")
            return schema_of(owner)
        if isinstance(declared, SubConfig):
            model_type = node.get("model_type")
            try:
                return declared.schema(model_type)
            except KeyError:
                raise ConfigError(
                    found=f"{self.source}: unknown '{path}.model_type' {model_type!r}",
                    expected="a model_type that transformers knows",
                    fix=f"correct {path}.model_type",
                ) from None
        return schema_of(declared)


def child_slot(schema: Schema | None, node: Mapping, key: str) -> Slot:
    """What may stand under ``key`` of ``node``, whose schema is ``schema``."""
    if schema is None:
        return Slot()
    if key == "paramwise_cfg" and node.get("constructor", "").removeprefix("mmengine.") not in (
        "",
        "DefaultOptimWrapperConstructor",
    ):
        return Slot(free=True)  # its keys are the constructor's own affair
    return schema.children.get(key) or SLOTS_BY_NAME.get(key) or Slot()


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)
