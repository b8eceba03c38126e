"""What a store is a store of: features, targets, frame and reader, fixed when it is made. Floor 4."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from streamfit.arrays import Array, Precision, compute_dtype
from streamfit.centered import Statistic
from streamfit.errors import ConfigError, StoreError
from streamfit.features import FeatureMap, from_spec
from streamfit.frame import BLOCK_ROWS, Frame, Panel, tile_size
from streamfit.moments import MomentsAccumulator
from streamfit.targets import Targets
from streamfit.triangle import TriangleAccumulator

StatisticKind = Literal["gram", "qr"]
"""Exact sums of products, or the triangular factor of the rows."""
_FRAME = ("origin", "exponents", "y_origin", "y_exponents")


@dataclass(frozen=True, eq=False)
class Header:
    """Everything that two sums must share to add up.

    Parameters
    ----------
    features : FeatureMap
    targets : Targets
    frame : Frame
    precision : {'float32', 'float64', 'tf32', 'bf16'}
    n_folds : int
    reader : dict
        JSON: how files become rows (columns, or context length), so that another corpus can be added alike.
    files : dict of str to bytes
        What the reader needs besides, for instance a tokenizer's JSON.
    statistic : {'gram', 'qr'}
        What is summed: `Moments`, or a `Triangle`, which takes precision float64.
    counted : bool
        Whether equal rows of a shard are multiplied once, with their number. Products then round elsewhere, so it
        is part of what sums must share.

    Raises
    ------
    ConfigError
        If the precision is unknown, or a triangle is to be kept in another than float64, or of counted rows.
    """

    features: FeatureMap
    targets: Targets
    frame: Frame
    precision: Precision
    n_folds: int
    reader: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    statistic: StatisticKind = "gram"
    counted: bool = False

    def __post_init__(self) -> None:
        compute_dtype(np, self.precision)
        if self.statistic == "qr" and self.precision != "float64":
            msg = f"statistic 'qr' with precision {self.precision!r}"
            raise ConfigError(
                msg, "precision 'float64'", f"{self.precision} has fewer digits than a triangle is kept for"
            )
        if self.statistic == "qr" and self.counted:
            msg = "statistic 'qr' of counted rows"
            raise ConfigError(msg, "statistic 'gram'", "leave count_rows at 'auto', or set it to 'never'")

    def accumulator(
        self, like: Array | None = None, n_threads: int = 1, panel: Panel | None = None
    ) -> MomentsAccumulator | TriangleAccumulator:
        """What rows are added to, on the device of `like`; rows of features may be overwritten by it."""
        if self.statistic == "qr":
            return TriangleAccumulator(self.frame, self.targets, like=like)
        return MomentsAccumulator(
            self.frame, self.targets, self.precision, like=like, n_threads=n_threads, overwrite=True, panel=panel
        )

    def zeros(self) -> Statistic:
        """The statistic of no rows."""
        return self.accumulator().moments()

    def to_spec(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Description as JSON and named arrays."""
        features, arrays = self.features.to_spec()
        spec: dict[str, Any] = {
            "features": features,
            "targets": self.targets.to_json(),
            "precision": self.precision,
            "n_folds": self.n_folds,
            "block_rows": BLOCK_ROWS,
            "tile": tile_size(self.frame.n_features),
            "reader": self.reader,
            "files": sorted(self.files),
        }
        if self.statistic != "gram":
            spec["statistic"] = self.statistic
        if self.counted:
            spec["counted"] = True
        named = {f"features/{name}": a for name, a in arrays.items()}
        named |= {f"frame/{name}": getattr(self.frame, name) for name in _FRAME}
        named |= {f"files/{name}": np.frombuffer(data, np.uint8) for name, data in self.files.items()}
        return spec, named

    @classmethod
    def from_spec(cls, spec: dict[str, Any], arrays: dict[str, np.ndarray]) -> Header:
        """Inverse of `to_spec`.

        Raises
        ------
        StoreError
            If sums were taken with another block or tile size.
        """
        n_features = len(arrays["frame/origin"])
        if spec["block_rows"] != BLOCK_ROWS or spec["tile"] != tile_size(n_features):
            msg = f"a store with blocks of {spec['block_rows']} rows and tiles of {spec['tile']}"
            raise StoreError(msg, f"{BLOCK_ROWS} and {tile_size(n_features)}", "use the release that wrote it")
        prefix = "features/"
        features = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
        return cls(
            features=from_spec(spec["features"], features),
            targets=Targets(**spec["targets"]),
            frame=Frame(**{name: arrays[f"frame/{name}"] for name in _FRAME}),
            precision=spec["precision"],
            n_folds=spec["n_folds"],
            reader=spec["reader"],
            files={name: arrays[f"files/{name}"].tobytes() for name in spec["files"]},
            statistic=spec.get("statistic", "gram"),
            counted=spec.get("counted", False),
        )

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over the description and every array."""
        spec, arrays = self.to_spec()
        digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode())
        for name in sorted(arrays):
            a = np.ascontiguousarray(arrays[name])
            digest.update(f"{name}:{a.dtype.str}:{a.shape}".encode())
            digest.update(a.tobytes())
        return digest.hexdigest()

    def difference(self, other: Header) -> str:
        """Which parts differ, in words."""
        mine, theirs = self.to_spec(), other.to_spec()
        parts = [name for name in mine[0] | theirs[0] if mine[0].get(name) != theirs[0].get(name)]
        for name in sorted(mine[1].keys() | theirs[1].keys()):
            a, b = mine[1].get(name), theirs[1].get(name)
            part = name.split("/")[0] if name.startswith("features/") else name
            if (a is None or b is None or not np.array_equal(a, b)) and part not in parts:
                parts.append(part)
        return ", ".join(parts)
