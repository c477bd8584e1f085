"""Which keys a place of a config accepts: from signatures, and from tables of what mmengine adds.

A class says what its plain dict arguments hold by an attribute ``CONFIG_SCHEMAS``: a dict from the
argument's name to

* a callable, or its dotted path as text: the dict holds keyword arguments of it;
* a dict from a ``type`` value to one of these: the dict chooses by its ``type``;
* a pair of one of these and a tuple of names: without those, which the class itself hands over;
* None: the dict is free, nothing in it is checked.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import mmengine.registry
from mmengine.dist import init_dist
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.registry import Registry
from mmengine.runner import FlexibleRunner, Runner
from mmengine.utils import get_object_from_string
from mmengine.utils.dl_utils import set_multi_processing
from torch import compile as torch_compile
from torch.distributed import init_process_group
from torch.nn import Module
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader

PROCESSOR = "projects.sa2va.processing.processor.Sa2VAProcessor"
REGISTRIES: dict[str, Registry] = {
    name: value for name, value in vars(mmengine.registry).items() if isinstance(value, Registry)
}


# What the ``**kwargs`` of a class hold, where its signature does not show it.
KWARGS_OF: dict[type, tuple[str, ...]] = {
    CheckpointHook: (),  # handed to a function that refuses them, at the first checkpoint
    EMAHook: ("momentum", "gamma", "interval", "device", "update_buffers"),
}


@dataclass(frozen=True)
class Slot:
    """What may stand at one place of a config; a list there holds several of the same.

    Attributes:
        registries: names of the registries in which its ``type`` is looked up; empty: in all.
        default: the ``type`` that mmengine takes when there is none.
        schema: what a dict holds that is not chosen by a registry; see the module's docstring.
        free: nothing below is checked.
        scalar: a plain value may stand here as well as a dict.
    """

    registries: tuple[str, ...] = ()
    default: str | None = None
    schema: Any = None
    free: bool = False
    scalar: bool = False

    @property
    def is_group(self) -> bool:
        """True where only a dict (or a list of them, or None) makes sense."""
        return bool(self.registries or self.schema) and not self.scalar


@dataclass(frozen=True)
class Schema:
    """The keys that one dict may and must have, and what stands below them.

    Attributes:
        name: whose keys they are, for messages.
        names: accepted keys, in the order of the signature.
        required: keys without a default.
        is_open: True where further keys cannot be judged (``**kwargs`` that go nowhere we can see).
        children: slots of keys whose place is known.
    """

    name: str
    names: tuple[str, ...]
    required: frozenset[str] = frozenset()
    is_open: bool = False
    children: Mapping[str, Slot] = field(default_factory=dict)

    def accepts(self, key: str) -> bool:
        return self.is_open or key in self.names


@dataclass(frozen=True)
class SubConfig:
    """The nested config ``name`` of transformers' config class ``owner``."""

    owner: Any
    name: str

    def schema(self, model_type: str | None) -> Schema:
        """Its schema, by ``model_type`` where the dict has one.

        Raises:
            KeyError: the ``model_type`` is none of transformers'.
        """
        from transformers import CONFIG_MAPPING

        if model_type is not None:
            return schema_of(CONFIG_MAPPING[model_type])
        declared = self.owner.sub_configs[self.name]
        # AutoConfig says nothing about keys; the owner's own default does.
        is_auto = not hasattr(declared, "sub_configs")
        return schema_of(type(getattr(self.owner(), self.name)) if is_auto else declared)


def _signature_keys(function: Callable, skip_first: bool) -> tuple[dict[str, bool], bool]:
    """``{name: is required}`` of what can be passed by name, and whether ``**kwargs`` are taken."""
    parameters = list(inspect.signature(function).parameters.values())[int(skip_first) :]
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    keys = {p.name: p.default is p.empty for p in parameters if p.kind in by_name}
    return keys, any(p.kind is p.VAR_KEYWORD for p in parameters)


def _class_keys(owner: type) -> tuple[dict[str, bool], bool]:
    """As :func:`_signature_keys`, following ``**kwargs`` up through the base classes.

    A base class's required argument may be filled in by its subclass, so it is not required here.
    """
    keys: dict[str, bool] = {}
    last = owner
    for base in owner.__mro__:
        if base is object or base is Module:
            # The kwargs end where nothing takes them by name: what they hold cannot be known,
            # but for the classes whose code we have read.
            keys |= dict.fromkeys(KWARGS_OF.get(last, ()), False)
            return keys, last not in KWARGS_OF
        if "__init__" not in vars(base):
            continue
        last = base
        found, passes_on = _signature_keys(vars(base)["__init__"], skip_first=True)
        keys |= {name: needed and not keys for name, needed in found.items() if name not in keys}
        if not passes_on:
            return keys, False
    return keys, True


def _has_own_init(owner: type) -> bool:
    return owner.__init__ not in (object.__init__, Module.__init__)


@functools.cache
def schema_of(owner: Callable) -> Schema:
    """The schema of the keyword arguments of a class or function."""
    if isinstance(owner, type) and _has_own_init(owner):
        keys, is_open = _class_keys(owner)
    elif isinstance(owner, type) and owner.__new__ is object.__new__:
        keys, is_open = {}, False
    else:
        try:
            keys, is_open = _signature_keys(owner, skip_first=False)
        except ValueError:  # written in C, without a signature
            keys, is_open = {}, True
    names = tuple(keys) + _names_beside_the_signature(owner)
    return Schema(
        name=getattr(owner, "__name__", str(owner)),
        names=tuple(dict.fromkeys(names)),
        required=frozenset(name for name, needed in keys.items() if needed),
        is_open=is_open,
        children=_children_of(owner),
    )


def _names_beside_the_signature(owner: Callable) -> tuple[str, ...]:
    """Keys that transformers' configs understand without naming them in their signature.

    They take any other key too, silently, and then ignore it: that is why only these are let in.
    """
    if not hasattr(owner, "sub_configs"):
        return ()
    rotary = ("rope_theta", "rope_scaling") if hasattr(owner, "rope_parameters") else ()
    return ("model_type", *getattr(owner, "attribute_map", {}), *rotary)


def _children_of(owner: Callable) -> dict[str, Slot]:
    children = {
        name: Slot(schema=SubConfig(owner, name)) for name in getattr(owner, "sub_configs", {})
    }
    for base in reversed(getattr(owner, "__mro__", (owner,))):
        for name, schema in vars(base).get("CONFIG_SCHEMAS", {}).items():
            children[name] = Slot(schema=schema, free=schema is None, scalar=True)
    return children


def find_type(name: Any, registries: Iterable[str] = ()) -> tuple[Callable, str | None] | None:
    """Looks a ``type`` up: registered name, then dotted path.

    Returns:
        The class or function and the name of its registry (None for a dotted path), or None.
    """
    if not isinstance(name, str):
        return (name, None) if callable(name) else None
    short = name.removeprefix("mmengine.")
    for registry in registries or REGISTRIES:
        found = REGISTRIES[registry].module_dict.get(short)
        if found is not None:
            return found, registry
    found = get_object_from_string(name) if "." in name else None
    return None if found is None else (found, None)


def known_types(registries: Iterable[str] = ()) -> list[str]:
    """Names registered in ``registries``, or in all."""
    return sorted({n for r in registries or REGISTRIES for n in REGISTRIES[r].module_dict})


# Arguments that are not written in a config because mmengine (or the owner) hands them over.
SUPPLIED: dict[str, dict[str, str]] = {
    "LOOPS": {
        "runner": "the runner itself",
        "dataloader": "the *_dataloader of the same split",
        "evaluator": "the *_evaluator of the same split",
    },
    "DATA_SAMPLERS": {
        "dataset": "the data loader's data set",
        "sampler": "for a batch sampler, the data loader's sampler",
        "batch_size": "for a batch sampler, the data loader's",
    },
    "OPTIMIZERS": {"params": "the model's trainable parameters"},
    "OPTIM_WRAPPERS": {"optimizer": "built from optim_wrapper.optimizer, which is checked apart"},
    "PARAM_SCHEDULERS": {"optimizer": "the optimiser wrapper"},
    "MODEL_WRAPPERS": {"module": "the model"},
    "VISBACKENDS": {"save_dir": "the run's folder"},
    "MODELS": {
        "processor": "the model hands its own to its parts",
        "image_size": "the model hands the processor's to its grounding part",
    },
}

# Keys that mmengine takes out before it builds the object.
TAKEN_OUT: dict[str, tuple[str, ...]] = {
    "HOOKS": ("priority",),
    "PARAM_SCHEDULERS": ("convert_to_iter_based", "epoch_length"),
    "OPTIM_WRAPPERS": ("optimizer", "constructor", "paramwise_cfg"),
    "VISBACKENDS": ("name",),
}


def plain(name: str, *parts: Callable | str, without: str = "", **children: Slot) -> Schema:
    """Schema of a dict that is not built by name: arguments of ``parts`` and further names."""
    names = [key for part in parts for key in ([part] if isinstance(part, str) else _names(part))]
    kept = tuple(name for name in dict.fromkeys(names) if name not in without.split())
    return Schema(name, kept, children=children)


def _names(owner: Callable) -> tuple[str, ...]:
    return schema_of(owner).names


# Arguments whose name says what their value is, whoever owns them. Those that choose by a `type`
# of their own repeat what their readers know; a test holds the two together.
SLOTS_BY_NAME: dict[str, Slot] = {
    "dataset": Slot(("DATASETS",)),
    "datasets": Slot(("DATASETS",)),
    "pipeline": Slot(("TRANSFORMS",)),
    "transforms": Slot(("TRANSFORMS",)),
    "vis_backends": Slot(("VISBACKENDS",)),
    "processor": Slot(schema=PROCESSOR),
    "mllm": Slot(("MODELS",)),
    "grounding": Slot(("MODELS",)),
    "mask_loss": Slot(("MODELS",)),
    "augment": Slot(schema="projects.sa2va.datasets.augment.Augment"),
    "pictures": Slot(schema="projects.sa2va.evaluation.pictures.PictureChoice"),
    "tokenizer": Slot(
        schema={
            "byte_level": plain("a byte_level tokenizer", "words"),
            "pretrained": replace(
                plain("a pretrained tokenizer", "path"), required=frozenset({"path"})
            ),
        }
    ),
    "patient": Slot(
        schema={
            "regex": plain("patients by regex", "pattern", "match_on", "key_env"),
            "mapping": plain(
                "patients by mapping", "file", "image_column", "patient_column", "key_env"
            ),
        }
    ),
}


DATALOADER = replace(
    plain(
        "a data loader",
        "dataset",
        "sampler",
        DataLoader,
        "num_batch_per_epoch",
        "disable_subprocess_warning",
        without="shuffle",  # mmengine's sampler decides; torch refuses both
        dataset=Slot(("DATASETS",)),
        sampler=Slot(("DATA_SAMPLERS",)),
        batch_sampler=Slot(("DATA_SAMPLERS",)),
        collate_fn=Slot(("FUNCTIONS",)),
        worker_init_fn=Slot(("FUNCTIONS",)),
    ),
    required=frozenset({"dataset", "sampler"}),
)

OPTIM_WRAPPER_CHILDREN: dict[str, Slot] = {
    "optimizer": Slot(("OPTIMIZERS",)),
    "clip_grad": Slot(schema=plain("clip_grad", clip_grad_norm_, "type", without="parameters")),
    "paramwise_cfg": Slot(
        schema=plain(
            "paramwise_cfg of mmengine's DefaultOptimWrapperConstructor",
            *("bias_lr_mult", "bias_decay_mult", "norm_decay_mult", "flat_decay_mult"),
            *("dwconv_decay_mult", "dcn_offset_lr_mult", "bypass_duplicate", "custom_keys"),
        )
    ),
}

_HOOK_NAMES = (
    *("runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint"),
    *("visualization", "memory", "stop"),
)
_MP = plain("mp_cfg", set_multi_processing, without="distributed")
_DIST = plain("dist_cfg", init_dist, init_process_group, "port", without="launcher")
_EVALUATOR = Slot(("METRICS", "EVALUATOR"))
_COMPILE = plain("compile", torch_compile, "target", without="model")
_ENV = plain(
    "env_cfg",
    *("cudnn_benchmark", "mp_cfg", "dist_cfg", "resource_limit"),
    mp_cfg=Slot(schema=_MP),
    dist_cfg=Slot(schema=_DIST),
)

# Top-level keys that the runner reads from its config without having them in its signature.
_READ_BY_THE_RUNNER = (
    *("model_wrapper_cfg", "find_unused_parameters", "sync_bn", "activation_checkpointing"),
    *("efficient_conv_bn_eval", "compile", "runner_type", "custom_imports", "memory_budget_gib"),
    *("allow_near_duplicates", "tensorboard", "init_from"),
)

ROOT = plain(
    "a config",
    *("processor", "data_root"),
    Runner,
    FlexibleRunner,
    *_READ_BY_THE_RUNNER,
    without="cfg",
    processor=Slot(schema=PROCESSOR),
    init_from=Slot(
        schema=replace(
            plain("init_from", "checkpoint", "parts"), required=frozenset({"checkpoint", "parts"})
        )
    ),
    model=Slot(("MODELS",)),
    data_preprocessor=Slot(("MODELS",), default="BaseDataPreprocessor"),
    train_dataloader=Slot(schema=DATALOADER),
    val_dataloader=Slot(schema=DATALOADER),
    test_dataloader=Slot(schema=DATALOADER),
    train_cfg=Slot(("LOOPS",)),
    val_cfg=Slot(("LOOPS",), default="ValLoop"),
    test_cfg=Slot(("LOOPS",), default="TestLoop"),
    val_evaluator=_EVALUATOR,
    test_evaluator=_EVALUATOR,
    optim_wrapper=Slot(("OPTIM_WRAPPERS",), default="OptimWrapper"),
    param_scheduler=Slot(("PARAM_SCHEDULERS",)),
    auto_scale_lr=Slot(schema=plain("auto_scale_lr", "enable", "base_batch_size")),
    default_hooks=Slot(
        schema=plain("default_hooks", *_HOOK_NAMES, **dict.fromkeys(_HOOK_NAMES, Slot(("HOOKS",))))
    ),
    custom_hooks=Slot(("HOOKS",)),
    env_cfg=Slot(schema=_ENV),
    log_processor=Slot(("LOG_PROCESSORS",), default="LogProcessor"),
    visualizer=Slot(("VISUALIZERS",)),
    randomness=Slot(schema=plain("randomness", Runner.set_randomness, without="self")),
    strategy=Slot(("STRATEGIES",)),
    model_wrapper_cfg=Slot(("MODEL_WRAPPERS",)),
    compile=Slot(schema=_COMPILE, scalar=True),
    custom_imports=Slot(schema=plain("custom_imports", "imports", "allow_failed_imports")),
)
