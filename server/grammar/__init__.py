"""What an answer must match: written as one grammar, tried in a child process, compiled, and asked
for the tokens that may come next. Rank 0 only.
"""
