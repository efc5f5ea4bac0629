"""Pictures: PNG files with metadata, and contact sheets."""
