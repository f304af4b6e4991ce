"""What goes on inside a model, and what that says about where to edit it."""
