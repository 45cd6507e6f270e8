"""Every project's files: as their own code reads and writes them, and there and back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from wsol.errors import WsolError
from wsol.eval.protocols import View
from wsol.eval.scoremap import check_scoremap, to_scoremap
from wsol.schema import PseudoMask, Sample, ScoreMaps
from wsol.store.exchange import PROJECTS
from wsol.store.exchange.clip_es import ClipEs
from wsol.store.exchange.irn import Irn
from wsol.store.exchange.psa import Psa
from wsol.store.exchange.wsolevaluation import WsolEvaluation, write_metadata
from wsol.store.instances import Instance

SIZE = (37, 51)
SAMPLE = Sample("2007_000032", Path("/voc/JPEGImages/2007_000032.jpg"), labels=(4,), size=SIZE)


def maps(values, class_ids=(4, 19)):
    return ScoreMaps(SAMPLE.id, values, np.array(class_ids[: len(values)]), SIZE)


def smooth(count=2, size=SIZE, seed=0):
    rng = np.random.default_rng(seed)
    return rng.random((count, *size), dtype=np.float32).astype(np.float16)


label_masks = arrays(np.uint8, SIZE, elements=st.sampled_from([0, 1, 5, 20, 255]))
values_of_maps = np.array([0.0, 0.1, 0.5, 0.999, 1.0], np.float16).tolist()  # what a half holds, exactly
full_maps = st.integers(0, 3).flatmap(
    lambda count: arrays(np.float16, (count, *SIZE), elements=st.sampled_from(values_of_maps))
)


def test_projects_are_listed():
    assert PROJECTS.names() == ("clip_es", "irn", "psa", "wsolevaluation")


# --- files as the projects' own code makes them -----------------------------------------------------------------------


def test_irn_cam_of_its_own_code(tmp_path):
    """step/make_cam.py: `keys` and `cam` are tensors, `high_res` an array."""
    cam, high = torch.rand(2, 10, 13), np.random.default_rng(1).random((2, *SIZE)).astype(np.float32)
    keys = torch.nonzero(torch.eye(20)[4] + torch.eye(20)[19])[:, 0]
    np.save(tmp_path / "2007_000032.npy", {"keys": keys, "cam": cam, "high_res": high}, allow_pickle=True)
    for values, expected in (("high_res", high), ("cam", cam.numpy())):
        project = Irn(values=values)
        found = project.read(project.file(tmp_path, SAMPLE), SAMPLE)
        np.testing.assert_array_equal(found.values, expected)
        assert found.class_ids.tolist() == [4, 19]
        assert found.image_size == SIZE


def test_irn_reads_our_cam(tmp_path):
    """What step/make_sem_seg_labels.py and step/cam_to_ir_label.py do with a file."""
    written, project = maps(smooth(size=(9, 13))), Irn()
    project.write(project.file(tmp_path, SAMPLE), written, SAMPLE)
    found = np.load(tmp_path / "2007_000032.npy", allow_pickle=True).item()
    assert isinstance(found["cam"], torch.Tensor)
    assert found["cam"].shape == (2, (SIZE[0] - 1) // 4 + 1, (SIZE[1] - 1) // 4 + 1)
    np.testing.assert_array_equal(np.pad(found["keys"] + 1, (1, 0), mode="constant"), [0, 5, 20])
    np.testing.assert_array_equal(np.repeat(found["keys"], 2), [4, 4, 19, 19])
    np.testing.assert_array_equal(found["high_res"], written.at_image_size())
    assert found["high_res"].dtype == np.float32
    np.testing.assert_allclose(found["cam"].numpy().mean(), written.values.mean(dtype=np.float32), atol=0.02)


def test_irn_instances_of_its_own_code(tmp_path):
    """`detect_instance` of step/make_ins_seg_labels.py; an empty object is left out."""
    masks = np.zeros((3, *SIZE))
    masks[0, 3:9, 4:20], masks[1, 20:, 30:] = 1, 1
    detected = {"score": np.array([0.75, 0.5, 0]), "mask": masks, "class": np.repeat(torch.tensor([4, 7, 7]), 1)}
    np.save(tmp_path / "2007_000032.npy", detected, allow_pickle=True)
    found = Irn("ins_seg").read(tmp_path / "2007_000032.npy", SAMPLE)
    assert [(item.class_id, item.score) for item in found] == [(4, 0.75), (7, 0.5)]
    np.testing.assert_array_equal([item.mask for item in found], masks[:2] > 0)
    Irn("ins_seg").write(tmp_path / "y.npy", found, SAMPLE)
    again = np.load(tmp_path / "y.npy", allow_pickle=True).item()
    np.testing.assert_array_equal(again["mask"], masks[:2])
    assert again["class"].tolist() == [4, 7]
    assert again["score"].tolist() == [0.75, 0.5]


def test_psa_files_of_its_own_code(tmp_path):
    """infer_cls.py: out_cam counts classes from 0, the CRF's scores from 1 after the background."""
    cam = np.random.default_rng(2).random((2, *SIZE)).astype(np.float32)
    np.save(tmp_path / "a.npy", {0: cam[0], 19: cam[1]}, allow_pickle=True)
    found = Psa().read(tmp_path / "a.npy", SAMPLE)
    assert found.class_ids.tolist() == [0, 19]
    np.testing.assert_array_equal(found.values, cam)
    scores = np.stack([1 - cam[0], cam[0] * 0.25, cam[0] * 0.75])
    np.save(tmp_path / "b.npy", {0: scores[0], 1: scores[1], 20: scores[2]}, allow_pickle=True)
    found = Psa("crf").read(tmp_path / "b.npy", SAMPLE)
    assert found.class_ids.tolist() == [0, 19]
    Psa("crf").write(tmp_path / "c.npy", found, SAMPLE)
    again = np.load(tmp_path / "c.npy", allow_pickle=True).item()
    assert list(again) == [0, 1, 20]
    np.testing.assert_allclose(np.stack(list(again.values())), scores, atol=1e-6)
    Psa().write(tmp_path / "d.npy", maps(cam), SAMPLE)
    with pytest.raises(WsolError, match="it has no background"):
        Psa("crf").read(tmp_path / "d.npy", SAMPLE)


def test_clip_es_cams_of_its_own_code(tmp_path):
    """generate_cams_voc12.py; `eval_cam.py` pads the keys."""
    values = smooth()
    np.save(tmp_path / "x.npy", {"keys": torch.tensor([4, 19]).numpy(), "attn_highres": values}, allow_pickle=True)
    found = ClipEs().read(tmp_path / "x.npy", SAMPLE)
    assert found.values.dtype == np.float16
    np.testing.assert_array_equal(found.values, values)
    ClipEs().write(tmp_path / "y.npy", found, SAMPLE)
    again = np.load(tmp_path / "y.npy", allow_pickle=True).item()
    np.testing.assert_array_equal(again["attn_highres"], values)
    np.testing.assert_array_equal(np.pad(again["keys"] + 1, (1, 0), mode="constant"), [0, 5, 20])
    with pytest.raises(WsolError, match="no file of CLIP-ES with highres"):
        ClipEs(values="highres").read(tmp_path / "x.npy", SAMPLE)


def test_score_maps_of_the_benchmark_are_those_that_are_evaluated(tmp_path):
    written, project = maps(smooth(size=(9, 13))), WsolEvaluation()
    sample = Sample("val/x.JPEG", Path("/i/val/x.JPEG"), labels=(19,), size=SIZE)
    path = project.file(tmp_path, sample)
    assert path == tmp_path / "val/x.JPEG.npy"
    project.write(path, written, sample)
    plain = np.load(path, allow_pickle=False)
    check_scoremap(plain, where="x")
    np.testing.assert_array_equal(plain, to_scoremap(written.values[1], 224, view=View()))
    found = project.read(path, sample)
    assert found.class_ids.tolist() == [19]
    assert found.image_size == SIZE
    np.testing.assert_array_equal(found.values[0], plain.astype(np.float32))
    path.rename(tmp_path / "val/x.npy")
    assert project.file(tmp_path, sample) == tmp_path / "val/x.npy"


# --- there and back -----------------------------------------------------------------------------------------------


@given(values=full_maps)
@pytest.mark.parametrize("project", [Irn(), Psa(), ClipEs(), ClipEs(values="highres")], ids=repr)
def test_maps_come_back(tmp_path_factory, project, values):
    folder = tmp_path_factory.mktemp("x")
    path = project.file(folder, SAMPLE)
    project.write(path, maps(values, (4, 0, 19)), SAMPLE)
    found = project.read(path, SAMPLE)
    np.testing.assert_array_equal(found.values, values)
    assert found.class_ids.tolist() == [4, 0, 19][: len(values)]


@given(labels=label_masks)
@pytest.mark.parametrize("project", [Irn("ir_label"), Irn("sem_seg"), Psa("rw"), ClipEs("pseudo_masks")], ids=repr)
def test_masks_come_back_and_stay_numbers_for_other_readers(tmp_path_factory, project, labels):
    path = project.file(tmp_path_factory.mktemp("x"), SAMPLE)
    assert path.name == "2007_000032.png"
    project.write(path, PseudoMask(SAMPLE.id, labels), SAMPLE)
    np.testing.assert_array_equal(project.read(path, SAMPLE).labels, labels)
    np.testing.assert_array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), labels)
    assert Image.open(path).mode == "L"


@given(masks=arrays(np.bool_, st.tuples(st.integers(0, 3), st.just(SIZE[0]), st.just(SIZE[1])), fill=st.just(True)))
def test_objects_come_back(tmp_path_factory, masks):
    path = tmp_path_factory.mktemp("x") / "x.npy"
    items = [Instance(at, 0.5 + at / 8, mask) for at, mask in enumerate(masks) if mask.any()]
    Irn("ins_seg").write(path, items, SAMPLE)
    found = Irn("ins_seg").read(path, SAMPLE)
    assert [(item.class_id, item.score) for item in found] == [(item.class_id, item.score) for item in items]
    for item, expected in zip(found, items, strict=True):
        np.testing.assert_array_equal(item.mask, expected.mask)


# --- refusals -----------------------------------------------------------------------------------------------------


def test_files_of_another_kind_or_image_are_refused(tmp_path):
    np.save(tmp_path / "psa.npy", {4: smooth(1)[0]}, allow_pickle=True)
    np.save(tmp_path / "array.npy", smooth())
    np.save(tmp_path / "large.npy", {"keys": np.array([4]), "high_res": smooth(1), "cam": smooth(1)}, allow_pickle=True)
    np.save(tmp_path / "over.npy", {4: np.full(SIZE, 2.0)}, allow_pickle=True)
    Image.fromarray(np.zeros((5, 6), np.uint8)).save(tmp_path / "x.png")
    wide = Sample("a", Path("a.jpg"), labels=(1, 2), size=(51, 37))
    for project, name, sample, message in (
        (Irn(), "psa.npy", SAMPLE, "no cam file of irn"),
        (Irn("ins_seg"), "psa.npy", SAMPLE, "no ins_seg file of irn"),
        (ClipEs(), "array.npy", SAMPLE, "expected a dictionary of arrays, got ndarray"),
        (Irn(), "large.npy", wide, "the image is"),
        (Psa(), "large.npy", SAMPLE, "no cam file of PSA"),
        (Psa(), "over.npy", SAMPLE, "values in"),
        (WsolEvaluation(), "psa.npy", SAMPLE, "expected one score map"),
        (WsolEvaluation(), "array.npy", SAMPLE, "expected one score map"),
        (Irn("sem_seg"), "x.png", SAMPLE, "the file is of an image"),
    ):
        with pytest.raises(WsolError, match=message):
            project.read(tmp_path / name, sample)
    for sample, message in ((wide, "one class an image, this one has 2"), (SAMPLE, "no map of the true class 4")):
        with pytest.raises(WsolError, match=message):
            WsolEvaluation().write(tmp_path / "y.npy", maps(smooth(1), (7,)), sample)


def test_metadata_comes_back(tmp_path):
    from wsol.data.benchmark import read_samples

    root = tmp_path / "root"
    boxes = np.array([[0, 0, 51, 37], [3, 4, 10, 12]], np.float32)
    ignore = {"mask": root / "m/a.png", "mask_ignore": root / "m/i.png", "extra_masks": (root / "m/b.png",)}
    samples = [
        Sample("a/x.jpg", root / "a/x.jpg", labels=(3,), size=SIZE, boxes=boxes, box_labels=(3, 3)),
        Sample("a/y.jpg", root / "a/y.jpg", labels=(0,), size=(5, 9), **ignore),
        Sample("z.jpg", root / "z.jpg", labels=(1,), size=(6, 8)),
    ]
    write_metadata(tmp_path / "test", samples, root=root)
    lines = (tmp_path / "test/localization.txt").read_text().splitlines()
    assert lines[:2] == ["a/x.jpg,0,0,50,36", "a/x.jpg,3,4,9,11"]
    assert (tmp_path / "test/image_sizes.txt").read_text().startswith("a/x.jpg,51,37\n")
    found = read_samples(tmp_path / "test", images=root, masks=root)
    for sample, expected in zip(found, samples, strict=True):
        for name in ("id", "image", "labels", "size", "box_labels", "mask", "mask_ignore", "extra_masks"):
            assert getattr(sample, name) == getattr(expected, name), name
    np.testing.assert_array_equal(found[0].boxes, boxes)
    with pytest.raises(WsolError, match="outside of the data set"):
        write_metadata(tmp_path / "no", samples, root=tmp_path / "elsewhere")
    between = replace(samples[0], boxes=boxes + np.float32(0.5))
    with pytest.raises(WsolError, match=r"a/x.jpg.*whole pixels only"):
        write_metadata(tmp_path / "no", [between], root=root)
    for corners in ([-2, 0, 3, 3], [3, 3, 3, 3]):
        refused = replace(samples[0], boxes=np.array([corners], np.float32))
        with pytest.raises(WsolError, match=r"a/x.jpg.*the benchmark refuses boxes"):
            write_metadata(tmp_path / "no", [refused], root=root)
    for name in ("a,b.jpg", " a.jpg", "a.jpg "):
        with pytest.raises(WsolError, match="cannot hold this name"):
            write_metadata(tmp_path / "no", [replace(samples[0], id=name)], root=root)


def test_metadata_names_images_as_score_maps_do(tmp_path):
    below = Sample("a/x.jpg", tmp_path / "images/a/x.jpg", labels=(3,), size=SIZE)
    samples = [below, replace(below, id="y", image=tmp_path / "images/y.jpg")]
    write_metadata(tmp_path, samples, root=tmp_path)
    names = (tmp_path / "image_ids.txt").read_text().splitlines()
    assert [WsolEvaluation().file(tmp_path, sample) for sample in samples] == [tmp_path / f"{n}.npy" for n in names]
