"""An edge folder at work, without torch."""
