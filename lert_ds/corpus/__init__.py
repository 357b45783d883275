"""Offline: raw text to a corpus folder."""
