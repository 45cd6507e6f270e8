"""What the pages assume: photos, data sets as their authors lay them out, weights, and files of other projects."""

from __future__ import annotations

import json

import cv2
import numpy as np

H, W = 50, 70
BOX = (20, 15, 55, 40)  # x0, y0, x1, y1 of the one object, half-open
CLASSES = ("cat", "dog")
_OBJECT = (
    "<object><name>{}</name><difficult>0</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>"
    "<ymax>{}</ymax></bndbox></object>"
)


def _put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, np.ndarray):
        assert cv2.imwrite(str(path), content)
    else:
        path.write_text(content, encoding="utf-8")


def _photo(seed, label):
    """Noise with a coloured rectangle; its colour is the class."""
    image = np.random.default_rng(seed).integers(0, 90, (H, W, 3), dtype=np.uint8)
    image[BOX[1] : BOX[3], BOX[0] : BOX[2], label] = 250
    return image


def _mask(value):
    mask = np.zeros((H, W), np.uint8)
    mask[BOX[1] : BOX[3], BOX[0] : BOX[2]] = value
    return mask


def _xml(corners, *names):
    size = f"<size><width>{W}</width><height>{H}</height><depth>3</depth></size>"
    return f"<annotation>{size}{''.join(_OBJECT.format(name, *corners) for name in names)}</annotation>"


def photos(folder):
    """One folder a class and, for the first photos of each, a mask."""
    for label, name in enumerate(CLASSES):
        for at in range(4):
            _put(folder / f"photos/{name}/{at}.jpg", _photo(at, label))
            _put(folder / f"new-photos/{name}{at}.jpg", _photo(10 + at, label))
            if at < 3:
                _put(folder / f"photos/masks/{name}/{at}.png", _mask(label + 1))
    _put(folder / "cat.jpg", _photo(0, 0))


def voc(folder):
    """VOCdevkit/VOC2012 with the augmented list."""
    home = folder / "VOCdevkit/VOC2012"
    lists = {"train": range(6), "val": range(6, 10), "trainval": range(10), "train_aug": range(6)}
    for at in range(10):
        name = f"2007_{at:06d}"
        label, word = ((7, "cat"), (11, "dog"))[at % 2]
        _put(home / f"JPEGImages/{name}.jpg", _photo(at, at % 2))
        words = ("cat", "dog") if at == 2 else (word,)  # an image of several classes
        _put(home / f"Annotations/{name}.xml", _xml((BOX[0] + 1, BOX[1] + 1, BOX[2], BOX[3]), *words))
        for masks in ("SegmentationClass", "SegmentationClassAug"):
            _put(home / f"{masks}/{name}.png", _mask(label + 1))
    for split, numbers in lists.items():
        _put(home / f"ImageSets/Segmentation/{split}.txt", "".join(f"2007_{at:06d}\n" for at in numbers))


def coco(folder):
    """Instances of 2014; two of the categories."""
    x0, y0, x1, y1 = BOX
    shape = {"segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]], "bbox": [x0, y0, x1 - x0, y1 - y0]}
    for split in ("train2014", "val2014"):
        files = {at: f"COCO_{split}_{at:012d}.jpg" for at in range(1, 7)}
        for at, name in files.items():
            _put(folder / f"coco/{split}/{name}", _photo(at, at % 2))
        raw = {
            "categories": [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}],
            "images": [{"id": at, "file_name": name, "height": H, "width": W} for at, name in files.items()],
            "annotations": [
                {"id": at, "image_id": at, "category_id": 17 + at % 2, "area": 875, "iscrowd": 0, **shape}
                for at in files
            ],
        }
        _put(folder / f"coco/annotations/instances_{split}.json", json.dumps(raw))


def cub(folder):
    """CUB_200_2011 with two species, and the segmentations of the second archive."""
    home, rows = folder / "CUB_200_2011", dict.fromkeys(("images", "image_class_labels", "bounding_boxes"), "")
    splits = ""
    for at in range(1, 13):
        label = at % 2
        name = f"00{label + 1}.{('Laysan', 'Sooty')[label]}_Albatross/{at:04d}"
        _put(home / f"images/{name}.jpg", _photo(at, label))
        _put(home / f"segmentations/{name}.png", _mask(255))
        rows["images"] += f"{at} {name}.jpg\n"
        rows["image_class_labels"] += f"{at} {label + 1}\n"
        rows["bounding_boxes"] += f"{at} {BOX[0]}.0 {BOX[1]}.0 {BOX[2] - BOX[0]}.0 {BOX[3] - BOX[1]}.0\n"
        splits += f"{at} {int(at <= 6)}\n"
    for name, text in {**rows, "train_test_split": splits}.items():
        _put(home / f"{name}.txt", text)
    _put(home / "classes.txt", "1 001.Laysan_Albatross\n2 002.Sooty_Albatross\n")


def ilsvrc(folder):
    """Validation photos with XML boxes; the class is a WordNet id."""
    for at in range(1, 5):
        word = ("n02123045", "n02099601")[at % 2]  # tabby, golden retriever
        _put(folder / f"ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_{at:08d}.JPEG", _photo(at, at % 2))
        _put(folder / f"ILSVRC/Annotations/CLS-LOC/val/ILSVRC2012_val_{at:08d}.xml", _xml(BOX, word))


def benchmark(folder):
    """Text files of the WSOL benchmark, and score maps that its code wrote."""
    scores = np.zeros((224, 224))
    scores[70:180, 70:170] = 1.0
    sets = {"CUB": ("their-log/scoremaps", "001.Laysan_Albatross/{}.jpg"), "ILSVRC": ("their-maps", "val/{}.JPEG")}
    for name, (maps, pattern) in sets.items():
        ids = [pattern.format(f"{at:04d}") for at in range(3)]
        rows = {"image_ids": "", "class_labels": ",0", "image_sizes": f",{W},{H}", "localization": ",20,15,54,39"}
        for file, rest in rows.items():
            _put(folder / f"metadata/{name}/test/{file}.txt", "\n".join(f"{key}{rest}" for key in ids))
        for key in ids:
            path = folder / maps / f"{key.rpartition('.')[0]}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, scores)


def irn(folder):
    """result/cam of irn for the images of train_aug: what step/make_cam.py saves."""
    import torch

    (folder / "result/cam").mkdir(parents=True)
    for at in range(6):
        high = (_mask(1) * 0.9).astype(np.float32)[None]
        found = {"keys": torch.tensor([(7, 11)[at % 2]]), "cam": torch.from_numpy(high[:, ::4, ::4]), "high_res": high}
        np.save(folder / f"result/cam/2007_{at:06d}.npy", found, allow_pickle=True)


def weights(folder):
    """Untrained weights of 1000 classes, and a tiny CLIP in OpenAI's naming under the name of their file."""
    import timm
    import torch
    from open_clip.model import CLIP

    vision, text = (
        {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16},
        {"width": 64, "heads": 1, "layers": 1},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name in ("test_resnet", "test_vit"):
            torch.save(timm.create_model(name, num_classes=1000).state_dict(), folder / f"{name}.pth")
        clip = CLIP(24, vision, text, quick_gelu=True).state_dict()
    torch.save({key: item for key, item in clip.items() if key != "attn_mask"}, folder / "ViT-B-16.pt")


def build(folder, root):
    """Put all of it into a folder, beside the recipes of the repository.

    Args:
        folder: An empty folder.
        root: The repository.
    """
    photos(folder)
    for data_set in (voc, coco, cub, ilsvrc):
        data_set(folder / "data")
    benchmark(folder)
    irn(folder)
    weights(folder)
    (folder / "VOCdevkit").symlink_to("data/VOCdevkit")
    (folder / "configs").symlink_to(root / "configs")
