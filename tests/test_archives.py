"""Compressed texts and tar files of texts are the texts that are in them; damage is one named error."""

import bz2
import gzip
import io
import itertools
import json
import tarfile
from dataclasses import replace

import pyarrow as pa
import pytest

from streamfit.config_corpus import TextSection
from streamfit.corpus import Files, JsonLines, Labels, TextFiles
from streamfit.corpus.tar import TarText
from streamfit.errors import ShardChangedError, ShardError

TEXTS = [f"document {i}: " + "naïve words " * (i % 7) for i in range(60)]


def zst(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as file:
        file.write(data)
    return sink.getvalue().to_pybytes()


PACKERS = {"gz": gzip.compress, "bz2": bz2.compress, "zst": zst}


def texts_of(source):
    return [text for shard in source.shards() for text in source.documents(shard)]


def write_tar(path, pack=lambda data: data, longest=0):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for i, text in enumerate(TEXTS):
            for ending, data in (("json", json.dumps({"region": "EU" if i % 3 else "US", "n": i})), ("txt", text)):
                info = tarfile.TarInfo(f"{'deep/' * longest}{i:04d}.{ending}")
                info.size = len(data.encode())
                archive.addfile(info, io.BytesIO(data.encode()))
    path.write_bytes(pack(out.getvalue()))
    return TarText(Files(str(path)), shard_bytes=20_000)


@pytest.mark.parametrize("packing", PACKERS)
def test_compressed_texts_are_the_plain_ones(packing, tmp_path):
    """Text files, JSON lines and tar files."""
    pack = PACKERS[packing]
    (tmp_path / f"a.txt.{packing}").write_bytes(pack(TEXTS[3].encode()))
    assert texts_of(TextFiles(Files(str(tmp_path)))) == [TEXTS[3]]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
    path = tmp_path / f"b.jsonl.{packing}"
    path.write_bytes(pack(lines))
    assert texts_of(JsonLines(Files(str(path)))) == TEXTS
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ShardError, match=rf"b\.jsonl\.{packing}"):
        texts_of(JsonLines(Files(str(path))))
    assert texts_of(write_tar(tmp_path / f"c.tar.{packing}", pack)) == TEXTS


@pytest.mark.parametrize("longest", [0, 40], ids=["short names", "long names"])
def test_tar_files_are_cut_between_documents(longest, tmp_path):
    """Every text once and in order; ids are of content, and no range is much larger than was asked for."""
    source = write_tar(tmp_path / "t.tar", longest=longest)
    shards = source.shards()
    assert len(shards) > 2
    assert max(shard.size for shard in shards) < 20_000 + 4 * 2048 + 10_240
    assert texts_of(source) == TEXTS
    assert len({shard.content_id for shard in shards}) == len(shards)
    parts = [texts_of(replace(source, split=split)) for split in ("train", "validation", "test")]
    assert sorted(itertools.chain(*parts)) == sorted(TEXTS)


def test_fields_beside_a_text_label_and_find_it(tmp_path):
    """As columns of a table would."""
    source = write_tar(tmp_path / "t.tar")
    labelled = replace(source, labels=Labels(columns=("region",)))
    by_region = {}
    for shard in labelled.shards():
        by_region.setdefault(dict(shard.labels)["region"], []).extend(labelled.documents(shard))
    assert by_region["US"] == TEXTS[::3]
    assert sorted(itertools.chain(*by_region.values())) == sorted(TEXTS)
    left = []
    for shard in source.shards():
        gone = source.positions(shard, "key", frozenset(["0007", "0040"])) + source.positions(
            shard, "n", frozenset("9")
        )
        left += source.documents(replace(shard, without=tuple(sorted(gone))))
    assert left == [text for i, text in enumerate(TEXTS) if i not in (7, 9, 40)]


@pytest.mark.parametrize("cut", [-10_240, -512, 5000, 700, 100])
def test_a_truncated_archive_is_one_clear_error(cut, tmp_path):
    """Even where it is cut between two members."""
    write_tar(tmp_path / "t.tar")
    data = (tmp_path / "t.tar").read_bytes()
    end = len(data.rstrip(b"\0")) if cut == -10_240 else cut
    (tmp_path / "t.tar").write_bytes(data[: -(-end // 512) * 512 if cut == -10_240 else end])
    if cut == -512:  # zeros at the end are padding
        assert texts_of(TarText(Files(str(tmp_path / "t.tar")))) == TEXTS
        return
    with pytest.raises(ShardError, match=r"t\.tar"):
        texts_of(TarText(Files(str(tmp_path / "t.tar"))))


def test_an_archive_that_changes_is_refused(tmp_path):
    source = write_tar(tmp_path / "t.tar")
    shard = source.shards()[0]
    (tmp_path / "t.tar").write_bytes((tmp_path / "t.tar").read_bytes().replace(b"document 1:", b"document X:"))
    with pytest.raises(ShardChangedError):
        source.documents(shard)


def test_a_section_makes_them(tmp_path):
    """The ending of texts is .txt, unless another is asked for."""
    write_tar(tmp_path / "t.tar")
    section = TextSection(kind="tar", root=str(tmp_path), split=(0.5, 0.5, 0.0))
    both = [text for split in ("train", "validation") for text in texts_of(section.documents(split))]
    assert sorted(both) == sorted(TEXTS)
