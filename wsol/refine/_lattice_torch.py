"""The filters and the mean field of `densecrf` in torch, for scores that live on a GPU.

The same lattice as `wsol.ops.permutohedral`, in the same order of float32 operations, so that both put a point into
the same simplex. Splat and slice are sparse products over all channels at once, the blur is two gathers an axis.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from wsol.ops.permutohedral import axis_scales, key_strides
from wsol.refine._crf_presets import PACK, Setting


@torch.no_grad()
def dense_crf(image: Tensor, unary: Tensor, setting: Setting) -> Tensor:
    """Infer the marginals of the dense CRF, in float32 also under autocast.

    Args:
        image: uint8 (H, W, 3).
        unary: float32 (C, H, W) energies on the same device, C >= 2, finite.
        setting: Widths and weights of the kernels, number of updates.

    Returns:
        float32 (C, H, W), summing to one over C.
    """
    height, width = image.shape[:2]
    colours = image.reshape(-1, 3).float() / setting.srgb
    positions = _grid(height, width, setting.sxy_bilateral, image.device)
    padding = (0, 0, 0, -len(positions) % PACK)
    compat = (setting.compat_gaussian, setting.compat_bilateral)
    energies = unary.float().reshape(len(unary), -1)
    with torch.autocast(image.device.type, enabled=False):  # it would round the sparse products to half precision
        kernels = [
            TorchLattice(_grid(height, width, setting.sxy_gaussian, image.device)),
            TorchLattice(F.pad(torch.cat([positions, colours], dim=1), padding), count=len(positions)),
        ]
        return mean_field(energies, kernels, compat, iterations=setting.iterations).reshape(unary.shape)


class TorchLattice:
    """A Gaussian filter of N points, symmetrically normalised.

    Args:
        features: float32 (N, d) or more rows, in standard deviations.
        count: N; further points only add theirs to the lattice. By default there are none.

    Raises:
        ConfigError: When the points spread over too many standard deviations to number the lattice points.
    """

    def __init__(self, features: Tensor, *, count: int | None = None) -> None:
        weights, keys, strides = _locate(features)
        points, corners = torch.unique(keys, return_inverse=True)
        weights, corners = weights[:count], corners[:count]
        self._size = len(points)
        self._neighbours = _link(points, strides)
        self._set_weights(corners, weights)
        sums = self.filter(features.new_ones((len(weights), 1)))
        self._set_weights(corners, weights / torch.sqrt(sums + 1e-20))

    def filter(self, values: Tensor) -> Tensor:
        """Splat, blur and slice float32 (N, K)."""
        held: Tensor = torch.sparse.mm(self._splat, values)
        for pair in self._neighbours:
            held = held + 0.5 * (held[pair[0]] + held[pair[1]])
        sliced: Tensor = torch.sparse.mm(self._slice, held)
        return sliced

    def _set_weights(self, corners: Tensor, weights: Tensor) -> None:
        rows = torch.arange(len(corners), device=corners.device)[:, None].expand_as(corners)
        where = torch.stack([rows.reshape(-1), corners.reshape(-1)])
        shape = (len(corners), self._size + 1)
        self._slice = torch.sparse_coo_tensor(where, weights.reshape(-1), shape, check_invariants=False).coalesce()
        self._splat = self._slice.t().coalesce()


def mean_field(unary: Tensor, lattices: Sequence[TorchLattice], compat: Sequence[float], *, iterations: int) -> Tensor:
    """Infer the marginals.

    Args:
        unary: float32 (C, N) energies, C >= 2, finite.
        lattices: Filters of the N points, on the device of the energies.
        compat: Potts weight of each filter, at least 0.
        iterations: Number of updates after the start at the softmax of the unaries.

    Returns:
        float32 (C, N): marginals, summing to one over C.
    """
    marginals = torch.softmax(-unary, dim=0)
    for _ in range(iterations):
        # A softmax only sees differences, so C - 1 channels are filtered.
        difference = (marginals[1:] - marginals[:1]).t().contiguous()
        messages = torch.zeros_like(difference)
        for lattice, weight in zip(lattices, compat, strict=True):
            messages.add_(lattice.filter(difference), alpha=weight)
        logits = -unary
        logits[1:] += messages.t()
        marginals = torch.softmax(logits, dim=0)
    return marginals


def _grid(height: int, width: int, sxy: float, device: torch.device) -> Tensor:
    """Return the positions float32 (H * W, 2), x first, in units of `sxy`."""
    x = (torch.arange(width, dtype=torch.float32, device=device) / sxy).expand(height, width)
    y = (torch.arange(height, dtype=torch.float32, device=device) / sxy)[:, None].expand(height, width)
    return torch.stack([x, y], dim=-1).reshape(-1, 2)


def _locate(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return weights and keys (N, d + 1) of the corners around each point, and the linear form of the keys."""
    dims, device = features.shape[1], features.device
    scale = axis_scales(dims)
    reach = (features.amax(dim=0) - features.amin(dim=0)).double().cpu().numpy() * scale
    strides = torch.from_numpy(key_strides(reach)).to(device)
    scaled = features * torch.from_numpy(scale).to(device, torch.float32)
    total, elevated = torch.zeros_like(scaled[:, 0]), []
    for j in range(dims, 0, -1):
        elevated.append(total - j * scaled[:, j - 1])
        total = total + scaled[:, j - 1]
    gap = torch.stack([total, *elevated[::-1]], dim=1)
    # The nearest point whose coordinates are multiples of d + 1; their sum may miss zero by `excess`.
    whole = torch.round(gap * (1 / (dims + 1)))
    gap = gap - whole * (dims + 1)
    excess = whole.sum(dim=1, keepdim=True).long()
    rank = gap.argsort(dim=1, descending=True, stable=True).argsort(dim=1) + excess
    wrap = (rank < 0).long() - (rank > dims).long()
    gap = (gap - wrap * (dims + 1)) * (1 / (dims + 1))
    # Coordinates in the order in which they fall by d from one corner to the next; all others grow by one.
    order = (rank + wrap * (dims + 1)).argsort(dim=1, descending=True)
    gap = gap.gather(1, order)
    weights = torch.diff(gap, dim=1, prepend=torch.zeros_like(gap[:, :1]))
    weights[:, 0] += 1 - gap[:, -1]
    origins = ((whole.long() + wrap) * strides).sum(dim=1, keepdim=True) * (dims + 1)
    steps = strides.sum() - (dims + 1) * strides[order[:, :-1]]
    return weights, torch.cat([origins, origins + steps.cumsum(dim=1)], dim=1), strides


def _link(points: Tensor, strides: Tensor) -> Tensor:
    """Return the neighbours (d + 1, 2, M + 1) of sorted keys; M stands for none, and is its own neighbour."""
    steps = strides.sum() - len(strides) * strides
    wanted = points + torch.stack([steps, -steps], dim=1)[:, :, None]
    found = torch.searchsorted(points, wanted).clamp_(max=len(points) - 1)
    found[points[found] != wanted] = len(points)
    return F.pad(found, (0, 1), value=len(points))
