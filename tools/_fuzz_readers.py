"""The readers of the package and valid files for each, generated on the spot."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from _fuzz_datasets import (
    PHOTO,
    read_coco,
    read_dataset,
    read_folder,
    read_pictures_of,
    read_voc,
    write_coco,
    write_cub,
    write_folder,
    write_ilsvrc,
    write_openimages,
    write_parquet,
    write_tar,
    write_tiny,
    write_voc,
)
from PIL import Image
from safetensors.torch import save

from wsol.config import coerce, load_yaml
from wsol.data.annotation import read_annotation
from wsol.data.images import image_size, read_image
from wsol.data.prompts import load_prompts
from wsol.engine.checkpoint import read_checkpoint
from wsol.engine.fit import read_history
from wsol.engine.options import CamConfig
from wsol.eval.curves import read_result
from wsol.eval.sources import NpyMaps, run_facts
from wsol.models.checkpoints import ModelCard, read_card, read_weights
from wsol.ops.rle import decode, encode
from wsol.schema import DatasetSpec, EvalResult, ScoreMaps
from wsol.store.exchange._npy_read import read_npy
from wsol.store.manifest import Manifest, finished, read_rows
from wsol.store.maps import read_maps, write_maps
from wsol.store.masks import encode_mask, read_labels
from wsol.store.runs import open_run, read_info

_RNG = np.random.default_rng(0)


@dataclass
class Reader:
    """One reader and the files that it reads.

    Attributes:
        name: For the table.
        root: Folder of its files.
        read: (folder, damaged file) -> whatever; reads to the last value.
        files: Those to damage: relative path to valid bytes.
    """

    name: str
    root: Path
    read: Callable[[Path, Path], object]
    files: dict[str, bytes]

    @property
    def pool(self) -> list[bytes]:
        """What to splice in."""
        return list(self.files.values())

    def restore(self) -> None:
        """Make all files valid again."""
        for name, content in self.files.items():
            (self.root / name).write_bytes(content)


def make_readers(place: Path) -> list[Reader]:
    """Write valid files below a folder, and return a reader for each kind."""
    readers = []
    for name, (read, write, damaged) in _KINDS.items():
        root = place / name
        root.mkdir(parents=True)
        write(root)
        paths = [path for path in sorted(root.rglob("*")) if path.is_file() and not path.name.startswith(".")]
        files = {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}
        files = {path: content for path, content in files.items() if any(Path(path).match(item) for item in damaged)}
        reader = Reader(name, root, read, files)
        for path in files:
            reader.read(root, root / path)  # valid before it is damaged
        readers.append(reader)
    return readers


def _whole(read: Callable[[Path], object]) -> Callable[[Path, Path], object]:
    """Read the whole folder, whichever file was damaged."""
    return lambda root, _: read(root)


def _file(read: Callable[[Path], object]) -> Callable[[Path, Path], object]:
    """Read the damaged file alone."""
    return lambda _, path: read(path)


def _picture(path: Path) -> None:
    image_size(path, upright=True)
    read_image(path, upright=True)


def _write_pictures(root: Path) -> None:
    picture = Image.fromarray(PHOTO)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(root / "a.jpg", exif=exif, quality=80)
    picture.save(root / "p.jpg", progressive=True)
    for suffix in ("png", "bmp", "gif", "webp", "tif", "ppm"):
        picture.save(root / f"a.{suffix}")
    picture.save(root / "z.tif", compression="tiff_lzw")
    Image.fromarray(_RNG.integers(0, 65535, (9, 7)).astype(np.uint16)).save(root / "deep.png")
    picture.convert("P").save(root / "palette.png", transparency=3)


def _write_masks(root: Path) -> None:
    labels = _RNG.integers(0, 5, (21, 33)).astype(np.uint8)
    (root / "a.png").write_bytes(encode_mask(labels))
    Image.fromarray(labels).save(root / "l.png")


def _maps(root: Path) -> None:
    read_maps(root, "x/a").at_image_size()
    read_rows(root)
    finished(root, lambda image_id: read_maps(root, image_id))


def _write_maps(root: Path) -> None:
    values = _RNG.random((2, 5, 7)).astype(np.float16)
    maps = ScoreMaps("x/a", values, np.array([1, 4]), (21, 33), np.zeros(5, np.float32))
    write_maps(root, maps)
    with Manifest(root) as manifest:
        manifest.done("x/a", classes=[1, 4], bytes=900)
        manifest.failed("x/b", "no such image")


def _write_npy(root: Path) -> None:
    np.save(root / "a.npy", _RNG.random((5, 7)))


def _write_dictionary(root: Path) -> None:
    values = {0: _RNG.random((5, 7)).astype(np.float32), "keys": np.arange(3), "cam": torch.rand(2, 3)}
    np.save(root / "a.npy", values, allow_pickle=True)  # type: ignore[arg-type]


def _recipe(root: Path) -> None:
    coerce(CamConfig, load_yaml(root / "a.yaml"))


def _write_recipe(root: Path) -> None:
    text = "data: voc\nscales: [0.5, 1.0, 1.5]\nflip: true\nimg-size: 224\nclasses: labels\nlimit: 10\n"
    (root / "a.yaml").write_text(f"{text}options: {{layer: blocks.11}}\n")


def _prompts(root: Path) -> None:
    load_prompts(root / "a.yaml", DatasetSpec("mine", ("cat", "dog"), root, "train"))


def _write_prompts(root: Path) -> None:
    (root / "a.yaml").write_text(
        "templates: ['a photo of {}.']\nclasses: {cat: [cat, kitten], dog: a dog}\nbackground: [ground, 5]\n"
    )


def _run(root: Path) -> None:
    read_info(root)
    run_facts(root)
    read_result(root)
    read_history(root)


def _write_run(root: Path) -> None:
    spec = DatasetSpec("voc", ("cat", "dog"), root, "train")
    with open_run(root, verb="cam", config=CamConfig(data="voc", out=root, model="resnet50"), dataset=spec) as run:
        run.facts["done"] = 3
    result = EvalResult("segmentation", {"miou": 51.5}, 3, "val", per_class={"cat": {"iou": 4.0}})
    (root / "metrics.json").write_text(result.to_json())
    (root / "history.jsonl").write_text('{"epoch": 1, "loss": 0.5, "lr": null}\n{"epoch": 2, "loss": 0.4}\n')


def _write_weights(root: Path) -> None:
    tensors = {
        "conv.weight": torch.arange(12.0).reshape(3, 4),
        "bn.count": torch.tensor(4),
        "half": torch.zeros(5).half(),
    }
    (root / "model.safetensors").write_bytes(save(tensors))
    torch.save({"state_dict": tensors}, root / "a.pt")
    torch.save(tensors, root / "old.pth", _use_new_zipfile_serialization=False)
    card = ModelCard(
        name="resnet18",
        num_classes=2,
        img_size=64,
        mean=(0.5,) * 3,
        std=(0.2,) * 3,
        interpolation="bilinear",
        classes=("cat", "dog"),
    )
    from dataclasses import asdict

    (root / "model.json").write_text(json.dumps(asdict(card)))
    state = {"module": tensors, "history": [{"epoch": 1}], "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    (root / "checkpoint.pt").write_bytes(buffer.getvalue())


def _weights(root: Path, path: Path) -> None:
    if path.name == "checkpoint.pt":
        read_checkpoint(root)
    elif path.suffix == ".json":
        read_card(root)
    else:
        read_weights(path)


def _rle(root: Path) -> None:
    from wsol.errors import StoreError

    try:
        decode(json.loads((root / "a.json").read_bytes()))
    except (ValueError, TypeError, LookupError, RecursionError) as error:  # what its callers catch
        raise StoreError(str(error)) from error


def _write_rle(root: Path) -> None:
    mask = np.zeros((21, 33), bool)
    mask[3:9, 4:20] = True
    (root / "a.json").write_text(json.dumps(encode(mask)))


def _shards(root: Path) -> None:
    read_maps(root, "x/a")


def _write_shards(root: Path) -> None:
    _write_maps(root)
    with Manifest(root) as manifest:
        manifest.pack(["x/a"], {"x/a"})


_Kind = tuple[Callable[[Path, Path], object], Callable[[Path], None], tuple[str, ...]]
_KINDS: dict[str, _Kind] = {
    "images": (_file(_picture), _write_pictures, ("*.*",)),
    "masks": (_file(read_labels), _write_masks, ("*.png",)),
    "maps, manifest": (_whole(_maps), _write_maps, ("*.npz", "*.jsonl")),
    "npy": (_whole(lambda root: NpyMaps(root).read("a")), _write_npy, ("*.npy",)),
    "npy dictionary": (_file(read_npy), _write_dictionary, ("*.npy",)),
    "xml": (_file(read_annotation), write_voc, ("*.xml",)),
    "voc": (_whole(read_voc), write_voc, ("*.txt", "*.xml", "*Class/*.png")),
    "coco": (_whole(read_coco), write_coco, ("*.json",)),
    "cub": (_whole(read_dataset("cub")), write_cub, ("*.txt",)),
    "ilsvrc": (_whole(read_dataset("ilsvrc")), write_ilsvrc, ("*.txt",)),
    "openimages": (_whole(read_dataset("openimages")), write_openimages, ("*.txt", "*.png")),
    "tiny_imagenet": (_whole(read_dataset("tiny_imagenet")), write_tiny, ("*.txt",)),
    "folder": (_whole(read_folder), write_folder, ("*.csv", "*.json", "*.txt")),
    "recipe": (_whole(_recipe), _write_recipe, ("*.yaml",)),
    "prompts": (_whole(_prompts), _write_prompts, ("*.yaml",)),
    "run": (_whole(_run), _write_run, ("*.json", "*.yaml", "*.jsonl")),
    "weights": (_weights, _write_weights, ("*.safetensors", "*.pt", "*.pth", "*.json")),
    "rle": (_whole(_rle), _write_rle, ("*.json",)),
    "shards": (_whole(_shards), _write_shards, ("*.tar",)),
    "tar": (_whole(read_pictures_of("tar")), write_tar, ("*.tar",)),
    "parquet": (_whole(read_pictures_of("parquet")), write_parquet, ("*.parquet",)),
}
