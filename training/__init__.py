"""The recipes of the built-in models: data, autoencoder, editor, evaluation. Not part of the installed package."""
