"""Atari games, stepped together."""
