"""Model and edge folders side by side, measured in turns."""
