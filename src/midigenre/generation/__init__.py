"""Music out of a model.

``grammar`` keeps every sample inside what its tokenizer can say.
"""
