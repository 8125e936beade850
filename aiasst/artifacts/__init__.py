"""The files that travel between the stages: frozen, versioned, unknown keys refused. Imports no stage, no onnx, no torch."""
