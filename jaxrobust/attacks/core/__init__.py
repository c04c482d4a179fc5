"""What attacks are made of: the interface, the engine, ascent, and the books of minimum-norm attacks."""
