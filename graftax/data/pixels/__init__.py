"""Between images and a model's arrays: data, autoencoders and VAEs, samples drawn and judged."""
