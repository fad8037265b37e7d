"""Pure tensor functions: no files, no environment, no config objects."""
