"""Scikit-learn estimators whose fits are exact sums and one solve.

Floor 6: imports features, moments, solve, models; the only package of these floors that imports scikit-learn as it
loads, so that commands and workers, which fit no estimators, start without it.
"""

from streamfit.estimators.kernel import FourierRidge, RBFNetwork
from streamfit.estimators.linear import Ridge, RidgeClassifier
from streamfit.estimators.rows import InputError

__all__ = ["FourierRidge", "InputError", "RBFNetwork", "Ridge", "RidgeClassifier"]
