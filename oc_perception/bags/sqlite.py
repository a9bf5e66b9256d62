# SPDX-License-Identifier: Apache-2.0
"""Reading the sqlite3 files of rosbag2 (Foxy to Kilted), whole or damaged.

Messages are fetched one by one by their row number, so that a page that cannot be read costs the
messages on it alone.
"""

from __future__ import annotations

import sqlite3
from array import array
from collections.abc import Collection, Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import numpy as np

from oc_perception.bags.chunks import Channel, Message, Skipped, StorageError

SQLITE_MAGIC = b"SQLite format 3\x00"
_LARGEST_JUMP = 1 << 24


class SqliteFile:
    """One .db3 file. Raises StorageError for what is none, or does not tell its topics."""

    def __init__(self, path: Path, skipped: Skipped) -> None:
        self.path, self._skipped = path, skipped
        try:
            with path.open("rb") as file:
                if file.read(16) != SQLITE_MAGIC:
                    raise StorageError("it does not start as an sqlite3 database does")
            with self._connected() as database:
                self.channels = _channels(database)
                self._scan(database)
        except sqlite3.Error as error:
            raise StorageError(f"sqlite3 says {str(error)!r}") from error

    def span(self) -> tuple[int, int]:
        """Times of the first and the last message in ns; the last before the first without any."""
        return int(self._times_ns.min(initial=2**63 - 1)), int(self._times_ns.max(initial=-1))

    def count(self, topic: str) -> int:
        """How many messages a topic has."""
        return int(np.isin(self._topics, list(self._numbers([topic]))).sum())

    def count_before(self, topic: str, time_ns: int) -> int:
        """How many messages of a topic were recorded before a time."""
        chosen = np.isin(self._topics, list(self._numbers([topic])))
        return int((self._times_ns[chosen] < time_ns).sum())

    def messages(self, topics: Collection[str], start_ns: int, stop_ns: int) -> Iterator[Message]:
        """Messages recorded `start_ns <= t < stop_ns` in order of time; others are not read."""
        chosen = np.isin(self._topics, list(self._numbers(topics)))
        chosen &= (self._times_ns >= start_ns) & (self._times_ns < stop_ns)
        places = np.flatnonzero(chosen)
        with self._connected() as database:
            for place in places[np.argsort(self._times_ns[places], kind="stable")]:
                row = int(self._rows[place])
                data = None
                try:
                    found = database.execute("SELECT data FROM messages WHERE id = ?", (row,))
                    data = memoryview(found.fetchone()[0])
                except (sqlite3.Error, TypeError) as error:
                    self._skipped.add(f"message(s) in {self.path.name}", row, f"{error}")
                yield int(self._topics[place]), int(self._times_ns[place]), data

    def _numbers(self, topics: Collection[str]) -> set[int]:
        return {number for number, channel in self.channels.items() if channel.topic in topics}

    def _connected(self) -> closing[sqlite3.Connection]:
        """A connection that writes nothing. The journal of a recorder that was killed counts."""
        address = f"file:{quote(str(self.path.absolute()))}"
        journal = self.path.with_name(f"{self.path.name}-wal")
        try:
            mode = "mode=ro" if journal.is_file() else "immutable=1"
            return _opened(f"{address}?{mode}")
        except sqlite3.OperationalError:  # a journal needs a directory that can be written
            return _opened(f"{address}?immutable=1")

    def _scan(self, database: sqlite3.Connection) -> None:
        """Rows, topics and times of all messages in the order of their rows, 24 bytes each."""
        rows, topics, times_ns = array("q"), array("q"), array("q")
        query = (
            "SELECT id, topic_id, timestamp FROM messages WHERE id >= ? AND "
            "typeof(topic_id) = 'integer' AND typeof(timestamp) = 'integer' ORDER BY id"
        )
        start, jump, error = 0, 1, None
        while jump <= _LARGEST_JUMP:
            try:
                for row, topic, recorded_ns in database.execute(query, (start,)):
                    rows.append(row)
                    topics.append(topic)
                    times_ns.append(recorded_ns)
                    start, jump = row + 1, 1
                break
            except sqlite3.DatabaseError as damage:
                error, start, jump = damage, start + jump, 2 * jump
        if error is not None:
            self._skipped.note(
                f"{self.path.name} is damaged ({error}): {len(rows)} messages are left of it "
                "(record or copy it again)."
            )
        self._rows = np.array(rows, np.int64)
        self._topics = np.array(topics, np.int64)
        self._times_ns = np.array(times_ns, np.int64)


def _opened(address: str) -> closing[sqlite3.Connection]:
    database = sqlite3.connect(address, uri=True)
    database.execute("PRAGMA writable_schema = ON")  # opens files that are cut off, too
    database.execute("SELECT 1 FROM sqlite_master")
    return closing(database)


def _channels(database: sqlite3.Connection) -> dict[int, Channel]:
    tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
    if not {"topics", "messages"} <= tables:
        raise StorageError("it has no tables of topics and messages")
    definitions: dict[str, tuple[str, str]] = {}
    if "message_definitions" in tables:
        query = (
            "SELECT CAST(topic_type AS TEXT), CAST(encoded_message_definition AS TEXT), "
            "CAST(encoding AS TEXT) FROM message_definitions WHERE topic_type NOT NULL"
        )
        definitions = {
            name: (text or "", language or "") for name, text, language in database.execute(query)
        }
    return {
        number: Channel(topic, message_type, *definitions.get(message_type, ("", "")))
        for number, topic, message_type in database.execute(
            "SELECT id, CAST(name AS TEXT), CAST(type AS TEXT) FROM topics "
            "WHERE name NOT NULL AND type NOT NULL"
        )
    }
