"""What rank 0 decides: who waits, runs and pauses, how much of a prompt is computed between two
steps, and which beginnings of prompts are kept. Pure bookkeeping: it never touches MLX.
"""
