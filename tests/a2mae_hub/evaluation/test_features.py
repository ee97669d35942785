"""Features of images: pooled tokens whatever the batch, and numbers that need no model."""

import numpy as np
import pytest
import torch

from a2mae_hub import A2MAEForPreTraining, Image
from a2mae_hub.evaluation import embed_images, embed_maps, hand_made_numbers, raw_statistics
from a2mae_hub.evaluation.features import hand_made_map
from a2mae_hub.inference import Checkpoint
from a2mae_hub.modeling.sensors_a2mae import get_sensor


def test_features_are_mean_and_deviation_of_the_patch_tokens(tiny, make_image):
    image = make_image(24, 16)
    batch = tiny.processor(image, size=(48, 32), return_tensors="pt")
    with torch.inference_mode():
        tokens = tiny.model.a2mae(**batch).last_hidden_state[0, 1:].double().numpy()
    assert tokens.shape == (24, 32)
    expected = np.concatenate([tokens.mean(0), tokens.std(0)])
    np.testing.assert_allclose(embed_images(tiny, [image])[0], expected, atol=1e-5)


def test_features_do_not_depend_on_what_else_is_in_the_batch(tiny, make_image):
    hole = np.ones((16, 32), bool)
    hole[:8, :8] = False
    images = [make_image(), make_image(40, 24, seed=1), make_image(16, 32, seed=2, valid=hole)]
    alone = np.concatenate([embed_images(tiny, [image]) for image in images])
    np.testing.assert_allclose(embed_images(tiny, images), alone, atol=1e-5)
    np.testing.assert_allclose(embed_images(tiny, images, batch_size=2), alone, atol=1e-5)


@pytest.mark.parametrize("pooling", ["class", "mean", "mean_std"])
def test_features_do_not_depend_on_the_pooling_of_the_checkpoint(tiny, make_image, pooling):
    config = type(tiny.model.config).from_dict({**tiny.model.config.to_dict(), "pooling": pooling})
    model = A2MAEForPreTraining(config).eval()
    model.load_state_dict(tiny.model.state_dict())
    other = Checkpoint("other", model, tiny.processor, True)
    np.testing.assert_allclose(embed_images(other, [make_image()]), embed_images(tiny, [make_image()]), atol=1e-6)


def test_maps_hold_the_tokens_row_by_row_and_nothing_where_no_data_is(tiny, make_image):
    valid = np.ones((24, 20), bool)
    valid[8:16, 16:] = False
    one, other = embed_maps(tiny, [make_image(24, 20, valid=valid), make_image(16, 16)])
    assert one.values.shape == (96, 6, 5) and other.values.shape == (96, 4, 4) and one.patch == (4, 4)
    assert np.isnan(one.values[:, 2:4, 4]).all() and np.isnan(one.values).sum() == 2 * 96
    last = one.values[64:]
    pooled = np.concatenate([np.nanmean(last, (1, 2)), np.nanstd(last, (1, 2))])
    np.testing.assert_allclose(embed_images(tiny, [make_image(24, 20, valid=valid)])[0], pooled, atol=1e-5)


def test_maps_hold_the_first_the_middle_and_the_last_layer(tiny, make_image):
    image = make_image(16, 16)
    batch = tiny.processor(image, size=32, return_tensors="pt")
    with torch.inference_mode():
        encoded = tiny.model.a2mae(**batch, output_hidden_states=True)
    layers = tiny.model.config.num_hidden_layers
    states = [*encoded.hidden_states[:layers], encoded.last_hidden_state]
    expected = torch.cat([states[1], states[(1 + layers) // 2], states[-1]], dim=-1)[0, 1:].T.reshape(96, 4, 4)
    np.testing.assert_allclose(embed_maps(tiny, [image])[0].values, expected.numpy(), atol=1e-5)


def test_the_patch_of_a_resampled_image_counts_in_its_own_pixels(tiny, make_image):
    processor = type(tiny.processor)(patch_size=8, size=32)
    checkpoint = Checkpoint("resampling", tiny.model, processor, True)
    (only,) = embed_maps(checkpoint, [make_image(16, 24)])
    assert only.values.shape[1:] == (4, 4) and only.patch == (4, 6)


def test_an_image_too_large_for_one_pass_is_named(tiny):
    image = Image(np.zeros((1, 2_048, 2_048), np.uint8), ["B02"], "sentinel-2-l2a", source="large.tif")
    with pytest.raises(ValueError, match=r"large\.tif: holds 262144 patches"):
        embed_images(tiny, [image])


def test_raw_statistics_are_physical_and_leave_out_what_is_no_data(make_image):
    image = make_image(nodata=0)
    image.pixels[1, :4] = 0
    reflectance = image.pixels.astype(np.float64) * 1e-4
    (found,) = raw_statistics([image])
    means = [*reflectance[[0]].mean((1, 2)), reflectance[1, 4:].mean(), *reflectance[2:].mean((1, 2))]
    np.testing.assert_allclose(found[:4], means, rtol=1e-5)
    np.testing.assert_allclose(found[[4, 6, 7]], reflectance[[0, 2, 3]].std((1, 2)), rtol=1e-4)


def test_sixty_two_hand_made_numbers_of_any_number_of_bands_from_three_on(make_image):
    assert hand_made_numbers([make_image(), make_image(20, 13)]).shape == (2, 62)
    bands = [band.name for band in get_sensor("sentinel-2-l1c").bands]
    image = Image(np.full((13, 16, 16), 1_000, np.uint16), bands, "sentinel-2-l1c")
    assert hand_made_numbers([image]).shape == (1, 62)
    assert np.isfinite(hand_made_numbers([image])).all()


def test_colours_are_ordered_by_wavelength_in_units_of_their_band(make_image):
    image = make_image(8, 8)
    turned = Image(image.pixels[::-1], list(image.bands)[::-1], image.sensor)
    np.testing.assert_allclose(hand_made_numbers([image]), hand_made_numbers([turned]), rtol=1e-5)
    blue, green = get_sensor("sentinel-2-l2a").bands[1:3]
    # Four bands make three groups: the first two, and one each.
    expected = (image.pixels[0].mean() * 1e-4 / blue.std + image.pixels[1].mean() * 1e-4 / green.std) / 2
    assert hand_made_map(image).values[0, 0, 0] == pytest.approx(expected, rel=1e-5)


def test_stripes_have_the_orientation_of_their_gradient():
    ramp = np.tile(np.arange(1_000, 1_800, 50, dtype=np.uint16), (16, 1))
    for pixels, orientation in ((ramp, 0), (ramp.T, 4), (ramp[:, ::-1], 0)):
        image = Image(np.stack([pixels] * 3), ["B02", "B03", "B04"], "sentinel-2-l2a")
        shares = hand_made_map(image).values[6:14]
        np.testing.assert_allclose(shares[orientation], 1, atol=1e-3)
        np.testing.assert_allclose(hand_made_map(image).values[14:].sum(0), 1, atol=1e-3)


def test_a_quarter_turn_changes_orientations_and_not_their_order(make_image):
    image = make_image()
    turned = Image(np.rot90(image.pixels, axes=(1, 2)).copy(), image.bands, image.sensor)
    here, there = (hand_made_map(one).values for one in (image, turned))
    np.testing.assert_allclose(np.rot90(here[14:], axes=(1, 2)), there[14:], atol=1e-4)
    assert np.abs(np.rot90(here[6:14], axes=(1, 2)) - there[6:14]).max() > 0.01
