"""What training minimises, one family a file; `core` says what an objective is, `registry` which there are."""
