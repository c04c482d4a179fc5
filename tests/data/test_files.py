"""Images of one's own, read as they lie."""

import numpy as np
import pytest
from PIL import Image

from jaxrobust.data import read


@pytest.fixture
def archive(tmp_path, rng):
    images, labels = rng.integers(0, 256, (6, 4, 5, 3), np.uint8), np.arange(6) % 3
    np.savez(tmp_path / "mine.npz", images=images, labels=labels)
    return tmp_path / "mine.npz", images, labels


def test_bytes_are_divided_by_255(archive):
    path, images, labels = archive
    found = read(path)
    np.testing.assert_array_equal(found.images, (images / np.float32(255)).astype(np.float32))
    np.testing.assert_array_equal(found.labels, labels)
    assert (found.name, found.split, found.classes) == ("mine.npz", "", 3)


def test_a_part_keeps_the_classes(archive):
    path, images, _ = archive
    found = read(path, "[1:3]")
    np.testing.assert_array_equal(found.raw, images[1:3])
    assert found.classes == 3
    assert found.split == "all[1:3]"
    with pytest.raises(ValueError, match=r"split of .* must be one of all"):
        read(path, "test")


def test_floats_are_taken_as_they_are(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.full((2, 3, 3, 1), 0.5), labels=[0, 1])
    assert (read(tmp_path / "a.npz").images == 0.5).all()
    np.savez(tmp_path / "b.npz", images=np.full((2, 3, 3, 1), 7.0), labels=[0, 1])
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]; got values from 7"):
        read(tmp_path / "b.npz")


def test_a_damaged_file_is_named_and_not_to_be_removed(archive):
    path, *_ = archive
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"^path must be a whole .npz; got .*mine.npz, damaged: (?!.*remove)"):
        read(path)
    with pytest.raises(TypeError, match="split"):
        read(path, 3)
    with pytest.raises(TypeError, match="path"):
        read(3)


def test_bytes_of_zeros_and_ones_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.eye(4, dtype=np.uint8)[None, :, :, None], labels=[0])
    with pytest.raises(ValueError, match=r"must be floating .* since uint8 is divided by 255; got uint8 of maximum 1"):
        read(tmp_path / "a.npz")


@pytest.fixture
def folder(tmp_path, rng):
    for name in ("bee", "ant"):
        (tmp_path / "insects" / name).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(rng.integers(0, 256, (4, 5 + (i == 2), 3), np.uint8)).save(
                tmp_path / "insects" / name / f"{i}.png"
            )
    return tmp_path / "insects"


def test_class_folders(folder):
    with pytest.raises(ValueError, match="differ in size: pass size="):
        read(folder)
    found = read(folder, size=3)
    assert found.class_names == ("ant", "bee")
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.shape == (3, 3, 3)
    part = read(folder, "train[1:5]", size=3)
    np.testing.assert_array_equal(part.raw, found.raw[1:5])
    assert part.split == "train[1:5]"


def test_the_usual_split(folder, tmp_path):
    both = tmp_path / "both"
    for split in ("train", "val"):
        (both / split).mkdir(parents=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(folder / "ant" / f"{split}.png")
        (both / split / "ant").mkdir()
        (folder / "ant" / f"{split}.png").rename(both / split / "ant" / "0.png")
    with pytest.raises(ValueError, match="must be one of train, val; got None"):
        read(both)
    assert len(read(both, "val")) == 1
    (both / "val").rename(both / "test")
    assert read(both, "[:1]").split == "test"


def test_what_cannot_be_read(tmp_path, archive):
    with pytest.raises(ValueError, match=r"folder of images or an \.npz"):
        read(tmp_path / "nowhere")
    np.savez(tmp_path / "x.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match=r"missing \['images', 'labels'\], found \['x'\]"):
        read(tmp_path / "x.npz")
    (tmp_path / "broken.npz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"whole \.npz"):
        read(tmp_path / "broken.npz")
    with pytest.raises(ValueError, match="size must be None"):
        read(archive[0], size=3)
