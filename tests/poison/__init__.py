"""Hostile requests: what they are (fields, bodies, wire), and a real cluster that meets them all.

Each list says what a sane server answers. The expectations hold whatever is supported later:
a value is only called bad if no version of the API allows it.
"""
