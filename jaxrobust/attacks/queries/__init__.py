"""Attacks on scores or decisions, without gradients."""
