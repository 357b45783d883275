"""Fine-tuning: the tasks of LERT's paper, from their owners' files to scores and a model."""
