"""The client of the gRPC API, for programs without access to etcd.

`client` asks one of several `servers`, and goes on at another one: a `conversation` is a call in both directions,
`told` is what a watch goes on after. What is made through it: a `candidate` and its `campaign_call`, an agent's
`session` with its `session_keeper` and `session_stream`, and `care`, which is what operators do.

`leader_client` follows one leader in memory; `leader_channel` makes `leader_calls` to whoever leads, with errors of
their own.
"""

from election.client.client import ATTEMPT_TIMEOUT_S, CALL_TIMEOUT_S, HEARTBEAT_S, Client, dial

__all__ = ["ATTEMPT_TIMEOUT_S", "CALL_TIMEOUT_S", "HEARTBEAT_S", "Client", "dial"]
