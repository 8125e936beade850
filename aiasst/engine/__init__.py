"""Running a model. One that generates: requests in, tokens out, many at once. One that embeds or classifies: texts in, answers out.

text.py       TextEngine: text in, pieces of text out (tokenizer, stop strings, usage)
engine.py     Engine: ids in, ids out; runs the session
scheduler.py  who runs next and in which row (ids, lengths, priorities, times)
costs.py      what steps cost here, learned from the steps
speculate.py  drafts of the next tokens from the text itself, where they pay
prefix.py     which row a prompt begins in, and where its beginning is taken from
prefix_store.py   keys and values that rows had before, under a budget; prefix_index.py finds them, prefix_file.py writes them
cache.py      the arrays of the KV cache: rows, buckets of capacity, the memory ceiling
sampling.py   logits → the next token
pacing.py     readings and time in, pauses out: limits of temperature and power
limits.py     the device config's limits → a pacer on this machine's sensors
constrain.py  a schema, a regular expression or a grammar → the tokens that may come next
fields.py     requests and answers in the keys of JSON

encode.py     Encoder: texts in, vectors, labels, fills or relevance out, by the folder's task
batching.py   which texts run together
heads.py      hidden states and logits → answers
"""
