"""Figures of a data set: where and when its images were taken, what values they have, and what a pruning kept.

Needs matplotlib, which is imported only when a figure is drawn.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from a2mae_hub.modeling.sensors_a2mae import Sensor, get_sensor
from a2mae_hub.plotting import UNIT_LABELS, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .prune import PruneReport
    from .statistics import BandStatistics, Statistics

# Told apart by colour-blind readers too: Okabe & Ito 2008 for kinds, Tol 2021 (muted) for sensors.
_KIND_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
_SENSOR_COLOURS = ("#332288", "#44AA99", "#CC6677", "#DDCC77", "#88CCEE", "#AA4499", "#117733", "#999933")
_INK, _LIGHT, _RULE = "0.25", "0.85", "0.88"
_LEFT_OUT, _KEPT, _HARD = "0.72", "#0072B2", "#E69F00"
# Bands as the eye has them, and beyond it from dark red to brown: wavelength in nanometres and colour.
_SPECTRUM = (
    (430, "#5b3fa8"),
    (490, "#2f6fd0"),
    (560, "#3a9a45"),
    (610, "#c9a227"),
    (660, "#d1352b"),
    (740, "#a31f3d"),
    (860, "#7a1b45"),
    (1000, "#5c2a4d"),
    (1400, "#8a8a8a"),
    (1610, "#b0703c"),
    (2200, "#7d5a3c"),
)
_HISTOGRAM_STEPS = 160
_MOST_TICKS = 12


def plot_inspection(statistics: Statistics, path: str | Path) -> Path:
    """Draw where the sets lie, in which months their images were taken, and by which sensors.

    Args:
        statistics: As `a2mae_hub.stssd.statistics.inspect` returns them.
        path: File to write; its suffix (.png, .pdf, .svg) sets the format.

    Returns:
        The path.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    counts = Counter(statistics.kinds)
    kinds = [kind for kind, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    sensors = _by_count(statistics)
    width, height = 9.0, 7.4
    figure = new_figure(width, height)
    images = statistics.images.total()
    figure.text(0.07, 0.965, statistics.name, fontsize=11, weight="bold", va="center")
    text = f"{len(statistics):,} image sets, {images:,} images"
    figure.text(0.97, 0.965, text, fontsize=9, va="center", ha="right", color=_INK)

    known = np.isfinite(statistics.places).all(axis=1)
    drawn = np.array(statistics.kinds)
    axes = _map(figure, (0.07, 0.44, 0.9, 0.48), statistics.places[known])
    for kind in kinds:
        here = statistics.places[known & (drawn == kind)]
        _scatter(axes, here, known.sum(), _kind_hue(kind, kinds), f"{kind} ({counts[kind]:,})")
    _legend(axes, ncols=len(kinds))
    if not known.all():
        text = f"sets at unknown places: {(~known).sum():,}"
        axes.text(0.995, 0.02, text, transform=axes.transAxes, fontsize=7, ha="right", color=_INK)
    _draw_months(figure.add_axes((0.07, 0.075, 0.51, 0.265)), statistics, sensors)
    _draw_sensors(figure.add_axes((0.745, 0.075, 0.225, 0.265)), statistics, sensors)
    return save_figure(figure, path)


def plot_histograms(statistics: Statistics, path: str | Path) -> Path:
    """Draw the values of every band of every sensor, with the measured mean and spread and those of the registry.

    Args:
        statistics: As `a2mae_hub.stssd.statistics.inspect` returns them.
        path: File to write; its suffix sets the format.

    Returns:
        The path.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    sensors = [name for name in statistics.values if any(band.count for band in statistics.values[name].values())]
    columns = min(3, max(1, len(sensors)))
    rows = max(1, math.ceil(len(sensors) / columns))
    most = [
        max((len(statistics.values[name]) for name in sensors[row * columns : (row + 1) * columns]), default=1)
        for row in range(rows)
    ]
    panel, band_inches, head, foot, top = 3.4, 0.34, 0.42, 0.5, 0.4
    heights = [head + max(count, 3) * band_inches + foot for count in most]
    width, height = columns * panel + 0.2, top + sum(heights)
    figure = new_figure(width, height)
    figure.text(0.12 / width, 1 - 0.2 / height, statistics.name, fontsize=11, weight="bold", va="center")
    _explain_marks(figure, height)
    above = top
    for row in range(rows):
        for column, name in enumerate(sensors[row * columns : (row + 1) * columns]):
            bands = {band: of for band, of in statistics.values[name].items() if of.count}
            tall = max(len(bands), 1) * band_inches
            axes = figure.add_axes(
                (
                    (column * panel + 1.15) / width,
                    1 - (above + head + tall) / height,
                    (panel - 1.25) / width,
                    tall / height,
                )
            )
            _draw_ridges(axes, get_sensor(name), bands)
        above += heights[row]
    return save_figure(figure, path)


def plot_prune(
    path: str | Path,
    report: PruneReport,
    *,
    places: np.ndarray,
    heterogeneity: np.ndarray,
    kept: np.ndarray,
    hard: np.ndarray,
) -> Path:
    """Draw what a pruning kept: of every cluster, on the map, and by heterogeneity.

    Args:
        path: File to write; its suffix sets the format.
        report: What the pruning did.
        places: (n, 2) longitude and latitude of every set before, NaN where unknown.
        heterogeneity: (n,) of every set before, NaN where unknown.
        kept: (n,) bool, the sets that stay.
        hard: (n,) bool, those of them that stay for being hard.

    Returns:
        The path.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    figure = new_figure(9.0, 6.6)
    easy = kept & ~hard
    marks = [("left out", ~kept, _LEFT_OUT), ("kept", easy, _KEPT), ("kept for low heterogeneity", hard, _HARD)]
    _draw_clusters(figure.add_axes((0.07, 0.61, 0.555, 0.31)), report)
    _draw_heterogeneity(figure.add_axes((0.715, 0.61, 0.26, 0.31)), heterogeneity, kept)
    known = np.isfinite(places).all(axis=1)
    axes = _map(figure, (0.07, 0.06, 0.905, 0.43), places[known])
    for text, chosen, colour in marks:
        here = places[known & chosen]
        _scatter(axes, here, known.sum(), colour, f"{text} ({chosen.sum():,})")
    _legend(axes, ncols=3)
    figure.text(
        0.07, 0.972, f"{report.after:,} of {report.before:,} image sets kept", fontsize=11, weight="bold", va="center"
    )
    rules = Counter(duplicate.rule for duplicate in report.duplicates)
    text = f"{rules['pixels']:,} equal and {rules['features']:,} near-duplicate sets left out before"
    figure.text(0.975, 0.972, text, fontsize=9, va="center", ha="right", color=_INK)
    return save_figure(figure, path)


# --------------------------------------------------------------------------------------------------------------- panels


def _draw_clusters(axes: Axes, report: PruneReport) -> None:
    """Draw how many sets every cluster has and keeps."""
    clusters = report.clusters
    position = np.arange(1, len(clusters) + 1)
    size, keeps, hard = (np.array([getattr(c, what) for c in clusters]) for what in ("size", "kept", "hard"))
    bar: dict[str, Any] = {"width": 0.8 if len(clusters) <= 100 else 1.0}
    axes.bar(position, size, color=_LIGHT, label="in the cluster", **bar)
    axes.bar(position, keeps, color=_KEPT, label="kept", **bar)
    axes.bar(position, hard, color=_HARD, label="kept for low heterogeneity", **bar)
    axes.set_xlim(0.3, len(clusters) + 0.7)
    _whole_ticks(axes.xaxis, 10)
    _whole_ticks(axes.yaxis, 6)
    axes.set_xlabel("cluster, the largest first", fontsize=8)
    axes.set_ylabel("image sets", fontsize=8)
    _plain(axes, grid="y")
    axes.legend(fontsize=7, frameon=False, loc="upper right")


def _draw_heterogeneity(axes: Axes, heterogeneity: np.ndarray, kept: np.ndarray) -> None:
    """Draw the heterogeneity of the sets before and after."""
    known = np.isfinite(heterogeneity)
    high = float(np.percentile(heterogeneity[known], 99.5)) if known.any() else 1.0
    edges = np.linspace(0, max(high, 1e-3), 25)
    before, _ = np.histogram(np.clip(heterogeneity[known], 0, edges[-1]), edges)
    after, _ = np.histogram(np.clip(heterogeneity[known & kept], 0, edges[-1]), edges)
    axes.stairs(before, edges, fill=True, color=_LIGHT, label="before")
    axes.stairs(after, edges, fill=True, color=_KEPT, label="after")
    axes.set_xlim(0, edges[-1])
    axes.set_ylim(0, max(before.max() * 1.12, 1))
    _whole_ticks(axes.yaxis, 6)
    axes.set_xlabel("heterogeneity", fontsize=8)
    axes.set_ylabel("image sets", fontsize=8)
    _plain(axes, grid="y")
    axes.legend(fontsize=7, frameon=False, loc="upper right")


def _draw_months(axes: Axes, statistics: Statistics, sensors: Sequence[str]) -> None:
    """Draw the images of every month, by sensor."""
    dated = sorted({month for _, month in statistics.months if month[:1].isdigit()})
    if dated:
        first, last = (int(month[:4]) * 12 + int(month[5:]) - 1 for month in (dated[0], dated[-1]))
        position = np.arange(first, last + 1)
        height = np.zeros(len(position))
        for sensor in sensors:
            count = np.array([statistics.months[sensor, f"{p // 12:04d}-{p % 12 + 1:02d}"] for p in position])
            axes.bar(position, count, bottom=height, width=0.85, color=_sensor_hue(sensor, sensors))
            height += count
        years = len(position) / 12
        step = next((step for step in (1, 3, 6, 12, 24, 60, 120) if len(position) / step <= _MOST_TICKS), 240)
        ticks = [p for p in position if p % max(step, 1) == 0]
        if step < 12:
            text = [f"{date(p // 12, p % 12 + 1, 1):%b}" for p in ticks]
            text = [f"{t}\n{p // 12}" if p % 12 == 0 or p == ticks[0] else t for t, p in zip(text, ticks, strict=True)]
        else:
            text = [str(p // 12) for p in ticks]
        axes.set_xticks(ticks, text)
        # A single month is no wall.
        margin = max(0.7 + 0.02 * years, 6 - len(position) / 2)
        axes.set_xlim(first - margin, last + margin)
        _whole_ticks(axes.yaxis, 6)
    else:
        axes.set_xticks([])
        axes.set_yticks([])
    undated = sum(count for (_, month), count in statistics.months.items() if not month[:1].isdigit())
    axes.set_title("images by month" + (f" ({undated:,} of unknown time)" if undated else ""), fontsize=8, loc="left")
    _plain(axes, grid="y")


def _draw_sensors(axes: Axes, statistics: Statistics, sensors: Sequence[str]) -> None:
    """Draw the images of every sensor, derived ones hatched."""
    rows = np.arange(len(sensors))[::-1]
    total = 0
    for row, sensor in zip(rows, sensors, strict=True):
        left = 0
        for provenance in ("observed", "derived"):
            count = statistics.images[sensor, provenance]
            colour = _sensor_hue(sensor, sensors)
            filled = provenance == "observed"
            axes.barh(
                row,
                count,
                left=left,
                height=0.62,
                lw=0.8,
                facecolor=colour if filled else "white",
                edgecolor=colour,
                hatch=None if filled else "/////",
            )
            left += count
        axes.text(left, row, f" {left:,}", va="center", fontsize=7, color=_INK)
        total = max(total, left)
    axes.set_yticks(rows, sensors)
    axes.set_ylim(-0.6, max(len(sensors), 3) - 0.4)
    axes.set_xlim(0, total * 1.25)
    _whole_ticks(axes.xaxis, 3)
    has_derived = any(statistics.images[sensor, "derived"] for sensor in sensors)
    axes.set_title("images by sensor" + (", hatched: derived" if has_derived else ""), fontsize=8, loc="left")
    _plain(axes, grid="x")


def _draw_ridges(axes: Axes, sensor: Sensor, bands: dict[str, BandStatistics]) -> None:
    """Draw the histograms of the bands of a sensor above each other, the first band on top."""
    low, high = _shown_range(list(bands.values()))
    for row, (name, of) in enumerate(bands.items()):
        base = len(bands) - 1 - row
        band = sensor.find(name)
        edges, counts = _rebinned(of, low, high)
        colour = _wavelength_colour(band.wavelength)
        # The root lets both a peak and what is rare be seen.
        heights = np.sqrt(counts / max(counts.max(), 1)) * 0.78
        axes.stairs(base + heights, edges, baseline=base, fill=True, color=colour, alpha=0.75, lw=0)
        axes.axhline(base, color=_RULE, lw=0.5, zorder=0)
        axes.plot([of.mean - of.std, of.mean + of.std], [base, base], color="black", lw=1.4, solid_capstyle="butt")
        axes.plot(of.mean, base, "o", color="black", ms=2.6)
        axes.plot([band.mean - band.std, band.mean + band.std], [base - 0.1] * 2, color="0.55", lw=0.8)
        axes.plot(band.mean, base - 0.1, "o", color="0.55", ms=1.8)
    common = [sensor.find(name).common_name for name in bands]
    labels = [
        f"{name}  {other}" if other not in ("", name) else name for name, other in zip(bands, common, strict=True)
    ]
    axes.set_yticks(np.arange(len(bands))[::-1] + 0.2, labels)
    axes.set_ylim(-0.25, len(bands) - 0.1)
    axes.set_xlim(low, high)
    axes.set_title(sensor.name, fontsize=9, loc="left")
    axes.set_xlabel(UNIT_LABELS[sensor.unit], fontsize=8)
    _plain(axes, grid="x")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _explain_marks(figure: Figure, height: float) -> None:
    """Say what the marks under the histograms are."""
    from matplotlib.lines import Line2D

    marks = [
        Line2D([], [], color="black", marker="o", ms=2.6, lw=1.4, label="mean ± standard deviation, measured"),
        Line2D([], [], color="0.55", marker="o", ms=1.8, lw=0.8, label="in the sensor registry"),
        Line2D([], [], lw=0, label="heights: square root of counts"),
    ]
    figure.legend(
        handles=marks, fontsize=7, frameon=False, ncols=3, loc="center right", bbox_to_anchor=(1, 1 - 0.2 / height)
    )


# ---------------------------------------------------------------------------------------------------------------- parts


def _map(figure: Figure, box: tuple[float, float, float, float], places: np.ndarray) -> Axes:
    """Return axes of longitude and latitude with a graticule, true to shape at the middle latitude, that fill a box."""
    from matplotlib.ticker import MultipleLocator

    axes = figure.add_axes(box)
    inches = box[3] * figure.get_figheight() / (box[2] * figure.get_figwidth())
    middle, spans = np.zeros(2), np.array([360.0, 180.0])
    if len(places):
        low, high = places.min(axis=0), places.max(axis=0)
        middle, spans = (low + high) / 2, np.maximum((high - low) * 1.12, 0.02)
    stretch = 1 / max(math.cos(math.radians(middle[1])), 0.2)
    # The box decides which of the two spans is the binding one.
    height = max(spans[1], spans[0] * inches / stretch)
    width = height * stretch / inches
    if width > 360:
        width, height = 360.0, max(spans[1], 360 * inches / stretch)
        middle[0], stretch = 0.0, 360 * inches / height
    west, south = middle - (width / 2, height / 2)
    west = min(max(west, -180.0), 180.0 - width)
    south = min(max(south, -90.0), 90.0 - height) if height <= 180 else -height / 2
    axes.set_xlim(west, west + width)
    axes.set_ylim(south, south + height)
    for axis, extent, letters in ((axes.xaxis, width, "EW"), (axes.yaxis, height, "NS")):
        step = next(
            (s for s in (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30) if extent / s <= 9), 60
        )
        axis.set_major_locator(MultipleLocator(step))
        decimals = max(0, math.ceil(-math.log10(step) - 1e-9))
        axis.set_major_formatter(partial(_degrees, letters=letters, decimals=decimals))
    _plain(axes, grid="both")
    for side in axes.spines.values():
        side.set(visible=True, linewidth=0.5, color="0.6")
    return axes


def _scatter(axes: Axes, places: np.ndarray, total: int, colour: str, label: str) -> None:
    """Draw some of all the places on a map, with dots that are the smaller the more there are."""
    size = float(np.clip(22 * (100 / max(total, 1)) ** 0.4, 1.0, 22.0))
    axes.scatter(places[:, 0], places[:, 1], s=size, color=colour, lw=0.3, edgecolors="white", label=label, zorder=3)


def _degrees(value: float, position: int | None = None, *, letters: str, decimals: int) -> str:
    """Return an angle as text, "9.4° E", as ticks ask for it."""
    text = f"{abs(value):.{decimals}f}°"
    return text if abs(value) < 1e-9 else f"{text} {letters[0] if value > 0 else letters[1]}"


def _plain(axes: Axes, grid: Any) -> None:
    """Give axes small ticks, no frame on two sides, and a pale grid behind."""
    axes.tick_params(labelsize=7, length=2, width=0.5, color="0.5")
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color=_RULE, lw=0.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set(linewidth=0.5, color="0.5")


def _legend(axes: Axes, ncols: int) -> None:
    """Put a legend above the axes, on the left."""
    legend = axes.legend(
        fontsize=8,
        frameon=False,
        ncols=min(ncols, 6),
        loc="lower left",
        bbox_to_anchor=(-0.01, 0.99),
        handletextpad=0.1,
        columnspacing=1.2,
        borderpad=0.2,
    )
    for handle in legend.legend_handles:
        handle.set_sizes([22])  # type: ignore[union-attr]


def _whole_ticks(axis: Any, most: int) -> None:
    """Put some ticks at whole numbers, with commas between thousands."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    axis.set_major_locator(MaxNLocator(nbins=most, integer=True, min_n_ticks=1))
    axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _sensor_hue(sensor: str, sensors: Sequence[str]) -> str:
    """Return the colour of a sensor; grey for all beyond the colours that are told apart."""
    index = list(sensors).index(sensor)
    return _SENSOR_COLOURS[index] if index < len(_SENSOR_COLOURS) else _LEFT_OUT


def _kind_hue(kind: str, kinds: Sequence[str]) -> str:
    """Return the colour of a kind of sets; grey likewise."""
    index = list(kinds).index(kind)
    return _KIND_COLOURS[index] if index < len(_KIND_COLOURS) else _LEFT_OUT


def _by_count(statistics: Statistics) -> list[str]:
    """Return the sensors, that of most images first."""
    counts: Counter[str] = Counter()
    for (sensor, _), count in statistics.images.items():
        counts[sensor] += count
    return sorted(counts, key=lambda sensor: (-counts[sensor], sensor))


def _shown_range(bands: Sequence[BandStatistics]) -> tuple[float, float]:
    """Return the range that holds nearly all values of all bands."""
    lows, highs = [], []
    for of in bands:
        share = np.cumsum(of.histogram) / max(of.histogram.sum(), 1)
        edges = np.linspace(*of.edges, len(of.histogram) + 1)
        lows.append(edges[np.searchsorted(share, 0.001)])
        highs.append(edges[min(int(np.searchsorted(share, 0.995)) + 1, len(of.histogram))])
    margin = 0.03 * (max(highs) - min(lows))
    return min(lows) - margin, max(highs) + margin


def _rebinned(of: BandStatistics, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Return edges and counts of a histogram in bins fit to be seen in a range: whole bins joined."""
    width = (of.edges[1] - of.edges[0]) / len(of.histogram)
    joined = max(1, round((high - low) / width / _HISTOGRAM_STEPS))
    padded = np.pad(of.histogram, (0, -len(of.histogram) % joined))
    counts = padded.reshape(-1, joined).sum(axis=1)
    return of.edges[0] + np.arange(len(counts) + 1) * joined * width, counts


def _wavelength_colour(wavelength: float) -> tuple[float, float, float]:
    """Return the colour of a band, mixed from its neighbours in the table."""
    from matplotlib.colors import to_rgb

    knots, colours = [knot for knot, _ in _SPECTRUM], np.array([to_rgb(colour) for _, colour in _SPECTRUM])
    red, green, blue = (float(np.interp(wavelength, knots, channel)) for channel in colours.T)
    return red, green, blue
