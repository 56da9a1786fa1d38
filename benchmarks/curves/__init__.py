"""Loss against work, way by way, of one task: what accuracy.py draws."""
