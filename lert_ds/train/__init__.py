"""The trainer of every objective; it knows no BERT, no label and no corpus."""
