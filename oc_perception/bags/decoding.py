# SPDX-License-Identifier: Apache-2.0
"""Messages out of the bytes of a recording, whatever version of a type they were recorded with.

A definition that was recorded with the messages wins over ours where they differ. Its message is
then brought into our form: fields by name, zero or empty where the recording has none.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from rosbags.interfaces import Nodetype
from rosbags.serde import SerdeError
from rosbags.typesys import Stores, TypesysError, get_types_from_idl, get_types_from_msg
from rosbags.typesys import get_typestore as _get_typestore
from rosbags.typesys.store import Typestore

from oc_perception.bags.chunks import Channel, StorageError
from oc_perception.bags.compression import decompress
from oc_perception.bags.definitions import typestore

_TYPE_NAME = re.compile(r"[A-Za-z]\w*/msg/[A-Za-z]\w*", re.ASCII)
_HEADER = "std_msgs/msg/Header"
_IDL_SEPARATOR = "=" * 80 + "\n"
_ZSTD = b"\x28\xb5\x2f\xfd"  # no CDR message starts like this
# What generated decoders run into where lengths are damaged.
_DAMAGE = (SerdeError, ValueError, AssertionError, LookupError, TypeError, struct.error)


class Decoder:
    """Reads the messages of one channel. Both methods raise StorageError."""

    def __init__(self, channel: Channel) -> None:
        self._type, self._channel = channel.message_type, channel

    def message(self, data: bytes | memoryview) -> Any:
        """The message in our form; pixels are a view of `data`."""
        data = plain(data)
        try:
            if self._recorded is not None:
                read = self._recorded.deserialize_cdr
                if self._channel.ros1:
                    data = self._recorded.ros1_to_cdr(data, self._type)
                return _adapted(read(data, self._type), self._type)
            if self._channel.ros1:
                data = typestore().ros1_to_cdr(data, self._type)
            return typestore().deserialize_cdr(data, self._type)
        except _DAMAGE as error:
            raise StorageError(
                f"it is no {self._type} ({error or type(error).__name__})"
            ) from error

    def cdr(self, data: bytes | memoryview) -> bytes | memoryview:
        """The message as ROS 2 serialises it."""
        data = plain(data)
        if not self._channel.ros1:
            return data
        try:
            return (self._recorded or typestore()).ros1_to_cdr(data, self._type)
        except _DAMAGE as error:
            raise StorageError(
                f"it is no {self._type} ({error or type(error).__name__})"
            ) from error

    @cached_property
    def _recorded(self) -> Typestore | None:
        """The types of the recording, where they differ from ours."""
        known = self._type in typestore().fielddefs
        if not self._channel.definition or not _TYPE_NAME.fullmatch(self._type):
            if known:
                return None
            raise StorageError(f"its type {self._type!r} is unknown, and not described in the bag")
        try:
            types = _parsed(self._channel)
            if known and all(_fields(types, name) == _fields(_ours(), name) for name in types):
                return None
            store = _get_typestore(Stores.EMPTY)
            store.register(types)
        except (TypesysError, *_DAMAGE) as error:
            if known:
                return None
            raise StorageError(f"the description of {self._type} in the bag is damaged") from error
        return store


@lru_cache(256)
def decoder(channel: Channel) -> Decoder:
    """The decoder of a channel."""
    return Decoder(channel)


def plain(data: bytes | memoryview) -> bytes | memoryview:
    """A message without the compression that rosbag2 may have put on it. Raises StorageError."""
    return decompress(data, "zstd") if data[:4] == _ZSTD else data


def _ours() -> Any:
    return typestore().fielddefs


def _parsed(channel: Channel) -> dict[str, Any]:
    """The types of a definition, without the sequence number in ROS 1's headers, which the
    conversion from ROS 1 leaves out. Raises TypesysError.
    """
    if channel.schema.endswith("idl"):
        types: dict[str, Any] = {}
        for part in channel.definition.split(_IDL_SEPARATOR):
            types.update(get_types_from_idl(re.sub(r"\AIDL: .*\n", "", part)) if part else {})
    else:
        types = dict(get_types_from_msg(channel.definition, channel.message_type))
    # The names become part of the code that rosbags generates.
    if not all(_TYPE_NAME.fullmatch(name) for name in types):
        raise TypesysError("a type has an impossible name")
    if channel.ros1 and _HEADER in types:
        constants, fields = types[_HEADER]
        types[_HEADER] = constants, [field for field in fields if field[0] != "seq"]
    for name in list(_missing(types)):
        types[name] = typestore().fielddefs[name]
    return types


def _missing(types: dict[str, Any]) -> Iterator[str]:
    """Types that a definition uses and every ROS has: Time and Duration in ROS 1."""
    for _, fields in types.values():
        for _, kind in fields:
            inner = kind[1][0] if kind[0] in (Nodetype.ARRAY, Nodetype.SEQUENCE) else kind
            if inner[0] == Nodetype.NAME and inner[1] not in types:
                yield inner[1]


def _fields(types: Any, name: str) -> list[tuple[str, Any]] | None:
    """Names and kinds of a type's fields; ROS 1 writes some of the names in capitals."""
    if name not in types:
        return None
    return [(field.lower(), kind) for field, kind in types[name][1]]


def _adapted(message: Any, name: str) -> Any:
    """A message of our type from one whose fields may differ."""
    if name not in _ours():
        return message
    found = {field.lower(): value for field, value in vars(message).items()} if message else {}
    return typestore().types[name](
        **{field: _value(found.get(field.lower()), kind) for field, kind in _ours()[name][1]}
    )


def _value(value: Any, kind: Any) -> Any:
    node, about = kind
    if node == Nodetype.NAME:
        return _adapted(value, about)
    if node == Nodetype.BASE:
        return value if value is not None else "" if about[0] == "string" else 0
    inner, length = about
    if inner[0] == Nodetype.NAME:
        return [_adapted(one, inner[1]) for one in value or []]
    if value is not None:
        return value
    if inner[1][0] == "string":
        return []
    return np.zeros(length if node == Nodetype.ARRAY else 0, inner[1][0])
