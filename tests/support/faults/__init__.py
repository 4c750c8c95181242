"""What a study, a file or a package may have wrong, and runs that meet all of it."""
