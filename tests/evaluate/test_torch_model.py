"""PyTorch modules in the lanes: every attack as on the same network in JAX, nothing of the module changed."""

import collections
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import Classifier, attacks, evaluate, sets
from jaxrobust._identity import identity
from jaxrobust.evaluate import TorchModel
from tests.evaluate.models import ONE_DEVICE, assert_equal_results

torch = pytest.importorskip("torch")

SHAPE, CLASSES, KEY = (8, 6, 3), 4, jax.random.key(5)
IMAGES = np.random.default_rng(0).random((9, *SHAPE)).astype(np.float32)
OPTIONS = {"key": KEY, "lanes": 4, "devices": ONE_DEVICE}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Normalize(torch.nn.Module):
    """What RobustBench puts before its networks."""

    def __init__(self, mean, std):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(1, -1, 1, 1))

    def forward(self, images):
        return (images - self.mean) / self.std


class Block(torch.nn.Module):
    """That of a wide residual network: normalisation and ReLU, in place, before each convolution."""

    def __init__(self, before, after, stride):
        super().__init__()
        self.bn1, self.bn2 = torch.nn.BatchNorm2d(before), torch.nn.BatchNorm2d(after)
        self.conv1 = torch.nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.conv2 = torch.nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.shortcut = torch.nn.Conv2d(before, after, 1, stride, bias=False)
        self.relu = torch.nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.relu(self.bn1(x))
        return self.shortcut(x) + self.conv2(self.relu(self.bn2(self.conv1(x))))


def wide_resnet(seed=0):
    """A stand-in of RobustBench's networks, with batch statistics that are not those at the start."""
    torch.manual_seed(seed)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, 1, 1, bias=False),
        Block(4, 8, 1),
        Block(8, 8, 2),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(inplace=True),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, CLASSES),
    )
    normalize = Normalize([0.4914, 0.4822, 0.4465], [0.2471, 0.2435, 0.2616])
    whole = torch.nn.Sequential(collections.OrderedDict(normalize=normalize, model=network))
    whole(torch.from_numpy(IMAGES.transpose(0, 3, 1, 2)))
    return whole.eval()


def dense(seed=0):
    """One hidden layer, and the same network in JAX."""
    torch.manual_seed(seed)
    hidden, out = torch.nn.Linear(int(np.prod(SHAPE)), 12), torch.nn.Linear(12, CLASSES)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf.detach().numpy().T), [hidden.weight, hidden.bias, out.weight])

    def apply(params, images):
        first, bias, second = params
        flat = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        return jnp.tanh(flat @ first + bias[None]) @ second

    out.bias.data.zero_()
    return torch.nn.Sequential(torch.nn.Flatten(), hidden, torch.nn.Tanh(), out).eval(), Classifier(apply, params)


def own_labels(model):
    return model(IMAGES).argmax(-1).astype(np.int32)


def test_results_are_those_of_the_same_network_in_jax():
    module, twin = dense()
    model = TorchModel(module)
    labels = own_labels(model)
    np.testing.assert_allclose(model(IMAGES), twin(IMAGES), rtol=1e-5, atol=1e-5)
    for attack in (attacks.pgd(sets.Linf(0.05), steps=4), attacks.deepfool(sets.L2(1.0), steps=4)):
        found = evaluate.run_lanes(attack, model, IMAGES, labels, **OPTIONS).result
        expected = evaluate.run_lanes(attack, twin, IMAGES, labels, **OPTIONS).result
        assert found.success.any()
        for field in ("success", "forwards", "backwards", "code"):
            np.testing.assert_array_equal(getattr(found, field), getattr(expected, field), err_msg=field)
        np.testing.assert_allclose(found.images, expected.images, atol=1e-4)


def test_a_network_as_robustbench_has_them():
    module = wide_resnet()
    kept = {name: value.clone() for name, value in module.state_dict().items()}
    model = TorchModel(module, CLASSES)
    labels = own_labels(model)
    data = (IMAGES, labels)
    pgd = attacks.pgd(sets.Linf(0.1), steps=3)
    report = evaluate.robustness(model, data, {"pgd": pgd}, progress=False, **OPTIONS)
    outcome = report.outcomes["pgd"]
    assert report.clean.accuracy == 1 > outcome.robust.mean()
    with torch.no_grad():
        after = module(torch.from_numpy(outcome.images.transpose(0, 3, 1, 2))).argmax(1).numpy()
    np.testing.assert_array_equal(after == labels, outcome.robust)
    found = evaluate.autoattack(model, data, attacks={"pgd": pgd}, progress=False, **OPTIONS)
    np.testing.assert_allclose(found.union.accuracy, outcome.robust.mean())
    moved = evaluate.transfer({"it": model}, {"it": model, "other": TorchModel(wide_resnet(1))}, data, pgd, **OPTIONS)
    assert moved.surrogate_rate("it") == moved.rate("it", "it")
    # gradients of the images alone, by whatever mode the caller is in, and nothing is left behind
    with torch.inference_mode():
        again = evaluate.run_lanes(pgd, model, IMAGES, labels, early_stop=False, **OPTIONS).result
    once = evaluate.run_lanes(pgd, model, IMAGES, labels, early_stop=False, **OPTIONS).result
    assert_equal_results(again, once)
    assert all(own.requires_grad and own.grad is None for own in module.parameters())
    for name, value in module.state_dict().items():
        assert torch.equal(value, kept[name]), name


@pytest.mark.slow
def test_diagnostics_take_it():
    model = TorchModel(wide_resnet())
    options = {"key": KEY, "steps": 4, "queries": 10, "samples": 10, "devices": ONE_DEVICE}
    found = evaluate.masking(model, (IMAGES, own_labels(model)), sets.Linf(0.1), **options)
    assert not found["gradients"].flagged
    assert not found["loss"].flagged


def test_gradients_are_those_of_autograd():
    module = wide_resnet().double()
    scores, pull = TorchModel(module).linearised(IMAGES[:3])
    cotangents = np.random.default_rng(1).normal(size=(3, 2, CLASSES)).astype(np.float32)
    cotangents[1, 0] = 0
    found = pull(cotangents)
    leaf = torch.from_numpy(IMAGES[:3].transpose(0, 3, 1, 2)).double().requires_grad_()
    logits = module(leaf)
    np.testing.assert_allclose(scores, logits.detach(), rtol=1e-6)
    for place in range(2):
        (expected,) = torch.autograd.grad(logits, leaf, torch.from_numpy(cotangents[:, place]), retain_graph=True)
        np.testing.assert_allclose(found[:, place], expected.permute(0, 2, 3, 1), rtol=1e-5, atol=1e-8)
    assert found.dtype == scores.dtype == np.float32


def test_threads_share_a_module():
    module, _ = dense()
    model, found = TorchModel(module), {}
    cotangents = np.ones((len(IMAGES), 1, CLASSES), np.float32)

    def pulled(name):
        found[name] = [model.linearised(IMAGES)[1](cotangents) for _ in range(20)]

    threads = [threading.Thread(target=pulled, args=(name,)) for name in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = model.linearised(IMAGES)[1](cotangents)
    for gradients in found.values():
        for one in gradients:
            np.testing.assert_array_equal(one, expected)


def test_half_precision_is_cast_inside():
    module, _ = dense()
    model = TorchModel(module.to(torch.bfloat16))
    scores, pull = model.linearised(IMAGES)
    assert scores.dtype == pull(np.ones((9, 1, CLASSES), np.float32)).dtype == np.float32


def test_a_module_is_known_by_what_it_holds():
    first, second = wide_resnet(), wide_resnet()
    known = identity(TorchModel(first))
    assert identity(TorchModel(second)) == known
    second.requires_grad_(False)
    second(torch.from_numpy(IMAGES.transpose(0, 3, 1, 2)))
    hook = second.model[1].register_forward_hook(lambda module, given, found: 2 * found)
    assert identity(TorchModel(second)) != known
    hook.remove()
    assert identity(TorchModel(second)) == known
    assert identity(TorchModel(torch.compile(second))) == known
    changes = (
        lambda net: net.normalize.std.mul_(2),
        lambda net: net.model[3].running_mean.add_(1e-6),
        lambda net: net.model[-1].bias.data.add_(1e-6),
        lambda net: setattr(net.model[2].conv1, "stride", (1, 1)),
        lambda net: net.model.__setitem__(4, torch.nn.Tanh().eval()),
    )
    for change in changes:
        other = wide_resnet()
        change(other)
        assert identity(TorchModel(other)) != known
        assert identity(TorchModel(other), run_id="mine") != identity(TorchModel(first), run_id="mine")


def test_a_run_is_resumed_with_the_same_module_alone(tmp_path):
    attack = attacks.pgd(sets.Linf(0.05), steps=2)
    labels = own_labels(TorchModel(dense()[0]))
    options = {**OPTIONS, "save": tmp_path / "a.npz"}
    found = evaluate.run_lanes(attack, TorchModel(dense()[0]), IMAGES, labels, **options).result
    again = evaluate.run_lanes(attack, TorchModel(dense()[0]), IMAGES, labels, **options).result
    assert_equal_results(again, found)
    with pytest.raises(ValueError, match="differs in: model function"):
        evaluate.run_lanes(attack, TorchModel(dense(1)[0]), IMAGES, labels, **options)


class Returns(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, images):
        return self.function(images)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: TorchModel(lambda images: images), TypeError, r"must be a torch\.nn\.Module; got function"),
        (lambda: TorchModel(torch.nn.Flatten), TypeError, r"must be a torch\.nn\.Module; got the class Flatten"),
        (lambda: TorchModel(dense()[0], 1), ValueError, "classes must be >= 2; got 1"),
        (lambda: TorchModel(dense()[0].train()), ValueError, r"in evaluation mode; got training mode \(call \.eval"),
        (lambda: TorchModel(trained_again())(IMAGES), ValueError, r"got training mode of its part '1'"),
        (lambda: returned(lambda x: (x, x)), TypeError, "one tensor of logits .*; got tuple"),
        (lambda: returned(lambda x: x), ValueError, r"logits of shape \(9, K\).*\(9, 3, 8, 6\); got torch.float32 of"),
        (lambda: returned(lambda x: x.flatten(1).long()), ValueError, "floating logits .*; got torch.int64"),
        (lambda: pulled(lambda x: x.detach().flatten(1)), ValueError, "none comes back to its images"),
        (lambda: TorchModel(dense()[0], 5)(IMAGES), ValueError, r"of shape \(9, 5\) .*; got \(9, 4\)"),
    ],
)
def test_what_cannot_be_attacked_is_refused(call, error, says):
    with pytest.raises(error, match=says):
        call()


def trained_again():
    module = dense()[0]
    wrapped = TorchModel(module)
    module[1].train()
    return wrapped.function


def returned(function):
    return TorchModel(Returns(function).eval())(IMAGES)


def pulled(function):
    model = TorchModel(Returns(function).eval())
    return model.linearised(IMAGES)[1](np.ones((9, 1, 144), np.float32))


def test_parameters_that_need_gradients_do_not_make_a_model_differentiable():
    """Nor is the gradient of a constant taken for zero."""
    module = Returns(lambda x: x)
    module.bias = torch.nn.Parameter(torch.zeros(CLASSES))
    module.function = lambda x: module.bias.expand(len(x), CLASSES)
    with pytest.raises(ValueError, match="none comes back to its images"):
        TorchModel(module.eval()).linearised(IMAGES)[1](np.ones((9, 1, CLASSES), np.float32))
