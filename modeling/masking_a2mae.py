"""Anchor-aware masking: which patches of an image set are hidden, from the metadata of one anchor image.

The rule. One image of the set is the anchor. Its mask is drawn; the mask of every other image follows from what is
known about both:

- Another sensor at nearly the same time shows the same content. It hides the same ground, so that the answer cannot be
  copied from one sensor to the other.
- The same sensor at another time shows other content. It hides independently, and the images complement each other.
- In between, the masks agree in part, less with every day between the two acquisitions.

One number ρ in [0, 1] per image says how far its mask follows the anchor's (`correlation_with_anchor`). The mask lives
on the ground, not on pixel indices: a field of normal noise is drawn on the patch grid of the coarsest image that
follows the anchor, and every patch reads it where it lies (`nearest_reference_patch`), so images of different
resolution hide the same places. The score of a patch is a Gaussian copula of that field and of noise of its own,

    score = ρ · field(ground) + √(1 − ρ²) · own,

and each image hides the patches with the highest scores, exactly its share of them (`lowest_scores`). The other
strategies are other choices of ρ: "tube" sets it to 1 and "independent" to 0 for every image; "random" sets it to 0 and
takes the share of the whole set instead of each image.

All of it is a pure function of metadata and noise, without loops over sets or images. Source of the rule: arXiv
2406.08079; the release draws it for two cases (same flag as the first image, or another), without time and on patch
indices.
"""

from __future__ import annotations

import math

import torch

from .tokens_a2mae import first_tokens, gather_images, grid_axes

UNKNOWN_TIME = torch.iinfo(torch.int64).min
MINUTES_PER_DAY = 24 * 60


def anchor_aware_mask(
    noise: torch.Tensor,
    image_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    patch_positions: torch.Tensor | None,
    grid_shapes: torch.Tensor | None,
    ground_resolutions: torch.Tensor,
    acquisition_times: torch.Tensor,
    source_ids: torch.Tensor,
    anchor_ids: torch.Tensor,
    *,
    strategy: str = "anchor",
    mask_ratio: float = 0.75,
    same_sensor_days: float = 10.0,
    other_sensor_days: float = 90.0,
) -> torch.Tensor:
    """Choose the tokens that stay visible.

    Args:
        noise: (B, 2, L) standard normal numbers: the field on the ground, then each token's own. Further ones are left.
        image_ids: (B, L) int64, the image of each token, in [0, T).
        attention_mask: (B, L) bool, True where the token exists.
        patch_positions: (B, L, 2) patch centres in metres north and east. None where unknown: no two patches are then
            known to show the same ground, and every image hides independently.
        grid_shapes: (B, T, 2) rows and columns of patches; None likewise.
        ground_resolutions: (B, T) metres per pixel, 0 where unknown.
        acquisition_times: (B, T) int64 minutes, the smallest int64 where unknown.
        source_ids: (B, T) int64, equal for images of one sensor.
        anchor_ids: (B,) int64, the anchor image of each set.
        strategy: "anchor", "independent", "tube" or "random".
        mask_ratio: Share of the tokens of each image that is hidden.
        same_sensor_days: Time gap in days from which an image of the anchor's sensor hides independently.
        other_sensor_days: The same for an image of another sensor.

    Returns:
        (B, L) bool, True where the token is visible. Of n tokens of an image, ⌊n · (1 − mask_ratio)⌋ are (under
        "random", of n tokens of the set); tokens that do not exist never are.

    Raises:
        ValueError: The strategy is unknown.
    """
    if strategy not in ("anchor", "independent", "tube", "random"):
        raise ValueError(f"strategy={strategy!r} is unknown; take 'anchor', 'independent', 'tube' or 'random'.")
    field_noise, own_noise = noise[:, 0], noise[:, 1]
    if strategy in ("anchor", "tube") and patch_positions is not None and grid_shapes is not None:
        if strategy == "tube":
            correlation = torch.ones_like(ground_resolutions, dtype=noise.dtype)
        else:
            correlation = correlation_with_anchor(
                acquisition_times, source_ids, anchor_ids, same_sensor_days, other_sensor_days
            ).to(noise.dtype)
        reference = coarsest_image(correlation, ground_resolutions, anchor_ids)
        field = field_noise.gather(1, nearest_reference_patch(patch_positions, grid_shapes, reference))
        rho = correlation.gather(1, image_ids)
        score = rho * field + (1 - rho.square()).sqrt() * own_noise
    else:
        score = own_noise
    group = torch.zeros_like(image_ids) if strategy == "random" else image_ids
    return lowest_scores(score, own_noise, group, attention_mask, ground_resolutions.shape[1], 1 - mask_ratio)


def correlation_with_anchor(
    acquisition_times: torch.Tensor,
    source_ids: torch.Tensor,
    anchor_ids: torch.Tensor,
    same_sensor_days: float,
    other_sensor_days: float,
) -> torch.Tensor:
    """Say how far the mask of each image follows that of the anchor.

    ρ is 1 up to a gap of one day and falls along a raised cosine to 0 at `same_sensor_days` for the anchor's own
    sensor, at `other_sensor_days` for another. Where a time is unknown only the sensor speaks, as in the release: 1 for
    another sensor, 0 for the same one. The anchor follows itself.

    Args:
        acquisition_times: (B, T) int64 minutes, the smallest int64 where unknown.
        source_ids: (B, T) int64, equal for images of one sensor.
        anchor_ids: (B,) int64.
        same_sensor_days: Days.
        other_sensor_days: Days.

    Returns:
        (B, T) float32 in [0, 1].
    """
    anchor = anchor_ids[:, None]
    is_anchor = torch.arange(source_ids.shape[1], device=source_ids.device) == anchor
    same_sensor = source_ids == source_ids.gather(1, anchor)
    known = acquisition_times != UNKNOWN_TIME
    times = torch.where(known, acquisition_times, 0)
    gap = (times - times.gather(1, anchor)).abs() / MINUTES_PER_DAY
    vanishes = torch.where(same_sensor, float(same_sensor_days), float(other_sensor_days))
    fall = ((gap - 1) / (vanishes - 1).clamp(min=1e-6)).clamp(0, 1)
    by_time = 0.5 * (1 + torch.cos(math.pi * fall))
    by_sensor = (~same_sensor).to(by_time.dtype)
    correlation = torch.where(known & known.gather(1, anchor), by_time, by_sensor)
    return torch.where(is_anchor, 1.0, correlation)


def coarsest_image(
    correlation: torch.Tensor, ground_resolutions: torch.Tensor, anchor_ids: torch.Tensor
) -> torch.Tensor:
    """Return the image (B,) on whose patch grid the noise field is drawn.

    It is the coarsest of those that follow the anchor at all: on a finer grid, a coarse patch could not hide the
    same ground as the fine ones below it. The anchor wins ties.
    """
    is_anchor = torch.arange(correlation.shape[1], device=correlation.device) == anchor_ids[:, None]
    # Footprints of one nominal resolution differ by projection; 1 % is no difference in grids.
    size = ground_resolutions.float() * torch.where(is_anchor, 1.01, 1.0)
    return torch.where(is_anchor | (correlation > 0), size, -1.0).argmax(dim=1)


def nearest_reference_patch(
    patch_positions: torch.Tensor, grid_shapes: torch.Tensor, reference: torch.Tensor
) -> torch.Tensor:
    """Return, for every token, the token (B, L) of the reference image (B,) whose patch is nearest on the ground.

    The patches of an image lie on a regular grid, however that is turned, so the nearest one follows from two steps.
    """
    image = reference[:, None]
    axes = grid_axes(patch_positions, grid_shapes, torch.ones_like(grid_shapes[..., 0]))
    corner, row_step, column_step = (gather_images(axis, image) for axis in axes)
    last_row, last_column = (gather_images(grid_shapes, image) - 1).clamp(min=0).unbind(-1)

    def cross(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]

    offset = patch_positions.float() - corner
    area = cross(row_step, column_step)
    area = torch.where(area == 0, 1.0, area)
    row = (cross(offset, column_step) / area).round().long().clamp(min=0).minimum(last_row)
    column = (cross(row_step, offset) / area).round().long().clamp(min=0).minimum(last_column)
    return first_tokens(grid_shapes).gather(1, image) + row * (last_column + 1) + column


def lowest_scores(
    score: torch.Tensor,
    tie_breaker: torch.Tensor,
    group: torch.Tensor,
    exists: torch.Tensor,
    num_groups: int,
    share: float,
) -> torch.Tensor:
    """Select in every group the share of its existing tokens with the lowest score; all of (B, L), the result bool.

    Patches that lie in one cell of a coarser field share its score; `tie_breaker` orders them.
    """
    group = torch.where(exists, group, num_groups)
    order = tie_breaker.argsort(dim=1)
    for key in (score, group):
        order = order.gather(1, key.gather(1, order).argsort(dim=1, stable=True))
    counts = torch.zeros(group.shape[0], num_groups + 1, dtype=torch.int64, device=group.device)
    counts = counts.scatter_add(1, group, torch.ones_like(group))
    first = counts.cumsum(1) - counts
    place = torch.arange(group.shape[1], device=group.device).expand_as(group)
    rank = torch.empty_like(group).scatter(1, order, place - first.gather(1, group.gather(1, order)))
    # In float32, n · (1 − 0.9) misses whole numbers from a few thousand tokens on; 1e-6 repairs it in float64.
    precise = torch.float32 if counts.device.type == "mps" else torch.float64
    quota = (counts[:, :num_groups].to(precise) * share + 1e-6).floor().long()
    quota = torch.nn.functional.pad(quota, (0, 1))
    return rank < quota.gather(1, group)


def most_visible_tokens(num_tokens: int, mask_ratio: float) -> int:
    """Bound the visible tokens of any set of `num_tokens`, from shapes alone, so that graphs keep static shapes."""
    return max(1, math.floor(num_tokens * (1 - mask_ratio) + 1e-3))


def most_hidden_tokens(num_tokens: int, num_images: int, mask_ratio: float) -> int:
    """Bound the hidden tokens of any set of `num_tokens` in `num_images`, likewise: each image rounds up."""
    return min(num_tokens, math.floor(num_tokens * mask_ratio) + num_images)
