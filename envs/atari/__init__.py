"""Atari games, stepped as one batch by ale-py."""
