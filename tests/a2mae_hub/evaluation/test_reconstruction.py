"""Errors of reconstructions in physical units, and the guesses that stand beside them."""

import numpy as np
import pytest

from a2mae_hub import A2MAEForPreTraining, Image
from a2mae_hub.evaluation import reconstruction, reconstruction_errors
from a2mae_hub.evaluation.reconstruction import copy_from_nearest_date
from a2mae_hub.inference import Checkpoint
from a2mae_hub.inference import reconstruct as reconstruct_set
from a2mae_hub.plotting import physical_pixels
from a2mae_hub.stssd.schema import StoredSet


def hidden_from(image_set, **holes) -> list[np.ndarray]:
    """Return physical values with NaN at `image<number>=(rows, columns)`."""
    values = [physical_pixels(image).astype(np.float64) for image in image_set]
    for name, hole in holes.items():
        values[int(name.removeprefix("image"))][(slice(None), *hole)] = np.nan
    return values


def test_the_nearest_date_that_shows_the_ground_is_copied(make_set):
    image_set = make_set(0, 100, 30, None)
    left, right = (slice(None), slice(0, 16)), (slice(None), slice(16, 32))
    truth = [physical_pixels(image) for image in image_set]
    guesses = copy_from_nearest_date(image_set, hidden_from(image_set, image0=(slice(None),), image2=left))
    # Day 30 is nearest to day 0 and shows the right half; the left half is on day 100, before the unknown day.
    np.testing.assert_allclose(guesses[0][(slice(None), *right)], truth[2][(slice(None), *right)])
    np.testing.assert_allclose(guesses[0][(slice(None), *left)], truth[1][(slice(None), *left)])
    np.testing.assert_allclose(guesses[2][(slice(None), *left)], truth[1][(slice(None), *left)])
    np.testing.assert_array_equal(guesses[3], truth[3])


def test_another_sensor_is_not_copied_and_the_mean_stands_in(make_set, make_image):
    image_set = make_set(0)
    image_set.images.append(make_image(32, 32, 5, sensor="sentinel-2-l1c"))
    guesses = copy_from_nearest_date(image_set, hidden_from(image_set, image0=(slice(0, 8), slice(0, 8))))
    truth = physical_pixels(image_set[0]).astype(np.float64)
    seen = np.ones((32, 32), bool)
    seen[:8, :8] = False
    np.testing.assert_allclose(guesses[0][:, 0, 0], truth[:, seen].mean(1))


def test_copies_come_from_the_same_ground_and_the_same_band(make_set):
    image_set = make_set(0, 10)
    first, second = image_set
    for image, east in ((first, 500_000.0), (second, 500_040.0)):
        image.crs, image.transform = "EPSG:32631", (10.0, 0.0, east, 0.0, -10.0, 4_650_000.0)
    second.pixels, second.bands = second.pixels[::-1], list(second.bands)[::-1]
    guesses = copy_from_nearest_date(image_set, hidden_from(image_set, image0=(slice(0, 16), slice(0, 16))))
    there = physical_pixels(second)[::-1]
    # The second image lies four pixels further east.
    np.testing.assert_allclose(guesses[0][:, :16, 4:16], there[:, :16, :12])
    assert np.isfinite(guesses[0]).all() and len(np.unique(guesses[0][0, :16, :4])) == 1


def test_errors_are_those_of_the_hidden_values_in_each_unit(tiny, make_set, monkeypatch):
    image_set = make_set(0, 10)
    aerial = np.random.default_rng(3).integers(50, 200, (4, 32, 32)).astype(np.uint8)
    image_set.images.append(Image(aerial, ["red", "green", "blue", "nir"], "naip", gsd=10.0))
    image_set[0].nodata, image_set[0].pixels[0, 0, 0] = 0, 0
    truth = [physical_pixels(image).astype(np.float64) for image in image_set]
    mask = np.zeros((32, 32), bool)
    mask[:16] = True
    shifts = (0.01, 0.03, 5.0)

    def shifted(checkpoint, given, *, seed, paste_visible):
        assert seed == given.seed and not paste_visible
        return [values + shift for values, shift in zip(truth, shifts, strict=True)], [mask] * 3

    monkeypatch.setattr(reconstruction, "reconstruct", shifted)
    report = reconstruction_errors(tiny, [image_set])
    counts = np.array([4 * 512 - 1, 4 * 512])
    errors = report["reflectance"]["model"]
    assert errors["mean absolute error"] == pytest.approx((counts * shifts[:2]).sum() / counts.sum(), rel=1e-4)
    assert errors["RMS error"] == pytest.approx(
        ((counts * np.square(shifts[:2])).sum() / counts.sum()) ** 0.5, rel=1e-4
    )
    assert report["DN"]["model"]["mean absolute error"] == pytest.approx(5)
    # The single aerial image has no other date: both guesses are the mean of its lower half.
    expected = np.abs(truth[2][:, :16] - truth[2][:, 16:].mean((1, 2), keepdims=True)).mean()
    for method in ("mean of visible", "nearest date"):
        assert report["DN"][method]["mean absolute error"] == pytest.approx(expected, rel=1e-5)


def test_the_report_repeats_and_the_masks_are_those_of_the_seed(tiny, make_set):
    sets = [make_set(0, 30, seed=3), make_set(0, 60, seed=4)]
    report = reconstruction_errors(tiny, sets)
    assert report == reconstruction_errors(tiny, sets)
    assert set(report["reflectance"]) == {"model", "mean of visible", "nearest date"}
    hidden = [reconstruct_set(tiny, one, seed=one.seed)[1] for one in sets]
    means = []
    for image_set, masks in zip(sets, hidden, strict=True):
        for image, mask in zip(image_set, masks, strict=True):
            values = physical_pixels(image).astype(np.float64)
            means.append(np.abs(values[:, mask] - values[:, ~mask].mean(1, keepdims=True)).ravel())
    found = report["reflectance"]["mean of visible"]["mean absolute error"]
    assert found == pytest.approx(np.concatenate(means).mean(), rel=1e-5)


def test_a_checkpoint_that_is_told_the_spread_of_the_truth_is_refused(tiny):
    config = type(tiny.model.config).from_dict({**tiny.model.config.to_dict(), "normalize_targets": True})
    checkpoint = Checkpoint("flattered", A2MAEForPreTraining(config).eval(), tiny.processor, True)
    with pytest.raises(ValueError, match="flattered: predicts patches normalised"):
        reconstruction_errors(checkpoint, [])


def test_a_checkpoint_without_a_decoder_is_refused(tiny):
    with pytest.raises(ValueError, match="encoder: has no decoder"):
        reconstruction_errors(Checkpoint("encoder", tiny.model, tiny.processor, False), [])


def test_without_sets_there_is_nothing_to_measure(tiny):
    with pytest.raises(ValueError, match="nothing is hidden in any image set"):
        reconstruction_errors(tiny, [])


def test_what_a_model_cannot_tell_counts_for_no_method(tiny, make_set, monkeypatch):
    image_set: StoredSet = make_set(0, 10)
    truth = [physical_pixels(image) for image in image_set]
    predicted = [np.full_like(truth[0], np.nan), truth[1]]
    mask = np.zeros((32, 32), bool)
    mask[:8] = True
    monkeypatch.setattr(reconstruction, "reconstruct", lambda *_, **__: (predicted, [mask, mask]))
    report = reconstruction_errors(tiny, [image_set])["reflectance"]
    only = truth[1].astype(np.float64)
    expected = np.abs(only[:, :8] - only[:, 8:].mean((1, 2), keepdims=True)).mean()
    assert report["model"]["mean absolute error"] == 0
    assert report["mean of visible"]["mean absolute error"] == pytest.approx(expected, rel=1e-5)
