"""What a first try needs and production replaces: embedded stores and a small backend."""
