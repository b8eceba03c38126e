"""What every feature map is: a frozen, serialisable function from a batch of inputs to rows of features.

Floor 2. A map is a frozen dataclass of arrays, numbers and other maps; from that one description follow its
JSON + arrays form, its content hash, and its move to another device. Register a new kind with `@register`.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self, TypeVar

import numpy as np

from streamfit.arrays import Array, namespace, to_device_of, to_host
from streamfit.errors import ConfigError, MismatchError
from streamfit.pieces import Pieces

_KINDS: dict[str, type[FeatureMap]] = {}
_Map = TypeVar("_Map", bound="type[FeatureMap]")


class FeatureMap(ABC):
    """A frozen map φ from inputs of `n_inputs` columns to `n_features` features."""

    @property
    @abstractmethod
    def n_inputs(self) -> int:
        """Columns that a batch must have."""

    @property
    @abstractmethod
    def n_features(self) -> int:
        """Columns that it gives."""

    @abstractmethod
    def apply(self, x: Array) -> Array:
        """Compute the features of checked inputs: (n_rows, n_inputs) -> (n_rows, n_features)."""

    def __call__(self, x: Array) -> Array:
        """Compute features.

        Parameters
        ----------
        x : array of shape (n_rows, n_inputs)

        Returns
        -------
        array of shape (n_rows, n_features)
            On the device of `x`; floating, in the type of `x` where that is floating.

        Raises
        ------
        MismatchError
            If `x` has another number of columns.
        """
        return self.apply(self._checked(x))

    def pieces(self, x: Array) -> Array | Pieces:
        """The same features; where they can, made only when they are asked for. Shapes and errors as `__call__`."""
        return self.made(self._checked(x))

    def made(self, x: Array) -> Array | Pieces:
        """Features of checked inputs, or how pieces of them are made."""
        return self.apply(x)

    @property
    def by_columns(self) -> bool:
        """Whether features lie by columns where inputs do: so they are multiplied fastest."""
        return False

    @property
    def in_pieces(self) -> bool:
        """Whether `pieces` makes features only when they are asked for."""
        return False

    def _checked(self, x: Array) -> Array:
        if x.ndim != 2 or x.shape[1] != self.n_inputs:
            msg = f"inputs of shape {tuple(x.shape)} for {type(self).__name__}"
            raise MismatchError(msg, f"(n_rows, {self.n_inputs})")
        return x

    def __add__(self, other: FeatureMap) -> FeatureMap:
        """Concatenate: the features of both maps of the same inputs."""
        return Concat(_parts(self) + _parts(other))

    def keep(self, indices: Sequence[int]) -> FeatureMap:
        """The map of some of these features alone, which computes no others where it can.

        Parameters
        ----------
        indices : sequence of int
            Ascending, in [0, n_features).
        """
        return Pick(self, np.asarray(indices, dtype=np.int64))

    @property
    def bounds(self) -> np.ndarray:
        """Largest magnitude that each feature can take, infinite where there is none; shape (n_features,)."""
        return np.full(self.n_features, np.inf)

    def names(self) -> list[str]:
        """Name of each feature, for warnings and reports."""
        kind = type(self).__name__.lower()
        return [f"{kind}[{j}]" for j in range(self.n_features)]

    def like(self, array: Array) -> Self:
        """The same map with its arrays on the device of `array`."""
        if isinstance(array, np.ndarray):
            return self
        moved: dict[str, Any] = {}
        for f in fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if isinstance(value, np.ndarray):
                moved[f.name] = to_device_of(value, array)
            elif isinstance(value, FeatureMap):
                moved[f.name] = value.like(array)
            elif isinstance(value, tuple):
                moved[f.name] = tuple(
                    v.like(array) if isinstance(v, FeatureMap) else to_device_of(v, array) for v in value
                )
        return replace(self, **moved)  # type: ignore[type-var]

    def to_spec(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Description as JSON and named arrays; `from_spec` is its inverse.

        Returns
        -------
        spec : dict
            JSON with the kind, plain values, and `{"array": name}` or a nested spec for each other field.
        arrays : dict of str to array
        """
        arrays: dict[str, np.ndarray] = {}
        return _describe(self, "", arrays), arrays

    @property
    def content_hash(self) -> str:
        """SHA-256 over the description and every array: equal exactly where two maps are the same."""
        spec, arrays = self.to_spec()
        digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode())
        for name in sorted(arrays):
            a = np.ascontiguousarray(arrays[name])
            digest.update(f"{name}:{a.dtype.str}:{a.shape}".encode())
            digest.update(a.tobytes())
        return digest.hexdigest()


class PiecewiseMap(FeatureMap):
    """A map each of whose features is made of the inputs alone, so that any piece of them can be made by itself."""

    @abstractmethod
    def made(self, x: Array) -> Pieces:
        """How pieces of the features of checked inputs are made."""

    def apply(self, x: Array) -> Array:
        return self.made(x).whole()

    @property
    def by_columns(self) -> bool:
        return True

    @property
    def in_pieces(self) -> bool:
        return True


def register(kind: _Map) -> _Map:
    """Class decorator: make a feature map's kind known to `from_spec`."""
    _KINDS[kind.__name__] = kind
    return kind


def _parts(features: FeatureMap) -> tuple[FeatureMap, ...]:
    return features.parts if isinstance(features, Concat) else (features,)


def _describe(value: Any, path: str, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, FeatureMap):
        members = {
            f.name: _describe(getattr(value, f.name), f"{path}{f.name}.", arrays)
            for f in fields(value)  # type: ignore[arg-type]
        }
        return {"kind": type(value).__name__, **members}
    if isinstance(value, np.ndarray):
        arrays[path[:-1]] = value
        return {"array": path[:-1]}
    if isinstance(value, tuple):
        return [_describe(v, f"{path}{i}.", arrays) for i, v in enumerate(value)]
    return value


def from_spec(spec: dict[str, Any], arrays: dict[str, np.ndarray]) -> FeatureMap:
    """Rebuild a feature map from its JSON and arrays.

    Raises
    ------
    ConfigError
        If the kind is unknown.
    """
    kind = _KINDS.get(spec.get("kind", ""))
    if kind is None:
        msg = f"feature map of kind {spec.get('kind')!r}"
        raise ConfigError(msg, f"one of {', '.join(sorted(_KINDS))}")
    try:
        return kind(**{name: _rebuild(v, arrays) for name, v in spec.items() if name != "kind"})
    except (TypeError, KeyError) as error:
        msg = f"a description of {spec['kind']} that does not fit: {error}"
        raise ConfigError(msg, "what to_spec gave") from error


def _rebuild(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, dict):
        return arrays[value["array"]] if "array" in value else from_spec(value, arrays)
    if isinstance(value, list):
        return tuple(_rebuild(v, arrays) for v in value)
    return value


@register
@dataclass(frozen=True, eq=False)
class Concat(FeatureMap):
    """Several maps of the same inputs side by side.

    Examples
    --------
    >>> import numpy as np
    >>> from streamfit.features import Linear
    >>> both = Linear(2) + Linear(2)
    >>> both(np.array([[1.0, 2.0]])).tolist()
    [[1.0, 2.0, 1.0, 2.0]]
    """

    parts: tuple[FeatureMap, ...]

    def __post_init__(self) -> None:
        widths = {part.n_inputs for part in self.parts}
        if len(widths) != 1:
            msg = f"a concatenation of maps with {sorted(widths)} inputs"
            raise MismatchError(msg, "maps of the same inputs")

    @property
    def n_inputs(self) -> int:
        return self.parts[0].n_inputs

    @property
    def n_features(self) -> int:
        return sum(part.n_features for part in self.parts)

    def blocks(self) -> dict[str, slice]:
        """Columns of each part by name: its kind, numbered where several are of one."""
        kinds, found, start = self._kinds(), {}, 0
        for i, (kind, part) in enumerate(zip(kinds, self.parts, strict=True)):
            name = f"{i}.{kind}" if len(set(kinds)) < len(kinds) else kind
            found[name] = slice(start, start + part.n_features)
            start += part.n_features
        return found

    def _kinds(self) -> list[str]:
        return [type(part.outer if isinstance(part, Chain) else part).__name__.lower() for part in self.parts]

    def keep(self, indices: Sequence[int]) -> FeatureMap:
        wanted, start, kept = np.asarray(indices, dtype=np.int64), 0, []
        for part in self.parts:
            own = wanted[(wanted >= start) & (wanted < start + part.n_features)] - start
            kept += [part if len(own) == part.n_features else part.keep(own.tolist())] if len(own) else []
            start += part.n_features
        return kept[0] if len(kept) == 1 else Concat(tuple(kept))

    def names(self) -> list[str]:
        kinds = self._kinds()
        several = len(set(kinds)) < len(kinds)
        return [f"{i}.{name}" if several else name for i, part in enumerate(self.parts) for name in part.names()]

    @property
    def bounds(self) -> np.ndarray:
        return np.concatenate([part.bounds for part in self.parts])

    @property
    def by_columns(self) -> bool:
        return all(part.by_columns for part in self.parts)

    def apply(self, x: Array) -> Array:
        blocks = [part.apply(x) for part in self.parts]
        return namespace(x).concat(blocks, axis=1)


@register
@dataclass(frozen=True, eq=False)
class Chain(FeatureMap):
    """One map after another: φ(x) = outer(inner(x)).

    Parameters
    ----------
    inner, outer : FeatureMap
        `inner` must give as many features as `outer` takes.
    """

    inner: FeatureMap
    outer: FeatureMap

    def __post_init__(self) -> None:
        if self.inner.n_features != self.outer.n_inputs:
            msg = f"a chain whose first map gives {self.inner.n_features} columns"
            raise MismatchError(msg, f"{self.outer.n_inputs}, as its second map takes")

    @property
    def n_inputs(self) -> int:
        return self.inner.n_inputs

    @property
    def n_features(self) -> int:
        return self.outer.n_features

    def keep(self, indices: Sequence[int]) -> FeatureMap:
        return Chain(self.inner, self.outer.keep(indices))

    def names(self) -> list[str]:
        return self.outer.names()

    @property
    def bounds(self) -> np.ndarray:
        return self.outer.bounds

    @property
    def by_columns(self) -> bool:
        return self.inner.by_columns and self.outer.by_columns

    @property
    def in_pieces(self) -> bool:
        return self.outer.in_pieces

    def made(self, x: Array) -> Array | Pieces:
        return self.outer.made(self.inner.apply(x))

    def apply(self, x: Array) -> Array:
        return self.outer.apply(self.inner.apply(x))


@register
@dataclass(frozen=True, eq=False)
class Pick(FeatureMap):
    """Some columns of another map.

    Parameters
    ----------
    inner : FeatureMap
    indices : integer array of shape (n_features,)

    Raises
    ------
    MismatchError
        If there are none, or one is out of range.
    """

    inner: FeatureMap
    indices: np.ndarray

    def __post_init__(self) -> None:
        host = to_host(self.indices)
        if not len(host) or host.min() < 0 or host.max() >= self.inner.n_features:
            msg = f"columns {host.tolist()[:5]}"
            raise MismatchError(msg, f"one or more in [0, {self.inner.n_features})")

    @property
    def n_inputs(self) -> int:
        return self.inner.n_inputs

    @property
    def n_features(self) -> int:
        return int(self.indices.shape[0])

    def names(self) -> list[str]:
        every = self.inner.names()
        return [every[int(j)] for j in to_host(self.indices)]

    @property
    def bounds(self) -> np.ndarray:
        return np.asarray(self.inner.bounds[self.indices])

    def apply(self, x: Array) -> Array:
        return namespace(x).take(self.inner.apply(x), self.indices, axis=1)
