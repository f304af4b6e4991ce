"""graftax's own kernels for TPUs (Pallas), each beside the plain jax that it equals.

An operator takes one where `graftax.ops.target.kernels` says so; everything else, CPUs and GPUs included, takes the plain
form. `interpret=True` runs a kernel anywhere, slowly: that is how the tests hold it to the plain form.
"""
