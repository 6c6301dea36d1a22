"""The full names of our services, as health and reflection know them."""

from election.pb.election.v1 import election_pb2 as pb

SERVICES = tuple(service.full_name for service in pb.DESCRIPTOR.services_by_name.values())
