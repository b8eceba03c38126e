"""The verb `solve`, and the model that a solution makes with its store's features. Floor 7."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, overload

import numpy as np
from rich.console import Console

from streamfit.arrays import Backend
from streamfit.centered import Centered, Statistic
from streamfit.config import SolveSection
from streamfit.errors import ConfigError
from streamfit.models import LinearModel
from streamfit.provenance import provenance_of
from streamfit.solve import TOLERANCE, Solution
from streamfit.solve import solve as solve_moments
from streamfit.solving import solve_store
from streamfit.store import Mix, Store

Model = LinearModel
"""What `solve` and a store's features are together; see `model_of`."""
GRID = tuple(10.0**k for k in range(-3, 6))


@overload
def solve(
    sums: Store,
    alpha: float | Sequence[float] = ...,
    *,
    fit_intercept: bool = ...,
    choose_by: Literal["kfold", "gcv", "evidence"] = ...,
    per_target: bool = ...,
    blocks: Literal["", "features"] | Mapping[str, Sequence[str]] = ...,
    mix: Sequence[str] = ...,
    half_life: str | None = ...,
    as_of: str | None = ...,
    tolerance: float = ...,
    backend: Backend = ...,
) -> Solution: ...
@overload
def solve(
    sums: Statistic | Centered,
    alpha: float,
    *,
    fit_intercept: bool = ...,
    names: list[str] | None = ...,
    strict: bool = ...,
    tolerance: float = ...,
) -> Solution: ...
def solve(sums: Any, alpha: float | Sequence[float] = GRID, **given: Any) -> Solution:
    """Solve for the optimum of all that was summed; nothing is read.

    Minimises ``sum_t w_t ||B'φ_t + b - y_t||² + alpha ||B||²``; see `streamfit.solve.solve`, which takes the sums
    themselves.

    Parameters
    ----------
    sums : Store, or Moments
    alpha : float or sequence of float
        Penalty, not divided by the number of rows; of several one is chosen.
    fit_intercept : bool
    choose_by : {'kfold', 'gcv', 'evidence'}
    per_target : bool
        An alpha for each target.
    blocks : '', 'features' or mapping of str to patterns
        An alpha for each block of features.
    mix : sequence of str
        Weights of segments by label, such as ``source:web=0.3``.
    half_life : str, optional
        Halve the weight of rows with this age, such as ``30d``.
    as_of : str, optional
        ISO date that age is counted from.
    tolerance : float
        Share of the targets' sum of squares to which the optimum must be proved; infinite accepts anything.
    backend : {'numpy', 'cuda'}
        Where a store's matrices are factored: on this host, or on its GPU, which was never run on hardware.

    Returns
    -------
    Solution
        Weights, intercept, and the certificate of the optimum.

    Raises
    ------
    StoreError
        If the store holds no rows.
    CertificateError
        If the optimum is not proved to the tolerance.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> from streamfit import Corpus, accumulate, solve
    >>> x = np.random.default_rng(0).normal(size=(300, 2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = accumulate(Corpus({"x": x, "y": x @ [2.0, 0.0]}, ["x"], ["y"]), f"{folder}/store")
    ...     solution = solve(store, alpha=1e-3)
    >>> solution.weights.round(3).ravel().tolist(), bool(solution.certificate.suboptimality < 1e-9)
    ([2.0, 0.0], True)
    """
    if not isinstance(sums, Store):
        if not isinstance(alpha, int | float | np.floating):
            msg = f"alphas {alpha} for sums that are given themselves"
            raise ConfigError(msg, "one alpha", "`cross_validate` and `score_alphas` choose; a store has its folds")
        return solve_moments(sums, alpha, **given)
    mixed = Mix.parse(given.pop("mix", ()), given.pop("half_life", None), given.pop("as_of", None))
    backend = given.pop("backend", "numpy")
    section = solve_section(alpha, **given)
    weights = None if mixed.plain else mixed
    return solve_store(sums, section, Console(quiet=True), weights, backend=backend).solution


def solve_section(
    alpha: float | Sequence[float] = GRID,
    *,
    fit_intercept: bool = True,
    choose_by: Literal["kfold", "gcv", "evidence"] = "kfold",
    one_standard_error: bool = False,
    per_target: bool = False,
    blocks: Any = "",
    tolerance: float = TOLERANCE,
) -> SolveSection:
    """The section of a config that asks for the same.

    Raises
    ------
    ConfigError
        If an alpha is negative or not finite, or the choice is unknown.
    """
    grid = tuple(map(float, alpha)) if isinstance(alpha, Sequence | np.ndarray) else (float(alpha),)
    if not grid or not all(a >= 0 and np.isfinite(a) for a in grid):
        msg = f"alpha {alpha}"
        raise ConfigError(msg, "finite numbers >= 0")
    if choose_by not in ("kfold", "gcv", "evidence"):
        msg = f"choose_by {choose_by!r}"
        raise ConfigError(msg, "kfold, gcv or evidence")
    # A single alpha may be 0, which a config's grid may not: it asks for the solution of least norm.
    return SolveSection.model_construct(
        alphas=grid,
        folds=2,
        choose_by=choose_by,
        one_standard_error=one_standard_error,
        per_target=per_target,
        blocks=blocks,
        tolerance=tolerance,
        fit_intercept=fit_intercept,
    )


def model_of(store: Store, solution: Solution) -> Model:
    """Features and weights together, to predict with and to save.

    Parameters
    ----------
    store : Store
    solution : Solution

    Returns
    -------
    Model

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> from streamfit import Corpus, accumulate, model_of, solve
    >>> x = np.random.default_rng(0).uniform(-3, 3, size=(2000, 1))
    >>> corpus = Corpus({"x": x, "y": np.sin(x)}, ["x"], ["y"])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = accumulate(corpus, f"{folder}/store", features=["linear", "rbf"])
    ...     model = model_of(store, solve(store, alpha=1.0))
    ...     model.save(f"{folder}/model")
    >>> bool(abs(model.predict(np.array([[0.5]])) - np.sin(0.5)) < 1e-2)
    True
    """
    head = store.head()
    info = {"reader": store.header.reader, "n_rows": head.n_rows, "commit": head.commit, "data": provenance_of(store)}
    return LinearModel(store.header.features, solution, info)
