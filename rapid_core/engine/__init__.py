"""The engine: run state, forecasts, and what a run did. Pure torch."""
