"""Measurements of the server: under load, on a GPU, as a simulated fleet, and stage by stage.

`python -m benchmarks` compares our server with the naive ways, with the same model, pictures and traffic.
"""
