"""Attacks that look for the nearest error."""
