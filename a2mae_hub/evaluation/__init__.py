"""Frozen features by one fixed protocol: what a checkpoint knows, beside what needs no model at all."""

from typing import TYPE_CHECKING

from a2mae_hub.lazy import imported_on_use

if TYPE_CHECKING:
    from .features import embed_images, embed_maps, hand_made_numbers, raw_statistics
    from .probes import few_shot_accuracy, knn_accuracy, linear_accuracy
    from .protocol import evaluate
    from .recipe import Recipe, Task, read_recipe
    from .reconstruction import reconstruction_errors
    from .segmentation import fit_segmentation_head, predict_segmentation, segmentation_scores

_LAZY = {
    "Recipe": ".recipe",
    "Task": ".recipe",
    "embed_images": ".features",
    "embed_maps": ".features",
    "evaluate": ".protocol",
    "few_shot_accuracy": ".probes",
    "fit_segmentation_head": ".segmentation",
    "hand_made_numbers": ".features",
    "knn_accuracy": ".probes",
    "linear_accuracy": ".probes",
    "predict_segmentation": ".segmentation",
    "raw_statistics": ".features",
    "read_recipe": ".recipe",
    "reconstruction_errors": ".reconstruction",
    "segmentation_scores": ".segmentation",
}

__getattr__ = imported_on_use(__name__, _LAZY)


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted(__all__)


__all__ = [
    "Recipe",
    "Task",
    "embed_images",
    "embed_maps",
    "evaluate",
    "few_shot_accuracy",
    "fit_segmentation_head",
    "hand_made_numbers",
    "knn_accuracy",
    "linear_accuracy",
    "predict_segmentation",
    "raw_statistics",
    "read_recipe",
    "reconstruction_errors",
    "segmentation_scores",
]
