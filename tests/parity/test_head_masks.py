"""Head masks and their Jaccard index as the authors of "Intriguing Properties" compute them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wsol.cams.head_masks import mass_mask
from wsol.eval.attention_jaccard import attention_jaccard

pytestmark = pytest.mark.parity
ROWS = {"cls": (0, 1), "dist_cls": (0, 2), "dist_shape": (1, 2)}  # which token, how many prefix tokens


@pytest.fixture(scope="module")
def kit(golden):
    path = golden / "other" / "intriguing.npz"
    if not path.is_file():
        pytest.skip("no intriguing.npz")
    with np.load(path) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("mass", [0.9, 0.6])
@pytest.mark.parametrize("case", ROWS)
def test_masks(kit, case, mass):
    row, prefix = ROWS[case]
    attention = torch.from_numpy(kit[f"{case}_attn"])[0, :, row, prefix:].reshape(-1, 8, 8)
    masks = mass_mask(attention, mass).numpy()
    expected = kit[f"{case}_mask_{mass}"]
    np.testing.assert_array_equal(np.kron(masks, np.ones((1, 16, 16), dtype=np.uint8)), expected)
    assert 0 < masks.mean() < 1


def test_jaccard(kit):
    masks, truth = kit["jac_mask"], kit["jac_target"][0]
    assert set(np.unique(truth)) == {0, 3, 12, 255}
    value = attention_jaccard(masks, truth, void="as_reference")
    np.testing.assert_allclose(value, kit["jac_value"], rtol=1e-6)
    assert attention_jaccard(masks, truth) > value, "void pixels count no more"
