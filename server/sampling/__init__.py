"""From logits to the next tokens, and which rank chooses them for which row."""
