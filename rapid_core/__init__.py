"""RAPID's core: observations, actions, policies and the engine. Pure torch, `host/` apart."""
