"""The client of the gRPC API, for programs without access to etcd.

`client` asks one of several `servers`, and goes on at the next: `questions`, which have one answer, and `watches`,
which go on after what they have `told`. A `conversation` is a call in both directions: a `candidate` has one in each
`campaign_call`, an agent's `session` in its `session_stream`, which the `session_keeper` makes anew. `care` is what
operators do.

`leader_client` follows one leader in memory; `leader_channel` makes `leader_calls` to whoever leads, with errors of
their own.
"""

from election.client.client import ATTEMPT_TIMEOUT_S, CALL_TIMEOUT_S, Client, dial
from election.client.watches import HEARTBEAT_S

__all__ = ["ATTEMPT_TIMEOUT_S", "CALL_TIMEOUT_S", "HEARTBEAT_S", "Client", "dial"]
