"""The shared words of VecraftDB."""

from vecraft_data_model.schema import CollectionSchema

__all__ = ["CollectionSchema"]
