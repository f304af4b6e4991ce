"""Families of models, one folder each: what surrounds the blocks, published variants, file layouts.

A folder's `BACKBONE` is a `graftax.models.backbone.Backbone`; its name stands in `graftax.spec.BACKBONES`.
"""
