"""A linear head from patch features to the classes of pixels, and the scores of what it says."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from .features import FeatureMap
from .probes import logistic_regression, standardise

NO_LABEL = -1
STEPS = 100
WEIGHT_DECAY = 1e-3
SAMPLED_PIXELS = 200_000
_AT_ONCE = 16


def standardise_maps(train: Sequence[FeatureMap], *others: Sequence[FeatureMap]) -> list[list[FeatureMap]]:
    """Return feature maps minus the mean of all training patches, over their standard deviation.

    Args:
        train: Training maps of D features; patches without data (NaN) do not count.
        *others: Further maps, brought to the same scale.

    Returns:
        Training maps and the others, float32; patches without data hold 0, the mean.

    Raises:
        ValueError: If no training patch has data.
    """
    patches = [
        np.concatenate([one.values.reshape(len(one.values), -1) for one in maps], 1).T for maps in (train, *others)
    ]
    real = np.isfinite(patches[0]).all(1)
    if not real.any():
        raise ValueError("No patch of the training images has data; check nodata= and the images.")
    scaled = standardise(patches[0][real], *patches)[1:]
    return [_folded(part, maps) for part, maps in zip(scaled, (train, *others), strict=True)]


def _folded(patches: np.ndarray, maps: Sequence[FeatureMap]) -> list[FeatureMap]:
    """Return patches (N, D) of all maps, one after the other, as maps like those."""
    ends = np.cumsum([one.values[0].size for one in maps])
    parts = np.split(np.nan_to_num(patches, nan=0.0).astype(np.float32), ends[:-1])
    return [
        FeatureMap(np.ascontiguousarray(part.T).reshape(one.values.shape), one.patch)
        for part, one in zip(parts, maps, strict=True)
    ]


def fit_segmentation_head(
    maps: Sequence[FeatureMap], labels: Sequence[np.ndarray], num_classes: int
) -> torch.nn.Conv2d:
    """Fit a linear head: logits of patches, brought bilinearly to pixels, under cross entropy over labelled pixels.

    The problem is convex, so a quasi-Newton method (L-BFGS, at most 100 iterations over all images, from zero) finds
    the one best head: no seed, no learning rate, nothing to be tuned to one kind of features.

    Args:
        maps: N standardised feature maps of D features, without NaN.
        labels: N arrays (height, width) of class numbers from 0 on, −1 where a pixel has no label.
        num_classes: K.

    Returns:
        Convolution of 1 × 1 from D to K.

    Raises:
        ValueError: If maps and labels do not fit each other, or no pixel has a label.
    """
    count = sum(int((one != NO_LABEL).sum()) for one in labels)
    if len(maps) != len(labels) or not count:
        raise ValueError(f"{len(maps)} feature maps come with {len(labels)} labels of {count} labelled pixels in all.")
    # Made without random weights, which would move the random numbers of the caller on.
    head = torch.nn.utils.skip_init(torch.nn.Conv2d, maps[0].values.shape[0], num_classes, 1)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    optimiser = torch.optim.LBFGS(head.parameters(), max_iter=STEPS, history_size=20, line_search_fn="strong_wolfe")

    def loss_of_all() -> torch.Tensor:
        optimiser.zero_grad()
        total = 0.5 * WEIGHT_DECAY * head.weight.square().sum()
        total.backward()
        for part in _alike(maps, [one.shape for one in labels]):
            logits = _pixel_logits(head, [maps[index] for index in part], labels[part[0]].shape)
            wanted = torch.from_numpy(np.stack([labels[index] for index in part])).long()
            loss = torch.nn.functional.cross_entropy(logits, wanted, ignore_index=NO_LABEL, reduction="sum") / count
            loss.backward()
            total = total.detach() + loss.detach()
        return total

    with torch.enable_grad():
        optimiser.step(loss_of_all)
    return head.requires_grad_(False)


def predict_segmentation(
    head: torch.nn.Conv2d, maps: Sequence[FeatureMap], shapes: Sequence[tuple[int, int]]
) -> list[np.ndarray]:
    """Return the most likely class of every pixel.

    Args:
        head: As `fit_segmentation_head` returns it.
        maps: N standardised feature maps.
        shapes: Rows and columns of pixels of each.

    Returns:
        N arrays (height, width) int64.
    """
    predictions: list[np.ndarray] = [np.empty(0)] * len(maps)
    with torch.inference_mode():
        for part in _alike(maps, shapes):
            classes = _pixel_logits(head, [maps[index] for index in part], shapes[part[0]]).argmax(1)
            for index, one in zip(part, classes.numpy(), strict=True):
                predictions[index] = one
    return predictions


def predict_pixels_alone(
    train: Sequence[np.ndarray], labels: Sequence[np.ndarray], test: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Predict every pixel from its own band values by a logistic regression (C = 0.1): what needs no texture.

    Args:
        train: N arrays (bands, height, width) of physical values.
        labels: N arrays (height, width) of class numbers, −1 where a pixel has no label.
        test: M arrays (bands, height, width).

    Returns:
        M arrays (height, width) of class numbers. 200 000 labelled pixels are fitted, drawn with a fixed seed.
    """
    wanted = np.concatenate([one.ravel() for one in labels])
    labelled = np.flatnonzero(wanted != NO_LABEL)
    if len(labelled) > SAMPLED_PIXELS:
        labelled = np.sort(np.random.default_rng(0).choice(labelled, SAMPLED_PIXELS, replace=False))
    pixels = np.concatenate([one.reshape(len(one), -1) for one in train], axis=1).T
    fitted, *scaled = standardise(pixels[labelled], *(one.reshape(len(one), -1).T for one in test))
    classifier = logistic_regression().fit(fitted, wanted[labelled])
    return [classifier.predict(part).reshape(one.shape[1:]) for part, one in zip(scaled, test, strict=True)]


def segmentation_scores(
    predictions: Sequence[np.ndarray], labels: Sequence[np.ndarray], num_classes: int
) -> dict[str, float]:
    """Score predicted classes over all labelled pixels of all images together.

    Args:
        predictions: N arrays (height, width) of class numbers.
        labels: N arrays (height, width) of class numbers, −1 where a pixel has no label.
        num_classes: K.

    Returns:
        "pixel accuracy", the share of the labelled pixels that is right; before it, for two classes, "IoU", the
        intersection over union of class 1 (1 where it is neither there nor predicted).

    Raises:
        ValueError: If no pixel has a label, or shapes differ.
    """
    said = np.concatenate([one.ravel() for one in predictions])
    true = np.concatenate([one.ravel() for one in labels])
    if said.shape != true.shape or not (true != NO_LABEL).any():
        raise ValueError(f"{said.size} predicted pixels do not go with {true.size} labels, or none of these is known.")
    said, true = said[true != NO_LABEL], true[true != NO_LABEL]
    scores = {}
    if num_classes == 2:
        either = int(((said == 1) | (true == 1)).sum())
        scores["IoU"] = int(((said == 1) & (true == 1)).sum()) / either if either else 1.0
    scores["pixel accuracy"] = float((said == true).mean())
    return scores


def _alike(maps: Sequence[FeatureMap], shapes: Sequence[tuple[int, ...]]) -> Iterator[list[int]]:
    """Yield the numbers of images of one size, some at a time: they go through the head together."""
    groups: dict[tuple, list[int]] = {}
    for index, (one, shape) in enumerate(zip(maps, shapes, strict=True)):
        groups.setdefault((one.values.shape, one.patch, shape), []).append(index)
    for group in groups.values():
        for start in range(0, len(group), _AT_ONCE):
            yield group[start : start + _AT_ONCE]


def _pixel_logits(head: torch.nn.Conv2d, maps: Sequence[FeatureMap], shape: tuple[int, ...]) -> torch.Tensor:
    """Return the logits (N, K, height, width) of the pixels of images of one size."""
    logits = head(torch.from_numpy(np.stack([one.values for one in maps])))
    down, right = (
        _bilinear(pixels, cells, patch)
        for pixels, cells, patch in zip(shape, logits.shape[2:], maps[0].patch, strict=True)
    )
    return down @ logits @ right.T


@functools.lru_cache(maxsize=256)
def _bilinear(pixels: int, cells: int, patch: float) -> torch.Tensor:
    """Return the weights (pixels, cells) of bilinear interpolation along one axis, patches of `patch` pixels.

    They are those of `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`, and hold as well where
    the last patch reaches beyond the image, or a patch is no whole number of pixels.
    """
    place = np.clip((np.arange(pixels) + 0.5) / patch - 0.5, 0, cells - 1)
    distance = np.abs(place[:, None] - np.arange(cells))
    return torch.from_numpy(np.maximum(1 - distance, 0).astype(np.float32))
