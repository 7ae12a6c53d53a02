"""Ray Serve: deployments, handles, autoscaling, metrics, retries. Only `app` and `cli.serve` import ray besides."""
