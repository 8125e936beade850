"""A model folder and a device config as a service: REST, WebSocket and gRPC over one continuously batching engine.

service.py    what every protocol asks of: requests in, pieces of answers out, models and their state (an interface)
refusals.py   why a request is not served, in the terms of every protocol
settings.py   what whoever starts the service decides
watch.py      what the service tells whoever counts (an interface)

hub.py        the models: loaded on first use, unloaded when memory is short; makes `service.Service` true
worker.py     one engine on a thread of its own, asked from the event loop
admission.py  how many may wait and run, and what is said to the others
rest/         OpenAI's REST as existing clients speak it
query.py      the compact form {"query", "context", "params"}; stream.py: WebSocket; rpc/: gRPC
guard/        keys, rate limits, sizes, slow clients, headers, TLS
metrics.py    figures for Prometheus; logs.py: structured logs; health.py: live and ready
page/         the chat page and the dashboard
"""
