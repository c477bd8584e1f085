"""The mask model, prompted by one embedding: one adapter class per SAM2-family encoder.

Source: the sparse prompt (two not-a-point embeddings, then the language embedding), the
``no_memory_embedding`` on the coarsest map and the choice of the best of three masks follow
bytedance/Sa2VA, ``projects/sa2va/hf/models/sam2.py`` (``_forward_sam_heads``).
"""

from __future__ import annotations

import abc
import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from projects.sa2va.errors import ConfigError
from projects.sa2va.weights.base import shapes_of
from projects.sa2va.weights.layouts import Source
from projects.sa2va.weights.published_configs import sam2_config
from projects.sa2va.weights.report import PartRow

from .building import PartKind, build_weights, first_parameter, resolve_dtype
from .prediction_parts import PredictionPart


@dataclass
class ImageFeatures:
    """Feature maps of B images: strides 4 and 8 for the upscaling, stride 16 for the decoder.

    Beside them the maps of a high-resolution head's stem, where there is one.
    """

    stride4: Tensor
    stride8: Tensor
    stride16: Tensor
    stem: tuple[Tensor, ...] = ()

    def select(self, index: Tensor) -> ImageFeatures:
        """The maps of the images ``index`` (int64 [N]), one for each of N prompts."""
        own = (f[index.to(f.device)] for f in (self.stride4, self.stride8, self.stride16))
        return ImageFeatures(*own, stem=tuple(f[index.to(f.device)] for f in self.stem))


class Decoded(NamedTuple):
    """What the mask decoder makes of N prompts.

    Attributes:
        logits: float32 [N, S/4, S/4], of the chosen mask.
        iou: float32 [N, masks], all predicted IoUs.
        upscaled: [N, E, S/4, S/4], the embedding that the masks are read from; None if not asked
            for.
    """

    logits: Tensor
    iou: Tensor
    upscaled: Tensor | None


class GroundingAdapter(nn.Module, abc.ABC):
    """What the joint model needs of a mask model. ``S`` is its input size in px.

    Attributes:
        image_size: S.
        rows: where the weights come from, for the load report.
        unused: published weights that single images do not need, by name, kept for export.
    """

    image_size: int
    rows: list[PartRow]
    unused: dict[str, Tensor]

    @property
    @abc.abstractmethod
    def prompt_size(self) -> int:
        """Width C of a prompt embedding."""

    @property
    @abc.abstractmethod
    def embedding_size(self) -> int:
        """Channels E of the embedding that masks are read from."""

    @abc.abstractmethod
    def prediction_part(self) -> PredictionPart:
        """All of it, and the layers of its image encoder."""

    @abc.abstractmethod
    def encode(self, images: Tensor) -> ImageFeatures:
        """Encodes images [B, 3, S, S]."""

    @abc.abstractmethod
    def decode(
        self, features: ImageFeatures, prompts: Tensor, with_upscaled: bool = False
    ) -> Decoded:
        """Decodes prompts [N, C], each on its own image's features, N maps."""


@MODELS.register_module()
class Sam2Adapter(GroundingAdapter):
    """SAM2 and SAM2.1 by transformers' ``Sam2Model``.

    Args:
        image_size: input size in px (1024, 512, ...); position embeddings and feature sizes follow.
        pretrained: hub id, local folder or file: SAM2 or SAM2.1 in transformers' layout or as Meta
            publishes it (.pt), or a released Sa2VA; None for random weights.
        config: keyword arguments of ``Sam2Config`` for random weights, and for weights of an
            unpublished size that come without a config. Sizes that depend on ``image_size`` are
            filled in.
        dtype: dtype of the frozen weights; whatever trains is float32.
        train_mask_decoder: train the mask decoder (and the two convolutions that feed it).
        train_image_encoder: train Hiera and the FPN too: for models that start from random weights.
        multimask: True decodes SAM2's three masks for an ambiguous prompt and takes the one with
            the best predicted IoU, as the reference does. False decodes its single mask: for
            models that start from random weights, whose untrained IoU head would choose at random.
        attn_implementation: ``sdpa`` or ``eager``.
        seed: seed of random weights.
        init_device: where random weights are drawn.

    The IoU and object-score heads stay frozen: no loss reaches them (in the reference they are
    marked trainable and get no gradient, which plain DDP refuses).
    """

    CONFIG_SCHEMAS: ClassVar = {"config": "transformers.Sam2Config"}

    def __init__(
        self,
        image_size: int,
        pretrained: str | None = None,
        config: dict | None = None,
        dtype: str = "bfloat16",
        train_mask_decoder: bool = True,
        train_image_encoder: bool = False,
        multimask: bool = True,
        attn_implementation: Literal["sdpa", "eager"] = "sdpa",
        seed: int = 0,
        init_device: str = "cpu",
    ) -> None:
        super().__init__()
        built = build_weights(
            part_kind(),
            pretrained=pretrained,
            config=_deep_copy(config),
            dtype=resolve_dtype(dtype),
            attn_implementation=attn_implementation,
            seed=seed,
            device=init_device,
        )
        self.model, self.rows, self.unused = built.model, built.rows, built.rest
        self._set_image_size(image_size)
        if pretrained is None:
            _draw_random_prompts(self.model, seed)
        self.train_image_encoder = train_image_encoder
        self.train_mask_decoder = train_mask_decoder
        self.multimask = multimask
        # Else prediction would fall back to the three masks where the single one is unstable.
        self.model.mask_decoder.dynamic_multimask_via_stability &= multimask
        self.model.requires_grad_(False)
        if train_mask_decoder:
            decoder = self.model.mask_decoder.float().requires_grad_(True)
            decoder.iou_prediction_head.requires_grad_(False)
            decoder.pred_obj_score_head.requires_grad_(False)
            # Mask tokens that are not read from train along with the others, as in the reference:
            # they are rows of one table.
        if train_image_encoder:
            self.model.vision_encoder.float().requires_grad_(True)

    def _set_image_size(self, image_size: int) -> None:
        """Adapts what depends on the input size in Sam2Model; weights stay as they are."""
        patch = self.model.config.prompt_encoder_config.patch_size
        backbone = self.model.vision_encoder.config.backbone_config
        window = backbone.window_size_per_stage[0] * backbone.patch_stride[0]
        unit = math.lcm(2 * patch, window)
        if image_size % unit:
            raise ConfigError(
                found=f"processor.image_size={image_size}",
                expected=f"a multiple of {unit}: SAM2 works on a grid of 1/{patch}, and its window "
                f"position embedding repeats every {window} px",
                fix=f"set processor.image_size={max(unit, round(image_size / unit) * unit)}",
            )
        self.image_size = image_size
        side = image_size // patch
        sizes = [[side * 4, side * 4], [side * 2, side * 2], [side, side]]
        self.model.backbone_feature_sizes = sizes
        self.model.config.vision_config.backbone_feature_sizes = sizes
        backbone.image_size = [image_size, image_size]
        self.model.config.prompt_encoder_config.image_size = image_size
        encoder = self.model.prompt_encoder
        encoder.image_embedding_size = (side, side)
        encoder.mask_input_size = (4 * side, 4 * side)
        encoder.input_image_size = image_size

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of the logits that :meth:`decode` returns."""
        return self.model.prompt_encoder.mask_input_size

    @property
    def prompt_size(self) -> int:
        return self.model.config.prompt_encoder_config.hidden_size

    @property
    def embedding_size(self) -> int:
        return self.model.mask_decoder.upscale_conv2.out_channels

    def prediction_part(self) -> PredictionPart:
        return PredictionPart(
            modules=(self.model,),
            layers=tuple(self.model.vision_encoder.backbone.blocks),
            trained=(self.model.mask_decoder,) if self.train_mask_decoder else (),
        )

    def encode(self, images: Tensor) -> ImageFeatures:
        model = self.model
        weight = first_parameter(model.vision_encoder)
        images = images.to(weight.device, weight.dtype)
        # Frozen in half precision it computes in that: autocast would raise each norm to float32,
        # and round the result before the next layer (a sixth of the time, for the same digits).
        own_dtype = weight.dtype != torch.float32 and not self.train_image_encoder
        with (
            torch.set_grad_enabled(torch.is_grad_enabled() and self.train_image_encoder),
            torch.autocast(images.device.type, enabled=False)
            if own_dtype
            else contextlib.nullcontext(),
        ):
            stride4, stride8, stride16 = model.vision_encoder(images).fpn_hidden_states[:3]
        decoder = model.mask_decoder
        dtype = decoder.conv_s0.weight.dtype
        # The coarsest map carries "no memory of earlier frames", [1, 1, C] to [1, C, 1, 1].
        stride16 = stride16 + model.no_memory_embedding.to(stride16.dtype).reshape(1, -1, 1, 1)
        return ImageFeatures(
            decoder.conv_s0(stride4.to(dtype)), decoder.conv_s1(stride8.to(dtype)), stride16
        )

    def decode(
        self, features: ImageFeatures, prompts: Tensor, with_upscaled: bool = False
    ) -> Decoded:
        model = self.model
        n, device = len(prompts), features.stride16.device
        # One empty point; the encoder pads a second: two not-a-point embeddings.
        sparse, dense = model.prompt_encoder(
            input_points=torch.zeros(n, 1, 1, 2, device=device),
            input_labels=-torch.ones(n, 1, 1, dtype=torch.int, device=device),
            input_boxes=None,
            input_masks=None,
        )
        decoder = model.mask_decoder
        dtype = first_parameter(decoder).dtype
        sparse = torch.cat([sparse.to(dtype), prompts.to(device, dtype)[:, None, None, :]], dim=2)
        # DeepSpeed leaves this buffer fp32 beside bf16 weights.
        position = model.get_image_wide_positional_embeddings().to(dtype)
        outputs: list[Tensor] = []
        watched = (
            _output_of(decoder.upscale_conv2, outputs)
            if with_upscaled
            else contextlib.nullcontext()
        )
        with watched:
            masks, iou, _, _ = decoder(
                image_embeddings=features.stride16.to(dtype),
                image_positional_embeddings=position.expand(n, -1, -1, -1),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense.to(dtype),
                multimask_output=self.multimask,
                high_resolution_features=[features.stride4, features.stride8],
            )
        masks, iou = masks[:, 0], iou[:, 0]
        best = iou.argmax(dim=-1)
        return Decoded(
            masks[torch.arange(n, device=device), best].float(),
            iou.float(),
            decoder.activation(outputs[0] + features.stride4) if with_upscaled else None,
        )


@contextlib.contextmanager
def _output_of(module: nn.Module, outputs: list[Tensor]) -> Iterator[None]:
    """Collects what ``module`` returns: transformers' decoder does not hand its embedding out."""
    handle = module.register_forward_hook(lambda _, __, output: outputs.append(output))
    try:
        yield
    finally:
        handle.remove()


def part_kind() -> PartKind:
    """What there is to know of SAM2 for loading or drawing its weights."""
    from transformers import Sam2Config, Sam2Model

    return PartKind(
        key="model.grounding",
        prefix="grounding.",
        model_class=Sam2Model,
        config_class=Sam2Config,
        layouts=("sam2-native", "sam2-meta", "sa2va"),
        read_config=_read_config,
    )


def _read_config(source: Source, config: dict | None) -> dict[str, Any]:
    """Keyword arguments of Sam2Config for published weights."""
    if source.layout.name == "sam2-native" and source.config:
        return {k: v for k, v in source.config.items() if k != "model_type"}
    # Exports of ours say it; Meta's files and Sa2VA's config.json do not.
    own = config or source.config.get("sam2_config")
    return own or sam2_config(shapes_of(source), source.files.path)


def _deep_copy(config: dict | None) -> dict | None:
    """Plain nested dicts: transformers writes into what it is given, mmengine's are shared."""
    if not isinstance(config, dict):
        return config
    return {k: _deep_copy(v) if isinstance(v, dict) else v for k, v in config.items()}


def _draw_random_prompts(model: nn.Module, seed: int) -> None:
    """Gives a randomly initialised SAM2 one positional basis and usable position embeddings.

    transformers draws two independent Fourier bases for what is one shared basis in SAM2, and
    leaves Hiera's position embeddings at zero.
    """
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed + 1)
        basis = model.prompt_encoder.shared_embedding.positional_embedding
        model.shared_image_embedding.positional_embedding.copy_(basis)
        backbone = model.vision_encoder.backbone
        for table in (backbone.pos_embed, backbone.pos_embed_window):
            nn.init.trunc_normal_(table, std=0.02)
