"""The engine for any Gymnasium environment: serial or in worker processes, restored by replay."""
