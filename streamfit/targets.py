"""What is being predicted: dense columns, or one of many classes given by its id.

Floor 2: imports nothing of the package but errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from streamfit.errors import ConfigError


@dataclass(frozen=True)
class Targets:
    """Kind and number of targets.

    Parameters
    ----------
    kind : {'dense', 'one_hot'}
        One-hot targets are given as integer class ids; the indicator matrix is never formed.
    n_targets : int
    """

    kind: Literal["dense", "one_hot"]
    n_targets: int

    def __post_init__(self) -> None:
        if self.kind not in ("dense", "one_hot") or self.n_targets < 1:
            msg = f"{self.n_targets} targets of kind {self.kind!r}"
            raise ConfigError(msg, "kind 'dense' or 'one_hot' and at least one target")

    @property
    def one_hot(self) -> bool:
        """Whether targets are class ids."""
        return self.kind == "one_hot"

    def to_json(self) -> dict[str, Any]:
        """Plain description, as the store's header keeps it."""
        return {"kind": self.kind, "n_targets": self.n_targets}


def Dense(n_targets: int) -> Targets:  # noqa: N802 - reads as the constructor it stands for
    """Targets given as numbers, one column each."""
    return Targets("dense", n_targets)


def OneHot(n_classes: int) -> Targets:  # noqa: N802
    """One class id a row; target k is 1 where the id is k."""
    return Targets("one_hot", n_classes)
