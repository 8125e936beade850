"""What a service tells of itself. Knows no engine, and of protocols only the routes it answers on.

metrics.py      what happened, counted (tallies.py); exposition.py: for Prometheus; status.py: live numbers as JSON
host.py         sensors of the machine
health.py       live and ready
logs.py         a log that holds nobody up; request_log.py: one line a request
"""
