"""JSON to typed requests, and pieces of answers to JSON, on rank 0's HTTP threads.

routes says which URL does what; dialects/ has each API's own shapes, openapi/ describes them.
"""
