"""What calibrate.py stands on: search.py looks for a setting.py of sites.py, by what trials.py of it come to."""
