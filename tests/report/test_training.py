"""The section on training: loss and held-out accuracies against epoch, for models whose log was noted."""

import pytest

from jaxrobust import report
from tests.report import fake
from tests.report.html import Page

LOG = [
    {"epoch": 1, "step": 10, "loss": 2.0, "seconds": 1.0},
    {"epoch": 2, "step": 20, "loss": 1.0, "seconds": 1.0, "val_clean_acc": 0.5, "val_adv_acc": 0.25},
    {"epoch": 3, "step": 30, "loss": 0.5, "seconds": 1.0, "val_clean_acc": 0.75, "val_adv_acc": 0.5},
]
CHARTS = ["Loss on the training images", "Accuracy on held-out images", "The same, under the attack of training"]


def opened(folder, *logs):
    content = fake.noted("training", *logs)
    return Page(report.render(fake.write(folder, content)).read_text())


def charts(page):
    return [attrs["aria-label"] for attrs in page.attributes("svg") if "aria-label" in attrs]


@pytest.mark.parametrize("epochs", [1, 3])
def test_what_was_logged_has_a_chart(epochs, tmp_path):
    page = opened(tmp_path / "run", LOG[:epochs], [{"epoch": 1, "loss": 1.5}])
    drawn = 1 if epochs == 1 else 3
    assert charts(page) == [f"{name} against epoch" for name in CHARTS[:drawn]]
    assert "training" in [attrs["id"] for attrs in page.attributes("section")]
    assert "training =" not in page.words("settings")


@pytest.mark.parametrize("log", ["by hand", [], [{"loss": 1.0}], [{"epoch": 1, "loss": None}], [3]])
def test_without_a_log_there_is_no_section(log, tmp_path):
    page = opened(tmp_path / "run", log)
    assert not charts(page)
    assert "training" not in [attrs["id"] for attrs in page.attributes("section")]
