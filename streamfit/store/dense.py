"""Sums as dense arrays: written for other tools, and read from them. Floor 4."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from streamfit.centered import Statistic, unpack_tiles
from streamfit.density import DENSE_FEATURES
from streamfit.errors import ConfigError, MismatchError, StoreError
from streamfit.exact import GridAccumulator, GridSum
from streamfit.frame import n_tiles, tile_pairs, tile_size
from streamfit.identity import hasher
from streamfit.moments import Moments
from streamfit.plan import Shard
from streamfit.precision import n_limbs
from streamfit.sparse_moments import SparseMoments
from streamfit.store.log import Labels, Segment
from streamfit.store.mix import Mix
from streamfit.store.place import first_line
from streamfit.store.store import Store
from streamfit.triangle import Triangle

_DENSE = ("n_rows", "weight", "origin", "y_origin", "sum_x", "sum_y", "sum_yy", "gram", "cross")
_ABOUT = ("origin", "y_origin")
_SLACK = 1.001
"""What sums that were taken in float32 may miss an inequality by."""


def dense(moments: Statistic) -> dict[str, np.ndarray]:
    """Sums as plain float64 arrays in natural units, about the origin that they were taken with.

    With d = φ - origin and e = y - y_origin: `weight` = Σw, `sum_x` = Σw d, `sum_y` = Σw e, `gram` = Σw d d' of shape
    (n_features, n_features), `cross` = Σw d e' of shape (n_features, n_targets), `sum_yy` = Σw e∘e. Each number is the
    exact sum rounded once to float64. Class ids stand for indicators, with `y_origin` 0.
    """
    host = moments.to_host()
    if isinstance(host, Triangle):
        return _of_triangle(host)
    if isinstance(host, SparseMoments):
        d = host.frame.n_features
        if d > DENSE_FEATURES:
            msg = f"a dense Gram matrix of {d:,} hashed features"
            raise ConfigError(msg, f"at most {DENSE_FEATURES:,}", "`streamfit export STORE FILE.zip` keeps it sparse")
        host = host.narrowed(np.arange(d))
    assert isinstance(host, Moments)
    frame = host.frame
    units, y_units = np.ldexp(1.0, frame.exponents), np.ldexp(1.0, frame.y_exponents)
    return {
        "n_rows": np.array(moments.n_rows),
        "weight": np.array(float(host.weight.value())),
        "origin": frame.origin,
        "y_origin": frame.y_origin,
        "sum_x": host.sum_x.value() * units,
        "sum_y": host.sum_y.value() * y_units,
        "sum_yy": host.sum_yy.value() * y_units**2,
        "gram": unpack_tiles(host.gram.value(), frame.n_features) * units * units[:, None],
        "cross": host.cross.value().T * y_units * units[:, None],
    }


def _of_triangle(triangle: Triangle) -> dict[str, np.ndarray]:
    frame, d = triangle.frame, triangle.frame.n_features
    units = np.concatenate([[1.0], np.ldexp(1.0, frame.exponents), np.ldexp(1.0, frame.y_exponents)])
    natural = np.asarray(triangle.factor) * units
    products = natural.T @ natural
    return {
        "n_rows": np.array(triangle.n_rows),
        "weight": np.array(products[0, 0]),
        "origin": frame.origin,
        "y_origin": frame.y_origin,
        "sum_x": products[0, 1 : d + 1],
        "sum_y": products[0, d + 1 :],
        "sum_yy": np.diag(products)[d + 1 :].copy(),
        "gram": products[1 : d + 1, 1 : d + 1],
        "cross": products[1 : d + 1, d + 1 :],
    }


def export_dense(store: Store, path: Path, mix: Mix | None = None) -> None:
    """Write the sum of all segments as `.npz` or as a Zarr group, with feature names and header hash.

    Raises
    ------
    ConfigError
        If the suffix is neither, or something is there.
    StoreError
        If it cannot be written.
    """
    if path.suffix not in (".npz", ".zarr") or path.exists():
        msg = f"{path}" + (" is there already" if path.exists() else "")
        raise ConfigError(msg, "a new .npz or .zarr", "choose another name")
    arrays, header = dense(store.moments(mix=mix)), store.header.content_hash
    counted = b"".join(bytes.fromhex(content) for content in sorted(store.counted()))
    arrays["contents"] = np.frombuffer(counted, np.uint8).reshape(-1, 32)
    names = store.header.features.names()
    try:
        with tempfile.TemporaryDirectory(dir=path.absolute().parent, prefix=".streamfit-") as folder:
            partial = Path(folder) / path.name
            if path.suffix == ".npz":
                about = {"features": np.array(names, dtype=np.str_), "header": np.array(header)}
                np.savez(partial, **about, **arrays)  # type: ignore[arg-type]
            else:
                # Zarr has no settled type for text, so names are attributes there.
                group = zarr.open_group(str(partial), mode="w-", attributes={"header": header, "features": [*names]})
                for name, array in arrays.items():
                    group.create_array(name, data=array)
            partial.rename(path)
    except OSError as error:
        msg = f"cannot write {path}: {first_line(error)}"
        raise StoreError(msg, "a writable folder", "check disk space and permissions") from error


def read_dense(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays of a `.npz` or Zarr group, those that `dense` describes, and what else it says of itself.

    An export of a store also says `header` (its hash), `features` (names) and `contents` (ids of the shards in it).

    Raises
    ------
    ConfigError
        If it is neither, or an array is missing. Origins may be left out, and are 0 then.
    """
    try:
        if path.suffix == ".npz":
            # NumPy leaves a file that it opened itself open when it is none of its own.
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files if name in _DENSE}
                about = {name: file[name].tolist() for name in ("header", "features", "contents") if name in file.files}
        else:
            group: Any = zarr.open_group(str(path), mode="r")
            arrays = {name: np.asarray(group[name][...]) for name in _DENSE if name in group}
            about = {name: group.attrs[name] for name in ("header", "features") if name in group.attrs}
            about |= {"contents": np.asarray(group["contents"][...]).tolist()} if "contents" in group else {}
    except Exception as error:  # a damaged file fails in as many ways as it has layers
        msg = f"cannot read {path}: {first_line(error)}"
        raise ConfigError(msg, "a .npz file or a Zarr group of sums") from error
    missing = [name for name in _DENSE if name not in arrays and name not in _ABOUT]
    if missing:
        msg = f"{path} without {', '.join(missing)}"
        raise ConfigError(msg, f"arrays {', '.join(_DENSE)}", "see docs/store-format.md")
    return arrays, about


def import_dense(store: Store, path: Path, source: str, labels: Labels = ()) -> Segment:
    """Make a segment of sums that were computed elsewhere with this store's features; not committed.

    They are shifted to the store's origin in float64 and rounded to its grid: exact sums of its own are more precise.

    Parameters
    ----------
    store : Store
    path : Path
        `.npz` or Zarr, as `dense` describes. Its numbers are its identity: they are counted once.
    source : str
        Label of the segment.
    labels : tuple of (str, str)

    Raises
    ------
    ConfigError
        If arrays are missing, not finite, or no sums of rows can be so.
    MismatchError
        If shapes do not fit the store, or the store counts n-grams as well, which sums do not hold.
    """
    header = store.header
    if header.reader.get("kind") == "tokens":
        msg = "sums without counts of n-grams, for a store of token contexts"
        raise MismatchError(msg, "a file of segments", "`streamfit export STORE FILE.zip` at the other site")
    if header.statistic == "qr":
        msg = "a Gram matrix, for a store that keeps a triangular factor"
        raise MismatchError(msg, "a file of segments", "a Gram matrix has lost the digits that a factor is kept for")
    if header.statistic == "sparse":
        msg = "dense sums, for a store that keeps a sparse Gram matrix"
        raise MismatchError(msg, "a file of segments", "`streamfit export STORE FILE.zip` at the other site")
    arrays, about = read_dense(path)
    _refuse_foreign(store, path, about)
    d, k = header.frame.n_features, header.frame.n_targets
    shapes = {"sum_x": (d,), "sum_y": (k,), "sum_yy": (k,), "gram": (d, d), "cross": (d, k)}
    shapes |= {"origin": (d,), "y_origin": (k,), "weight": (), "n_rows": ()}
    arrays = {"origin": np.zeros(d), "y_origin": np.zeros(k)} | arrays
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            msg = f"{path}: {name} of shape {arrays[name].shape}"
            raise MismatchError(msg, f"{shape}, as in the store", "sums must be taken with the same features")
        if arrays[name].dtype.kind not in "iuf" or not np.isfinite(arrays[name]).all():
            msg = f"{path}: {name} is not made of finite numbers"
            raise ConfigError(msg, "finite float64")
    _refuse_impossible(arrays, path)
    moments = _to_frame(store, {name: np.asarray(a, np.float64) for name, a in arrays.items()})
    data = hasher()
    for name in sorted(arrays):
        data.update(name.encode() + np.ascontiguousarray(arrays[name], np.float64).tobytes())
    identity = data.hexdigest()
    if identity in store.counted():
        msg = f"{path}: sums that are counted already"
        raise MismatchError(msg, "sums of other rows", "nothing was changed")
    if identity in store.forgotten():
        msg = f"{path}: sums that were forgotten by commit {store.forgotten()[identity].sequence}"
        raise MismatchError(msg, "sums of other rows", "they do not come back by being imported again")
    where = str(path.absolute())
    size = sum(a.nbytes for a in arrays.values())
    labels = tuple(sorted({**dict(labels), "imported": path.name}.items()))
    shard = Shard(path.name, where, 0, 1, size, moments.n_rows, identity, source, labels)
    return store.write_segment(moments, [shard], [moments.n_rows])


def _refuse_foreign(store: Store, path: Path, about: dict[str, Any]) -> None:
    if about.get("header", store.header.content_hash) != store.header.content_hash:
        msg = f"{path}: sums of a store with another header ({str(about['header'])[:12]})"
        raise MismatchError(msg, f"header {store.header.content_hash[:12]}", "count with the same features and origin")
    if "features" in about and list(about["features"]) != list(store.header.features.names()):
        msg = f"{path}: sums of features {', '.join(map(str, about['features'][:5]))} ..."
        raise MismatchError(msg, f"{', '.join(store.header.features.names()[:5])} ..., in this order")
    counted = store.counted()
    both = [content for row in about.get("contents", ()) if (content := bytes(row).hex()) in counted]
    if both:
        msg = f"{path} holds {len(both)} shards that are counted already, such as {counted[both[0]].key}"
        raise MismatchError(msg, "each content once", "a store does not take back its own export")


def _refuse_impossible(arrays: dict[str, np.ndarray], path: Path) -> None:
    gram, weight = arrays["gram"], float(arrays["weight"])
    n_rows = float(arrays["n_rows"])
    if n_rows < 1 or not n_rows.is_integer() or weight <= 0:
        msg = f"{path}: {n_rows:g} rows of weight {weight:g}"
        raise ConfigError(msg, "a whole number of rows and a positive weight")
    size = float(np.abs(gram).max(initial=0.0))
    if not np.allclose(gram, gram.T, rtol=0, atol=1e-6 * size):
        msg = f"{path}: a Gram matrix that is not symmetric"
        raise ConfigError(msg, "the full matrix, both triangles")
    bordered = np.block([[np.array([[weight]]), arrays["sum_x"][None, :]], [arrays["sum_x"][:, None], gram]])
    scale = np.sqrt(np.maximum(np.diag(bordered), 1e-300))
    lowest = float(np.linalg.eigvalsh(bordered / scale / scale[:, None])[0])
    if lowest < -1e-5 * len(bordered):
        msg = f"{path}: sums that no rows can have (an eigenvalue of {lowest:.3g} of the correlation matrix)"
        raise ConfigError(msg, "weight, sum_x and gram of the same rows", "do not centre the Gram matrix")
    norms = np.sqrt(np.maximum(arrays["sum_yy"], 0.0)) * _SLACK
    possible = (arrays["sum_yy"] >= 0).all() and (np.abs(arrays["sum_y"]) <= np.sqrt(weight) * norms).all()
    if not possible or (np.abs(arrays["cross"]) > np.outer(np.sqrt(np.diag(gram)), norms)).any():
        msg = f"{path}: sums that no rows can have (sum_y or cross is too large for sum_yy)"
        raise ConfigError(msg, "sum_yy, sum_y and cross of the same rows", "take squares of each target by itself")


def _to_frame(store: Store, a: dict[str, np.ndarray]) -> Moments:
    frame, header = store.header.frame, store.header
    dx, dy = a["origin"] - frame.origin, a["y_origin"] - frame.y_origin
    w = float(a["weight"])
    sum_x, sum_y = a["sum_x"] + w * dx, a["sum_y"] + w * dy
    gram = a["gram"] + np.outer(a["sum_x"], dx) + np.outer(dx, sum_x)
    cross = a["cross"] + np.outer(a["sum_x"], dy) + np.outer(dx, sum_y)
    sum_yy = a["sum_yy"] + dy * (a["sum_y"] + sum_y)
    units, y_units = np.ldexp(1.0, -frame.exponents), np.ldexp(1.0, -frame.y_exponents)
    gram = (gram + gram.T) / 2 * units * units[:, None]
    np.fill_diagonal(gram, np.maximum(np.diag(gram), 0.0))  # the shift cancels, and may leave less than nothing
    d, b = frame.n_features, tile_size(frame.n_features)
    tiles = np.zeros((n_tiles(d), b, b))
    for index, r, c in tile_pairs(d):
        tiles[index, : r.stop - r.start, : c.stop - c.start] = gram[r, c]
    big = n_limbs(header.precision)
    return Moments(
        frame,
        header.targets.one_hot,
        int(a["n_rows"]),
        weight=_grid(np.asarray(w), 2),
        sum_x=_grid(sum_x * units, 2),
        sum_y=_grid(sum_y * y_units, 2),
        sum_yy=_grid(np.maximum(sum_yy, 0.0) * y_units**2, 2),
        gram=_grid(tiles, big),
        cross=_grid((cross * y_units * units[:, None]).T, big),
        precision=header.precision,
    )


def _grid(values: np.ndarray, n_limbs: int) -> GridSum:
    accumulator = GridAccumulator(values.shape, n_limbs, like=np.empty(0))
    accumulator.add(np.array(values), peak=float(np.abs(values).max(initial=0.0)))
    return accumulator.total()
