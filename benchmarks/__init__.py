"""What the door costs: `make bench`. docs/benchmarks.md explains the figures and how to read them."""
