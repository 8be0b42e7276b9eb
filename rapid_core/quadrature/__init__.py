"""The mathematics of a run, without state: a sampling run is a quadrature of the derivative
(x - denoised) / sigma over sigma. Read `multistep` first."""
