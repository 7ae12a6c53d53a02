"""The speed of the model on one CUDA device: `python -m benchmarks.gpu`."""
