"""MinAtar's five games on tensors."""
