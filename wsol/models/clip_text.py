"""The text tower of CLIP: features of class texts, kept on disk because every run asks for the same ones."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from wsol.errors import StoreError
from wsol.models.taps import evaluating
from wsol.store.atomic import atomic_write

_log = logging.getLogger("wsol")
_BATCH = 64


class TextTower:
    """Encodes texts with a CLIP model of open_clip.

    Args:
        module: Any module with `encode_text` and `visual`, as open_clip makes them.
        tokenize: Texts to token ids (n, context).
    """

    def __init__(self, module: nn.Module, tokenize: Callable[[list[str]], Tensor]) -> None:
        self.module, self.tokenize = module, tokenize

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return features (n, E), float32, not normalized."""
        device = next(self.module.parameters()).device
        tokens = self.tokenize(list(texts)).to(device)
        with evaluating(self.module), torch.inference_mode(False), torch.no_grad():
            parts = torch.split(tokens, _BATCH)
            return torch.cat([self.module.encode_text(part).float() for part in parts])  # type: ignore[operator]

    def class_features(self, texts: Sequence[str], *, templates: Sequence[str], cache: Path | None = None) -> Tensor:
        """Return one unit feature a text: the mean over the templates of unit features, normalized again.

        Args:
            texts: What fills the templates.
            templates: Sentences with one "{}" each.
            cache: Folder of kept features, found by a hash over the tower's weights and the tokens; None keeps none.

        Returns:
            float32 (n, E) on the tower's device.
        """
        device = next(self.module.parameters()).device
        if not texts:
            return self.encode(["nothing"])[:0]
        sentences = [template.replace("{}", text) for text in texts for template in templates]
        path = None if cache is None else cache / f"{self._digest(sentences, len(templates))}.safetensors"
        if path is not None:
            # A file that does not read whole is made again.
            with suppress(Exception):
                return load_file(path)["features"].to(device)
        features = F.normalize(self.encode(sentences), dim=-1).reshape(len(texts), len(templates), -1)
        found = F.normalize(features.mean(1), dim=-1)
        if path is not None:
            try:
                with atomic_write(path) as stream:
                    stream.write(save({"features": found.cpu().contiguous()}))
            except StoreError as error:
                _log.debug("text features are not kept: %s", error)
        return found

    def _digest(self, sentences: list[str], templates: int) -> str:
        digest = hashlib.sha256(f"wsol text features 1, {templates} templates, {self._weights_digest}".encode())
        digest.update(self.tokenize(sentences).cpu().numpy().tobytes())
        return digest.hexdigest()[:32]

    @cached_property
    def _weights_digest(self) -> str:
        digest = hashlib.sha256()
        for name, tensor in sorted(self.module.state_dict().items()):
            if not name.startswith("visual."):
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().numpy().data)
        return digest.hexdigest()


def default_cache() -> Path:
    """Return the folder of kept text features: `wsol` where torch.hub keeps its downloads."""
    return Path(torch.hub.get_dir()) / "wsol"
