"""TensorFlow 1 checkpoints of LERT and of other Chinese BERTs to model folders, and back."""
