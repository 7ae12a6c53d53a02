"""Many replicas: capacity, autoscaling and routing, computed, simulated, and on a real Ray cluster."""
