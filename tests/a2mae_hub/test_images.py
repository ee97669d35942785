"""What a user holds: images and sets are plain data, and say in one line what they are."""

from datetime import datetime, timezone

import numpy as np

from a2mae_hub import Image, ImageSet


def image(**fields) -> Image:
    pixels = np.full((4, 20, 30), 1_500, np.uint16)
    return Image(pixels, ["B02", "B03", "B04", "B08"], "sentinel-2-l2a", **fields)


def test_an_image_describes_itself_in_one_line_without_its_pixels():
    known = image(acquired=datetime(2020, 6, 21, 10, 50, 31, tzinfo=timezone.utc))
    assert repr(known) == "Image(sentinel-2-l2a, 2020-06-21 10:50+00:00, 4 bands, 20 × 30 uint16)"
    assert repr(image()) == "Image(sentinel-2-l2a, unknown date, 4 bands, 20 × 30 uint16)"


def test_what_is_not_told_of_an_image_is_unknown():
    plain = image()
    names = ("acquired", "crs", "transform", "gsd", "nodata", "valid", "scale", "offset", "source")
    assert {name: getattr(plain, name) for name in names} == dict.fromkeys(names)


def test_a_set_is_a_sequence_of_its_images_in_their_order():
    first, second = image(), image(nodata=0)
    images = ImageSet([first, second])
    assert len(images) == 2 and list(images) == [first, second] and images[1] is second
    assert images.anchor == 0 and len(ImageSet()) == 0


def test_two_images_of_equal_pixels_are_still_two_images():
    # Comparing arrays element by element would make `==` of images an error, or a list search a wrong hit.
    first, second = image(), image()
    assert first != second and [first, second].index(second) == 1
    assert ImageSet([first]) != ImageSet([first])
