"""The contract as one self-contained descriptor set, for any language to load."""

from importlib import resources


def descriptor_set() -> bytes:
    """Return a serialized google.protobuf.FileDescriptorSet, imports included."""
    return resources.files(__name__).joinpath("bxmesh.binpb").read_bytes()
