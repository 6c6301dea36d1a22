"""An etcd in memory, and a time that passes only when nothing else happens: for tests that never wait for real."""
