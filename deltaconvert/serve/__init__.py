"""serve: cameras over HTTP. A Worker (worker.py) runs the network, a Fleet (fleet.py) has one or many of them, and
app.py is the HTTP server; limits.py bounds what it accepts.

Nothing here is imported by the rest of deltaconvert; it needs the extra `serve`.
"""
