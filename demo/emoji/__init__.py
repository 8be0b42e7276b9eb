"""The emoji world: scenes of 256 real drawings. It will replace the drawn shapes of `demo.scenes`; now both live."""
