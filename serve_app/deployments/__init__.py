"""Ray Serve: deployments, handles, autoscaling, metrics, retries. Elsewhere, only `app` and `cli.serve` import ray."""
