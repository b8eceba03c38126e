"""What each source of a store is worth to rows that were held out, from the sums alone. Floor 7."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from streamfit.centered import Statistic
from streamfit.errors import ConfigError, MismatchError
from streamfit.solve import Influence, Mixture, Stack, best_mixture, cross_validate, influence, mixture_loss, stack
from streamfit.store import Store


@dataclass(frozen=True)
class Worth:
    """What each value of a label is worth to rows that were held out.

    Parameters
    ----------
    by : str
        The label.
    alpha : float
    target_fold, check_fold : int
        Fold that weights are chosen on, and another that had no say.
    influence : tuple of Influence
    mixture : Mixture
    stack : Stack
    check_plain, check_mixed : float
        Loss on the check fold of the plain fit, and of the best mixture.
    """

    by: str
    alpha: float
    target_fold: int
    check_fold: int
    influence: tuple[Influence, ...]
    mixture: Mixture
    stack: Stack
    check_plain: float
    check_mixed: float

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "by": self.by,
            "alpha": self.alpha,
            "target_fold": self.target_fold,
            "check_fold": self.check_fold,
            "influence": [i.to_json() for i in self.influence],
            "mixture": self.mixture.to_json(),
            "stack": self.stack.to_json(),
            "check_plain": self.check_plain,
            "check_mixed": self.check_mixed,
        }


def worth(
    store: Store,
    by: str = "source",
    *,
    alpha: float | None = None,
    target_fold: int | None = None,
    like: str | None = None,
    fit_intercept: bool = True,
) -> Worth:
    """What each source (or value of another label) is worth, and the mixture that serves held-out rows best.

    Parameters
    ----------
    store : Store
    by : str
        Label whose values are weighed.
    alpha : float, optional
        Chosen by cross-validation without it, on all folds but the one that checks.
    target_fold : int, optional
        Fold that is predicted; the first without it. The next one checks the result, the others are trained on.
    like : str, optional
        `label:value`: predict only such rows of the target fold and of the check fold, for instance those of the
        source that the model will meet.
    fit_intercept : bool

    Raises
    ------
    MismatchError
        If there are fewer than three folds with rows, or two values of the label.
    """
    head = store.head()
    folds = sorted({segment.fold for segment in head.segments if segment.n_rows})
    if len(folds) < 3:
        raise _too_few(store, len(folds))
    target = folds[0] if target_fold is None else target_fold
    if target not in folds:
        msg = f"fold {target}"
        raise MismatchError(msg, f"one of {', '.join(map(str, folds))}")
    check = folds[(folds.index(target) + 1) % len(folds)]
    values = sorted({v for s in head.segments if (v := s.label(by)) is not None})
    if len(values) < 2:
        names = sorted({"source", *(name for s in head.segments for name, _ in s.labels)})
        msg = f"{len(values)} value(s) of the label {by!r}"
        raise MismatchError(msg, f"at least two; there are the labels {', '.join(names)}", "`streamfit status`")
    if alpha is None:
        grid = np.array([10.0**k for k in range(-3, 6)])
        heard = {fold: moments for fold, moments in store.fold_moments().items() if fold != check}
        alpha = cross_validate(heard, grid, fit_intercept=fit_intercept).best
    parts = {
        value: store.moments(lambda s, v=value: s.label(by) == v and s.fold not in (target, check))  # type: ignore[misc]
        for value in values
    }
    parts = {value: moments for value, moments in parts.items() if moments.n_rows}
    held = _held_out(store, target, like)
    best = best_mixture(parts, held, alpha, fit_intercept=fit_intercept)
    checked = _held_out(store, check, like)
    return Worth(
        by=by,
        alpha=alpha,
        target_fold=target,
        check_fold=check,
        influence=influence(parts, held, alpha, fit_intercept=fit_intercept),
        mixture=best,
        stack=stack(parts, held, alpha, fit_intercept=fit_intercept),
        check_plain=mixture_loss(parts, checked, alpha, dict.fromkeys(parts, 1.0), fit_intercept=fit_intercept),
        check_mixed=mixture_loss(parts, checked, alpha, best.factors, fit_intercept=fit_intercept),
    )


def _too_few(store: Store, n_folds: int) -> MismatchError:
    """What to do where rows are in fewer than three folds: that is for want of shards, unless so few were asked for."""
    n_shards, asked = len(store.counted()), store.header.n_folds
    msg = f"{n_shards:,} shard(s) in {n_folds} of {asked} folds"
    expected = "rows in three folds: to train, to choose on, and to check on"
    if asked < 3:
        return MismatchError(msg, expected, "make a store with [solve] folds = 3 or more")
    remedy = "a shard is in one fold, by a hash: add data, or make a store of more files or row groups, or of a smaller"
    return MismatchError(msg, expected, f"{remedy} shard_bytes")


def _held_out(store: Store, fold: int, like: str | None) -> Statistic:
    name, sign, value = (like or "").partition(":")
    if like and not sign:
        msg = f"--like {like!r}"
        raise ConfigError(msg, "label:value")
    moments = store.moments(lambda s: s.fold == fold and (not like or s.label(name) == value))
    if not moments.n_rows:
        msg = f"no rows in fold {fold}" + (f" with {name} {value!r}" if like else "")
        raise MismatchError(msg, "held-out rows", "choose another --target-fold or --like")
    return moments
