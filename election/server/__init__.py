"""The gRPC API over a `Reader`: `elections` and `agents` are the servicers, `serving` is the server around them.

It needs the extra `server`. Nothing here decides anything: it decodes, asks the Reader once, and encodes.
"""
