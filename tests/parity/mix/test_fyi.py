"""FYI against what the authors' code produced."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from wsol import mix

pytestmark = pytest.mark.parity


def test_fyi(golden):
    arrays = dict(np.load(golden / "mix" / "fyi_batchaug.npz", allow_pickle=False))
    y = F.one_hot(torch.from_numpy(arrays["lab"]), 10).float()
    result = mix.create("fyi").mix(torch.from_numpy(arrays["img"]), y, {})
    assert np.array_equal(result.images.numpy(), arrays["out"])
    assert np.array_equal(result.targets.argmax(1).numpy(), arrays["out_lab"])
    assert torch.equal(result.targets.sum(1), torch.ones(len(result.targets)))
