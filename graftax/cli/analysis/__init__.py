"""What `graftax analyze` measures, and the page that shows it."""
