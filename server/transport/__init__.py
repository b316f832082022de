"""Bytes to exchanges and back, on rank 0: sockets, limits and deadlines, who may come in, the page.

Nothing here knows what a request asks for.
"""
