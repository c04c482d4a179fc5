"""Recipes: each header says command, hardware, time and expected numbers."""
