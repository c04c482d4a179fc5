"""Attacks that follow gradients inside a set."""
