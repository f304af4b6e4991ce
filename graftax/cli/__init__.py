"""The command line: one thin module per verb over the functions of the package."""
