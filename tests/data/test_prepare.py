import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxrobust.data import Dataset, LazyDataset, Loader, load
from jaxrobust.data._prepared import names
from jaxrobust.data.prepare import main, prepare
from tests.data import files


@pytest.mark.parametrize("gz", [False, True])
def test_idx_round_trip(tmp_path, gz):
    prepare("mnist", files.write_idx(tmp_path / "raw", gz=gz), data_dir=tmp_path)
    for split, count, seed in (("train", files.TRAIN, 0), ("test", files.TEST, 1)):
        data = load("mnist", split, data_dir=tmp_path)
        np.testing.assert_array_equal(data.raw[..., 0], files.pixels(count, (6, 5), seed))
        np.testing.assert_array_equal(data.labels, files.labels(count))
        assert data.raw.dtype == np.uint8
        assert data.class_names == tuple("0123456789")
    part = load("mnist", "train[5:9]", data_dir=tmp_path)
    np.testing.assert_array_equal(part.labels, [5, 6, 7, 8])
    assert names(tmp_path) == ["mnist"]


def test_cifar_round_trip(tmp_path):
    prepare("cifar10", files.write_cifar(tmp_path / "raw" / "cifar-10-batches-bin").parent, data_dir=tmp_path)
    train, test = load("cifar10", "train", data_dir=tmp_path), load("cifar10", data_dir=tmp_path)
    np.testing.assert_array_equal(train.raw, np.concatenate([files.pixels(4, (32, 32, 3), i) for i in range(5)]))
    np.testing.assert_array_equal(test.raw, files.pixels(4, (32, 32, 3), 5))
    assert train.labels.tolist() == [0, 1, 2, 3] * 5
    assert (train.class_names[3], train.classes) == ("cat", 10)


def test_split_folders_round_trip(tmp_path):
    written = files.write_folders(tmp_path / "raw")
    (tmp_path / "raw/train/ant/notes.txt").write_text("not an image")
    (tmp_path / "raw/train/ant/.hidden.png").write_text("not an image")
    prepare("insects", tmp_path / "raw", data_dir=tmp_path)
    for split, rows in written.items():
        data = load("insects", split, data_dir=tmp_path)
        np.testing.assert_array_equal(data.raw, np.stack([image for image, _ in rows]))
        assert data.labels.tolist() == [label for _, label in rows]
        assert data.class_names == ("ant", "bee")


def test_class_folders_are_train_and_grey_stays_grey(tmp_path):
    written = files.write_folders(tmp_path / "raw", splits=(".",), shapes=((4, 7, 1),))
    prepare("insects", tmp_path / "raw", data_dir=tmp_path)
    data = load("insects", "train", data_dir=tmp_path)
    np.testing.assert_array_equal(data.raw, np.stack([image for image, _ in written["."]]))


def test_mixed_modes_become_rgb(tmp_path):
    files.write_folders(tmp_path / "raw", shapes=((5, 5, 3), (5, 5, 1)))
    prepare("insects", tmp_path / "raw", data_dir=tmp_path)
    data = load("insects", "train", data_dir=tmp_path)
    assert data.shape == (5, 5, 3)
    assert (data.raw[1] == data.raw[1][..., :1]).all()


def test_jpeg_bytes_are_kept(tmp_path):
    for name in ("ant", "bee"):
        (tmp_path / "raw" / name).mkdir(parents=True)
        Image.fromarray(files.pixels(1, (9, 9, 3))[0]).save(tmp_path / "raw" / name / "a.JPEG")
    prepare("insects", tmp_path / "raw", data_dir=tmp_path)
    expected = np.asarray(Image.open(tmp_path / "raw/ant/a.JPEG"))
    np.testing.assert_array_equal(load("insects", "train", data_dir=tmp_path).raw[0], expected)


def test_images_of_different_sizes(tmp_path):
    written = files.write_folders(tmp_path / "raw", shapes=((12, 8, 3), (8, 16, 3), (4, 4, 3)))
    prepare("insects", tmp_path / "raw", data_dir=tmp_path)
    with pytest.raises(ValueError, match="images of insects differ in size: pass size="):
        load("insects", "train", data_dir=tmp_path)
    at_load = load("insects", "train", data_dir=tmp_path, size=4)
    assert at_load.shape == (4, 4, 3)
    np.testing.assert_array_equal(at_load.raw[2], written["train"][2][0])  # already of that size
    prepare("small_insects", tmp_path / "raw", data_dir=tmp_path, size=4)
    np.testing.assert_array_equal(load("small_insects", "train", data_dir=tmp_path).raw, at_load.raw)


def test_resizing_keeps_the_centre(tmp_path):
    for name in ("ant", "bee"):
        (tmp_path / "raw" / name).mkdir(parents=True)
        image = np.zeros((4, 12, 3), np.uint8)
        image[:, 4:8] = 200
        Image.fromarray(image).save(tmp_path / "raw" / name / "a.png")
    prepare("insects", tmp_path / "raw", data_dir=tmp_path)
    assert (load("insects", "train", data_dir=tmp_path, size=4).raw == 200).all()


def test_lazy_equals_in_memory(tmp_path):
    prepare("mnist", files.write_idx(tmp_path / "raw"), data_dir=tmp_path)
    memory = load("mnist", "train[3:]", data_dir=tmp_path)
    lazy = load("mnist", "train[3:]", data_dir=tmp_path, in_memory=False)
    assert isinstance(memory, Dataset)
    assert isinstance(lazy, LazyDataset)
    assert (len(lazy), lazy.shape, lazy.classes) == (len(memory), memory.shape, memory.classes)
    for index in (slice(None, None, -3), [4, 0, 4], np.arange(20) % 2 == 0):
        np.testing.assert_array_equal(lazy[index].read().raw, memory[index].raw)
        np.testing.assert_array_equal(lazy[index].read().labels, memory[index].labels)
    np.testing.assert_array_equal(lazy[-1][0], memory[-1][0])
    batches = [Loader(data, 6, seed=1, workers=2).epoch(0) for data in (lazy, memory)]
    for one, other in zip(*batches, strict=True):
        for field, expected in zip(one, other, strict=True):
            np.testing.assert_array_equal(field, expected)


def test_an_existing_copy_is_kept_unless_told(tmp_path):
    prepare("mnist", files.write_idx(tmp_path / "raw"), data_dir=tmp_path)
    other = files.write_idx(tmp_path / "other", shape=(3, 3))
    with pytest.raises(FileExistsError, match="pass --overwrite to replace it"):
        prepare("mnist", other, data_dir=tmp_path)
    assert load("mnist", data_dir=tmp_path).shape == (6, 5, 1)
    prepare("mnist", other, data_dir=tmp_path, overwrite=True)
    assert load("mnist", data_dir=tmp_path).shape == (3, 3, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mnist", "other", "raw"]


def test_a_killed_prepare_leaves_the_earlier_copy(tmp_path):
    prepare("mnist", files.write_idx(tmp_path / "raw"), data_dir=tmp_path)
    files.write_idx(tmp_path / "other", shape=(3, 3))
    script = """
import os, signal, sys
from jaxrobust.data import _formats, prepare
encode, seen = _formats.encode_png, []
def dying(image):
    seen.append(image)
    if len(seen) == 25:  # inside of the second split
        os.kill(os.getpid(), signal.SIGKILL)
    return encode(image)
_formats.encode_png = dying
prepare.prepare(sys.argv[1], sys.argv[2], data_dir=sys.argv[3], overwrite=True)
"""
    for name in ("mnist", "fresh"):
        done = _python("-c", script, name, str(tmp_path / "other"), str(tmp_path))
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert list(tmp_path.glob("incomplete.*"))
    assert names(tmp_path) == ["mnist"]
    assert load("mnist", data_dir=tmp_path).shape == (6, 5, 1)
    with pytest.raises(
        ValueError, match="name must be one of cifar10, digits, fashion_mnist, imagenet100, mnist or any"
    ):
        load("fresh", data_dir=tmp_path)


def test_a_failed_prepare_leaves_nothing(tmp_path):
    files.write_folders(tmp_path / "raw")
    broken = tmp_path / "raw/test/bee/2.png"
    broken.write_bytes(broken.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"2\.png: not a readable image"):
        prepare("insects", tmp_path / "raw", data_dir=tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_the_command_without_tensorflow(tmp_path):
    files.write_idx(tmp_path / "raw")
    script = """
import sys
from jaxrobust.data import load, prepare
prepare.main(["mnist", "--from", sys.argv[1], "--data-dir", sys.argv[2]])
print(load("mnist", "test[:3]", data_dir=sys.argv[2]).labels.tolist(), "tensorflow" in sys.modules)
"""
    done = _python("-W", "error", "-c", script, str(tmp_path / "raw"), str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[0, 1, 2] False"
    assert "mnist train: 100%" in done.stderr


def test_command_help():
    done = _python("-m", "jaxrobust.data.prepare", "--help")
    assert done.returncode == 0, done.stderr
    assert "--from" in done.stdout
    assert "--overwrite" in done.stdout


def test_command_says_errors_in_one_line(tmp_path):
    with pytest.raises(SystemExit, match="error: --from must be an existing folder"):
        main(["mnist", "--from", str(tmp_path / "nowhere"), "--data-dir", str(tmp_path)])


@pytest.mark.parametrize("name", ["digits", "MNIST", "a/b", "../a", "", "1a"])
def test_bad_names(tmp_path, name):
    with pytest.raises(ValueError, match="name must match"):
        prepare(name, tmp_path, data_dir=tmp_path)


def _python(*args):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run([sys.executable, *args], env=environment, capture_output=True, text=True, timeout=120)
