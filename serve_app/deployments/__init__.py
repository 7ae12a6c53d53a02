"""Ray Serve: deployments, handles, autoscaling, metrics, retries. Imports ray, as do `app` and `cli.serve`."""
