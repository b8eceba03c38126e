"""Data that package registries ship, brought to a folder once: what the pipelines here run on by default.

python pipelines/fetch.py flights|movies|fashion [--to data]

Each is fetched by the registry's ordinary client (npm, apt-get), and unpacked without being installed.
"""

from __future__ import annotations

import bz2
import gzip
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from streamfit.cli import script
from streamfit.errors import ConfigError


def flights(folder: Path) -> Path:
    """3,000,000 flights in the United States, 2001: date, delay, distance, origin, destination (npm, 13 MB)."""
    target = folder / "flights-3m.parquet"
    if not target.is_file():
        _run(folder, "npm", "pack", "vega-datasets@3.2.1")
        with tarfile.open(folder / "vega-datasets-3.2.1.tgz") as archive:
            member = archive.extractfile("package/data/flights-3m.parquet")
            assert member is not None
            _write(target, member.read())
    return target


def movies(folder: Path) -> Path:
    """100,004 ratings of 9,066 films by 671 people, of MovieLens (Debian's r-cran-dslabs, 5 MB)."""
    target = folder / "movies.parquet"
    if not target.is_file():
        where = _debian(folder, "r-cran-dslabs") / "usr/lib/R/site-library/dslabs/data"
        frame = _of_r(where, "movielens")
        columns = {name: np.asarray(frame[name]) for name in ("userId", "movieId", "rating", "timestamp")}
        table = pa.table({**columns, "title": [str(title) for title in frame["title"]]})
        pq.write_table(table, target.with_suffix(".partial"))
        target.with_suffix(".partial").replace(target)
    return target


def fashion(folder: Path) -> Path:
    """Fashion-MNIST: 70,000 pictures of 28 x 28 in ten classes (Debian's dataset-fashion-mnist, 30 MB)."""
    target = folder / "fashion.npz"
    if not target.is_file():
        where = _debian(folder, "dataset-fashion-mnist") / "usr/share/datasets/fashion-mnist"
        found: dict[str, Any] = {}
        for part, name in (("train", "train"), ("test", "t10k")):
            images = gzip.decompress((where / f"{name}-images-idx3-ubyte.gz").read_bytes())
            labels = gzip.decompress((where / f"{name}-labels-idx1-ubyte.gz").read_bytes())
            found[f"{part}_images"] = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)
            found[f"{part}_labels"] = np.frombuffer(labels, np.uint8, offset=8)
        with target.with_suffix(".partial").open("wb") as file:
            np.savez_compressed(file, **found)
        target.with_suffix(".partial").replace(target)
    return target


DATA: dict[str, Callable[[Path], Path]] = {"flights": flights, "movies": movies, "fashion": fashion}


def _run(folder: Path, *command: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if shutil.which(command[0]) is None:
        msg = f"no {command[0]} here, which brings this data"
        raise ConfigError(msg, "it to be installed", f"or get the data elsewhere: {' '.join(command)}")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        told = (done.stderr or done.stdout).strip().splitlines()[-1:]
        msg = f"{' '.join(command)} failed: {' '.join(told)}"
        raise ConfigError(msg, "the registry to answer", "check the network, or its mirror's settings")


def _debian(folder: Path, package: str) -> Path:
    """Where a package is unpacked."""
    target = folder / package
    if not target.is_dir():
        _run(folder, "apt-get", "download", package)
        found = sorted(folder.glob(f"{package}_*.deb"))
        _run(folder, "dpkg", "-x", found[-1].name, f"{package}.partial")
        (folder / f"{package}.partial").replace(target)
    return target


def _of_r(where: Path, name: str) -> Any:
    """An object of an R package's lazily loaded data: an index of offsets, and blocks that are each compressed."""
    try:
        import rdata
    except ImportError as error:
        msg = "no rdata here, which reads what R writes"
        raise ConfigError(msg, "it installed", "in the clone: .venv/bin/python -m pip install -e '.[data]'") from error

    def parsed(data: bytes) -> Any:
        return rdata.conversion.convert(rdata.parser.parse_data(data, extension=".rds"))

    index = parsed(gzip.decompress((where / "Rdata.rdx").read_bytes()))
    offset, length = (int(number) for number in index["variables"][name])
    with (where / "Rdata.rdb").open("rb") as file:
        file.seek(offset)
        block = file.read(length)[4:]  # after the length of what it becomes
    data = bz2.decompress(block[1:]) if block[:1] == b"2" else zlib.decompress(block)
    return parsed(data)


def _write(target: Path, data: bytes) -> None:
    partial = target.with_suffix(".partial")
    partial.write_bytes(data)
    partial.replace(target)


def main(name: str, to: Path = Path("data")) -> Path:
    """Fetch; returns the file."""
    if name not in DATA:
        msg = f"data named {name!r}"
        raise ConfigError(msg, f"one of {', '.join(DATA)}")
    found = DATA[name](to)
    print(found)
    return found


if __name__ == "__main__":
    script(main)
