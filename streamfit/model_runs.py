"""A language model and the run that it came from: the sums it was solved from, and text that was held out. Floor 7."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from streamfit.config import LanguageProblem, load_problem
from streamfit.errors import MismatchError, StoreError
from streamfit.jobs import held_out
from streamfit.store import Store
from streamfit.stores import open_any
from streamfit.text import Doubt, LanguageModel
from streamfit.text.doubt import network_of


@dataclass(frozen=True)
class ModelRun:
    """A language model with its run.

    Parameters
    ----------
    folder : Path
        Of the model.
    model : LanguageModel
    problem : LanguageProblem
    store : Store
        With the sums that the model was solved from.
    """

    folder: Path
    model: LanguageModel
    problem: LanguageProblem
    store: Store

    @classmethod
    def open(cls, folder: Path, run: Path | None = None, at: str | None = None) -> ModelRun:
        """Open a model and its run: the folder above it, unless another is named.

        Raises
        ------
        StoreError
            If there is no model, or no run.
        MismatchError
            If the store's sums are others than the model was solved from.
        """
        model, where = LanguageModel.load(folder), run or folder.absolute().parent
        problem = load_problem(where / "problem.json") if (where / "problem.json").is_file() else None
        if not isinstance(problem, LanguageProblem):
            msg = f"{where} is no run of a language model"
            raise StoreError(msg, "the folder that `streamfit fit` wrote", "name it with --run")
        store = open_any(where, at)
        if store.head().commit != network_of(model).info.get("store"):
            msg = f"{where} holds other sums than those that the model in {folder} was solved from"
            raise MismatchError(msg, "the same commit", "name that commit with --at, or run `streamfit fit` again")
        return cls(folder, model, problem, store)

    def validation(self) -> list[str]:
        """Texts of the validation part, those aside that were counted."""
        documents = held_out(self.store, self.problem.corpus.documents("validation"))
        return [text for shard in documents.shards() for text in documents.documents(shard)]

    def test(self) -> list[str]:
        """Texts of the test part, those aside that were counted."""
        documents = held_out(self.store, self.problem.corpus.documents("test"))
        return [text for shard in documents.shards() for text in documents.documents(shard)]


def doubt_of(folder: Path, run: Path | None = None, at: str | None = None) -> tuple[LanguageModel, Doubt]:
    """A model and its doubt: as it was kept, or from the run's sums and validation text, and kept then.

    Raises
    ------
    StoreError
        If none is kept and there is no run to make it from.
    MismatchError
        If the run's store holds other sums than the model was solved from.
    """
    model = LanguageModel.load(folder)
    found = Doubt.load(folder, model)
    if found is None:
        opened = ModelRun.open(folder, run, at)
        found = Doubt.fit(model, opened.store.moments(), opened.validation())
        found.save(folder)
    return model, found
