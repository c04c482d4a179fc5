"""What a run folder holds: the names of its files, and what the fields and codes in them mean."""

from __future__ import annotations

__all__ = [
    "CLEAN_ERROR",
    "FOOLED",
    "FORMAT",
    "IMAGES",
    "LEGEND",
    "LISTED",
    "NON_FINITE",
    "OUTCOMES",
    "PAGE",
    "PICTURES",
    "PROGRESS",
    "RESULTS",
    "ROBUST",
    "TABLE",
    "picture_key",
]

FORMAT = 1  # to be raised with any change by which an older reader would be led astray
RESULTS, PAGE, PICTURES, TABLE = "results.json", "report.html", "pictures.npz", "results.csv"
IMAGES, LISTED = "images", "images.csv"  # a folder of PNG files, and the list of them in it
PROGRESS = "progress"  # a folder of what an unfinished run has saved

# what became of an example under an attack
OUTCOMES = ("robust", "fooled", "clean error", "non-finite")
ROBUST, FOOLED, CLEAN_ERROR, NON_FINITE = range(len(OUTCOMES))

# what results.json says of itself, by the names of its fields
LEGEND = {
    "outcome": "of every example: 0 robust (classified correctly, and no point found that is not), 1 fooled, 2 clean "
    "error (misclassified without an attack), 3 non-finite (the model returned NaN or infinite logits)",
    "size": "of every example: how large the change of the point returned is, in the unit of the set's radius",
    "label": "of every example: the true class, from 0",
    "prediction": "of every example: the class that the model predicts for the clean image",
    "images": "digest of the clean images",
    "examples": "lists with one entry an example, in the order of the data",
    "accuracy": "share of examples in [0, 1]: under an attack of those with outcome 0; of curves, a list, one a radius",
    "low": "lower end of the 95 % Wilson interval of an accuracy; of trajectories, of the losses' 10-90 % band",
    "high": "the upper end of the same",
    "clean": "accuracy without an attack",
    "union": "accuracy where an example counts only if no attack fooled it",
    "unseen_mean": "mean accuracy over the attacks that are not in trained_on; null if there is none",
    "trained_on": "names of the attacks that training had seen",
    "success_rate": "share of fooled examples among those that were attacked (outcome 0 or 1)",
    "mean_size": "mean size of fooled examples",
    "median_size": "median size of fooled examples",
    "fooled": "number of examples with outcome 1",
    "fooled_8bit": "how many of these still fool the model when they are rounded to 8 bits a channel, or null",
    "forwards": "mean forward passes (queries) of an attacked example",
    "backwards": "mean gradients of an attacked example",
    "seconds": "wall time, of the run or of an attack",
    "steps_executed": "steps that the machine ran, over all lanes",
    "steps_needed": "steps that the examples needed",
    "non_finite": "number of examples with outcome 3",
    "disagreed": "number of examples whose success a fresh forward pass did not confirm; they count as robust",
    "outside": "number of examples whose success lies outside of the attack's own set; they count as robust",
    "no_start": "number of examples for which the attack found no point to start from; they count as robust",
    "inherits": "true where some examples had been fooled by an earlier attack, so that accuracy is that of all so far",
    "radius": "of the attack's set, in its own unit; a list, one an example, where each has its own",
    "radii": "where accuracy was measured, in the unit of the set's radius",
    "set": "the type of the attack's perturbation set",
    "settings": "every setting of the attack",
    "description": "the attack in words",
    "mean": "mean of the attack's loss over the examples at every step, from the start; by model",
    "count": "number of examples",
    "shape": "height, width and channels of an image in [0, 1]",
    "classes": "number of classes",
    "class_names": "names of the classes, in order, or null",
    "split": "part of the data set",
    "data": "the examples",
    "key": "data of the JAX key that made all randomness",
    "config": "the settings of the run",
    "notes": "what else was kept with a model",
    "identity": "digests of the settings and the version, by which a finished run is known",
    "versions": "of the packages that ran",
    "device": "what it ran on",
    "created": "when the run was written, UTC",
    "command": "what was run",
    "complete": "true once all is written",
    "format": "version of this file's form",
    "pictures": "file in the same folder: clean, label; model M/prediction, model M/attack A/images and /prediction, M "
    "and A being places in models and attacks, from 0",
    "attacks": "by name: at the top what they are, in a model what they did",
    "models": "one entry a model",
    "curves": "accuracy against radius, an entry an attack",
    "trajectories": "loss against step, an entry an attack",
    "attack": "name of an attack",
    "name": "of the model, or of the data set",
    "title": "of the page",
}


def picture_key(what: str, model: int, *, attack: int | None = None) -> str:
    """The name of an array of pictures.npz.

    Args:
        what: "images" or "prediction".
        model: the model's place in the run.
        attack: the attack's, or None for the clean images.

    Returns:
        The name.

    Example:
        >>> picture_key("images", 0, attack=2)
        'model 0/attack 2/images'
    """
    return f"model {model}/" + ("" if attack is None else f"attack {attack}/") + what
