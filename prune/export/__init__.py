"""Model folder to edge folder."""
