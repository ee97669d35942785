"""Training of the masked autoencoder on image sets, thin over `transformers.Trainer`."""
