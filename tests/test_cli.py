"""Every command line says what it does, and refuses what it cannot do in one line."""

import csv
import json
import os
import pathlib
import re
import runpy
import shutil
import signal
import subprocess
import sys
import warnings

import jax
import numpy as np
import pytest

from jaxrobust import attacks, cli, evaluate, sets
from jaxrobust.attacks.suites import Suite
from jaxrobust.cli import evaluate as cli_evaluate
from jaxrobust.cli import models, specs
from jaxrobust.cli.evaluate import remember_programs
from jaxrobust.evaluate import _saved
from jaxrobust.types import Classifier
from tests import tiny

COMMANDS = {
    "jaxrobust.report": "RUN_DIR",
    "jaxrobust.data.prepare": "--from",
    "experiments.quickstart": "--run-dir",
    "benchmarks.run": "--output",
}
MODEL = "tests.tiny:dense_classifier"
COUNT = 8


@pytest.fixture
def run(monkeypatch, capsys):
    """`python -m` in this process, which has imported JAX already: exit code, output, errors."""

    def run(module, *arguments):
        monkeypatch.setattr(sys, "argv", [module, *map(str, arguments)])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the module has been imported
            try:
                runpy.run_module(module, run_name="__main__", alter_sys=True)
            except SystemExit as error:
                return (error.code or 0, *capsys.readouterr())
        return (0, *capsys.readouterr())

    return run


@pytest.mark.parametrize("module", COMMANDS)
def test_help(module, run):
    code, out, err = run(module, "--help")
    assert code == 0, err
    assert COMMANDS[module] in out


def test_report_of_a_run_that_does_not_exist(tmp_path, run):
    code, _, err = run("jaxrobust.report", tmp_path / "nowhere")
    assert code == 2
    assert "nowhere" in err
    assert err.count("\n") == 1


def test_quickstart_refuses_bad_settings(tmp_path, run):
    code, _, err = run("experiments.quickstart", "--linf", "-1", "--run-dir", tmp_path / "run")
    assert code == 2
    assert "radius must be finite and >= 0; got -1" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_from_a_fresh_shell(tmp_path):
    """A file of the user's own, evaluated from its own folder; programs are kept on disk."""
    (tmp_path / "mine.py").write_text(
        "import jax.numpy as jnp\nimport jaxrobust as jr\n\n\ndef net():\n"
        "    return jr.Classifier.from_function(lambda x: jnp.stack([x.sum((1, 2, 3)), 8 - x.sum((1, 2, 3))], 1))\n"
    )
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 1), np.uint8)
    np.savez(tmp_path / "mine.npz", images=images, labels=(images.sum((1, 2, 3)) / 255 < 4).astype(int))
    environment = {n: v for n, v in os.environ.items() if not n.startswith("JAX_") or n == "JAX_PLATFORMS"}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": os.getcwd()}
    line = ["evaluate", "--model", "mine:net", "--data", "./mine.npz", "--attack", "fgsm:linf:8/255", "--out", "run"]
    command = [sys.executable, "-m", "jaxrobust", *line]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert "clean      100.0" in done.stdout
    assert "fgsm-linf" in done.stdout
    assert "Linf(8/255)" in done.stdout
    assert (tmp_path / "run" / "report.html").is_file()
    assert list((tmp_path / "cache" / "jaxrobust" / "programs").iterdir())


def test_help_imports_no_jax():
    code = "import sys; from jaxrobust.cli import main; main(['--help']); assert 'jax' not in sys.modules, 'jax'"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def main(*arguments):
    return cli.main(list(map(str, arguments)))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "mine.npz"
    images, labels = tiny.images_and_labels(tiny.dense_classifier(), COUNT)
    np.savez(path, images=images, labels=labels)
    return path


ATTACKS = ("--attack", "pgd:linf:steps=3", "--attack", "fmn:l2:1,2:steps=3", "--radius", "0.02,0.1")


def evaluated(data, out, *more, attacks=ATTACKS):
    return main("evaluate", "--model", MODEL, "--data", data, *attacks, "--out", out, "--no-cache", *more)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "one"
    assert evaluated(data, out) == 0
    return out


def results(out):
    return json.loads((out / "results.json").read_text())


def test_results_of_several_radii(finished, data):
    found = results(finished)
    (model,) = found["models"]
    assert model["name"] == "dense_classifier"
    assert list(model["attacks"]) == ["pgd-linf", "fmn-l2"]
    assert found["attacks"]["pgd-linf"]["radius"] == 0.1
    by_attack = {curve["attack"]: curve for curve in found["curves"]}
    assert by_attack["pgd-linf"]["radii"] == [0.02, 0.1]
    assert by_attack["fmn-l2"]["radii"] == [1.0, 2.0]
    for name, curve in by_attack.items():
        small, large = curve["accuracy"]["dense_classifier"]
        assert small >= large == model["attacks"][name]["accuracy"]
    assert not (finished / "progress").exists()
    with (finished / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["attack"], row["radius"]) for row in rows] == [
        ("clean", ""),
        ("pgd-linf", "0.1"),
        ("fmn-l2", "2.0"),
        ("union", ""),
        ("pgd-linf", "0.02"),
        ("fmn-l2", "1.0"),
    ]


def test_the_same_as_from_python(finished, data):
    images, labels = tiny.images_and_labels(tiny.dense_classifier(), COUNT)
    (group,) = specs.plan([], ["pgd:linf:steps=3"], (0.1,))
    found = evaluate.robustness(
        tiny.dense_classifier(), (images, labels), group.attacks, key=jax.random.key(0), progress=False
    )
    assert results(finished)["models"][0]["examples"]["outcome"]["pgd-linf"] == found["pgd-linf"].outcome.tolist()


def test_a_finished_run_is_told_and_left(finished, data, capsys):
    before = (finished / "results.json").read_bytes()
    assert evaluated(data, finished) == 0
    assert "finished already" in capsys.readouterr().out
    assert evaluated(data, finished, "--seed", 1) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --out must be new for new settings; ")
    assert "another seed" in error
    assert "--overwrite" in error
    assert (finished / "results.json").read_bytes() == before


def test_report_has_no_out_to_blame(tmp_path, capsys):
    assert main("report", tmp_path / "none") == 2
    assert capsys.readouterr().err.startswith("error: run_dir must be the folder of a run; ")


def test_options_that_a_finished_run_does_not_have_are_refused(finished, data, capsys):
    before = folder(finished)
    assert evaluated(data, finished, "--name", "other") == 2
    assert "--name must be that of the finished run" in capsys.readouterr().err
    assert evaluated(data, finished, "--title", "Other") == 2
    assert evaluated(data, finished, "--name", "dense_classifier") == 0
    assert folder(finished).keys() == before.keys()


def test_image_files_are_written_from_the_start(tmp_path, capsys):
    np.savez(tmp_path / "two.npz", images=np.full((2, 2, 2, 1), 0.5), labels=[0, 1])
    line = ("evaluate", "--model", "tests.test_cli:constant", "--data", tmp_path / "two.npz", "--no-cache")
    line += ("--attack", "fgsm:linf:0.1", "--out", tmp_path / "run")
    assert main(*line) == 0
    assert main(*line, "--images") == 2
    assert "is finished without (--overwrite runs it anew)" in capsys.readouterr().err
    assert main(*line, "--images", "--overwrite") == 0
    assert (tmp_path / "run" / "images" / "images.csv").is_file()
    assert main(*line, "--images") == 0
    assert "finished already" in capsys.readouterr().out


def test_an_interrupted_run_goes_on(finished, data, tmp_path, monkeypatch, capsys):
    kept, calls = _saved.kept, []

    def stopping(path, *arguments):
        calls.append(path.name)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return kept(path, *arguments)

    monkeypatch.setattr(_saved, "kept", stopping)
    # a shell starts what runs in the background so that Ctrl-C is ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    out = tmp_path / "run"
    assert evaluated(data, out) == 130
    signal.signal(signal.SIGINT, before)
    assert "the same command goes on" in capsys.readouterr().err
    assert [path.name for path in (out / "progress").iterdir()] == ["pgd-linf.npz"]
    assert not (out / "results.json").exists()
    monkeypatch.undo()
    # what was begun is not another run's
    assert evaluated(data, out, "--seed", 1) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert evaluated(data, out) == 0
    for what in ("examples", "attacks", "union"):
        one, other = (results(folder)["models"][0][what] for folder in (out, finished))
        for entry in (*one.values(), *other.values()) if what == "attacks" else ():
            entry.pop("seconds")
        assert one == other
    assert evaluated(data, out, "--seed", 1, "--overwrite") == 0
    assert results(out)["config"]["seed"] == 1


def folder(out):
    return {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_a_refused_overwrite_leaves_the_finished_run(finished, data, capsys):
    before = folder(finished)
    assert evaluated(data, finished, "--overwrite", "--lanes", 0) == 2
    assert evaluated(data, finished, "--overwrite", "--out", "") == 2
    assert "--out must name a folder; got ''" in capsys.readouterr().err
    assert evaluated(data, finished, "--overwrite", "--images") == 2
    assert "1, 3 or 4 channels; got 2" in capsys.readouterr().err
    assert folder(finished) == before


def test_an_interrupted_overwrite_goes_on_and_leaves_the_finished_run(finished, data, tmp_path, monkeypatch):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    before, kept, saved = folder(out), _saved.kept, []

    def stopping(path, *arguments):
        saved.append(path.exists())
        if len(saved) == 2:
            raise KeyboardInterrupt
        return kept(path, *arguments)

    monkeypatch.setattr(_saved, "kept", stopping)
    (out / "progress").mkdir()
    (out / "progress" / "pgd-linf.npz").write_bytes(b"another run's")
    assert evaluated(data, out, "--seed", 1, "--overwrite") == 130
    assert before.items() <= folder(out).items()
    assert evaluated(data, out, "--seed", 1, "--overwrite") == 0
    assert saved[:3] == [False, False, True]
    assert results(out)["config"]["seed"] == 1
    assert (out / "results.csv").read_bytes() != before[pathlib.Path("results.csv")]
    assert not (out / "progress").exists()


def test_two_runs_in_one_folder_do_not_mix(finished, data, tmp_path, monkeypatch, capsys):
    out, fgsm = tmp_path / "run", ("--attack", "fgsm:linf:0.1")
    robustness = evaluate.robustness

    def overtaken(*arguments, **options):
        found = robustness(*arguments, **options)
        shutil.copytree(finished, out, dirs_exist_ok=True)
        return found

    monkeypatch.setattr(evaluate, "robustness", overtaken)
    assert evaluated(data, out, attacks=fgsm) == 2
    assert "holds a run with another attacks" in capsys.readouterr().err
    assert folder(finished).items() <= folder(out).items()
    assert [path.name for path in (out / "progress").iterdir()] == ["fgsm-linf.npz"]
    monkeypatch.undo()
    other = out / "progress" / "other.npz"
    shutil.copy(out / "progress" / "fgsm-linf.npz", other)
    (out / "results.json").unlink()
    assert evaluated(data, out, attacks=fgsm) == 0
    assert list((out / "progress").iterdir()) == [other]


def test_a_suite_and_its_union_at_every_radius(data, tmp_path, monkeypatch, capsys):
    def small(name, *, radius=None):
        ball = sets.Linf(radius)
        second = attacks.pgd(ball, steps=3, relative_step_size=1.0)
        return Suite({"first": attacks.pgd(ball, steps=3), "second": second})

    monkeypatch.setattr(attacks, "suite", small)
    out = tmp_path / "run"
    more = ("--name", "mine", "--devices", "0", "--masking", "--title", "Mine")
    monkeypatch.setattr(evaluate, "masking", lambda *arguments, **options: Signs())
    suite = ("--suite", "autoattack-linf:0.02,0.1")
    assert evaluated(f"{data}:[:4]", out, *more, attacks=suite) == 0
    printed = capsys.readouterr().out
    found = results(out)
    assert [curve["attack"] for curve in found["curves"]] == ["first", "second", "union"]
    (model,) = found["models"]
    assert found["curves"][-1]["accuracy"]["mine"][-1] == model["union"]["accuracy"]
    # the second attack has seen only what the first has left
    assert model["attacks"]["second"]["accuracy"] == model["union"]["accuracy"]
    assert model["notes"]["masking"] == {"flags": []}
    assert "no signs" in printed
    assert "accuracy in % against radius" in printed


class Signs:
    def summary(self):
        return {"flags": []}

    def __str__(self):
        return "no signs"


REFUSED = {
    "no attack": ((), "--suite or --attack must say"),
    "suite": (("--suite", "autoattack-linfty"), "did you mean 'autoattack-linf'"),
    "attack": (("--attack", "pdg:linf:0.1"), "did you mean 'pgd'"),
    "set": (("--attack", "pgd:linff:0.1"), "did you mean 'linf'"),
    "no set": (("--attack", "pgd"), "must be written like pgd:linf:8/255:steps=40"),
    "no radius": (("--attack", "pgd:linf"), "needs a radius"),
    "radius": (("--attack", "pgd:linf:8/0"), "a number or a fraction such as 8/255; got '8/0'"),
    "negative": (("--attack", "pgd:linf:-0.1"), "got -0.1"),
    "option": (("--attack", "pgd:linf:0.1:step=3"), "did you mean 'steps'"),
    "value": (("--attack", "pgd:linf:0.1:steps=0"), "pgd:linf:0.1:steps=0: steps must be >= 1"),
    "grammar": (("--attack", "pgd:linf:0.1:steps"), "must be written NAME=VALUE"),
    "twice": (("--attack", "pgd:linf:0.1", "--attack", "pgd:linf:0.2"), "need names of their own"),
    "a row's name": (("--attack", "Union=pgd:linf:0.1"), "must not be named as a run's own files or rows"),
    "unused": (("--attack", "pgd:linf:0.1", "--radius", "0.2"), "--radius must be left out"),
    "device": (("--attack", "pgd:linf:0.1", "--devices", "9"), "--devices must be places from 0"),
    "lanes": (("--attack", "pgd:linf:0.1", "--lanes", "0"), "lanes must be >= 1; got 0"),
    "devices": (("--attack", "pgd:linf:0.1", "--devices", "0,0"), "each once, such as 0; got '0,0'"),
    "seed": (("--attack", "pgd:linf:0.1", "--seed", str(2**70)), "--seed must be from 0 to 4294967295; got"),
    "option twice": (("--attack", "pgd:linf:0.1:steps=3,steps=4"), "once each; got 'steps' again"),
    "a file's name": (("--attack", "images.csv=pgd:linf:0.1"), "must not be named as a run's own files or rows"),
    "usage": (("--attack", "pgd:linf:0.1", "--lanes", "many"), "invalid int value: 'many'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(case, data, tmp_path, capsys):
    asked, message = REFUSED[case]
    assert evaluated(data, tmp_path / "run", attacks=asked) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("tests.tiny", "must be written PACKAGE.MODULE:FUNCTION"),
        ("nowhere.at_all:net", "no module 'nowhere.at_all'"),
        ("nowhere.py:net", "no file 'nowhere.py'"),
        ("tests.tiny:dense_clasifier", "has no 'dense_clasifier' (did you mean 'dense_classifier'?)"),
        ("tests.tiny:SHAPE", "must return a Classifier"),
        ("tests.tiny:images_and_labels", "raised TypeError at"),
    ],
)
def test_bad_models(model, message, data, tmp_path, capsys):
    line = ("--data", data, "--attack", "fgsm:linf:0.1", "--out", tmp_path / "run", "--no-cache")
    assert main("evaluate", "--model", model, *line) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_run_is_finished_though_nobody_reads(data, tmp_path, monkeypatch):
    reads, writes = os.pipe()
    os.close(reads)
    with os.fdopen(writes, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert evaluated(data, tmp_path / "run", attacks=("--attack", "fgsm:linf:0.1")) == 0
        assert main("list", "suites") == 0
    assert (tmp_path / "run" / "results.json").is_file()


def constant():
    return Classifier.from_function(lambda images: jax.numpy.stack([images.sum((1, 2, 3))] * 3, -1))


def test_fewer_classes_than_the_model_has_are_told(tmp_path, capsys):
    np.savez(tmp_path / "two.npz", images=np.full((2, 2, 2, 1), 0.5), labels=[0, 1])
    line = ("evaluate", "--model", "tests.test_cli:constant", "--data", tmp_path / "two.npz", "--no-cache")
    assert main(*line, "--attack", "fgsm:linf:0.1", "--out", tmp_path / "run") == 0
    assert "note: the data has 2 classes, the model 3: are the labels the model's?" in capsys.readouterr().err


def failing():
    def function(images):
        raise FAILURE

    return evaluate.HostModel(function, classes=tiny.CLASSES)


FAILURE = RuntimeError("mat1 and mat2\ncannot be multiplied")


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, TypeError, ConnectionError, SystemExit])
def test_a_model_that_fails_is_told_in_one_line(kind, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["tests.test_cli"], "FAILURE", kind(*FAILURE.args))
    line = ("evaluate", "--model", "tests.test_cli:failing", "--data", data, "--attack", "worst_of_k:linf:0.1")
    line += ("--out", tmp_path / "run", "--no-cache")
    assert main(*line) == 1
    error = capsys.readouterr().err
    assert error == f"error: {kind.__name__}: mat1 and mat2 cannot be multiplied (--debug shows where)\n"
    if kind is RuntimeError:
        with pytest.raises(RuntimeError):
            main(*line, "--debug")


def ending():
    sys.exit()


def test_a_model_that_ends_the_process_is_a_failure(data, tmp_path, capsys):
    line = ("evaluate", "--model", "tests.test_cli:ending", "--data", data, "--attack", "fgsm:linf:0.1")
    assert main(*line, "--out", tmp_path / "run", "--no-cache") == 1
    assert capsys.readouterr().err == "error: SystemExit: nothing more (--debug shows where)\n"


def test_a_full_disk_is_a_failure(data, tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(evaluate, "save_run", full)
    assert evaluated(data, tmp_path / "run", attacks=("--attack", "fgsm:linf:0.1")) == 1
    assert "No space left on device (--debug shows where)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("cifar11", "did you mean cifar10"),
        ("digits:[:0]", "must name a part"),
        ("digits[:10]:test", "must be written like cifar10:test[:1000]"),
        ("./nowhere.npz", "folder of images or an .npz"),
    ],
)
def test_bad_data(named, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        specs.data_set(named)


def test_data_by_name_has_a_usual_split():
    assert len(specs.data_set("digits")) == 359
    assert len(specs.data_set("digits:[:7]")) == len(specs.data_set("digits:test[:7]")) == 7
    assert len(specs.data_set("digits:train[:5]")) == 5


def test_specs():
    (suite,) = specs.plan(["autoattack-linf:4/255,8/255"], [], ())
    assert suite.suite
    assert set(suite.radii.values()) == {(4 / 255, 8 / 255)}
    assert repr(suite.attacks["fab-t"].set) == "Linf(8/255)"
    one, other = specs.plan(["autoattack-l2"], ["pgd:cifar10.flow+linf", "w=frank_wolfe:wasserstein(kernel=3):0.1"], ())
    assert list(other.attacks) == ["pgd-cifar10.flow+linf", "w"]
    assert other.attacks["w"].set.kernel == 3
    assert next(iter(one.attacks)) == "autoattack-l2 apgd-ce"
    (group,) = specs.plan([], ["pgd:linf:0.1:steps=3", "pgd:linf:0.1:steps=5,loss=dlr"], ())
    assert [attack.steps for attack in group.attacks.values()] == [3, 5]


@pytest.mark.parametrize(
    "what", [pytest.param("attacks", marks=pytest.mark.slow), "sets", "suites", "objectives", "models", "data"]
)
def test_lists(what, capsys):
    assert main("list", what) == 0
    listed = capsys.readouterr().out
    expected = {
        "attacks": "apgd_t",
        "sets": "wasserstein(",
        "suites": "fab-t",
        "objectives": "trades",
        "models": "WideResNet",
        "data": "digits",
    }
    assert expected[what] in listed
    assert max(map(len, listed.splitlines())) <= 120


def test_every_listed_set_and_attack_is_made():
    for name in specs.set_makers():
        on = "l0_linf(bound=0.5)" if name == "l0_linf" else name
        specs.plan([], [f"pgd:{on}:1"], ())
    assert {"stadv", "pgd", "apgd", "square", "hop_skip_jump"} <= set(specs.attack_makers())


def test_page_of_two_runs(finished, data, tmp_path, capsys):
    other = tmp_path / "other"
    assert evaluated(data, other, "--name", "again", attacks=("--attack", "fgsm:linf:0.1")) == 0
    assert main("report", finished, other, "--output", tmp_path / "both.html") == 0
    page = (tmp_path / "both.html").read_text()
    assert "2 runs: one, other" in page
    assert all(name in page for name in ("dense_classifier", "again", "pgd-linf", "fgsm-linf"))
    assert main("report", finished) == 0
    assert main("report", finished, finished, "--output", tmp_path / "both.html") == 2
    assert "different folders" in capsys.readouterr().err


def test_models_of_all_kinds():
    from flax import linen, nnx

    from jaxrobust.models import SmallCNN

    dense = linen.Dense(3)
    variables = dense.init(jax.random.key(0), np.zeros((1, 4)))
    assert isinstance(models.of((dense, variables)), Classifier)
    assert isinstance(models.of(SmallCNN(rngs=nnx.Rngs(0))), Classifier)
    assert isinstance(models.of(lambda images: images), Classifier)
    host = evaluate.HostModel(lambda images: images[:, 0, 0], classes=2)
    assert models.of(host) is host


def test_the_cache_keeps_to_jax_own_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "3")
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
        remember_programs()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "own")
        assert jax.config.jax_persistent_cache_min_compile_time_secs == before[1]
    finally:
        jax.config.update("jax_compilation_cache_dir", before[0])


def test_given_targets(data, tmp_path, capsys):
    fgsm = ("--attack", "fgsm:linf:0.05")
    assert evaluated(data, tmp_path / "a", "--targets", "next", attacks=fgsm) == 0
    assert "against given targets" in capsys.readouterr().out
    (model,) = results(tmp_path / "a")["models"]
    assert model["notes"]["criterion"] == "given targets"
    labels = np.load(data)["labels"]
    np.save(tmp_path / "t.npy", (labels + 1) % (labels.max() + 1))
    assert evaluated(data, tmp_path / "a", "--targets", tmp_path / "t.npy", attacks=fgsm) == 0
    assert "finished already" in capsys.readouterr().out
    assert evaluated(data, tmp_path / "b", "--targets", "least", attacks=fgsm) == 2
    assert "--targets must be next or a .npy file" in capsys.readouterr().err
    (tmp_path / "t.npy").write_bytes(b"\x93NUMPY, once")
    assert evaluated(data, tmp_path / "b", "--targets", tmp_path / "t.npy", attacks=fgsm) == 2
    assert "--targets must be next or a .npy file of classes; got" in capsys.readouterr().err


def test_what_others_hold_in_the_folder_stays(finished, data, tmp_path, monkeypatch, capsys):
    out, robustness = tmp_path / "run", evaluate.robustness
    fgsm = ("--attack", "fgsm:linf:0.1")
    shutil.copytree(finished, out)

    def overtaken(*arguments, **options):
        monkeypatch.undo()
        found = robustness(*arguments, **options)
        monkeypatch.setattr(cli_evaluate, "_own_name", lambda: "b.run")  # as another process would be
        shutil.copy(out / "progress" / "fgsm-linf.npz", out / "progress" / "pgd-linf.npz")
        before = folder(out / "progress")
        assert evaluated(data, out, "--seed", 1, "--overwrite", attacks=fgsm) == 2
        assert f"--out: {out} is in use by another run, process {os.getpid()}" in capsys.readouterr().err
        (out / "progress" / cli_evaluate.MARK).unlink()
        assert evaluated(data, out) == 0
        assert before.keys() - folder(out / "progress").keys() == {pathlib.Path(cli_evaluate.MARK)}
        (out / "progress" / "pgd-linf.npz").unlink()
        monkeypatch.setattr(cli_evaluate, "_own_name", lambda: "a.run")
        return found

    monkeypatch.setattr(evaluate, "robustness", overtaken)
    monkeypatch.setattr(cli_evaluate, "_own_name", lambda: "a.run")
    assert evaluated(data, out, "--overwrite", attacks=fgsm) == 0
    assert not (out / "progress").exists()


def test_a_run_that_ended_after_its_results_is_completed(finished, data, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / "results.csv").unlink()
    left = out / "progress" / "radius 0.02"
    left.mkdir(parents=True)
    for path in (
        left / "pgd-linf.npz",
        left / ".pgd-linf.npz.lock",
        left / ".pgd-linf.npz.0123.partial",
        out / ".results.csv.0123.partial",
    ):
        path.touch()
    assert evaluated(data, out) == 0
    assert folder(out) == folder(finished)
    assert not (out / "progress").exists()


def test_close_radii_save_apart(tmp_path):
    near, third = (cli_evaluate._at_radius(tmp_path, radius) for radius in specs.radii("1/3,0.3333333333"))
    assert near != third
