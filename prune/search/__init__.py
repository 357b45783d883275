"""The shape that meets a target."""
