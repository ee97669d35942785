"""Indexing of the token-major batch: tokens of an image, images of a token, patches on the ground.

Tokens of an image follow one another row by row, images follow one another; `grid_shapes` says how many rows and
columns.
"""

import torch


def gather_images(image_values: torch.Tensor, image_ids: torch.Tensor) -> torch.Tensor:
    """Give every token the value of its image: (B, T, …) and (B, L) → (B, L, …)."""
    num_sets, num_images = image_values.shape[:2]
    first = torch.arange(num_sets, device=image_ids.device)[:, None] * num_images
    return image_values.flatten(0, 1)[first + image_ids]


def take_tokens(values: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """Select tokens: (B, L, …) and (B, K) → (B, K, …)."""
    num_sets, num_tokens = values.shape[:2]
    first = torch.arange(num_sets, device=token_ids.device)[:, None] * num_tokens
    # Whole rows are copied at once, several times faster than `gather` on an expanded index.
    return values.flatten(0, 1).index_select(0, (first + token_ids).flatten()).unflatten(0, token_ids.shape)


def first_tokens(grid_shapes: torch.Tensor) -> torch.Tensor:
    """Return the index (B, T) of the first token of every image, from `grid_shapes` (B, T, 2)."""
    sizes = grid_shapes.prod(-1)
    return sizes.cumsum(1) - sizes


def grid_positions(image_ids: torch.Tensor, grid_shapes: torch.Tensor) -> torch.Tensor:
    """Return row and column (B, L, 2) int64 of every token on the patch grid of its image."""
    index = torch.arange(image_ids.shape[1], device=image_ids.device) - first_tokens(grid_shapes).gather(1, image_ids)
    columns = grid_shapes[..., 1].gather(1, image_ids).clamp(min=1)
    return torch.stack([index // columns, index % columns], dim=-1)


def is_image_by_image(image_ids: torch.Tensor, num_images: int) -> bool:
    """Say whether every set holds the same number of tokens of each image, one image after another."""
    if image_ids.shape[1] % num_images:
        return False
    expected = torch.arange(num_images, device=image_ids.device).repeat_interleave(image_ids.shape[1] // num_images)
    return bool((image_ids == expected).all())


def grid_axes(
    patch_positions: torch.Tensor, grid_shapes: torch.Tensor, patch_metres: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return where the patch grid of every image lies on the ground.

    Args:
        patch_positions: (B, L, 2) metres north and east.
        grid_shapes: (B, T, 2) rows and columns.
        patch_metres: (B, T) side of a patch, for grids of a single one.

    Returns:
        Centre of the first patch, step to the next row, step to the next column: (B, T, 2) float32 metres each. A grid
        of one row or column takes the missing step at a right angle to the other; one of a single patch steps south
        and east.
    """
    rows, columns = grid_shapes.unbind(-1)
    first = first_tokens(grid_shapes)
    end_of_row, end_of_column = first + (columns - 1).clamp(min=0), first + (rows - 1).clamp(min=0) * columns
    positions = patch_positions.float()
    corner, last_column, last_row = (
        take_tokens(positions, token.clamp(max=positions.shape[1] - 1)) for token in (first, end_of_row, end_of_column)
    )
    has_rows, has_columns = (rows > 1)[..., None], (columns > 1)[..., None]
    south = patch_metres.float()[..., None] * positions.new_tensor([-1.0, 0.0])
    row_step = torch.where(has_rows, (last_row - corner) / (rows - 1).clamp(min=1)[..., None], south)
    column_step = (last_column - corner) / (columns - 1).clamp(min=1)[..., None]
    # Seen from above, columns run to the left of the way down the rows.
    column_step = torch.where(has_columns, column_step, torch.stack([row_step[..., 1], -row_step[..., 0]], dim=-1))
    to_the_right = torch.stack([-column_step[..., 1], column_step[..., 0]], dim=-1)
    return corner, torch.where(has_rows, row_step, to_the_right), column_step
