"""Any timm classifier with what map making must know of it: target layer, token grid, head, input facts."""

from __future__ import annotations

from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from wsol.data.prompts import Prompts
from wsol.data.transforms import Interpolation
from wsol.errors import ModelError
from wsol.models.build import build
from wsol.models.checkpoints import (
    ModelCard,
    align,
    head_size,
    load_weights,
    read_card,
    read_weights,
    resolve,
    write_model,
)
from wsol.models.device import find_device
from wsol.models.layout import Kind, Size, find_layout, has_channels_last, run_features, token_grid
from wsol.models.taps import evaluating

_FILTERS = ("bilinear", "bicubic")


class Classifier:
    """A timm model and what running it once told about it; the model itself stays as it was.

    Args:
        module: A timm model, CNN or transformer.
        name: Its name; found from its configuration by default.
        input_size: Default input (h, w) in pixels; from its configuration by default.
        classes: Class names, where they are known.
        multi_label: Whether the head was trained with one sigmoid a class.

    Attributes:
        module: The timm model.
        name: Its name.
        num_classes: Outputs of the head; 0 without one.
        mean: Channel means of its training inputs, for values in [0, 1].
        std: Channel standard deviations.
        interpolation: "bilinear" or "bicubic".
        input_size: Default input (h, w) in pixels.
        kind: "cnn" for features on a grid (also hierarchical transformers), "tokens" for plain transformers.
        layer: Dotted name of the target layer of gradient methods, or None.
        stride: Pixels between two grid positions.
        prefix_tokens: Class, distillation and register tokens before the patch tokens.
        class_tokens: Class tokens that the head reads, from the first on: one, or one a class; 0 for a mean over
            patches.
        attention: Dotted names of the attention modules in order; empty for "cnn".

    Raises:
        ModelError: When the model cannot be run at `input_size`, or has no spatial features.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        name: str | None = None,
        input_size: Size | None = None,
        classes: tuple[str, ...] = (),
        multi_label: bool = False,
    ) -> None:
        from timm.data.config import resolve_model_data_config

        if not hasattr(module, "forward_features") or not hasattr(module, "forward_head"):
            raise ModelError(f"{type(module).__name__} is no timm model", hint="make it with timm.create_model")
        self.module = cast(Any, module)  # what timm adds to nn.Module has no type
        facts: dict[str, Any] = resolve_model_data_config(self.module)  # type: ignore[no-untyped-call]
        self.name = name or str(self.module.pretrained_cfg.get("architecture") or type(module).__name__)
        self.num_classes = int(self.module.num_classes)
        self.mean = tuple(float(value) for value in facts["mean"])
        self.std = tuple(float(value) for value in facts["std"])
        self.interpolation: Interpolation = facts["interpolation"] if facts["interpolation"] in _FILTERS else "bicubic"
        self.input_size: Size = input_size or (int(facts["input_size"][1]), int(facts["input_size"][2]))
        self.classes, self.multi_label = classes, multi_label
        self._layout = find_layout(module, size=self.input_size)
        self.kind: Kind = self._layout.kind
        self.layer, self.stride, self.attention = self._layout.layer, self._layout.stride, self._layout.attention
        self.prefix_tokens, self.class_tokens = self._layout.prefix_tokens, self._layout.class_tokens
        self._grids: dict[Size, Size] = {}

    @property
    def class_token(self) -> bool:
        """Whether the head reads class tokens instead of a mean over patches."""
        return self.class_tokens > 0

    @property
    def output_tokens(self) -> slice:
        """The tokens that the head reads: the class tokens, or the patches for models that pool.

        Of DeiT's distilled models the class token stands for both tokens, as usual in the literature.
        """
        return slice(0, self.class_tokens) if self.class_tokens else slice(self.prefix_tokens, None)

    @property
    def distillation_token(self) -> bool:
        """Whether the second token is the distillation token of DeiT."""
        return getattr(self.module, "dist_token", None) is not None

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        parameter: Tensor = next(self.module.parameters())
        return parameter.device

    def grid(self, height: int, width: int) -> Size:
        """Return the (rows, columns) of the features for an input of height x width pixels."""
        size = (height, width)
        if self.kind == "tokens":
            return token_grid(self.module, size=size, stride=self.stride)
        if size not in self._grids:
            shape = run_features(self.module, size=size)
            self._grids[size] = shape[1:3] if self._layout.channels_last else shape[2:4]  # type: ignore[assignment]
        return self._grids[size]

    def to_grid(self, activation: Tensor, height: int, width: int) -> Tensor:
        """Arrange activations as maps.

        Args:
            activation: (B, D, h, w), (B, h, w, D), or tokens (B, N, D) with or without prefix tokens.
            height: Height of the input in pixels.
            width: Width of the input in pixels.

        Returns:
            (B, D, rows, columns), a view where possible; prefix tokens are left out.

        Raises:
            ModelError: When the tokens do not fill the grid.
        """
        if activation.ndim == 4:
            usual = self._layout.channels_last
            last = has_channels_last(activation.shape, size=(height, width), usual=usual)
            return activation.permute(0, 3, 1, 2) if last else activation
        rows, columns = self.grid(height, width)
        extra = activation.shape[1] - rows * columns if activation.ndim == 3 else -1
        if extra not in (0, self.prefix_tokens):
            got, expected = tuple(activation.shape), f"{rows}x{columns} tokens (B, N, D)"
            raise ModelError(f"expected {expected}, got {got}", where=self.name, hint="choose another layer")
        patches = activation[:, extra:].transpose(1, 2)
        return patches.reshape(len(patches), -1, rows, columns)

    @property
    def head(self) -> nn.Module:
        """The layer or layers that turn pooled features into logits."""
        layer: Any = self.module.get_classifier()
        return nn.ModuleList(layer) if isinstance(layer, tuple | list) else layer

    def head_weight(self) -> tuple[Tensor, Tensor | None]:
        """Return weight (C, D) and bias (C,) of the last layer, as they are now.

        Raises:
            ModelError: When the model ends with anything but one linear layer.
        """
        layer = self.head
        if not isinstance(layer, nn.Linear | nn.Conv2d) or layer.weight[0, 0].numel() != 1:
            raise ModelError("the model does not end with one linear layer", where=self.name)
        return layer.weight.flatten(1), layer.bias

    @cached_property
    def pools_linearly(self) -> bool:
        """Whether logits are the mean over the grid of a linear map of the features, plus a bias.

        Tried out on random features, so it holds for whatever a model does in its head.
        """
        if not self.num_classes:
            return False
        try:
            weight, bias = self.head_weight()
        except ModelError:
            return False
        drawn = torch.randn(self._layout.features, generator=torch.Generator().manual_seed(0))
        features = drawn.to(weight)
        with evaluating(self.module), torch.no_grad():
            logits = self.module.forward_head(features)
            pooled = self.to_grid(features, *self.input_size).mean((2, 3))
            if pooled.shape[1] != weight.shape[1]:
                return False
            expected = nn.functional.linear(pooled, weight, bias)
        # TF32 and half precision differ by less than 1 %; a norm, an activation or another token by all.
        return bool((logits - expected).abs().max() <= 0.01 * expected.abs().max())

    def describe(self) -> str:
        """Return one line: what was chosen for this model."""
        rows, columns = self.grid(*self.input_size)
        tokens = f", prefix tokens: {self.prefix_tokens}" if self.kind == "tokens" else ""
        height, width = self.input_size
        return (
            f"{self.name}: {self.num_classes} classes, layer {self.layer}, grid {rows}x{columns} at {height}x{width} "
            f"(stride {self.stride}){tokens}"
        )


def load_classifier(
    name: str | None = None,
    *,
    checkpoint: str | Path | None = None,
    pretrained: bool = False,
    num_classes: int | None = None,
    img_size: int | None = None,
    output_stride: int | None = None,
    prompts: Prompts | None = None,
    device: str | torch.device = "cpu",
) -> Classifier:
    """Build a timm classifier, load its weights and put it into evaluation mode.

    Args:
        name: timm model name; not needed when `checkpoint` is a run folder. "clip:NAME" for an open_clip model.
        checkpoint: A weight file (safetensors, torch state dict), a run folder of `wsol train`, or "pip:PACKAGE".
        pretrained: Load timm's weights from the hub instead.
        num_classes: Outputs of the head; where the weights have another number, the head starts anew. By default
            the checkpoint's own number, 0 where it holds no head; without a checkpoint the model's default.
        img_size: Default side of the input in pixels.
        output_stride: 8 or 16 instead of a CNN's 32: dilation takes the place of the last strides, so the same weights
            give a grid of twice or four times the side (ResNets, EfficientNets, MobileNets and others of timm).
        prompts: Texts of the classes, which a CLIP model needs.
        device: Where to put it.

    Returns:
        The classifier. New weights are drawn from torch's generator, which is given back as it was.

    Raises:
        ModelError: When the model, the checkpoint, the device or the network connection is not there, or does not
            fit; when a number is out of range.
    """
    for option, value, least in (("num_classes", num_classes, 0), ("img_size", img_size, 1)):
        if value is not None and value < least:
            raise ModelError(f"must be at least {least}, got {value}", where=option)
    device = find_device(device)
    if name is not None and name.partition(":")[0] == "clip":
        if prompts is None:
            raise ModelError("a CLIP model needs texts", where=name, hint="prompts=Prompts(classes=..., texts=...)")
        from wsol.models.clip_load import load_clip  # open_clip takes seconds

        return load_clip(name, prompts, checkpoint=checkpoint, pretrained=pretrained, img_size=img_size, device=device)
    import wsol.models.token_heads  # noqa: F401 (enters models into timm)

    card: ModelCard | None = None
    path = None if checkpoint is None else resolve(checkpoint)
    if path is not None and pretrained:
        raise ModelError("weights from two sources", hint="give either --checkpoint or --pretrained")
    if path is not None and path.is_dir():
        card, path = read_card(path)
        if name not in (None, card.name):
            raise ModelError(
                f"the run holds a '{card.name}', not a '{name}'", where=checkpoint, hint="leave out --model"
            )
        name, img_size = card.name, img_size or card.img_size
    elif path is not None and name is None and (path.parent / "model.json").is_file():  # best_loc.safetensors of a run
        card, _ = read_card(path.parent)
        name, img_size = card.name, img_size or card.img_size
    if name is None:
        raise ModelError("no model name", hint="give --model NAME, or a run folder of wsol train")
    with torch.random.fork_rng(devices=[]):
        own_classes = card.num_classes if card and num_classes is None else num_classes
        module: Any = build(
            name, num_classes=own_classes, img_size=img_size, pretrained=pretrained, output_stride=output_stride
        )
        if path is not None:
            weights = align(read_weights(path), module)
            weights = module.adapt(weights) if hasattr(module, "adapt") else weights
            size = head_size(weights, module)
            if num_classes is None and size != module.num_classes:
                module.reset_classifier(size)
            load_weights(module, weights, new_head=size != module.num_classes, where=checkpoint)
    module.eval().to(device)
    kept = card if card and card.num_classes == module.num_classes else None
    classifier = Classifier(
        module,
        name=name,
        input_size=(img_size, img_size) if img_size else None,
        classes=kept.classes if kept else (),
        multi_label=bool(kept and kept.multi_label),
    )
    if card:
        classifier.mean, classifier.std, classifier.interpolation = card.mean, card.std, card.interpolation
    return classifier


def save_classifier(
    classifier: Classifier, folder: Path, *, classes: tuple[str, ...] | list[str] = (), multi_label: bool = False
) -> None:
    """Write `model.safetensors` and `model.json`, from which `load_classifier` makes the classifier again.

    Args:
        classifier: Any.
        folder: Run folder.
        classes: Class names, one a head output.
        multi_label: Whether the head was trained with one sigmoid a class.

    Raises:
        StoreError: When the folder cannot be written.
    """
    card = ModelCard(
        name=classifier.name,
        num_classes=classifier.num_classes,
        img_size=classifier.input_size[0],
        mean=classifier.mean,
        std=classifier.std,
        interpolation=classifier.interpolation,
        classes=tuple(classes),
        multi_label=multi_label,
    )
    write_model(folder, asdict(card), classifier.module)
