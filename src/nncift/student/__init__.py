"""The student: a small network that learns a teacher's values from sentence embeddings (method.md 2)."""
