"""An etcd cluster of real processes on this machine, to try things on and to test against."""
