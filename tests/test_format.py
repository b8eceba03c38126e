"""docs/store-format.md, proved: a reader and a writer made from the page alone, and its example.

`read_sums` and `write_store` know nothing of streamfit; what they find and make, streamfit must find and make as well.
"""

import hashlib
import inspect
import io
import json
import os
import struct
import zipfile
from pathlib import Path

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from blake3 import blake3
from store_helpers import K, header_of, moments_of, shard_of
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import LocalStore, ZipStore

from streamfit.corpus import Files, ParquetTable
from streamfit.engine import Machine, accumulate
from streamfit.features import Linear
from streamfit.forgetting import forget
from streamfit.frame import Frame
from streamfit.moments import Moments
from streamfit.store import Header, Store, compact, export_segments, verify
from streamfit.tables import Block, prepare_table
from streamfit.targets import Dense, OneHot

PAGE = (Path(__file__).parent.parent / "docs" / "store-format.md").read_text()
SUMS = ("weight", "sum_x", "sum_y", "sum_yy", "gram", "cross")
LIMBS = ("_fine", "", "_coarse")


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def b3(data):
    return blake3(data).hexdigest()


# A reader, from the page


def read_sums(path, at=-1):
    """Rows, weight, and centred Gram and cross moments of a store, or of a zip of one, as of a commit."""
    zipped = path.suffix == ".zip"
    files, place = (zipfile.Path(path), ZipStore(path)) if zipped else (path, LocalStore(path))
    names = sorted(file.name for file in (files / "_log").iterdir() if file.name.endswith(".json"))
    assert names == [f"{n:010d}.json" for n in range(len(names))], "a gap in the log"
    record = json.loads((files / "_log" / names[at]).read_bytes())
    body = record["body"]
    assert record["sha256"] == sha256(json.dumps(body, sort_keys=True).encode()), "an altered record"
    assert body["version"] == 4
    with place:
        root = zarr.open_group(place, mode="r")
        header = root[body["header_at"]]
        o, e, p, f = (header[f"frame/{name}"][:] for name in ("origin", "exponents", "y_origin", "y_exponents"))
        d, b = len(o), header.attrs["tile"]
        limbs = {name + limb: np.zeros(1) for name in SUMS for limb in LIMBS}
        for segment in body["segments"]:
            group, ledger = root[f"segments/{segment['id']}"], files / "ledgers" / f"{segment['id']}.parquet"
            assert (group.attrs["header"], group.attrs["n_rows"]) == (body["header"], segment["n_rows"])
            assert sha256(ledger.read_bytes()) == segment["ledger"], "an altered ledger"
            rows = pq.read_table(io.BytesIO(ledger.read_bytes()))["n_rows"].to_pylist()
            assert (len(rows), sum(rows)) == (segment["n_shards"], segment["n_rows"])
            for name in limbs.keys() & set(group.attrs["arrays"]):
                for i in np.ndindex(group[name].cdata_shape):
                    assert (files / group[name].path / "c" / "/".join(map(str, i))).exists(), "a missing chunk"
                limbs[name] = limbs[name] + group[name][...]
    w, x, y, _, tiles, c = (limbs[f"{s}_coarse"] + (limbs[s] + limbs[f"{s}_fine"]) for s in SUMS)
    gram, pairs = np.zeros((d, d)), [(i, j) for i in range(0, d, b) for j in range(i, d, b)]
    for tile, (i, j) in zip(tiles, pairs, strict=True):
        gram[i : i + b, j : j + b] = tile[: d - i, : d - j]
    gram = np.triu(gram) + np.triu(gram, 1).T
    u, v = 2.0**e, 2.0**f
    n_rows, means = sum(s["n_rows"] for s in body["segments"]), (o + u * (x / w), p + v * (y / w))
    return (
        n_rows,
        w[0],
        *means,
        (gram - np.outer(x, x) / w) * u * u[:, None],
        (c.T - np.outer(x, y / w)) * v * u[:, None],
    )


def test_the_reader_is_as_short_as_it_is_said_to_be():
    assert len(inspect.getsource(read_sums).splitlines()) <= 40


def assert_read_alike(path, moments, at=-1, *, exact=True):
    """What the reader finds is what streamfit says, to the last bit where sums have two limbs at most."""
    theirs, c = read_sums(path, at), moments.centered()
    assert theirs[:2] == (c.n_rows, c.weight)
    for a, b in zip(theirs[2:], (c.mean_x, c.mean_y, c.gram, c.cross), strict=True):
        np.testing.assert_allclose(a, b, rtol=0 if exact else 1e-12, atol=0 if exact else 1e-12 * np.abs(b).max())


def add(store, number, scale=1.0, *, commit=True):
    segment = store.write_segment(moments_of(store.header, number, scale), [shard_of(number)], [50])
    if commit:
        store.commit([segment])


@pytest.mark.parametrize("scales", [(1.0, 1.0), (1.0, 2.0**26)], ids=["usual", "heavy tail"])
@pytest.mark.parametrize("d", [5, 1100], ids=["one tile", "six tiles"])
@pytest.mark.parametrize("targets", [Dense(K), OneHot(K)], ids=["dense", "one_hot"])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_the_page_is_enough_to_read_sums(tmp_path, precision, targets, d, scales):
    """Limbs, tiles, origin and units; the coarse limb of a heavy tail in one of the segments; nothing uncommitted."""
    store = Store.create(tmp_path / "s", header_of(precision, targets, d))
    for seed, scale in enumerate(scales):
        add(store, seed, scale)
    add(store, 9, commit=False)
    moments = store.moments()
    heavy = scales[1] > 1
    assert (len(moments.gram.limbs), moments.gram.top) == ((1, 2)[precision == "float64"] + heavy, (-16, 20)[heavy])
    assert_read_alike(tmp_path / "s", moments, exact=not heavy)


def history(folder):
    """A store that counted, forgot a row, was compacted, and forgot a shard; pinned before all that."""
    rng = np.random.default_rng(7)
    (folder / "data").mkdir()
    for i in range(4):
        columns = {f"x{j}": rng.normal(size=300) + j for j in range(4)} | {"y": rng.normal(size=300)}
        columns["id"] = np.arange(300) + 300 * i
        pq.write_table(pa.table(columns), folder / "data" / f"{i}.parquet", row_group_size=100)
    source = ParquetTable(Files(str(folder / "data")), ("x0", "x1", "x2", "x3"), ("y",), label="first")
    blocks = [Block("linear"), Block("rbf", 3), Block("fourier", 2)]
    header = prepare_table(source, blocks, precision="float32", n_folds=2, seed=0, sample_rows=500)
    store = Store.create(folder / "store", header, keep=3)
    accumulate(store, source, group_rows=200)
    store.pin("all")
    forget(store, Machine("serial"), None, where=["id=17"], why="they asked")
    compact(store)
    forget(store, Machine("serial"), None, shards=["1.parquet#2"], why="a “bad” source\n", fast=True)
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return history(tmp_path_factory.mktemp("history"))


def test_the_page_is_enough_to_read_any_state_of_a_store(store):
    """After rows and shards were forgotten and segments merged, and every commit that can be gone back to."""
    path, head = store.place.local, store.head()
    assert head.n_rows == 1_200 - 1 - 100
    assert_read_alike(path, store.moments())
    readable = [n for n in range(1, head.sequence + 1) if head.readable(n)]
    assert readable[1] > readable[0] + 1, "the pin is older than the commits that are kept"
    rows = set()
    for n in readable:
        assert_read_alike(path, Store(path, at=n).moments(), at=n)
        rows.add(read_sums(path, n)[0])
    assert rows == {1_200, 1_199, 1_099}


@pytest.mark.parametrize("anonymous", [False, True])
def test_the_page_is_enough_to_read_a_file_of_segments(store, tmp_path, anonymous):
    """The zip is a store: the same reader takes it through Zarr's own ZipStore."""
    export_segments(store, tmp_path / "out.zip", anonymous=anonymous)
    assert_read_alike(tmp_path / "out.zip", store.moments())


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("damage", "pattern"),
    [
        (Path.unlink, "_log/0000000001.json"),
        (Path.unlink, "ledgers/*"),
        *((Path.unlink, f"segments/*/{name}/c/*") for name in ("weight", "sum_x_fine")),
        (Path.unlink, "segments/*/gram/c/0/0/0"),
        (flip, "_log/0000000002.json"),
        (flip, "ledgers/*"),
        (flip, "segments/*/gram/c/0/0/0"),
    ],
    ids=lambda p: p if isinstance(p, str) else p.__name__,
)
def test_the_reader_stops_at_damage(tmp_path, damage, pattern):
    """What the page calls damage is found by following it: a gap, an altered byte, a missing chunk."""
    store = Store.create(tmp_path / "s", header_of())
    add(store, 0)
    add(store, 1)
    damage(sorted((tmp_path / "s").glob(pattern))[0])
    with pytest.raises(Exception, match=r"a gap|altered|[Cc]hecksum|No such file|a missing chunk"):
        read_sums(tmp_path / "s")


# A writer, from the page


def put_array(group, name, array):
    chunks = (1, *array.shape[1:]) if array.ndim == 3 else array.shape
    codecs = [BloscCodec(cname="lz4", shuffle="shuffle", typesize=array.itemsize), Crc32cCodec()]
    made = group.create_array(
        name,
        shape=array.shape,
        chunks=chunks,
        dtype=array.dtype,
        compressors=codecs,
        config={"write_empty_chunks": True},
    )
    made[...] = array


def put_record(path, body):
    """Create a log record only if there is none of its number."""
    (path / "_log").mkdir(exist_ok=True)
    staged = path / "_log" / ".staged.partial"
    staged.write_text(json.dumps({"body": body, "sha256": sha256(json.dumps(body, sort_keys=True).encode())}))
    try:
        os.link(staged, path / "_log" / f"{body['sequence']:010d}.json")
    finally:
        staged.unlink()


def write_store(path, x, y):
    """A store of one feature block `Linear`, without origin and units, of whole numbers, as float32 products."""
    attributes = {"features": {"kind": "Linear", "n": x.shape[1]}, "targets": {"kind": "dense", "n_targets": 1}}
    attributes |= {"precision": "float32", "n_folds": 2, "block_rows": 4096, "tile": x.shape[1]}
    attributes |= {"reader": {}, "files": []}
    arrays = {"frame/origin": np.zeros(x.shape[1]), "frame/exponents": np.zeros(x.shape[1], np.int32)}
    arrays |= {"frame/y_origin": np.zeros(1), "frame/y_exponents": np.zeros(1, np.int32)}
    digest = json.dumps(attributes, sort_keys=True).encode()
    for name in sorted(arrays):
        digest += f"{name}:{arrays[name].dtype.str}:{arrays[name].shape}".encode() + arrays[name].tobytes()
    header = zarr.create_group(path, path="header/mine", attributes={**attributes, "arrays": sorted(arrays)})
    for name, array in arrays.items():
        put_array(header, name, array)
    body = {"version": 4, "sequence": 0, "header": sha256(digest), "header_at": "header/mine", "segments": []}
    body |= {"refused": [], "removed": [], "pins": [], "max_live": 64, "keep": 16, "horizon": 0, "action": "create"}
    body |= {"who": "me@here:1", "when": "2026-11-23T00:00:00+00:00", "commit": "0" * 32}
    put_record(path, body)

    sums = {"weight": np.array([len(x)]), "sum_x": x.sum(0), "sum_y": y.sum(0), "sum_yy": (y * y).sum(0)}
    sums |= {f"{name}_fine": np.zeros_like(array) for name, array in sums.items()}
    sums |= {"gram": (x.T @ x)[None], "cross": y.T @ x}
    attributes = {"n_rows": len(x), "header": sha256(digest), "arrays": sorted(sums)}
    segment = zarr.create_group(path, path="segments/one", attributes=attributes)
    for name, array in sums.items():
        put_array(segment, name, array.astype(np.float64))
    row = {
        "content_id": bytes.fromhex(b3(b"rows")),
        "key": "rows",
        "uri": "/rows",
        "start": 0,
        "stop": 1,
        "size": 4,
    }
    row |= {"n_rows": len(x), "source": "web", "labels": [{"name": "time", "value": "2026"}], "without": []}
    pair = pa.list_(pa.struct([("name", pa.string()), ("value", pa.string())]))
    types = {"content_id": pa.binary(32), "labels": pair, "select": pair, "within": pa.binary(32)}
    types |= {"without": pa.list_(pa.int64())} | dict.fromkeys(("start", "stop", "size", "n_rows"), pa.int64())
    row |= {"select": [], "within": None}
    schema = pa.schema([(name, types.get(name, pa.string())) for name in row])
    (path / "ledgers").mkdir()
    pq.write_table(pa.Table.from_pylist([row], schema), path / "ledgers" / "one.parquet")
    fold = int(b3(b"rows")[:15], 16) % 2
    live = {"id": "one", "fold": fold, "source": "web", "n_rows": len(x), "n_shards": 1, "labels": [["time", "2026"]]}
    live["ledger"] = sha256((path / "ledgers" / "one.parquet").read_bytes())
    whole = b""
    for name in sorted(sums):
        array = sums[name].astype(np.float64)
        whole += f"{name}:{array.dtype.str}:{array.shape}".encode() + array.tobytes()
    segment.attrs.update({"ledger": live["ledger"], "sums": sha256(whole)})
    put_record(path, body | {"sequence": 1, "segments": [live], "action": "add", "commit": "1" * 32})
    return body


def test_the_page_is_enough_to_write_a_store(tmp_path):
    """Streamfit finds no fault with it, reads its sums, adds to it, merges and forgets; a taken number stays taken."""
    rng = np.random.default_rng(0)
    x, y = (rng.integers(-9, 9, (50, n)).astype(np.float64) for n in (4, 1))
    body = write_store(tmp_path, x, y)
    store = Store(tmp_path)
    header = Header(Linear(4), Dense(1), Frame.identity(4, 1), "float32", 2)
    assert store.header.content_hash == header.content_hash
    assert store.moments() == Moments.from_rows(x, y, header.frame, Dense(1), precision="float32")
    again = Moments.from_rows(x[:9], y[:9], header.frame, Dense(1), precision="float32")
    theirs = next(iter(store.counted().values()))
    number = next(n for n in range(99) if shard_of(n).fold(2) == theirs.fold(2))
    shard = shard_of(number, "web", labels=theirs.labels)
    store.commit([store.write_segment(again, [shard], [9])])
    assert compact(store) == 1
    assert verify(store).faults == []
    assert_read_alike(tmp_path, store.moments())
    with pytest.raises(FileExistsError):
        put_record(tmp_path, body | {"sequence": 2})
    assert Store(tmp_path).head() == store.head()


def test_the_example_of_the_page(tmp_path):
    """Its record has its digest, its header its hash, its chunk its checksum; streamfit writes the same."""
    blocks = [block.split("\n", 1)[1] for block in PAGE.split("```")[1::2]]
    attributes, record, chunk = blocks[0].strip(), json.loads(blocks[1]), bytes.fromhex(blocks[2])
    body = record["body"]
    assert record["sha256"] == sha256(json.dumps(body, sort_keys=True).encode())
    frame = Frame(np.array([10.0, 0.0]), np.array([1, 0], np.int32), np.zeros(1), np.array([3], np.int32))
    header = Header(Linear(2), Dense(1), frame, "float32", 2)
    assert header.content_hash == body["header"]
    assert json.dumps(header.to_spec()[0], sort_keys=True) == attributes
    assert struct.unpack("<4d", chunk[16:-4]) == (3.5, 6.5, 6.5, 14.0)
    assert struct.unpack("<I", chunk[-4:]) == (google_crc32c.value(chunk[:-4]),)

    store = Store.create(tmp_path / "s", header)
    x, y = np.array([[11.0, 1.0], [13.0, 2.0], [12.0, 3.0]]), np.array([[4.0], [8.0], [12.0]])
    moments = Moments.from_rows(x, y, frame, Dense(1), precision="float32")
    shard = shard_of(0, "web", labels=(("time", "2026-11"),))
    store.commit([store.write_segment(moments, [shard], [3])])
    ids = {store.head().header_at.split("/")[1]: body["header_at"].split("/")[1]}
    ids[store.head().segments[0].id] = body["segments"][0]["id"]
    listed = {p.relative_to(tmp_path / "s").as_posix() for p in (tmp_path / "s").rglob("*") if p.is_file()}
    for mine, theirs in ids.items():
        listed = {name.replace(mine, theirs) for name in listed}
    assert {name for name in listed if not name.endswith("zarr.json")} == set(listing(PAGE))
    written = next((tmp_path / "s").glob("segments/*/gram/c/0/0/0")).read_bytes()
    assert written[16:-4] == chunk[16:-4]
    n_rows, weight, mean_x, mean_y, gram, cross = read_sums(tmp_path / "s")
    assert (n_rows, weight, mean_x.tolist(), mean_y.tolist()) == (3, 3, [12, 2], [8])
    assert (gram.tolist(), cross.tolist()) == ([[2, 1], [1, 2]], [[4], [8]])


def listing(page):
    """Objects that the example lists, with what stands in braces spread out."""
    for line in page.split("## 12")[1].splitlines():
        if not line.startswith(("    _", "    h", "    l", "    s")):
            continue
        name, _, note = line.strip().partition("  ")
        head, brace, rest = name.partition("{")
        inner, _, tail = rest.partition("}")
        for each in inner.split(",") if brace else [""]:
            yield head + each + tail
            if "_fine" in note:
                yield f"{head}{each}_fine{tail}"
