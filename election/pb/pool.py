"""A descriptor pool of its own for etcd's messages.

protobuf's default pool is one per process and refuses a second `etcdserverpb.RangeRequest`, so a program that
also imports another etcd client could not import this one.
"""

from google.protobuf import descriptor_pool

ETCD = descriptor_pool.DescriptorPool()
