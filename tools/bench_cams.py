"""Time the map methods against their peers, taking turns in one run.

    python tools/bench_cams.py [--quick] [--json FILE] [--part family|getam|clip_es]

family: pytorch-grad-cam (`grad-cam`) and torchcam, as their users call them: once a class. Both sides end with maps in
[0, 1], at the size of the image with pytorch-grad-cam and on the model's grid with torchcam. torchcam may also share
one forward pass between the classes of an image (`retain_graph`), which its documentation does not show: such cases
say "one forward" and have no target. getam: one backward pass an image and class through the whole network, written
in `_cams_transformers.py`. clip_es: the paper's pipeline, written in `_clip_es_reference.py`; from the photo to maps at
its size. All weights are random.
"""

from __future__ import annotations

import os

import cv2
import torch
from _bench import main
from _cams_family import cases as family
from _cams_transformers import cases as transformers


def setup(threads: int) -> None:
    """Give every library so many threads."""
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)


if __name__ == "__main__":
    raise SystemExit(main(__doc__ or "", [*family(), *transformers()], threads=os.cpu_count() or 1, setup=setup))
