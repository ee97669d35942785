"""Figures: what went into the model, what it saw, what it drew, and how far off it was.

Needs matplotlib (`pip install a2mae-hub[plot]`), which is imported only when a figure is drawn. Figures are made
without pyplot, so nothing global changes and no display is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .images import Image, ImageSet
from .modeling.sensors_a2mae import Sensor, get_sensor
from .whole_files import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DOTS_PER_INCH = 150
_PANEL_INCHES = 1.9
_HIDDEN_GREY = 0.72
_NODATA_GREY = 0.92
_GAMMA = 0.8
UNIT_LABELS = {"reflectance": "reflectance", "DN": "digital numbers", "dB": "dB"}
# Near infrared goes by two STAC names, of a broad and of a narrow band.
_TRUE_COLOUR = (("red",), ("green", "green05"), ("blue", "coastal"))
_FALSE_COLOUR = (("nir", "nir08", "nir09"), ("red",), ("green", "green05"))


def display_bands(band_names: Sequence[str], sensor: str | Sensor) -> list[int]:
    """Return which bands to show as red, green and blue.

    Args:
        band_names: Own or common names of the bands of an image, in order.
        sensor: The sensor or its name in the registry.

    Returns:
        Positions of red, green and blue; else of near infrared, red and green; else three times the first band.

    Raises:
        ValueError: If there is no band, or the sensor has no band of such a name.
    """
    if not band_names:
        raise ValueError("There is no band to show: pass an image of at least one band.")
    known = get_sensor(sensor) if isinstance(sensor, str) else sensor
    position = {known.find(name).common_name: index for index, name in reversed(list(enumerate(band_names)))}
    for wanted in (_TRUE_COLOUR, _FALSE_COLOUR):
        found = [next((position[name] for name in names if name in position), None) for names in wanted]
        if None not in found:
            return [index for index in found if index is not None]
    return [0, 0, 0]


def stretch_limits(pixels: np.ndarray) -> np.ndarray:
    """Return the 2nd and 98th percentile of every band, between which it is shown.

    Args:
        pixels: (bands, height, width) values, NaN where there is none.

    Returns:
        (bands, 2) float64; 0 and 1 where a band has no value.
    """
    limits = np.tile([0.0, 1.0], (len(pixels), 1))
    for band, values in enumerate(pixels):
        real = values[np.isfinite(values)]
        if real.size:
            limits[band] = np.percentile(real, (2, 98))
    return limits


def composite(
    pixels: np.ndarray, band_names: Sequence[str], sensor: str | Sensor, *, limits: np.ndarray | None = None
) -> np.ndarray:
    """Return an image to look at: true colour, else false colour (near infrared, red, green), else grey.

    Values are stretched linearly between the limits, then lifted by a gamma so that woods do not drown in black. In
    true colour the three bands share one stretch, from the lowest limit to the highest, so that grey looks grey.

    Args:
        pixels: (bands, height, width) physical values, NaN where there is none.
        band_names: Own or common names of the bands, in order.
        sensor: The sensor or its name in the registry.
        limits: (bands, 2) values shown as black and as full brightness, to show several images alike; None takes the
            2nd and 98th percentile of this one.

    Returns:
        (height, width, 3) float64 from 0 to 1; light grey where a shown band has no value.

    Raises:
        ValueError: If the number of names is not the number of bands, or the sensor has no band of such a name.
    """
    if pixels.ndim != 3 or len(pixels) != len(band_names):
        raise ValueError(
            f"An array of shape {pixels.shape} cannot be shown with {len(band_names)} band names: pass (bands, height, "
            "width) and one name per band."
        )
    shown = display_bands(band_names, sensor)
    first = (get_sensor(sensor) if isinstance(sensor, str) else sensor).find(band_names[shown[0]])
    low, high = (stretch_limits(pixels) if limits is None else np.asarray(limits, float))[shown].T[:, :, None, None]
    if first.common_name == "red":
        low, high = low.min(keepdims=True), high.max(keepdims=True)
    values = pixels[shown].astype(float)
    # A band of one value everywhere is shown as a grey.
    scaled = np.where(high > low, (values - low) / np.where(high > low, high - low, 1), 0.5)
    missing = ~np.isfinite(values).all(axis=0)
    return np.where(missing[..., None], _NODATA_GREY, np.clip(scaled, 0, 1).transpose(1, 2, 0) ** _GAMMA)


def physical_pixels(image: Image) -> np.ndarray:
    """Return stored pixels × scale + offset with NaN where there is no data: (bands, height, width) float32.

    Args:
        image: The image; its own scale and offset go before the sensor's.

    Raises:
        ValueError: If the sensor is unknown.
    """
    sensor = get_sensor(image.sensor)
    scale = sensor.scale if image.scale is None else image.scale
    offset = sensor.offset if image.offset is None else image.offset
    values = image.pixels * np.reshape(np.asarray(scale, float), (-1, 1, 1)) + np.reshape(
        np.asarray(offset, float), (-1, 1, 1)
    )
    if image.nodata is not None:
        values[image.pixels == image.nodata] = np.nan
    if image.valid is not None:
        values[~np.broadcast_to(image.valid, values.shape)] = np.nan
    return values.astype(np.float32)


def plot_reconstruction(
    image_set: ImageSet,
    reconstructions: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    path: str | Path,
    *,
    title: str | None = None,
) -> Path:
    """Draw input, visible part, reconstruction and error of every image of a set, one image a row.

    Input and reconstruction, and all images of one sensor, share one stretch, so that they compare: the median over
    these images, which a cloudy date among others does not move. The error is the absolute difference, mean over bands,
    on one colour scale for all images of a unit.

    Args:
        image_set: The images.
        reconstructions: Per image (bands, height, width) physical values, NaN where there is none.
        masks: Per image (height, width) bool, True where the model did not see the pixel.
        path: File to write; its suffix (.png, .pdf, .svg) sets the format.
        title: Line above the figure.

    Returns:
        The path.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there is not one reconstruction and one mask of the right shape for every image.
    """
    _check_rows(image_set, reconstructions, masks)
    inputs = [physical_pixels(image) for image in image_set]
    sensors = [get_sensor(image.sensor) for image in image_set]
    errors = [_mean_over_bands(np.abs(given - drawn)) for given, drawn in zip(inputs, reconstructions, strict=True)]
    units = [sensor.unit for sensor in sensors]
    ceilings = {unit: _ceiling([e for e, u in zip(errors, units, strict=True) if u == unit]) for unit in set(units)}

    stretches = _shared_limits(image_set, inputs)

    rows = len(image_set)
    anchor_height, anchor_width = image_set[image_set.anchor].pixels.shape[1:]
    row_inches = _PANEL_INCHES * float(np.clip(anchor_height / anchor_width, 0.4, 1.5))
    label_inches, bar_inches, head_inches = 1.25, 0.85, 0.62 if title else 0.32
    width = label_inches + 4 * _PANEL_INCHES + bar_inches
    height = head_inches + rows * row_inches + 0.08
    figure = new_figure(width, height)
    if title:
        figure.text(0.5, 1 - 0.2 / height, title, ha="center", va="center", fontsize=10)

    def panel(row: int, column: int) -> Axes:
        """Add the axes of one panel, of one size whatever the image."""
        left, top = label_inches + column * _PANEL_INCHES, head_inches + row * row_inches
        across, down = _PANEL_INCHES - 0.06, row_inches - 0.06
        return figure.add_axes((left / width, 1 - (top + down) / height, across / width, down / height))

    for row, (image, sensor) in enumerate(zip(image_set, sensors, strict=True)):
        seen = composite(inputs[row], image.bands, sensor, limits=stretches[row])
        drawn = composite(np.asarray(reconstructions[row]), image.bands, sensor, limits=stretches[row])
        hidden = np.asarray(masks[row], bool)[..., None]
        for column, shown in enumerate((seen, np.where(hidden, _HIDDEN_GREY, seen), drawn)):
            _show(panel(row, column), shown)
        axes = panel(row, 3)
        mappable = _show(axes, errors[row], cmap="magma", vmin=0, vmax=ceilings[sensor.unit])
        top = head_inches + row * row_inches
        figure.text(
            (label_inches - 0.08) / width,
            1 - (top + (row_inches - 0.06) / 2) / height,
            _row_label(image_set, row),
            ha="right",
            va="center",
            fontsize=7,
            linespacing=1.5,
        )
        # One colour bar for neighbouring rows of one unit.
        if row + 1 < rows and units[row + 1] == units[row]:
            continue
        first = next(r for r in range(row, -1, -1) if r == 0 or units[r - 1] != units[row])
        span = (row - first + 1) * row_inches - 0.06
        bar = figure.add_axes(
            ((width - bar_inches + 0.06) / width, 1 - (top + row_inches - 0.06) / height, 0.1 / width, span / height)
        )
        figure.colorbar(mappable, cax=bar, extend="max").ax.tick_params(labelsize=6, length=2, width=0.5)
        bar.set_ylabel(f"absolute error, {UNIT_LABELS[units[row]]}", fontsize=7)
    for column, text in enumerate(("input", "visible to the model", "reconstruction", "absolute error")):
        x = label_inches + (column + 0.5) * _PANEL_INCHES - 0.03
        figure.text(x / width, 1 - (head_inches - 0.07) / height, text, ha="center", va="bottom", fontsize=8)
    return save_figure(figure, path)


def plot_embedding(
    feature_map: np.ndarray, path: str | Path, *, background: np.ndarray | None = None, title: str | None = None
) -> Path:
    """Draw a feature map as the colours of its first three principal components, beside a composite if there is one.

    Args:
        feature_map: (features, height, width), NaN where there is none.
        path: File to write; its suffix sets the format.
        background: (height, width, 3) from 0 to 1, any size, as `composite` returns it.
        title: Line above the figure.

    Returns:
        The path.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the feature map is not three-dimensional or has no finite place.
    """
    colours = principal_colours(feature_map)
    panels = [("principal components 1 to 3", colours)]
    if background is not None:
        panels.insert(0, ("image", background))
    side, head = 3.2, 0.65 if title else 0.35
    width, height = len(panels) * side, head + side
    figure = new_figure(width, height)
    if title:
        figure.text(0.5, 1 - 0.2 / height, title, ha="center", va="center", fontsize=10)
    for column, (text, shown) in enumerate(panels):
        inner = side - 0.1
        _show(figure.add_axes(((column * side + 0.05) / width, 0.05 / height, inner / width, inner / height)), shown)
        figure.text((column + 0.5) / len(panels), 1 - (head - 0.1) / height, text, ha="center", va="bottom", fontsize=8)
    return save_figure(figure, path)


def principal_colours(feature_map: np.ndarray) -> np.ndarray:
    """Return the first three principal components of a feature map as red, green and blue.

    Args:
        feature_map: (features, height, width), NaN where there is none.

    Returns:
        (height, width, 3) float64 from 0 to 1, every component between its 2nd and 98th percentile; mid-grey where a
        component does not vary or does not exist, light grey where there are no features.

    Raises:
        ValueError: If the feature map is not three-dimensional or has no finite place.
    """
    if feature_map.ndim != 3:
        raise ValueError(f"A feature map of shape {feature_map.shape} cannot be drawn: pass (features, height, width).")
    features, height, width = feature_map.shape
    vectors = feature_map.reshape(features, -1).T.astype(float)
    real = np.isfinite(vectors).all(axis=1)
    if not real.any():
        raise ValueError("The feature map has no place where all features are finite: there is nothing to draw.")
    centred = vectors[real] - vectors[real].mean(axis=0)
    _, strength, axes = np.linalg.svd(centred, full_matrices=False)
    # The sign of a component is arbitrary: the largest weight is made positive, so that equal maps get equal colours.
    axes = axes[:3] * np.sign(axes[np.arange(len(axes[:3])), np.abs(axes[:3]).argmax(axis=1)])[:, None]
    components = np.zeros((len(centred), 3))
    components[:, : len(axes)] = centred @ axes.T
    low, high = np.percentile(components, (2, 98), axis=0)
    varies = high - low > 1e-9 * max(strength[0], 1e-300)
    colours = np.full((height * width, 3), _NODATA_GREY)
    colours[real] = np.where(varies, np.clip((components - low) / np.where(varies, high - low, 1), 0, 1), 0.5)
    return colours.reshape(height, width, 3)


def _check_rows(image_set: ImageSet, reconstructions: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> None:
    """Raise ValueError unless every image has a reconstruction of its shape and a mask of its grid."""
    if not len(image_set) == len(reconstructions) == len(masks) or not len(image_set):
        raise ValueError(
            f"{len(image_set)} images, {len(reconstructions)} reconstructions and {len(masks)} masks do not make a "
            "figure: pass at least one image, and one reconstruction and one mask for each."
        )
    for index, (image, drawn, mask) in enumerate(zip(image_set, reconstructions, masks, strict=True)):
        if drawn.shape != image.pixels.shape or mask.shape != image.pixels.shape[1:]:
            raise ValueError(
                f"Image {index} of shape {image.pixels.shape} got a reconstruction of shape {drawn.shape} and a mask "
                f"of shape {mask.shape}: pass (bands, height, width) and (height, width) on the image's own grid."
            )


def _shared_limits(image_set: ImageSet, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the stretch of every image (bands, 2): the median over the images of its sensor and bands."""
    kinds = [(image.sensor, *image.bands) for image in image_set]
    own = [stretch_limits(pixels) for pixels in inputs]
    return [np.median([one for one, other in zip(own, kinds, strict=True) if other == kind], axis=0) for kind in kinds]


def _mean_over_bands(errors: np.ndarray) -> np.ndarray:
    """Return the mean over the bands that have a value: (h, w), NaN where none has."""
    real = np.isfinite(errors)
    count = real.sum(axis=0)
    return np.where(count > 0, np.where(real, errors, 0).sum(axis=0) / np.maximum(count, 1), np.nan)


def _ceiling(errors: Sequence[np.ndarray]) -> float:
    """Return the end of the colour scale of error maps, the median of their 98th percentiles; never 0."""
    ends = [np.percentile(error[np.isfinite(error)], 98) for error in errors if np.isfinite(error).any()]
    return max(float(np.median(ends)), 1e-6) if ends else 1.0


def _row_label(image_set: ImageSet, row: int) -> str:
    """Return sensor, date, ground resolution and role of an image, a line each."""
    image = image_set[row]
    resolution = image.ground_resolution()
    lines = [
        image.sensor,
        f"{image.acquired:%Y-%m-%d}" if image.acquired else "unknown date",
        f"{resolution:.3g} m" if resolution is not None else "",
        "anchor" if row == image_set.anchor else "",
    ]
    return "\n".join(line for line in lines if line)


def _show(axes: Axes, picture: np.ndarray, **options: Any) -> Any:
    """Show a picture in axes without ticks, with a thin frame; return what a colour bar needs."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_facecolor((_NODATA_GREY,) * 3)
    for spine in axes.spines.values():
        spine.set(linewidth=0.4, color="0.5")
    return axes.imshow(picture, interpolation="nearest", **options)


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches; raise ImportError naming the extra where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Figures need matplotlib: pip install a2mae-hub[plot].") from error
    return Figure(figsize=(width, height), dpi=_DOTS_PER_INCH, facecolor="white")


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write the figure under a temporary name, then move it into place, so that no half-written file is left."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as unfinished:
        figure.savefig(unfinished, dpi=_DOTS_PER_INCH)
    return path
