"""The contenders, each a program of its own that benchmarks/load/servers.py starts and stops."""
