"""Text to tokens and back, on rank 0's HTTP threads: templates in; text, thoughts, calls out."""
