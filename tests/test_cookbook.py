"""The ten daily jobs run and say what they say."""

import pathlib
import re

import pytest

import experiments
from experiments import cookbook

SAYS = {
    "table": r"l∞ 0 +9\d\.\d%\n.*l∞ 0\.2 +\d\.\d%$",
    "images": r"^\d+ files; .*fooled_8bit\npgd/",
    "distances": r"^median l2 distance 0\.\d+; robust: \d+\.\d% at 0\.25",
    "compare": r"fgsm .*pgd .*apgd .*worst case",
    "targets": r"against given targets.*targeted",
    "transfer": r"strong -> weak .*weak +-> strong",
    "train": r"adv_acc",
    "shell": r"fgsm",
    "torch": r"skipped: PyTorch is not installed|pgd",
    "queries": r"\d+\.\d% robust after 10, .* after 100$",
}


def test_every_job_is_known():
    assert list(SAYS) == list(cookbook.JOBS)
    readme = pathlib.Path(experiments.__file__).parents[1] / "README.md"
    assert "](experiments/cookbook.py)" in readme.read_text(encoding="utf-8")


@pytest.mark.parametrize("job", [pytest.param(j, marks=[] if j == "table" else [pytest.mark.slow]) for j in SAYS])
def test_job(job, capsys):
    cookbook.main([job])
    said = capsys.readouterr().out
    head, _, text = said.partition("\n\n")
    assert head == f"{job}: {cookbook.JOBS[job].__doc__}"
    assert re.search(SAYS[job], text.rstrip(), re.DOTALL)


def test_an_unknown_job_is_named():
    with pytest.raises(SystemExit, match=r"jobs must be among table, images, .*; got tabel"):
        cookbook.main(["tabel"])
