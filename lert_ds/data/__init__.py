"""Online: a corpus folder to batches."""
