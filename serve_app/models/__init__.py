"""Load the served model and run its stages. Only this package imports torch."""
