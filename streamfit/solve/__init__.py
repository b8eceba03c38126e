"""From moments to weights: the solve, its certificate, and the choice of alpha."""

from streamfit.solve.certificate import Certificate, certify
from streamfit.solve.mixture import Influence, Mixture, Stack, best_mixture, influence, mixture_loss, stack
from streamfit.solve.ridge import IllConditionedWarning, Solution, solve
from streamfit.solve.select import AlphaPath, cross_validate, held_out_r2

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
