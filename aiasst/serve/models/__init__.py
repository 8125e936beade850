"""The models of a service, behind the interface of `service.py`. Knows no protocol.

hub.py          the models: loaded on first use, unloaded when memory is short
loading.py      a folder and a device config → an engine; memory.py: what each may take of the ceiling
worker.py       one text engine on a thread of its own; embedder.py: one encoder
admission.py    the line before a model: who runs, who waits, who is refused
utilization.py  how busy the machine is
"""
