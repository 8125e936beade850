"""What exporters share that trace a torch model: seeing what its attention does, and putting GroupQueryAttention in its place.

watching    runs the model a little and records what each layer's attention is asked for
modules     norms, Conv1D and GELU as single operators in the trace
operators   puts an operator of our choice into a trace
attention   each marker in the traced graph becomes a GroupQueryAttention
rotary      recognises a rotary embedding by what it does to unit vectors
shapes      sizes of heads that a TorchScript trace leaves open
tidy        constants folded, common parts shared, dead ones gone
"""
