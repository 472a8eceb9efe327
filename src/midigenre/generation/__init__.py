"""Generating music with a model.

``grammar`` keeps every sample decodable by its tokenizer.
"""
