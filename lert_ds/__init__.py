"""lert-ds: train and compress Chinese LERT models on DeepSpeed."""

__version__ = "0.1.0"
