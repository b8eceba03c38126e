"""Exact one-pass fits of models that are linear in their parameters."""

from streamfit.corpus import Files, JsonLines, ParquetTable, TextFiles
from streamfit.engine import Machine, WorkOptions, accumulate, connect
from streamfit.errors import StreamfitError
from streamfit.features import RBF, Linear, Lookup, RandomFourier, Standardize
from streamfit.frame import Frame
from streamfit.models import LinearModel, RBFNetwork, Ridge
from streamfit.moments import Moments, MomentsAccumulator
from streamfit.solve import Certificate, Solution, cross_validate, solve
from streamfit.store import Header, Store
from streamfit.targets import Dense, OneHot, Targets
from streamfit.text import LanguageModel, LanguageSettings

__all__ = [
    "RBF",
    "Certificate",
    "Dense",
    "Files",
    "Frame",
    "Header",
    "JsonLines",
    "LanguageModel",
    "LanguageSettings",
    "Linear",
    "LinearModel",
    "Lookup",
    "Machine",
    "Moments",
    "MomentsAccumulator",
    "OneHot",
    "ParquetTable",
    "RBFNetwork",
    "RandomFourier",
    "Ridge",
    "Solution",
    "Standardize",
    "Store",
    "StreamfitError",
    "Targets",
    "TextFiles",
    "WorkOptions",
    "accumulate",
    "connect",
    "cross_validate",
    "solve",
]
