"""What the server of the gRPC API and its client both say: `election.v1` as records and errors of this library.

Here alone records become messages and back, errors become statuses and back, and resources have names. One module is
for what each service has: `elections`, `agents`, their `sessions`, and the `operations` on them.
"""
