"""What can happen to messages, and when exactly a process can be stopped."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from google.protobuf.message import Message

from election.etcd import methods
from election.etcd.methods import Method
from election.pb.etcd import rpc_pb2 as rpc


class Moment(Enum):
    """When exactly a process is stopped, of those moments that matter."""

    NOW = "at once"
    BEFORE_RENEWAL = "between reading the clock for a renewal and sending it"
    AFTER_RENEWAL = "while a renewal is on its way"
    BEFORE_WRITE = "between deciding on a write and sending it"
    AFTER_WRITE = "while a write is on its way"

    def fits(self, method: Method[Any, Any], message: Message, *, sent: bool) -> bool:
        """Whether it is now, for a process that sends something, or has sent it."""
        if method.path == methods.LEASE_KEEP_ALIVE.path:
            return self is (Moment.AFTER_RENEWAL if sent else Moment.BEFORE_RENEWAL)
        if isinstance(message, rpc.TxnRequest) and message.compare:
            return self is (Moment.AFTER_WRITE if sent else Moment.BEFORE_WRITE)
        return False


@dataclass(slots=True)
class Weather:
    """What happens to the messages of one process. Each number but the last is the share of calls to which it does.

    `refused` is a definite failure. The caller cannot know what became of a call where the request is `lost`, or where
    it was executed and is `unanswered`, which shows at once or not before the caller's patience ends. `twice` executes
    a call twice, and `broken` breaks a stream. `slow_s` is the longest delay of a message, each way, and `watch_slow_s`
    that of what a watch tells, in order.
    """

    refused: float = 0.0
    lost: float = 0.0
    unanswered: float = 0.0
    twice: float = 0.0
    broken: float = 0.0
    slow_s: float = 0.0
    watch_slow_s: float = 0.0


CLEAR = Weather()

WEATHERS = {
    "errors": (
        Weather(refused=0.2, lost=0.2, unanswered=0.2, twice=0.2),
        Weather(refused=0.5),
        Weather(lost=0.6),
        Weather(unanswered=0.6),
    ),
    "slow": (Weather(slow_s=0.3), Weather(slow_s=1.0), Weather(slow_s=3.0, unanswered=0.1)),
    "slow watch": (Weather(watch_slow_s=1.0), Weather(watch_slow_s=4.0), Weather(watch_slow_s=4.0)),
    "breaking": (Weather(broken=0.2), Weather(broken=0.5, unanswered=0.2, slow_s=0.1)),
}
