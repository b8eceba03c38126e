"""Where a store lies: a local folder, or a prefix of an object store. Floor 4: imports errors.

Everything else in this folder goes through here, so that durability (fsync) and atomicity (put only if absent) are
decided once for each kind of place.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError
from obstore.store import LocalStore, ObjectStore, from_url

from streamfit.errors import StoreError

SCHEMES = ("s3", "gs", "az")
_RETRY: Any = {"max_retries": 6, "retry_timeout": timedelta(seconds=60)}


class Place:
    """A folder or prefix, and how bytes get there.

    Parameters
    ----------
    where : str or Path
        A local path, or `s3://`, `gs://` or `az://` with bucket and prefix. Credentials, region and endpoint of
        object stores come from the environment, under the names that their vendors use.

    Attributes
    ----------
    url : str
        Absolute, without a slash at its end.
    local : Path or None
        The folder, where there is one.
    objects : obstore store

    Raises
    ------
    StoreError
        If the address cannot be used.
    """

    def __init__(self, where: str | Path) -> None:
        scheme, there, rest = str(where).partition("://")
        self._given = str(where).rstrip("/") or "/"
        self.local: Path | None = None
        if not there:
            self.local = Path(where).expanduser().absolute()
            self.url = str(self.local)
            self._objects: ObjectStore | None = None
            return
        if scheme not in SCHEMES or not rest.strip("/"):
            msg = f"a store at {where}"
            raise StoreError(msg, f"a local folder, or {', '.join(s + '://bucket/prefix' for s in SCHEMES)}")
        self.url = str(where).rstrip("/")
        try:
            self._objects = from_url(self.url, config=_config(scheme), retry_config=_RETRY)
        except (BaseError, ValueError) as error:
            msg = f"{self.url}: {first_line(error)}"
            raise StoreError(msg, "an address and credentials", "look at the vendor's environment variables") from error

    @property
    def objects(self) -> ObjectStore:
        """The object store, rooted here."""
        if self._objects is None:
            assert self.local is not None
            if not self.local.is_dir():
                msg = f"{self.local} is not a store: no folder"
                raise StoreError(msg, "a folder that `streamfit fit` made", "check the path")
            self._objects = LocalStore(self.local)
        return self._objects

    def __str__(self) -> str:
        """As it was given, for messages."""
        return self._given

    def make(self) -> None:
        """Make the folder, where there are folders.

        Raises
        ------
        StoreError
            If it cannot be made.
        """
        if self.local is not None:
            try:
                self.local.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                msg = f"cannot make {self.local}: {error.strerror}"
                raise StoreError(msg, "a writable folder", "check permissions") from error

    def exists(self, key: str) -> bool:
        """Whether there is an object of this name."""
        with self._reading(key):
            if self.local is not None:
                return (self.local / key).is_file()
            try:
                obstore.head(self.objects, key)
            except (NotFoundError, FileNotFoundError):
                return False
            return True

    def get(self, key: str) -> bytes | None:
        """Bytes of an object, or None where there is none.

        Raises
        ------
        StoreError
            If it cannot be read.
        """
        with self._reading(key):
            try:
                return bytes(obstore.get(self.objects, key).bytes())
            except (NotFoundError, FileNotFoundError):
                return None

    def names(self, prefix: str, after: str | None = None) -> list[str]:
        """Names of the objects in a folder (`prefix` ends in a slash), sorted.

        Sizes and times, as `list` gives them, take a look at every file: too long for the log at each commit.
        """
        if self.local is None:
            return [name for name, _, _ in self.list(prefix, after)]
        with self._reading(prefix):
            try:
                found = os.listdir(self.local / prefix)  # noqa: PTH208 (a Path for each of a hundred thousand names)
            except FileNotFoundError:
                return []
        return sorted(name for name in (prefix + n for n in found) if after is None or name > after)

    def list(self, prefix: str, after: str | None = None) -> list[tuple[str, int, datetime]]:
        """Name, bytes and time of each object below a prefix (which ends in a slash), sorted by name."""
        with self._reading(prefix):
            found = obstore.list(self.objects, prefix, offset=after)
            return sorted((m["path"], m["size"], m["last_modified"]) for batch in found for m in batch)

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        try:
            yield
        except (BaseError, OSError) as error:
            msg = f"cannot read {what} of {self.url}: {first_line(error)}"
            raise StoreError(msg, "a readable store", "check permissions, credentials and network") from error

    @contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        try:
            yield
        except (BaseError, OSError) as error:
            msg = f"cannot write {what} of {self.url}: {first_line(error)}"
            raise StoreError(msg, "a writable store", "check disk space, permissions and network") from error

    def put(self, key: str, data: bytes) -> None:
        """Write an object under a fresh name, durably.

        Raises
        ------
        StoreError
            If it cannot be written.
        """
        with self._writing(key):
            obstore.put(self.objects, key, data)
            if self.local is not None:
                sync(self.local / key)
                sync((self.local / key).parent)
                sync(self.local)

    def put_new(self, key: str, data: bytes) -> None:
        """Write an object only if there is none of its name. It is whole and durable before anyone can see it.

        Raises
        ------
        AlreadyExistsError
            If there is one; nothing is changed then.
        OSError, obstore's BaseError
            If it is not known to be there; it may be.
        """
        if self.local is None:
            obstore.put(self.objects, key, data, mode="create")
            return
        path = self.local / key
        fresh = not path.parent.is_dir()
        path.parent.mkdir(exist_ok=True)
        partial = path.with_name(f".{uuid.uuid4().hex}.partial")
        try:
            with partial.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            try:
                # A link appears at once with all its bytes, and fails where the name is taken.
                os.link(partial, path)
            except FileExistsError as error:
                raise AlreadyExistsError(str(path)) from error
        finally:
            partial.unlink(missing_ok=True)
        sync(path.parent)
        if fresh:
            sync(self.local)

    def settle(self, prefix: str) -> None:
        """Flush every file and folder below a prefix, and their entries, to disk; object stores are durable as is.

        Raises
        ------
        StoreError
            If that fails.
        """
        if self.local is None:
            return
        folder = self.local / prefix
        with self._writing(prefix):
            for root, _, names in os.walk(folder, topdown=False):
                for name in names:
                    sync(Path(root) / name)
                sync(Path(root))
            sync(folder.parent)
            sync(self.local)

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; those that are gone already do no harm.

        Raises
        ------
        StoreError
            If they cannot be removed.
        """
        for key in keys:
            with self._writing(key):
                try:
                    obstore.delete(self.objects, key)
                except (NotFoundError, FileNotFoundError):
                    continue

    def delete_tree(self, prefix: str) -> None:
        """Remove everything below a prefix, and the folder itself.

        Raises
        ------
        StoreError
            If it cannot be removed.
        """
        if self.local is None:
            self.delete(name for name, _, _ in self.list(f"{prefix}/"))
            return
        with self._writing(prefix):
            while (self.local / prefix).exists():
                try:
                    shutil.rmtree(self.local / prefix)
                except FileNotFoundError:  # another collection is at it as well
                    continue


def _config(scheme: str) -> Any:
    # obstore 0.12 panics when it is to show an Azure account that it knows from the environment alone, and zarr shows
    # it in messages.
    account = os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")
    return {"account_name": account} if scheme == "az" and account else {}


def first_line(error: BaseException) -> str:
    """What an error says, without its causes; of an object store's reply in XML, its code."""
    text = str(error).strip()
    line, xml, _ = text.partition("\n")[0].partition(": <?xml")
    code = re.search(r"<Code>(\w+)</Code>", text) if xml else None
    return f"{line} ({code[1]})" if code else line or type(error).__name__


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
