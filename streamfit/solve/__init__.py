"""From moments to weights: the solve, its certificate, and the choice of alpha."""

from streamfit.solve.alpha_scores import AlphaScores, Evidence, maximise_evidence, score_alphas
from streamfit.solve.banded import BandedSolution, Contributions, contributions, solve_banded
from streamfit.solve.banded_choice import BandedChoice, choose_banded
from streamfit.solve.certificate import TOLERANCE, Certificate, certify
from streamfit.solve.certificate_of_data import certify_data
from streamfit.solve.gradient import Gradient, GradientPass
from streamfit.solve.leave_one_out import LeaveOneOut, LeaveOneOutPass, Press
from streamfit.solve.mixture import Influence, Mixture, best_mixture, influence, mixture_loss
from streamfit.solve.nystroem import Whitened, whitened
from streamfit.solve.orthogonal import cross_validate_triangles, solve_triangle
from streamfit.solve.per_target import TargetSolution, solve_targets
from streamfit.solve.posterior import Posterior, TStatistics, posterior
from streamfit.solve.prune import Pruned, RemovalCosts, prune, removal_costs
from streamfit.solve.refine import Refinement
from streamfit.solve.ridge import IllConditionedWarning, Solution, solve
from streamfit.solve.select import AlphaPath, cross_validate, held_out_r2
from streamfit.solve.spectrum import Spectrum, decompose
from streamfit.solve.stack import Stack, stack

__all__ = [
    "TOLERANCE",
    "AlphaPath",
    "AlphaScores",
    "BandedChoice",
    "BandedSolution",
    "Certificate",
    "Contributions",
    "Evidence",
    "Gradient",
    "GradientPass",
    "IllConditionedWarning",
    "Influence",
    "LeaveOneOut",
    "LeaveOneOutPass",
    "Mixture",
    "Posterior",
    "Press",
    "Pruned",
    "Refinement",
    "RemovalCosts",
    "Solution",
    "Spectrum",
    "Stack",
    "TStatistics",
    "TargetSolution",
    "Whitened",
    "best_mixture",
    "certify",
    "certify_data",
    "choose_banded",
    "contributions",
    "cross_validate",
    "cross_validate_triangles",
    "decompose",
    "held_out_r2",
    "influence",
    "maximise_evidence",
    "mixture_loss",
    "posterior",
    "prune",
    "removal_costs",
    "score_alphas",
    "solve",
    "solve_banded",
    "solve_targets",
    "solve_triangle",
    "stack",
    "whitened",
]
