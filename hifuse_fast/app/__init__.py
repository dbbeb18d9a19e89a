"""What the command line is made of: a network of a file, images to rows, rows to files, and how a command ends."""
