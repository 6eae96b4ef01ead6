"""The stages of a run: each reads what is finished, computes what is missing, and leaves files (design.md).

A stage's fingerprint is a hash of what it depends on, so that an extended run repeats only what has to change: labels
are added chunk by chunk, vectors come from the cache, and the student is trained again.
"""
