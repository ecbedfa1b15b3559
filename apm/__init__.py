"""apm: the Asynchronous Perception Machine (Modi & Rawat, NeurIPS 2024), experiment by experiment."""

__version__ = "0.1.0"
