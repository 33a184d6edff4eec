"""Image sets with labels and masks."""
