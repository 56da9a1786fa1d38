"""One file per operator; see base.py for what belongs in it."""
