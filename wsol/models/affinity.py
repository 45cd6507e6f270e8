"""Make, save and load the networks of PSA and IRNet, and run them on whole images."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from wsol.data.transforms import input_size, to_input
from wsol.errors import ModelError
from wsol.models.affinity_net import AffinityNet
from wsol.models.checkpoints import read_card, resolve, write_model
from wsol.models.device import find_device
from wsol.models.features import Backbone
from wsol.models.irnet import IRNet

Method = Literal["psa", "irn"]
_CARD, _WEIGHTS = "model.json", "model.safetensors"


@dataclass(frozen=True)
class AffinityFacts:
    """What `model.json` says of a network that gives affinities.

    Attributes:
        method: "psa" or "irn".
        backbone: timm model name.
        output_stride: What the backbone was dilated to, or None.
        img_size: Long side in pixels at which the training saw an image at zoom 1.
        mean: Channel means of the input, for values in [0, 1].
        std: Channel standard deviations.
    """

    method: Method
    backbone: str
    output_stride: int | None
    img_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class AffinityModel:
    """A network of PSA or IRNet on its device.

    Attributes:
        module: `AffinityNet` or `IRNet`.
        facts: Names and normalization.
    """

    module: AffinityNet | IRNet
    facts: AffinityFacts

    @property
    def stride(self) -> int:
        """Pixels of the input between two positions of the grid."""
        return self.module.stride

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.module.parameters()).device

    def prepare(self, image: NDArray[np.uint8], *, img_size: int | None = None) -> tuple[Tensor, tuple[int, int]]:
        """Turn an image into network input with sides that the network can take.

        Args:
            image: uint8 (H, W, 3) RGB.
            img_size: Long side of the input in pixels; by default that of the training.

        Returns:
            Normalized float32 (1, 3, H', W') on the network's device, and the (h, w) of it that the image takes: the
            rest, at the right and below, is zero.
        """
        shape = image.shape[0], image.shape[1]
        height, width = input_size(shape, img_size=img_size or self.facts.img_size, resize="keep")
        pixels = to_input(image, (height, width), mean=self.facts.mean, std=self.facts.std)
        multiple = max(self.module.backbone.multiple, self.stride)
        padded = F.pad(torch.from_numpy(pixels)[None].to(self.device), (0, -width % multiple, 0, -height % multiple))
        return padded, (height, width)


def create_affinity(
    method: Method,
    name: str | None,
    *,
    img_size: int,
    checkpoint: str | None = None,
    pretrained: bool = False,
    output_stride: int | None = None,
    frozen: bool | None = None,
    device: torch.device | str = "cpu",
) -> AffinityModel:
    """Make a network that is to be trained; its new weights come from torch's generator.

    Args:
        method: "psa" or "irn".
        name: timm model name of the backbone; not needed when `checkpoint` is a run folder of wsol train.
        img_size: Side of the training view in pixels.
        checkpoint: Classifier to take the backbone's weights from: a file, a run folder, or pip:PACKAGE.
        pretrained: Load timm's weights from the hub instead.
        output_stride: Dilate a CNN to this stride.
        frozen: Train the heads only; by default so for "irn" and not for "psa", as in the papers.
        device: Where to put the network.

    Raises:
        ModelError: On an unknown name, weights that cannot be had, or a checkpoint of another network.
    """
    device, path = find_device(device), None if checkpoint is None else resolve(checkpoint)
    if name is None:
        if path is None or not path.is_dir():
            raise ModelError("no model name", hint="give --model NAME, or --checkpoint with a run of wsol train")
        name = read_card(path)[0].name
    if checkpoint is not None and pretrained:
        raise ModelError("weights from two sources", hint="give either --checkpoint or --pretrained")
    backbone = Backbone(name, pretrained=pretrained, output_stride=output_stride)
    if checkpoint is not None:
        backbone.load_classifier(name, checkpoint)
    facts = AffinityFacts(method, name, output_stride, img_size, backbone.mean, backbone.std)
    return AffinityModel(_module(facts, backbone, frozen).to(device), facts)


def save_affinity(model: AffinityModel, folder: Path) -> None:
    """Write model.json and model.safetensors into a run folder, the weights last."""
    write_model(folder, {"kind": "affinity", **asdict(model.facts)}, model.module)


def load_affinity(folder: Path, *, method: Method, device: torch.device | str = "cpu") -> AffinityModel:
    """Load the network of a run folder of wsol refine train-affinity, in evaluation mode.

    Args:
        folder: Run folder.
        method: What the network must be for.
        device: Where to put it.

    Raises:
        ModelError: When the folder holds none, or one of the other method.
    """
    device, hint = find_device(device), "give a run folder of wsol refine train-affinity whose training has ended"
    try:
        raw: dict[str, Any] = json.loads((folder / _CARD).read_text(encoding="utf-8"))
        if raw.pop("kind", None) != "affinity":
            raise ModelError("not a network of affinities", where=folder, hint=hint)
        facts = replace(AffinityFacts(**raw), mean=tuple(raw["mean"]), std=tuple(raw["std"]))
        if facts.method != method:
            raise ModelError(f"a network of {facts.method}, not of {method}", where=folder, hint="change --method")
        with torch.random.fork_rng(devices=[]):  # the weights drawn here are replaced
            module = _module(facts, Backbone(facts.backbone, output_stride=facts.output_stride), None)
        module.load_state_dict(load_file(folder / _WEIGHTS))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ModelError("no network of affinities here", where=folder, hint=hint) from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"cannot read the network: {reason}", where=folder) from error
    return AffinityModel(module.to(device).eval(), facts)


def _module(facts: AffinityFacts, backbone: Backbone, frozen: bool | None) -> AffinityNet | IRNet:
    if facts.method == "psa":
        return AffinityNet(backbone, frozen=bool(frozen))
    return IRNet(backbone, frozen=frozen is not False)
