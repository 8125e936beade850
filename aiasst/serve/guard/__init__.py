"""What keeps the service from harm: keys, rates, sizes, slow clients, foreign web pages, headers, TLS. Knows no framework.

guard.py        applies the rules below to every request of HTTP and WebSocket
gate.py         who asks and how often, for every protocol, gRPC included
keys.py         API keys      rate.py     token buckets      sizes.py   bodies and headers
hosts.py        DNS rebinding, cross-site requests           cors.py    pages that may ask
paths.py        what needs no key                            headers.py what browsers are told
sockets.py      the key of a WebSocket                       request_ids.py
answers.py      a refusal in OpenAI's form                   exchange.py  one answer on its way out
connections.py  slow and too many connections, below ASGI    listening.py  how the server listens
checks.py       settings that would be unsafe are refused    tls.py       certificates
"""

from aiasst.serve.guard.checks import check
from aiasst.serve.guard.gate import Gate
from aiasst.serve.guard.guard import Guard

__all__ = ["Gate", "Guard", "check"]
