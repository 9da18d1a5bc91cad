"""What keeps a network able to learn."""
