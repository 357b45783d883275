"""Tools that cut text into words and tag them."""
