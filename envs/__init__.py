"""Streams of tasks."""
