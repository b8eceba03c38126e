"""Configurations of problems, checked before anything runs; those of machines are in `machines`.

Floor 7. An unknown key is an error that names the nearest valid one.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from streamfit.arrays import Precision
from streamfit.config_corpus import TableSection, TextSection
from streamfit.corpus import ParquetTable
from streamfit.corpus.table import Table
from streamfit.errors import ConfigError
from streamfit.features import Hashed
from streamfit.machines import load_machine as load_machine
from streamfit.repeats import CountRows
from streamfit.sections import Count, Positive, Section, checked, read
from streamfit.solve import TOLERANCE
from streamfit.store import KEEP, MAX_LIVE, StatisticKind
from streamfit.text import TRAINED, ExpertSettings, LanguageSettings
from streamfit.text.topic import DECAYS


class FeatureSection(Section):
    """One block of features; several are put side by side, but for hashed ones, which are alone.

    Parameters
    ----------
    kind : {'linear', 'rbf', 'fourier', 'nystroem', 'hashed'}
    n : int
        Centers, frequencies, or hashed columns: a power of two.
    gamma : float, optional
        Of kernels; chosen from the sample without it.
    categories : tuple of str
        Hashed columns whose numbers, booleans or dates are names.
    alternate_sign : bool
        Whether hashed tokens take a sign, so that those that share a column cancel on average.
    """

    kind: Literal["linear", "rbf", "fourier", "nystroem", "hashed"]
    n: Count = 256
    gamma: Positive | None = None
    categories: tuple[str, ...] = ()
    alternate_sign: bool = True

    @model_validator(mode="after")
    def _options_have_effect(self) -> FeatureSection:
        given = self.model_fields_set
        if self.kind == "hashed":
            if "n" not in given or self.gamma is not None:
                msg = "kind 'hashed' takes n, a power of two such as 262144, and no gamma"
                raise ValueError(msg)
            try:
                Hashed(self.n, self.categories, self.categories)
            except ConfigError as error:
                raise ValueError(str(error)) from error
        elif self.categories or not self.alternate_sign:
            msg = f"categories and alternate_sign are for kind 'hashed', not {self.kind!r}"
            raise ValueError(msg)
        return self


def _changed(section: Section, *names: str) -> bool:
    """Whether options differ from their defaults; what a run keeps of its config has all of them."""
    return any(getattr(section, name) != type(section).model_fields[name].default for name in names)


class LanguageSection(Section):
    """Features of a language model; see `streamfit.text.LanguageSettings`."""

    vocab_size: Annotated[int, Field(ge=257)] = 4096
    tokenizer: str = "bpe"
    n_context: Count = 6
    embedding_dims: Count = 256
    n_centers: Annotated[int, Field(ge=0)] = 512
    gamma: Positive | None = None
    linear: bool = True
    ngram_order: Annotated[int, Field(ge=2, le=8)] = 3
    topic_dims: Annotated[int, Field(ge=0)] = 0
    topic_decay: Annotated[float, Field(gt=0, lt=1)] = 0.99
    topic_window: Annotated[int, Field(ge=1, le=2**16)] = 256
    n_fourier: Annotated[int, Field(ge=0)] = 0
    fourier_decays: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(min_length=1)] = DECAYS
    sample_bytes: Count = 64_000_000

    @field_validator("tokenizer")
    @classmethod
    def _made_or_read(cls, given: str) -> str:
        if given not in TRAINED and not given.endswith(".json"):
            msg = f"one of {', '.join(TRAINED)}, or the path of a tokenizer's .json"
            raise ValueError(msg)
        return given

    @model_validator(mode="after")
    def _order_fits(self) -> LanguageSection:
        if self.ngram_order > self.n_context + 1:
            msg = f"ngram_order {self.ngram_order} needs n_context of at least {self.ngram_order - 1}"
            raise ValueError(msg)
        if self.gamma is not None and not self.n_centers:
            msg = "gamma is the width of RBF centers, of which n_centers = 0 leaves none"
            raise ValueError(msg)
        if not self.topic_dims and _changed(self, "topic_decay"):
            msg = "topic_decay is for topic_dims above 0"
            raise ValueError(msg)
        if not (self.topic_dims or self.n_fourier) and _changed(self, "topic_window"):
            msg = "topic_window is for topic_dims or n_fourier above 0"
            raise ValueError(msg)
        if not self.n_fourier and _changed(self, "fourier_decays"):
            msg = "fourier_decays are for n_fourier above 0"
            raise ValueError(msg)
        return self


class ModelSection(Section):
    """Which experts a language model mixes; see `streamfit.text.ExpertSettings`. They may change between solves."""

    experts: tuple[str, ...] = ("network", "ngram")
    classes: tuple[Count, ...] = (250, 1000, 3000)
    class_dims: Count = 100
    suffix_penalties: Annotated[tuple[Positive, ...], Field(min_length=1)] = ExpertSettings().suffix_penalties
    cache: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _can_be_mixed(self) -> ModelSection:
        try:
            found = ExpertSettings(self.experts, self.classes, self.class_dims, self.suffix_penalties)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        if _changed(self, "classes", "class_dims") and not found.clustered:
            msg = "classes and class_dims are for the experts 'classes', 'class_ridge' and 'refined'"
            raise ValueError(msg)
        if _changed(self, "suffix_penalties") and not {"suffix_ridge", "class_ridge"} & set(self.experts):
            msg = "suffix_penalties are for the experts 'suffix_ridge' and 'class_ridge'"
            raise ValueError(msg)
        return self


class SolveSection(Section):
    """The final solve: one alpha, or a grid of which one is picked.

    Parameters
    ----------
    alphas : tuple of float
    folds : int
    fit_intercept : bool
    choose_by : {'kfold', 'gcv', 'evidence'}
        Held-out folds, generalised cross-validation, or the marginal likelihood, which looks between the grid's ends.
    one_standard_error : bool
        The largest alpha that the folds cannot tell from the best one.
    per_target : bool
        An alpha for each target.
    blocks : {'', 'features'} or dict of str to patterns
        An alpha for each map of features, or for each set of features by patterns on their names.
    tolerance : float
        Share of the targets' sum of squares to which the optimum must be proved; infinite accepts anything.
    """

    alphas: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1.0,)
    folds: Annotated[int, Field(ge=2)] = 5
    fit_intercept: bool = True
    choose_by: Literal["kfold", "gcv", "evidence"] = "kfold"
    one_standard_error: bool = False
    per_target: bool = False
    blocks: Literal["", "features"] | dict[str, tuple[str, ...]] = ""
    tolerance: Annotated[float, Field(ge=0)] = TOLERANCE


class StoreSection(Section):
    """Where sums are kept, and how many segments and commits; see `streamfit.store.Store`."""

    at: str = ""
    max_live: Annotated[int, Field(ge=2)] = MAX_LIVE
    keep: Annotated[int, Field(ge=0)] = KEEP


class _Problem(Section):
    run: str
    store: StoreSection = StoreSection()
    seed: Annotated[int, Field(ge=0)] = 0
    precision: Precision = "float32"
    group_rows: Count | None = None
    count_rows: CountRows = "auto"
    solve: SolveSection = SolveSection()


class RidgeProblem(_Problem):
    """Ridge regression on the rows of a table."""

    kind: Literal["ridge"]
    corpus: TableSection
    features: Annotated[tuple[FeatureSection, ...], Field(min_length=1)] = (FeatureSection(kind="linear"),)
    sample_rows: Count = 20_000
    statistic: StatisticKind | Literal["auto"] = "auto"

    @model_validator(mode="after")
    def _hashed_alone(self) -> RidgeProblem:
        kinds = [section.kind for section in self.features]
        hashed = "hashed" in kinds
        if hashed and len(kinds) > 1:
            msg = "features: a block of kind 'hashed' stands alone; numbers can be hashed beside names"
            raise ValueError(msg)
        if (hashed and self.statistic == "qr") or (not hashed and self.statistic == "sparse"):
            msg = f"statistic {self.statistic!r} with features of kind {', '.join(kinds)}: use 'auto' or 'gram'"
            raise ValueError(msg)
        if hashed and (self.corpus.categories or self.corpus.missing != "error"):
            msg = "corpus: categories and missing are not for hashed features, which name their own categories"
            raise ValueError(msg)
        if hashed:
            try:
                self.hashed()
            except ConfigError as error:
                raise ValueError(str(error)) from error
        return self

    def hashed(self) -> Hashed | None:
        """How columns are hashed, where they are."""
        first = self.features[0]
        if first.kind != "hashed":
            return None
        return Hashed(first.n, self.corpus.features, first.categories, first.alternate_sign)

    def table(self) -> ParquetTable | Table:
        """The source of rows."""
        return self.corpus.table(self.hashed())

    @model_validator(mode="before")
    @classmethod
    def _float64_unless_told(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("statistic") == "qr":
            if given.get("precision", "float64") != "float64":
                msg = "statistic 'qr' takes precision 'float64', which it has if none is given"
                raise ValueError(msg)
            if given.get("count_rows") == "always":
                msg = "statistic 'qr' takes every row by itself: leave count_rows at 'auto', or set it to 'never'"
                raise ValueError(msg)
            return {**given, "precision": "float64"}
        blocks = given.get("features") if isinstance(given, dict) else None
        if isinstance(blocks, list | tuple) and any(isinstance(b, dict) and b.get("kind") == "hashed" for b in blocks):
            if given.get("precision", "float64") not in ("float32", "float64"):
                msg = "kind 'hashed' takes precision 'float64', which it has if none is given, or 'float32'"
                raise ValueError(msg)
            if given.get("count_rows") == "always":
                msg = "kind 'hashed' takes every row by itself: leave count_rows at 'auto', or set it to 'never'"
                raise ValueError(msg)
            # Their products are taken in float64, so that coarser sums would save memory and no time.
            return {"precision": "float64", **given}
        return given


class LanguageProblem(_Problem):
    """A language model of documents."""

    kind: Literal["language_model"]
    corpus: TextSection
    features: LanguageSection = LanguageSection()
    model: ModelSection = ModelSection()

    @model_validator(mode="after")
    def _has_validation(self) -> LanguageProblem:
        if not (self.corpus.split[1] > 0 or self.corpus.validation):
            msg = f"corpus.split {list(self.corpus.split)}: some for validation, or `validation` files"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _experts_have_what_they_need(self) -> LanguageProblem:
        chosen = self.features
        if "network" in self.model.experts and not (chosen.n_centers or chosen.linear or chosen.n_fourier):
            msg = "model.experts: 'network' needs n_centers or n_fourier above 0, or linear = true"
            raise ValueError(msg)
        sizes, vocab_size = self.experts().clustered, self.features.vocab_size
        most = vocab_size // 2
        trained = self.features.tokenizer in TRAINED  # one that is read has a vocabulary of its own
        if trained and _changed(self.model, "classes") and max(sizes, default=0) > most:
            msg = f"model.classes: {max(sizes):,}; of a vocabulary of {vocab_size:,} there are {most:,} at most"
            raise ValueError(msg)
        return self

    def experts(self) -> ExpertSettings:
        """What `streamfit.text.assemble` takes."""
        return ExpertSettings(**self.model.model_dump(), seed=self.seed)

    def reading(self) -> dict[str, Any]:
        """How documents are read and split, as JSON."""
        corpus = self.corpus
        return {
            "files": corpus.kind,
            "encoding": corpus.encoding,
            "field": corpus.field,
            "split": [*corpus.shares],
            "shard_bytes": corpus.shard_bytes,
        }

    def settings(self) -> LanguageSettings:
        """What `streamfit.text.prepare` takes."""
        chosen = self.features.model_dump()
        return LanguageSettings(**chosen, precision=self.precision, n_folds=self.solve.folds, seed=self.seed)


Problem = RidgeProblem | LanguageProblem


def load_problem(path: str | Path) -> Problem:
    """Read a problem from TOML, or from the JSON that a run keeps.

    Raises
    ------
    ConfigError
        If the file is missing, not TOML, or not a valid problem.
    """
    data = read(path)
    kinds: dict[Any, type[Problem]] = {"ridge": RidgeProblem, "language_model": LanguageProblem}
    kind = data.get("kind")
    if kind not in kinds:
        near = difflib.get_close_matches(str(kind), kinds, n=1)
        msg = f"{path}: kind = {kind!r}"
        raise ConfigError(msg, f"one of {', '.join(kinds)}", f"did you mean {near[0]!r}?" if near else "")
    return checked(path, kinds[kind], data)
