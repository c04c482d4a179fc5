"""ImageNet-100: from a tree in ImageNet's layout to batches."""

import numpy as np
import pytest
from PIL import Image

from jaxrobust.data import CentreCrop, LazyDataset, RandomResizedCrop, load
from jaxrobust.data._formats import read_imagenet100, read_local
from jaxrobust.data.prepare import main, prepare
from tests.data import trees


@pytest.fixture(scope="module")
def hundred(tmp_path_factory):
    """A tree of 100 classes, only to be read."""
    return trees.write_tree(tmp_path_factory.mktemp("tree"), train=2, test=1)


@pytest.fixture
def tree(hundred, tmp_path):
    """A copy of it by links, to be damaged."""
    for path in hundred.rglob("*.JPEG"):
        (tmp_path / "tree" / path.relative_to(hundred)).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / path.relative_to(hundred)).symlink_to(path)
    return tmp_path / "tree"


def replace(path, data):
    path.unlink()
    path.write_bytes(data)


def first(tree, split="train", label=3, number=0):
    return sorted((tree / split / trees.ids(100)[label]).iterdir())[number]


def test_round_trip_keeps_the_bytes(hundred, tmp_path):
    prepare("imagenet100", hundred, data_dir=tmp_path)
    lazy = load("imagenet100", "train", data_dir=tmp_path, in_memory=False, crop=RandomResizedCrop(16))
    assert isinstance(lazy, LazyDataset)
    assert (len(lazy), lazy.shape, lazy.class_names) == (200, (16, 16, 3), tuple(trees.ids(100)))
    records = lazy.records.__getitems__([0, 7, 199])
    for place, record in zip((0, 7, 199), records, strict=True):
        assert record["label"] == place // 2
        assert bytes(record["image"]) == first(hundred, "train", place // 2, place % 2).read_bytes()
    test = load("imagenet100", "test[:4]", data_dir=tmp_path)
    assert test.raw.shape == (4, 224, 224, 3)
    assert test.labels.tolist() == [0, 1, 2, 3]
    small = load("imagenet100", "test[:4]", data_dir=tmp_path, crop=CentreCrop(8))
    expected = Image.open(first(hundred, "val"))
    np.testing.assert_array_equal(small.raw[3], np.asarray(CentreCrop(8).cut(expected, "RGB", None)))


def test_of_a_thousand_every_tenth(tmp_path):
    ids = trees.ids(1000)
    for split in ("train", "val"):
        for place, name in enumerate(ids):  # what is not taken is not looked at
            (tmp_path / split / name).mkdir(parents=True)
            if place % 10 == 0:
                trees.image(place, 0, shape=(5, 6)).save(tmp_path / split / name / "a.JPEG")
    copy = read_imagenet100(tmp_path)
    assert copy.class_names == tuple(ids[::10])
    assert [set(split.labels.tolist()) for split in copy.splits.values()] == [set(range(100))] * 2


def test_odd_files_of_imagenet(hundred, tree, tmp_path):
    """A PNG named JPEG, one in CMYK, a grey one and a hidden file: all are in it, or beside it."""
    Image.open(first(tree)).save(tmp_path / "a.png")
    replace(first(tree), (tmp_path / "a.png").read_bytes())
    for number, mode in enumerate(("CMYK", "L")):
        path = first(tree, label=4, number=number)
        image = Image.open(path).convert(mode)
        path.unlink()
        image.save(path)
    (first(tree).parent / ".DS_Store").write_text("hidden")
    prepare("imagenet100", tree, data_dir=tmp_path)
    data = load("imagenet100", "train[6:10]", data_dir=tmp_path, crop=CentreCrop(8))
    assert data.raw.shape == (4, 8, 8, 3)
    assert data.labels.tolist() == [3, 3, 4, 4]
    original = CentreCrop(8).cut(Image.open(first(hundred, label=4)), "RGB", None)
    assert np.abs(data.raw[2] - np.asarray(original, float)).mean() < 10


def damage(tree):
    """One file of each kind of fault; their names."""
    truncated, text, dangling, other = (first(tree, label=label) for label in (3, 4, 5, 6))
    replace(truncated, truncated.read_bytes()[:-200])
    replace(text, b"not an image")
    dangling.unlink()
    dangling.symlink_to(tree / "nowhere.JPEG")
    other = other.with_name("notes.txt")
    other.write_text("notes")
    return truncated, text, dangling, other


def test_faults_are_named(tree, tmp_path):
    truncated, *others = damage(tree)
    with pytest.raises(ValueError, match="not a readable image") as error:
        prepare("imagenet100", tree, data_dir=tmp_path / "out")
    assert all(str(path) in str(error.value) for path in others)  # all that headers tell, at once
    assert "notes.txt: not an image file" in str(error.value)
    for path in others:
        path.unlink()
    with pytest.raises(ValueError, match=rf"{truncated.name}: not a readable image"):
        prepare("imagenet100", tree, data_dir=tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_faults_are_skipped_on_request_counted_and_listed(tree, tmp_path, capsys):
    faults = damage(tree)
    main(["imagenet100", "--from", str(tree), "--data-dir", str(tmp_path), "--skip-corrupt"])
    said = capsys.readouterr().out
    listed = (tmp_path / "imagenet100/1.0.0/skipped.txt").read_text()
    assert "skipped 4 files" in said
    for path in faults:
        assert str(path) in said
        assert str(path) in listed
    train = load("imagenet100", "train", data_dir=tmp_path, crop=CentreCrop(8))
    assert np.bincount(train.labels).tolist() == [2, 2, 2, 1, 1, 1] + [2] * 94


@pytest.mark.parametrize("skip_corrupt", [False, True])
def test_a_class_without_examples_is_named(tree, tmp_path, skip_corrupt):
    first(tree, "val", 7).unlink()
    with pytest.raises(ValueError, match=f"every class must have images; without any: .*val/{trees.ids(100)[7]}"):
        prepare("imagenet100", tree, data_dir=tmp_path, skip_corrupt=skip_corrupt)


@pytest.mark.parametrize("kept", [3, -200])
def test_a_class_of_which_nothing_can_be_read_is_named(tree, tmp_path, kept):
    replace(first(tree, "val", 7), first(tree, "val", 7).read_bytes()[:kept])
    with pytest.raises(ValueError, match=f"every class must have images; .*{trees.ids(100)[7]}"):
        prepare("imagenet100", tree, data_dir=tmp_path / "out", skip_corrupt=True)
    assert not list(tmp_path.glob("out/imagenet100"))


def empty(folder, names):
    for split, found in names.items():
        for name in found:
            (folder / split / name).mkdir(parents=True)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"train": trees.ids(99), "val": trees.ids(99)}, "train must hold .* all 1000 .* or of 100; got 99"),
        ({"train": trees.ids(100)}, "val must hold the folders nXXXXXXXX .* got 0"),
        ({"train": ["ant", *trees.ids(99)], "val": trees.ids(100)}, r"train must hold folders nXX.*; got \['ant'\]"),
        (
            {"train": trees.ids(101)[1:], "val": trees.ids(100)},
            r"same classes; only one has \['n01000003', 'n01000703'\]",
        ),
        ({"train": trees.ids(100), "val": trees.ids(100)}, "train must hold class folders of images"),
    ],
)
def test_other_trees(tmp_path, names, message):
    empty(tmp_path, names)
    with pytest.raises(ValueError, match=message):
        read_local(tmp_path, "imagenet100")


def test_class_folders_in_general(tmp_path):
    """A class without images is an error; one that a part for validation has no folder for is none."""
    for split, name in (("train", "ant"), ("train", "bee"), ("val", "ant")):
        (tmp_path / split / name).mkdir(parents=True)
        trees.image(0, 0).save(tmp_path / split / name / "a.jpg")
    assert read_local(tmp_path, "insects").class_names == ("ant", "bee")
    for folder in ("val/bee", "train/cat"):
        (tmp_path / folder).mkdir()
        with pytest.raises(ValueError, match=f"without any: .*{folder}"):
            read_local(tmp_path, "insects")
        (tmp_path / folder).rmdir()


def test_not_prepared_says_how(tmp_path):
    with pytest.raises(RuntimeError, match=r"'imagenet100' is not prepared in .*prepare imagenet100 --from DIR"):
        load("imagenet100", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"crop": 224}, TypeError, "crop"),
        ({"crop": CentreCrop(8), "size": 8}, ValueError, "size must be None where crop is given; got size=8"),
        ({"crop": RandomResizedCrop(8)}, ValueError, "in_memory must be False for a random crop"),
        ({"name": "digits", "crop": CentreCrop(8)}, ValueError, "size, crop and in_memory do not apply to 'digits'"),
    ],
)
def test_bad_crops_of_load(tmp_path, arguments, kind, message):
    with pytest.raises(kind, match=message):
        load(**{"name": "imagenet100", "data_dir": tmp_path, **arguments})
