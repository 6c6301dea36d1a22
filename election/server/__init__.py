"""The gRPC API: `elections` and `agents` are the servicers, `serving` is the server around them.

It needs the extra `server`. What answers questions is a `Reader`, which is asked once. What callers do goes through a
`Store`: `standing` and `campaigns` stand for them, `sessions` are their agents, `operations` are what operators do.
`calls` surrounds every method, and asks `access` who may call it.
"""
