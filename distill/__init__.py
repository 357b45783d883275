"""Distillation with TextBrewer's losses."""
