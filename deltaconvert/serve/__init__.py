"""serve: cameras over HTTP. worker.py runs the network, fleet.py has one or many of them, app.py is the door.

Nothing here is imported by the rest of deltaconvert; it needs the extra `serve`.
"""
