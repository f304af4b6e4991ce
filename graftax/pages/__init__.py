"""HTML pages, pictures and tables that the verbs write."""
