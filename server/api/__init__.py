"""JSON to typed requests, and pieces of answers to JSON, on rank 0's HTTP threads.

routes says which URL does what; dialects/ has each API's own shapes, openapi/ describes them. A
request's fields stand in tables (fields, kinds): those that APIs share in requests and formats,
an API's own in dialects/. A line there is all that reading and describing a field takes.
"""
