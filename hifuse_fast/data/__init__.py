"""Image files and class names."""
