"""A run on disk: its folder, checkpoints and events, and how it ends."""
