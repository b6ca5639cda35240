"""Side-by-side measurements: `python -m bench`, explained in README.md."""
