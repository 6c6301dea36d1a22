"""Makes requests that nobody should send: what the types allow and nobody means, and bytes that are no message."""

from __future__ import annotations

import random
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

_TEXTS = (
    *("", " ", ".", "-", "..", "_collector", "scheduler", "elections/scheduler", "elections/", "elections//x", "a/b"),
    *(
        "agents/w1",
        "w1",
        "w2",
        "w3",
        "agents/-",
        "agents/w1/tombstones/1",
        "\0",
        "a\0b",
        "x\ny",
        "é",
        "😀",
        "%s%n",
        "{}",
    ),
    *(
        "../../../etc/passwd",
        "'; DROP TABLE",
        "a" * 128,
        "a" * 129,
        "elections/" + "a" * 5000,
        "1",
        "-1",
        "0x1",
        "null",
    ),
)
_NUMBERS = (0, 1, -1, 2, 7, 127, 128, 2**16, 2**31 - 1, -(2**31), 2**32 - 1, 2**48, 2**63 - 1, -(2**63), 2**64 - 1)
_BITS = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_ENUM: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
}


class Forger:
    """Draws from its generator alone, so that a seed makes the same requests again."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def message(self, kind: Descriptor, depth: int = 0) -> Message:
        """A message of this kind, with any of its fields, and anything in them."""
        made = message_factory.GetMessageClass(kind)()
        fields = list(kind.fields)
        for field in self.rng.sample(fields, self.rng.randint(0, len(fields))):
            if field.message_type is not None and depth > 3:
                continue
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                entries = getattr(made, field.name)
                for _ in range(self.rng.randint(0, 3)):
                    entries[self.text()] = self.text()
            elif field.is_repeated:
                values = [self._value(field, depth) for _ in range(self.rng.randint(0, 3))]
                getattr(made, field.name).extend(values)
            elif field.message_type is not None:
                getattr(made, field.name).CopyFrom(self._value(field, depth))
            else:
                setattr(made, field.name, self._value(field, depth))
        return made

    def damaged(self, message: Message) -> bytes:
        """The bytes of a message, of which some are missing, doubled or different; or any bytes at all."""
        data = bytearray(message.SerializeToString())
        match self.rng.randrange(4):
            case 0:
                return self.rng.randbytes(self.rng.randint(1, 300))
            case 1:
                del data[self.rng.randint(0, len(data)) :]
            case 2:
                data += data[: self.rng.randint(0, len(data))] + self.rng.randbytes(3)
            case _:
                for _ in range(min(len(data), 4)):
                    data[self.rng.randrange(len(data))] = self.rng.randrange(256)
        return bytes(data)

    def text(self) -> str:
        """Some text; often one that names something."""
        if self.rng.random() < 0.8:
            return self.rng.choice(_TEXTS)
        return "".join(
            chr(self.rng.choice((*range(1, 128), 0xE9, 0x2028, 0x1F600))) for _ in range(self.rng.randint(1, 20))
        )

    def metadata(self) -> tuple[tuple[str, str | bytes], ...] | None:
        """What goes along with a call; mostly nothing."""
        if self.rng.random() < 0.8:
            return None
        return tuple(
            self.rng.choice(
                (
                    (
                        "authorization",
                        self.rng.choice(("", "Bearer", "Bearer ", "Bearer x.y.z", "Basic eDp5", "Bearer " * 99)),
                    ),
                    ("x-bin", self.rng.randbytes(self.rng.randint(0, 200))),
                    ("x-fencing-token", str(self.rng.choice(_NUMBERS))),
                )
            )
            for _ in range(self.rng.randint(1, 3))
        )

    def frames(self) -> bytes:
        """What is no call at all: any bytes, other protocols, HTTP/2 gone wrong."""
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        match self.rng.randrange(5):
            case 0:
                return self.rng.randbytes(self.rng.randint(1, 2000))
            case 1:
                return b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * self.rng.randint(1, 3)
            case 2:
                return b"\x16\x03\x01" + self.rng.randbytes(300)
            case 3:
                return preface[: self.rng.randint(1, len(preface))]
        frames = b"".join(self._frame() for _ in range(self.rng.randint(1, 12)))
        return preface + b"\0\0\0\x04\0\0\0\0\0" + frames

    def _frame(self) -> bytes:
        payload = self.rng.randbytes(self.rng.choice((0, 1, 4, 5, 8, 50, 500)))
        length = len(payload) if self.rng.random() < 0.9 else self.rng.choice((0, 2**14 + 1, 2**24 - 1))
        stream = self.rng.choice((0, 1, 2, 3, 2**31 - 1))
        return (
            length.to_bytes(3) + bytes((self.rng.randrange(12), self.rng.randrange(256))) + stream.to_bytes(4) + payload
        )

    def _value(self, field: FieldDescriptor, depth: int) -> Any:
        if field.message_type is not None:
            return self.message(field.message_type, depth + 1)
        match field.type:
            case FieldDescriptor.TYPE_STRING:
                return self.text()
            case FieldDescriptor.TYPE_BYTES:
                return self.rng.randbytes(self.rng.choice((0, 1, 15, 16, 32, 64, 65, 1000)))
            case FieldDescriptor.TYPE_BOOL:
                return self.rng.random() < 0.5
            case FieldDescriptor.TYPE_ENUM if self.rng.random() < 0.7:
                return self.rng.randrange(12)
        lowest, highest = _BITS[field.type]
        number = self.rng.choice(_NUMBERS) if self.rng.random() < 0.8 else self.rng.randint(lowest, highest)
        return min(max(number, lowest), highest)
