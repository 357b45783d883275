"""`lert-ds doctor`: what would stop a run, found before it starts."""
