"""``python -m sisa``."""

from sisa.cli import main

if __name__ == "__main__":
    main()
