"""RAPID Calibrate's work in ComfyUI: what it accepts (`accepted`), draws (`drawer`) and writes
(`card`), and the course of it (`calibrate`)."""
