"""One verb per file; each is one command."""
