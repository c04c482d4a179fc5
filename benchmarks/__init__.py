"""What the library costs, as ratios of things timed in one run, and published numbers that it must reproduce.

python -m benchmarks.run              # all of them
python -m benchmarks.run retraces --quick
python -m benchmarks.run --output benchmarks/results && python -m benchmarks.tables
"""
