import numpy as np
import pytest
import tensorflow_datasets as tfds

from jaxrobust.data import load, sources
from jaxrobust.data._images import encode_png
from tests.data import files


def test_unknown_name_lists_the_known(tmp_path):
    with pytest.raises(
        ValueError, match=r"cifar10, digits, fashion_mnist, imagenet100, mnist or any .* did you mean .*mnist"
    ):
        load("mnits", data_dir=tmp_path)


@pytest.mark.parametrize("name", ["", "a b", "a/b/c", "../a"])
def test_malformed_names(tmp_path, name):
    with pytest.raises(ValueError, match="name must be"):
        load(name, data_dir=tmp_path)


def test_data_sets_that_are_not_classification(tmp_path):
    with pytest.raises(ValueError, match="name must be a data set of 8-bit images with one class label"):
        load("voc", data_dir=tmp_path)


def test_not_prepared_says_both_ways_out(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_has_tensorflow", lambda: False)
    with pytest.raises(RuntimeError, match=r"prepare cifar100 --from DIR.*pip install jaxrobust\[prepare\]"):
        load("cifar100", data_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_failed_download_says_both_ways_out(tmp_path, monkeypatch):
    def offline(self):
        raise ConnectionError("no network")

    monkeypatch.setattr(sources, "_has_tensorflow", lambda: True)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", offline)
    with pytest.raises(RuntimeError, match=r"prepare mnist --from DIR.*\[prepare\].*ConnectionError: no network"):
        load("mnist", data_dir=tmp_path)


def test_copy_in_a_format_without_random_access(tmp_path):
    sources_info = (
        '{"name": "mnist", "version": "3.0.1", "fileFormat": "tfrecord", "splits": [{"name": "test", '
        '"shardLengths": ["1"], "numBytes": "1", "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"}]}'
    )
    (tmp_path / "mnist/3.0.1").mkdir(parents=True)
    (tmp_path / "mnist/3.0.1/dataset_info.json").write_text(sources_info)
    with pytest.raises(ValueError, match=r"name must be readable .* as array_record; got 'mnist'"):
        load("mnist", data_dir=tmp_path)


def test_stock_name_is_prepared_by_tfds(tmp_path, monkeypatch):
    """The stock MNIST builder, its download replaced: TFDS writes, shuffles and reads as it always does."""
    raw = files.pixels(7, (28, 28, 1))

    def examples(self, manager):
        return {"test": ((i, {"image": encode_png(raw[i]), "label": i}) for i in range(7))}

    monkeypatch.setattr(tfds.builder_cls("mnist"), "_split_generators", examples)
    monkeypatch.setattr(sources, "_has_tensorflow", lambda: True)
    data = load("mnist", data_dir=tmp_path)
    assert sorted(data.labels.tolist()) == list(range(7))
    np.testing.assert_array_equal(data.raw, raw[data.labels])
    monkeypatch.setattr(sources, "_has_tensorflow", lambda: False)
    again = load("mnist", "test[2:5]", data_dir=tmp_path)
    np.testing.assert_array_equal(again.raw, data.raw[2:5])


def test_environment_variable_names_the_folder(tmp_path, monkeypatch):
    from jaxrobust.data.prepare import prepare

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "here"))
    path = prepare("mnist", files.write_idx(tmp_path / "raw"))
    assert path.is_relative_to(tmp_path / "here")
    assert len(load("mnist", "train")) == files.TRAIN


@pytest.mark.parametrize("size", [0, -3])
def test_bad_size(size):
    with pytest.raises(ValueError, match="size must be >= 1"):
        load("mnist", size=size)


def test_size_does_not_apply_to_digits():
    with pytest.raises(ValueError, match="size, crop and in_memory do not apply to 'digits'"):
        load("digits", size=16)


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("split", "mean", "histogram"),
    [
        ("train", 0.1306604762738431, [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]),
        ("test", 0.13251460584233677, [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]),
    ],
)
def test_real_mnist(split, mean, histogram):
    data = load("mnist", split)
    assert data.shape == (28, 28, 1)
    assert np.bincount(data.labels).tolist() == histogram
    assert data.raw.mean(dtype=np.float64) / 255 == pytest.approx(mean, rel=1e-5)


@pytest.mark.realdata
def test_real_mnist_is_in_the_published_order():
    assert load("mnist", "test[:8]").labels.tolist() == [7, 2, 1, 0, 4, 1, 4, 9]
