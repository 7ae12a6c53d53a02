"""The servers that are compared, each a program of its own, which benchmarks/servers.py starts and stops."""
