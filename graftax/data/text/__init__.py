"""Captions and prompts, their embeddings on disk, and what brings the two together."""
