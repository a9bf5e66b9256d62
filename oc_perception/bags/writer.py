# SPDX-License-Identifier: Apache-2.0
"""Writing rosbag2: equal messages give equal bytes, and a bag appears only when it is whole."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

from rosbags.interfaces import Connection
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

from oc_perception.bags.definitions import typestore

STORAGES = ("mcap", "sqlite3")


class BagWriter:
    """A context manager that writes the bag directory `path`.

    The bag grows in a hidden directory beside `path` and moves there on a clean exit; an exception
    (Ctrl-C too) removes it, so that a half bag never looks whole. Nothing but the messages and the
    bag's name enters the files: no wall time, no random identifier. `compress` packs the chunks of
    an mcap with zstd, which rosbag2 reads as it is. With `overwrite` an older bag at `path` is
    replaced in the end; otherwise, and for anything but a bag, FileExistsError is raised.
    """

    def __init__(
        self,
        path: str | Path,
        storage: str = "mcap",
        compress: bool = False,
        overwrite: bool = False,
    ) -> None:
        if storage not in STORAGES:
            raise ValueError(f"Unknown bag storage {storage!r}: choose one of {STORAGES}.")
        if compress and storage != "mcap":
            raise ValueError("Only mcap bags can be compressed: leave out compress, or use mcap.")
        self.path = Path(path)
        if self.path.exists() and not (overwrite and (self.path / "metadata.yaml").is_file()):
            raise FileExistsError(f"{self.path} exists already: remove it or choose another name.")
        self._workshop = self.path.parent / f".{self.path.name}.unfinished"
        shutil.rmtree(self._workshop, ignore_errors=True)  # left behind by a killed process
        # Metadata version 8: newer distributions read it; Humble cannot read lists of version 9.
        self._writer = Writer(
            self._workshop / self.path.name,
            version=8,
            storage_plugin=StoragePlugin[storage.upper()],
        )
        if compress:
            self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        self._connections: dict[str, Connection] = {}

    def __enter__(self) -> BagWriter:
        self._writer.open()
        return self

    def write(self, topic: str, stamp_ns: int, message: Any) -> None:
        """Append a message, recorded at `stamp_ns`. A topic with two types raises ValueError."""
        data = typestore().serialize_cdr(message, message.__msgtype__)
        self.write_raw(topic, stamp_ns, message.__msgtype__, data)

    def write_raw(
        self, topic: str, stamp_ns: int, message_type: str, data: bytes | memoryview
    ) -> None:
        """Append a message that is CDR already. A topic with two types raises ValueError."""
        connection = self._connections.get(topic)
        if connection is None:
            connection = self._connections[topic] = self._writer.add_connection(
                topic, message_type, typestore=typestore()
            )
        if connection.msgtype != message_type:
            raise ValueError(f"{topic} holds {connection.msgtype}, not {message_type}.")
        self._writer.write(connection, stamp_ns, data)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._writer.close()
                if self.path.exists():
                    shutil.rmtree(self.path)
                (self._workshop / self.path.name).rename(self.path)
            else:
                self._writer.abort()
        finally:
            shutil.rmtree(self._workshop, ignore_errors=True)
