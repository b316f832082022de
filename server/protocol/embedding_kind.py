"""What of a model's embeddings is known. Frozen data; imports nothing."""

from dataclasses import dataclass


@dataclass(frozen=True)
class EmbeddingKind:
    """size: values of a vector. trained: the model was made for it; else it is one that writes.
    why_not: what stands against computing any; "" for nothing."""

    size: int
    trained: bool = False
    why_not: str = ""


UNKNOWN = EmbeddingKind(0, why_not="nothing is known of its hidden states")
