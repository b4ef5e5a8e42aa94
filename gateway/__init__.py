"""The door, and the Django project."""
