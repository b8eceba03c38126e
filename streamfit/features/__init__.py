"""Feature maps: fit on a sample with a seed, then frozen. `+` concatenates."""

from streamfit.features.base import Chain, Concat, FeatureMap, Pick, from_spec, register
from streamfit.features.fourier import RandomFourier
from streamfit.features.hashed import Hashed
from streamfit.features.linear import Linear, Standardize
from streamfit.features.lookup import Lookup
from streamfit.features.nystroem import Nystroem, kernel_whitening
from streamfit.features.rbf import RBF, choose_centers, median_gamma
from streamfit.features.windows import Decayed, Nearest

__all__ = [
    "RBF",
    "Chain",
    "Concat",
    "Decayed",
    "FeatureMap",
    "Hashed",
    "Linear",
    "Lookup",
    "Nearest",
    "Nystroem",
    "Pick",
    "RandomFourier",
    "Standardize",
    "choose_centers",
    "from_spec",
    "kernel_whitening",
    "median_gamma",
    "register",
]
