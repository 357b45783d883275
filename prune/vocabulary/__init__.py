"""A smaller vocabulary: its pieces, its tokenizer, what it costs."""
