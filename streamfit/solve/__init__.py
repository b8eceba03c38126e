"""From moments to weights: the solve, its certificate, and the choice of alpha."""

from streamfit.solve.certificate import Certificate, certify
from streamfit.solve.ridge import IllConditionedWarning, Solution, solve
from streamfit.solve.select import AlphaPath, cross_validate, held_out_r2

__all__ = [
    "AlphaPath",
    "Certificate",
    "IllConditionedWarning",
    "Solution",
    "certify",
    "cross_validate",
    "held_out_r2",
    "solve",
]
