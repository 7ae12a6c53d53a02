"""The recipe of the built-in model: data, autoencoder, editor, evaluation. Not part of the installed package."""
