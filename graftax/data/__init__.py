"""Image sets and batches: sources, the packed demo set, and the pipeline with a saveable position."""
