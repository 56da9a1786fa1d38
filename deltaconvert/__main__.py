"""python -m deltaconvert."""

from deltaconvert.cli import main

if __name__ == "__main__":
    main()
