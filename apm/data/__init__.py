"""Images with labels and class names, and what is published: datasets by name, folder trees, corruptions, prompts, published numbers.

Uses `project`.
"""
