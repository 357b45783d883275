"""How much heads and neurons matter."""
