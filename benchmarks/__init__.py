"""The product's claim, measured: our server beside the naive ways, with the same model, pictures and traffic."""
