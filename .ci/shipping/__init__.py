"""What makes the files that are shipped beside the code: manual pages, completions, packages."""
