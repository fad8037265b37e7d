"""One reader or writer a file for the formats of the field."""
