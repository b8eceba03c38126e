"""From moments to weights: the solve, its certificate, and the choice of alpha."""

from streamfit.solve.certificate import Certificate, certify
from streamfit.solve.mixture import Influence, Mixture, best_mixture, influence, mixture_loss
from streamfit.solve.ridge import IllConditionedWarning, Solution, solve
from streamfit.solve.select import AlphaPath, cross_validate, held_out_r2
from streamfit.solve.stack import Stack, stack

__all__ = [
    "AlphaPath",
    "Certificate",
    "IllConditionedWarning",
    "Influence",
    "Mixture",
    "Solution",
    "Stack",
    "best_mixture",
    "certify",
    "cross_validate",
    "held_out_r2",
    "influence",
    "mixture_loss",
    "solve",
    "stack",
]
