"""Image sets and batches: sources of every kind, subsets, latent sets, and the pipeline with a saveable position."""
