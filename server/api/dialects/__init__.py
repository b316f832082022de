"""One file an API: its requests in, its answers out. Translation only, no second way to generate.

chat and completions are OpenAI's own; responses and messages translate into and out of chat.
"""
