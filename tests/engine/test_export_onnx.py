"""ONNX files say what torch says, for any number of images."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from wsol.cli import segment as verb
from wsol.engine import export_onnx as room
from wsol.engine.segment_options import SegmentExportConfig
from wsol.errors import ConfigError, ModelError, StoreError
from wsol.models.segmenter import create_segmenter, load_segmenter, save_segmenter

NETWORKS = [("fpn", "tu-test_resnet"), ("deeplabv2", "tu-test_resnet"), ("segmenter", "test_vit")]


def saved(folder, arch, encoder):
    torch.manual_seed(0)
    save_segmenter(create_segmenter(arch, encoder, classes=("a", "b"), img_size=64), folder)
    return folder


@pytest.mark.parametrize(("arch", "encoder"), NETWORKS)
def test_the_graph_takes_any_number_of_images(tmp_path, arch, encoder):
    module = load_segmenter(saved(tmp_path, arch, encoder)).module
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(module, (torch.zeros(2, 3, 64, 64),), dynamic_shapes=(batch,))
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images), module(images))


@pytest.mark.parametrize(
    ("arch", "encoder"), [pytest.param(*names, marks=pytest.mark.slow) for names in NETWORKS[:2]] + NETWORKS[2:]
)
def test_the_file_says_what_torch_says(tmp_path, arch, encoder):
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    run, path = saved(tmp_path, arch, encoder), tmp_path / "network.onnx"
    assert verb.run(["export", "--checkpoint", str(run), "--out", str(path)]) == 0
    told = {item.key: json.loads(item.value) for item in onnx.load(path).metadata_props}
    assert told["classes"] == ["a", "b"]
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).normal(size=(5, 3, 64, 64)).astype(np.float32)
    (found,) = session.run(["logits"], {"images": images})
    with torch.no_grad():
        expected = load_segmenter(run).module(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-3)
    with pytest.raises(StoreError, match="there already"):
        room.export_onnx(SegmentExportConfig(checkpoint=run, out=path))


class Model:
    """Stands for what the exporter gives."""

    metadata_props = ()

    def SerializeToString(self):  # noqa: N802 (its name in protobuf)
        return b"a file"


class Session:
    def __init__(self, content, providers):
        assert content == b"a file"

    def run(self, names, feeds):
        return (np.full((3, 3, 64, 64), 1e3, dtype=np.float32),)


def test_nothing_is_written_when_the_file_says_something_else(tmp_path, monkeypatch):
    helper = SimpleNamespace(set_model_props=lambda model, props: None)
    packages = {"onnx": SimpleNamespace(helper=helper), "onnxruntime": SimpleNamespace(InferenceSession=Session)}
    monkeypatch.setattr(room, "_package", lambda name: packages.get(name))
    monkeypatch.setattr(room, "_export", lambda *_: Model())
    run = saved(tmp_path, *NETWORKS[0])
    with pytest.raises(ModelError, match="onnxruntime differs from torch"):
        room.export_onnx(SegmentExportConfig(checkpoint=run, out=tmp_path / "x.onnx"))
    assert not (tmp_path / "x.onnx").exists()
    with pytest.raises(ConfigError, match="multiple of 32"):
        room.export_onnx(SegmentExportConfig(checkpoint=run, out=tmp_path / "x.onnx", img_size=65))


def test_operators_that_cannot_be_written(tmp_path):
    run, path = saved(tmp_path, *NETWORKS[2]), tmp_path / "x.onnx"
    with pytest.raises(ConfigError, match="--opset must be at least 18, got 17"):
        room.export_onnx(SegmentExportConfig(checkpoint=run, out=path, opset=17))

    def refuse(content, providers):
        raise RuntimeError("no such operator")

    with pytest.raises(ModelError, match="onnxruntime cannot run the network: no such operator"):
        room._difference(load_segmenter(run), b"", 64, SimpleNamespace(InferenceSession=refuse))
    assert not path.exists()


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "_PACKAGES", ("no_such_package",))
    with pytest.raises(ConfigError, match=r"'no_such_package' is not installed.*wsol\[onnx\]"):
        room.export_onnx(SegmentExportConfig(checkpoint=tmp_path, out=tmp_path / "x.onnx"))
