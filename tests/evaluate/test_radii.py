"""Radii of shape (N,) in the lanes: a lane that is refilled takes the radius of its new example."""

import json

import jax
import numpy as np
import pytest

from jaxrobust import attacks, sets
from jaxrobust.evaluate import HostModel, lanes, masking, robustness, run_lanes
from tests.evaluate.models import ONE_DEVICE, assert_equal_results, classifier, examples
from tests.tiny import CLASSES

COUNT = 21
RADII = np.resize([0.01, 0.1, 0.05, 0.2], COUNT)
OPTIONS = {"key": jax.random.key(0), "lanes": 8, "devices": ONE_DEVICE}
PGD = attacks.pgd(sets.Linf(RADII), steps=4, restarts=2)


@pytest.fixture(scope="module")
def data():
    return examples(COUNT, wrong=4)


@pytest.mark.parametrize(
    ("early_stop", "devices"),
    [(True, ONE_DEVICE), pytest.param(False, jax.local_devices(), marks=pytest.mark.slow)],
)
def test_lanes_give_what_run_gives(early_stop, devices, data):
    found = run_lanes(PGD, classifier(), *data, early_stop=early_stop, **(OPTIONS | {"devices": devices})).result
    assert_equal_results(found, attacks.run(PGD, classifier(), *data, key=OPTIONS["key"], early_stop=early_stop))
    attacked = found.success & (found.forwards > 1)
    assert (found.size <= RADII + 1e-6)[attacked].all()
    assert (found.size > 0.1)[attacked].any()


def test_of_a_host_model(data):
    model = classifier()
    attack = attacks.worst_of_k(sets.Linf(RADII), samples=4)
    host = HostModel(lambda images: np.asarray(model(images)), CLASSES)
    found = run_lanes(attack, host, *data, **OPTIONS).result
    assert_equal_results(found, run_lanes(attack, model, *data, **OPTIONS).result)


def test_a_run_goes_on_and_another_is_refused(data, tmp_path, monkeypatch):
    path, played, left = tmp_path / "save.npz", lanes._Run.round, [3]

    def round_(self):
        if not left[0]:
            raise InterruptedError
        left[0] -= 1
        played(self)

    whole = run_lanes(PGD, classifier(), *data, **OPTIONS)
    with monkeypatch.context() as patch:
        patch.setattr(lanes, "PEEK_IN_STEP", 1)
        patch.setattr(lanes._Run, "round", round_)
        with pytest.raises(InterruptedError):
            run_lanes(PGD, classifier(), *data, save=path, **OPTIONS)
    for radii in (RADII[::-1], 0.1):
        with pytest.raises(ValueError, match="differs in: attack"):
            run_lanes(PGD.with_radius(radii), classifier(), *data, save=path, **OPTIONS)
    resumed = run_lanes(PGD, classifier(), *data, save=path, **OPTIONS)
    np.testing.assert_array_equal(resumed.result.images, whole.result.images)


def test_robustness_of_survivors(data, tmp_path):
    images, _ = data
    found = robustness(
        classifier(),
        data,
        {"pgd": PGD, "again": PGD},
        only_survivors=True,
        save_dir=tmp_path / "saved",
        progress=False,
        **OPTIONS,
    )
    assert 0 < found["pgd"].robust.sum() < COUNT
    for outcome in found.outcomes.values():
        change = np.abs(outcome.images - images).max((1, 2, 3))
        assert (change <= RADII + 1e-6).all()
    assert "Linf(0.01 to 0.2)" in str(found)
    page = found.save(tmp_path / "run")
    assert "0.01 to 0.2" in page.read_text()
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["attacks"]["pgd"]["radius"] == RADII.tolist()
    assert [row["radius"] for row in found.rows(examples=True)[:COUNT]] == RADII.tolist()
    assert [row.get("radius") for row in found.rows()] == [None] * 4


def test_wrong_lengths_are_refused(data):
    attack = PGD.with_radius(RADII[:5])
    with pytest.raises(ValueError, match=r"radius must be one number or have shape \(21,\), one an image; got \(5,\)"):
        run_lanes(attack, classifier(), *data, **OPTIONS)
    with pytest.raises(ValueError, match="radius must be one number or have"):
        robustness(classifier(), data, attack, **OPTIONS)
    with pytest.raises(ValueError, match="radius must be one number here"):
        masking(classifier(), data, sets.Linf(RADII), key=OPTIONS["key"], progress=False)
