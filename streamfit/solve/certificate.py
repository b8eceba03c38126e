"""How good a solution is, shown by numbers that anyone can check again. Floor 3."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from streamfit.errors import CertificateError
from streamfit.factoring import eigvalsh

TOLERANCE = 1e-6
"""Share of the targets' sum of squares that the loss may be above the optimum, where nobody says otherwise."""
_POORLY = 1e-8
"""Share of the largest eigenvalue that the smallest has, below which a system is looked at in its features' units."""


@dataclass(frozen=True)
class Certificate:
    """What the solution of `(G + αR) B = C` is known to satisfy.

    With A = G + αR and ∇L = 2 (A B - C), strong convexity gives `L(B) - L* <= ||∇L||² / (4 μ)` for any
    0 < μ <= λ_min(A) (Nesterov, Introductory lectures on convex optimization, 2.1.3, with 2μ as modulus).

    Parameters
    ----------
    relative_gradient : float
        ||A B - C|| / ||C||, Frobenius, computed from the stored sums.
    strong_convexity : float
        μ: computed λ_min(A), less a bound on its rounding error; 0 where nothing positive is certain.
    suboptimality : float
        Upper bound on L(B) - L*, in units of L (a sum over rows of weighted squared error), rounding of its own
        computation included. Of the objective that the stored sums define: float32 products differ from the data's.
    loss : float
        L(B), from the stored sums.
    condition : float
        λ_max(A) / μ.
    digits_lost : float
        Decimal digits, of 15.9, that may be lost: log10 of the condition number, of its square root where the solve
        never formed a Gram matrix.
    null_loss : float
        L(0), the targets' sum of squares about their means: what losses are shares of.
    """

    relative_gradient: float
    strong_convexity: float
    suboptimality: float
    loss: float
    condition: float
    digits_lost: float
    null_loss: float

    @property
    def share(self) -> float:
        """The bound on L(B) - L* as a share of `null_loss`."""
        return self.suboptimality / self.null_loss if self.null_loss > 0 else self.suboptimality

    def require(self, tolerance: float = TOLERANCE) -> None:
        """Fail unless the bound is within a tolerance.

        Parameters
        ----------
        tolerance : float
            Of `share`; infinite accepts anything.

        Raises
        ------
        CertificateError
            If it is above.
        """
        if not self.share <= tolerance:
            why = f"condition {self.condition:.3g}" if self.unique else "the optimum is not unique, but for rounding"
            msg = f"an optimum proved to {self.share:.2g} of the targets' sum of squares only ({why})"
            remedy = "raise alpha, drop dependent features, count with statistic 'qr', or accept it with a tolerance"
            raise CertificateError(msg, f"{tolerance:g} or less", remedy)

    @property
    def unique(self) -> bool:
        """Whether the optimum is proved unique."""
        return self.strong_convexity > 0

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return {**asdict(self), "unique": self.unique, "share": self.share}

    def lines(self, of: str = "of the stored sums") -> list[str]:
        """The certificate as text, a line a fact; `of` says what it was measured on."""
        return [
            f"relative gradient  {self.relative_gradient:.2e}",
            f"strong convexity   {self.strong_convexity:.4g}" + ("  (the optimum is unique)" if self.unique else ""),
            f"loss               {self.loss:.10g}",
            f"loss - optimum     <= {self.suboptimality:.2e}  ({self.share:.1e} of the targets'; {of})",
            f"condition          {self.condition:.3g}  ({self.digits_lost:.1f} of 15.9 digits at risk)",
        ]


def eigenvalue_noise(n_features: int, top: float) -> float:
    """Rounding error that LAPACK's eigenvalues of a symmetric matrix with largest eigenvalue `top` may carry.

    The error is a modest multiple of eps * top. For null eigenvalues of singular matrices of order 3 to 300 it
    reached 8; small matrices are no better than large ones, so the multiple does not fall below 50.
    """
    return max(n_features, 50) * float(np.finfo(float).eps) * top


def certify(
    gram: np.ndarray,
    cross: np.ndarray,
    ss_y: np.ndarray,
    penalty: float,
    weights: np.ndarray,
    eigenvalues: np.ndarray,
) -> Certificate:
    """Certify weights against the moments they were solved from.

    Parameters
    ----------
    gram, cross, ss_y : arrays of shape (D, D), (D, K), (K,)
    penalty : float
        α.
    weights : array of shape (D, K)
    eigenvalues : array of shape (D,)
        Of the Gram matrix, ascending.
    """
    fitted = gram @ weights
    residual = fitted + penalty * weights - cross
    # Rounding of A B - C itself (Higham, Accuracy and stability of numerical algorithms, 3.5), so that the bound
    # holds for the weights as they are stored, not for those that exact arithmetic would have given.
    n, eps = len(gram) + 3, np.finfo(float).eps
    size = float(np.linalg.norm(gram) + penalty * np.sqrt(len(gram))) * float(np.linalg.norm(weights))
    slack = n * eps / (1.0 - n * eps) * (size + float(np.linalg.norm(cross)))
    norm = float(np.linalg.norm(residual))
    scale = float(np.linalg.norm(cross))
    top = max(float(eigenvalues[-1]), 0.0) + penalty
    # Only what is certain of the smallest eigenvalue is kept.
    mu = float(max(eigenvalues[0] + penalty - eigenvalue_noise(len(gram), top), 0.0))
    loss = float(
        np.sum(ss_y) - 2.0 * np.vdot(weights, cross) + np.vdot(weights, fitted) + penalty * np.vdot(weights, weights)
    )
    bound = (norm + slack) ** 2 / mu if mu > 0 else float("inf")
    if mu < _POORLY * top:
        least, scaled = _in_own_units(gram, cross, penalty, weights, residual)
        mu, bound = max(mu, least), min(bound, scaled)
    condition = top / mu if mu > 0 else float("inf")
    return Certificate(
        relative_gradient=norm / scale if scale > 0 else norm,
        strong_convexity=mu,
        suboptimality=bound,
        loss=loss,
        condition=condition,
        digits_lost=float(np.log10(condition)),
        null_loss=float(np.sum(ss_y)),
    )


def _in_own_units(
    gram: np.ndarray, cross: np.ndarray, penalty: float, weights: np.ndarray, residual: np.ndarray
) -> tuple[float, float]:
    """What is certain of μ and of the suboptimality in units that make the system's diagonal one.

    With A = S Ã S, S² its diagonal, ``∇'A^-1∇ = (S^-1 ∇)'Ã^-1 (S^-1 ∇)`` and ``λ_min(A) >= λ_min(Ã) min S²``.
    Features of widely different units cost A digits that Ã keeps.
    """
    system = gram.copy()
    system[np.diag_indices(len(gram))] += penalty
    units = np.sqrt(np.maximum(np.diag(system), 0.0))
    if not (units > 0).all():
        return 0.0, float("inf")
    system /= units
    system /= units[:, None]
    eigenvalues = eigvalsh(system)
    mu = float(eigenvalues[0]) - eigenvalue_noise(len(gram), float(eigenvalues[-1]))
    if mu <= 0:
        return 0.0, float("inf")
    n, eps = len(gram) + 3, np.finfo(float).eps
    size = np.abs(weights)
    slack = n * eps / (1.0 - n * eps) * (np.abs(gram) @ size + penalty * size + np.abs(cross))
    norm = float(np.linalg.norm((np.abs(residual) + slack) / units[:, None]))
    return mu * float(units.min()) ** 2, norm**2 / mu
