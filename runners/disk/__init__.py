"""A run on disk: folder, checkpoints, event files, signals and exit codes."""
