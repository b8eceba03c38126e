"""Exact one-pass fits of models that are linear in their parameters."""

from typing import TYPE_CHECKING, Any

from streamfit.corpus import Files, JsonLines, ParquetTable, TextFiles
from streamfit.engine import Machine, WorkOptions, connect
from streamfit.errors import StreamfitError
from streamfit.features import RBF, Hashed, Linear, Lookup, Nystroem, RandomFourier, Standardize
from streamfit.frame import Frame
from streamfit.models import LinearModel
from streamfit.moments import Moments, MomentsAccumulator
from streamfit.optimum import Model, model_of, solve
from streamfit.rows import Corpus
from streamfit.solve import (
    Certificate,
    Posterior,
    Solution,
    cross_validate,
    posterior,
    prune,
    solve_sparse,
    solve_triangle,
)
from streamfit.sparse_moments import SparseMoments, SparseRowsAccumulator
from streamfit.store import Header, Store
from streamfit.tables import Block
from streamfit.targets import Dense, OneHot, Targets
from streamfit.text import LanguageModel, LanguageSettings
from streamfit.triangle import Triangle
from streamfit.verbs import accumulate, add, forget, merge

if TYPE_CHECKING:
    from streamfit.estimators import FourierRidge, RBFNetwork, Ridge, RidgeClassifier

__all__ = [
    "RBF",
    "Block",
    "Certificate",
    "Corpus",
    "Dense",
    "Files",
    "FourierRidge",
    "Frame",
    "Hashed",
    "Header",
    "JsonLines",
    "LanguageModel",
    "LanguageSettings",
    "Linear",
    "LinearModel",
    "Lookup",
    "Machine",
    "Model",
    "Moments",
    "MomentsAccumulator",
    "Nystroem",
    "OneHot",
    "ParquetTable",
    "Posterior",
    "RBFNetwork",
    "RandomFourier",
    "Ridge",
    "RidgeClassifier",
    "Solution",
    "SparseMoments",
    "SparseRowsAccumulator",
    "Standardize",
    "Store",
    "StreamfitError",
    "Targets",
    "TextFiles",
    "Triangle",
    "WorkOptions",
    "accumulate",
    "add",
    "connect",
    "cross_validate",
    "forget",
    "merge",
    "model_of",
    "posterior",
    "prune",
    "solve",
    "solve_sparse",
    "solve_triangle",
]


def __getattr__(name: str) -> Any:
    # The estimators bring scikit-learn and pandas, a third of the time that a command or a worker takes to start.
    if name in ("FourierRidge", "RBFNetwork", "Ridge", "RidgeClassifier"):
        from streamfit import estimators

        return getattr(estimators, name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
