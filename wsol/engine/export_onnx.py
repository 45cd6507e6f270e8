"""`wsol segment export`: a trained segmentation network as ONNX, checked against what torch says."""

from __future__ import annotations

import importlib
import json
import logging
import warnings
from typing import Any

import numpy as np
import torch

from wsol.engine.segment_options import SegmentExportConfig
from wsol.errors import ConfigError, ModelError, StoreError
from wsol.models.segmenter import Segmenter, load_segmenter
from wsol.store.atomic import atomic_write

_log = logging.getLogger("wsol")
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_OLDEST = 18  # what the exporter of torch writes; its converter to older operators gives up on most networks


def export_onnx(config: SegmentExportConfig) -> float:
    """Write `images` float32 (batch, 3, side, side), normalised, to `logits` (batch, 1 + classes, side, side).

    The file's metadata hold the classes, mean and std. Any batch size goes, one image size.

    Args:
        config: See `SegmentExportConfig`.

    Returns:
        The largest difference of a logit between torch and onnxruntime on three random images.

    Raises:
        ConfigError: When a package is missing, or an option is wrong.
        ModelError: When the network cannot be exported, or the file says something else; nothing is written then.
        StoreError: When the file is there already.
    """
    packages = [_package(name) for name in _PACKAGES]
    onnx, runtime = packages[0], packages[2]
    if config.opset < _OLDEST:
        raise ConfigError(f"--opset must be at least {_OLDEST}, got {config.opset}")
    if config.out.exists() and not config.overwrite:
        raise StoreError("the file is there already", where=config.out, hint="give another --out, or --overwrite")
    segmenter = load_segmenter(config.checkpoint)
    side = config.img_size or segmenter.facts.img_size
    if side < 1 or side % segmenter.stride:
        raise ConfigError(f"--img-size must be a multiple of {segmenter.stride} for this network, got {side}")
    model = _export(segmenter, side, config.opset)
    facts = segmenter.facts
    told = {
        "classes": facts.classes,
        "mean": facts.mean,
        "std": facts.std,
        "arch": facts.arch,
        "encoder": facts.encoder,
    }
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in told.items()})
    content = model.SerializeToString()
    difference = _difference(segmenter, content, side, runtime)
    if not difference <= config.tolerance:
        raise ModelError(f"onnxruntime differs from torch by {difference:.3g}", where=config.checkpoint)
    with atomic_write(config.out) as stream:
        stream.write(content)
    _log.info("%s: %.1f MB, differs from torch by %.2g at most", config.out, len(content) / 1e6, difference)
    return difference


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"package '{name}' is not installed", hint="pip install 'wsol[onnx]'") from error


def _export(segmenter: Segmenter, side: int, opset: int) -> Any:
    images = torch.zeros(2, 3, side, side)
    batch = {0: torch.export.Dim("batch")}
    converter = logging.getLogger("onnxscript.version_converter")  # logs a traceback and goes on
    level = converter.level
    converter.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                segmenter.module,
                (images,),
                input_names=["images"],
                output_names=["logits"],
                opset_version=opset,
                dynamic_shapes=(batch,),
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # the exporter raises whatever the network leads it to
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelError(f"cannot export the network: {reason}") from error
    finally:
        converter.setLevel(level)
    if program is None:
        raise ModelError("the exporter of torch gave no model")
    return program.model_proto


@torch.no_grad()
def _difference(segmenter: Segmenter, content: bytes, side: int, runtime: Any) -> float:
    images = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    try:
        session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
        (found,) = session.run(["logits"], {"images": images.numpy()})
    except Exception as error:  # its errors have no common class
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelError(f"onnxruntime cannot run the network: {reason}", hint="try another --opset") from error
    return float(np.abs(found - segmenter.module(images).numpy()).max())
