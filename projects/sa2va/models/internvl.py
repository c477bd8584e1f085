"""InternVL3 as the joint model's multimodal language model, with LoRA and token rows.

Source: the calls follow transformers' ``InternVLForConditionalGeneration`` (InternVL3 on Qwen2);
which parts train, and the prompt that they see, follow bytedance/Sa2VA (projects/sa2va/models).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from projects.sa2va.errors import CheckpointError, ConfigError
from projects.sa2va.weights.base import is_tied
from projects.sa2va.weights.layouts import Source
from projects.sa2va.weights.parts import EMBEDDING, HEAD
from projects.sa2va.weights.published_configs import internvl_config, tile_sizes

from .attention import choose_attention
from .building import PartKind, build_weights, first_parameter, resolve_dtype
from .checkpointing import Where, check_where, checkpoint_layers
from .mllm import MLLMAdapter
from .prediction_parts import PredictionPart
from .quantization import check_method, quantize_linears

_LORA_TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


@MODELS.register_module()
class InternVLAdapter(MLLMAdapter):
    """InternVL3 by transformers, LoRA and token rows by peft.

    Args:
        processor: the processor whose tokenizer and tile size the model must fit.
        pretrained: hub id or local folder of an InternVL3 (as OpenGVLab publishes it or in
            transformers' layout) or of a released Sa2VA; None for random weights.
        config: keyword arguments of ``InternVLConfig`` (``text_config``, ``vision_config``, ...);
            with random weights only. ``image_token_id`` follows the tokenizer, and so
            does ``vocab_size`` unless it asks for a longer table.
        tie_word_embeddings: False gives a head of its own to weights whose head is the embedding
            (a checkpoint that trained both apart needs it); None leaves it as the weights have it.
        dtype: dtype of the frozen weights; whatever trains is float32.
        lora: keyword arguments of ``peft.LoraConfig`` (``r``, ``lora_alpha``, ``lora_dropout``,
            ``target_modules``), or None to leave the language model frozen.
        train_token_rows: train the rows of the added tokens, in the embedding and in the head
            (peft's ``trainable_token_indices``; whole tables are never copied).
        train_projector: train InternVL's vision-language projector, as the reference does.
        train_language_model: train all weights of the language model, tables included: for models
            that start from random weights. There is no LoRA and there are no token rows then.
        train_vision_encoder: train InternVL's vision encoder too.
        quantization: ``nf4`` holds the language model's frozen linear layers in 4 bits (QLoRA);
            None leaves them in ``dtype``.
        gradient_checkpointing: recompute the language model's activations in the backward pass;
            ``cpu``: the inputs of its layers wait in host memory.
        attn_implementation: ``sdpa``, ``eager``, ``flash_attention_2``, or ``auto``: the last where
            flash-attn is installed and can run, else ``sdpa``.
        seed: seed of random weights and of LoRA, so that the same config is the same model.
        init_device: where random weights are drawn (``cuda`` is faster at true size).

    Raises:
        ConfigError: neither or both of ``pretrained`` and ``config``; sizes that do not fit; a
            lever that is unknown or cannot be had here.
    """

    CONFIG_SCHEMAS: ClassVar = {"lora": "peft.LoraConfig", "config": "transformers.InternVLConfig"}

    def __init__(
        self,
        processor: Any,
        pretrained: str | None = None,
        config: dict | None = None,
        tie_word_embeddings: Literal[False] | None = None,
        dtype: str = "bfloat16",
        lora: dict | None = None,
        train_token_rows: bool = True,
        train_projector: bool = True,
        train_language_model: bool = False,
        train_vision_encoder: bool = False,
        quantization: Literal["nf4"] | None = None,
        gradient_checkpointing: Where = False,
        attn_implementation: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto",
        seed: int = 0,
        init_device: str = "cpu",
    ) -> None:
        super().__init__()
        from transformers import GenerationConfig

        _check_lora(lora)
        if train_language_model and (lora is not None or train_token_rows or quantization):
            raise ConfigError(
                found=f"model.mllm.train_language_model=True with lora={lora!r}, "
                f"train_token_rows={train_token_rows}, quantization={quantization!r}",
                expected="all of the language model in training, or parts of it, not both",
                fix="set model.mllm.lora=None, train_token_rows=False and quantization=None, or "
                "train_language_model=False",
            )
        check_method(quantization)
        check_where(gradient_checkpointing)
        self.image_token_id = processor.image_token_id
        self.pad_token_id = processor.pad_token_id
        self.eos_token_id = processor.eos_token_id
        if config is not None:
            config = _fit_config(config, processor)
        built = build_weights(
            part_kind(),
            pretrained=pretrained,
            config=config,
            dtype=resolve_dtype(dtype),
            attn_implementation=choose_attention(attn_implementation, resolve_dtype(dtype)),
            seed=seed,
            device=init_device,
        )
        model, self.rows = built.model, built.rows
        if tie_word_embeddings is not None:
            _untie(model)
        self._check_tiles(model, processor)
        _grow_vocabulary(model, processor, seed)
        model.requires_grad_(False)
        self.quantization = quantization
        if quantization is not None:
            quantize_linears(model.model.language_model.layers, resolve_dtype(dtype))
            model.is_loaded_in_4bit = True  # peft asks for it before it wraps 4-bit layers
        # The published one may ask for sampling, beams or a repetition penalty: answers are greedy.
        model.generation_config = GenerationConfig()
        # HF turns the cache on for inference; in training it would keep every key and value.
        model.config.text_config.use_cache = False
        self.train_projector = train_projector
        self.train_language_model = train_language_model
        self.train_vision_encoder = train_vision_encoder
        with torch.random.fork_rng():
            torch.manual_seed(seed + 1)
            self.model = self._wrap(model, processor, lora, train_token_rows)
        core = self._core
        for trains, module in (
            (train_projector, core.model.multi_modal_projector),
            (train_vision_encoder, core.model.vision_tower),
            (train_language_model, core.model.language_model),
            (train_language_model, core.lm_head),
        ):
            if trains:
                module.requires_grad_(True)
        for parameter in self.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        checkpoint_layers(self._core.model.language_model, gradient_checkpointing)

    def _wrap(
        self, model: nn.Module, processor: Any, lora: dict | None, train_token_rows: bool
    ) -> nn.Module:
        if lora is None and not train_token_rows:
            return model
        from peft import LoraConfig, TrainableTokensConfig, get_peft_model

        rows: Any = None
        if train_token_rows:
            ids = list(processor.added_token_ids)
            tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
            rows = ids if tied else {"embed_tokens": ids, "lm_head": ids}
        if lora is not None:
            settings = {"target_modules": _LORA_TARGETS, "bias": "none", **lora}
            return get_peft_model(model, LoraConfig(trainable_token_indices=rows, **settings))
        if isinstance(rows, dict):
            raise ConfigError(
                found="model.mllm.train_token_rows=True with lora=None and an untied head",
                expected="LoRA beside the token rows, or neither: peft trains the rows of both "
                "tables only together with LoRA",
                fix="set model.mllm.lora=dict(r=..., lora_alpha=...) or train_token_rows=False",
            )
        return get_peft_model(
            model, TrainableTokensConfig(target_modules=["embed_tokens"], token_indices=rows)
        )

    def merge_lora(self) -> None:
        """Puts LoRA and token rows into the weights, for prediction only: nothing of them trains
        afterwards, and their memory is free. Sums are rounded to the dtype of the weights.

        Raises:
            ConfigError: 4-bit weights, which a sum would have to be quantized again for.
        """
        if not hasattr(self.model, "peft_config"):
            return
        if self.quantization is not None:
            raise ConfigError(
                found=f"merging LoRA into weights in 4 bits ({self.quantization})",
                expected="a base in its own precision",
                fix="set model.mllm.quantization=None, or leave LoRA beside the weights",
            )
        self.model = self.model.merge_and_unload()
        self.model.requires_grad_(False)

    def prediction_parts(self) -> dict[str, PredictionPart]:
        core = self._core
        model, tower = core.model, core.model.vision_tower
        projector = model.multi_modal_projector
        language = (model.language_model, core.lm_head)
        vision = ((tower, self.train_vision_encoder), (projector, self.train_projector))
        return {
            "llm": PredictionPart(
                modules=language,
                layers=tuple(model.language_model.layers),
                trained=language if self.train_language_model else (),
            ),
            "vit": PredictionPart(
                modules=(tower, projector),
                layers=tuple(tower.encoder.layer),
                trained=tuple(module for module, trains in vision if trains),
            ),
        }

    @property
    def _core(self) -> nn.Module:
        """The InternVLForConditionalGeneration inside peft's wrapper."""
        return self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model

    @staticmethod
    def _check_tiles(model: nn.Module, processor: Any) -> None:
        vision = model.config.vision_config
        ratio = model.config.downsample_ratio
        size, patch, tokens = tile_sizes(vision.image_size, vision.patch_size, ratio)
        found = (processor.tile_size, processor.tokens_per_tile)
        if found != (size, tokens):
            raise ConfigError(
                found=f"processor.tile_size, tokens_per_tile = {found}",
                expected=f"{(size, tokens)}: the vision encoder takes {size} px tiles with "
                f"{patch} px patches and a ratio of {ratio}",
                fix=f"set processor=dict(tile_size={size}, tokens_per_tile={tokens}, ...)",
            )

    @property
    def hidden_size(self) -> int:
        return self._core.config.text_config.hidden_size

    def visual_tokens(self, pixel_values: Tensor) -> Tensor:
        # The input needs no gradient, so of a frozen tower autograd records nothing; only the
        # projector behind it is recorded where it trains.
        model = self._core.model
        pixel_values = pixel_values.to(first_parameter(model.vision_tower).dtype)
        return model.get_image_features(
            pixel_values=pixel_values,
            vision_feature_layer=self._core.config.vision_feature_layer,
            vision_feature_select_strategy=self._core.config.vision_feature_select_strategy,
        ).pooler_output

    def embed(self, input_ids: Tensor, visual_tokens: Tensor) -> Tensor:
        embeddings = self._core.get_input_embeddings()(input_ids)
        image = (input_ids == self.image_token_id).to(embeddings.device)
        wanted, given = int(image.sum()), visual_tokens.shape[:2].numel()
        if wanted != given:
            raise ValueError(f"{wanted} image tokens in the prompts, {given} from the tiles")
        visual = visual_tokens.flatten(0, 1).to(embeddings.device, embeddings.dtype)
        return embeddings.masked_scatter(image.unsqueeze(-1), visual)

    def hidden_states(self, embeddings: Tensor, attention_mask: Tensor) -> Tensor:
        return self._core.model.language_model(
            inputs_embeds=embeddings,
            attention_mask=attention_mask.to(embeddings.device),
            use_cache=False,
        ).last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        return self._core.get_output_embeddings()(hidden)

    @torch.no_grad()
    def generate(self, embeddings: Tensor, attention_mask: Tensor, max_new_tokens: int) -> Tensor:
        return self._core.generate(
            inputs_embeds=embeddings,
            attention_mask=attention_mask.to(embeddings.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            # No answer holds an image; the token would ask for visual features that do not exist.
            suppress_tokens=[self.image_token_id],
            use_cache=True,
            pad_token_id=self.pad_token_id,
            eos_token_id=self.eos_token_id,
        )


def part_kind() -> PartKind:
    """What there is to know of InternVL for loading or drawing its weights."""
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    return PartKind(
        key="model.mllm",
        prefix="mllm.",
        model_class=InternVLForConditionalGeneration,
        config_class=InternVLConfig,
        layouts=("internvl-chat", "internvl-hub", "internvl-native", "sa2va"),
        read_config=_read_config,
    )


def _read_config(source: Source, config: dict | None) -> dict[str, Any]:
    """Keyword arguments of InternVLConfig for published weights."""
    if not source.config:
        raise CheckpointError(
            found=f"{source.files.path} (model.mllm.pretrained) by itself",
            expected="the folder it was published in: its config.json gives the sizes",
            fix="set model.mllm.pretrained to the folder",
        )
    tied = is_tied(source, f"{HEAD}.weight", f"{EMBEDDING}.weight")
    if source.layout.name in ("internvl-chat", "sa2va"):
        return internvl_config(source.config, tied, source.files.path)
    native = {k: v for k, v in source.config.items() if k != "model_type"}
    native["text_config"] = {**native.get("text_config", {}), "tie_word_embeddings": tied}
    return {**native, "tie_word_embeddings": tied}


def _untie(model: nn.Module) -> None:
    """Gives the head a table of its own, a copy of the embedding."""
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head.weight is table.weight:
        head.weight = nn.Parameter(table.weight.detach().clone())
    # transformers 5.23 reads the top level and ignores the text config, 4.57 the reverse.
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False


def _check_lora(lora: dict | None) -> None:
    own = sorted({"modules_to_save", "trainable_token_indices"} & set(lora or {}))
    if own:
        raise ConfigError(
            found=f"model.mllm.lora.{own[0]}={lora[own[0]]!r}",
            expected="no such key: modules_to_save would copy whole embedding tables (1.09 billion "
            "trainable parameters at 8B), and the tokenizer chooses the rows",
            fix="remove it; model.mllm.train_token_rows=True trains the rows of the added tokens "
            "in both tables",
        )


def _fit_config(config: dict, processor: Any) -> dict:
    """Completes a random-weight config with what the tokenizer decides."""
    config = {**config, "text_config": dict(config.get("text_config", {}))}
    text = config["text_config"]
    rows = text.get("vocab_size", processor.vocab_size)
    if "image_token_id" in config or rows < processor.base_vocab_size:
        raise ConfigError(
            found=f"model.mllm.config with vocab_size={rows}, "
            f"image_token_id={config.get('image_token_id')}",
            expected="no image_token_id (it follows the tokenizer), and a table no smaller than "
            f"the tokenizer ({processor.base_vocab_size} tokens)",
            fix="remove both keys; choose the tokenizer in processor.tokenizer",
        )
    tied = bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False)))
    # transformers 5.23 reads the top level and ignores the text config, 4.57 the reverse.
    config["tie_word_embeddings"] = text["tie_word_embeddings"] = tied
    text.setdefault("model_type", "qwen2")
    text["vocab_size"] = rows
    config["image_token_id"] = processor.image_token_id
    config["image_seq_length"] = processor.tokens_per_tile
    return config


def _grow_vocabulary(model: nn.Module, processor: Any, seed: int) -> None:
    """Adds embedding rows for the added tokens; new rows are drawn around the mean of the others.

    Tables are only ever grown: a table longer than the tokenizer is padding that InternVL ships.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    needed = max(processor.vocab_size, max(processor.added_token_ids) + 1)
    if rows >= needed:
        return
    if rows < processor.base_vocab_size:
        raise ConfigError(
            found=f"an embedding table of {rows} rows and a tokenizer of "
            f"{processor.base_vocab_size} tokens before the added ones",
            expected="a tokenizer that belongs to the weights",
            fix="set processor.tokenizer.path to the folder or hub id of model.mllm.pretrained",
        )
    with torch.random.fork_rng():
        torch.manual_seed(seed + 2)
        model.resize_token_embeddings(needed, mean_resizing=True)
