"""The emoji world: scenes of 256 real drawings. The FLUX-like and the SD3-like model draw them; the
Lumina-like ones draw the shapes of `demo.scenes`."""
