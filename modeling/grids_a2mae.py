"""From tokens back to maps: the patch grid of every image, and one grid for a whole set.

Tokens of an image follow one another row by row, images follow one another; `grid_shapes` says how many rows and
columns.
"""

import torch

from .tokens_a2mae import first_tokens, grid_axes, take_tokens


def fold_tokens(tokens: torch.Tensor, grid_shapes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Fold tokens into one map per image.

    Args:
        tokens: (B, L, D) values of patch tokens, without the class token.
        grid_shapes: (B, T, 2) rows and columns of patches of every image.

    Returns:
        Maps (B, T, D, H, W), zero beyond the grid of an image, with H and W the most rows and columns of any image; and
        (B, T, H, W) int64, the token of every cell, −1 beyond the grid.
    """
    height, width = grid_shapes.amax(dim=(0, 1)).tolist()
    row = torch.arange(height, device=tokens.device)[:, None]
    column = torch.arange(width, device=tokens.device)
    rows, columns = grid_shapes[..., 0, None, None], grid_shapes[..., 1, None, None]
    inside = (row < rows) & (column < columns)
    token_ids = torch.where(inside, first_tokens(grid_shapes)[..., None, None] + row * columns + column, -1)
    maps = take_tokens(tokens, token_ids.clamp(min=0).flatten(1)) * inside.flatten(1)[..., None]
    return maps.unflatten(1, inside.shape[1:]).permute(0, 1, 4, 2, 3), token_ids


def fuse_on_anchor_grid(
    tokens: torch.Tensor,
    attention_mask: torch.Tensor | None,
    image_ids: torch.Tensor,
    patch_positions: torch.Tensor,
    ground_resolutions: torch.Tensor,
    anchor_ids: torch.Tensor,
    grid_shapes: torch.Tensor,
    patch_size: int,
) -> torch.Tensor:
    """Average the tokens of all images of a set on the patch grid of its anchor.

    Every cell takes the mean of the patches that lie on its ground, weighted by the area they share with it: each image
    that covers the cell has one vote, whatever its resolution.

    Args:
        tokens: (B, L, D) values of patch tokens, without the class token.
        attention_mask: (B, L) bool, True where the token exists; None where all do.
        image_ids: (B, L) int64.
        patch_positions: (B, L, 2) metres north and east of the patch centres.
        ground_resolutions: (B, T) metres per pixel.
        anchor_ids: (B,) int64.
        grid_shapes: (B, T, 2) rows and columns of patches.
        patch_size: Pixels.

    Returns:
        (B, D, H, W), zero beyond the anchor's grid and where no image has data.
    """
    sets = torch.arange(tokens.shape[0], device=tokens.device)
    _, token_ids = fold_tokens(tokens[..., :1], grid_shapes)
    cell_ids = token_ids[sets, anchor_ids]
    rows, columns = grid_shapes[sets, anchor_ids].amax(dim=0).tolist()
    cell_ids = cell_ids[:, :rows, :columns].flatten(1)

    # Grid north and true north differ by a few degrees; squares overlap exactly along the axes of the grid only.
    _, row_step, column_step = grid_axes(patch_positions, grid_shapes, anchor_ids)
    axes = (torch.nn.functional.normalize(step, dim=-1) for step in (row_step, column_step))
    positions = torch.stack([(patch_positions.float() * axis).sum(-1) for axis in axes], dim=-1)
    sizes = (ground_resolutions.float() * patch_size).gather(1, image_ids)
    cell_positions = take_tokens(positions, cell_ids.clamp(min=0))
    cell_sizes = take_tokens(sizes, cell_ids.clamp(min=0))
    reach = (cell_sizes[:, :, None] + sizes[:, None, :]) / 2
    smaller = torch.minimum(cell_sizes[:, :, None], sizes[:, None, :])
    weights = torch.ones_like(reach)
    for axis in range(2):
        distance = (cell_positions[:, :, None, axis] - positions[:, None, :, axis]).abs()
        # Neighbours touch; a thousandth of a patch is rounding, not overlap.
        overlap = torch.minimum(reach - distance, smaller) / smaller
        weights = weights * torch.where(overlap > 1e-3, overlap * smaller, 0.0)
    if attention_mask is not None:
        weights = weights * attention_mask[:, None, :]
    weights = weights * (cell_ids >= 0)[..., None]
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-12)
    fused = weights.to(tokens.dtype) @ tokens
    return fused.transpose(1, 2).unflatten(2, (rows, columns))
