"""The book's workshop: set up, keep notebooks in step, build and serve the site."""
