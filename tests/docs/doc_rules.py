"""How a test runs a reader's command: the words that are replaced, the options that make it small, what is left out."""

from __future__ import annotations

import re

from doc_pages import split_line

# A reader's words to those of a test.
SUBSTITUTES = {
    # No model hub: untrained weights of the same 1000 classes, a tiny CLIP, an encoder without weights.
    r"--model resnet50 --pretrained": "--model test_resnet --checkpoint test_resnet.pth",
    r"--model vit_small_patch16_224 --pretrained": "--model test_vit --checkpoint test_vit.pth",
    r"--model clip:ViT-B-16-quickgelu:openai --pretrained": "--model clip --checkpoint ViT-B-16.pt",
    r"--model clip:ViT-B-16-quickgelu (?=.*ViT-B-16\.pt)": "--model clip ",
    r"--encoder resnet50 --encoder-weights imagenet": "--encoder resnet18",
    r"(-c configs/recipes/voc_deeplabv2_train.yaml)": r"\1 --encoder resnet18 --encoder-weights None",
    # No GPU, no cluster (Ray starts one of this machine), no second machine.
    r"--device cuda:\d": "--device cpu",
    r"RAY_ADDRESS=\S+ ": "",
    r"--nnodes 2 --nproc-per-node 4": "--nnodes 1 --nproc-per-node 2",
    r"--nproc-per-node 4": "--standalone --nproc-per-node 2",
    r"--rdzv-endpoint \S+": "--rdzv-endpoint 127.0.0.1:0",
    r"/disk/of/the/job/": "",
}
# Options that are added to a command, by its first words, so that it takes seconds: of a flag that is given twice the
# last one counts. Processes that read would each import torch.
_LOOP = "--epochs 1 --batch-size 2 --img-size 64 --workers 0"
SMALL = {
    "train": _LOOP,
    "bench mix": f"{_LOOP} --seeds 1 --timed-steps 1",
    "bench": "--workers 0",
    "refine train-affinity": _LOOP,
    "refine": "--workers 0",
    "segment train": _LOOP,
    "segment predict": "--workers 0",
    "eval": "--workers 0",
    "demo": "--workers 0 --train-images 12 --val-images 7 --classifier-epochs 1 --segmenter-epochs 1",
}
# Commands and Python that are not run.
NOT_RUN = {r"absgrad": "the method of the worked example, which test_docs.py puts in its place and calls"}


def is_left_out(text):
    """Return whether a command or a Python block is not run."""
    return any(re.search(pattern, text) for pattern in NOT_RUN)


def small_key(line):
    """Return which of `SMALL` a command takes, None for none."""
    _, words = split_line(line)
    if words[0] == "demo" and len(words) > 1:  # --image and --serve are other commands
        return None
    return next((key for key in (" ".join(words[:2]), words[0]) if key in SMALL), None)


def as_run(line):
    """Return a command with a test's words, and with the options that make it small."""
    for pattern, instead in SUBSTITUTES.items():
        line = re.sub(pattern, instead, line)
    key = small_key(line)
    return line if key is None else f"{line} {SMALL[key]}"
