"""The peers of the benchmarks are oracles too: tiny models, equal outputs."""

from __future__ import annotations

import importlib
import json
import sys
import zlib
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch

TOOLS = Path(__file__).resolve().parents[2] / "tools"
TINY = {"embed_dim": 32, "width": 64, "layers": 9, "image_size": 64, "head_width": 32}


@pytest.fixture
def tool(monkeypatch):
    """Import a module of tools/ as a script there would."""
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module


def differ(tool, build) -> float:
    with ExitStack() as stack:
        ours, peer = build(stack)
        return tool("_bench").largest_difference(ours(), peer())


@pytest.mark.parametrize(("classes", "size"), [(1, (61, 83)), (4, (83, 45))])
def test_clip_es_equals_the_reference(tool, classes, size):
    assert differ(tool, tool("_cams_transformers").clip_es(classes, size=size, clip=TINY)) < 1e-5


def test_clip_es_with_a_bfloat16_encoder_is_near_the_reference(tool):
    transformers = tool("_cams_transformers")
    found = differ(tool, transformers.clip_es(2, size=(61, 83), clip=TINY, bf16=True))
    assert 0 < found < transformers.BF16_TOLERANCE


def test_getam_equals_a_backward_pass_an_image_and_class(tool, monkeypatch):
    import timm

    transformers = tool("_cams_transformers")
    # The gradients end at the first block that takes part, so a few blocks show all.
    small = timm.create_model("deit_tiny_patch16_224", depth=8, embed_dim=48, num_heads=2)
    weights = {key: value + 0.1 * torch.randn_like(value) for key, value in small.state_dict().items()}

    def model(name: str) -> torch.nn.Module:
        known = timm.create_model(name, depth=8, embed_dim=48, num_heads=2).eval()
        known.load_state_dict(weights)
        return known

    monkeypatch.setattr(transformers, "random_model", model)
    assert differ(tool, transformers.getam("deit_tiny_patch16_224", 2, 3)) < 1e-4


@pytest.mark.parametrize("peer", ["grad-cam", "torchcam", "torchcam, one forward"])
def test_the_family_equals_its_peers(tool, peer, monkeypatch):
    family = tool("_cams_family")
    methods = family.TORCHCAM if peer.startswith("torchcam") else family.GRAD_CAM
    methods = [name for name in methods if name not in family.PER_CHANNEL]
    for method in methods:
        build = family._build(peer, method, "resnet18", 2, 2, 64)
        assert differ(tool, build) < 1e-4, method


def test_a_benchmark_writes_its_cases_and_fails_when_outputs_differ(tool, tmp_path, monkeypatch, capsys):
    bench = tool("_bench")
    values = np.arange(6.0)
    same = bench.Case("same", lambda _: (lambda: [values], lambda: [values + 1e-7]), quick=True, memory=False, rounds=2)
    other = bench.Case("other", lambda _: (lambda: values, lambda: values + 1), memory=False, rounds=2, target=1.0)
    monkeypatch.setattr(sys, "argv", ["bench", "--json", str(tmp_path / "out.json")])
    assert bench.main("doc", [same, other], threads=1, setup=lambda threads: None) == 1
    found = json.loads((tmp_path / "out.json").read_text())
    assert [case["equal"] for case in found["cases"]] == [True, False]
    assert {"case", "ours_ms", "peer_ms", "ratio", "ours_peak_mb", "peer_peak_mb", "equal"} <= set(found["cases"][0])
    assert found["machine"]["threads"] == 1
    assert "DIFFERENT" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["bench", "--quick"])
    assert bench.main("doc", [same, other], threads=1, setup=lambda threads: None) == 0


def test_arrays_of_other_shapes_differ(tool):
    bench = tool("_bench")
    assert bench.largest_difference(np.zeros(3), np.zeros(4)) == np.inf
    assert bench.largest_difference([], []) == 0.0


def test_a_number_that_only_one_side_has_is_a_difference(tool):
    difference, lost = tool("_bench").largest_difference, float("nan")
    assert np.isnan(difference([1.0, 2.0], [1.0, lost]))
    assert np.isnan(difference(np.array([lost, 1]), np.array([2, 1])))
    assert difference(np.array([lost, np.inf, 1]), np.array([lost, np.inf, 3])) == 2


def weights_by_rule(embed: int, width: int, layers: int = 12) -> dict[str, torch.Tensor]:
    """The weights that the golden arrays were made with; the rule is in their README."""
    shapes: dict[str, tuple[int, ...]] = {
        "visual.class_embedding": (width,),
        "visual.positional_embedding": (197, width),
        "visual.proj": (width, embed),
        "visual.conv1.weight": (width, 3, 16, 16),
    }
    norms = ["visual.ln_pre", "visual.ln_post"]
    for at in range(layers):
        block = f"visual.transformer.resblocks.{at}"
        norms += [f"{block}.ln_1", f"{block}.ln_2"]
        shapes |= {f"{block}.attn.in_proj_weight": (3 * width, width), f"{block}.attn.in_proj_bias": (3 * width,)}
        for layer, shape in (("attn.out_proj", (width, width)), ("mlp.c_fc", (4 * width, width))):
            shapes |= {f"{block}.{layer}.weight": shape, f"{block}.{layer}.bias": shape[:1]}
        shapes |= {f"{block}.mlp.c_proj.weight": (width, 4 * width), f"{block}.mlp.c_proj.bias": (width,)}
    for name in norms:
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    found = {"logit_scale": torch.tensor(np.log(100.0), dtype=torch.float32)}
    for key, shape in shapes.items():
        z = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)
        if "ln_" in key and key.endswith("weight"):
            value = 1 + 0.1 * z
        elif key.endswith("bias"):
            value = 0.02 * z
        elif key.endswith(("class_embedding", "positional_embedding")):
            value = z * width**-0.5
        else:
            value = z * (shape[0] if key == "visual.proj" else np.prod(shape[1:])) ** -0.5
        if key.endswith("in_proj_weight"):
            value[: 2 * width] *= 1.6
        found[key] = torch.from_numpy(np.asarray(value, np.float32))
    return found


@pytest.mark.parity
def test_the_reference_repeats_the_published_code(tool, golden):
    reference = tool("_clip_es_reference")
    case = np.load(golden / "wsss" / "clipes_tiny_voc.npz")
    texts = [torch.from_numpy(case[name].astype(np.float32)) for name in ("text_fg", "text_bg")]
    peer = reference.ReferenceClipEs(
        weights_by_rule(64, 128),
        heads=2,
        foreground=texts[0],
        background=texts[1],
        box_threshold=float(case["box_threshold"]),
        fp16_position=True,
    )
    found = peer.stages(case["image_rgb_uint8"], case["class_ids"].tolist())
    np.testing.assert_array_equal(reference.preprocess(case["image_rgb_uint8"])[0], case["preprocessed"])
    np.testing.assert_allclose(found.cams, case["cam_low"], atol=5e-6)
    np.testing.assert_array_equal(found.boxes, case["aff_mask"])
    np.testing.assert_allclose(found.refined, case["refined_low"], atol=1e-6)
    np.testing.assert_allclose(found.maps, case["attn_highres"].astype(np.float32), atol=5e-4)
