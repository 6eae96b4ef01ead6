"""Instruction examples: what a row is, and how rows are read."""
