"""`lert-ds benchmark pretrain`: where a training step's time and memory go."""
