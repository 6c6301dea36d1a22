"""A descriptor pool of its own for etcd's messages.

protobuf's default pool is one per process and refuses a second `etcdserverpb.RangeRequest`, so a program that
also imports another etcd client could not import this one.
"""

from typing import Any

from google.protobuf import descriptor_pool, message, reflection
from google.protobuf.descriptor import Descriptor, FileDescriptor
from google.protobuf.internal import enum_type_wrapper

ETCD = descriptor_pool.DescriptorPool()


def build(file: FileDescriptor, module_name: str, module: dict[str, Any]) -> None:
    """Fills a generated module, as protobuf's builder does that it stands for, but without the symbol database.

    In the pure Python implementation, that registers every message in the default pool after all.
    """

    def built(described: Descriptor, prefix: str) -> Any:
        fields = {
            name: built(nested, f"{prefix}{described.name}.") for name, nested in described.nested_types_by_name.items()
        }
        fields |= {"DESCRIPTOR": described, "__module__": module_name, "__qualname__": prefix + described.name}
        return reflection.GeneratedProtocolMessageType(described.name, (message.Message,), fields)

    for name, enum in file.enum_types_by_name.items():
        module[f"_{name.upper()}"], module[name] = enum, enum_type_wrapper.EnumTypeWrapper(enum)
        module.update((value.name, value.number) for value in enum.values)
    for name, service in file.services_by_name.items():
        module[f"_{name.upper()}"] = service
    for name, described in file.message_types_by_name.items():
        module[name] = built(described, "")
