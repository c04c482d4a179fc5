"""What `robustness` returns: the outcomes, and the forms in which a person takes them along."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from jaxrobust import _checks, _store
from jaxrobust.evaluate import export
from jaxrobust.evaluate.host import HostModel
from jaxrobust.evaluate.outcomes import Outcomes
from jaxrobust.evaluate.run_folder import save_run
from jaxrobust.types import Classifier

__all__ = ["Evaluation"]


@dataclasses.dataclass(frozen=True, repr=False)
class Evaluation(Outcomes):
    """One model under several attacks, per example. Printing it gives a table; its fields are those of `Outcomes`."""

    def with_notes(self, **notes: Any) -> Evaluation:
        """The same evaluation with more notes.

        Args:
            **notes: anything in JSON's terms. The page shows them among the settings; what `MaskingReport.summary`
                gives, under the name `masking`, has a section of its own, and so has the `history` of
                `training.fit` under the name `training`.

        Returns:
            A new evaluation; notes of one name are replaced.

        Example:
            >>> diagnosis = jr.evaluate.masking(model, (x, y), jr.sets.Linf(8 / 255), key=key)  # doctest: +SKIP
            >>> report.with_notes(masking=diagnosis.summary()).save("runs/mine")  # doctest: +SKIP
        """
        return dataclasses.replace(self, notes={**self.notes, **notes})

    def rows(self, *, examples: bool = False) -> list[dict[str, Any]]:
        """The results as rows of a table.

        Args:
            examples: one row an attack and example, instead of one for clean images, each attack and the union.

        Returns:
            The rows, name -> value; see `report.LEGEND`.
        """
        return list(export.example_rows(self) if examples else export.rows(self))

    def to_csv(self, path: str | os.PathLike[str], *, examples: bool = False) -> _store.Path:
        """Write the rows to a CSV file.

        Args:
            path: the file; an older one is replaced.
            examples: as in `rows`.

        Returns:
            The path.
        """
        return export.write_csv(path, self.rows(examples=examples))

    def to_frame(self, *, examples: bool = False) -> Any:
        """The rows as a `pandas.DataFrame`.

        Args:
            examples: as in `rows`.

        Returns:
            The data frame.

        Raises:
            ImportError: pandas is not installed.
        """
        return export.data_frame(self.rows(examples=examples))

    def save_images(
        self, folder: str | os.PathLike[str], *, attack: str | None = None, model: Classifier | HostModel | None = None
    ) -> _store.Path:
        """Write what fooled the model as PNG files, and a list of them: `images.csv`.

        A PNG has 8 bits a channel. Files of images that do not fool the model once they are rounded to that end in
        "_lost", and have no in the list's column `fooled_8bit`; for minimum-norm attacks, which stop at the boundary,
        these may be half.

        Args:
            folder: where to; made if need be. Each attack has a folder of its name in it. Files that an earlier call
                has listed there of the same attack are replaced, and of other attacks kept.
            attack: which; by default all.
            model: a model to ask anew about the rounded images, such as a `HostModel`, which `robustness` does not ask.

        Returns:
            The folder.

        Raises:
            ValueError: images that are neither grey nor RGB, or an unknown attack.
        """
        names = list(self.outcomes) if attack is None else [_checks.choice("attack", attack, self.outcomes)]
        return export.save_images(self, _store.local("folder", folder), names, model)

    def save(self, run_dir: str | os.PathLike[str], *, title: str | None = None) -> _store.Path:
        """Write `results.json`, pictures and the page to a new run folder.

        Args:
            run_dir: the folder; made if it does not exist.
            title: the page's title; by default the model's name.

        Returns:
            The page.

        Raises:
            ValueError: the folder holds a run already.
        """
        return save_run(run_dir, [self], title=title or self.name)
