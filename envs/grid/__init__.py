"""MiniGrid on tensors."""
