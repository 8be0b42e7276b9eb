"""Demo models: drawn scenes, a small autoencoder and small Diffusion Transformers trained on
them."""
