"""Figures show every set, image and value once, where it belongs."""

import sys
from collections import Counter

import numpy as np
import pytest

from a2mae_hub.modeling.sensors_a2mae import get_sensor
from a2mae_hub.stssd import figures
from a2mae_hub.stssd.figures import plot_histograms, plot_inspection, plot_prune
from a2mae_hub.stssd.prune import Cluster, Duplicate, PruneReport
from a2mae_hub.stssd.statistics import BandStatistics, Statistics

pytest.importorskip("matplotlib", reason="figures need the extra [plot]")
UNKNOWN = (np.nan, np.nan)


@pytest.fixture
def drawn(monkeypatch):
    """The figure that was drawn last, in place of its file."""
    kept = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: kept.append(figure) or path)
    return lambda: kept[-1]


def some_statistics(
    places=((9.0, 48.0), (10.0, 47.0), (-70.0, -10.0), UNKNOWN), kinds=("grid", "grid", "city", "grid")
):
    statistics = Statistics("some")
    statistics.kinds, statistics.splits = list(kinds), ["train"] * len(kinds)
    statistics.places = np.array(places, float)
    statistics.images.update({("naip", "observed"): 3, ("hls", "observed"): 5, ("hls", "derived"): 4})
    statistics.months.update(
        {("naip", "2019-11"): 3, ("hls", "2019-11"): 2, ("hls", "2020-02"): 6, ("hls", "unknown"): 1}
    )
    return statistics


def with_values(*sensors):
    statistics = some_statistics()
    rng = np.random.default_rng(0)
    for name in sensors:
        sensor = get_sensor(name)
        statistics.values[name] = {}
        for band in sensor.bands:
            of = BandStatistics.of_band(band, sensor.unit)
            values = np.clip(np.rint(rng.normal(band.mean, band.std, 5000) * 1e4) / 1e4, *band.valid_range)
            of.add(values, np.ones(5000, np.int64))
            statistics.values[name][band.name] = of
    return statistics


def report(sizes=(9, 5, 2), kept=(3, 3, 2), hard=(1, 0, 1)):
    groups = zip(sizes, kept, hard, strict=True)
    return PruneReport(
        before=20,
        after=sum(kept),
        keep=8,
        hard_share=0.2,
        seed=0,
        features="spectral statistics",
        kinds={"grid": (20, 8)},
        splits={"train": (20, 8)},
        clusters=tuple(Cluster(size, keeps, keeps, few, 0.5, 0.5) for size, keeps, few in groups),
        duplicates=tuple(Duplicate(f"{n}", "x", rule) for n, rule in enumerate(["pixels"] * 3 + ["features"])),
    )


def dots(axes):
    """Per label, the places that are drawn on a map."""
    return {str(dot.get_label()): np.asarray(dot.get_offsets()).tolist() for dot in axes.collections}


# ----------------------------------------------------------------------------------------------------------- inspection


def test_every_known_place_is_on_the_map_by_its_kind(drawn):
    plot_inspection(some_statistics(), "x.png")
    axes = drawn().axes[0]
    assert dots(axes) == {"grid (3)": [[9.0, 48.0], [10.0, 47.0]], "city (1)": [[-70.0, -10.0]]}
    assert "sets at unknown places: 1" in [text.get_text() for text in axes.texts]


@pytest.mark.parametrize(
    "places",
    [
        [(9.0, 48.0)],
        [(9.0, 48.0), (9.01, 48.005)],
        [(-179.9, -16.0), (179.9, -17.0)],
        [(179.0, -40.0), (178.0, 40.0)],
        [(0.0, 89.9), (90.0, 89.0)],
        [(-180.0, -90.0), (180.0, 90.0)],
        [(5.0, y) for y in range(-80, 81, 10)],
        [(x, 60.0) for x in range(-170, 171, 10)],
    ],
    ids=["one", "near", "antimeridian", "edge", "pole", "world", "meridian", "parallel"],
)
def test_the_map_holds_every_place_and_stays_on_the_globe_in_longitude(drawn, places):
    plot_inspection(some_statistics(places, ["grid"] * len(places)), "x.png")
    axes = drawn().axes[0]
    (west, east), (south, north) = axes.get_xlim(), axes.get_ylim()
    assert all(west <= x <= east and south <= y <= north for x, y in places)
    assert -180 <= west and east <= 180
    drawn().draw_without_rendering()
    ticks = [text.get_text() for text in axes.get_xticklabels() if text.get_text()]
    assert 2 <= len(ticks) == len(set(ticks))


def test_a_degree_east_is_as_long_as_it_is_at_that_latitude(drawn):
    plot_inspection(some_statistics([(9.0, 60.0), (9.2, 60.1)], ["grid"] * 2), "x.png")
    axes = drawn().axes[0]
    (west, east), (south, north) = axes.get_xlim(), axes.get_ylim()
    box = axes.get_position()
    width, height = box.width * drawn().get_figwidth(), box.height * drawn().get_figheight()
    assert (width / (east - west)) / (height / (north - south)) == pytest.approx(0.5, abs=0.01)


def test_months_between_the_first_and_the_last_are_drawn_and_hold_the_images_of_every_sensor(drawn):
    plot_inspection(some_statistics(), "x.png")
    axes = drawn().axes[1]
    hls, naip = ([bar.get_height() for bar in bars] for bars in axes.containers)
    assert hls == [2, 0, 0, 6] and naip == [3, 0, 0, 0]  # November to February
    assert [bar.get_y() for bar in axes.containers[1]] == [2, 0, 0, 6]
    assert axes.get_title(loc="left") == "images by month (1 of unknown time)"


def test_images_of_every_sensor_are_told_observed_or_derived(drawn):
    plot_inspection(some_statistics(), "x.png")
    axes = drawn().axes[2]
    bars = [(bar.get_x(), bar.get_width(), bool(bar.get_hatch())) for bars in axes.containers for bar in bars]
    assert bars == [(0, 5, False), (5, 4, True), (0, 3, False), (3, 0, True)]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["hls", "naip"]


def test_more_sensors_than_colours_are_grey_and_none_has_the_colour_of_another():
    names = [f"sensor-{number}" for number in range(12)]
    colours = Counter(figures._sensor_hue(name, names) for name in names)
    assert sorted(colours.values()) == [1] * 8 + [4]


def test_nothing_known_is_drawn_as_nothing(drawn):
    statistics = some_statistics([UNKNOWN, UNKNOWN], ["grid"] * 2)
    statistics.months.clear()
    plot_inspection(statistics, "x.png")
    assert dots(drawn().axes[0]) == {"grid (2)": []}
    assert not drawn().axes[1].containers


# ----------------------------------------------------------------------------------------------------------- histograms


def test_every_band_has_its_histogram_mean_and_spread_beside_those_of_the_registry(drawn):
    statistics = with_values("naip", "sentinel-2-l2a")
    plot_histograms(statistics, "x.png")
    for axes, (name, bands) in zip(drawn().axes, statistics.values.items(), strict=True):
        assert axes.get_title(loc="left") == name
        assert len(axes.patches) == len(bands) == len(axes.get_yticks())
        for row, (band, of) in enumerate(bands.items()):
            base = len(bands) - 1 - row
            facts = get_sensor(name).find(band)
            lines = [
                line
                for line in axes.lines
                if base - 0.2 < line.get_ydata()[0] < base + 0.2 and line.get_marker() == "o"
            ]
            assert [line.get_xdata()[0] for line in lines] == pytest.approx([of.mean, facts.mean])
            edges = axes.patches[row].get_data().edges
            assert edges[0] == pytest.approx(of.edges[0]) and edges[-1] >= of.edges[1] - 1e-9


def test_shown_bins_join_whole_ones_and_lose_no_value(drawn):
    of = next(iter(with_values("sentinel-2-l2a").values["sentinel-2-l2a"].values()))
    low, high = figures._shown_range([of])
    edges, counts = figures._rebinned(of, low, high)
    assert counts.sum() == of.histogram.sum() and len(edges) == len(counts) + 1
    inside = of.histogram[(np.linspace(*of.edges, 1101)[:-1] > low) & (np.linspace(*of.edges, 1101)[1:] < high)]
    assert inside.sum() >= 0.99 * of.count
    wide = figures._rebinned(of, *of.edges)
    assert len(wide[1]) <= 200 and wide[1].sum() == of.histogram.sum()


def test_bands_without_a_value_are_left_out(drawn):
    statistics = with_values("naip")
    statistics.values["naip"]["nir"] = BandStatistics.of_band(get_sensor("naip").find("nir"), "DN")
    statistics.values["hls"] = {"red": BandStatistics.of_band(get_sensor("hls").find("red"), "reflectance")}
    plot_histograms(statistics, "x.png")
    (axes,) = drawn().axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["red", "green", "blue"]


def test_visible_bands_have_the_colour_the_eye_has_of_them():
    colours = {name: figures._wavelength_colour(nm) for name, nm in (("blue", 480), ("green", 550), ("red", 660))}
    for channel, name in enumerate(("red", "green", "blue")):
        assert int(np.argmax(colours[name])) == channel


# --------------------------------------------------------------------------------------------------------------- prune


def pruned(count=20, kept=8, hard=2):
    rng = np.random.default_rng(0)
    places = np.c_[rng.uniform(-100, 100, count), rng.uniform(-50, 60, count)]
    places[0] = np.nan
    is_kept, is_hard = np.arange(count) < kept, np.arange(count) < hard
    return {"places": places, "heterogeneity": rng.gamma(2, 0.3, count), "kept": is_kept, "hard": is_hard}


def test_bars_are_the_sets_of_every_cluster_and_what_it_keeps(drawn):
    plot_prune("x.png", report(), **pruned())
    heights = [[bar.get_height() for bar in bars] for bars in drawn().axes[0].containers]
    assert heights == [[9, 5, 2], [3, 3, 2], [1, 0, 1]]


def test_every_set_is_on_the_map_once_as_kept_or_left_out(drawn):
    facts = pruned()
    plot_prune("x.png", report(), **facts)
    found = dots(drawn().axes[2])
    assert list(found) == ["left out (12)", "kept (6)", "kept for low heterogeneity (2)"]
    assert found["left out (12)"] == facts["places"][8:].tolist()
    assert found["kept for low heterogeneity (2)"] == facts["places"][1:2].tolist()  # the first is at an unknown place


def test_heterogeneity_before_and_after_counts_every_set(drawn):
    facts = pruned()
    facts["heterogeneity"][3] = np.nan
    plot_prune("x.png", report(), **facts)
    before, after = (patch.get_data().values for patch in drawn().axes[1].patches)
    assert before.sum() == 19 and after.sum() == 7 and (after <= before).all()


def test_the_heading_tells_how_many_were_kept_and_left_out_as_repeats(drawn):
    plot_prune("x.png", report(), **pruned())
    texts = [text.get_text() for text in drawn().texts]
    assert texts == ["8 of 20 image sets kept", "3 equal and 1 near-duplicate sets left out before"]


# --------------------------------------------------------------------------------------------------------------- files


def test_figures_are_written_whole_and_the_same_again(tmp_path):
    image_files = pytest.importorskip("matplotlib.image")
    for number in range(2):
        plot_inspection(some_statistics(), tmp_path / f"inspect-{number}.png")
        plot_histograms(with_values("naip"), tmp_path / f"histograms-{number}.png")
        plot_prune(tmp_path / f"prune-{number}.png", report(), **pruned())
    assert len(list(tmp_path.iterdir())) == 6
    for name in ("inspect", "histograms", "prune"):
        assert (tmp_path / f"{name}-0.png").read_bytes() == (tmp_path / f"{name}-1.png").read_bytes()
        picture = image_files.imread(tmp_path / f"{name}-0.png")
        assert 0.02 < (picture[..., :3] < 0.99).any(axis=-1).mean() < 0.6


def test_without_matplotlib_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"a2mae-hub\[plot\]"):
        plot_inspection(some_statistics(), tmp_path / "x.png")
