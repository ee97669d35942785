"""What pre-training asks for: the pixels of hidden patches, what they look like, and which views are of one place.

    pixels      mean squared error of the hidden, valid values; always
    features    of every hidden patch and band: mean, logarithm of the standard deviation, and a histogram of gradient
                orientations (`feature_targets`). Pixels alone spend the model on noise; what a patch looks like is what
                later tasks live on. Histograms as targets are from MaskFeat (Wei et al. 2022, arXiv 2112.09133), and
                hand-made features for Earth observation from FG-MAE (Wang et al. 2023, arXiv 2310.18653)
    views       of one place, differently masked and turned, are told from those of other places (`contrastive_weight`):
                the normalised temperature-scaled cross entropy of SimCLR (Chen et al. 2020, arXiv 2002.05709)

Under several processes every sum is divided by the count of all of them, so that the gradient that data parallelism
averages is that of one process with the whole batch.
"""

from __future__ import annotations

import math

import torch
from torch import distributed, nn

from .tokens_a2mae import gather_images

ORIENTATIONS = 8
PATCH_FEATURES = 2 + ORIENTATIONS
"""Mean, logarithm of the standard deviation, and the histogram."""

# In standardised units: what is as flat as this has neither contrast nor orientation worth predicting.
_FLAT = 0.02


def reconstruction_loss(
    predicted: torch.Tensor, target: dict[str, torch.Tensor], decoded: torch.Tensor, normalize_targets: bool
) -> torch.Tensor:
    """Return the mean squared error over the values that were decoded and are valid.

    Args:
        predicted: (B, M, C, P·P).
        target: The batch of the M tokens.
        decoded: (B, M) bool, True where a token counts.
        normalize_targets: Compare with each patch after removing its mean and standard deviation over bands and pixels.
    """
    pixels = target["pixel_values"].float()
    valid = valid_values(target, decoded)
    if normalize_targets:
        pixels = normalize_patches(pixels, valid.expand_as(pixels).float())
    # Where a whole band is valid or not, the pixels of a patch are summed before they are weighted, not after.
    num_equal = pixels.shape[-1] // valid.shape[-1]
    error = (predicted.float() - pixels).square().unflatten(-1, (-1, num_equal)).sum(-1)
    weights = valid.float().expand_as(error)
    return (error * weights).sum() / (mean_over_processes(weights.sum()) * num_equal).clamp(min=1)


def valid_values(target: dict[str, torch.Tensor], decoded: torch.Tensor) -> torch.Tensor:
    """Return where values of M tokens count, bool that broadcasts to (B, M, C, P·P)."""
    valid = decoded[:, :, None, None]
    if "pixel_mask" in target:
        valid = valid & target["pixel_mask"]
    if target["band_wavelengths"].shape[2]:
        valid = valid & gather_images(target["band_wavelengths"] > 0, target["image_ids"])[..., None]
    return valid


def normalize_patches(pixels: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Remove the mean and the standard deviation of the valid values of every patch, over bands and pixels.

    The variance is the unbiased one plus 1e-6, as in MAE (He et al. 2022) and the released network.

    Args:
        pixels: (B, M, C, P·P) float32.
        valid: (B, M, C, P·P) float32, 1 where a value is valid.
    """
    count = valid.sum((2, 3), keepdim=True)
    mean = (pixels * valid).sum((2, 3), keepdim=True) / count.clamp(min=1)
    variance = ((pixels - mean).square() * valid).sum((2, 3), keepdim=True) / (count - 1).clamp(min=1)
    return (pixels - mean) / (variance + 1e-6).sqrt()


def feature_loss(predicted: torch.Tensor, target: dict[str, torch.Tensor], decoded: torch.Tensor) -> torch.Tensor:
    """Return the mean squared error of the features of the patches that were decoded and are valid as a whole.

    Args:
        predicted: (B, M, C, `PATCH_FEATURES`).
        target: The batch of the M tokens.
        decoded: (B, M) bool, True where a token counts.
    """
    pixels = target["pixel_values"].float()
    weights = valid_values(target, decoded).all(-1, keepdim=True).expand(*pixels.shape[:3], 1).float()
    error = (predicted.float() - patch_features(pixels)).square().mean(-1, keepdim=True)
    return (error * weights).sum() / mean_over_processes(weights.sum()).clamp(min=1)


def patch_features(pixels: torch.Tensor) -> torch.Tensor:
    """Describe what patches look like, band by band, in numbers of about unit variance.

    Args:
        pixels: (…, P·P) float32, standardised values of square patches.

    Returns:
        (…, `PATCH_FEATURES`) float32: mean; logarithm of the standard deviation, shifted and scaled; histogram of the
        orientations of the gradient (central differences, unsigned, weighted by magnitude), 0 for an even one.
    """
    side = math.isqrt(pixels.shape[-1])
    square = pixels.unflatten(-1, (side, side))
    mean, std = pixels.mean(-1), pixels.std(-1, correction=0)
    contrast = (std + _FLAT).log() + 1.5
    down = square[..., 2:, 1:-1] - square[..., :-2, 1:-1]
    across = square[..., 1:-1, 2:] - square[..., 1:-1, :-2]
    magnitude = (down.square() + across.square()).sqrt().flatten(-2)
    angle = torch.atan2(down, across).flatten(-2) * (ORIENTATIONS / math.pi)
    bins = angle.floor().long() % ORIENTATIONS
    histogram = torch.zeros(*pixels.shape[:-1], ORIENTATIONS, dtype=pixels.dtype, device=pixels.device)
    histogram = histogram.scatter_add(-1, bins, magnitude)
    strength = histogram.sum(-1, keepdim=True)
    # Of a flat patch the orientations are noise: its histogram counts as even.
    even = histogram.new_tensor(1 / ORIENTATIONS)
    share = (histogram + _FLAT * magnitude.shape[-1] * even) / (strength + _FLAT * magnitude.shape[-1])
    return torch.cat([mean[..., None], contrast[..., None], (share - even) * ORIENTATIONS], dim=-1)


class A2MAEProjector(nn.Module):
    """Two linear layers from the summary of a set to the space in which views are compared."""

    def __init__(self, width: int, inner_width: int, size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner_width)
        self.activation = nn.GELU()
        self.fc2 = nn.Linear(inner_width, size)

    def forward(self, summary: torch.Tensor) -> torch.Tensor:
        """Return (B, size) vectors of length one."""
        return nn.functional.normalize(self.fc2(self.activation(self.fc1(summary))).float(), dim=-1)


def contrastive_loss(views: torch.Tensor, set_ids: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the cross entropy with which a view finds the other views of its set among all views.

    Args:
        views: (B, D) float32 vectors of length one.
        set_ids: (B,) int64, equal for the views of one set.
        temperature: What similarities are divided by.

    Returns:
        Scalar: the mean over the views that have another of their set; 0 if none has.
    """
    all_views, all_ids, first = gather_views(views, set_ids)
    similarity = views @ all_views.T / temperature
    itself = torch.arange(len(views), device=views.device)[:, None] + first == torch.arange(
        len(all_views), device=views.device
    )
    same = (set_ids[:, None] == all_ids) & ~itself
    log_share = similarity.masked_fill(itself, -math.inf).log_softmax(dim=1)
    positives = same.sum(1)
    of_view = -log_share.masked_fill(~same, 0.0).sum(1) / positives.clamp(min=1)
    count = mean_over_processes((positives > 0).sum().float())
    return of_view.sum() / count.clamp(min=1)


def gather_views(views: torch.Tensor, set_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return the views of all processes with their sets, and the place of this process's first among them."""
    if not several_processes():
        return views, set_ids, 0
    from torch.distributed.nn.functional import all_gather

    ids = [torch.empty_like(set_ids) for _ in range(distributed.get_world_size())]
    distributed.all_gather(ids, set_ids)
    return torch.cat(all_gather(views)), torch.cat(ids), distributed.get_rank() * len(views)


def mean_over_processes(count: torch.Tensor) -> torch.Tensor:
    """Return the mean of a count over all processes that train together."""
    if not (several_processes() and torch.is_grad_enabled()):
        return count
    total = count.detach().clone()
    distributed.all_reduce(total)
    return total / distributed.get_world_size()


def several_processes() -> bool:
    """Return whether this is one of several processes that train together."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
