"""What the ranks compare of the model folder. Imports no mlx."""

from server.protocol.fingerprint import fingerprint_files

__all__ = ["fingerprint_files"]
