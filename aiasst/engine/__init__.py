"""Generating with a model: requests in, tokens out, many at once.

text.py       TextEngine: text in, pieces of text out (tokenizer, stop strings, usage)
engine.py     Engine: ids in, ids out; runs the session
scheduler.py  who runs next and in which row (ids, lengths, priorities, times)
costs.py      what steps cost here, learned from the steps
prefix.py     which row a prompt may begin with
cache.py      the arrays of the KV cache: rows, buckets of capacity, the memory ceiling
sampling.py   logits → the next token
pacing.py     readings and time in, pauses out: limits of temperature and power
limits.py     the device config's limits → a pacer on this machine's sensors
constrain.py  a schema, a regular expression or a grammar → the tokens that may come next
"""
