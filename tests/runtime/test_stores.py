"""Pictures from lists, tables, archives and stores: the same pictures, or an error that says what is wrong."""

from __future__ import annotations

import errno
import io
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from wgap import Localizer
from wgap.cli import app
from wgap.errors import DataError, ImageError, MissingDependencyError, StoreError
from wgap.images import decode, find_images
from wgap.runtime.shards import Shards, settings_of
from wgap.stores import Stored, find_pictures

NAMES = [f"{number:02d}.png" for number in range(6)]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(3)
    for name in NAMES:
        cv2.imwrite(str(folder / name), rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    return folder


@pytest.fixture
def store(pictures: Path) -> Iterator[Any]:
    """A store with the pictures in it, and what a folder of pictures also has."""
    files = pytest.importorskip("fsspec").filesystem("memory")
    for name in NAMES:
        files.pipe_file(f"/wgap-stores/{name[0]}/{name}", (pictures / name).read_bytes())
    for name in (".hidden.png", "__MACOSX/x.png", "notes.md"):
        files.pipe_file(f"/wgap-stores/0/{name}", b"none")
    yield files
    files.rm("/wgap-stores", recursive=True)


def archive(path: Path, pictures: Path, kind: str = "") -> Path:
    """A tar as WebDataset's writers make it: each picture beside its label."""
    with tarfile.open(path, f"w:{kind}") as tar:
        for name in reversed(NAMES):
            tar.add(pictures / name, f"train/{name}")
            label = tarfile.TarInfo(f"train/{name}".replace("png", "cls"))
            label.size = 1
            tar.addfile(label, io.BytesIO(b"4"))
        link = tarfile.TarInfo("train/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return path


def contents(found: list[Any]) -> list[np.ndarray]:
    return [decode(one) for one in found]


def same(found: list[Any], pictures: Path, names: list[str] = NAMES) -> bool:
    expected = [decode(pictures / name) for name in names]
    return len(found) == len(expected) and all(
        (a == b).all() for a, b in zip(contents(found), expected, strict=True)
    )  # fmt: skip


def test_files_folders_and_globs_are_what_they_were(pictures: Path) -> None:
    for inputs in (pictures, [pictures / "*.png"], [pictures / name for name in NAMES], str(pictures)):
        assert find_pictures(inputs) == find_images(inputs)
    assert find_pictures([pictures / "no.png"], "keep") == [pictures / "no.png"]
    with pytest.raises(DataError, match="no such file"):
        find_pictures([pictures / "no.png"])


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_list(ending: str, pictures: Path, tmp_path: Path) -> None:
    """Relative to its own folder, whatever the working directory; twice is once, an empty line nothing."""
    listed = pictures / "list.txt"
    text = ending.join(["\ufeff03.png", "", str(pictures / "01.png"), "./03.png", "00.png"])
    listed.write_bytes(text.encode())
    found = find_pictures(listed)
    listed.unlink()
    assert same(found, pictures, ["03.png", "01.png", "00.png"])


def test_columns_of_tables(pictures: Path) -> None:
    rows = [f'{number},"{pictures}/{name}"' for number, name in enumerate(NAMES)]
    (pictures / "table.csv").write_text("id,the image\n" + "\n".join(rows) + "\n")
    (pictures / "one.tsv").write_text("path\n" + "\n".join(NAMES) + "\n")
    found = find_pictures(pictures / "table.csv", column="the image")
    alone = find_pictures(pictures / "one.tsv")
    for column, said in (
        (None, "say which column .*--column.*; it has id, the image"),
        ("url", "there is no column url"),
    ):
        with pytest.raises(DataError, match=said):
            find_pictures(pictures / "table.csv", column=column)
    for name in ("table.csv", "one.tsv"):
        (pictures / name).unlink()
    assert same(found, pictures)
    assert same(alone, pictures)


def test_a_column_of_parquet(pictures: Path, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    paths = [str(pictures / name) for name in NAMES]
    table = pa.table({"url": paths, "label": list(range(6)), "maybe": [*paths[:5], None]})
    parquet.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    assert same(find_pictures(tmp_path / "t.parquet", column="url"), pictures)
    for column, said in (
        ("label", "expected paths or URLs in the column label, it has int64"),
        ("maybe", "nothing in a row of the column maybe"),
        (None, "it has url, label, maybe"),
    ):
        with pytest.raises(DataError, match=said):
            find_pictures(tmp_path / "t.parquet", column=column)
    (tmp_path / "no.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"no\.parquet: expected a Parquet table"):
        find_pictures(tmp_path / "no.parquet")


def test_an_archive_gives_its_pictures_and_nothing_else(pictures: Path, tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar", pictures)
    found = find_pictures(path)
    assert [os.fspath(one) for one in found] == [f"tar://train/{name}::{path}" for name in reversed(NAMES)]
    assert same(found, pictures, NAMES[::-1])
    (tmp_path / "list.txt").write_text("a.tar\n")
    assert find_pictures(tmp_path / "list.txt") == found
    assert find_pictures([tmp_path / "*.tar", path]) == found
    fsspec = pytest.importorskip("fsspec")
    with fsspec.open(os.fspath(found[0])) as file:  # its name is one that others know
        assert file.read() == (pictures / NAMES[-1]).read_bytes()


def test_pictures_of_archives_go_by_their_names(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hard link, which tar writes for a file that it has, is that file; and a name may hold what divides it."""
    monkeypatch.chdir(tmp_path)
    with tarfile.open("a.tar", "w") as tar:
        tar.add(pictures / "01.png", "x::y/01.png")
        link = tarfile.TarInfo("again.png")
        link.type, link.linkname = tarfile.LNKTYPE, "x::y/01.png"
        tar.addfile(link)
    found = find_pictures("a.tar")
    assert [os.fspath(one) for one in found] == ["tar://x::y/01.png::a.tar", "tar://again.png::a.tar"]
    assert same(found, pictures, ["01.png", "01.png"])
    (tmp_path / "names.txt").write_text("tar://again.png::a.tar\n")
    assert find_pictures("names.txt") == find_pictures("tar://again.png::a.tar") == found[1:]
    assert find_pictures(["a.tar", tmp_path / "a.tar"]) == found, "one archive by two names"
    with pytest.raises(DataError, match="there is no such picture in a"):
        find_pictures("tar://no.png::a.tar")


def test_an_archive_packed_anew_is_not_read_for_the_old_one(pictures: Path, tmp_path: Path) -> None:
    """Neither where sizes are the same, nor where they are not."""
    for name, order in (("a.tar", ("a.png", "b.png")), ("b.tar", ("b.png", "a.png"))):
        with tarfile.open(tmp_path / name, "w") as tar:
            for member in order:
                tar.add(pictures / "01.png", member)
    found = find_pictures(tmp_path / "a.tar")
    (tmp_path / "b.tar").rename(tmp_path / "a.tar")
    with pytest.raises(StoreError, match="is not the one that was listed"):
        decode(found[0])


def test_a_glob_takes_what_it_matches_for_pictures(pictures: Path, tmp_path: Path) -> None:
    """Lists and archives only where it asks for them."""
    (tmp_path / "notes.txt").write_text("none of these\n")
    (tmp_path / "a.png").write_bytes((pictures / "01.png").read_bytes())
    assert find_pictures(tmp_path / "*") == [tmp_path / "a.png", tmp_path / "notes.txt"]
    archive(tmp_path / "b.tar", pictures)
    assert len(find_pictures(tmp_path / "*.tar")) == len(NAMES)


def test_archives_that_are_none(pictures: Path, tmp_path: Path) -> None:
    whole = archive(tmp_path / "a.tar", pictures).read_bytes()
    for at in (3000, 12_000, 22_000):  # within what is packed, a header, another's
        (tmp_path / f"cut{at}.tar").write_bytes(whole[:at])
    damaged = bytearray(whole)
    at = whole.index(b"train/03.png")
    damaged[at] ^= 1
    (tmp_path / "damaged.tar").write_bytes(damaged)
    archive(tmp_path / "packed.tar", pictures, "gz")
    (tmp_path / "text.tar").write_text("no archive")
    for name in ("cut3000", "cut12000", "cut22000", "damaged", "packed", "text"):
        with pytest.raises(DataError, match=rf"{name}\.tar: expected an uncompressed tar archive that is whole"):
            find_pictures(tmp_path / f"{name}.tar")
    for name in ("packed.tgz", "packed.tar.gz"):
        archive(tmp_path / name, pictures, "gz")
        with pytest.raises(DataError, match=rf"{name}: expected an uncompressed tar archive"):
            find_pictures(tmp_path / name)
    with tarfile.open(tmp_path / "twice.tar", "w") as tar:
        for _ in range(2):
            tar.add(pictures / NAMES[0], "a.png")
    with pytest.raises(DataError, match=r"holds a\.png twice"):
        find_pictures(tmp_path / "twice.tar")
    with tarfile.open(tmp_path / "none.tar", "w") as tar:
        tar.add(pictures / NAMES[0], "a.cls")
    with pytest.raises(DataError, match="expected pictures, it names none"):
        find_pictures(tmp_path / "none.tar")
    found = find_pictures(tmp_path / "a.tar")
    (tmp_path / "two.tar").write_bytes(whole + whole)
    with pytest.raises(DataError, match=r"two\.tar: .*goes on behind"):
        find_pictures(tmp_path / "two.tar")
    (tmp_path / "a.tar").write_bytes(whole[:600])
    with pytest.raises(StoreError, match="the archive is not the one that was listed"):
        decode(found[-1])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("no.txt", None, "no.txt: no such file or folder"),
        ("folder/x.csv", None, "x.csv: no such file or folder"),
        ("latin.txt", "caf\xe9.png".encode("latin-1"), "expected a text in UTF-8"),
        ("empty.txt", b"\n\n", "expected pictures, it names none"),
        ("empty.csv", b"", "it has none"),
        ("header.csv", b"path\n", "expected pictures, it names none"),
        ("twice.csv", b"path,path\na,b\n", "2 columns are called path"),
        ("short.csv", b"id,path\n1\n", "line 2: nothing in the column path"),
        ("quoted.csv", b'path\n"a.png" b\n', "expected a table of comma-separated values"),
        ("gone.txt", b"gone.png", "gone.png: no such file"),
    ],
)
def test_lists_that_are_none(name: str, content: bytes | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=re.escape(said)) as raised:
        find_pictures(tmp_path / name, column=None if name in ("empty.csv", "quoted.csv") else "path")
    assert name.split(".", maxsplit=1)[0] in str(raised.value)


def test_a_store_s_files_folders_globs_lists_and_archives(store: Any, pictures: Path, tmp_path: Path) -> None:
    for inputs in (
        "memory://wgap-stores",
        "memory://wgap-stores/*/0*.png",
        [f"memory://wgap-stores/0/{n}" for n in NAMES],
    ):
        found = find_pictures(inputs)
        assert same(found, pictures)
        assert all(isinstance(one, Stored) for one in found)
    store.pipe_file("/wgap-stores/list.txt", b"0/03.png\nmemory://wgap-stores/0/01.png\n")
    assert same(find_pictures("memory://wgap-stores/list.txt"), pictures, ["03.png", "01.png"])
    store.pipe_file("/wgap-stores/a.tar", archive(tmp_path / "a.tar", pictures).read_bytes())
    found = find_pictures("memory://wgap-stores/a.tar")
    assert same(found, pictures, NAMES[::-1])
    assert os.fspath(found[0]) == f"tar://train/{NAMES[-1]}::memory://wgap-stores/a.tar"
    (tmp_path / "mixed.txt").write_text("memory://wgap-stores/0/02.png\n")
    assert same(find_pictures(tmp_path / "mixed.txt"), pictures, ["02.png"])


def test_stores_that_are_none(store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for url, said in (
        ("nosuch://bucket/a.png", "nosuch://bucket/a.png: there is no such store here"),
        ("memory://wgap-stores/*.gif", "expected images there, found none"),
        ("memory://wgap-stores/no.csv", "no.csv: cannot be read"),
        ("memory://wgap-stores/no/", "expected images there, found none"),
    ):
        with pytest.raises(DataError, match=said):
            find_pictures(url)
    (tmp_path / "list.txt").write_text("nosuch://bucket/a.png\n")
    with pytest.raises(DataError, match="there is no such store here"):
        find_pictures(tmp_path / "list.txt")
    [gone] = find_pictures("memory://wgap-stores/gone.png")
    with pytest.raises(ImageError, match=r"memory://wgap-stores/gone\.png: no such file"):
        decode(gone)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for inputs in ("memory://wgap-stores", tmp_path / "list.txt"):
        with pytest.raises(
            MissingDependencyError, match=r"fsspec, which is not installed: pip install 'wgap\[shards\]'"
        ):
            find_pictures(inputs)


def test_a_store_that_takes_ranges_within_a_file_alone(
    store: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As S3 of an empty object; and its second positional argument is no offset."""
    read = type(store).cat_file

    def strict(self: Any, path: str, *, start: int | None = None, end: int | None = None) -> bytes:
        if end is not None and end > self.size(path):
            raise OSError(errno.EINVAL, "The requested range is not satisfiable")
        return bytes(read(self, path, start=start, end=end))

    store.pipe_file("/wgap-stores/a.tar", archive(tmp_path / "a.tar", pictures).read_bytes())
    store.pipe_file("/wgap-stores/empty.png", b"")
    monkeypatch.setattr(type(store), "cat_file", strict)
    assert same(find_pictures("memory://wgap-stores/0"), pictures)
    assert same(find_pictures("memory://wgap-stores/a.tar"), pictures, NAMES[::-1])
    with pytest.raises(ImageError, match=r"empty\.png: expected an image, got an empty file"):
        decode(Stored("memory://wgap-stores/empty.png"))
    [first, *_] = find_pictures("memory://wgap-stores/a.tar")
    with monkeypatch.context() as patched:
        patched.setattr(type(store), "cat_file", lambda self, path, **_: read(self, path))  # as servers without ranges
        with pytest.raises(StoreError, match="gives whole files where a part is asked for"):
            decode(first)
    monkeypatch.setattr("wgap.images.MAX_BYTES", 100)
    with pytest.raises(ImageError, match="got a larger file"):
        decode(Stored("memory://wgap-stores/0/00.png"))


def test_results_carry_the_name_and_the_command_takes_them(
    tiny_bundle: Path, store: Any, pictures: Path, tmp_path: Path
) -> None:
    path = archive(tmp_path / "a.tar", pictures)
    with Localizer(tiny_bundle, threads=1) as localizer:
        plain = [result.boxes for result in localizer([pictures / name for name in NAMES])]
        for inputs in (path, "memory://wgap-stores"):
            found = find_pictures(inputs)
            results = list(localizer(found))
            assert [result.image for result in results] == [os.fspath(one) for one in found]
            assert [result.boxes for result in results] == (plain[::-1] if inputs == path else plain)
        run = Shards(tmp_path / "run", find_pictures(path), settings_of(localizer), 4)
        repack(path, pictures)
        with pytest.raises(
            DataError, match=r"picture 0 of its list is tar://train/05\.png::.*bytes at 1536\), not .*bytes at 7168\)"
        ):
            Shards(tmp_path / "run", find_pictures(path)[1:], settings_of(localizer), 4)
        assert run.plan.images == 6
    words = ["localize", str(tiny_bundle), str(path), "--threads", "1", "--out", str(tmp_path / "out"), "--overlay"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.stderr
    assert {f.name for f in (tmp_path / "out").iterdir()} == {"results.jsonl", "first.jpg"} | {
        name.replace("png", "jpg") for name in NAMES
    }


def repack(path: Path, pictures: Path) -> None:
    """The archive with another picture in front."""
    with tarfile.open(path, "w") as tar:
        tar.add(pictures / NAMES[0], "train/first.png")
        for name in reversed(NAMES):
            tar.add(pictures / name, f"train/{name}")
