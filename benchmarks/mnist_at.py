"""Adversarial training on MNIST: what accuracy after how many minutes on this machine."""

from __future__ import annotations

from collections.abc import Iterator

import jax
from flax import nnx

import jaxrobust as jr
from benchmarks import work
from benchmarks.harness import Figure, Settings, register, seconds
from jaxrobust import training

RADIUS = 0.3


@register
def mnist_at(settings: Settings) -> Iterator[Figure]:
    """The small CNN, PGD adversarial training at linf 0.3; clean and PGD-40 accuracy on 1,000 test images.

    The radius grows from 0, without which this network often stays at loss log 10. Training uses fewer, larger
    steps than the reference's 40 of 0.01 and the evaluation takes those. Killed and started again with the same
    settings, it goes on from its last checkpoint.

    Reference:
        Madry et al., 2018, arXiv:1706.06083.
    """
    examples, epochs, warmup, count = settings.at_examples, settings.at_epochs, settings.at_warmup, 1000
    if settings.quick:
        examples, epochs, warmup, count = 640, 1, 0.5, 100
    network = jr.models.SmallCNN(size=28, width=settings.at_width, padding="VALID", rngs=nnx.Rngs(settings.seed))
    train, test = jr.data.load("mnist", f"train[:{examples}]"), jr.data.load("mnist", f"test[:{count}]")
    crafted = jr.attacks.pgd(jr.sets.Linf(RADIUS), steps=settings.at_steps, step_size=settings.at_step_size)
    config = training.TrainConfig(
        epochs=epochs, schedule="cyclic", learning_rate=2e-3, radius_warmup=warmup, checkpoint_every=50
    )

    reference = work.gradients(jr.Classifier.from_nnx(network), train.images[:128], train.labels[:128], times=1)
    seconds(reference)
    gradient = min(seconds(reference) for _ in range(5))
    trained_on = examples - min(round(examples * config.validation), config.validation_limit)
    total = epochs * (trained_on // config.batch_size)
    estimate = total * gradient * (settings.at_steps + 2) / 60
    print(f"mnist_at: {total} steps, about {estimate:.1f} minutes at {1000 * gradient:.0f} ms a gradient", flush=True)

    fitted = training.fit(
        network,
        train,
        objective=training.adversarial(crafted, clean_metric=False),
        config=config,
        key=jax.random.key(settings.seed),
        run_dir=settings.run_dir.with_name(f"{settings.run_dir.name}_quick") if settings.quick else settings.run_dir,
        progress=settings.progress,
    )
    spent = sum(row["seconds"] for row in fitted.history)
    yield Figure("training, validation included", spent / 60, "min", target=15)
    yield Figure("training steps", fitted.history[-1]["step"], "steps")
    steps = 10 if settings.quick else 40
    report = jr.evaluate.robustness(
        fitted.classifier,
        (test.images, test.labels),
        {"PGD": jr.attacks.pgd(jr.sets.Linf(RADIUS), steps=steps, step_size=0.01)},
        key=jax.random.key(settings.seed + 1),
        progress=settings.progress,
    )
    yield Figure(f"clean accuracy, {count} images", 100 * report.clean.accuracy, "%")
    yield Figure(f"accuracy under PGD-{steps}, {count} images", 100 * report.union.accuracy, "%")
