"""Models whose network is a DiT by its blocks, trained otherwise: SiT, REPA, REPA-E, SRA, REG, ReDi, TREAD.

They are of the backbone "dit"; what sets them apart is what their output and time mean (`Prediction`), and two options of
the frame (`graftax.backbones.dit.joint`).
"""
