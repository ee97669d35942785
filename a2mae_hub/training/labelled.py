"""Image sets with labels, to learn from, to judge by and to test: read by convention, or mapped from any data set."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from a2mae_hub.images import ImageSet

from .label_encoding import check_names, encode_labels, keys_of, problem_of
from .label_files import (
    CHANGE,
    CLASSIFICATION,
    IGNORED,
    MULTI,
    REGRESSION,
    SEGMENTATION,
    SINGLE,
    SPLITS,
    TASKS,
    Declaration,
    LabelledFiles,
    Mask,
    find_class_folders,
    find_masked_images,
    find_split_folders,
    find_table_rows,
    mask_of,
    split_named,
    stored_mask,
)

# Images that are kept once read; further ones are read again in every epoch.
_MOST_KEPT_BYTES = 4 * 2**30


@dataclass(frozen=True)
class LabelledSet:
    """One example.

    Attributes:
        image_set: The images.
        label: int64 class number; (num_labels,) float32, 0 and 1 or values; or (height, width) uint8 classes on the
            pixels of the anchor, `IGNORED` where there is none.
        index: Its place among the sets of its part.
        epoch: For the random numbers of augmentation.
    """

    image_set: ImageSet
    label: np.ndarray
    index: int
    epoch: int


class LabelledSets(torch.utils.data.Dataset):
    """Image sets that are read when first asked for, with their labels.

    Args:
        names: What to call each in messages.
        readers: What reads each.
        labels: As in `LabelledSet`.
    """

    def __init__(
        self, names: Sequence[str], readers: Sequence[Callable[[], ImageSet]], labels: Sequence[np.ndarray]
    ) -> None:
        self.names, self.readers, self.labels = list(names), list(readers), list(labels)
        self.epoch = 0
        self._kept: dict[int, ImageSet] = {}
        self._room = _MOST_KEPT_BYTES

    def __len__(self) -> int:
        """Return the number of sets."""
        return len(self.names)

    def set_epoch(self, epoch: int) -> None:
        """Tell the epoch, which the data loader of a Trainer does."""
        self.epoch = epoch

    def by_size(self, seed: int | None = None) -> LabelledSets:
        """Return the sets of maps from the smallest to the largest, so that those of a batch have one size, about.

        Args:
            seed: Of the order of sets of the same size; None keeps it.
        """
        order = np.arange(len(self)) if seed is None else np.random.default_rng(seed).permutation(len(self))
        return self.select(order[np.argsort([self.labels[place].size for place in order], kind="stable")])

    def select(self, places: Iterable[int]) -> LabelledSets:
        """Return the sets at some places, in that order."""
        places = [int(place) for place in places]
        return LabelledSets(
            [self.names[place] for place in places],
            [self.readers[place] for place in places],
            [self.labels[place] for place in places],
        )

    def __getitem__(self, index: int) -> LabelledSet:
        """Read a set.

        Raises:
            ValueError: If it cannot be read, or its mask is of another size; names it.
        """
        image_set = self._kept.get(index)
        if image_set is None:
            image_set = self.readers[index]()
            size = sum(image.pixels.nbytes for image in image_set)
            if size <= self._room:
                self._room -= size
                self._kept[index] = image_set
        label = self.labels[index]
        if label.ndim == 2:
            anchor = image_set[image_set.anchor]
            if label.shape != anchor.pixels.shape[1:]:
                raise ValueError(
                    f"{self.names[index]}: its mask is of {label.shape[0]} × {label.shape[1]} pixels, and its first"
                    f" image of {anchor.pixels.shape[1]} × {anchor.pixels.shape[2]} where all images overlap; cut"
                    " images and mask to one footprint."
                )
            label = np.where(anchor.valid_values().any(0), label, np.uint8(IGNORED))
        return LabelledSet(image_set, label, index, self.epoch)


@dataclass(frozen=True)
class LabelledData:
    """The examples of a task.

    Attributes:
        task: "classification", "segmentation" or "change".
        problem_type: As the library calls it: "single_label_classification", "multi_label_classification" or
            "regression"; the first for maps.
        classes: Names, by number; of a regression, of its values.
        train: To learn from.
        validation: To choose the best epoch by.
        test: For the scores to tell of, with no say in anything; None where there is none.
    """

    task: str
    problem_type: str
    classes: list[str]
    train: LabelledSets
    validation: LabelledSets
    test: LabelledSets | None = None

    def parts(self) -> dict[str, LabelledSets]:
        """Return the parts that there are, by name."""
        parts = {"train": self.train, "validation": self.validation}
        return parts if self.test is None else {**parts, "test": self.test}

    def standardised(self) -> tuple[LabelledData, np.ndarray, np.ndarray]:
        """Return a regression whose values have mean 0 and deviation 1 in the training part, with both of them."""
        values = np.stack(self.train.labels).astype(np.float64)
        mean, deviation = values.mean(0), values.std(0)
        deviation = np.where(deviation > 0, deviation, 1.0)
        parts = {
            name: LabelledSets(
                part.names, part.readers, [((label - mean) / deviation).astype(np.float32) for label in part.labels]
            )
            for name, part in self.parts().items()
        }
        return LabelledData(self.task, self.problem_type, self.classes, **parts), mean, deviation

    def balanced_weights(self) -> list[float]:
        """Return what each class has to weigh so that all weigh the same: examples / (classes × those of the class).

        Of several labels a set (0 or 1 each), what a 1 has to weigh: those that are 0 over those that are 1.

        Raises:
            ValueError: If a class has no example, or the task is a regression.
        """
        if self.problem_type == REGRESSION:
            raise ValueError("class_weights='balanced': a regression has no classes; leave it out.")
        if self.problem_type == MULTI:
            present = np.sum(self.train.labels, axis=0)
            counts, weights = present, (len(self.train) - present) / np.maximum(present, 1)
        else:
            of_sets = [np.bincount(label.ravel(), minlength=IGNORED + 1) for label in self.train.labels]
            counts = np.sum(of_sets, axis=0)[: len(self.classes)]
            weights = counts.sum() / (len(counts) * np.maximum(counts, 1))
        for name, count in zip(self.classes, counts, strict=True):
            if not count:
                raise ValueError(f"class_weights='balanced': the class {name!r} has no example to be weighed by.")
        return [round(float(weight), 6) for weight in weights]


def read_labelled(
    task: str,
    path: str | os.PathLike[str],
    *,
    images: str | None = None,
    before: str | None = None,
    after: str | None = None,
    masks: str | None = None,
    label_band: int = 1,
    ignore: Sequence[float] = (),
    classes: Sequence[str] | Mapping[int, str] | None = None,
    validation: float = 0.2,
    seed: int = 0,
    sensor: str | None = None,
    bands: Sequence[str] | None = None,
    scale: float | Sequence[float] | None = None,
    offset: float | Sequence[float] | None = None,
    nodata: float | None = None,
) -> LabelledData:
    """Read labelled image sets as they lie.

    - classification: folders of rasters, one a class; or a CSV or GeoJSON of files and labels (see
      `find_table_rows`); or STSSD shards with a column `label`. Texts are classes, several of them (`;` in a table) are
      a multi-label problem, and numbers are a regression unless `classes` are given.
    - segmentation: folders `images` and `masks` with equal names.
    - change: folders `before`, `after` and `masks` with equal names.
    - maps also: STSSD shards with a column `mask`: of every set the bytes of its classes (see `stored_mask`) on the
      pixels of its first image.

    Which part a set belongs to is told by folders `train`, `validation` and `test` that each are as above, or by a
    column `split`; what is not told is drawn: of all sets, or of `train` where that and `test` are told.

    Args:
        task: "classification", "segmentation" or "change".
        path: Folder or table.
        images: Pattern of the images of a segmentation, in place of "images/*".
        before: Pattern of the images before a change, in place of "before/*".
        after: Pattern of the images after a change, in place of "after/*".
        masks: Pattern of the masks, in place of "masks/*".
        label_band: Band of the mask files, counted from 1.
        ignore: Stored numbers of masks that mean "no label".
        classes: Names of all classes; of masks by stored number (a list begins with 0). None takes those of the
            training part.
        validation: Share of the sets that are drawn for validation, of every class.
        seed: Of that draw.
        sensor: As in `a2mae_hub.read_image_set`, as are the others.
        bands: Band names.
        scale: Factor from stored number to physical value.
        offset: Offset from stored number to physical value.
        nodata: Stored number that means "no data".

    Returns:
        The data; nothing is read of the images yet.

    Raises:
        FileNotFoundError: If files are missing.
        ValueError: If labels are missing or of no known class, a class has no examples, a mask does not lie on its
            image, or an argument is out of range; names the file.
    """
    if task not in TASKS:
        raise ValueError(f"task={task!r} must be one of {', '.join(TASKS)}.")
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such folder or table; check the path.")
    declaration = Declaration(sensor, bands, scale, offset, nodata)
    if task == CLASSIFICATION:
        given = [pattern for pattern in (images, before, after, masks) if pattern is not None]
        if given:
            raise ValueError(f"{given[0]!r}: classification takes no patterns; it reads folders of classes or a table.")
        find: Callable[..., Any] = partial(find_class_folders, declaration=declaration)
    else:
        patterns = [images or "images/*"] if task == SEGMENTATION else [before or "before/*", after or "after/*"]
        find = partial(
            find_masked_images,
            images=patterns,
            masks=masks or "masks/*",
            declaration=declaration,
            band=label_band,
            ignore=ignore,
        )
    if path.is_file():
        if task != CLASSIFICATION or path.suffix.lower() not in (".csv", ".geojson", ".json"):
            table = ", a CSV or a GeoJSON" if task == CLASSIFICATION else ""
            raise ValueError(f"{path}: is no folder; {task} reads folders{table}.")
        found = list(find_table_rows(path, declaration))
    elif _holds_shards(task, path, (images, before, after, masks)):
        found = _from_shards(task, path, ignore)
    else:
        found = [one for root, split in find_split_folders(path) for one in find(root, split=split)]
    return assemble(task, found, classes, validation, seed)


def from_dataset(
    task: str,
    train: Any,
    validation: Any,
    mapping: Callable[[Any], tuple[ImageSet, Any]],
    *,
    classes: Sequence[str] | None = None,
    test: Any = None,
) -> LabelledData:
    """Take labelled image sets from any `datasets` data set, or any sequence.

    Args:
        task: "classification", "segmentation" or "change".
        train: Examples to learn from: a data set with a length, such as `datasets.Dataset`, or an iterable, which is
            kept in memory.
        validation: Examples to choose the best epoch by.
        mapping: From an example to an image set and its label: the name of a class or its number, a list of names, a
            float or a list of floats (regression), or (height, width) classes on the anchor's pixels, an array or lists
            of lists, `IGNORED` (255) where there is none. It is called for every example once for the label, and again
            when the images are used.
        classes: Names of all classes; None takes those found in the training part.
        test: Examples for the scores to tell of; None if there are none.

    Raises:
        ValueError: As `read_labelled`.
    """
    found = []
    for split, examples in zip(SPLITS, (train, validation, () if test is None else test), strict=True):
        examples = examples if hasattr(examples, "__getitem__") and hasattr(examples, "__len__") else list(examples)
        if not len(examples) and split != "test":
            raise ValueError(f"There are no examples for {split}; give some.")
        for index in range(len(examples)):
            image_set, label = mapping(examples[index])
            name = image_set.name or f"{split} {index}"
            if task != CLASSIFICATION:
                label = _mask_of(label, name)
            found.append(LabelledFiles(name, partial(_mapped, mapping, examples, index), label, split))
    return assemble(task, found, classes, 0.0, 0)


def _mask_of(label: Any, name: str) -> Any:
    """Return (height, width) numbers, an array or lists of lists, as a mask; what is none of these as it is."""
    try:
        values = np.asarray(label)
    except ValueError:  # of rows of unequal lengths
        return label
    if values.ndim != 2 or values.dtype.kind not in "biuf":
        return label
    return mask_of(values, [IGNORED], name)


def _mapped(mapping: Callable[[Any], tuple[ImageSet, Any]], examples: Any, index: int) -> ImageSet:
    """Return the image set of an example."""
    return mapping(examples[index])[0]


def _holds_shards(task: str, path: Path, patterns: Sequence[str | None]) -> bool:
    """Return whether a folder is one of shards; of maps only where no images and masks are named, or lie as usual."""
    if task != CLASSIFICATION:
        if any(patterns) or any(folder.is_dir() for folder in (path / "masks", *path.glob("*/masks"))):
            return False
    return next(path.glob("**/*.parquet"), None) is not None


def _from_shards(task: str, path: Path, ignore: Sequence[float]) -> list[LabelledFiles]:
    """Return the labelled sets of STSSD shards; they stay in memory."""
    from a2mae_hub.stssd.schema import from_row
    from a2mae_hub.stssd.stream import load

    found = []
    column = "label" if task == CLASSIFICATION else "mask"
    for row in load(path):
        label = row.get(column)
        if label is None:
            raise ValueError(
                f"{path}: the set {row['id']} has no {column}; give the shards a column '{column}' without gaps."
            )
        row["anchor"] = 0  # a stream draws one anew for every epoch
        if task != CLASSIFICATION:
            height, width = row["images"][0]["pixels"].shape[1:]
            label = stored_mask(label, (height, width), f"{path}: the set {row['id']}", ignore)
        found.append(LabelledFiles(row["id"], partial(from_row, row), label, split_named(row["split"] or "")))
    return found


def assemble(
    task: str,
    found: Sequence[LabelledFiles],
    classes: Sequence[str] | Mapping[int, str] | None,
    validation: float,
    seed: int,
) -> LabelledData:
    """Split what was found, and turn its labels into numbers.

    Raises:
        ValueError: As `read_labelled`.
    """
    if not found:
        raise ValueError("There are no labelled images; give some to learn from.")
    check_names(classes)
    problem = problem_of(task, found, classes)
    splits = _splits(found, problem, validation, seed)
    for split in sorted(set(splits)):
        labels = [one.label for one, own in zip(found, splits, strict=True) if own == split]
        if task != CLASSIFICATION and not any(label.known.any() for label in labels):
            raise ValueError(f"No pixel of the masks for {split} has a label; give some, or leave these masks out.")
        if problem == MULTI and not any(keys_of(label) for label in labels):
            raise ValueError(f"No set for {split} is of any class; give some that are, or split in another way.")
    names, numbers = encode_labels(problem, found, splits == "train", classes, change=task == CHANGE)
    every = LabelledSets([one.name for one in found], [one.read for one in found], numbers)
    parts = {split: every.select(np.flatnonzero(splits == split)) for split in SPLITS}
    return LabelledData(task, problem, names, parts["train"], parts["validation"], parts["test"] or None)


def _splits(found: Sequence[LabelledFiles], problem: str, share: float, seed: int) -> np.ndarray:
    """Return the part of every set, (N,) texts: as the files say; validation, if none say it, a share of each class."""
    told = [one.split for one in found]
    if any(told) and not all(told):
        unsure = found[told.index(None)].name
        raise ValueError(f"{unsure}: is of no split while others are; say 'train', 'validation' or 'test' of all.")
    splits = np.array([split or "train" for split in told], dtype=f"<U{max(map(len, SPLITS))}")
    if "validation" not in told:
        if not 0 < share < 1:
            raise ValueError(f"validation={share} must be a share of the sets, between 0 and 1.")
        generator = np.random.default_rng(seed)
        labels = [str(one.label) if problem == SINGLE and not isinstance(one.label, Mask) else "" for one in found]
        classes = [keys_of(one.label) if problem != REGRESSION else set() for one in found]
        to_draw_from = np.flatnonzero(splits == "train").tolist()
        left = Counter(key for index in to_draw_from for key in classes[index])
        for label in sorted({labels[index] for index in to_draw_from}):
            members = generator.permutation([index for index in to_draw_from if labels[index] == label])
            # One at least of each class is for each part, as long as there are two.
            count = min(max(1, round(share * len(members))), len(members) - 1)
            for index in members.tolist():
                # What alone shows a class is learnt from.
                if count and all(left[key] > 1 for key in classes[index]):
                    splits[index], count = "validation", count - 1
                    left.subtract(classes[index])
    for part in ("train", "validation"):
        if part not in splits:
            raise ValueError(f"No set of {len(found)} is for {part}; give more images, or split them yourself.")
    return splits
