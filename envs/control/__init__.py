"""Streams of classic control tasks."""
