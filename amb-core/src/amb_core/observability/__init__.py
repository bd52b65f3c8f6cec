"""Seeing what a bus does: traces (`tracing`) and metrics (`metrics`). Both are off until asked for."""
