"""The served model: loading, the stepwise pipeline, patches of diffusers, memory. Only this package imports torch."""
