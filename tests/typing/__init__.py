"""What type checkers are asked about the public names."""
