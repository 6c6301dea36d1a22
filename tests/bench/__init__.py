"""How fast it is, measured on a real etcd beside etcd's own `etcdctl elect`: `make bench`."""
