"""A language model and the run that it came from: the sums it was solved from, and text that was held out. Floor 7."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from streamfit.config import LanguageProblem, load_problem
from streamfit.errors import MismatchError, StoreError
from streamfit.frame import BLOCK_ROWS
from streamfit.held_out import held_out
from streamfit.moments import Moments, MomentsAccumulator
from streamfit.store import Store
from streamfit.stores import open_any
from streamfit.text import Doubt, LanguageModel
from streamfit.text.contexts import Windows
from streamfit.text.distill import HeldOut, halves
from streamfit.text.network_sums import network_of


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

    def moments(self) -> Moments:
        """The sums.

        Raises
        ------
        MismatchError
            If they are not those of products.
        """
        found = self.store.moments()
        if not isinstance(found, Moments):
            msg = f"{self.store.place} keeps {type(found).__name__}"
            raise MismatchError(msg, "sums of products")
        return found

    def held_out_rows(self, n_rows: int) -> HeldOut:
        """So many validation tokens with their contexts, of documents in a random order."""
        texts = self.validation()
        np.random.default_rng(0).shuffle(texts)
        windows = Windows(self.model.tokenizer.encode(texts), self.model.n_context)
        rows = slice(0, min(n_rows, len(windows)))
        return halves(windows[rows], windows.tokens[rows])

    def count(self, texts: Iterable[str]) -> Moments:
        """Sums of some texts, in the frame of the store; nothing is committed."""
        windows = Windows(self.model.tokenizer.encode(list(texts)), self.model.n_context)
        accumulator = self.store.header.accumulator()
        assert isinstance(accumulator, MomentsAccumulator)
        for rows, contexts in windows.batches(BLOCK_ROWS):
            accumulator.add(self.store.header.features(contexts), windows.tokens[rows])
        return accumulator.moments()

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
        found = Doubt.fit(model, opened.moments(), opened.validation())
        with suppress(StoreError):  # in a folder that cannot be written it is made each time
            found.save(folder)
    return model, found
