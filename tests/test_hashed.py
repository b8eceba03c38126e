"""Hashed features: scikit-learn's conventions, columns of Parquet, and what a config may ask for."""

import datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.feature_extraction import FeatureHasher

from streamfit.config import load_problem
from streamfit.corpus import Files, ParquetTable
from streamfit.errors import ConfigError, ShardError
from streamfit.features import Hashed, from_spec

RECORDS = [
    {"origin": "ORD", "day": 3, "late": True, "tags": ["a", "b", "a"], "dist": 0.5, "at": datetime.date(2026, 1, 31)},
    {"origin": "Köln", "day": 0, "late": False, "tags": [], "dist": 0.0, "at": datetime.date(2026, 2, 1)},
    {"origin": "", "day": 3, "late": True, "tags": ["origin=ORD"], "dist": -2.0, "at": datetime.date(2026, 2, 1)},
]


def table(records):
    columns = {name: [record[name] for record in records] for name in records[0]}
    types = {"tags": pa.list_(pa.string()), "origin": pa.dictionary(pa.int32(), pa.string())}
    made = {name: pa.array(values, types.get(name)) for name, values in columns.items()}
    return pa.table({**made, "y": np.arange(float(len(records)))})


def source(folder, hashed, rows, **options):
    pq.write_table(rows, folder / "rows.parquet")
    return ParquetTable(Files(str(folder)), hashed.columns, ("y",), hashed=hashed, **options)


def read(rows):
    (shard,) = rows.shards()
    return [batch.x for batch in rows.read(shard)]


@pytest.mark.parametrize("alternate_sign", [True, False])
@pytest.mark.parametrize("n", [4, 2**20])
def test_rows_are_those_of_the_feature_hasher(tmp_path, n, alternate_sign):
    hashed = Hashed(n, ("origin", "day", "late", "tags", "dist"), ("day",), alternate_sign)
    (found,) = read(source(tmp_path, hashed, table(RECORDS)))
    # Its own convention for mappings: text and lists of text are names, numbers and booleans are values.
    plain = [{k: str(v) if k == "day" else v for k, v in record.items() if k != "at"} for record in RECORDS]
    words = [[(k, w) for k, v in r.items() for w in (v if isinstance(v, list) else [v])] for r in plain]
    expected = FeatureHasher(n, input_type="pair", alternate_sign=alternate_sign).transform(words)
    assert np.array_equal(found.toarray(), expected.toarray()) if n < 100 else (found != expected).nnz == 0
    assert (found != hashed.of_records(RECORDS)).nnz == 0
    assert found.has_canonical_format
    assert (found.data != 0).all()


def test_times_are_cut_and_categories_are_names(tmp_path):
    hashed = Hashed(2**16, ("at|month", "late"), ("late",))
    (found,) = read(source(tmp_path, hashed, table(RECORDS)))
    tokens = [["at|month=2026-01", "late=true"], ["at|month=2026-02", "late=false"], ["at|month=2026-02", "late=true"]]
    assert (found != FeatureHasher(2**16, input_type="string").transform(tokens)).nnz == 0


def test_a_map_is_its_description():
    hashed = Hashed(8, ("a", "b"), ("b",), alternate_sign=False)
    spec, arrays = hashed.to_spec()
    assert from_spec(spec, arrays) == hashed or from_spec(spec, arrays).content_hash == hashed.content_hash
    assert from_spec(spec, arrays).content_hash != Hashed(8, ("a", "b"), ("b",)).content_hash
    for n in (0, 1, 12, 2**31):
        with pytest.raises(ConfigError, match="power of two"):
            Hashed(n, ("a",))
    with pytest.raises(ConfigError, match="categories c"):
        Hashed(8, ("a",), ("c",))


@pytest.mark.parametrize(
    ("values", "column", "message"),
    [
        (pa.array(["a", None]), "c", "row 1: null"),
        (pa.array([["a"], ["b", None]]), "c", "row 1: null"),
        (pa.array([0.5, float("nan")]), "c", "row 1: nan"),
        (pa.array([datetime.date(2026, 1, 1)] * 2), "c", "name it in `categories`"),
        (pa.array([[1.0], [2.0]]), "c", "lists of text"),
        (pa.array(["2026-01-01", "soon"]), "c|day", "row 1: null, or nothing"),
    ],
)
def test_values_without_tokens_are_named(tmp_path, values, column, message):
    rows = pa.table({"c": values, "y": [0.0, 1.0]})
    with pytest.raises(ShardError, match=message):
        read(source(tmp_path, Hashed(8, (column,)), rows))


@pytest.mark.parametrize(
    ("features", "more", "message"),
    [
        ('kind = "hashed"', "", "takes n, a power of two"),
        ('kind = "hashed"\nn = 100', "", "power of two"),
        ('kind = "hashed"\nn = 64\ngamma = 1.0', "", "no gamma"),
        ('kind = "hashed"\nn = 64\ncategories = ["z"]', "", "categories z"),
        ('kind = "linear"\ncategories = ["a"]', "", "for kind 'hashed'"),
        ('kind = "hashed"\nn = 64\n[[features]]\nkind = "linear"', "", "stands alone"),
        ('kind = "hashed"\nn = 64', 'statistic = "qr"', "use 'auto' or 'gram'"),
        ('kind = "hashed"\nn = 64', 'precision = "tf32"', "takes precision 'float64'"),
        ('kind = "hashed"\nn = 64', 'count_rows = "always"', "every row by itself"),
        ('kind = "linear"', 'statistic = "sparse"', "use 'auto' or 'gram'"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, features, more, message):
    config = tmp_path / "c.toml"
    corpus = f'[corpus]\nroot = "{tmp_path}"\nfeatures = ["a"]\ntarget = ["y"]\n'
    config.write_text(f'kind = "ridge"\nrun = "r"\n{more}\n{corpus}[[features]]\n{features}\n')
    with pytest.raises(ConfigError, match=message):
        load_problem(config)


def test_hashed_sums_take_float64_unless_told(tmp_path):
    config = tmp_path / "c.toml"
    corpus = f'[corpus]\nroot = "{tmp_path}"\nfeatures = ["a"]\ntarget = ["y"]\n[[features]]\nkind = "hashed"\nn = 64\n'
    config.write_text(f'kind = "ridge"\nrun = "r"\n{corpus}')
    assert load_problem(config).precision == "float64"
    config.write_text(f'kind = "ridge"\nrun = "r"\nprecision = "float32"\n{corpus}')
    assert load_problem(config).precision == "float32"
