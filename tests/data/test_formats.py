import gzip

import numpy as np
import pytest
from PIL import Image

from jaxrobust.data._formats import read_local
from jaxrobust.data._images import encode_png
from tests.data import files


@pytest.mark.parametrize("shape", [(4, 6, 1), (4, 6, 3)])
def test_png_keeps_pixels(tmp_path, shape):
    image = files.pixels(1, shape)[0]
    (tmp_path / "a.png").write_bytes(encode_png(image))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), image.squeeze())


def test_fashion_classes_have_their_names(tmp_path):
    assert read_local(files.write_idx(tmp_path), "fashion_mnist").class_names[9] == "Ankle boot"


def test_dotted_idx_names(tmp_path):
    files.write_idx(tmp_path)
    for path in list(tmp_path.iterdir()):
        path.rename(path.with_name(path.name.replace("-idx", ".idx")))
    assert set(read_local(tmp_path, "mnist").splits) == {"train", "test"}


def test_one_split_is_enough(tmp_path):
    for path in files.write_idx(tmp_path).glob("train*"):
        path.unlink()
    assert set(read_local(tmp_path, "mnist").splits) == {"test"}


def _truncated(path):
    path.write_bytes(path.read_bytes()[:-1])


def _longer(path):
    path.write_bytes(path.read_bytes() + b"\0")


def _other_magic(path):
    path.write_bytes(b"\0\0\x0d" + path.read_bytes()[3:])


def _empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [_truncated, _longer, _other_magic, _empty])
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_damaged_idx(tmp_path, damage, name):
    damage(files.write_idx(tmp_path) / name)
    with pytest.raises(ValueError, match=name):
        read_local(tmp_path, "mnist")


def test_truncated_gzip(tmp_path):
    _truncated(files.write_idx(tmp_path, gz=True) / "train-images-idx3-ubyte.gz")
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz: truncated or not gzip"):
        read_local(tmp_path, "mnist")


def test_gzip_that_is_none(tmp_path):
    path = files.write_idx(tmp_path, gz=True) / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.decompress(path.read_bytes()))
    with pytest.raises(ValueError, match="truncated or not gzip"):
        read_local(tmp_path, "mnist")


def test_idx_counts_must_agree(tmp_path):
    (files.write_idx(tmp_path) / "train-labels-idx1-ubyte").write_bytes(files.idx_bytes(files.labels(7)))
    with pytest.raises(ValueError, match=r"holds 23 images but .* 7 labels"):
        read_local(tmp_path, "mnist")


def test_idx_images_without_labels(tmp_path):
    (files.write_idx(tmp_path) / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(ValueError, match="must both exist"):
        read_local(tmp_path, "mnist")


def test_truncated_cifar(tmp_path):
    _truncated(files.write_cifar(tmp_path) / "data_batch_3.bin")
    with pytest.raises(ValueError, match=r"data_batch_3\.bin: .* got 12291 bytes"):
        read_local(tmp_path, "cifar10")


def test_cifar_label_out_of_range(tmp_path):
    path = files.write_cifar(tmp_path) / "test_batch.bin"
    path.write_bytes(b"\x0a" + path.read_bytes()[1:])
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.9; got 10"):
        read_local(tmp_path, "cifar10")


def test_missing_cifar_files_are_named(tmp_path):
    (files.write_cifar(tmp_path) / "data_batch_5.bin").unlink()
    with pytest.raises(ValueError, match=r"missing: data_batch_5\.bin"):
        read_local(tmp_path, "cifar10")


def test_file_that_is_no_image(tmp_path):
    files.write_folders(tmp_path)
    (tmp_path / "train/ant/1.png").write_text("text")
    with pytest.raises(ValueError, match=r"1\.png: not a readable image"):
        read_local(tmp_path, "insects")


def test_sixteen_bits_are_refused(tmp_path):
    files.write_folders(tmp_path)
    Image.fromarray(np.full((8, 8), 60_000, np.uint16)).save(tmp_path / "train/ant/1.png")
    with pytest.raises(ValueError, match=r"1\.png: images must have 8 bits a channel"):
        read_local(tmp_path, "insects")


def test_split_folders_beside_others(tmp_path):
    files.write_folders(tmp_path, splits=("train", "extra"))
    with pytest.raises(ValueError, match=r"\['train'\] stand beside others \['extra'\]"):
        read_local(tmp_path, "insects")


def test_folder_of_nothing_known(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ValueError, match="the folder must hold IDX files"):
        read_local(tmp_path, "mine")


def test_split_without_images(tmp_path):
    files.write_folders(tmp_path)
    (tmp_path / "val" / "ant").mkdir(parents=True)
    with pytest.raises(ValueError, match="val must hold class folders of images"):
        read_local(tmp_path, "insects")


def test_what_pillow_raises_on_a_broken_avif_names_the_file(monkeypatch, tmp_path):
    files.write_folders(tmp_path)

    def broken(*args, **kwargs):
        raise RuntimeError("Failed to decode frame 0")

    monkeypatch.setattr(Image, "open", broken)
    with pytest.raises(ValueError, match=r"png: not a readable image: Failed to decode"):
        read_local(tmp_path, "insects")
