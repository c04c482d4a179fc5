"""The UAR metric against published scores."""

import itertools

import numpy as np
import pytest

from jaxrobust.evaluate.uar import ATA, calibrate, uar, uar_table

# Scores that the authors released; the accuracies behind them are multiples of one in 10000 (CIFAR-10) or 5000 images.
# Those for l1 on CIFAR-10 are left out: they divide by 4.0917, not by the sum 4.2201 of the released accuracies.
PUBLISHED = {
    "cifar10": {  # undefended; then training against l∞ 8, l∞ 4 and JPEG l1 1024
        "elastic": [0.02527870999915028, 0.43239758838608705, 0.3643787830883896, 0.3493619763311313],
        "jpeg_l1": [0.2503076467726291, 0.39445286581391514, 0.3959201035220229, 0.9613782609267236],
        "jpeg_l2": [0.2778561084547256, 0.6650021488509447, 0.6477108076032428, 0.9409196065514499],
        "jpeg_linf": [0.04900922203937282, 0.5045199468775413, 0.46754885526066925, 0.8764624999858913],
        "l2": [0.16343986844836847, 0.7160417953583467, 0.6651813196459371, 0.6598033191305862],
        "linf": [0.1693787516513018, 0.8286775122911277, 0.7407112008388143, 0.6831717641403209],
    },
    "imagenet100": {  # training against JPEG l2 256 and elastic 16
        "linf": [0.7187189894533915, 0.2252783596972398],
        "l2": [0.7649354637679974, 0.2518763140707059],
        "l1": [0.6073704295848155, 0.11391592054908639],
        "jpeg_linf": [0.9593555414840476, 0.0076348733238167255],
        "jpeg_l2": [0.9566865276072067, 0.006172170884636703],
        "jpeg_l1": [1.040094463015098, 0.04190322979898773],
        "elastic": [0.4285430253096353, 0.9082865226725757],
        "fog": [0.20708216597234144, 0.2472974742398783],
        "snow": [0.3562875669929585, 0.40061580404411445],
        "gabor": [0.5295233931638538, 0.40736736088930114],
    },
}
CASES = [(dataset, attack) for dataset, rows in PUBLISHED.items() for attack in rows]


@pytest.mark.parametrize(("dataset", "attack"), CASES)
def test_published_scores_come_from_whole_numbers_of_images(dataset, attack):
    """Score times ΣATA is a sum of six accuracies: on a wrong table it would not be a whole number of images."""
    images = {"cifar10": 10000, "imagenet100": 5000}[dataset]
    for score in PUBLISHED[dataset][attack]:
        correct = score * sum(ATA[dataset][attack]) * images
        assert correct == pytest.approx(round(correct), abs=0.02)
        accuracies = np.full(6, round(correct) / 6 / images)
        assert uar(attack, accuracies, dataset=dataset) == pytest.approx(100 * score, abs=1e-3)


def test_tables_round_to_the_paper():
    """As printed in its tables, in per cent; halves were rounded either way."""
    printed = {"linf": [91.0, 87.8, 81.6, 71.3, 46.5, 23.1], "elastic": [87.4, 81.3, 72.1, 58.2, 45.4, 27.8]}
    for attack, row in printed.items():
        np.testing.assert_allclose(100 * np.asarray(ATA["cifar10"][attack]), row, atol=0.0501)
    np.testing.assert_allclose(
        100 * np.asarray(ATA["imagenet100"]["fog"]), [85.8, 83.8, 79.0, 68.4, 67.9, 64.7], atol=0.0501
    )
    np.testing.assert_allclose(
        100 * np.asarray(ATA["imagenet100"]["snow"]), [84.0, 81.1, 77.7, 65.6, 59.5, 41.2], atol=0.0501
    )


@pytest.mark.parametrize("dataset", sorted(ATA))
def test_training_against_the_attack_scores_100(dataset):
    for attack, best in ATA[dataset].items():
        assert uar(attack, best, dataset=dataset) == pytest.approx(100)
        assert uar(attack, np.zeros(6), dataset=dataset) == 0
        assert uar(attack, np.minimum(np.asarray(best) + 0.05, 1), dataset=dataset) > 100


def test_bad_input():
    with pytest.raises(ValueError, match=r"attack must be one of .*; got 'fog'"):
        uar("fog", [0.5] * 6)
    with pytest.raises(ValueError, match="dataset must be one of"):
        uar("linf", [0.5] * 6, dataset="mnist")
    with pytest.raises(ValueError, match=r"accuracies must be 6 numbers; got shape \(5,\)"):
        uar("linf", [0.5] * 5)
    with pytest.raises(ValueError, match=r"accuracies must be fractions in \[0, 1\]; got \[50"):
        uar("linf", [50.0] * 6)
    with pytest.raises(ValueError, match="fractions"):
        uar("linf", [float("nan")] * 6)
    for empty in ({}, {"model": {}}):
        with pytest.raises(ValueError, match="a model and an attack of each"):
            uar_table(empty)


def test_table():
    table = uar_table({"robust": {"linf": ATA["cifar10"]["linf"], "l2": [0.0] * 6}, "weak": {"linf": [0.0] * 6}})
    assert table.scores["robust"] == pytest.approx({"linf": 100, "l2": 0})
    assert table.mean == pytest.approx({"robust": 50, "weak": 0})
    header, first, second = str(table).splitlines()
    assert header.split() == ["model", "linf", "l2", "mean"]
    assert first.split() == ["robust", "100.0", "0.0", "50.0"]
    assert second.split() == ["weak", "0.0", "0.0"]
    assert len({len(line) for line in (header, first, second)}) == 1


def test_calibration_is_the_best_assignment(rng):
    reference = np.sort(rng.random(3))[::-1]
    candidates = {float(2**k): float(accuracy) for k, accuracy in enumerate(rng.random(6))}
    found = calibrate(candidates, reference)
    assert list(found) == sorted(set(found))

    def cost(sizes):
        chosen = [candidates[size] for size in sizes]
        return min(np.abs(reference - np.asarray(order)).sum() for order in itertools.permutations(chosen))

    assert cost(found) == pytest.approx(min(map(cost, itertools.combinations(candidates, 3))))
    assert calibrate({1.0: 0.3, 2.0: 0.9}, [0.9, 0.3]) == (1.0, 2.0)


def test_bad_calibrations():
    with pytest.raises(ValueError, match="at least as many as the reference's 6; got 2"):
        calibrate({1.0: 0.5, 2.0: 0.4}, ATA["cifar10"]["linf"])
    with pytest.raises(ValueError, match="candidates must be fractions"):
        calibrate({1.0: 50, 2.0: 40}, [0.5])
