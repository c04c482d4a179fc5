import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jaxrobust.data import CentreCrop, LazyDataset, Loader, RandomResizedCrop
from jaxrobust.data._images import decode
from tests.data import trees


def encoded(image, kind="PNG"):
    file = io.BytesIO()
    image.save(file, kind, quality=95)
    return file.getvalue()


class Records:
    """Encoded images as a data source gives them."""

    def __getitems__(self, places):
        return [{"image": encoded(trees.image(place, 0), "JPEG"), "label": place} for place in places]


def lazy(crop, count=12):
    shape, names = (16, 16, 3), tuple(map(str, range(count)))
    return LazyDataset(Records(), np.arange(count), shape, names, None, ("image", "label"), "mine", "train", crop=crop)


def test_centre_crop_is_resize_then_centre():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 61, 3), np.uint8))
    small = image.resize((20 * 61 // 37, 20), Image.Resampling.BILINEAR)  # 32 x 20
    expected = np.asarray(small)[2:18, 8:24]
    np.testing.assert_array_equal(decode(encoded(image), 3, None, crop=CentreCrop(16, resize=20)), expected)
    assert CentreCrop(224) == CentreCrop(224, resize=256)
    exact = np.asarray(image)[:, 12:49]  # already of that size
    np.testing.assert_array_equal(decode(encoded(image), 3, None, crop=CentreCrop(37, resize=37)), exact)


@given(st.integers(1, 600), st.integers(1, 600), st.integers(0, 2**31))
def test_boxes_lie_inside(width, height, seed):
    left, top, right, bottom = RandomResizedCrop(8).box(width, height, np.random.default_rng(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


def test_boxes_have_the_areas_and_ratios_of_the_recipe():
    rng = np.random.default_rng(0)
    boxes = np.array([RandomResizedCrop(8).box(1000, 1000, rng) for _ in range(3000)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area, ratio = width * height / 1e6, np.log(width / height)
    assert area.min() > 0.079
    assert abs(area[area < 0.7].mean() - 0.39) < 0.01  # uniform, where every ratio fits
    assert np.abs(ratio).max() < np.log(4 / 3) + 0.01
    assert abs(ratio.mean()) < 0.01
    corner = boxes[:, 0] / np.maximum(1000 - width, 1)
    assert abs(corner.mean() - 0.5) < 0.02


def test_a_ratio_that_never_fits_takes_the_middle():
    assert RandomResizedCrop(8).box(300, 30, np.random.default_rng(0))[1::2] == (0, 30)
    left, _, right, _ = RandomResizedCrop(8).box(300, 30, np.random.default_rng(0))
    assert (right - left, left + right) == (40, 300)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_random_crop_is_its_box_resized(kind):
    """JPEG may be decoded at a fraction of its size; the picture stays."""
    image = trees.image(1, 2, shape=(150, 250))
    crop, differences, data = RandomResizedCrop(16), [], encoded(image, kind)
    whole = Image.open(io.BytesIO(data))
    for seed in range(20):
        found = decode(data, 3, None, crop=crop, rng=np.random.default_rng(seed))
        box = crop.box(*image.size, np.random.default_rng(seed))
        expected = np.asarray(whole.resize((16, 16), Image.Resampling.BILINEAR, box=box))
        differences.append(np.abs(found.astype(int) - expected).mean())
    assert max(differences) <= (0 if kind == "PNG" else 3)
    assert max(differences) == 0 or kind == "JPEG"


def test_a_crop_depends_on_seed_epoch_and_example_alone():
    data = lazy(RandomResizedCrop(16))

    def images(epoch=0, seed=1, batch_size=4, **options):
        batches = list(Loader(data, batch_size, seed=seed, as_bytes=True, **options).epoch(epoch))
        return dict(
            zip(np.concatenate([b.index for b in batches]).tolist(), np.concatenate([b.images for b in batches]))
        )

    usual = images()
    for options in ({"batch_size": 6, "workers": 3}, {"prefetch": 0}, {"shuffle": False, "workers": 1}):
        other = images(**options)
        assert all((other[index] == usual[index]).all() for index in range(12))
    part = images(batch_size=6, host=1, hosts=2)
    assert len(part) == 6
    assert all((part[index] == usual[index]).all() for index in part)
    resumed = next(Loader(data, 4, seed=1, as_bytes=True).epoch(0, start=2))
    assert all(
        (image == usual[index]).all() for index, image in zip(resumed.index.tolist(), resumed.images, strict=True)
    )
    for changed in (images(epoch=1), images(seed=2)):
        assert all((changed[index] != usual[index]).any() for index in range(12))


def test_without_a_seed_the_crop_is_the_central_one():
    random, central = lazy(RandomResizedCrop(16)), lazy(CentreCrop(16))
    expected = central.read().raw
    np.testing.assert_array_equal(random.read().raw, expected)
    np.testing.assert_array_equal(random[[3, 1]].fetch([0, 1])[0], expected[[3, 1]])
    batch = next(Loader(random, 12, shuffle=False, as_bytes=True).epoch(0))
    np.testing.assert_array_equal(batch.images, expected)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: CentreCrop(0), ValueError, "size must be >= 1; got 0"),
        (lambda: CentreCrop(8, resize=7), ValueError, "resize must be >= 8; got 7"),
        (lambda: RandomResizedCrop(8.0), TypeError, "size"),
        (lambda: RandomResizedCrop(8, scale=(0.5, 1.5)), ValueError, r"scale must be .* <= 1; got \(0.5, 1.5\)"),
        (lambda: RandomResizedCrop(8, scale=(0.0, 0.5)), ValueError, "scale must be"),
        (lambda: RandomResizedCrop(8, ratio=(2.0, 1.0)), ValueError, r"ratio must be .*; got \(2.0, 1.0\)"),
    ],
)
def test_bad_crops(make, kind, message):
    with pytest.raises(kind, match=message):
        make()
